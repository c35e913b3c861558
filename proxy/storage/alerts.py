"""
The SQL of alerts. Each is inserted once for its rule, subject, period and threshold; whoever inserts it also enters
what is to be delivered, and any replica may deliver that: a claim moves `next_at` on, so one that dies delays it only.
"""

from __future__ import annotations

from collections.abc import Sequence

import asyncpg
import msgspec

from proxy.storage.postgres import Database

MAX_TRIES = 8
"""Half a minute, then twice as long each time: the last one after about an hour."""
READ_SECONDS = 5.0

BUDGETS_NOW = """
    SELECT b.id::text AS budget_id, b.scope,
        coalesce(k.name, nullif(u.name, ''), u.email, t.name, b.subject) AS name,
        b.limit_nano_usd, p.settled_nano_usd AS spent_nano_usd, w.starts_at, w.ends_at
    FROM strata.budgets b
    CROSS JOIN LATERAL strata.period_at(b.window_seconds, b.calendar, now()) w
    JOIN strata.budget_periods p ON p.budget_id = b.id AND p.starts_at = w.starts_at
    LEFT JOIN strata.keys k ON b.scope = 'key' AND k.id::text = b.subject
    LEFT JOIN strata.users u ON b.scope = 'user' AND u.id::text = b.subject
    LEFT JOIN strata.teams t ON b.scope = 'team' AND t.id::text = b.subject
    WHERE b.ended_at IS NULL AND b.limit_nano_usd > 0 AND p.settled_nano_usd > 0
"""

SPEND_TODAY = """
    WITH today AS (
        SELECT * FROM strata.usage_hourly WHERE bucket >= date_trunc('day', now(), 'UTC')
    ), sums AS (
        SELECT 'all' AS per, '' AS subject, sum(cost_nano_usd)::bigint AS amount FROM today
        UNION ALL SELECT 'provider', provider, sum(cost_nano_usd)::bigint FROM today GROUP BY provider
        UNION ALL SELECT 'model', model, sum(cost_nano_usd)::bigint FROM today GROUP BY model
        UNION ALL SELECT 'key', key_id::text, sum(cost_nano_usd)::bigint FROM today GROUP BY key_id
        UNION ALL SELECT 'user', user_id::text, sum(cost_nano_usd)::bigint FROM today GROUP BY user_id
        UNION ALL SELECT 'team', team_id::text, sum(cost_nano_usd)::bigint FROM today GROUP BY team_id
    )
    SELECT s.per, s.subject, coalesce(k.name, nullif(u.name, ''), u.email, t.name, s.subject) AS name, s.amount
    FROM sums s
    LEFT JOIN strata.keys k ON s.per = 'key' AND k.id::text = s.subject
    LEFT JOIN strata.users u ON s.per = 'user' AND u.id::text = s.subject
    LEFT JOIN strata.teams t ON s.per = 'team' AND t.id::text = s.subject
    WHERE s.amount > 0 AND s.subject <> '00000000-0000-0000-0000-000000000000'
"""

UNPRICED_TODAY = """
    SELECT deployment AS subject, deployment AS name, sum(unpriced)::bigint AS amount
    FROM strata.usage_hourly WHERE bucket >= date_trunc('day', now(), 'UTC')
    GROUP BY deployment HAVING sum(unpriced) > 0
"""

RAISE = """
    WITH told AS (
        SELECT a FROM jsonb_array_elements($1::jsonb) a
    ), new AS (
        INSERT INTO strata.alerts (rule, subject, period, threshold, title, detail)
        SELECT a->>'rule', a->>'subject', a->>'period', (a->>'threshold')::bigint, a->>'title', a->'detail' FROM told
        ON CONFLICT DO NOTHING
        RETURNING id, rule, subject, period, threshold
    ), due AS (
        INSERT INTO strata.alert_deliveries (alert_id, channel)
        SELECT n.id, c FROM new n
        JOIN told ON (a->>'rule', a->>'subject', a->>'period', (a->>'threshold')::bigint)
            = (n.rule, n.subject, n.period, n.threshold)
        CROSS JOIN LATERAL jsonb_array_elements_text(a->'channels') c
    )
    SELECT count(*) FROM new
"""

