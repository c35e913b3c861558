"""`python -m tests.chaos kill [--cycles 10] [--streams 200]`: exit code 0 if the bill is right, else 1."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from tests.chaos import kill


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    faults = parser.add_subparsers(dest="fault", required=True)
    killing = faults.add_parser("kill", help="kill -9 of the gateway in the middle of streams")
    killing.add_argument("--cycles", type=int, default=10)
    killing.add_argument("--streams", type=int, default=200, help="in each cycle")
    killing.add_argument("--parallel", type=int, default=64)
    killing.add_argument("--keep", type=Path, help="a folder for the data, which stays; default: a temporary one")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="strata-chaos-") as temporary:
        folder: Path = given.keep or Path(temporary)
        right = asyncio.run(kill.run(folder, cycles=given.cycles, streams=given.streams, parallel=given.parallel))
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
