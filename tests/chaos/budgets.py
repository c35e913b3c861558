"""
Many parallel requests at budgets that hold half of them, with workers that die: nothing is overspent, and hardly
anybody is refused while the money is there.

What is asked is twice what each budget has. `hold` is a request's worst case; it really costs two thirds of that. A
refusal was wrong if the request would still have fitted when all was over: then what is left of the budget counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from tests.chaos.workers import Workers
from tests.gateway import Gateway, OracleProcess
from tests.oracle import marker

MAX_TOKENS = 100
OUTPUT_NANO_USD = 2_000
INPUT_CEILING_NANO_USD = 500
SETTLE_SECONDS = 60.0
WRONG_SHARE = 0.02

SPENT = """
    SELECT k.name, b.limit_nano_usd AS limit, coalesce(sum(p.settled_nano_usd), 0)::bigint AS settled,
        coalesce(sum(p.leased_nano_usd), 0)::bigint AS leased
    FROM strata.budgets b JOIN strata.keys k ON k.id::text = b.subject
    LEFT JOIN strata.budget_periods p ON p.budget_id = b.id
    WHERE b.scope = 'key' GROUP BY 1, 2 ORDER BY 1
"""
OVER_HOLD = "SELECT count(*) FROM strata.usage WHERE cost_nano_usd > $1"
LEASES_OF_THE_DEAD = "SELECT count(DISTINCT worker_id) FROM strata.leases WHERE granted_nano_usd <> 0"


@dataclass
class Crowd:
    """One budget's requests, and how they ended."""

    key: str
    heard: Counter[str] = field(default_factory=Counter)


@dataclass
class Outcome:
    workers: int
    served: int = 0
    refused: int = 0
    broken: int = 0
    other: Counter[str] = field(default_factory=Counter)
    overspent: int = 0
    """The worst of the budgets, in nano-dollars."""
    wrong_shares: list[float] = field(default_factory=list)
    """For each budget, what was left of it and would have served somebody who was refused, as a part of its limit."""
    over_hold: int = 0
    seconds: float = 0.0

    @property
    def right(self) -> bool:
        return (
            self.overspent <= 0 and max(self.wrong_shares) <= WRONG_SHARE and self.over_hold == 0 and self.refused > 0
        )


async def run(
    folder: Path, *, workers: Sequence[int], budgets: int, requests: int, parallel: int, kills: int, seed: int = 0
) -> bool:
    """Prints a line for each number of workers; true if all is as promised."""
    headings = ("workers", "kills", "served", "refused", "broken", "other", "overspent $", "wrong % max", "mean", "s")
    print(f"{budgets} budgets x {requests} requests, {parallel} at once; each budget holds half of what is asked")
    print("  ".join(f"{heading:>11}" for heading in headings), flush=True)
    right = True
    for count in workers:
        outcome = await _one(folder / f"{count}", count, budgets, requests, parallel, kills, seed)
        shares = [share * 100 for share in outcome.wrong_shares]
        numbers = (
            *(count, kills, outcome.served, outcome.refused, outcome.broken, sum(outcome.other.values())),
            *(f"{outcome.overspent / 1e9:.6f}", f"{max(shares):.2f}", f"{sum(shares) / len(shares):.2f}"),
            f"{outcome.seconds:.0f}",
        )
        print("  ".join(f"{number!s:>11}" for number in numbers), flush=True)
        if outcome.other:
            print(f"    other: {dict(outcome.other)}", flush=True)
        right = right and outcome.right
    print("\nno budget is wrong" if right else f"\nA BUDGET IS WRONG; see {folder}", flush=True)
    return right


