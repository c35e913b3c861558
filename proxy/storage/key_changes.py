"""
The SQL of virtual keys as people make, see and change them, on the connection of whoever does.

Each change and its line in the audit log are one transaction. Nothing here reads a digest: who acts for a person may
not, and a digest that is replaced is kept as the previous one by the table itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import asyncpg
import msgspec

from proxy.errors import CallerError
from proxy.storage.audit import note
from proxy.storage.postgres import Connection

AUDITED = (
    *("name", "display", "user_id", "team_id", "models", "rpm", "tpm", "max_parallel", "expires_at", "tags"),
    *("metadata", "budgets"),
)
BUDGET_FIELDS = ("limit_nano_usd", "window_seconds", "calendar")


class KeyBudget(NamedTuple):
    """So much in each window; see `proxy.exchange.Budget`."""

    limit_nano_usd: int
    window_seconds: int | None = None
    calendar: str | None = None

    @property
    def window(self) -> tuple[int | None, str | None]:
        return self.window_seconds, self.calendar


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What may be said of a key, and changed later. `expires_at` in Unix seconds."""

    name: str
    models: tuple[str, ...] = ("*",)
    rpm: int | None = None
    tpm: int | None = None
    max_parallel: int | None = None
    budgets: tuple[KeyBudget, ...] = ()
    expires_at: float | None = None
    tags: tuple[str, ...] = ()
    metadata: dict[str, Any] = {}
    limited_by_admin: bool = True


class StoredSecret(NamedTuple):
    """What is kept of a key's text."""

    digest: bytes
    pepper_id: str
    display: str


class Actor(NamedTuple):
    """Who makes a change, for the audit log."""

    name: str
    request_id: str = ""


SHOW_KEYS = """
    SELECT k.id::text, k.name, k.display, k.user_id::text, k.team_id::text, k.models, k.rpm, k.tpm, k.max_parallel,
        k.tags, k.metadata::text, k.limited_by_admin, k.created_at, k.expires_at, k.revoked_at, k.last_used_at,
        k.rotated_at, k.previous_until, s.state, (
            SELECT coalesce(json_agg(json_build_object(
                'id', b.id, 'limit_nano_usd', b.limit_nano_usd, 'window_seconds', b.window_seconds,
                'calendar', b.calendar, 'spent_nano_usd', coalesce(p.settled_nano_usd, 0), 'resets_at', w.ends_at)
                ORDER BY b.window_seconds, b.calendar, b.id), '[]')::text
            FROM strata.budgets b
            CROSS JOIN LATERAL strata.period_at(b.window_seconds, b.calendar, now()) w
            LEFT JOIN strata.budget_periods p ON p.budget_id = b.id AND p.starts_at = w.starts_at
            WHERE b.ended_at IS NULL AND b.scope = 'key' AND b.subject = k.id::text
        ) AS budgets
    FROM strata.keys k
    CROSS JOIN LATERAL (SELECT CASE WHEN k.revoked_at IS NOT NULL THEN 'revoked'
        WHEN EXISTS (SELECT FROM strata.users u WHERE u.id = k.user_id AND u.disabled_at IS NOT NULL) THEN 'disabled'
        WHEN k.expires_at <= now() THEN 'expired' ELSE 'active' END AS state) s
    WHERE ($1::text IS NULL OR k.id = $1::text::uuid) AND ($2::text IS NULL OR s.state = $2)
        AND ($3::text IS NULL OR k.user_id = $3::text::uuid) AND ($4::text IS NULL OR k.team_id = $4::text::uuid)
        AND ($5::text IS NULL OR k.tags @> ARRAY[$5::text])
        AND ($6::timestamptz IS NULL OR (k.created_at, k.id) < ($6, $7::text::uuid))
    ORDER BY k.created_at DESC, k.id DESC LIMIT $8
"""


class Filters(NamedTuple):
    state: str | None = None
    user_id: str | None = None
    team_id: str | None = None
    tag: str | None = None


async def show_keys(
    connection: Connection, filters: Filters, limit: int, after: tuple[datetime, str] | None
) -> list[dict[str, Any]]:
    """Newest first, of those that the connection's role may see. `after`: when the last seen was made, its id."""
    created_at, id = after or (None, None)
    return [_shown(row) for row in await connection.fetch(SHOW_KEYS, None, *filters, created_at, id, limit)]


async def show_key(connection: Connection, id: str) -> dict[str, Any] | None:
    row = await connection.fetchrow(SHOW_KEYS, id, *Filters(), None, None, 1)
    return None if row is None else _shown(row)


