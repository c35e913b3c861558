"""
The SQL of budgets: periods, and what each worker has leased of one.

Always `leased = sum(granted)` and, but for answers dearer than their hold, `settled + leased <= limit`. Every
transaction locks periods first, in the order of (budget, start); only then leases. The clock is the database's, in UTC.
"""

from __future__ import annotations

import asyncpg
import msgspec

from proxy.errors import GatewayFault
from proxy.exchange import Budget
from proxy.storage.postgres import Connection, Database

LEASE_SECONDS = 2.0
"""A request waits for this; a server that is frozen answers nothing at all."""
CHANNEL = "strata_budgets"
"""`short <budget> <worker>`: that worker needs what others do not use. `changed <budget>`: set, altered or ended."""


class Lease(msgspec.Struct, frozen=True):
    """What a worker got: 0 if not enough was free. `free_nano_usd`: what is left that nobody has leased or spent."""

    starts_at_ms: int
    ends_at_ms: int | None
    granted_nano_usd: int
    free_nano_usd: int
    settled_nano_usd: int


class PeriodRow(msgspec.Struct, frozen=True):
    """Where a budget stands in its current period."""

    starts_at_ms: int
    ends_at_ms: int | None
    settled_nano_usd: int
    leased_nano_usd: int


DECLARE_BUDGET = """
    INSERT INTO strata.budgets (id, scope, subject, limit_nano_usd, window_seconds, calendar, source)
    VALUES ($1::text::uuid, $2, $3, $4, $5, $6, 'config')
    ON CONFLICT DO NOTHING
"""

OPEN_PERIOD = """
    INSERT INTO strata.budget_periods (budget_id, starts_at, ends_at)
    SELECT b.id, p.starts_at, p.ends_at
    FROM strata.budgets b, strata.period_at(b.window_seconds, b.calendar, now()) p
    WHERE b.id = $1::text::uuid
    ON CONFLICT DO NOTHING
"""

# The limit of a budget that the file owns is the file's; that of any other is the row's, fresher than a worker's copy.
LOCK_PERIOD = """
    SELECT p.starts_at, (extract(epoch FROM p.starts_at) * 1000)::bigint AS starts_at_ms,
        (extract(epoch FROM p.ends_at) * 1000)::bigint AS ends_at_ms, p.settled_nano_usd, p.leased_nano_usd,
        CASE WHEN b.source = 'config' THEN $2 ELSE b.limit_nano_usd END AS limit_nano_usd
    FROM strata.budgets b
    CROSS JOIN LATERAL strata.period_at(b.window_seconds, b.calendar, now()) now_in
    JOIN strata.budget_periods p ON p.budget_id = b.id AND p.starts_at = now_in.starts_at
    WHERE b.id = $1::text::uuid
    FOR UPDATE OF p
"""

GRANT_LEASE = """
    WITH period AS (
        UPDATE strata.budget_periods SET leased_nano_usd = leased_nano_usd + $4
        WHERE budget_id = $1::text::uuid AND starts_at = $2
        RETURNING budget_id, starts_at
    )
    INSERT INTO strata.leases AS l (budget_id, starts_at, worker_id, granted_nano_usd)
    SELECT budget_id, starts_at, $3::text::uuid, $4 FROM period
    ON CONFLICT (budget_id, starts_at, worker_id)
        DO UPDATE SET granted_nano_usd = l.granted_nano_usd + excluded.granted_nano_usd
"""


async def take_lease(db: Database, budget: Budget, worker_id: str, want_nano_usd: int, need_nano_usd: int) -> Lease:
    """
    As much as is wanted and free in the current period, if it is at least what is needed; else nothing. A budget that
    the database has not seen comes from the configuration, and is entered.
    """
    _require_whole(want_nano_usd, need_nano_usd)
    async with db.transaction(timeout_seconds=LEASE_SECONDS, op="lease") as connection:
        period = await _lock_current(connection, budget)
        free = period["limit_nano_usd"] - period["settled_nano_usd"] - period["leased_nano_usd"]
        granted = max(0, min(max(want_nano_usd, need_nano_usd), free)) if free >= need_nano_usd else 0
        if granted > 0:
            await connection.execute(GRANT_LEASE, budget.id, period["starts_at"], worker_id, granted)
    return Lease(
        period["starts_at_ms"], period["ends_at_ms"], granted, max(0, free - granted), period["settled_nano_usd"]
    )


