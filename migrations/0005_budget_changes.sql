-- A budget that is set, raised, lowered or ended reaches running workers at once: those that hold a lease of it hear its
-- id, and a key that carries it gets a new version, which is what makes workers read the key again. What binds by other
-- things than the key (everybody, a provider) workers read by themselves when they hear of it.

CREATE FUNCTION strata.budget_changed() RETURNS trigger LANGUAGE plpgsql SET search_path = '' AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND NEW IS NOT DISTINCT FROM OLD THEN
        RETURN NULL;
    END IF;
    IF NEW.scope IN ('key', 'user', 'team') AND NEW.subject ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' THEN
        UPDATE strata.keys SET version = nextval('strata.key_version')
        WHERE revoked_at IS NULL AND (NEW.scope <> 'key' OR id = NEW.subject::uuid)
            AND (NEW.scope <> 'user' OR user_id = NEW.subject::uuid)
            AND (NEW.scope <> 'team' OR team_id = NEW.subject::uuid);
    END IF;
    PERFORM pg_notify('strata_budgets', 'changed ' || NEW.id);
    RETURN NULL;
END $$;
CREATE TRIGGER budget_changed AFTER INSERT OR UPDATE ON strata.budgets
    FOR EACH ROW EXECUTE FUNCTION strata.budget_changed();

-- Those that bind by other things than the key, looked for every few seconds.
CREATE INDEX budgets_of_all ON strata.budgets (scope) WHERE ended_at IS NULL AND scope IN ('provider', 'global');
