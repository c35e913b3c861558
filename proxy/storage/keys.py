"""
The SQL of virtual keys as workers know them. A key is never deleted: it is revoked, and its rows in the ledger keep
their name.

Every change of a key raises its `version` and notifies the channel `strata_keys`; versions appear in commit order.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import asyncpg
import msgspec

from proxy.exchange import Budget
from proxy.storage.key_changes import (
    Actor,
    KeyBudget,
    StoredSecret,
    Wanted,
    add_key,
    end_key,
    lock_key,
    note_uses,
    rotate_key,
    show_key,
)
from proxy.storage.postgres import Connection, Database

CHANNEL = "strata_keys"
SNAPSHOT_SECONDS = 10.0


class KeyRow(msgspec.Struct, frozen=True):
    """One virtual key. Times are unix seconds; `digest` is 32 bytes of HMAC under the pepper `pepper_id`."""

    id: str
    name: str
    digest: bytes
    pepper_id: str
    display: str
    user_id: str | None
    team_id: str | None
    models: tuple[str, ...]
    rpm: int | None
    created_at: float
    expires_at: float | None
    revoked_at: float | None
    last_used_at: float | None
    version: int
    budgets: tuple[Budget, ...]
    tpm: int | None = None
    max_parallel: int | None = None
    previous_digest: bytes | None = None
    """Of the secret before this one, which is good until `previous_until`; None: no longer."""
    previous_until: float | None = None
    rotated_at: float | None = None
    owner_disabled: bool = False
    """Its user is shut out, and it with him until he is let in again."""
    replaced: bool = False
    """This stands for the secret before, and ends with it."""


async def insert_key(
    db: Database,
    *,
    name: str,
    digest: bytes,
    pepper_id: str,
    display: str,
    models: Sequence[str],
    rpm: int | None,
    expires_at: float | None,
    budget_limit_nano_usd: int | None,
    budget_window_seconds: int | None,
    budget_calendar: str | None = None,
    tpm: int | None = None,
    max_parallel: int | None = None,
    actor: str = "gateway",
) -> KeyRow:
    """The key and its budget, or neither. CallerError `name_taken` if an active key has this name."""
    budgets: tuple[KeyBudget, ...] = ()
    if budget_limit_nano_usd is not None:
        budgets = (KeyBudget(budget_limit_nano_usd, budget_window_seconds, budget_calendar),)
    wanted = Wanted(
        name=name,
        models=tuple(models),
        rpm=rpm,
        tpm=tpm,
        max_parallel=max_parallel,
        budgets=budgets,
        expires_at=expires_at,
    )
    async with db.transaction() as connection:
        made = await add_key(connection, wanted, StoredSecret(digest, pepper_id, display), Actor(actor))
        row = await connection.fetchrow(READ_KEY, made["id"])
    assert row is not None
    return _key_row(row)


READ_KEY = """
    SELECT id::text, name, digest, pepper_id, display, user_id::text, team_id::text, models, rpm, tpm,
        max_parallel, extract(epoch FROM created_at)::float8 AS created_at,
        extract(epoch FROM expires_at)::float8 AS expires_at,
        extract(epoch FROM revoked_at)::float8 AS revoked_at, extract(epoch FROM last_used_at)::float8 AS last_used_at,
        previous_digest, extract(epoch FROM previous_until)::float8 AS previous_until,
        extract(epoch FROM rotated_at)::float8 AS rotated_at, version, budgets, owner_disabled
    FROM strata.bound_keys WHERE id = $1::text::uuid
"""

LIST_KEYS = """
    SELECT id::text, name, digest, pepper_id, display, user_id::text, team_id::text, models, rpm, tpm,
        max_parallel, extract(epoch FROM created_at)::float8 AS created_at,
        extract(epoch FROM expires_at)::float8 AS expires_at,
        extract(epoch FROM revoked_at)::float8 AS revoked_at, extract(epoch FROM last_used_at)::float8 AS last_used_at,
        previous_digest, extract(epoch FROM previous_until)::float8 AS previous_until,
        extract(epoch FROM rotated_at)::float8 AS rotated_at, version, budgets, owner_disabled
    FROM strata.bound_keys k ORDER BY k.created_at DESC, version DESC LIMIT 10000