LOCK_KEY = "SELECT id::text FROM strata.keys WHERE id = $1::text::uuid FOR UPDATE"


async def lock_key(connection: Connection, id: str) -> bool:
    """Holds the key until the transaction ends; False if it is not this role's to change, or not there."""
    return await connection.fetchval(LOCK_KEY, id) is not None


ONE_BY_ONE = "SELECT pg_advisory_xact_lock(hashtextextended('strata.keys of ' || $1, 0))"
COUNT_UNREVOKED = "SELECT count(*) FROM strata.keys WHERE user_id = $1::text::uuid AND revoked_at IS NULL"


async def count_unrevoked(connection: Connection, user_id: str) -> int:
    """Expired ones too, which may be given more time. Nobody else counts them until the transaction ends."""
    await connection.execute(ONE_BY_ONE, user_id)
    return int(await connection.fetchval(COUNT_UNREVOKED, user_id))


TEAM_OF = "SELECT team_id::text FROM strata.users WHERE id = $1::text::uuid"


async def team_of(connection: Connection, user_id: str) -> str | None:
    """The team of a user; None if there is none, or no such user."""
    team: str | None = await connection.fetchval(TEAM_OF, user_id)
    return team


INSERT_KEY = """
    INSERT INTO strata.keys (digest, pepper_id, display, user_id, team_id, name, models, rpm, tpm, max_parallel,
        expires_at, tags, metadata, limited_by_admin)
    VALUES ($1, $2, $3, $4::text::uuid, $5::text::uuid, $6, $7, $8, $9, $10, to_timestamp($11::float8), $12,
        $13::text::jsonb, $14)
    RETURNING id::text
"""


async def add_key(
    connection: Connection,
    wanted: Wanted,
    secret: StoredSecret,
    actor: Actor,
    *,
    user_id: str | None = None,
    team_id: str | None = None,
) -> dict[str, Any]:
    """The key with its budgets, as it is shown. CallerError if its name is taken, or its owner is not there."""
    with _refusals(wanted):
        id = str(await connection.fetchval(INSERT_KEY, *secret, user_id, team_id, *_columns(wanted)))
        await _set_budgets(connection, id, wanted.budgets)
    return await _noted(connection, actor, "key.create", id, None)


CHANGE_KEY = """
    UPDATE strata.keys SET name = $2, models = $3, rpm = $4, tpm = $5, max_parallel = $6,
        expires_at = to_timestamp($7::float8), tags = $8, metadata = $9::text::jsonb, limited_by_admin = $10
    WHERE id = $1::text::uuid
"""


async def change_key(
    connection: Connection, before: Mapping[str, Any], wanted: Wanted, actor: Actor, *, budgets: bool
) -> dict[str, Any]:
    """
    The key as it is shown then; `before` must be locked. `budgets`: these change, too. What is spent of one whose
    window stays, stays spent.
    """
    id: str = before["id"]
    with _refusals(wanted):
        await connection.execute(CHANGE_KEY, id, *_columns(wanted))
        if budgets:
            await _set_budgets(connection, id, wanted.budgets)
    return await _noted(connection, actor, "key.change", id, before)


REVOKE_KEY = "UPDATE strata.keys SET revoked_at = now() WHERE id = $1::text::uuid AND revoked_at IS NULL"


async def end_key(connection: Connection, before: Mapping[str, Any], actor: Actor) -> dict[str, Any]:
    """Revokes it. One that was revoked before stays as it is."""
    if before["revoked_at"] is not None:
        return dict(before)
    id: str = before["id"]
    await connection.execute(REVOKE_KEY, id)
    return await _noted(connection, actor, "key.revoke", id, before)


ROTATE_KEY = """
    UPDATE strata.keys SET digest = $2, pepper_id = $3, display = $4,
        previous_until = now() + make_interval(secs => $5::float8)
    WHERE id = $1::text::uuid
"""


async def rotate_key(
    connection: Connection, before: Mapping[str, Any], secret: StoredSecret, grace_seconds: int | None, actor: Actor
) -> dict[str, Any]:
    """
    A new secret for the same key; the old one is good for `grace_seconds` more. One that was old already ends at once.
    """
    id: str = before["id"]
    grace = None if grace_seconds is None else float(grace_seconds)
    await connection.execute(ROTATE_KEY, id, *secret, grace)
    after = await show_key(connection, id)
    assert after is not None
    fields = ("name", "display", "previous_until")
    said = [{name: key[name] for name in fields} for key in (before, after)]
    await note(
        connection,
        actor=actor.name,
        action="key.rotate",
        object=id,
        before=said[0],
        after=said[1],
        request_id=actor.request_id,
    )
    return after


