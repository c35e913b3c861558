-- The schema of the whole mission. Owned by the role that migrates; served by strata_app, which owns nothing and may
-- not bypass row-level security. Every name is schema-qualified, and search_path is never relied upon.
-- Money is bigint nano-dollars; views give people numeric dollars.

CREATE SCHEMA strata;

DO $$
BEGIN
    BEGIN
        -- NOSUPERUSER and NOBYPASSRLS are the default, and only a superuser may say them aloud.
        CREATE ROLE strata_app NOLOGIN;
    EXCEPTION WHEN duplicate_object OR unique_violation THEN
        NULL;                                           -- of another database of this server, made at this moment even
    END;
    -- A superuser needs no grant. Anybody else becomes strata_app by membership, which may be there already.
    IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        BEGIN
            EXECUTE format('GRANT strata_app TO %I', current_user);
        EXCEPTION WHEN insufficient_privilege THEN
            IF NOT pg_has_role(current_user, 'strata_app', 'MEMBER') THEN
                RAISE;
            END IF;
        END;
    END IF;
END $$;

GRANT USAGE ON SCHEMA strata TO strata_app;


-- People ------------------------------------------------------------------------------------------------------------

CREATE TABLE strata.teams (
    id          uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name        text NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 64),
    created_at  timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE strata.users (
    id              uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    email           text CHECK (length(email) <= 320),
    name            text NOT NULL DEFAULT '',
    role            text NOT NULL DEFAULT 'member' CHECK (role IN ('admin', 'member', 'viewer')),
    team_id         uuid REFERENCES strata.teams (id),
    password_hash   text,                               -- Argon2id, PHC form; null for people of another issuer
    issuer          text NOT NULL DEFAULT 'strata',
    subject         text,                               -- the issuer's name for this person
    token_version   integer NOT NULL DEFAULT 0,         -- raised to log out everywhere
    disabled_at     timestamptz,
    created_at      timestamptz NOT NULL DEFAULT now(),
    UNIQUE (issuer, subject)
);
CREATE UNIQUE INDEX users_email ON strata.users (lower(email));


-- Provider keys: sealed by a key of their own (the DEK), which the keyring's key (the KEK) seals --------------------------

CREATE TABLE strata.provider_keys (
    id                uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    scope             text NOT NULL CHECK (scope IN ('user', 'team', 'global')),
    user_id           uuid REFERENCES strata.users (id),
    team_id           uuid REFERENCES strata.teams (id),
    provider          text NOT NULL,
    name              text NOT NULL CHECK (length(name) BETWEEN 1 AND 64),
    host              text NOT NULL,                    -- part of the authenticated data: a key opens for this host only
    sealed_key        bytea NOT NULL,
    sealed_dek        bytea NOT NULL,
    kek_id            text NOT NULL,
    last_four         text NOT NULL CHECK (length(last_four) <= 4),
    status            text NOT NULL DEFAULT 'not checked',
    last_validated_at timestamptz,
    created_at        timestamptz NOT NULL DEFAULT now(),
    CHECK ((scope = 'user') = (user_id IS NOT NULL)),
    CHECK ((scope = 'team') = (team_id IS NOT NULL))
);


-- Virtual keys ------------------------------------------------------------------------------------------------------

CREATE SEQUENCE strata.key_version;

CREATE TABLE strata.keys (
    id            uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name          text NOT NULL CHECK (length(name) BETWEEN 1 AND 64),
    digest        bytea NOT NULL UNIQUE CHECK (length(digest) = 32),     -- HMAC-SHA-256 under the pepper
    pepper_id     text NOT NULL,
    display       text NOT NULL,
    user_id       uuid REFERENCES strata.users (id),
    team_id       uuid REFERENCES strata.teams (id),
    models        text[] NOT NULL DEFAULT '{*}',
    rpm           bigint CHECK (rpm >= 0),
    tpm           bigint CHECK (tpm >= 0),
    max_parallel  bigint CHECK (max_parallel >= 0),
    tags          text[] NOT NULL DEFAULT '{}',
    metadata      jsonb NOT NULL DEFAULT '{}',
    created_at    timestamptz NOT NULL DEFAULT now(),
    expires_at    timestamptz,
    revoked_at    timestamptz,
    last_used_at  timestamptz,
    version       bigint NOT NULL DEFAULT nextval('strata.key_version')  -- rises with every change: what workers poll
);
CREATE UNIQUE INDEX keys_active_name ON strata.keys (name) WHERE revoked_at IS NULL;
CREATE INDEX keys_version ON strata.keys (version);

