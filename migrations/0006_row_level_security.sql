-- Row-level security on every table, forced upon its owner too.
--
-- strata_app does the gateway's own work (keys, budgets, the ledger, alerts) and sees every row. What somebody asks for
-- through the API runs as strata_person, for whom three settings of the transaction say who that is: strata.role,
-- strata.user_id and strata.team_id, and for a virtual key strata.key_id. Without them there is no row.
-- Each later table brings its own policies; a test walks the catalog.

DO $$
BEGIN
    BEGIN
        CREATE ROLE strata_person NOLOGIN;
    EXCEPTION WHEN duplicate_object OR unique_violation THEN
        NULL;
    END;
    -- Whoever logs in changes to strata_person within a transaction; logins of their own get there through strata_app.
    BEGIN
        GRANT strata_person TO strata_app;
    EXCEPTION WHEN insufficient_privilege THEN
        NULL;
    END;
    IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        BEGIN
            EXECUTE format('GRANT strata_person TO %I', current_user);
        EXCEPTION WHEN insufficient_privilege THEN
            IF NOT pg_has_role(current_user, 'strata_person', 'MEMBER') THEN
                RAISE;
            END IF;
        END;
    END IF;
END $$;

GRANT USAGE ON SCHEMA strata TO strata_person;

-- Stable, and called as (SELECT …) in the policies, so that a query asks once and not for every row.
CREATE FUNCTION strata.person_role() RETURNS text LANGUAGE sql STABLE SET search_path = '' AS
    $$ SELECT coalesce(current_setting('strata.role', true), '') $$;
CREATE FUNCTION strata.person_id() RETURNS uuid LANGUAGE sql STABLE SET search_path = '' AS
    $$ SELECT nullif(current_setting('strata.user_id', true), '')::uuid $$;
CREATE FUNCTION strata.person_team() RETURNS uuid LANGUAGE sql STABLE SET search_path = '' AS
    $$ SELECT nullif(current_setting('strata.team_id', true), '')::uuid $$;
CREATE FUNCTION strata.person_key() RETURNS uuid LANGUAGE sql STABLE SET search_path = '' AS
    $$ SELECT nullif(current_setting('strata.key_id', true), '')::uuid $$;

-- Turns a table's security on and lets strata_app and the owner do their work. For every migration that makes a table.
CREATE FUNCTION strata.secure(target regclass) RETURNS void LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', target);
    EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', target);
    EXECUTE format('CREATE POLICY gateway ON %s TO strata_app, CURRENT_USER USING (true) WITH CHECK (true)', target);
END $$;
REVOKE ALL ON FUNCTION strata.secure(regclass) FROM PUBLIC;

SELECT strata.secure(c.oid) FROM pg_catalog.pg_class c
WHERE c.relnamespace = 'strata'::regnamespace AND c.relkind IN ('r', 'p');


-- People see their team, its people, and what is theirs; a viewer changes nothing; an admin may do all --------------------

GRANT SELECT, INSERT, UPDATE ON strata.teams TO strata_person;
CREATE POLICY reads ON strata.teams FOR SELECT TO strata_person USING (
    (SELECT strata.person_role()) = 'admin' OR id = (SELECT strata.person_team()));
CREATE POLICY adds ON strata.teams FOR INSERT TO strata_person WITH CHECK ((SELECT strata.person_role()) = 'admin');
CREATE POLICY changes ON strata.teams FOR UPDATE TO strata_person USING ((SELECT strata.person_role()) = 'admin');

GRANT SELECT (id, email, name, role, team_id, issuer, subject, disabled_at, created_at), INSERT,
    UPDATE (name, role, team_id, token_version, disabled_at) ON strata.users TO strata_person;
CREATE POLICY reads ON strata.users FOR SELECT TO strata_person USING (
    (SELECT strata.person_role()) = 'admin' OR id = (SELECT strata.person_id())
    OR (SELECT strata.person_role()) IN ('member', 'viewer') AND team_id = (SELECT strata.person_team()));
CREATE POLICY adds ON strata.users FOR INSERT TO strata_person WITH CHECK ((SELECT strata.person_role()) = 'admin');
CREATE POLICY changes ON strata.users FOR UPDATE TO strata_person USING ((SELECT strata.person_role()) = 'admin');


-- Provider keys: never the sealed bytes ---------------------------------------------------------------------------------

GRANT SELECT (id, scope, user_id, team_id, provider, name, host, kek_id, last_four, status, last_validated_at, created_at),
    INSERT, UPDATE, DELETE ON strata.provider_keys TO strata_person;
CREATE POLICY reads ON strata.provider_keys FOR SELECT TO strata_person USING (
    (SELECT strata.person_role()) = 'admin'
    OR (SELECT strata.person_role()) IN ('member', 'viewer')
        AND (user_id = (SELECT strata.person_id()) OR team_id = (SELECT strata.person_team())));
CREATE POLICY adds ON strata.provider_keys FOR INSERT TO strata_person WITH CHECK (
    (SELECT strata.person_role()) = 'admin'
    OR (SELECT strata.person_role()) = 'member' AND user_id = (SELECT strata.person_id()));
CREATE POLICY changes ON strata.provider_keys FOR UPDATE TO strata_person USING (
    (SELECT strata.person_role()) = 'admin'
    OR (SELECT strata.person_role()) = 'member' AND user_id = (SELECT strata.person_id()));
CREATE POLICY removes ON strata.provider_keys FOR DELETE TO strata_person USING (
    (SELECT strata.person_role()) = 'admin'
    OR (SELECT strata.person_role()) = 'member' AND user_id = (SELECT strata.person_id()));


