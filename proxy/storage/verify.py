"""
The SQL that looks for mistakes in the ledger: rows against the journal, sums against rows, costs against prices.

Read only. The sums are read in one snapshot, so that a gateway at work is no difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import msgspec

from proxy.storage.ledger import EPOCH, LedgerRow
from proxy.storage.postgres import Connection, Database

VERIFY_SECONDS = 600.0
FIND_SECONDS = 10.0
MAX_SHOWN = 20
"""Differences shown of one check; all of them are counted."""


class Difference(msgspec.Struct, frozen=True):
    """`expected` is what the other side says; `found` what stands where it is looked for. Money is nano-dollars."""

    subject: str
    what: str
    expected: str
    found: str


class Check(msgspec.Struct, frozen=True):
    """One comparison: of how many things, and the first differences. `differences` counts all of them."""

    name: str
    compared: int
    differences: int
    shown: tuple[Difference, ...]


FIND_ROWS = """
    SELECT u.request_id, u.attempt::int, u.started_at, u.worker_id, u.public_id, u.key_id::text, u.key_name,
        u.user_id::text, u.team_id::text, u.endpoint, u.model, u.deployment, u.provider, u.stream, u.status::int,
        u.outcome, u.source, u.input_tokens, u.cache_read_tokens, u.cache_write_5m_tokens, u.cache_write_1h_tokens,
        u.audio_input_tokens, u.output_tokens, u.reasoning_tokens, u.audio_output_tokens, u.cost_nano_usd,
        u.price_state, u.price_source, u.usage_raw, u.usage_suspect, u.duration_ms, u.first_token_ms,
        u.budget_ids::text[], u.budget_starts, u.image_input_tokens, u.image_output_tokens, u.searches,
        u.service_tier, u.provider_key_id::text
    FROM unnest($1::text[]::uuid[], $2::smallint[], $3::timestamptz[]) k(request_id, attempt, started_at)
    JOIN strata.usage u USING (request_id, attempt, started_at)
"""


async def find_rows(db: Database, rows: Sequence[LedgerRow]) -> dict[tuple[bytes, int], LedgerRow]:
    """What the ledger has under the ids of these rows."""
    found = await db.fetch(
        FIND_ROWS,
        [row.request_id.hex() for row in rows],
        [row.attempt for row in rows],
        [EPOCH + timedelta(milliseconds=row.started_at_ms) for row in rows],
        timeout_seconds=FIND_SECONDS,
    )
    return {(row["request_id"].bytes, row["attempt"]): _ledger_row(row) for row in found}


def _ledger_row(row: asyncpg.Record) -> LedgerRow:
    values = list(row)
    values[0], values[3] = values[0].bytes, values[3].bytes
    values[2] = _milliseconds(values[2])
    values[32] = tuple(values[32])
    values[33] = tuple(_milliseconds(moment) for moment in values[33])
    return LedgerRow(*values)


def _milliseconds(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(milliseconds=1)


SNAPSHOT = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"
NO_HURRY = "SET LOCAL statement_timeout = '10min'"

COUNTS = """
    SELECT (SELECT count(*) FROM strata.budget_periods) AS periods, (SELECT count(*) FROM strata.usage_hourly) AS hours,
        (SELECT count(*) FROM strata.usage_daily) AS days, count(*) AS rows,
        count(*) FILTER (WHERE source NOT IN ('orphan', 'adjustment') AND EXISTS (
            SELECT 1 FROM strata.price_lines l WHERE l.source = u.price_source)) AS priced,
        count(*) FILTER (WHERE source NOT IN ('orphan', 'adjustment') AND NOT EXISTS (
            SELECT 1 FROM strata.price_lines l WHERE l.source = u.price_source)) AS without_lines
    FROM strata.usage u
