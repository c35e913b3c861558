"""
What a worker does again and again beside the requests. Each is a task that is held; when one fails, that is counted and
it starts anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from proxy.admission.gate import Gate
from proxy.config.budgets import shortest
from proxy.errors import GatewayFault
from proxy.metering.prices import PriceBook
from proxy.storage.budget_settings import find_subjects, list_budgets
from proxy.storage.keys import write_uses
from proxy.storage.ledger import make_partitions
from proxy.storage.login_attempts import forget_attempts
from proxy.storage.postgres import Database, Unavailable
from proxy.storage.sessions import forget_sessions
from proxy.telemetry.metrics import Metrics

DATABASE_RETRY_SECONDS = 2.0
PARTITION_SECONDS = 86_400.0
PRICE_LINES_SECONDS = 0.5
BUDGET_GAUGE_SECONDS = 10.0
NAMES_SECONDS = 5.0
FORGET_SECONDS = 3_600.0
USES_SECONDS = 60.0
USES_BATCH = 1_000

log = logging.getLogger("strata.app")


class Rounds:
    """The tasks; `failed(name)` is told of each failure."""

    def __init__(self, failed: Callable[[str], None]) -> None:
        self._failed = failed
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def names(self) -> list[str]:
        return [task.get_name() for task in self._tasks]

    def start(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        self._tasks.append(asyncio.create_task(self._run(name, work), name=name))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except Exception:
                self._failed(name)
                log.exception("the background task %s failed; it starts again in a second", name)
                await asyncio.sleep(1.0)
            else:
                return


async def keep_partitions(database: Database) -> None:
    """A month of the ledger ahead of time, every day. A missing one loses nothing: a default partition takes it."""
    while True:
        try:
            await make_partitions(database)
        except Unavailable:
            await asyncio.sleep(DATABASE_RETRY_SECONDS)
        else:
            await asyncio.sleep(PARTITION_SECONDS)


async def write_price_lines(prices: PriceBook, database: Database) -> None:
    """Soon after a price is used for the first time, so that every row of the ledger can be calculated again."""
    while True:
        with contextlib.suppress(GatewayFault):
            await prices.write_new_lines(database)
        await asyncio.sleep(PRICE_LINES_SECONDS)


async def forget_people(database: Database) -> None:
    """Sessions that ended by themselves and attempts of yesterday, every hour."""
    while True:
        with contextlib.suppress(Unavailable):
            await forget_sessions(database)
            await forget_attempts(database)
        await asyncio.sleep(FORGET_SECONDS)


async def find_named(database: Database, gate: Gate) -> None:
    """The users and teams that the configuration limits by name: who they are, and again when that changes."""
    while True:
        with contextlib.suppress(Unavailable):
            gate.bind_named(await find_subjects(database, gate.named))
        await asyncio.sleep(NAMES_SECONDS)


async def note_uses(database: Database, gate: Gate) -> None:
    """When each key was last let in: gathered by the gate, written once a minute."""
    while True:
        await asyncio.sleep(USES_SECONDS)
        with contextlib.suppress(Unavailable):
            await write_all_uses(database, gate)


async def write_all_uses(database: Database, gate: Gate) -> None:
    """In batches; what could not be written goes back to the gate."""
    # By id, so that workers that write at once come to the same rows in the same order
    left = sorted(gate.take_uses().items())
    try:
        while left:
            await write_uses(database, dict(left[:USES_BATCH]))
            left = left[USES_BATCH:]
    finally:
        gate.put_back(dict(left))


async def measure_budgets(database: Database, metrics: Metrics) -> None:
    """Where the budgets stand, for the metrics: as Postgres has it, for all replicas together."""
    while True:
        with contextlib.suppress(Unavailable):
            rows = await list_budgets(database)
            metrics.forget_budgets()
            for row in rows:
                metrics.set_budget(
                    row.scope,
                    row.name,
                    shortest(row.window_seconds, row.calendar),
                    limit_nano_usd=row.limit_nano_usd,
                    spent_nano_usd=row.spent_nano_usd,
                    resets_at_seconds=row.resets_at,
                )
        await asyncio.sleep(BUDGET_GAUGE_SECONDS)
