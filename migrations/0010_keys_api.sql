-- Keys are changed over HTTP: a new secret for an old key, whose old secret may go on for a while; and whether it was an
-- admin who set what binds a key, for its owner may then only tighten it.

ALTER TABLE strata.keys
    ADD COLUMN previous_digest   bytea UNIQUE CHECK (length(previous_digest) = 32),  -- of the secret before this one
    ADD COLUMN previous_until    timestamptz,           -- so long that one is good; null: not since rotated_at
    ADD COLUMN rotated_at        timestamptz,
    ADD COLUMN limited_by_admin  boolean NOT NULL DEFAULT true;
CREATE INDEX keys_created ON strata.keys (created_at DESC, id DESC);
CREATE INDEX keys_user ON strata.keys (user_id) WHERE user_id IS NOT NULL;
GRANT SELECT (previous_until, rotated_at, limited_by_admin) ON strata.keys TO strata_person;

-- The view's columns were fixed when it was made.
DROP VIEW strata.bound_keys;
CREATE VIEW strata.bound_keys WITH (security_invoker = true) AS
SELECT k.*, (
        SELECT coalesce(json_agg(json_build_object(
            'id', b.id, 'scope', b.scope, 'subject', b.subject, 'limit_nano_usd', b.limit_nano_usd,
            'window_seconds', b.window_seconds, 'calendar', b.calendar) ORDER BY b.id), '[]')::text
        FROM strata.budgets b
        WHERE b.ended_at IS NULL AND (b.scope, b.subject) IN (
            ('key', k.id::text), ('user', k.user_id::text), ('team', k.team_id::text), ('global', ''))
    ) AS budgets, u.disabled_at IS NOT NULL AS owner_disabled
FROM strata.keys k LEFT JOIN strata.users u ON u.id = k.user_id;
GRANT SELECT ON strata.bound_keys TO strata_app;

-- A digest that goes is kept as the previous one, here, since people may set a digest and may not read one.
CREATE OR REPLACE FUNCTION strata.key_changed() RETURNS trigger LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND NEW.digest <> OLD.digest THEN
        NEW.previous_digest := OLD.digest;
        NEW.rotated_at := now();
    END IF;
    -- last_used_at alone is no change that anybody must learn of
    IF TG_OP = 'INSERT' OR (to_jsonb(NEW) - 'last_used_at') IS DISTINCT FROM (to_jsonb(OLD) - 'last_used_at') THEN
        -- Until the commit, so that versions become visible in their order: whoever polls "after 7" must not miss a 6.
        PERFORM pg_advisory_xact_lock(hashtextextended('strata.key_version', 0));
        NEW.version := nextval('strata.key_version');
        PERFORM pg_notify('strata_keys', NEW.id::text);
    END IF;
    RETURN NEW;
END $$;

-- A new key of a member's is of his team: without it, it would be free of the team's budgets and limits.
DROP POLICY adds ON strata.keys;
CREATE POLICY adds ON strata.keys FOR INSERT TO strata_person WITH CHECK (
    (SELECT strata.person_role()) = 'admin'
    OR (SELECT strata.person_role()) = 'member' AND user_id = (SELECT strata.person_id())
        AND team_id IS NOT DISTINCT FROM (SELECT strata.person_team()));

-- Whose a key is, nobody changes: a member would slip from under his team's budgets. What he made in another team he may
-- still change and end.
REVOKE UPDATE ON strata.keys FROM strata_person;
GRANT UPDATE (name, digest, pepper_id, display, models, rpm, tpm, max_parallel, tags, metadata, expires_at, revoked_at,
    previous_until, limited_by_admin, version) ON strata.keys TO strata_person;
DROP POLICY changes ON strata.keys;
CREATE POLICY changes ON strata.keys FOR UPDATE TO strata_person USING (
    (SELECT strata.person_role()) = 'admin'
    OR (SELECT strata.person_role()) = 'member' AND user_id = (SELECT strata.person_id()));

-- The keys of somebody who is shut out are shut out with him, and workers hear of it like of any change.
CREATE FUNCTION strata.owner_changed() RETURNS trigger LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    UPDATE strata.keys SET version = nextval('strata.key_version') WHERE user_id = NEW.id AND revoked_at IS NULL;
    RETURN NULL;
END $$;
CREATE TRIGGER owner_changed AFTER UPDATE ON strata.users FOR EACH ROW
    WHEN ((OLD.disabled_at IS NULL) <> (NEW.disabled_at IS NULL)) EXECUTE FUNCTION strata.owner_changed();
