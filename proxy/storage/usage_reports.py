"""
The SQL of usage reports: sums of the roll-ups by the hour and by the day, never of the ledger's rows.

Which hours and days make up which period is worked out before (metering/periods.py). Totals and lines come of one
statement, so that they agree. Names and tags of keys are joined as they are now; the roll-ups know ids only.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from proxy.storage.postgres import Connection

FOR_REPORTS = """
    SELECT set_config('plan_cache_mode', 'force_custom_plan', true), set_config('random_page_cost', '1.1', true),
        set_config('work_mem', '32MB', true)
"""
"""
A plan for any question would group by what nobody asked for; and the rows of an hour lie side by side, so picking hours
is cheaper than Postgres thinks.
"""

NOBODY = "00000000-0000-0000-0000-000000000000"


class Narrowed(msgspec.Struct, frozen=True, kw_only=True):
    """What is counted at all; None: not narrowed by this. Keys, users and teams by name or id."""

    model: str | None = None
    provider: str | None = None
    deployment: str | None = None
    key: str | None = None
    user: str | None = None
    team: str | None = None
    tag: str | None = None


class After(msgspec.Struct, frozen=True):
    """The place of the last line seen; `label` are the ids of its group."""

    period: int = -1
    descending: int = 0
    label: tuple[str, ...] = ()


REPORT = """
    WITH part AS (
        SELECT p.added_to, NULL::int AS taken_off, u.*
        FROM unnest($1::timestamptz[], $2::int[]) p(bucket, added_to) JOIN strata.usage_daily u USING (bucket)
        UNION ALL
        SELECT p.added_to, p.taken_off, u.*
        FROM unnest($3::timestamptz[], $4::int[], $5::int[]) p(bucket, added_to, taken_off)
        JOIN strata.usage_hourly u USING (bucket)
    ), moved AS (
        SELECT added_to, taken_off, CASE WHEN 'model' = ANY($6::text[]) THEN model END AS model,
            CASE WHEN 'provider' = ANY($6) THEN provider END AS provider,
            CASE WHEN 'deployment' = ANY($6) THEN deployment END AS deployment,
            CASE WHEN 'key' = ANY($6) OR 'tag' = ANY($6) THEN key_id END AS key_id,
            CASE WHEN 'user' = ANY($6) THEN user_id END AS user_id,
            CASE WHEN 'team' = ANY($6) THEN team_id END AS team_id,
            sum(attempts) AS attempts, sum(errors) AS errors, sum(estimated) AS estimated, sum(unpriced) AS unpriced,
            sum(input_tokens) AS input_tokens, sum(cached_tokens) AS cached_tokens,
            sum(cache_write_tokens) AS cache_write_tokens, sum(output_tokens) AS output_tokens,
            sum(reasoning_tokens) AS reasoning_tokens, sum(cost_nano_usd) AS cost_nano_usd
        FROM part
        WHERE ($7::text IS NULL OR model = $7) AND ($8::text IS NULL OR provider = $8)
            AND ($9::text IS NULL OR deployment = $9)
            AND ($10::text IS NULL OR key_id::text = $10 OR key_id IN (SELECT id FROM strata.keys WHERE name = $10))
            AND ($11::text IS NULL OR user_id::text = $11
                OR user_id IN (SELECT id FROM strata.users WHERE lower(email) = lower($11)))
            AND ($12::text IS NULL OR team_id::text = $12 OR team_id IN (SELECT id FROM strata.teams WHERE name = $12))
            AND ($13::text IS NULL OR key_id IN (SELECT id FROM strata.keys WHERE $13 = ANY(tags)))
        GROUP BY 1, 2, 3, 4, 5, 6, 7, 8
    ), sums AS (
        SELECT p.period, model, provider, deployment, key_id, user_id, team_id,
            sum(sign * attempts)::bigint AS attempts, sum(sign * errors)::bigint AS errors,
            sum(sign * estimated)::bigint AS estimated, sum(sign * unpriced)::bigint AS unpriced,
            sum(sign * input_tokens)::bigint AS input_tokens, sum(sign * cached_tokens)::bigint AS cached_tokens,
            sum(sign * cache_write_tokens)::bigint AS cache_write_tokens,
            sum(sign * output_tokens)::bigint AS output_tokens,
            sum(sign * reasoning_tokens)::bigint AS reasoning_tokens, sum(sign * cost_nano_usd)::bigint AS cost_nano_usd
        FROM moved CROSS JOIN LATERAL (VALUES (added_to, 1), (taken_off, -1)) p(period, sign)
        WHERE p.period IS NOT NULL
        GROUP BY 1, 2, 3, 4, 5, 6, 7
    ), happened AS (
        -- What a day was given and has lost again leaves a group of zeros
        SELECT * FROM sums WHERE (attempts, errors, estimated, unpriced, input_tokens, cached_tokens,
            cache_write_tokens, output_tokens, reasoning_tokens, cost_nano_usd) <> (0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    ), tagged AS (
        SELECT s.*, NULL AS tag FROM happened s WHERE 'tag' <> ALL($6)
        UNION ALL
        SELECT s.period, s.model, s.provider, s.deployment, CASE WHEN 'key' = ANY($6) THEN s.key_id END, s.user_id,
            s.team_id, sum(s.attempts)::bigint, sum(s.errors)::bigint, sum(s.estimated)::bigint,
            sum(s.unpriced)::bigint, sum(s.input_tokens)::bigint, sum(s.cached_tokens)::bigint,
            sum(s.cache_write_tokens)::bigint, sum(s.output_tokens)::bigint, sum(s.reasoning_tokens)::bigint,
            sum(s.cost_nano_usd)::bigint, t.tag
        FROM happened s LEFT JOIN strata.keys k ON k.id = s.key_id
        LEFT JOIN LATERAL (SELECT DISTINCT unnest(k.tags) AS tag) t ON true
        WHERE 'tag' = ANY($6)
        GROUP BY 1, 2, 3, 4, 5, 6, 7, t.tag
    ), placed AS (
        SELECT *, CASE WHEN $14 THEN 0 ELSE -cost_nano_usd END AS descending, ARRAY[coalesce(model, ''),
            coalesce(provider, ''), coalesce(deployment, ''), coalesce(key_id::text, ''), coalesce(user_id::text, ''),
            coalesce(team_id::text, ''), coalesce(tag, '')] AS label
        FROM tagged
    ), page AS (
        SELECT * FROM placed WHERE (period, descending, label) > ($15::int, $16::bigint, $17::text[])
        ORDER BY period, descending, label LIMIT $18
    )
    SELECT -1 AS period, NULL AS model, NULL AS provider, NULL AS deployment, NULL AS key_id, NULL AS key,
        NULL AS user_id, NULL AS "user", NULL AS team_id, NULL AS team, NULL AS tag,
        coalesce(sum(attempts), 0)::bigint AS attempts, coalesce(sum(errors), 0)::bigint AS errors,
        coalesce(sum(estimated), 0)::bigint AS estimated, coalesce(sum(unpriced), 0)::bigint AS unpriced,
        coalesce(sum(input_tokens), 0)::bigint AS input_tokens,
        coalesce(sum(cached_tokens), 0)::bigint AS cached_tokens,
        coalesce(sum(cache_write_tokens), 0)::bigint AS cache_write_tokens,
        coalesce(sum(output_tokens), 0)::bigint AS output_tokens,
        coalesce(sum(reasoning_tokens), 0)::bigint AS reasoning_tokens,
        coalesce(sum(cost_nano_usd), 0)::bigint AS cost_nano_usd, 0 AS descending, ARRAY[]::text[] AS label
    FROM happened
    UNION ALL
    SELECT p.period, p.model, p.provider, p.deployment, p.key_id::text, k.name, p.user_id::text, u.email,
        p.team_id::text, t.name, p.tag, p.attempts, p.errors, p.estimated, p.unpriced, p.input_tokens, p.cached_tokens,
        p.cache_write_tokens, p.output_tokens, p.reasoning_tokens, p.cost_nano_usd, p.descending, p.label
    FROM page p LEFT JOIN strata.keys k ON k.id = p.key_id LEFT JOIN strata.users u ON u.id = p.user_id
    LEFT JOIN strata.teams t ON t.id = p.team_id
    ORDER BY period, descending, label
"""


async def read_report(
    connection: Connection,
    *,
    days: Sequence[tuple[datetime, int]],
    hours: Sequence[tuple[datetime, int | None, int | None]],
    by: Sequence[str],
    narrowed: Narrowed,
    by_time: bool,
    after: After,
    limit: int,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """
    The sum of all, and lines after a place: in the order of time, or the dearest first. `days` come with the period
    that they are added to, `hours` also with one that they are taken off. Only what the connection's role may see.
    """
    await connection.execute(FOR_REPORTS)
    rows = await connection.fetch(
        REPORT,
        [bucket for bucket, _ in days],
        [period for _, period in days],
        [bucket for bucket, _, _ in hours],
        [added_to for _, added_to, _ in hours],
        [taken_off for _, _, taken_off in hours],
        list(by),
        *msgspec.structs.astuple(narrowed),
        by_time,
        after.period,
        after.descending,
        list(after.label),
        limit,
    )
    return dict(rows[0]), [dict(row) for row in rows[1:]]