CREATE FUNCTION strata.key_changed() RETURNS trigger LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    -- last_used_at alone is no change that anybody must learn of
    IF TG_OP = 'INSERT' OR (to_jsonb(NEW) - 'last_used_at') IS DISTINCT FROM (to_jsonb(OLD) - 'last_used_at') THEN
        -- Until the commit, so that versions become visible in their order: whoever polls "after 7" must not miss a 6.
        PERFORM pg_advisory_xact_lock(hashtextextended('strata.key_version', 0));
        NEW.version := nextval('strata.key_version');
        PERFORM pg_notify('strata_keys', NEW.id::text);
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER key_changed BEFORE INSERT OR UPDATE ON strata.keys
    FOR EACH ROW EXECUTE FUNCTION strata.key_changed();


-- Budgets: a limit, its periods, and what each worker has leased of a period ---------------------------------------------

CREATE TABLE strata.budgets (
    id              uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    scope           text NOT NULL CHECK (scope IN ('key', 'user', 'team', 'provider', 'global')),
    subject         text NOT NULL DEFAULT '',           -- the id of the key, user or team; the provider's name; ''
    limit_nano_usd  bigint NOT NULL CHECK (limit_nano_usd >= 0),
    window_seconds  bigint CHECK (window_seconds > 0),  -- fixed windows counted from the epoch, UTC; null: see calendar
    calendar        text CHECK (calendar IN ('day', 'week', 'month')),
    source          text NOT NULL DEFAULT 'database' CHECK (source IN ('database', 'config')),
    created_at      timestamptz NOT NULL DEFAULT now(),
    ended_at        timestamptz,
    CHECK (window_seconds IS NULL OR calendar IS NULL)  -- both null: one period for ever
);
CREATE UNIQUE INDEX budgets_subject ON strata.budgets
    (scope, subject, coalesce(window_seconds, 0), coalesce(calendar, '')) WHERE ended_at IS NULL;

CREATE TABLE strata.budget_periods (
    budget_id         uuid NOT NULL REFERENCES strata.budgets (id),
    starts_at         timestamptz NOT NULL,
    ends_at           timestamptz,
    settled_nano_usd  bigint NOT NULL DEFAULT 0 CHECK (settled_nano_usd >= 0),
    leased_nano_usd   bigint NOT NULL DEFAULT 0,        -- the sum of its leases' granted
    PRIMARY KEY (budget_id, starts_at)
);

-- The period of a window at a moment, in UTC. Weeks begin on Monday.
CREATE FUNCTION strata.period_at(window_seconds bigint, calendar text, moment timestamptz)
    RETURNS TABLE (starts_at timestamptz, ends_at timestamptz)
LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT first, CASE
            WHEN window_seconds IS NOT NULL THEN first + make_interval(secs => window_seconds)
            WHEN calendar IS NOT NULL
                THEN (first AT TIME ZONE 'UTC' + ('1 ' || calendar)::interval) AT TIME ZONE 'UTC'
        END
    FROM (SELECT CASE
            WHEN window_seconds IS NOT NULL
                THEN to_timestamp(floor(extract(epoch FROM moment) / window_seconds) * window_seconds)
            WHEN calendar IS NOT NULL THEN date_trunc(calendar, moment, 'UTC')
            ELSE timestamptz 'epoch'
        END AS first) AS start
$$;

-- A lease is never freed by the clock: only by its worker, or by whoever adopts that worker's journal.
CREATE TABLE strata.leases (
    budget_id         uuid NOT NULL,
    starts_at         timestamptz NOT NULL,
    worker_id         uuid NOT NULL,
    granted_nano_usd  bigint NOT NULL,                  -- below zero after an answer that cost more than its hold
    PRIMARY KEY (budget_id, starts_at, worker_id),
    FOREIGN KEY (budget_id, starts_at) REFERENCES strata.budget_periods (budget_id, starts_at)
);
CREATE INDEX leases_worker ON strata.leases (worker_id);


