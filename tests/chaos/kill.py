"""`kill -9` in the middle of many streams, again and again; every attempt must be in the ledger once, and right."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

import asyncpg

from proxy.storage.embedded import find_running
from tests.chaos.streams import Crowd
from tests.chaos.verdict import Verdict, judge
from tests.gateway import Gateway, OracleProcess

SETTLE_SECONDS = 90.0
HEADINGS = ("cycle", "done", "left", "failed", "items", "exact", "orphan", "other est.", "unsent", "lost", "doubled",
            "wrong", "bill $", "ledger $", "restart s")  # fmt: skip


async def run(folder: Path, *, cycles: int, streams: int, parallel: int) -> bool:
    """Prints a line a cycle; true if nothing was lost, doubled or wrong in any."""
    oracle = OracleProcess(folder / "oracle")
    gateway = Gateway(folder / "home", oracle=oracle.url).start()
    right = True
    print("  ".join(f"{heading:>10}" for heading in HEADINGS), flush=True)
    try:
        for cycle in range(1, cycles + 1):
            crowd, restart_seconds = await _one_cycle(gateway, cycle, streams, parallel)
            verdict = await _verdict(gateway, oracle)
            _show(cycle, crowd, verdict, len(oracle.items()), restart_seconds)
            right = right and verdict.right
        right = await _counters_equal_rows(gateway) and right
    finally:
        with contextlib.suppress(AssertionError):
            gateway.stop()
        oracle.stop()
    print("\nthe bill is right" if right else f"\nTHE BILL IS WRONG; see {folder}", flush=True)
    return right


async def _one_cycle(gateway: Gateway, cycle: int, streams: int, parallel: int) -> tuple[Crowd, float]:
    crowd = Crowd(gateway)
    names = [f"kill-{cycle}-{number}" for number in range(streams)]
    running = asyncio.create_task(crowd.run(names, parallel=parallel, abandon_every=20, pieces=20, gap_ms=20))
    # the point of death moves through the streams from cycle to cycle
    share = (cycle * 37 % 80 + 10) / 100
    while crowd.done + crowd.abandoned + crowd.failed < streams * share and not running.done():
        await asyncio.sleep(0.005)
    await asyncio.to_thread(gateway.kill9)
    await running
    started = time.monotonic()
    await asyncio.to_thread(gateway.start)
    return crowd, time.monotonic() - started


async def _verdict(gateway: Gateway, oracle: OracleProcess) -> Verdict:
    """Over everything so far, so that a later adoption that doubles an earlier row is found; waits for what is due."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        items = oracle.items()
        rows = [row for row in await gateway.rows() if row["public_id"].startswith("kill-")]
        verdict = judge(rows, items)
        if not verdict.lost or time.monotonic() > deadline:
            # one more look: a row too many would come late as well
            await asyncio.sleep(1.5)
            rows = [row for row in await gateway.rows() if row["public_id"].startswith("kill-")]
            return judge(rows, oracle.items())
        await asyncio.sleep(0.25)


def _show(cycle: int, crowd: Crowd, verdict: Verdict, items: int, restart_seconds: float) -> None:
    numbers = (
        *(cycle, crowd.done, crowd.abandoned, crowd.failed, items, verdict.exact, verdict.orphans),
        *(verdict.estimated - verdict.orphans, verdict.unsent),
        *(len(verdict.lost), len(verdict.doubled), len(verdict.wrong)),
        *(f"{verdict.billed_nano_usd / 1e9:.6f}", f"{verdict.ledger_nano_usd / 1e9:.6f}", f"{restart_seconds:.1f}"),
    )
    print("  ".join(f"{number:>10}" for number in numbers), flush=True)
    for kind, sentences in (("lost", verdict.lost), ("doubled", verdict.doubled), ("wrong", verdict.wrong)):
        for sentence in sentences[:5]:
            print(f"    {kind}: {sentence}", flush=True)


async def _counters_equal_rows(gateway: Gateway) -> bool:
    """The hourly sums are the sums of the rows."""
    dsn = find_running(gateway.home)
    assert dsn is not None
    connection = await asyncpg.connect(dsn, timeout=10)
    try:
        rows = await connection.fetchrow("SELECT count(*), coalesce(sum(cost_nano_usd), 0) FROM strata.usage")
        hours = await connection.fetchrow(
            "SELECT coalesce(sum(attempts), 0), coalesce(sum(cost_nano_usd), 0) FROM strata.usage_hourly"
        )
    finally:
        await connection.close()
    assert rows is not None
    assert hours is not None
    print(f"\nrows {rows[0]} = hourly attempts {hours[0]}; cost {rows[1]} = hourly cost {hours[1]}")
    return (int(rows[0]), int(rows[1])) == (int(hours[0]), int(hours[1]))
