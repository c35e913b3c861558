"""
How long workers go on to accept a key that was revoked, or a secret that was rotated away, and how soon they accept a
new one: counted from the moment at which somebody asks for it over the API, until the answer that shows it.

Each worker is asked again and again over its own connection, in turn with the others. `lines cut`: every connection to
Postgres is ended with the commit of a revocation, so that nobody hears of it. `Postgres away`: it crashes, nothing can
be revoked, and known keys go on; once it is back, revoking works again.
"""

from __future__ import annotations

import asyncio
import http.client
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import msgspec

from tests.chaos.limits import Line
from tests.chaos.workers import Workers
from tests.gateway import Gateway

MASTER = "q7Zt2mVx9Lk4Wn8Rb3Hd6Jc5Pf1Ys0Ga"
CALM_SECONDS = 1.0
"""What the 99th percentile must stay below."""
WORST_SECONDS = 6.0
"""Where a notice was missed: a look every 5 s, and what it takes."""
GIVE_UP_SECONDS = 30.0
PAUSE_SECONDS = 0.002

CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'strata' AND datname = $1"
REVOKE = "UPDATE strata.keys SET revoked_at = now() WHERE id = $1::text::uuid"


@dataclass
class Measured:
    """Seconds, one for each worker and round."""

    name: str
    promise: str
    seconds: list[float] = field(default_factory=list)

    def percentile(self, part: float) -> float:
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else float("inf")

    @property
    def line(self) -> str:
        p50, p99, worst = (self.percentile(part) * 1000 for part in (0.5, 0.99, 1.0))
        return f"{self.name:>34}{len(self.seconds):>9}{p50:>9.0f}{p99:>9.0f}{worst:>9.0f}   {self.promise}"


class Watchers:
    """Asks every worker with a key, over and over, from `start` on; `until` says when each began to answer so."""

    def __init__(self, gateways: Sequence[Gateway]) -> None:
        self._gateways = gateways
        self._lines = [Line(gateway) for gateway in gateways]

    async def until(self, status: str, key: str, changes: Callable[[], Awaitable[object]]) -> list[float]:
        """Seconds from the beginning of the change until each answers with this status, in the order of the workers."""
        watching = [asyncio.create_task(self._until(line, status, key)) for line in self._lines]
        await asyncio.sleep(random.uniform(0.0, 0.02))  # so that the change meets workers at any point of an answer
        began = time.monotonic()
        await changes()
        return [moment - began for moment in await asyncio.gather(*watching)]

    async def all_say(self, status: str, key: str) -> bool:
        return [await line.ask(key) for line in self._lines] == [status] * len(self._lines)

    async def _until(self, line: Line, status: str, key: str) -> float:
        began = time.monotonic()
        while (said := await line.ask(key)) != status:
            if time.monotonic() - began > GIVE_UP_SECONDS:
                raise AssertionError(f"still {said} after {GIVE_UP_SECONDS:g} s")
            await asyncio.sleep(PAUSE_SECONDS)
        return time.monotonic()

    def close(self) -> None:
        for line in self._lines:
            line.close()


async def api(gateway: Gateway, method: str, path: str = "", body: object = None) -> tuple[int, Any]:
    """As an admin."""

    def call() -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)
        try:
            data = None if body is None else msgspec.json.encode(body)
            headers = {"authorization": f"Bearer {MASTER}", "content-type": "application/json"}
            connection.request(method, f"/api/keys{path}", data, headers)
            answer = connection.getresponse()
            return answer.status, msgspec.json.decode(answer.read())
        finally:
            connection.close()

    return await asyncio.to_thread(call)