-- A key with the budgets that bind it: its own, its user's, its team's, everybody's.
CREATE VIEW strata.bound_keys WITH (security_invoker = true) AS
SELECT k.*, (
        SELECT coalesce(json_agg(json_build_object(
            'id', b.id, 'scope', b.scope, 'subject', b.subject, 'limit_nano_usd', b.limit_nano_usd,
            'window_seconds', b.window_seconds, 'calendar', b.calendar) ORDER BY b.id), '[]')::text
        FROM strata.budgets b
        WHERE b.ended_at IS NULL AND (b.scope, b.subject) IN (
            ('key', k.id::text), ('user', k.user_id::text), ('team', k.team_id::text), ('global', ''))
    ) AS budgets
FROM strata.keys k;


-- Usage: the ledger. One row an attempt, written once, never changed ----------------------------------------------------

CREATE TABLE strata.usage (
    request_id          uuid NOT NULL,                  -- UUIDv7, ours
    attempt             smallint NOT NULL,              -- 1, 2, …; corrections count down from -1
    started_at          timestamptz NOT NULL,           -- the request's start, as in its UUID: the same on every shipping
    worker_id           uuid NOT NULL,
    public_id           text NOT NULL,                  -- x-request-id, as the client saw it
    key_id              uuid,
    key_name            text NOT NULL DEFAULT '',
    user_id             uuid,
    team_id             uuid,
    endpoint            text NOT NULL,
    model               text NOT NULL,
    deployment          text NOT NULL,
    provider            text NOT NULL,
    stream              boolean NOT NULL,
    status              smallint NOT NULL,              -- the provider's; 0: none came
    outcome             text NOT NULL,                  -- ok, or an error_type
    source              text NOT NULL CHECK (source IN
                            ('provider', 'drained', 'counted', 'ambiguous', 'orphan', 'none', 'adjustment')),
    input_tokens        bigint NOT NULL DEFAULT 0,      -- disjoint buckets: their sum is prompt + completion
    cache_read_tokens   bigint NOT NULL DEFAULT 0,
    cache_write_5m_tokens bigint NOT NULL DEFAULT 0,
    cache_write_1h_tokens bigint NOT NULL DEFAULT 0,
    audio_input_tokens  bigint NOT NULL DEFAULT 0,
    output_tokens       bigint NOT NULL DEFAULT 0,
    reasoning_tokens    bigint NOT NULL DEFAULT 0,
    audio_output_tokens bigint NOT NULL DEFAULT 0,
    cost_nano_usd       bigint NOT NULL CHECK (source = 'adjustment' OR cost_nano_usd >= 0),
    price_state         text NOT NULL CHECK (price_state IN ('priced', 'free', 'unknown')),
    price_source        text NOT NULL DEFAULT '',       -- which table, of which date
    usage_raw           text NOT NULL DEFAULT '',       -- the provider's own words
    usage_suspect       boolean NOT NULL DEFAULT false,
    duration_ms         bigint NOT NULL DEFAULT 0,
    first_token_ms      bigint,
    budget_ids          uuid[] NOT NULL DEFAULT '{}',   -- the budgets this row counts against …
    budget_starts       timestamptz[] NOT NULL DEFAULT '{}', -- … and the period of each
    shipped_at          timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (request_id, attempt, started_at)
) PARTITION BY RANGE (started_at);
CREATE INDEX usage_key ON strata.usage (key_id, started_at);
CREATE INDEX usage_started ON strata.usage (started_at);
CREATE TABLE strata.usage_default PARTITION OF strata.usage DEFAULT;   -- a missing month loses nothing

CREATE TABLE strata.usage_hourly (
    bucket              timestamptz NOT NULL,
    key_id              uuid NOT NULL,                  -- all zero: none
    user_id             uuid NOT NULL,
    team_id             uuid NOT NULL,
    model               text NOT NULL,
    deployment          text NOT NULL,
    provider            text NOT NULL,
    attempts            bigint NOT NULL DEFAULT 0,      -- corrections are none
    errors              bigint NOT NULL DEFAULT 0,
    estimated           bigint NOT NULL DEFAULT 0,      -- rows whose source is counted, ambiguous or orphan
    unpriced            bigint NOT NULL DEFAULT 0,
    input_tokens        bigint NOT NULL DEFAULT 0,      -- here all prompt tokens; the next two are part of them
    cached_tokens       bigint NOT NULL DEFAULT 0,
    cache_write_tokens  bigint NOT NULL DEFAULT 0,
    output_tokens       bigint NOT NULL DEFAULT 0,      -- all completion tokens; the next is part of them
    reasoning_tokens    bigint NOT NULL DEFAULT 0,
    cost_nano_usd       bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (bucket, key_id, user_id, team_id, model, deployment, provider)
);


