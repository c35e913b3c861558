"""
`kill -9` of workers and crashes of Postgres under mixed traffic; then the provider's bill is laid beside the ledger,
item by item, and every counter beside its rows.
"""

from __future__ import annotations

import asyncio
import random
import signal
import time
from pathlib import Path

from tests.chaos.traffic import Traffic
from tests.chaos.verdict import Verdict, judge
from tests.chaos.workers import Workers
from tests.gateway import ROWS, Gateway, OracleProcess

SETTLE_SECONDS = 120.0
KEYS = ("red", "green", "blue")
PREFIX = "money"
MAX_DOWN = 2
"""Workers that are dead at the same time, at most."""

COUNTERS = """
    WITH rows AS (
        SELECT key_id, min(key_name) AS name, count(*) FILTER (WHERE attempt > 0) AS attempts,
            sum(cost_nano_usd) AS cost
        FROM strata.usage GROUP BY key_id
    ), hours AS (
        SELECT key_id, sum(attempts) AS attempts, sum(cost_nano_usd) AS cost FROM strata.usage_hourly GROUP BY key_id
    ), budgets AS (
        SELECT b.subject::uuid AS key_id, sum(p.settled_nano_usd) AS settled
        FROM strata.budgets b JOIN strata.budget_periods p ON p.budget_id = b.id WHERE b.scope = 'key' GROUP BY 1
    )
    SELECT coalesce(r.name, key_id::text) AS name, r.attempts AS row_attempts, h.attempts AS hour_attempts,
        r.cost AS row_cost, h.cost AS hour_cost, b.settled AS budget_settled
    FROM rows r FULL JOIN hours h USING (key_id) FULL JOIN budgets b USING (key_id) ORDER BY 1
"""

SHARED = """
    SELECT trim(b.scope || ' ' || b.subject) AS name, coalesce(sum(p.settled_nano_usd), 0) AS budget_settled, (
            SELECT coalesce(sum(u.cost_nano_usd), 0) FROM strata.usage u
            WHERE b.scope = 'global' OR u.provider = b.subject) AS row_cost
    FROM strata.budgets b LEFT JOIN strata.budget_periods p ON p.budget_id = b.id
    WHERE b.scope IN ('global', 'provider') GROUP BY b.id ORDER BY 1
"""
BUDGETS = """\
budgets:
  - {scope: global, max_budget: 5000, budget_duration: month}
  - {scope: provider, name: oai, max_budget: 3000, budget_duration: 30d}
  - {scope: provider, name: claude, max_budget: 3000}
"""
"""Besides the keys' own: every row counts against three budgets."""

LEASED = """
    SELECT coalesce(sum(p.leased_nano_usd), 0)::bigint AS leased,
        (SELECT coalesce(sum(granted_nano_usd), 0) FROM strata.leases)::bigint AS granted
    FROM strata.budget_periods p
"""


async def run(folder: Path, *, workers: int, kills: int, crashes: int, parallel: int, seed: int = 0) -> bool:
    """Prints the verdict; true if the bill is right."""
    started = time.monotonic()
    oracle = OracleProcess(folder / "oracle")
    cluster = Workers(folder, workers, oracle=oracle.url, more=BUDGETS)
    try:
        await cluster.start()
        keys = [await cluster.create_key(name, budget_nano_usd=1000 * 10**9) for name in KEYS]
        traffic = Traffic(cluster.gateways, keys, prefix=PREFIX, parallel=parallel, seed=seed)
        running = asyncio.create_task(traffic.run())
        await _do_harm(cluster, traffic, kills, crashes, random.Random(seed))
        traffic.end()
        await running
        verdict = await _verdict(cluster, oracle)
        right = await _report(cluster, traffic, verdict, kills, crashes, time.monotonic() - started)
        right = await _nothing_stays_leased(cluster) and right
    finally:
        await cluster.stop()
        oracle.stop()
    print("\nthe bill is right" if right else f"\nTHE BILL IS WRONG; see {folder}", flush=True)
    return right


