-- What dashboards may read: five views in a schema of their own, and a role that can reach nothing else.
--
-- The views run with their owner's rights and show every tenant, as the metrics do: whoever may log in as strata_grafana
-- sees names, e-mail addresses and money, but no prompt, no digest, nothing sealed, and no error's text. The role has no
-- way into the schema strata. It cannot log in until somebody gives it a password: docs/deploy.md.

CREATE SCHEMA grafana;

CREATE VIEW grafana.usage AS
SELECT u.started_at, u.public_id AS request_id, u.attempt, u.key_name, coalesce(p.email, '') AS user_email,
    coalesce(t.name, '') AS team, u.endpoint, u.model, u.deployment, u.provider, u.stream, u.status, u.outcome, u.source,
    u.input_tokens + u.cache_read_tokens + u.cache_write_5m_tokens + u.cache_write_1h_tokens + u.audio_input_tokens
        + u.image_input_tokens AS input_tokens,
    u.cache_read_tokens AS cached_tokens, u.cache_write_5m_tokens + u.cache_write_1h_tokens AS cache_write_tokens,
    u.output_tokens + u.reasoning_tokens + u.audio_output_tokens + u.image_output_tokens AS output_tokens,
    u.reasoning_tokens, u.cost_nano_usd / 1e9 AS cost_usd, u.price_state, u.service_tier,
    u.provider_key_id IS NOT NULL AS own_provider_key, u.duration_ms, u.first_token_ms
FROM strata.usage u
LEFT JOIN strata.users p ON p.id = u.user_id
LEFT JOIN strata.teams t ON t.id = u.team_id;

CREATE VIEW grafana.usage_hourly AS
SELECT h.bucket, coalesce(k.name, '') AS key_name, coalesce(p.email, '') AS user_email, coalesce(t.name, '') AS team,
    h.model, h.deployment, h.provider, h.attempts, h.errors, h.estimated, h.unpriced, h.input_tokens, h.cached_tokens,
    h.cache_write_tokens, h.output_tokens, h.reasoning_tokens, h.cost_nano_usd / 1e9 AS cost_usd
FROM strata.usage_hourly h
LEFT JOIN strata.keys k ON k.id = h.key_id
LEFT JOIN strata.users p ON p.id = h.user_id
LEFT JOIN strata.teams t ON t.id = h.team_id;

-- Those in force, each with its current period; nothing is spent in a period that nobody has begun.
CREATE VIEW grafana.budgets AS
SELECT b.scope, coalesce(k.name, nullif(u.name, ''), u.email, t.name, b.subject) AS name, b.source, b.window_seconds,
    b.calendar, b.limit_nano_usd / 1e9 AS limit_usd, coalesce(p.settled_nano_usd, 0) / 1e9 AS spent_usd,
    (b.limit_nano_usd - coalesce(p.settled_nano_usd, 0)) / 1e9 AS left_usd, w.starts_at, w.ends_at AS resets_at
FROM strata.budgets b
CROSS JOIN LATERAL strata.period_at(b.window_seconds, b.calendar, now()) w
LEFT JOIN strata.budget_periods p ON p.budget_id = b.id AND p.starts_at = w.starts_at
LEFT JOIN strata.keys k ON b.scope = 'key' AND k.id::text = b.subject
LEFT JOIN strata.users u ON b.scope = 'user' AND u.id::text = b.subject
LEFT JOIN strata.teams t ON b.scope = 'team' AND t.id::text = b.subject
WHERE b.ended_at IS NULL AND (b.scope <> 'key' OR k.revoked_at IS NULL);

-- An error_type of null is success. What an error said stays in the history: it may quote what somebody wrote.
CREATE VIEW grafana.requests AS
SELECT r.started_at, r.public_id AS request_id, r.key_name, coalesce(p.email, '') AS user_email,
    coalesce(t.name, '') AS team, r.endpoint, r.model, r.deployment, r.provider, r.stream, r.status,
    nullif(r.error_type, '') AS error_type, r.attempts, r.duration_ms, r.first_token_ms,
    r.cost_nano_usd / 1e9 AS cost_usd
FROM strata.requests r
LEFT JOIN strata.users p ON p.id = r.user_id
LEFT JOIN strata.teams t ON t.id = r.team_id;

CREATE VIEW grafana.keys AS
SELECT k.name, k.display, coalesce(p.email, '') AS user_email, coalesce(t.name, '') AS team, k.models, k.rpm, k.tpm,
    k.max_parallel, k.created_at, k.expires_at, k.revoked_at, k.last_used_at
FROM strata.keys k
LEFT JOIN strata.users p ON p.id = k.user_id
LEFT JOIN strata.teams t ON t.id = k.team_id;

-- Dashboards are no reason not to start: where this login may not make roles, somebody who may does it later.
DO $$
BEGIN
    BEGIN
        CREATE ROLE strata_grafana NOLOGIN;
    EXCEPTION
        WHEN duplicate_object OR unique_violation THEN NULL;
        WHEN insufficient_privilege THEN RAISE NOTICE 'the role strata_grafana is not there, and not ours to make';
    END;
    IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'strata_grafana') THEN
        GRANT USAGE ON SCHEMA grafana TO strata_grafana;
        GRANT SELECT ON ALL TABLES IN SCHEMA grafana TO strata_grafana;
        BEGIN
            EXECUTE format('ALTER ROLE strata_grafana IN DATABASE %I SET default_transaction_read_only = on',
                current_database());
            EXECUTE format('ALTER ROLE strata_grafana IN DATABASE %I SET statement_timeout = ''30s''',
                current_database());
        EXCEPTION WHEN insufficient_privilege THEN
            NULL;                                       -- made by somebody else, who may say so himself
        END;
    END IF;
END $$;
