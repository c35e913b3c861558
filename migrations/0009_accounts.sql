-- People: their sessions, invitations, and log-ins that failed.
--
-- Signing in is the gateway's own work: nobody is anybody yet. People see their own sessions and never what opens one.

-- An address is one person's at each issuer; at two issuers it may be two people, since not every issuer proves it.
DROP INDEX strata.users_email;
CREATE UNIQUE INDEX users_email ON strata.users (issuer, lower(email));
CREATE INDEX users_lower_email ON strata.users (lower(email));

-- A session is one log-in and all the refresh tokens that came of it.
CREATE TABLE strata.sessions (
    id             uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id        uuid NOT NULL REFERENCES strata.users (id),
    token_version  integer NOT NULL,                    -- the user's when it began; a session of an older one has ended
    created_at     timestamptz NOT NULL DEFAULT now(),
    expires_at     timestamptz NOT NULL,
    ended_at       timestamptz,
    end_reason     text NOT NULL DEFAULT '' CHECK (end_reason IN ('', 'logout', 'everywhere', 'reuse'))
);
CREATE INDEX sessions_user ON strata.sessions (user_id);
CREATE INDEX sessions_expiry ON strata.sessions (expires_at);

-- Used ones stay as long as their session: seeing one again is how a theft is noticed.
CREATE TABLE strata.refresh_tokens (
    digest      bytea PRIMARY KEY CHECK (length(digest) = 32),           -- SHA-256
    session_id  uuid NOT NULL REFERENCES strata.sessions (id) ON DELETE CASCADE,
    created_at  timestamptz NOT NULL DEFAULT now(),
    used_at     timestamptz
);
CREATE INDEX refresh_tokens_session ON strata.refresh_tokens (session_id);

CREATE TABLE strata.invitations (
    id           uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    digest       bytea NOT NULL UNIQUE CHECK (length(digest) = 32),
    email        text CHECK (length(email) <= 320),     -- null: whoever holds it
    role         text NOT NULL CHECK (role IN ('admin', 'member', 'viewer')),
    team_id      uuid REFERENCES strata.teams (id),
    created_by   uuid REFERENCES strata.users (id),     -- null: the master key
    created_at   timestamptz NOT NULL DEFAULT now(),
    expires_at   timestamptz NOT NULL,
    accepted_at  timestamptz,
    accepted_by  uuid REFERENCES strata.users (id),
    revoked_at   timestamptz
);

-- One row an account, an address, or both together, under a hash: the table tells nobody who tried.
CREATE TABLE strata.login_attempts (
    subject        bytea PRIMARY KEY CHECK (length(subject) = 32),
    failures       integer NOT NULL,
    last_at        timestamptz NOT NULL,
    blocked_until  timestamptz
);
CREATE INDEX login_attempts_last ON strata.login_attempts (last_at);

GRANT SELECT, INSERT, UPDATE, DELETE ON strata.sessions, strata.refresh_tokens, strata.login_attempts TO strata_app;
GRANT SELECT, INSERT, UPDATE ON strata.invitations TO strata_app;

SELECT strata.secure('strata.sessions');
SELECT strata.secure('strata.refresh_tokens');
SELECT strata.secure('strata.invitations');
SELECT strata.secure('strata.login_attempts');

GRANT SELECT ON strata.sessions TO strata_person;
CREATE POLICY reads ON strata.sessions FOR SELECT TO strata_person USING (
    (SELECT strata.person_role()) = 'admin' OR user_id = (SELECT strata.person_id()));

GRANT SELECT (id, email, role, team_id, created_by, created_at, expires_at, accepted_at, accepted_by, revoked_at),
    INSERT, UPDATE (revoked_at) ON strata.invitations TO strata_person;
CREATE POLICY reads ON strata.invitations FOR SELECT TO strata_person USING ((SELECT strata.person_role()) = 'admin');
CREATE POLICY adds ON strata.invitations FOR INSERT TO strata_person WITH CHECK (
    (SELECT strata.person_role()) = 'admin');
CREATE POLICY changes ON strata.invitations FOR UPDATE TO strata_person USING (
    (SELECT strata.person_role()) = 'admin');

-- What workers remember of a person must not outlive a change.
CREATE FUNCTION strata.person_changed() RETURNS trigger LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    PERFORM pg_notify('strata_people', CASE TG_TABLE_NAME WHEN 'users' THEN NEW.id ELSE
        (to_jsonb(NEW) ->> 'user_id')::uuid END::text);
    RETURN NULL;
END $$;
CREATE TRIGGER person_changed AFTER UPDATE ON strata.users FOR EACH ROW
    WHEN ((OLD.role, OLD.team_id, OLD.token_version, OLD.disabled_at)
        IS DISTINCT FROM (NEW.role, NEW.team_id, NEW.token_version, NEW.disabled_at))
    EXECUTE FUNCTION strata.person_changed();
CREATE TRIGGER session_ended AFTER UPDATE ON strata.sessions FOR EACH ROW
    WHEN (OLD.ended_at IS DISTINCT FROM NEW.ended_at) EXECUTE FUNCTION strata.person_changed();