async def _do_harm(cluster: Workers, traffic: Traffic, kills: int, crashes: int, dice: random.Random) -> None:
    """All the deaths, spread over the traffic. A killed worker comes back by itself; so does Postgres."""
    restarts: dict[Gateway, asyncio.Task[object]] = {}
    deaths = ["kill"] * kills + ["crash"] * crashes
    dice.shuffle(deaths)
    crashed = 0
    for done, death in enumerate(deaths, start=1):
        await _some_traffic(traffic, dice.uniform(5, 40))
        if death == "crash":
            crashed += 1
            cluster.postgres.crash((signal.SIGKILL, signal.SIGQUIT)[crashed % 2])
            await asyncio.sleep(dice.uniform(0.1, 1.5))
            cluster.postgres.start()
        else:
            while sum(not task.done() for task in restarts.values()) >= min(MAX_DOWN, len(cluster.gateways) - 1):
                await asyncio.wait(restarts.values(), return_when=asyncio.FIRST_COMPLETED, timeout=1.0)
                restarts = {gateway: task for gateway, task in restarts.items() if not task.done() or await task}
            alive = [gateway for gateway in cluster.gateways if gateway not in restarts or restarts[gateway].done()]
            victim = dice.choice(alive)
            await asyncio.to_thread(victim.kill9)
            restarts[victim] = asyncio.create_task(asyncio.to_thread(victim.start))
        if done % 10 == 0:
            print(f"  {done} of {len(deaths)} deaths, {traffic.asked} requests: {dict(traffic.heard)}", flush=True)
    await asyncio.gather(*restarts.values())


async def _some_traffic(traffic: Traffic, requests: float) -> None:
    target, deadline = traffic.asked + requests, time.monotonic() + 10
    while traffic.asked < target and time.monotonic() < deadline:
        await asyncio.sleep(0.01)


async def _verdict(cluster: Workers, oracle: OracleProcess) -> Verdict:
    """Waits for what is due, then looks once more: a row too many would come late as well."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        verdict = judge(await cluster.sql(ROWS, None), oracle.items())
        if not verdict.lost or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.5)
    await asyncio.sleep(2.0)
    return judge(await cluster.sql(ROWS, None), oracle.items())


async def _report(
    cluster: Workers, traffic: Traffic, verdict: Verdict, kills: int, crashes: int, seconds: float
) -> bool:
    print(f"\n{kills} kills of {len(cluster.gateways)} workers, {crashes} crashes of Postgres, {seconds:.0f} s")
    print("clients heard: " + ", ".join(f"{ending} {count}" for ending, count in sorted(traffic.heard.items())))
    lines = (
        ("requests", traffic.asked),
        ("attempts the provider billed", verdict.items),
        ("rows equal to the bill", verdict.exact),
        ("rows that are estimates, none below the bill", verdict.estimated),
        ("  of them orphans of dead workers", verdict.orphans),
        ("rows of attempts that never left", verdict.unsent),
        ("bill, $", f"{verdict.billed_nano_usd / 1e9:.6f}"),
        ("ledger, $ (estimates are upper bounds)", f"{verdict.ledger_nano_usd / 1e9:.6f}"),
        ("ROWS LOST", len(verdict.lost)),
        ("ROWS DOUBLED", len(verdict.doubled)),
        ("WRONG AMOUNTS", len(verdict.wrong)),
    )
    for name, number in lines:
        print(f"  {name:<48}{number!s:>14}")
    for kind, sentences in (("lost", verdict.lost), ("doubled", verdict.doubled), ("wrong", verdict.wrong)):
        for sentence in sentences[:10]:
            print(f"    {kind}: {sentence}")
    equal = await _counters_equal_rows(cluster)
    verified = await asyncio.to_thread(cluster.first.strata, "ledger", "verify")
    print(f"  strata ledger verify: {'right' if verified.returncode == 0 else verified.stdout + verified.stderr}")
    return verdict.right and equal and verified.returncode == 0 and verdict.exact > 0


async def _counters_equal_rows(cluster: Workers) -> bool:
    """On every key: attempts and cost of its rows, of its hours, and what its budget has settled."""
    right = True
    print(f"\n  {'key':<8}{'rows':>9}{'hourly':>9}{'cost of rows':>16}{'of hours':>16}{'of budget':>16}")
    for row in await cluster.sql(COUNTERS):
        name, rows, hours, *costs = (row["name"], row["row_attempts"], row["hour_attempts"], row["row_cost"],
                                     row["hour_cost"], row["budget_settled"])  # fmt: skip
        equal = rows == hours and len(set(costs)) == 1
        right = right and equal
        shown = "".join(f"{cost!s:>16}" for cost in costs)
        print(f"  {name:<8}{rows!s:>9}{hours!s:>9}{shown}  {'equal' if equal else 'DIFFERENT'}")
    shared = await cluster.sql(SHARED)
    for row in shared:
        equal = row["row_cost"] == row["budget_settled"]
        right = right and equal
        sums = f"{row['row_cost']!s:>16}{'':>16}{row['budget_settled']!s:>16}"
        print(f"  {row['name']:<26}{sums}  {'equal' if equal else 'DIFFERENT'}")
    return right and len(shared) == 3


async def _nothing_stays_leased(cluster: Workers) -> bool:
    """When all workers have ended properly, what is leased is nothing."""
    await cluster.stop_gateways()
    (row,) = await cluster.sql(LEASED)
    print(f"  leased after the last worker ended: {row['leased']} (by lease: {row['granted']})")
    return (row["leased"], row["granted"]) == (0, 0)