async def _one(folder: Path, count: int, budgets: int, requests: int, parallel: int, kills: int, seed: int) -> Outcome:
    started = time.monotonic()
    dice = random.Random(seed)
    bodies = [_body(f"budget-{n}", dice.randint(MAX_TOKENS // 2, MAX_TOKENS)) for n in range(budgets * requests)]
    hold = max(len(body) for body in bodies) * INPUT_CEILING_NANO_USD + MAX_TOKENS * OUTPUT_NANO_USD
    limit = hold * 2 // 3 * requests // 2
    oracle = OracleProcess(folder / "oracle")
    cluster = Workers(folder, count, oracle=oracle.url, server=f"max_in_flight: {max(1000, parallel)}")
    try:
        await cluster.start()
        keys = [
            await cluster.create_key(f"budget-{number:02}", budget_nano_usd=limit, seconds=None)
            for number in range(budgets)
        ]
        crowds = [Crowd(key) for key in keys]
        asking = asyncio.create_task(_ask_all(cluster.gateways, crowds, bodies, parallel, dice))
        await _kill(cluster, asking, crowds, len(bodies), kills, dice)
        await asking
        await _quiet(cluster)
        return await _outcome(cluster, crowds, count, hold, time.monotonic() - started)
    finally:
        await cluster.stop()
        oracle.stop()


def _body(name: str, pieces: int) -> bytes:
    script = marker(pieces=pieces, delay_ms=30)
    asked = {
        "model": "gpt",
        "max_tokens": MAX_TOKENS,
        "messages": [{"role": "user", "content": f"nonce={name} {script}"}],
    }
    return msgspec.json.encode(asked)


async def _ask_all(
    gateways: Sequence[Gateway], crowds: Sequence[Crowd], bodies: Sequence[bytes], parallel: int, dice: random.Random
) -> None:
    """Every budget in its turn, so that all are asked at once."""
    waiting = iter(enumerate(bodies))

    async def client() -> None:
        for number, body in waiting:
            crowd = crowds[number % len(crowds)]
            crowd.heard[await _ask(gateways, crowd.key, body, dice)] += 1

    await asyncio.gather(*(client() for _ in range(parallel)))


async def _ask(gateways: Sequence[Gateway], key: str, body: bytes, dice: random.Random) -> str:
    """`served`, `refused`, `broken` (the worker died), or what else came. Whoever finds a dead worker tries another."""
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    ).encode()
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", dice.choice(gateways).port)
        except OSError:
            await asyncio.sleep(0.05)
            continue
        try:
            writer.write(head + body)
            heard = await reader.read(-1)
        except OSError:
            return "broken"
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        return _ending(heard)


def _ending(heard: bytes) -> str:
    status, (head, _, body) = heard[9:12].decode("latin-1"), heard.partition(b"\r\n\r\n")
    if status == "200" or not body:
        return "served" if body else "broken"
    code = str(msgspec.json.decode(body)["error"]["code"])
    if (status, code) == ("429", "insufficient_quota") and b"x-should-retry: false" in head.lower():
        return "refused"
    return f"{status} {code}"


async def _kill(
    cluster: Workers, asking: asyncio.Task[None], crowds: Sequence[Crowd], total: int, kills: int, dice: random.Random
) -> None:
    """Spread over the time in which there is money: the first six tenths of the requests."""
    for number in range(1, kills + 1):
        due = total * 0.6 * number / (kills + 1)
        while sum(crowd.heard.total() for crowd in crowds) < due and not asking.done():
            await asyncio.sleep(0.005)
        victim = dice.choice(cluster.gateways)
        await asyncio.to_thread(victim.kill9)
        await asyncio.to_thread(victim.start)


async def _quiet(cluster: Workers) -> None:
    """Until every row is there, every dead worker's journal adopted, and every idle lease returned."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < deadline:
        (row,) = await cluster.sql(LEASES_OF_THE_DEAD)
        if row["count"] == 0:
            return
        await asyncio.sleep(0.25)
    raise AssertionError(f"money is still leased after {SETTLE_SECONDS:g} s of quiet")


async def _outcome(cluster: Workers, crowds: Sequence[Crowd], count: int, hold: int, seconds: float) -> Outcome:
    outcome = Outcome(count, seconds=seconds)
    rows = await cluster.sql(SPENT)
    outcome.overspent = max(row["settled"] + row["leased"] - row["limit"] for row in rows)
    for crowd, row in zip(crowds, rows, strict=True):
        left = row["limit"] - row["settled"]
        wrong = left if crowd.heard["refused"] and left >= hold else 0
        outcome.wrong_shares.append(wrong / row["limit"])
        outcome.served += crowd.heard.pop("served", 0)
        outcome.refused += crowd.heard.pop("refused", 0)
        outcome.broken += crowd.heard.pop("broken", 0)
        outcome.other += crowd.heard
    (row,) = await cluster.sql(OVER_HOLD, hold)
    outcome.over_hold = row["count"]
    return outcome
