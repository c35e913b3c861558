"""
The SQL of budgets as people set them: which there are, and who owns them. Nobody's money moves here.

A budget of the configuration (`source` config) is the file's: it is entered with an id made of what it is for, and
ended when the file no longer has it. Every change is heard on `budgets.CHANNEL` by way of a trigger.
"""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg
import msgspec

from proxy.errors import CallerError
from proxy.exchange import Budget
from proxy.storage.audit import note
from proxy.storage.postgres import Connection, Database

LIST_SECONDS = 10.0
WHO = {
    "key": "SELECT id::text FROM strata.keys WHERE revoked_at IS NULL AND (name = $1 OR id::text = $1)",
    "user": "SELECT id::text FROM strata.users WHERE lower(email) = lower($1) OR id::text = $1",
    "team": "SELECT id::text FROM strata.teams WHERE name = $1 OR id::text = $1",
}
"""How a name becomes the id that a budget is kept under; a provider's is its name."""


class BudgetRow(msgspec.Struct, frozen=True):
    """One budget in force. `name`: of the key, user (or their e-mail), team or provider. Times are Unix seconds."""

    id: str
    scope: str
    name: str
    limit_nano_usd: int
    window_seconds: int | None
    calendar: str | None
    source: str
    spent_nano_usd: int
    resets_at: float | None


READ_FOR_ALL = """
    SELECT id::text, scope, subject, limit_nano_usd, window_seconds, calendar FROM strata.budgets
    WHERE ended_at IS NULL AND scope IN ('provider', 'global') ORDER BY id
"""


async def read_for_all(db: Database) -> list[Budget]:
    """Those that bind whoever asks: everybody's, and the providers'."""
    return [Budget(**dict(row)) for row in await db.fetch(READ_FOR_ALL)]


LIST_BUDGETS = """
    SELECT b.id::text, b.scope, coalesce(k.name, nullif(u.name, ''), u.email, t.name, b.subject) AS name,
        b.limit_nano_usd, b.window_seconds, b.calendar, b.source,
        coalesce(p.settled_nano_usd, 0) AS spent_nano_usd, extract(epoch FROM w.ends_at)::float8 AS resets_at
    FROM strata.budgets b
    CROSS JOIN LATERAL strata.period_at(b.window_seconds, b.calendar, now()) w
    LEFT JOIN strata.budget_periods p ON p.budget_id = b.id AND p.starts_at = w.starts_at
    LEFT JOIN strata.keys k ON b.scope = 'key' AND k.id::text = b.subject
    LEFT JOIN strata.users u ON b.scope = 'user' AND u.id::text = b.subject
    LEFT JOIN strata.teams t ON b.scope = 'team' AND t.id::text = b.subject
    WHERE b.ended_at IS NULL AND (b.scope <> 'key' OR k.revoked_at IS NULL)
    ORDER BY array_position(ARRAY['global', 'provider', 'team', 'user', 'key'], b.scope), 3, b.created_at LIMIT 1000
"""


async def list_budgets(db: Database) -> list[BudgetRow]:
    """Those in force, at most 1,000, with what their current period has spent."""
    return [BudgetRow(**dict(row)) for row in await db.fetch(LIST_BUDGETS, timeout_seconds=LIST_SECONDS)]


LIMIT_NOW = """
    SELECT limit_nano_usd FROM strata.budgets
    WHERE ended_at IS NULL AND scope = $1 AND subject = $2 AND source = 'database'
        AND coalesce(window_seconds, 0) = coalesce($3, 0) AND coalesce(calendar, '') = coalesce($4, '')
    FOR UPDATE
"""
RAISE_OR_LOWER = """
    UPDATE strata.budgets SET limit_nano_usd = $3
    WHERE ended_at IS NULL AND scope = $1 AND subject = $2 AND source = 'database'
        AND coalesce(window_seconds, 0) = coalesce($4, 0) AND coalesce(calendar, '') = coalesce($5, '')
    RETURNING id::text
"""
INSERT_BUDGET = """
    INSERT INTO strata.budgets (scope, subject, limit_nano_usd, window_seconds, calendar) VALUES ($1, $2, $3, $4, $5)
    RETURNING id::text
"""
LIMITED = "UPDATE strata.keys SET limited_by_admin = true WHERE id = $1::text::uuid AND NOT limited_by_admin"
"""Its owner may no longer loosen what an operator has set."""