async def run(folder: Path, *, workers: int, rounds: int, calm_seconds: float = CALM_SECONDS) -> bool:
    """Prints a table; true if all is as promised."""
    more = f"auth: {{master_key: {MASTER}}}\n"
    cluster = Workers(folder, workers, oracle="http://127.0.0.1:9", more=more)
    dice = random.Random(0)
    made = Measured("made, until it is let in", f"p99 < {calm_seconds:g} s")
    revoked = Measured("revoked, until it is refused", f"p99 < {calm_seconds:g} s")
    old = Measured("rotated, until the old is refused", f"p99 < {calm_seconds:g} s")
    new = Measured("rotated, until the new is let in", f"p99 < {calm_seconds:g} s")
    cut = Measured("revoked, lines cut", f"max < {WORST_SECONDS:g} s")
    back = Measured("revoked, Postgres back again", f"max < {WORST_SECONDS:g} s")
    try:
        await cluster.start()
        watchers = Watchers(cluster.gateways)
        for number in range(rounds):
            await _one_round(watchers, dice, cluster.gateways, number, (made, old, new, revoked))
        for number in range(max(1, rounds // 20)):
            await _cut(watchers, cluster, f"cut {number}", cut)
        goes_on = await _away(watchers, cluster, back)
        watchers.close()
    finally:
        await cluster.stop()
    print(f"{workers} workers, {rounds} rounds; milliseconds from the request on\n")
    print(f"{'':>34}{'samples':>9}{'p50':>9}{'p99':>9}{'max':>9}   promise")
    for measured in (made, revoked, old, new, cut, back):
        print(measured.line, flush=True)
    print(f"{'Postgres away':>34}   {'nothing is revoked (503), and known keys go on' if goes_on else 'WRONG'}")
    calm = all(measured.percentile(0.99) < calm_seconds for measured in (made, revoked, old, new))
    right = goes_on and calm and max(*cut.seconds, *back.seconds) < WORST_SECONDS
    print("\nas promised" if right else "\nTOO SLOW, OR WRONG", flush=True)
    return right


async def _make(gateway: Gateway, name: str) -> tuple[str, str]:
    status, said = await api(gateway, "POST", "", {"name": name})
    assert status == 201, said
    return said["id"], said["key"]


async def _one_round(
    watchers: Watchers,
    dice: random.Random,
    gateways: Sequence[Gateway],
    number: int,
    measured: tuple[Measured, Measured, Measured, Measured],
) -> None:
    """A key is made, rotated, and revoked, each at any of the workers."""
    made, old, new, revoked = measured
    began = time.monotonic()
    id, key = await _make(dice.choice(gateways), f"round {number}")
    took = time.monotonic() - began
    made.seconds += [took + seconds for seconds in await watchers.until("200", key, _nothing)]
    answer: dict[str, Any] = {}

    async def rotate() -> None:
        answer.update((await api(dice.choice(gateways), "POST", f"/{id}/rotate"))[1])
        answer["told_at"] = time.monotonic()

    began = time.monotonic()
    old.seconds += await watchers.until("401", key, rotate)
    took = answer["told_at"] - began
    new.seconds += [took + seconds for seconds in await watchers.until("200", answer["key"], _nothing)]
    assert await watchers.all_say("401", key)
    revoked.seconds += await watchers.until(
        "401", answer["key"], lambda: api(dice.choice(gateways), "DELETE", f"/{id}")
    )


async def _cut(watchers: Watchers, cluster: Workers, name: str, cut: Measured) -> None:
    id, key = await _make(cluster.first, name)
    await watchers.until("200", key, _nothing)
    connection = await asyncpg.connect(cluster.dsn, timeout=10)
    try:
        database = await connection.fetchval("SELECT current_database()")

        async def revoke_unheard() -> None:
            async with connection.transaction():
                await connection.execute(REVOKE, id)
                await connection.fetch(CUT, database)

        cut.seconds += await watchers.until("401", key, revoke_unheard)
    finally:
        await connection.close(timeout=5)


async def _away(watchers: Watchers, cluster: Workers, back: Measured) -> bool:
    """Whether a known key goes on while Postgres is away, and nobody is told that it was revoked."""
    id, key = await _make(cluster.first, "away")
    await watchers.until("200", key, _nothing)
    cluster.postgres.crash()
    status, _ = await api(cluster.first, "DELETE", f"/{id}")
    goes_on = status == 503 and await watchers.all_say("200", key)
    cluster.postgres.start()
    deadline = time.monotonic() + GIVE_UP_SECONDS

    async def revoke() -> None:
        while (await api(cluster.first, "DELETE", f"/{id}"))[0] != 200:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)

    back.seconds += await watchers.until("401", key, revoke)
    return goes_on


async def _nothing() -> None:
    """The change was made before."""
