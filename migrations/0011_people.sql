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