"""


async def list_keys(db: Database) -> list[KeyRow]:
    """Active and ended ones, newest first, at most 10,000."""
    return [_key_row(row) for row in await db.fetch(LIST_KEYS, timeout_seconds=SNAPSHOT_SECONDS)]


CHANGED_SINCE = """
    SELECT id::text, name, digest, pepper_id, display, user_id::text, team_id::text, models, rpm, tpm,
        max_parallel, extract(epoch FROM created_at)::float8 AS created_at,
        extract(epoch FROM expires_at)::float8 AS expires_at,
        extract(epoch FROM revoked_at)::float8 AS revoked_at, extract(epoch FROM last_used_at)::float8 AS last_used_at,
        previous_digest, extract(epoch FROM previous_until)::float8 AS previous_until,
        extract(epoch FROM rotated_at)::float8 AS rotated_at, version, budgets, owner_disabled
    FROM strata.bound_keys WHERE version > $1 ORDER BY version LIMIT 10000
"""


async def changed_since(db: Database, version: int) -> list[KeyRow]:
    """
    Keys that changed after `version`, revoked ones too, in the order of their versions; at most 10,000, so a whole
    snapshot is read by asking again with the last version until nothing comes.
    """
    return [
        _key_row(row) for row in await db.fetch(CHANGED_SINCE, version, timeout_seconds=SNAPSHOT_SECONDS, op="keys")
    ]


FIND_KEY = """
    SELECT id::text, name, digest, pepper_id, display, user_id::text, team_id::text, models, rpm, tpm,
        max_parallel, extract(epoch FROM created_at)::float8 AS created_at,
        extract(epoch FROM expires_at)::float8 AS expires_at,
        extract(epoch FROM revoked_at)::float8 AS revoked_at, extract(epoch FROM last_used_at)::float8 AS last_used_at,
        previous_digest, extract(epoch FROM previous_until)::float8 AS previous_until,
        extract(epoch FROM rotated_at)::float8 AS rotated_at, version, budgets, owner_disabled
    FROM strata.bound_keys WHERE digest = $1 OR previous_digest = $1
"""


async def find_key(db: Database, digest: bytes) -> KeyRow | None:
    """The key with this digest, now or before its last rotation, whether it is still valid or not."""
    row = await db.fetchrow(FIND_KEY, digest, op="keys")
    return None if row is None else _key_row(row)


IN_FORCE = """
    SELECT id::text FROM strata.keys WHERE revoked_at IS NULL AND (id::text = $1 OR name = $1)
    ORDER BY id::text = $1 DESC LIMIT 1
"""


async def revoke_key(db: Database, name_or_id: str, actor: str = "gateway") -> KeyRow | None:
    """The key as it is now; None if no active key has this name or id."""
    return await _changed(db, name_or_id, lambda connection, before: end_key(connection, before, Actor(actor)))


async def replace_secret(
    db: Database, name_or_id: str, secret: StoredSecret, grace_seconds: int | None, actor: str = "gateway"
) -> KeyRow | None:
    """A new secret for the key, which the old one survives by so much; None if no active key has this name or id."""
    return await _changed(
        db,
        name_or_id,
        lambda connection, before: rotate_key(connection, before, secret, grace_seconds, Actor(actor)),
    )


async def _changed(
    db: Database, name_or_id: str, change: Callable[[Connection, dict[str, Any]], Awaitable[object]]
) -> KeyRow | None:
    async with db.transaction() as connection:
        id = await connection.fetchval(IN_FORCE, name_or_id)
        if id is None:
            return None
        await lock_key(connection, id)
        before = await show_key(connection, id)
        if before is None or before["revoked_at"] is not None:
            return None  # by somebody else, a moment ago
        await change(connection, before)
        row = await connection.fetchrow(READ_KEY, id)
    assert row is not None
    return _key_row(row)


async def write_uses(db: Database, used_at: Mapping[str, float]) -> None:
    """When keys were last used: id -> Unix seconds."""
    async with db.transaction() as connection:
        await note_uses(connection, used_at)


def _key_row(row: asyncpg.Record) -> KeyRow:
    fields = dict(row)
    fields["models"] = tuple(fields["models"])
    fields["budgets"] = msgspec.json.decode(fields["budgets"], type=tuple[Budget, ...])
    return KeyRow(**fields)