KEY_BUDGETS = """
    SELECT id::text, limit_nano_usd, window_seconds, calendar FROM strata.budgets
    WHERE ended_at IS NULL AND scope = 'key' AND subject = $1 AND source = 'database'
"""
END_BUDGET = "UPDATE strata.budgets SET ended_at = now() WHERE id = $1::text::uuid"
MOVE_BUDGET = "UPDATE strata.budgets SET limit_nano_usd = $2 WHERE id = $1::text::uuid AND limit_nano_usd <> $2"
INSERT_BUDGET = """
    INSERT INTO strata.budgets (scope, subject, limit_nano_usd, window_seconds, calendar) VALUES ('key', $1, $2, $3, $4)
"""


async def _set_budgets(connection: Connection, key_id: str, budgets: Sequence[KeyBudget]) -> None:
    wanted = {budget.window: budget for budget in budgets}
    for row in await connection.fetch(KEY_BUDGETS, key_id):
        budget = wanted.pop((row["window_seconds"], row["calendar"]), None)
        if budget is None:
            await connection.execute(END_BUDGET, row["id"])
        else:
            await connection.execute(MOVE_BUDGET, row["id"], budget.limit_nano_usd)
    for budget in wanted.values():
        await connection.execute(INSERT_BUDGET, key_id, *budget)


NOTE_USES = """
    UPDATE strata.keys k SET last_used_at = to_timestamp(u.at)
    FROM (
        SELECT l.id, s.at FROM unnest($1::text[]::uuid[], $2::float8[]) AS s (id, at)
        JOIN strata.keys l ON l.id = s.id AND (l.last_used_at IS NULL OR l.last_used_at < to_timestamp(s.at))
        ORDER BY l.id FOR NO KEY UPDATE OF l
    ) u
    WHERE k.id = u.id
"""
"""Locked in one order, so that workers that write at once wait for each other and do not block each other."""


async def note_uses(connection: Connection, used_at: Mapping[str, float]) -> None:
    """When keys were last used, in Unix seconds; never an earlier moment than what is there."""
    await connection.execute(NOTE_USES, list(used_at), list(used_at.values()))


async def _noted(
    connection: Connection, actor: Actor, action: str, id: str, before: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Writes the change down, and gives the key as it is now."""
    after = await show_key(connection, id)
    assert after is not None
    names = (*AUDITED, "revoked_at") if action == "key.revoke" else AUDITED
    await note(
        connection,
        actor=actor.name,
        action=action,
        object=id,
        before=None if before is None else _audited(before, names),
        after=_audited(after, names),
        request_id=actor.request_id,
    )
    return after


def _audited(key: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    budgets = [{name: budget[name] for name in BUDGET_FIELDS} for budget in key["budgets"]]
    return {**{name: key[name] for name in names}, "budgets": budgets}


def _columns(wanted: Wanted) -> tuple[Any, ...]:
    return (
        wanted.name,
        list(wanted.models),
        wanted.rpm,
        wanted.tpm,
        wanted.max_parallel,
        wanted.expires_at,
        list(wanted.tags),
        msgspec.json.encode(wanted.metadata).decode(),
        wanted.limited_by_admin,
    )


def _shown(row: asyncpg.Record) -> dict[str, Any]:
    said = {name: msgspec.json.decode(row[name]) for name in ("budgets", "metadata")}
    return {**dict(row), **said}


@contextlib.contextmanager
def _refusals(wanted: Wanted) -> Iterator[None]:
    """What the table does not take, as the caller's mistake."""
    try:
        yield
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name != "keys_active_name":
            raise
        raise CallerError(
            f'A key named "{wanted.name}" is active already. Choose another name, or revoke that one first.',
            code="name_taken",
            param="name",
        ) from None
    except asyncpg.ForeignKeyViolationError as error:
        who = "team" if "team" in (error.constraint_name or "") else "user"
        raise CallerError(f"There is no {who} with this id.", code=f"{who}_not_found", param=f"{who}_id") from None
    except (asyncpg.CheckViolationError, asyncpg.CharacterNotInRepertoireError) as error:
        raise CallerError(
            "This key cannot be stored: a name has 1 to 64 characters, and limits are not negative.",
            code="invalid_key",
            param="name" if "name" in (error.constraint_name or "name") else None,
        ) from error
