"""
The SQL of provider keys. The sealed bytes are read by the gateway itself alone: who asks through the API may see and
change rows as row-level security lets them, and never has a right to these two columns.

Every change notifies the channel `strata_provider_keys`; what a provider said of a key is no change.
"""

from __future__ import annotations

from typing import Any

import asyncpg
import msgspec

from proxy.errors import CallerError, PolicyError
from proxy.storage.postgres import Connection, Database
from proxy.storage.sealing import Sealed

CHANNEL = "strata_provider_keys"
SNAPSHOT_SECONDS = 10.0
MAX_ROWS = 10_000
PART_ROWS = 200


class SealedKey(msgspec.Struct, frozen=True):
    """A provider key as the gateway uses it. `api_base` "": where the operator's provider of this name is."""

    id: str
    scope: str
    owner_id: str | None
    """The user or team; None: everybody."""
    provider: str
    name: str
    api_base: str
    host: str
    last_four: str
    version: int
    sealed: Sealed


READ_ALL = """
    SELECT id::text, scope, coalesce(user_id, team_id)::text AS owner_id, provider, name, api_base, host, last_four,
        version, sealed_key, sealed_dek, kek_id
    FROM strata.provider_keys WHERE id > coalesce($1::text::uuid, '00000000-0000-0000-0000-000000000000')
    ORDER BY id LIMIT $2
"""

READ_STATE = "SELECT count(*)::bigint AS rows, coalesce(max(version), 0)::bigint AS version FROM strata.provider_keys"

READ_ONE = """
    SELECT id::text, scope, coalesce(user_id, team_id)::text AS owner_id, provider, name, api_base, host, last_four,
        version, sealed_key, sealed_dek, kek_id
    FROM strata.provider_keys WHERE id = $1::text::uuid
"""


async def read_all(db: Database) -> list[SealedKey]:
    """MAX_ROWS and a few more at most. In parts, so that nobody else on the loop waits long."""
    found = list[SealedKey]()
    while len(found) <= MAX_ROWS:
        after = found[-1].id if found else None
        rows = await db.fetch(READ_ALL, after, PART_ROWS, timeout_seconds=SNAPSHOT_SECONDS)
        found += [_sealed(row) for row in rows]
        if len(rows) < PART_ROWS:
            break
    return found


async def read_state(db: Database) -> tuple[int, int]:
    """Two numbers of which at least one changes with every change, the sealing anew in a rotation left out."""
    row = await db.fetchrow(READ_STATE)
    assert row is not None
    return row["rows"], row["version"]


async def read_one(db: Database, id: str) -> SealedKey | None:
    row = await db.fetchrow(READ_ONE, id)
    return None if row is None else _sealed(row)


def _sealed(row: asyncpg.Record) -> SealedKey:
    fields = dict(row)
    sealed = Sealed(fields.pop("sealed_key"), fields.pop("sealed_dek"), fields.pop("kek_id"))
    return SealedKey(**fields, sealed=sealed)


LIST_SHOWN = """
    SELECT id::text, scope, user_id::text, team_id::text, provider, name, api_base, host, last_four, status, detail,
        last_validated_at, created_at
    FROM strata.provider_keys WHERE $1::text IS NULL OR id = $1::text::uuid
    ORDER BY provider, scope, created_at, id LIMIT 10000
"""


async def shown(connection: Connection, id: str | None = None) -> list[dict[str, Any]]:
    """What the connection's role may see: all of it, or the one with this id."""
    return [dict(row) for row in await connection.fetch(LIST_SHOWN, id)]


INSERT = """
    INSERT INTO strata.provider_keys (id, scope, user_id, team_id, provider, name, api_base, host, sealed_key,
        sealed_dek, kek_id, last_four, status, detail, last_validated_at)
    VALUES ($1::text::uuid, $2, $3::text::uuid, $4::text::uuid, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14,
        CASE WHEN $13 <> 'not checked' THEN now() END)
"""


async def insert(connection: Connection, key: SealedKey, *, status: str, detail: str) -> None:
    """
    CallerError if its owner has a key of this provider already, or is nobody; PolicyError if it would be none of those
    that the connection's role may make.
    """
    user_id = key.owner_id if key.scope == "user" else None
    team_id = key.owner_id if key.scope == "team" else None
    place = (key.provider, key.name, key.api_base, key.host)
    said = (key.last_four, status, detail)
    try:
        await connection.execute(INSERT, key.id, key.scope, user_id, team_id, *place, *key.sealed, *said)
    except asyncpg.UniqueViolationError:
        raise CallerError(
            f'There is a key for "{key.provider}" and this owner already. Replace it, or delete it first.',
            status=409,
            code="provider_key_exists",
        ) from None
    except asyncpg.InsufficientPrivilegeError:
        raise PolicyError(
            "You may not save a provider key for this owner.",
            status=403,
            code="forbidden",
            error_type="policy_forbidden",
        ) from None
    except asyncpg.ForeignKeyViolationError:
        raise CallerError(f"There is no such {key.scope}.", code="invalid_value", param=f"{key.scope}_id") from None


RENAME = "UPDATE strata.provider_keys SET name = $2 WHERE id = $1::text::uuid RETURNING id::text"

REPLACE = """
    UPDATE strata.provider_keys SET name = $2, api_base = $3, host = $4, sealed_key = $5, sealed_dek = $6, kek_id = $7,
        last_four = $8, status = $9, detail = $10, last_validated_at = CASE WHEN $9 <> 'not checked' THEN now() END
    WHERE id = $1::text::uuid RETURNING id::text
"""

REMOVE = "DELETE FROM strata.provider_keys WHERE id = $1::text::uuid RETURNING id::text"

MAY_CHANGE = """
    SELECT id::text FROM strata.provider_keys WHERE id = $1::text::uuid FOR UPDATE
"""

NOTE_STATUS = """
    UPDATE strata.provider_keys SET status = $3, detail = $4, last_validated_at = now()
    WHERE id = $1::text::uuid AND version = $2
"""


async def rename(connection: Connection, id: str, name: str) -> bool:
    """Whether there is one that the connection's role may change; so do the two below."""
    return await connection.fetchval(RENAME, id, name) is not None


async def replace(connection: Connection, key: SealedKey, *, status: str, detail: str) -> bool:
    place, said = (key.name, key.api_base, key.host), (key.last_four, status, detail)
    return await connection.fetchval(REPLACE, key.id, *place, *key.sealed, *said) is not None


async def remove(connection: Connection, id: str) -> bool:
    return await connection.fetchval(REMOVE, id) is not None


async def may_change(connection: Connection, id: str) -> bool:
    """A lock asks the policies of a change, as an UPDATE would."""
    return await connection.fetchval(MAY_CHANGE, id) is not None


async def note_status(db: Database, key: SealedKey, *, status: str, detail: str) -> None:
    """What its provider said just now, unless the key was replaced meanwhile."""
    await db.execute(NOTE_STATUS, key.id, key.version, status, detail)
