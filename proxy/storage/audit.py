"""
The SQL of the audit log: who changed what, each row holding the hash of the one before.

A note is written in the transaction of its change, so that neither is there without the other. Whoever owns the
database can rewrite the whole chain; whoever has written down its last hash elsewhere notices even that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import asyncpg
import msgspec

from proxy.storage.postgres import Connection, Database

BATCH = 1_000
SECRET_WORDS = ("key", "secret", "password", "token", "digest", "sealed")
MASK = "…"

NOTE = "SELECT strata.note_audit($1, $2, $3, $4::jsonb, $5::jsonb, $6)"


async def note(
    connection: Connection,
    *,
    actor: str,
    action: str,
    object: str,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    request_id: str = "",
) -> None:
    """
    Adds a row. `actor`: a user's id, a key's name or `cli:<user>`; `action` as in `key.create`; `object`: the id of
    what changed. Fields that sound like secrets are masked, whatever they hold and wherever they are.
    """
    await connection.execute(NOTE, actor, action, object, _json(before), _json(after), request_id)


READ_BATCH = """
    SELECT seq, prev_hash, hash,
        hash = strata.audit_hash(prev_hash, seq, at, actor, action, object, before, after, request_id) AS is_own
    FROM strata.audit WHERE seq > $1 ORDER BY seq LIMIT $2
"""


LOWEST = -(2**63)
"""Rows are numbered from 1; one with a lower number is somebody's forgery, and must be met."""


class Verdict(NamedTuple):
    """Of the chain. `broken_at`: the first row that is not as it was written, or that another should come before."""

    rows: int
    head: str
    broken_at: int | None
    held: bool | None
    """Whether the hash that was asked for is one of the chain's; None: none was."""


async def verify_chain(db: Database, known_head: str | None = None) -> Verdict:
    """Walks it from its first row. That rows are missing at its end shows only to who knows a hash of them."""
    seq, head, held, after = 0, b"", None if known_head is None else False, LOWEST
    while batch := await db.fetch(READ_BATCH, after, BATCH, timeout_seconds=10.0):
        for row in batch:
            if row["seq"] != seq + 1 or row["prev_hash"] != head or not row["is_own"]:
                return Verdict(seq, head.hex(), seq + 1, held)
            seq = after = row["seq"]
            head = row["hash"]
            held = held or (None if known_head is None else head.hex() == known_head.strip().lower())
    return Verdict(seq, head.hex(), None, held)


LIST_AUDIT = """
    SELECT seq, at, actor, action, object, before::text, after::text, request_id FROM strata.audit
    WHERE seq < $1 AND ($2::text IS NULL OR actor = $2) AND ($3::text IS NULL OR action = $3)
        AND ($4::text IS NULL OR object = $4)
    ORDER BY seq DESC LIMIT $5
"""
NEWEST = 2**62


async def list_audit(
    connection: Connection,
    *,
    limit: int,
    below: int = NEWEST,
    actor: str | None = None,
    action: str | None = None,
    object: str | None = None,
) -> list[dict[str, Any]]:
    """Newest first, of those that the connection's role may see; `below`: the number of the last row seen."""
    rows = await connection.fetch(LIST_AUDIT, below, actor, action, object, limit)
    return [_shown(row) for row in rows]


def _shown(row: asyncpg.Record) -> dict[str, Any]:
    said = {name: row[name] and msgspec.json.decode(row[name]) for name in ("before", "after")}
    return {**dict(row), **said}


def _json(fields: Mapping[str, Any] | None) -> str | None:
    if fields is None:
        return None
    return msgspec.json.encode(_masked(fields)).decode()


def _masked(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            name: MASK if _sounds_secret(name) and inner is not None else _masked(inner)
            for name, inner in value.items()
        }
    return [_masked(inner) for inner in value] if isinstance(value, list) else value


def _sounds_secret(name: str) -> bool:
    return any(name == word or name.endswith(f"_{word}") or name.startswith(f"{word}_") for word in SECRET_WORDS)
