"""`python -m tests.chaos FAULT`: exit code 0 if what is promised holds, else 1."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from tests.chaos import budgets, disk, kill, limits, money, outage, revocation


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.set_defaults(keep=None)
    faults = parser.add_subparsers(dest="fault", required=True)
    keep = argparse.ArgumentParser(add_help=False)
    keep.add_argument("--keep", type=Path, help="a folder for the data, which stays; default: a temporary one")

    killing = faults.add_parser("kill", parents=[keep], help="kill -9 of the gateway in the middle of streams")
    killing.add_argument("--cycles", type=int, default=10)
    killing.add_argument("--streams", type=int, default=200, help="in each cycle")
    killing.add_argument("--parallel", type=int, default=64)
    killing.set_defaults(
        play=lambda given, folder: kill.run(folder, cycles=given.cycles, streams=given.streams, parallel=given.parallel)
    )

    dying = faults.add_parser("money", parents=[keep], help="kill -9 of workers and crashes of Postgres, mixed traffic")
    dying.add_argument("--workers", type=int, default=4)
    dying.add_argument("--kills", type=int, default=100)
    dying.add_argument("--crashes", type=int, default=20)
    dying.add_argument("--parallel", type=int, default=24)
    dying.add_argument("--seed", type=int, default=0)
    dying.set_defaults(
        play=lambda given, folder: money.run(
            folder,
            workers=given.workers,
            kills=given.kills,
            crashes=given.crashes,
            parallel=given.parallel,
            seed=given.seed,
        )
    )

    spending = faults.add_parser("budgets", parents=[keep], help="many parallel requests at budgets that hold half")
    spending.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    spending.add_argument("--budgets", type=int, default=10)
    spending.add_argument("--requests", type=int, default=1000, help="at each budget")
    spending.add_argument("--parallel", type=int, default=400, help="open at once, at all budgets")
    spending.add_argument("--kills", type=int, default=3)
    spending.add_argument("--seed", type=int, default=0)
    spending.set_defaults(
        play=lambda given, folder: budgets.run(
            folder,
            workers=given.workers,
            budgets=given.budgets,
            requests=given.requests,
            parallel=given.parallel,
            kills=given.kills,
            seed=given.seed,
        )
    )

    away = faults.add_parser("outage", parents=[keep], help="Postgres goes away for a while, and comes back")
    away.add_argument("--seconds", type=float, default=20.0)
    away.add_argument("--workers", type=int, default=2)
    away.add_argument("--how", choices=("crash", "freeze"), default="crash")
    away.set_defaults(
        play=lambda given, folder: outage.run(folder, seconds=given.seconds, workers=given.workers, how=given.how)
    )

    failing = faults.add_parser("disk", parents=[keep], help="the journal's disk fails its syncs, or is full")
    failing.add_argument("--how", choices=("fsync", "full"), default="fsync")
    failing.add_argument("--seconds", type=float, default=10.0)
    failing.set_defaults(play=lambda given, folder: disk.run(folder, how=given.how, seconds=given.seconds))

    counting = faults.add_parser(
        "limits", parents=[keep], help="limits that gateways share, and what Redis does to them"
    )
    counting.add_argument("--workers", type=int, default=3)
    counting.add_argument("--pace", type=float, default=500.0, help="requests a second, in all")
    counting.add_argument("--rpm", type=int, default=15_000)
    counting.add_argument("--seconds", type=float, default=20.0)
    counting.add_argument("--modes", nargs="+", choices=("shares", "strict"), default=["shares", "strict"])
    counting.set_defaults(
        play=lambda given, folder: limits.run(
            folder,
            workers=given.workers,
            pace=given.pace,
            rpm=given.rpm,
            seconds=given.seconds,
            modes=given.modes,
        )
    )

    revoking = faults.add_parser("revocation", parents=[keep], help="how long a revoked key is still let in")
    revoking.add_argument("--workers", type=int, default=4)
    revoking.add_argument("--rounds", type=int, default=100)
    revoking.set_defaults(play=lambda given, folder: revocation.run(folder, workers=given.workers, rounds=given.rounds))

    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="strata-chaos-") as temporary:
        right = asyncio.run(given.play(given, given.keep or Path(temporary)))
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
