-- People through the API: who invites says so himself, and a person is found in one query.

DROP POLICY adds ON strata.invitations;
CREATE POLICY adds ON strata.invitations FOR INSERT TO strata_person WITH CHECK (
    (SELECT strata.person_role()) = 'admin' AND created_by IS NOT DISTINCT FROM (SELECT strata.person_id()));

-- A person with the budgets that bind what he asks for himself, without a key: his own, his team's, everybody's.
CREATE VIEW strata.bound_people WITH (security_invoker = true) AS
SELECT u.id, u.email, u.name, u.role, u.team_id, u.issuer, u.subject, u.token_version, u.disabled_at, (
        SELECT coalesce(json_agg(json_build_object(
            'id', b.id, 'scope', b.scope, 'subject', b.subject, 'limit_nano_usd', b.limit_nano_usd,
            'window_seconds', b.window_seconds, 'calendar', b.calendar) ORDER BY b.id), '[]')::text
        FROM strata.budgets b
        WHERE b.ended_at IS NULL AND (b.scope, b.subject) IN (('user', u.id::text), ('team', u.team_id::text), ('global', ''))
    ) AS budgets
FROM strata.users u;
GRANT SELECT ON strata.bound_people TO strata_app;

-- Signing somebody out everywhere raises his version.
GRANT SELECT (token_version) ON strata.users TO strata_person;

-- Whoever acts as a person is written down as that person, whatever is said.
CREATE OR REPLACE FUNCTION strata.note_audit(actor text, action text, object text, before jsonb, after jsonb,
    request_id text) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE
    last_seq bigint;
    last_hash bytea;
    moment timestamptz;
    who text := coalesce(nullif(current_setting('strata.user_id', true), ''), actor);
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('strata.audit', 0));
    moment := clock_timestamp();
    SELECT a.seq, a.hash INTO last_seq, last_hash FROM strata.audit a ORDER BY a.seq DESC LIMIT 1;
    last_seq := coalesce(last_seq, 0) + 1;
    last_hash := coalesce(last_hash, ''::bytea);
    INSERT INTO strata.audit (seq, at, actor, action, object, before, after, request_id, prev_hash, hash)
    OVERRIDING SYSTEM VALUE
    VALUES (last_seq, moment, who, action, object, before, after, request_id, last_hash,
        strata.audit_hash(last_hash, last_seq, moment, who, action, object, before, after, request_id));
    RETURN last_seq;
END $$;