async def _lock_current(connection: Connection, budget: Budget) -> asyncpg.Record:
    for _ in range(2):
        period = await connection.fetchrow(LOCK_PERIOD, budget.id, budget.limit_nano_usd)
        if period is not None:
            return period
        await connection.execute(
            DECLARE_BUDGET,
            budget.id,
            budget.scope,
            budget.subject,
            budget.limit_nano_usd,
            budget.window_seconds,
            budget.calendar,
        )
        await connection.execute(OPEN_PERIOD, budget.id)
    raise GatewayFault(f"Another {budget.scope} budget with the same window is in force for {budget.subject!r}.")


# A lease that was given back on behalf of a dead worker is gone, and moves nothing any more.
RETURN_LEASE = """
    WITH lease AS (
        UPDATE strata.leases SET granted_nano_usd = granted_nano_usd - $4
        WHERE budget_id = $1::text::uuid AND worker_id = $3::text::uuid
            AND starts_at = to_timestamp($2::bigint / 1000.0)
        RETURNING budget_id, starts_at
    )
    UPDATE strata.budget_periods p SET leased_nano_usd = p.leased_nano_usd - $4
    FROM lease WHERE p.budget_id = lease.budget_id AND p.starts_at = lease.starts_at
"""

LOCK_ONE_PERIOD = """
    SELECT 1 FROM strata.budget_periods
    WHERE budget_id = $1::text::uuid AND starts_at = to_timestamp($2::bigint / 1000.0) FOR UPDATE
"""


async def return_lease(db: Database, budget_id: str, starts_at_ms: int, worker_id: str, nano_usd: int) -> None:
    """Gives back what the worker will not spend."""
    _require_whole(starts_at_ms, nano_usd)
    async with db.transaction(op="lease") as connection:
        await connection.execute(LOCK_ONE_PERIOD, budget_id, starts_at_ms)
        await connection.execute(RETURN_LEASE, budget_id, starts_at_ms, worker_id, nano_usd)


ASK_FOR_LEASES = "SELECT pg_notify('strata_budgets', 'short ' || $1::text || ' ' || $2::text)"


async def ask_for_leases(db: Database, budget_id: str, worker_id: str) -> None:
    """Tells the other workers that somebody is about to be refused: whoever has idle money there gives it back."""
    await db.execute(ASK_FOR_LEASES, budget_id, worker_id)


LOCK_PERIODS_OF_WORKER = """
    SELECT 1 FROM strata.budget_periods
    WHERE (budget_id, starts_at) IN (SELECT budget_id, starts_at FROM strata.leases WHERE worker_id = $1::text::uuid)
    ORDER BY budget_id, starts_at FOR UPDATE
"""

RELEASE_WORKER = """
    WITH gone AS (
        DELETE FROM strata.leases WHERE worker_id = $1::text::uuid RETURNING budget_id, starts_at, granted_nano_usd
    ), period AS (
        UPDATE strata.budget_periods p SET leased_nano_usd = p.leased_nano_usd - gone.granted_nano_usd
        FROM gone WHERE p.budget_id = gone.budget_id AND p.starts_at = gone.starts_at
    )
    SELECT count(*) FROM gone
"""


async def release_worker(db: Database, worker_id: str) -> int:
    """
    Gives back every lease of a worker that is dead and whose rows are all shipped; returns how many there were. Doing
    it again does nothing.
    """
    async with db.transaction() as connection:
        await connection.execute(LOCK_PERIODS_OF_WORKER, worker_id)
        return int(await connection.fetchval(RELEASE_WORKER, worker_id))


READ_PERIOD = """
    SELECT (extract(epoch FROM p.starts_at) * 1000)::bigint AS starts_at_ms,
        (extract(epoch FROM p.ends_at) * 1000)::bigint AS ends_at_ms, p.settled_nano_usd, p.leased_nano_usd
    FROM strata.period_at($2, $3, now()) now_in
    JOIN strata.budget_periods p ON p.budget_id = $1::text::uuid AND p.starts_at = now_in.starts_at
"""


async def read_period(db: Database, budget: Budget) -> PeriodRow | None:
    """The current period; None if nothing was leased or spent in it yet."""
    row = await db.fetchrow(READ_PERIOD, budget.id, budget.window_seconds, budget.calendar)
    return None if row is None else PeriodRow(**dict(row))


def _require_whole(*numbers: int) -> None:
    """asyncpg would store True as 1 and 1.5 as 1."""
    if any(type(number) is not int for number in numbers):
        raise TypeError("money and times are whole numbers")