async def set_budget(
    db: Database,
    scope: str,
    name: str,
    limit_nano_usd: int,
    window_seconds: int | None,
    calendar: str | None,
    actor: str = "gateway",
) -> str:
    """
    Sets a budget, or its limit if there is one with this window already; what is spent stays spent. Its id.
    CallerError if nobody has that name, or the file owns the budget.
    """
    values = (limit_nano_usd, window_seconds, calendar)
    async with db.transaction() as connection:
        subject = await _subject(connection, scope, name)
        was = await connection.fetchval(LIMIT_NOW, scope, subject, window_seconds, calendar)
        budget_id = await connection.fetchval(RAISE_OR_LOWER, scope, subject, *values)
        try:
            budget_id = str(budget_id or await connection.fetchval(INSERT_BUDGET, scope, subject, *values))
        except asyncpg.UniqueViolationError:
            raise CallerError(
                "config.yaml has a budget for the same and the same window. Change it there.", code="budget_of_file"
            ) from None
        if scope == "key":
            await connection.execute(LIMITED, subject)
        window = {"window_seconds": window_seconds, "calendar": calendar}
        after = {"scope": scope, "subject": subject, "limit_nano_usd": limit_nano_usd, **window}
        before = None if was is None else {**after, "limit_nano_usd": was}
        await note(connection, actor=actor, action="budget.set", object=budget_id, before=before, after=after)
        return budget_id


END_BUDGETS = """
    UPDATE strata.budgets SET ended_at = now()
    WHERE ended_at IS NULL AND scope = $1 AND subject = $2 AND source = 'database' RETURNING id
"""


async def end_budgets(db: Database, scope: str, name: str, actor: str = "gateway") -> int:
    """Ends all budgets of somebody that the file does not own; returns how many."""
    async with db.transaction() as connection:
        subject = await _subject(connection, scope, name)
        ended = await connection.fetch(END_BUDGETS, scope, subject)
        for row in ended:
            after = {"scope": scope, "subject": subject}
            await note(connection, actor=actor, action="budget.end", object=str(row["id"]), after=after)
        return len(ended)


END_UNDECLARED = """
    UPDATE strata.budgets SET ended_at = now()
    WHERE ended_at IS NULL AND source = 'config' AND scope <> 'key' AND id <> ALL($1::text[]::uuid[])
"""
DECLARE = """
    INSERT INTO strata.budgets (id, scope, subject, limit_nano_usd, window_seconds, calendar, source)
    VALUES ($1::text::uuid, $2, $3, $4, $5, $6, 'config')
    ON CONFLICT DO NOTHING
"""
DECLARE_AGAIN = """
    UPDATE strata.budgets b SET limit_nano_usd = $2, ended_at = NULL
    WHERE id = $1::text::uuid AND (limit_nano_usd <> $2 OR ended_at IS NOT NULL) AND NOT EXISTS (
        SELECT 1 FROM strata.budgets o WHERE o.ended_at IS NULL AND o.id <> b.id AND o.scope = b.scope
            AND o.subject = b.subject AND coalesce(o.window_seconds, 0) = coalesce(b.window_seconds, 0)
            AND coalesce(o.calendar, '') = coalesce(b.calendar, ''))
"""
IN_FORCE = "SELECT 1 FROM strata.budgets WHERE id = $1::text::uuid AND ended_at IS NULL"


async def declare_budgets(db: Database, budgets: Sequence[Budget], *, all_there_are: bool) -> list[Budget]:
    """
    Enters budgets of the configuration, whose subjects are names; if these are all it has, others of it end. Returns
    those that could not be entered: nobody has that name, or a budget with the same window is set by hand.
    """
    missing = []
    async with db.transaction() as connection:
        if all_there_are:
            await connection.execute(END_UNDECLARED, [budget.id for budget in budgets])
        for budget in budgets:
            try:
                subject = await _subject(connection, budget.scope, budget.subject)
            except CallerError:
                missing.append(budget)
                continue
            window = (budget.window_seconds, budget.calendar)
            await connection.execute(DECLARE, budget.id, budget.scope, subject, budget.limit_nano_usd, *window)
            await connection.execute(DECLARE_AGAIN, budget.id, budget.limit_nano_usd)
            if await connection.fetchval(IN_FORCE, budget.id) is None:
                missing.append(budget)
    return missing


async def find_subjects(db: Database, names: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """(scope, name) -> the id of the user or team of that name, as far as there is one."""
    found = {}
    for scope, name in names:
        row = await db.fetchrow(WHO[scope], name)
        if row is not None:
            found[scope, name] = str(row[0])
    return found


async def _subject(connection: Connection, scope: str, name: str) -> str:
    if scope not in WHO:
        return name
    found = await connection.fetchval(WHO[scope], name)
    if found is None:
        raise CallerError(f'There is no {scope} "{name}".', code=f"{scope}_not_found")
    return str(found)
