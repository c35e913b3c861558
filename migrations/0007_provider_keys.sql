-- Provider keys come into use: what a key was saved with, what its provider said of it, who hears of a change. And the
-- vault's own secret, sealed like the keys are: it proves the master key at every start.

CREATE TABLE strata.vault (
    name          text PRIMARY KEY CHECK (name = 'root'),
    sealed_value  bytea NOT NULL,                       -- what the pepper and all else that must not change is made of
    sealed_dek    bytea NOT NULL,
    kek_id        text NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now()
);
SELECT strata.secure('strata.vault');
GRANT SELECT, INSERT, UPDATE ON strata.vault TO strata_app;

CREATE SEQUENCE strata.provider_key_version;
GRANT USAGE ON SEQUENCE strata.provider_key_version TO strata_app, strata_person;

ALTER TABLE strata.provider_keys
    ADD COLUMN api_base text NOT NULL DEFAULT '',       -- '': where the operator's provider of this name is
    ADD COLUMN detail   text NOT NULL DEFAULT '',       -- what the provider said when the key was last checked
    ADD COLUMN version  bigint NOT NULL DEFAULT nextval('strata.provider_key_version'),  -- rises with every change
    ADD CONSTRAINT provider_keys_status CHECK (status IN
        ('not checked', 'valid', 'invalid', 'no quota', 'rate limited', 'unreachable'));
GRANT SELECT (api_base, detail, version) ON strata.provider_keys TO strata_person;

-- One key for one owner and provider: which one is used must not depend on who reads first.
CREATE UNIQUE INDEX provider_keys_owner ON strata.provider_keys
    (scope, coalesce(user_id, team_id, '00000000-0000-0000-0000-000000000000'), provider);

CREATE FUNCTION strata.provider_key_changed() RETURNS trigger LANGUAGE plpgsql SET search_path = '' AS $$
DECLARE
    said constant text[] := ARRAY['status', 'detail', 'last_validated_at'];
    wrapped constant text[] := ARRAY['sealed_dek', 'kek_id'];
BEGIN
    IF TG_OP = 'DELETE' THEN
        PERFORM pg_notify('strata_provider_keys', '');
        RETURN OLD;
    END IF;
    IF TG_OP = 'UPDATE' AND (to_jsonb(NEW) - said) IS NOT DISTINCT FROM (to_jsonb(OLD) - said) THEN
        RETURN NEW;                                     -- only what the provider said: workers need not read it
    END IF;
    PERFORM pg_notify('strata_provider_keys', '');
    IF TG_OP = 'INSERT' OR (to_jsonb(NEW) - said - wrapped) IS DISTINCT FROM (to_jsonb(OLD) - said - wrapped) THEN
        -- Until the commit, so that versions become visible in their order.
        PERFORM pg_advisory_xact_lock(hashtextextended('strata.provider_key_version', 0));
        NEW.version := nextval('strata.provider_key_version');
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER provider_key_changed BEFORE INSERT OR UPDATE OR DELETE ON strata.provider_keys
    FOR EACH ROW EXECUTE FUNCTION strata.provider_key_changed();

-- Whose account paid: the operator's (null), or that of this key. Its price is kept, and counts against budgets, all the same.
ALTER TABLE strata.usage ADD COLUMN provider_key_id uuid;