"""

BUDGETS_DIFFER = """
    WITH spent AS (
        SELECT b.budget_id, b.starts_at, sum(u.cost_nano_usd) AS cost
        FROM strata.usage u CROSS JOIN LATERAL unnest(u.budget_ids, u.budget_starts) b(budget_id, starts_at)
        GROUP BY 1, 2
    ), leased AS (
        SELECT budget_id, starts_at, sum(granted_nano_usd) AS granted FROM strata.leases GROUP BY 1, 2
    )
    SELECT 'budget ' || budget_id || ' from ' || to_char(starts_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI') AS subject,
        v.what, v.expected, v.found, count(*) OVER () AS total
    FROM strata.budget_periods p
    FULL JOIN spent s USING (budget_id, starts_at)
    FULL JOIN leased l USING (budget_id, starts_at)
    CROSS JOIN LATERAL (VALUES
        ('settled', coalesce(s.cost, 0), p.settled_nano_usd::numeric),
        ('leased', coalesce(l.granted, 0), p.leased_nano_usd)) v(what, expected, found)
    WHERE v.expected IS DISTINCT FROM v.found
    ORDER BY 1, 2 LIMIT 20
"""

_sums_differ = """
    WITH expected AS ({expected})
    SELECT to_char(bucket AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI') || ' key ' || key_id || ' ' || model || ' by '
            || deployment AS subject, v.what, v.expected, v.found, count(*) OVER () AS total
    FROM expected e
    FULL JOIN strata.{sums} s USING (bucket, key_id, user_id, team_id, model, deployment, provider)
    CROSS JOIN LATERAL (VALUES
        ('attempts', e.attempts::numeric, s.attempts::numeric), ('errors', e.errors, s.errors),
        ('estimated', e.estimated, s.estimated), ('unpriced', e.unpriced, s.unpriced),
        ('input_tokens', e.input_tokens, s.input_tokens), ('cached_tokens', e.cached_tokens, s.cached_tokens),
        ('cache_write_tokens', e.cache_write_tokens, s.cache_write_tokens),
        ('output_tokens', e.output_tokens, s.output_tokens),
        ('reasoning_tokens', e.reasoning_tokens, s.reasoning_tokens),
        ('cost_nano_usd', e.cost_nano_usd, s.cost_nano_usd)) v(what, expected, found)
    WHERE coalesce(v.expected, 0) <> coalesce(v.found, 0)
    ORDER BY 1, 2 LIMIT 20
""".format

HOURS_DIFFER = _sums_differ(
    sums="usage_hourly",
    expected="""
        SELECT date_trunc('hour', started_at, 'UTC') AS bucket,
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
        FROM strata.usage GROUP BY 1, 2, 3, 4, 5, 6, 7
    """,
)

DAYS_DIFFER = _sums_differ(
    sums="usage_daily",
    expected="""
        SELECT date_trunc('day', bucket, 'UTC') AS bucket, key_id, user_id, team_id, model, deployment, provider,
            sum(attempts) AS attempts, sum(errors) AS errors, sum(estimated) AS estimated, sum(unpriced) AS unpriced,
            sum(input_tokens) AS input_tokens, sum(cached_tokens) AS cached_tokens,
            sum(cache_write_tokens) AS cache_write_tokens, sum(output_tokens) AS output_tokens,
            sum(reasoning_tokens) AS reasoning_tokens, sum(cost_nano_usd) AS cost_nano_usd
        FROM strata.usage_hourly GROUP BY 1, 2, 3, 4, 5, 6, 7
    """,
)

# Above a million dollars the meter caps what it writes down: such a row is marked as suspect, and is not its price.
COSTS_DIFFER = """
    SELECT 'request ' || u.public_id || ' attempt ' || u.attempt AS subject, 'cost_nano_usd' AS what,
        c.nano_usd AS expected, u.cost_nano_usd::numeric AS found, count(*) OVER () AS total
    FROM strata.usage u
    JOIN strata.price_lines l ON l.source = u.price_source
    CROSS JOIN LATERAL (SELECT CASE WHEN u.source = 'none' THEN 0 ELSE div(500
        + u.input_tokens * coalesce((l.lines->>'input')::numeric, 0)
        + u.cache_read_tokens * coalesce((l.lines->>'cache_read')::numeric, 0)
        + u.cache_write_5m_tokens * coalesce((l.lines->>'cache_write_5m')::numeric, 0)
        + u.cache_write_1h_tokens * coalesce((l.lines->>'cache_write_1h')::numeric, 0)
        + u.audio_input_tokens * coalesce((l.lines->>'audio_input')::numeric, 0)
        + u.image_input_tokens * coalesce((l.lines->>'image_input')::numeric, 0)
        + u.output_tokens * coalesce((l.lines->>'output')::numeric, 0)
        + u.reasoning_tokens * coalesce((l.lines->>'reasoning')::numeric, 0)
        + u.audio_output_tokens * coalesce((l.lines->>'audio_output')::numeric, 0)
        + u.image_output_tokens * coalesce((l.lines->>'image_output')::numeric, 0)
        + u.searches * coalesce((l.lines->>'searches')::numeric, 0)
        + coalesce((l.lines->>'request')::numeric, 0), 1000) END AS nano_usd) c
    WHERE u.source NOT IN ('orphan', 'adjustment') AND u.cost_nano_usd <> c.nano_usd
        AND NOT (u.usage_suspect AND u.cost_nano_usd = 1000000000000000)
    ORDER BY u.started_at DESC, 1 LIMIT 20
"""


async def check_sums(db: Database) -> list[Check]:
    """Budgets, leases and hours against the rows, days against the hours, and the rows against their price lines."""
    async with db.transaction(timeout_seconds=VERIFY_SECONDS) as connection:
        await connection.execute(SNAPSHOT)
        await connection.execute(NO_HURRY)
        counts = await connection.fetchrow(COUNTS)
        assert counts is not None
        return [
            await _check(connection, "budget periods against the rows", counts["periods"], BUDGETS_DIFFER),
            await _check(connection, "hourly sums against the rows", counts["hours"], HOURS_DIFFER),
            await _check(connection, "daily sums against the hourly", counts["days"], DAYS_DIFFER),
            await _check(connection, "costs against stored price lines", counts["priced"], COSTS_DIFFER),
            Check("rows whose price line is not stored", counts["without_lines"], 0, ()),
        ]


async def _check(connection: Connection, name: str, compared: int, sql: str) -> Check:
    rows = await connection.fetch(sql)
    total = rows[0]["total"] if rows else 0
    return Check(name, compared, total, tuple(_difference(row) for row in rows[:MAX_SHOWN]))


def _difference(row: asyncpg.Record) -> Difference:
    return Difference(row["subject"], row["what"], _number(row["expected"]), _number(row["found"]))


def _number(value: Any) -> str:
    return "nothing" if value is None else f"{value:f}"


# Without what others paid: a provider's export knows one account, the operator's.
SUMS_BY_DAY = """
    SELECT (started_at AT TIME ZONE 'UTC')::date::text AS day, substr(deployment, length(provider) + 2) AS model,
        CASE WHEN $4 THEN key_name ELSE '' END AS key,
        sum(input_tokens + cache_read_tokens + cache_write_5m_tokens + cache_write_1h_tokens + audio_input_tokens
            + image_input_tokens)::bigint AS input_tokens,
        sum(cache_read_tokens)::bigint AS cached_tokens,
        sum(cache_write_5m_tokens + cache_write_1h_tokens)::bigint AS cache_write_tokens,
        sum(output_tokens + reasoning_tokens + audio_output_tokens + image_output_tokens)::bigint AS output_tokens,
        sum(reasoning_tokens)::bigint AS reasoning_tokens,
        count(*) FILTER (WHERE attempt > 0 AND source <> 'none')::bigint AS requests,
        sum(cost_nano_usd)::bigint AS cost_nano_usd,
        sum(cost_nano_usd) FILTER (WHERE source IN ('counted', 'ambiguous', 'orphan'))::bigint AS estimated_nano_usd
    FROM strata.usage
    WHERE started_at >= $1::text::date::timestamp AT TIME ZONE 'UTC'
        AND started_at < ($2::text::date + 1)::timestamp AT TIME ZONE 'UTC'
        AND provider <> '' AND provider_key_id IS NULL AND ($3::text IS NULL OR provider = $3)
    GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
"""


async def sums_by_day(
    db: Database, first_day: str, last_day: str, provider: str | None, by_key: bool
) -> list[dict[str, Any]]:
    """What the ledger says of these days (UTC, `2026-11-23`), in the columns of a provider's usage export."""
    async with db.transaction(timeout_seconds=VERIFY_SECONDS) as connection:
        await connection.execute(NO_HURRY)
        rows = await connection.fetch(SUMS_BY_DAY, first_day, last_day, provider, by_key)
    return [dict(row) for row in rows]
