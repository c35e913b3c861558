"""
The SQL of the request history, and of what explains one request: its row, its ledger rows, the price lines they name.

The history is a log: a row that is missing says nothing. Rows are read together with the ledger's, which say what it
cost.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import msgspec

from proxy.storage.ledger import RowsRefused
from proxy.storage.postgres import Connection, Database

WRITE_SECONDS = 10.0
FORGET_SECONDS = 14.0
"""Below the server's own limit of a statement."""

INSERT_REQUESTS = """
    INSERT INTO strata.requests (
        id, started_at, public_id, key_id, key_name, user_id, team_id, endpoint, model, deployment, provider, stream,
        status, error_type, attempts, duration_ms, first_token_ms, cost_nano_usd, notices, detail)
    SELECT
        encode(decode(r->>0, 'base64'), 'hex')::uuid, timestamptz 'epoch' + (r->>1)::bigint * interval '1 millisecond',
        r->>2, (r->>3)::uuid, r->>4, (r->>5)::uuid, (r->>6)::uuid, r->>7, r->>8, r->>9, r->>10, (r->>11)::boolean,
        (r->>12)::smallint, r->>13, (r->>14)::smallint, (r->>15)::bigint, (r->>16)::bigint, (r->>17)::bigint,
        r->18, r->19
    FROM jsonb_array_elements($1::jsonb) r
    ON CONFLICT DO NOTHING
"""


async def insert_requests(db: Database, rows: Sequence[bytes]) -> None:
    """
    Rows as JSON arrays, in the order of the statement's columns. Unavailable: send them again, it is harmless.
    RowsRefused: one of them is bad.
    """
    try:
        batch = (b"[%b]" % b",".join(rows)).decode()
        await db.execute(INSERT_REQUESTS, batch, timeout_seconds=WRITE_SECONDS, op="history")
    except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) as error:
        cause = type(error).__name__
        raise RowsRefused(f"The history refuses a batch of {len(rows)} requests: {cause}.") from error


FIND_REQUEST = """
    SELECT id::text, started_at, public_id, key_id::text, key_name, user_id::text, team_id::text, endpoint, model,
        deployment, provider, stream, status, error_type, attempts, duration_ms, first_token_ms, cost_nano_usd,
        notices::text, detail::text
    FROM strata.requests
    WHERE public_id = $1 OR id = $2::text::uuid
    ORDER BY started_at DESC LIMIT 1
"""

FIND_IN_LEDGER = """
    SELECT request_id::text AS id FROM strata.usage
    WHERE public_id = $1 OR request_id = $2::text::uuid
    ORDER BY started_at DESC LIMIT 1
"""

READ_BILL = """
    SELECT u.request_id::text, u.attempt, u.started_at, u.public_id, u.key_id::text, u.key_name, u.user_id::text,
        u.team_id::text, u.endpoint, u.model, u.deployment, u.provider, u.stream, u.status, u.outcome, u.source,
        u.input_tokens, u.cache_read_tokens, u.cache_write_5m_tokens, u.cache_write_1h_tokens, u.audio_input_tokens,
        u.output_tokens, u.reasoning_tokens, u.audio_output_tokens, u.image_input_tokens, u.image_output_tokens,
        u.searches, u.service_tier, u.cost_nano_usd, u.price_state, u.price_source, u.usage_raw, u.usage_suspect,
        u.duration_ms, u.first_token_ms, u.provider_key_id::text, l.lines::text AS lines
    FROM strata.usage u LEFT JOIN strata.price_lines l ON l.source = u.price_source
    WHERE u.request_id = $1::text::uuid
    ORDER BY u.attempt <= 0, abs(u.attempt)
"""


async def find_request(connection: Connection, name: str) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """
    The newest request with this `x-request-id`, or with this id of ours: its row of the history, if it has one, and its
    rows of the ledger. On somebody's behalf: only what the connection's role may see.
    """
    own_id = _uuid(name)
    row = await connection.fetchrow(FIND_REQUEST, name, own_id)
    found = row
    if found is None:
        found = await connection.fetchrow(FIND_IN_LEDGER, name, own_id)
    if found is None:
        return None, []
    bill = await connection.fetch(READ_BILL, found["id"])
    return dict(row) if row is not None else None, [dict(line) for line in bill]


class Filters(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a list of requests is narrowed by; None: not by this. `key` is a name or an id."""

    model: str | None = None
    key: str | None = None
    status: int | None = None
    error_type: str | None = None
    deployment: str | None = None
    since: datetime | None = None
    until: datetime | None = None


LIST_REQUESTS = """
    SELECT id::text, public_id AS request_id, started_at, key_id::text, key_name, endpoint, model, deployment,
        provider, stream, status, error_type, attempts, duration_ms, first_token_ms, cost_nano_usd
    FROM strata.requests
    WHERE (started_at, id) < ($1::timestamptz, $2::text::uuid)
        AND started_at >= coalesce($3::timestamptz, '-infinity') AND started_at < coalesce($4::timestamptz, 'infinity')
        AND ($5::text IS NULL OR model = $5) AND ($6::text IS NULL OR key_name = $6 OR key_id::text = $6)
        AND ($7::bigint IS NULL OR status = $7) AND ($8::text IS NULL OR error_type = $8)
        AND ($9::text IS NULL OR deployment = $9)
    ORDER BY started_at DESC, id DESC LIMIT $10
"""

LAST_ID = "ffffffff-ffff-ffff-ffff-ffffffffffff"


async def list_requests(
    connection: Connection, filters: Filters, limit: int, after: tuple[datetime, str] | None = None
) -> list[asyncpg.Record]:
    """Newest first, of those that the connection's role may see; `after`: the start and id of the last row seen."""
    started_at, last_id = after or (datetime.now(UTC) + timedelta(days=1), LAST_ID)
    return await connection.fetch(
        LIST_REQUESTS,
        started_at,
        last_id,
        filters.since,
        filters.until,
        filters.model,
        filters.key,
        filters.status,
        filters.error_type,
        filters.deployment,
        limit,
    )


FORGET_REQUESTS = "SELECT strata.forget_requests(now() - make_interval(secs => $1))"


async def forget_requests(db: Database, older_than_seconds: float) -> int:
    """Lets go of what is older. Returns how many single rows went: call again until it is 0."""
    row = await db.fetchrow(FORGET_REQUESTS, older_than_seconds, timeout_seconds=FORGET_SECONDS)
    assert row is not None
    return int(row[0])


def _uuid(name: str) -> str | None:
    try:
        return str(uuid.UUID(name))
    except ValueError:
        return None
