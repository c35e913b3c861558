"""
The SQL of prices: the lines that ledger rows name, and the rows to price again.

A line is written once, by the first worker that may use it, and never changes: its name says where its rates are from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

import asyncpg
import msgspec

from proxy.storage.ledger import LedgerRow
from proxy.storage.postgres import Database

READ_SECONDS = 10.0
STRIDE = 100
"""The n-th correction (from 0) of a request's attempt k has the number -(k + 100 n): of two at once, one is refused."""

WRITE_LINES = """
    INSERT INTO strata.price_lines (source, lines)
    SELECT key, value FROM jsonb_each($1::text::jsonb) ORDER BY key
    ON CONFLICT DO NOTHING
"""

READ_LINES = "SELECT source, lines::text AS lines FROM strata.price_lines WHERE source = ANY($1::text[])"

# Rows that were billed by tokens and prices. One without work is free, and an orphan is charged with what was held for
# it, as long as there was a price. Corrections belong to the row whose attempt they number.
ROWS_TO_RERATE = """
    SELECT u.request_id, u.attempt, u.started_at, u.public_id, u.key_id::text, u.key_name, u.user_id::text,
        u.team_id::text, u.endpoint, u.model, u.deployment, u.provider, u.stream, u.status, u.outcome, u.source,
        u.input_tokens, u.cache_read_tokens, u.cache_write_5m_tokens, u.cache_write_1h_tokens, u.audio_input_tokens,
        u.output_tokens, u.reasoning_tokens, u.audio_output_tokens, u.cost_nano_usd, u.price_state, u.price_source,
        u.image_input_tokens, u.image_output_tokens, u.searches, u.service_tier, u.budget_ids::text[] AS budget_ids,
        u.provider_key_id::text AS provider_key_id,
        (extract(epoch FROM u.started_at) * 1000)::bigint AS started_at_ms,
        ARRAY(SELECT (extract(epoch FROM t) * 1000)::bigint FROM unnest(u.budget_starts) WITH ORDINALITY s(t, n)
              ORDER BY n) AS budget_starts_ms,
        c.corrections, c.corrected_nano_usd
    FROM strata.usage u CROSS JOIN LATERAL (
        SELECT count(*)::integer AS corrections, coalesce(sum(a.cost_nano_usd), 0)::bigint AS corrected_nano_usd
        FROM strata.usage a
        WHERE a.request_id = u.request_id AND a.started_at = u.started_at AND a.attempt < 0
            AND -a.attempt % 100 = u.attempt
    ) c
    WHERE u.attempt > 0 AND u.started_at >= $1 AND u.started_at < $2
        AND (u.started_at, u.request_id, u.attempt) > ($1, $3::uuid, $4::smallint)
        AND u.source <> 'none' AND (u.source <> 'orphan' OR u.price_state = 'unknown')
        AND (cardinality($5::text[]) = 0 OR u.model = ANY($5::text[]) OR u.deployment = ANY($5::text[]))
    ORDER BY u.started_at, u.request_id, u.attempt LIMIT $6
"""


class Billed(NamedTuple):
    """A row of the ledger, how often it was corrected, and what it costs with the corrections."""

    row: LedgerRow
    corrections: int
    nano_usd: int
    at: datetime


class Place(NamedTuple):
    """Behind which row to go on."""

    at: datetime
    request_id: str = "00000000-0000-0000-0000-000000000000"
    attempt: int = 0


async def write_lines(db: Database, lines: Mapping[str, Mapping[str, int]]) -> None:
    """By source, pico-dollars by bucket. Those that are there stay as they are."""
    if lines:
        await db.execute(WRITE_LINES, msgspec.json.encode(lines).decode())


async def read_lines(db: Database, sources: Sequence[str]) -> dict[str, dict[str, int]]:
    rows = await db.fetch(READ_LINES, list(sources), timeout_seconds=READ_SECONDS)
    return {row["source"]: msgspec.json.decode(row["lines"], type=dict[str, int]) for row in rows}


async def rows_to_rerate(
    db: Database, place: Place, until: datetime, models: Sequence[str], count: int
) -> tuple[list[Billed], Place | None]:
    """The next rows from `place` on, of these models or deployments (none: of all), and where to go on."""
    rows = await db.fetch(
        ROWS_TO_RERATE, place.at, until, place.request_id, place.attempt, list(models), count,
        timeout_seconds=READ_SECONDS,
    )  # fmt: skip
    found = [_billed(row) for row in rows]
    if len(rows) < count:
        return found, None
    last = rows[-1]
    return found, Place(last["started_at"], str(last["request_id"]), last["attempt"])


def _billed(row: asyncpg.Record) -> Billed:
    fields = {name: row[name] for name in LedgerRow.__struct_fields__ if name in row}
    fields |= {
        "request_id": row["request_id"].bytes,
        "worker_id": bytes(16),
        "usage_raw": "",
        "usage_suspect": False,
        "duration_ms": 0,
        "first_token_ms": None,
        "budget_ids": tuple(row["budget_ids"]),
        "budget_starts_ms": tuple(row["budget_starts_ms"]),
    }
    cost = row["cost_nano_usd"] + row["corrected_nano_usd"]
    return Billed(LedgerRow(**fields), row["corrections"], cost, row["started_at"])
