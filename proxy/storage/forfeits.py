"""
The SQL that gives up on a host: what it had leased is booked as spent, since nobody can say how much of it was.

One adjustment row a budget period, in the transaction that ends the leases. Doing it again finds no lease, and does
nothing.
"""

from __future__ import annotations

import time
import uuid
from datetime import datetime
from typing import Any

import asyncpg

from proxy.storage.audit import note
from proxy.storage.budgets import LOCK_PERIODS_OF_WORKER, RELEASE_WORKER
from proxy.storage.ledger import EPOCH, LedgerRow, write_rows
from proxy.storage.postgres import Database

FORFEIT_SECONDS = 10.0
NAMESPACE = uuid.UUID("0e0f7f5a-9a56-5c43-8f3b-3a1f7c1c9a44")

LEASES = """
    SELECT l.worker_id::text, l.budget_id::text, l.starts_at, l.granted_nano_usd, b.scope, b.subject,
        coalesce(k.name, nullif(u.name, ''), u.email, t.name, b.subject) AS name
    FROM strata.leases l JOIN strata.budgets b ON b.id = l.budget_id
    LEFT JOIN strata.keys k ON b.scope = 'key' AND k.id::text = b.subject
    LEFT JOIN strata.users u ON b.scope = 'user' AND u.id::text = b.subject
    LEFT JOIN strata.teams t ON b.scope = 'team' AND t.id::text = b.subject
    WHERE $1::text IS NULL OR l.worker_id = $1::text::uuid
    ORDER BY l.worker_id, l.budget_id, l.starts_at LIMIT 10000
"""


async def leases(db: Database, worker_id: str | None = None) -> list[dict[str, Any]]:
    """What is leased now: of one worker, or of all."""
    return [dict(row) for row in await db.fetch(LEASES, worker_id)]


async def forfeit(db: Database, worker_id: str, actor: str = "gateway") -> list[dict[str, Any]]:
    """Books the worker's leases as spent and ends them; returns what they were. Raises Unavailable: try again."""
    async with db.transaction(timeout_seconds=FORFEIT_SECONDS) as connection:
        await connection.execute(LOCK_PERIODS_OF_WORKER, worker_id)
        found = await connection.fetch(LEASES, worker_id)
        rows = [_adjustment(worker_id, lease) for lease in found if lease["granted_nano_usd"] > 0]
        if rows:
            await write_rows(connection, rows)
        await connection.fetchval(RELEASE_WORKER, worker_id)
        if found:
            after = {"leases": len(found), "nano_usd": sum(lease["granted_nano_usd"] for lease in found)}
            await note(connection, actor=actor, action="ledger.forfeit", object=worker_id, after=after)
    return [dict(lease) for lease in found]


def _adjustment(worker_id: str, lease: asyncpg.Record) -> LedgerRow:
    starts_at: datetime = lease["starts_at"]
    of_key, now_ms = lease["scope"] == "key", int(time.time() * 1000)
    subject = lease["subject"] if lease["scope"] in ("key", "user", "team") else None
    starts_ms = int((starts_at - EPOCH).total_seconds() * 1000)
    id = uuid.uuid5(NAMESPACE, f"{worker_id} {lease['budget_id']} {starts_ms} {now_ms}")
    return LedgerRow(
        request_id=id.bytes,
        attempt=-1,
        started_at_ms=now_ms,
        worker_id=uuid.UUID(worker_id).bytes,
        public_id=f"forfeit-{worker_id}",
        key_id=subject if of_key else None,
        key_name=lease["name"] if of_key else "",
        user_id=subject if lease["scope"] == "user" else None,
        team_id=subject if lease["scope"] == "team" else None,
        endpoint="ledger",
        model="",
        deployment="",
        provider="",
        stream=False,
        status=0,
        outcome="ok",
        source="adjustment",
        input_tokens=0,
        cache_read_tokens=0,
        cache_write_5m_tokens=0,
        cache_write_1h_tokens=0,
        audio_input_tokens=0,
        output_tokens=0,
        reasoning_tokens=0,
        audio_output_tokens=0,
        cost_nano_usd=lease["granted_nano_usd"],
        price_state="priced",
        price_source="strata ledger forfeit",
        usage_raw="",
        usage_suspect=False,
        duration_ms=0,
        first_token_ms=None,
        budget_ids=(lease["budget_id"],),
        budget_starts_ms=(starts_ms,),
    )
