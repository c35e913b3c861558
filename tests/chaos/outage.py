"""
Postgres goes away for a while, and comes back. Whose key is known goes on: without a budget for as long as it takes,
with one for as long as the lease lasts. Who needs a new lease is told to wait, and so is an unknown key.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from proxy.admission.keys import new_key
from tests.chaos.traffic import ask_once
from tests.chaos.verdict import Verdict, judge
from tests.chaos.workers import Workers
from tests.gateway import ROWS, Gateway, OracleProcess

DRAIN_SECONDS = 60.0
DOLLAR = 10**9
PAUSE_SECONDS = 0.02
LONGEST_WAIT_SECONDS = 3.0
How = Literal["crash", "freeze"]


@dataclass
class Client:
    """Somebody who asks all the time. `allowed`: how their requests may end while Postgres is away."""

    name: str
    key: str
    allowed: frozenset[str]
    heard: Counter[str] = field(default_factory=Counter)
    longest_seconds: float = 0.0
    asked: int = 0

    async def run(self, gateways: Sequence[Gateway], over: asyncio.Event) -> None:
        while not over.is_set():
            began = time.monotonic()
            nonce = f"outage-{self.name}-{self.asked}"
            self.asked += 1
            gateway = gateways[self.asked % len(gateways)]
            self.heard[await ask_once(gateway, self.key, nonce, stream=self.asked % 2 == 0)] += 1
            self.longest_seconds = max(self.longest_seconds, time.monotonic() - began)
            await asyncio.sleep(PAUSE_SECONDS)

    @property
    def right(self) -> bool:
        ended = set(self.heard)
        return bool(ended) and ended <= self.allowed and self.longest_seconds < LONGEST_WAIT_SECONDS


async def run(folder: Path, *, seconds: float, workers: int, how: How = "crash") -> bool:
    """Prints who heard what; true if all was as promised."""
    oracle = OracleProcess(folder / "oracle")
    cluster = Workers(folder, workers, oracle=oracle.url)
    try:
        await cluster.start()
        clients = await _clients(cluster)
        await _warm_up(cluster, clients)
        if how == "freeze":
            cluster.postgres.freeze()
        else:
            cluster.postgres.crash()
        over = asyncio.Event()
        running = [asyncio.create_task(client.run(cluster.gateways, over)) for client in clients]
        await asyncio.sleep(seconds)
        readiness = [gateway.get("/readyz") for gateway in cluster.gateways]
        over.set()
        await asyncio.gather(*running)
        if how == "freeze":
            cluster.postgres.thaw()
        else:
            cluster.postgres.start()
        verdict, drained_seconds = await _drained(cluster, oracle)
        back = await _all_are_served(cluster, clients)
        return await _report(cluster, clients, readiness, verdict, drained_seconds, seconds=seconds, back=back)
    finally:
        cluster.postgres.thaw()
        await cluster.stop()
        oracle.stop()


async def _clients(cluster: Workers) -> list[Client]:
    served, waits = frozenset({"served"}), frozenset({"503 budget_unavailable"})
    return [
        Client("no-budget", await cluster.create_key("no-budget"), served),
        Client("leased", await cluster.create_key("leased", budget_nano_usd=1000 * DOLLAR), served),
        # a fiftieth of it is leased: enough for some requests, and not for all
        Client("small-lease", await cluster.create_key("small-lease", budget_nano_usd=DOLLAR // 20), served | waits),
        Client("no-lease", await cluster.create_key("no-lease", budget_nano_usd=1000 * DOLLAR), waits),
        Client("unknown-key", new_key("sk-strata-"), frozenset({"503 db_unavailable"})),
    ]


async def _warm_up(cluster: Workers, clients: Sequence[Client]) -> None:
    """Every worker knows every key, and has leased from two of the budgets."""
    for gateway in cluster.gateways:
        for client in clients[:3]:
            name = f"outage-warm-{client.name}-{gateway.port}"
            ending = await ask_once(gateway, client.key, name)
            assert ending == "served", (ending, gateway.tail())
    await asyncio.sleep(0.5)


async def _drained(cluster: Workers, oracle: OracleProcess) -> tuple[Verdict, float]:
    """How long it takes until every item of the bill has its row."""
    back = time.monotonic()
    while True:
        with contextlib.suppress(OSError, TimeoutError):
            verdict = judge(await cluster.sql(ROWS, None), oracle.items())
            seconds = time.monotonic() - back
            if not verdict.lost or seconds > DRAIN_SECONDS:
                return verdict, seconds
        await asyncio.sleep(0.1)


async def _all_are_served(cluster: Workers, clients: Sequence[Client]) -> bool:
    """Who had to wait need wait no longer; and a key that nobody knows is refused as such again."""
    right = True
    for client in clients:
        expected = "401 invalid_api_key" if client.name == "unknown-key" else "served"
        ending = ""
        for attempt in range(20):
            ending = await ask_once(cluster.first, client.key, f"outage-back-{client.name}-{attempt}")
            if ending == expected:
                break
            await asyncio.sleep(0.5)
        right = right and ending == expected
    return right


async def _report(
    cluster: Workers,
    clients: Sequence[Client],
    readiness: Sequence[tuple[int, bytes]],
    verdict: Verdict,
    drained_seconds: float,
    *,
    seconds: float,
    back: bool,
) -> bool:
    print(f"Postgres was away for {seconds:g} s; {len(cluster.gateways)} workers")
    for client in clients:
        heard = ", ".join(f"{ending} {count}" for ending, count in sorted(client.heard.items()))
        verdict_word = "" if client.right else "  WRONG"
        print(
            f"  {client.name:<14}{client.asked:>6} asked, longest {client.longest_seconds:.2f} s: {heard}{verdict_word}"
        )
    print(f"  /readyz meanwhile: {', '.join(f'{status} {body.decode()}' for status, body in readiness)}")
    print(f"  rows {verdict.exact} equal to the bill, {verdict.estimated} estimates, lost {len(verdict.lost)}, "
          f"doubled {len(verdict.doubled)}, wrong {len(verdict.wrong)}")  # fmt: skip
    difference = verdict.ledger_nano_usd - verdict.billed_nano_usd
    print(f"  ledger - bill: {difference} nano-dollars; drained {drained_seconds:.1f} s after the return")
    print(f"  everybody is served as before: {back}")
    verified = await asyncio.to_thread(cluster.first.strata, "ledger", "verify")
    print(f"  strata ledger verify: {'right' if verified.returncode == 0 else verified.stdout + verified.stderr}")
    ready = all(status == 200 and b"database" in body for status, body in readiness)
    bill = verdict.right and difference == 0 and drained_seconds < DRAIN_SECONDS and verified.returncode == 0
    right = all(client.right for client in clients) and ready and bill and back
    print("\nthe outage cost nothing" if right else "\nTHE OUTAGE COST SOMETHING", flush=True)
    return right