CLAIM = """
    WITH claimed AS (
        UPDATE strata.alert_deliveries d
        SET tries = d.tries + 1, next_at = now() + interval '30 seconds' * power(2, d.tries)
        WHERE (d.alert_id, d.channel) IN (
            SELECT alert_id, channel FROM strata.alert_deliveries
            WHERE sent_at IS NULL AND next_at <= now() AND tries < $2 AND channel = ANY($1)
            ORDER BY next_at LIMIT 20 FOR UPDATE SKIP LOCKED)
        RETURNING d.alert_id, d.channel, d.tries
    )
    SELECT c.channel, c.tries, a.id::text, a.rule, a.subject, a.period, a.threshold, a.title, a.detail::text, a.at
    FROM claimed c JOIN strata.alerts a ON a.id = c.alert_id ORDER BY a.at
"""

SENT = "UPDATE strata.alert_deliveries SET sent_at = now(), error = '' WHERE alert_id = $1::text::uuid AND channel = $2"
NOT_SENT = "UPDATE strata.alert_deliveries SET error = $3 WHERE alert_id = $1::text::uuid AND channel = $2"

LAST = """
    SELECT a.id::text, a.rule, a.subject, a.period, a.threshold, a.title, a.at,
        coalesce(json_agg(json_build_object('channel', d.channel, 'tries', d.tries, 'sent_at', d.sent_at,
            'error', d.error) ORDER BY d.channel) FILTER (WHERE d.channel IS NOT NULL), '[]')::text AS deliveries
    FROM (SELECT * FROM strata.alerts ORDER BY at DESC LIMIT $1) a
    LEFT JOIN strata.alert_deliveries d ON d.alert_id = a.id
    GROUP BY a.id, a.rule, a.subject, a.period, a.threshold, a.title, a.at ORDER BY a.at DESC
"""

FORGET = "DELETE FROM strata.alerts WHERE at < now() - interval '400 days'"


class NewAlert(msgspec.Struct, frozen=True):
    rule: str
    subject: str
    period: str
    threshold: int
    title: str
    detail: dict[str, object]
    channels: tuple[str, ...]


async def budgets_now(db: Database) -> list[asyncpg.Record]:
    return await db.fetch(BUDGETS_NOW, timeout_seconds=READ_SECONDS)


async def spend_today(db: Database) -> list[asyncpg.Record]:
    return await db.fetch(SPEND_TODAY, timeout_seconds=READ_SECONDS)


async def unpriced_today(db: Database) -> list[asyncpg.Record]:
    return await db.fetch(UNPRICED_TODAY, timeout_seconds=READ_SECONDS)


async def raise_alerts(db: Database, alerts: Sequence[NewAlert]) -> int:
    """Enters those that nobody has entered yet; returns how many they were."""
    row = await db.fetchrow(RAISE, msgspec.json.encode(alerts).decode(), timeout_seconds=READ_SECONDS)
    return int(row["count"]) if row is not None else 0


async def claim_deliveries(db: Database, channels: Sequence[str]) -> list[asyncpg.Record]:
    return await db.fetch(CLAIM, list(channels), MAX_TRIES, timeout_seconds=READ_SECONDS)


async def note_delivery(db: Database, alert_id: str, channel: str, error: str) -> None:
    """An empty error: it was sent."""
    if error:
        await db.execute(NOT_SENT, alert_id, channel, error[:300])
    else:
        await db.execute(SENT, alert_id, channel)


async def last_alerts(db: Database, count: int = 20) -> list[asyncpg.Record]:
    return await db.fetch(LAST, count, timeout_seconds=READ_SECONDS)


async def forget_alerts(db: Database) -> None:
    await db.execute(FORGET)
