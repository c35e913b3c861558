"""`python -m tests.oracle --port 0 --bill FILE`: prints its port, serves until it is told to end."""

from __future__ import annotations

import argparse
import asyncio
import signal
from pathlib import Path

import msgspec

from tests.oracle import Oracle, Script


async def serve(port: int, bill: Path, scripts: dict[str, Script], *, stops_on_abort: bool, seed: int) -> None:
    oracle = Oracle(bill=bill, scripts=scripts, bills_after_abort=not stops_on_abort, seed=seed)
    print(await oracle.start(port), flush=True)
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await ended.wait()
    await oracle.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.oracle", description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--bill", type=Path, required=True)
    parser.add_argument("--script", action="append", default=[], metavar="MODEL=JSON", help="what a model does")
    parser.add_argument("--stops-on-abort", action="store_true", help="charge only what was sent when a client leaves")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    pairs = (line.partition("=") for line in given.script)
    scripts = {model: msgspec.json.decode(text, type=Script) for model, _, text in pairs}
    asyncio.run(serve(given.port, given.bill, scripts, stops_on_abort=given.stops_on_abort, seed=given.seed))


if __name__ == "__main__":
    main()
