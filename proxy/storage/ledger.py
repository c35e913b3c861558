"""
The SQL of the ledger. A row is written once and never changed; sending it again is harmless.

Budgets, leases, hourly and daily sums move in the statement that inserts the rows, and only by those it really inserts.
So they equal the rows by construction, however often and in whatever order the workers ship.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

import asyncpg
import msgspec

from proxy.errors import GatewayFault
from proxy.storage.postgres import Connection, Database

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SHIP_SECONDS = 10.0


class LedgerRow(msgspec.Struct, frozen=True, array_like=True):
    """
    The columns of strata.usage, in their order. `budget_ids` and `budget_starts_ms` run in parallel. New ones go to the
    end and have a default: a journal may have been written by the release before. The meter writes rows without it.
    """

    request_id: bytes
    attempt: int
    started_at_ms: int
    worker_id: bytes
    public_id: str
    key_id: str | None
    key_name: str
    user_id: str | None
    team_id: str | None
    endpoint: str
    model: str
    deployment: str
    provider: str
    stream: bool
    status: int
    outcome: str
    source: str
    input_tokens: int
    cache_read_tokens: int
    cache_write_5m_tokens: int
    cache_write_1h_tokens: int
    audio_input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    audio_output_tokens: int
    cost_nano_usd: int
    price_state: str
    price_source: str
    usage_raw: str
    usage_suspect: bool
    duration_ms: int
    first_token_ms: int | None
    budget_ids: tuple[str, ...] = ()
    budget_starts_ms: tuple[int, ...] = ()
    image_input_tokens: int = 0
    image_output_tokens: int = 0
    searches: int = 0
    service_tier: str = ""
    provider_key_id: str | None = None
    """Of whoever paid the provider, if not the operator. Its price is tracked, and counts against budgets, alike."""


Charge = tuple[tuple[str, ...], tuple[int, ...]]
"""The budgets that a row counts against, and the start of the period of each (ms)."""

encode_row = msgspec.json.Encoder().encode
"""A row as it stands in the journal and goes to Postgres: a JSON array."""
decode_row = msgspec.json.Decoder(LedgerRow).decode


class RowsRefused(GatewayFault):
    """Postgres will never take one of these rows as it is. Ship them one by one to find it, and set it aside."""


# The rows of a batch touch the same periods in any order; all who ship, lease or return lock them in this one.
LOCK_PERIODS = """
    SELECT 1 FROM strata.budget_periods
    WHERE (budget_id, starts_at) IN (SELECT * FROM unnest($1::text[]::uuid[], $2::timestamptz[]))
    ORDER BY budget_id, starts_at FOR UPDATE
"""

# A database restored from a backup may not have the period of a row any more; money spent is counted all the same.
RESTORE_PERIODS = """
    INSERT INTO strata.budget_periods (budget_id, starts_at, ends_at)
    SELECT b.id, t.starts_at, p.ends_at
    FROM unnest($1::text[]::uuid[], $2::timestamptz[]) t(budget_id, starts_at)
    JOIN strata.budgets b ON b.id = t.budget_id
    CROSS JOIN LATERAL strata.period_at(b.window_seconds, b.calendar, t.starts_at) p
    ORDER BY b.id, t.starts_at
    ON CONFLICT DO NOTHING