-- Virtual keys: never the digest ----------------------------------------------------------------------------------------

GRANT SELECT (id, name, display, user_id, team_id, models, rpm, tpm, max_parallel, tags, metadata, created_at, expires_at,
    revoked_at, last_used_at, version), INSERT, UPDATE ON strata.keys TO strata_person;
GRANT USAGE ON SEQUENCE strata.key_version TO strata_person;
CREATE POLICY reads ON strata.keys FOR SELECT TO strata_person USING (
    (SELECT strata.person_role()) = 'admin'
    OR (SELECT strata.person_role()) IN ('member', 'viewer')
        AND (user_id = (SELECT strata.person_id()) OR team_id = (SELECT strata.person_team()))
    OR (SELECT strata.person_role()) = 'key' AND id = (SELECT strata.person_key()));
CREATE POLICY adds ON strata.keys FOR INSERT TO strata_person WITH CHECK (
    (SELECT strata.person_role()) = 'admin'
    OR (SELECT strata.person_role()) = 'member' AND user_id = (SELECT strata.person_id())
        AND (team_id IS NULL OR team_id = (SELECT strata.person_team())));
CREATE POLICY changes ON strata.keys FOR UPDATE TO strata_person USING (
    (SELECT strata.person_role()) = 'admin'
    OR (SELECT strata.person_role()) = 'member' AND user_id = (SELECT strata.person_id()))
    WITH CHECK (
    (SELECT strata.person_role()) = 'admin'
    OR (SELECT strata.person_role()) = 'member' AND user_id = (SELECT strata.person_id())
        AND (team_id IS NULL OR team_id = (SELECT strata.person_team())));


-- Budgets: seen with what they bind; a member sets those of his own keys --------------------------------------------------

-- Whether a key is this person's, asked without the policies of strata.keys, which would be asked for every row.
CREATE FUNCTION strata.owns_key(key_id text) RETURNS boolean LANGUAGE sql STABLE SECURITY DEFINER SET search_path = '' AS $$
    SELECT EXISTS (SELECT FROM strata.keys k WHERE k.id::text = key_id AND k.user_id = strata.person_id())
$$;

GRANT SELECT, INSERT, UPDATE ON strata.budgets TO strata_person;
GRANT SELECT ON strata.budget_periods TO strata_person;
CREATE POLICY reads ON strata.budgets FOR SELECT TO strata_person USING (
    (SELECT strata.person_role()) = 'admin'
    OR scope = 'user' AND subject = (SELECT strata.person_id()::text)
    OR scope = 'team' AND subject = (SELECT strata.person_team()::text)
    OR scope = 'key' AND (subject = (SELECT strata.person_key()::text)
        OR (SELECT strata.person_role()) IN ('member', 'viewer') AND subject IN (SELECT k.id::text FROM strata.keys k)));
CREATE POLICY adds ON strata.budgets FOR INSERT TO strata_person WITH CHECK (
    (SELECT strata.person_role()) = 'admin'
    OR (SELECT strata.person_role()) = 'member' AND scope = 'key' AND source = 'database' AND strata.owns_key(subject));
CREATE POLICY changes ON strata.budgets FOR UPDATE TO strata_person USING (
    (SELECT strata.person_role()) = 'admin'
    OR (SELECT strata.person_role()) = 'member' AND scope = 'key' AND source = 'database' AND strata.owns_key(subject));
CREATE POLICY reads ON strata.budget_periods FOR SELECT TO strata_person USING (
    budget_id IN (SELECT b.id FROM strata.budgets b));


-- What happened and what it cost: one's own; of the team only the sums ----------------------------------------------------

GRANT SELECT ON strata.usage, strata.usage_hourly, strata.requests, strata.price_lines TO strata_person;
CREATE POLICY reads ON strata.usage FOR SELECT TO strata_person USING (
    (SELECT strata.person_role()) = 'admin' OR user_id = (SELECT strata.person_id())
    OR key_id = (SELECT strata.person_key()));
CREATE POLICY reads ON strata.requests FOR SELECT TO strata_person USING (
    (SELECT strata.person_role()) = 'admin' OR user_id = (SELECT strata.person_id())
    OR key_id = (SELECT strata.person_key()));
CREATE POLICY reads ON strata.usage_hourly FOR SELECT TO strata_person USING (
    (SELECT strata.person_role()) = 'admin' OR user_id = (SELECT strata.person_id())
    OR key_id = (SELECT strata.person_key()) OR team_id = (SELECT strata.person_team()));
CREATE POLICY reads ON strata.price_lines FOR SELECT TO strata_person USING ((SELECT strata.person_role()) <> '');

GRANT SELECT ON strata.audit, strata.alerts, strata.alert_deliveries TO strata_person;
CREATE POLICY reads ON strata.audit FOR SELECT TO strata_person USING ((SELECT strata.person_role()) = 'admin');
CREATE POLICY reads ON strata.alerts FOR SELECT TO strata_person USING ((SELECT strata.person_role()) = 'admin');
CREATE POLICY reads ON strata.alert_deliveries FOR SELECT TO strata_person USING (
    (SELECT strata.person_role()) = 'admin');


-- Months to come are as secure as their parent ----------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION strata.make_partitions(months integer) RETURNS void
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
                    PERFORM strata.secure(to_regclass('strata.' || child));
                EXCEPTION WHEN check_violation THEN
                    NULL;                               -- rows of this month are in the default partition, and stay
                END;
            END IF;
        END LOOP;
    END LOOP;
END $$;
