"""
The SQL of virtual keys. A key is never deleted: it is revoked, and its rows in the ledger keep their name.

Every change of a key raises its `version` and notifies the channel `strata_keys`; versions appear in commit order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import asyncpg
import msgspec

from proxy.errors import CallerError
from proxy.exchange import Budget
from proxy.storage.audit import note
from proxy.storage.postgres import Database

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


INSERT_KEY = """
    INSERT INTO strata.keys (name, digest, pepper_id, display, models, rpm, expires_at, tpm, max_parallel)
    VALUES ($1, $2, $3, $4, $5, $6, to_timestamp($7::float8), $8, $9)
    RETURNING id::text
"""

INSERT_KEY_BUDGET = """
    INSERT INTO strata.budgets (scope, subject, limit_nano_usd, window_seconds, calendar)
    VALUES ('key', $1, $2, $3, $4)
"""


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
    try:
        async with db.transaction() as connection:
            key_id = await connection.fetchval(
                INSERT_KEY, name, digest, pepper_id, display, list(models), rpm, expires_at, tpm, max_parallel
            )
            if budget_limit_nano_usd is not None:
                window = (budget_window_seconds, budget_calendar)
                await connection.execute(INSERT_KEY_BUDGET, key_id, budget_limit_nano_usd, *window)
            row = await connection.fetchrow(READ_KEY, key_id)
            assert row is not None
            await note(connection, actor=actor, action="key.create", object=key_id, after=_audited(row))
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name != "keys_active_name":
            raise
        raise CallerError(
            f'A key named "{name}" is active already. Choose another name, or revoke that one first.',
            code="name_taken",
            param="name",
        ) from None
    except (asyncpg.CheckViolationError, asyncpg.CharacterNotInRepertoireError) as error:
        raise CallerError(
            "This key cannot be stored: a name has 1 to 64 characters, and limits are not negative.",
            code="invalid_key",
            param="name" if "name" in (error.constraint_name or "name") else None,
        ) from error
    return _key_row(row)


READ_KEY = """
    SELECT id::text, name, digest, pepper_id, display, user_id::text, team_id::text, models, rpm, tpm,
        max_parallel, extract(epoch FROM created_at)::float8 AS created_at,
        extract(epoch FROM expires_at)::float8 AS expires_at,
        extract(epoch FROM revoked_at)::float8 AS revoked_at, extract(epoch FROM last_used_at)::float8 AS last_used_at,
        version, budgets
    FROM strata.bound_keys WHERE id = $1::text::uuid
"""

LIST_KEYS = """
    SELECT id::text, name, digest, pepper_id, display, user_id::text, team_id::text, models, rpm, tpm,
        max_parallel, extract(epoch FROM created_at)::float8 AS created_at,
        extract(epoch FROM expires_at)::float8 AS expires_at,
        extract(epoch FROM revoked_at)::float8 AS revoked_at, extract(epoch FROM last_used_at)::float8 AS last_used_at,
        version, budgets
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
        version, budgets
    FROM strata.bound_keys WHERE version > $1 ORDER BY version LIMIT 10000
"""


async def changed_since(db: Database, version: int) -> list[KeyRow]:
    """
    Keys that changed after `version`, revoked ones too, in the order of their versions; at most 10,000, so a whole
    snapshot is read by asking again with the last version until nothing comes.
    """
    return [_key_row(row) for row in await db.fetch(CHANGED_SINCE, version, timeout_seconds=SNAPSHOT_SECONDS)]


FIND_KEY = """
    SELECT id::text, name, digest, pepper_id, display, user_id::text, team_id::text, models, rpm, tpm,
        max_parallel, extract(epoch FROM created_at)::float8 AS created_at,
        extract(epoch FROM expires_at)::float8 AS expires_at,
        extract(epoch FROM revoked_at)::float8 AS revoked_at, extract(epoch FROM last_used_at)::float8 AS last_used_at,
        version, budgets
    FROM strata.bound_keys WHERE digest = $1
"""


async def find_key(db: Database, digest: bytes) -> KeyRow | None:
    """The key with this digest, whether it is still valid or not."""
    row = await db.fetchrow(FIND_KEY, digest)
    return None if row is None else _key_row(row)


REVOKE_KEY = """
    UPDATE strata.keys SET revoked_at = now()
    WHERE revoked_at IS NULL AND id = (
        SELECT id FROM strata.keys WHERE revoked_at IS NULL AND (id::text = $1 OR name = $1)
        ORDER BY id::text = $1 DESC LIMIT 1)
    RETURNING id::text
"""


async def revoke_key(db: Database, name_or_id: str, actor: str = "gateway") -> KeyRow | None:
    """The key as it is now; None if no active key has this name or id."""
    async with db.transaction() as connection:
        key_id = await connection.fetchval(REVOKE_KEY, name_or_id)
        row = None if key_id is None else await connection.fetchrow(READ_KEY, key_id)
        if row is not None:
            await note(connection, actor=actor, action="key.revoke", object=key_id, after={"name": row["name"]})
    return None if row is None else _key_row(row)


def _audited(row: asyncpg.Record) -> dict[str, Any]:
    names = ("name", "display", "user_id", "team_id", "models", "rpm", "tpm", "max_parallel", "expires_at")
    return {**{name: row[name] for name in names}, "budgets": msgspec.json.decode(row["budgets"])}


def _key_row(row: asyncpg.Record) -> KeyRow:
    fields = dict(row)
    fields["models"] = tuple(fields["models"])
    fields["budgets"] = msgspec.json.decode(fields["budgets"], type=tuple[Budget, ...])
    return KeyRow(**fields)
