"""
Every sealed column there is, and how its DEKs go from one KEK to the next: in batches, each a transaction that touches
the wrapped DEK and the id of its KEK and nothing else. Whatever is killed in between is taken up again by the next run.

A table with a column `sealed_dek` that is missing in COLUMNS fails a test, since a rotation would forget it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import asyncpg

from proxy.storage import root
from proxy.storage.postgres import Database
from proxy.storage.sealing import CannotOpen, Place, Sealed, rewrap, unseal
from proxy.storage.vault import Vault

BATCH_ROWS = 100
BATCH_SECONDS = 14.0

CLAIM_PROVIDER_KEYS = """
    SELECT id::text, scope, coalesce(user_id, team_id)::text AS owner_id, provider, host, sealed_key, sealed_dek, kek_id
    FROM strata.provider_keys
    WHERE kek_id <> $1 AND id > coalesce($2::text::uuid, '00000000-0000-0000-0000-000000000000')
    ORDER BY id LIMIT $3 FOR UPDATE SKIP LOCKED
"""
REWRAP_PROVIDER_KEYS = """
    UPDATE strata.provider_keys k SET sealed_dek = n.sealed_dek, kek_id = $3
    FROM unnest($1::text[]::uuid[], $2::bytea[]) n(id, sealed_dek) WHERE k.id = n.id
"""
COUNT_PROVIDER_KEYS = "SELECT kek_id, count(*)::bigint AS rows FROM strata.provider_keys GROUP BY 1 ORDER BY 1"

CLAIM_VAULT = """
    SELECT name AS id, sealed_value, sealed_dek, kek_id
    FROM strata.vault WHERE kek_id <> $1 AND name > coalesce($2, '')
    ORDER BY name LIMIT $3 FOR UPDATE SKIP LOCKED
"""
REWRAP_VAULT = """
    UPDATE strata.vault v SET sealed_dek = n.sealed_dek, kek_id = $3
    FROM unnest($1::text[], $2::bytea[]) n(name, sealed_dek) WHERE v.name = n.name
"""
COUNT_VAULT = "SELECT kek_id, count(*)::bigint AS rows FROM strata.vault GROUP BY 1 ORDER BY 1"


class SealedColumn(NamedTuple):
    table: str
    column: str
    claim: str
    """Rows under another KEK than $1, after the id $2, at most $3, locked; those that somebody else has are skipped."""
    rewrap: str
    tally: str
    place: Callable[[asyncpg.Record], Place]


def place_of(row: asyncpg.Record) -> Place:
    """Of a provider key."""
    return provider_key_place(row["id"], row["scope"], row["owner_id"], row["provider"], row["host"])


def provider_key_place(id: str, scope: str, owner_id: str | None, provider: str, host: str) -> Place:
    return Place("provider_keys", "sealed_key", id, f"{scope}:{owner_id or ''}", provider, host)


COLUMNS = (
    SealedColumn(
        "provider_keys", "sealed_key", CLAIM_PROVIDER_KEYS, REWRAP_PROVIDER_KEYS, COUNT_PROVIDER_KEYS, place_of
    ),
    SealedColumn("vault", "sealed_value", CLAIM_VAULT, REWRAP_VAULT, COUNT_VAULT, lambda _: root.PLACE),
)
"""The vault's root is last: until everything else is done, whoever starts with the old key only is not locked out."""


class Batch(NamedTuple):
    rewrapped: int
    unopened: tuple[str, ...]
    """Ids of those that open under no key given, as they are."""
    last_id: str | None
    """Where the next batch begins; None: there is no more to claim."""


async def rewrap_batch(
    db: Database, vault: Vault, column: SealedColumn, after: str | None, limit: int = BATCH_ROWS
) -> Batch:
    """One transaction. Raises Unavailable: nothing of this batch has happened, or all of it."""
    async with db.transaction(timeout_seconds=BATCH_SECONDS) as connection:
        rows = await connection.fetch(column.claim, vault.kek_id, after, limit)
        if not rows:
            return Batch(0, (), None)
        ids, deks, unopened = list[str](), list[bytes](), list[str]()
        for row in rows:
            try:
                sealed = Sealed(row[column.column], row["sealed_dek"], row["kek_id"])
                deks.append(rewrap(vault, column.place(row), sealed).dek)
            except CannotOpen:
                unopened.append(row["id"])
            else:
                ids.append(row["id"])
        await connection.execute(column.rewrap, ids, deks, vault.kek_id)
        return Batch(len(ids), tuple(unopened), rows[-1]["id"])


async def count_by_kek(db: Database) -> dict[str, dict[str, int]]:
    """Table -> id of the KEK -> rows."""
    return {
        column.table: {row["kek_id"]: row["rows"] for row in await db.fetch(column.tally, timeout_seconds=10.0)}
        for column in COLUMNS
    }


READ_PROVIDER_KEYS = """
    SELECT id::text, scope, coalesce(user_id, team_id)::text AS owner_id, provider, host, sealed_key, sealed_dek, kek_id
    FROM strata.provider_keys WHERE id > coalesce($1::text::uuid, '00000000-0000-0000-0000-000000000000')
    ORDER BY id LIMIT $2
"""


async def unopened_provider_keys(db: Database, vault: Vault) -> list[str]:
    """Ids of those that open under no key given."""
    found, after = list[str](), None
    while rows := await db.fetch(READ_PROVIDER_KEYS, after, 1000, timeout_seconds=10.0):
        found += [row["id"] for row in rows if not _opens(vault, row)]
        after = rows[-1]["id"]
    return found


def _opens(vault: Vault, row: asyncpg.Record) -> bool:
    try:
        unseal(vault, place_of(row), Sealed(row["sealed_key"], row["sealed_dek"], row["kek_id"]))
    except CannotOpen:
        return False
    return True