"""

SHIP = """
    WITH inserted AS (
        INSERT INTO strata.usage (
            request_id, attempt, started_at, worker_id, public_id, key_id, key_name, user_id, team_id, endpoint, model,
            deployment, provider, stream, status, outcome, source, input_tokens, cache_read_tokens,
            cache_write_5m_tokens, cache_write_1h_tokens, audio_input_tokens, output_tokens, reasoning_tokens,
            audio_output_tokens, cost_nano_usd, price_state, price_source, usage_raw, usage_suspect, duration_ms,
            first_token_ms, budget_ids, budget_starts, image_input_tokens, image_output_tokens, searches, service_tier,
            provider_key_id)
        SELECT
            encode(decode(r->>0, 'base64'), 'hex')::uuid, (r->>1)::smallint,
            timestamptz 'epoch' + (r->>2)::bigint * interval '1 millisecond',
            encode(decode(r->>3, 'base64'), 'hex')::uuid, r->>4, (r->>5)::uuid, r->>6, (r->>7)::uuid,
            (r->>8)::uuid, r->>9, r->>10, r->>11, r->>12, (r->>13)::boolean, (r->>14)::smallint, r->>15, r->>16,
            (r->>17)::bigint, (r->>18)::bigint, (r->>19)::bigint, (r->>20)::bigint, (r->>21)::bigint,
            (r->>22)::bigint, (r->>23)::bigint, (r->>24)::bigint, (r->>25)::bigint, r->>26, r->>27, r->>28,
            (r->>29)::boolean, (r->>30)::bigint, (r->>31)::bigint,
            ARRAY(SELECT jsonb_array_elements_text(r->32))::uuid[],
            ARRAY(SELECT timestamptz 'epoch' + t::bigint * interval '1 millisecond'
                  FROM jsonb_array_elements_text(r->33) t),
            (r->>34)::bigint, (r->>35)::bigint, (r->>36)::bigint, r->>37, (r->>38)::uuid
        FROM jsonb_array_elements($1::jsonb) AS r
        ON CONFLICT DO NOTHING
        RETURNING *
    ), spent AS (
        SELECT b.budget_id, b.starts_at, i.worker_id, sum(i.cost_nano_usd)::bigint AS cost
        FROM inserted i CROSS JOIN LATERAL unnest(i.budget_ids, i.budget_starts) b(budget_id, starts_at)
        GROUP BY 1, 2, 3
    ), lease AS (
        UPDATE strata.leases l SET granted_nano_usd = l.granted_nano_usd - s.cost
        FROM spent s
        WHERE l.budget_id = s.budget_id AND l.starts_at = s.starts_at AND l.worker_id = s.worker_id
        RETURNING l.budget_id, l.starts_at, s.cost
    ), moved AS (
        SELECT budget_id, starts_at, sum(settled)::bigint AS settled, sum(leased)::bigint AS leased
        FROM (
            SELECT budget_id, starts_at, cost AS settled, 0 AS leased FROM spent
            UNION ALL
            SELECT budget_id, starts_at, 0, cost FROM lease
        ) both_sides
        GROUP BY 1, 2
    ), period AS (
        UPDATE strata.budget_periods p
        SET settled_nano_usd = p.settled_nano_usd + m.settled, leased_nano_usd = p.leased_nano_usd - m.leased
        FROM moved m WHERE p.budget_id = m.budget_id AND p.starts_at = m.starts_at
    ), sums AS (
        SELECT
            date_trunc('hour', started_at, 'UTC') AS bucket,
            coalesce(key_id, '00000000-0000-0000-0000-000000000000') AS key_id,
            coalesce(user_id, '00000000-0000-0000-0000-000000000000') AS user_id,
            coalesce(team_id, '00000000-0000-0000-0000-000000000000') AS team_id, model, deployment, provider,
            count(*) FILTER (WHERE attempt > 0) AS attempts,
            count(*) FILTER (WHERE attempt > 0 AND outcome <> 'ok') AS errors,
            count(*) FILTER (WHERE source IN ('counted', 'ambiguous', 'orphan')) AS estimated,
            count(*) FILTER (WHERE price_state = 'unknown') AS unpriced,
            sum(input_tokens + cache_read_tokens + cache_write_5m_tokens + cache_write_1h_tokens + audio_input_tokens
                + image_input_tokens) AS input_tokens,
            sum(cache_read_tokens) AS cached_tokens,
            sum(cache_write_5m_tokens + cache_write_1h_tokens) AS cache_write_tokens,
            sum(output_tokens + reasoning_tokens + audio_output_tokens + image_output_tokens) AS output_tokens,
            sum(reasoning_tokens) AS reasoning_tokens, sum(cost_nano_usd) AS cost_nano_usd
        FROM inserted GROUP BY 1, 2, 3, 4, 5, 6, 7
    ), hourly AS (
        INSERT INTO strata.usage_hourly AS h (
            bucket, key_id, user_id, team_id, model, deployment, provider, attempts, errors, estimated, unpriced,
            input_tokens, cached_tokens, cache_write_tokens, output_tokens, reasoning_tokens, cost_nano_usd)
        SELECT * FROM sums ORDER BY 1, 2, 3, 4, 5, 6, 7
        ON CONFLICT (bucket, key_id, user_id, team_id, model, deployment, provider) DO UPDATE SET
            attempts = h.attempts + excluded.attempts, errors = h.errors + excluded.errors,
            estimated = h.estimated + excluded.estimated, unpriced = h.unpriced + excluded.unpriced,
            input_tokens = h.input_tokens + excluded.input_tokens,
            cached_tokens = h.cached_tokens + excluded.cached_tokens,
            cache_write_tokens = h.cache_write_tokens + excluded.cache_write_tokens,
            output_tokens = h.output_tokens + excluded.output_tokens,
            reasoning_tokens = h.reasoning_tokens + excluded.reasoning_tokens,
            cost_nano_usd = h.cost_nano_usd + excluded.cost_nano_usd
    ), daily AS (
        INSERT INTO strata.usage_daily AS d (
            bucket, key_id, user_id, team_id, model, deployment, provider, attempts, errors, estimated, unpriced,
            input_tokens, cached_tokens, cache_write_tokens, output_tokens, reasoning_tokens, cost_nano_usd)
        SELECT date_trunc('day', bucket, 'UTC'), key_id, user_id, team_id, model, deployment, provider, sum(attempts),
            sum(errors), sum(estimated), sum(unpriced), sum(input_tokens), sum(cached_tokens), sum(cache_write_tokens),
            sum(output_tokens), sum(reasoning_tokens), sum(cost_nano_usd)
        FROM sums GROUP BY 1, 2, 3, 4, 5, 6, 7 ORDER BY 1, 2, 3, 4, 5, 6, 7
        ON CONFLICT (bucket, key_id, user_id, team_id, model, deployment, provider) DO UPDATE SET
            attempts = d.attempts + excluded.attempts, errors = d.errors + excluded.errors,
            estimated = d.estimated + excluded.estimated, unpriced = d.unpriced + excluded.unpriced,
            input_tokens = d.input_tokens + excluded.input_tokens,
            cached_tokens = d.cached_tokens + excluded.cached_tokens,
            cache_write_tokens = d.cache_write_tokens + excluded.cache_write_tokens,
            output_tokens = d.output_tokens + excluded.output_tokens,
            reasoning_tokens = d.reasoning_tokens + excluded.reasoning_tokens,
            cost_nano_usd = d.cost_nano_usd + excluded.cost_nano_usd
    )
    SELECT count(*) FROM inserted