-- Requests: what the log screen shows; kept for a while, then dropped by the month -----------------------------------------

CREATE TABLE strata.requests (
    id             uuid NOT NULL,
    started_at     timestamptz NOT NULL,
    public_id      text NOT NULL,
    key_id         uuid,
    user_id        uuid,
    team_id        uuid,
    endpoint       text NOT NULL,
    model          text NOT NULL,
    deployment     text NOT NULL DEFAULT '',
    stream         boolean NOT NULL,
    status         smallint NOT NULL,
    error_type     text NOT NULL DEFAULT '',
    attempts       smallint NOT NULL,
    duration_ms    bigint NOT NULL,
    first_token_ms bigint,
    cost_nano_usd  bigint,
    notices        jsonb NOT NULL DEFAULT '[]',
    parent_id      uuid,                                -- the request that this one replays
    PRIMARY KEY (id, started_at)
) PARTITION BY RANGE (started_at);
CREATE INDEX requests_started ON strata.requests (started_at);
CREATE TABLE strata.requests_default PARTITION OF strata.requests DEFAULT;


-- Audit: every change, each row holding the hash of the one before --------------------------------------------------------

CREATE TABLE strata.audit (
    seq         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at          timestamptz NOT NULL DEFAULT now(),
    actor       text NOT NULL,
    action      text NOT NULL,
    object      text NOT NULL,
    before      jsonb,
    after       jsonb,
    request_id  text NOT NULL DEFAULT '',
    prev_hash   bytea NOT NULL,
    hash        bytea NOT NULL
);


-- What never changes stays as it is, whoever asks -------------------------------------------------------------------------

CREATE FUNCTION strata.refuse_change() RETURNS trigger LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: corrections are new rows', TG_TABLE_NAME;
END $$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON strata.usage FOR EACH ROW EXECUTE FUNCTION strata.refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON strata.audit FOR EACH ROW EXECUTE FUNCTION strata.refuse_change();

-- Months to come, as far ahead as asked. Runs with the owner's rights, since strata_app may not create tables.
CREATE FUNCTION strata.make_partitions(months integer) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE
    first_day date;
    parent text;
    child text;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('strata.make_partitions', 0));
    FOR i IN 0 .. least(months, 24) LOOP
        first_day := (date_trunc('month', now() AT TIME ZONE 'UTC') + make_interval(months => i))::date;
        FOREACH parent IN ARRAY ARRAY['usage', 'requests'] LOOP
            child := parent || '_' || to_char(first_day, 'YYYY_MM');
            IF to_regclass('strata.' || child) IS NULL THEN
                BEGIN
                    EXECUTE format(
                        'CREATE TABLE strata.%I PARTITION OF strata.%I FOR VALUES FROM (%L) TO (%L)', child, parent,
                        first_day::text || ' 00:00:00+00',
                        (first_day + interval '1 month')::date::text || ' 00:00:00+00');
                EXCEPTION WHEN check_violation THEN
                    NULL;                               -- rows of this month are in the default partition, and stay
                END;
            END IF;
        END LOOP;
    END LOOP;
END $$;
SELECT strata.make_partitions(3);

GRANT SELECT, INSERT, UPDATE ON strata.teams, strata.users, strata.keys, strata.budgets, strata.budget_periods,
    strata.usage_hourly, strata.requests TO strata_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON strata.provider_keys, strata.leases TO strata_app;
GRANT SELECT ON strata.bound_keys TO strata_app;
GRANT SELECT, INSERT ON strata.usage, strata.audit TO strata_app;
GRANT USAGE ON SEQUENCE strata.key_version TO strata_app;
REVOKE ALL ON FUNCTION strata.make_partitions(integer) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION strata.make_partitions(integer) TO strata_app;