"""


async def ship(db: Database, rows: Sequence[LedgerRow]) -> int:
    """
    Writes the rows that are not there yet, in one transaction, and returns how many they were. Best with 100 to 200
    rows. Unavailable: ship the same rows again. RowsRefused: one of them is bad.
    """
    return await ship_encoded(db, *_encoded(rows))


async def ship_encoded(db: Database, rows: Sequence[bytes], charges: Iterable[Charge]) -> int:
    """`ship`, for rows that are encoded, and what they are charged to."""
    if not rows:
        return 0
    try:
        async with db.transaction(timeout_seconds=SHIP_SECONDS, op="ship") as connection:
            return await _write(connection, rows, charges)
    except (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, ValueError, OverflowError) as error:
        raise RowsRefused(f"The ledger refuses a batch of {len(rows)} rows: {type(error).__name__}.") from error


async def write_rows(connection: Connection, rows: Sequence[LedgerRow]) -> int:
    """`ship`, inside a transaction of the caller's."""
    return await _write(connection, *_encoded(rows))


async def _write(connection: Connection, rows: Sequence[bytes], charges: Iterable[Charge]) -> int:
    # One JSON text for the whole batch, its rows as arrays, costs this process a tenth of what 38 typed arrays do, and
    # the casts of the statement refuse whatever is not what its column holds. Sorted, so that two workers with the same
    # rows take their locks in the same order.
    batch = b"[%b]" % b",".join(sorted(rows))
    if b"\\u0000" in batch:
        batch = b"[%b]" % b",".join(sorted(encode_row(storable(decode_row(row))) for row in rows))
    # Most rows of a batch name the same periods: only what differs is taken apart.
    periods = sorted({pair for ids, starts in charges for pair in zip(ids, starts, strict=True)})
    if periods:
        ids = [budget_id for budget_id, _ in periods]
        starts = [_moment(starts_ms) for _, starts_ms in periods]
        if len(await connection.fetch(LOCK_PERIODS, ids, starts)) < len(periods):
            await connection.execute(RESTORE_PERIODS, ids, starts)
            await connection.fetch(LOCK_PERIODS, ids, starts)
    return int(await connection.fetchval(SHIP, batch.decode()))


MAKE_PARTITIONS = "SELECT strata.make_partitions($1)"


async def make_partitions(db: Database, months: int = 3) -> None:
    """Partitions of this month and the next `months`. Without them nothing is lost: a default one takes the rows."""
    await db.execute(MAKE_PARTITIONS, months, timeout_seconds=SHIP_SECONDS)


def _encoded(rows: Sequence[LedgerRow]) -> tuple[list[bytes], set[Charge]]:
    try:
        encoded = [encode_row(row) for row in rows]
    except UnicodeEncodeError:
        encoded = [encode_row(storable(row)) for row in rows]
    return encoded, {(row.budget_ids, row.budget_starts_ms) for row in rows}


def storable(row: LedgerRow) -> LedgerRow:
    """Postgres stores neither NUL nor lone surrogates, and one such character must not hold up the bill."""
    cleaned = {
        name: value.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()
        for name, value in msgspec.structs.asdict(row).items()
        if type(value) is str
    }
    return msgspec.structs.replace(row, **cleaned)


def _moment(milliseconds: int) -> datetime:
    return EPOCH + timedelta(milliseconds=milliseconds)
