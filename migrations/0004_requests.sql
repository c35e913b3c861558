-- The request history: what explains a request later. A log, not money: it may have gaps, the ledger may not.

ALTER TABLE strata.requests
    ADD COLUMN key_name text NOT NULL DEFAULT '',
    ADD COLUMN provider text NOT NULL DEFAULT '',
    ADD COLUMN detail   jsonb NOT NULL DEFAULT '{}';    -- limits, plan, attempts, error: see proxy/metering/history.py
CREATE INDEX requests_public ON strata.requests (public_id);
CREATE INDEX requests_key ON strata.requests (key_id, started_at);
CREATE INDEX usage_public ON strata.usage (public_id);

-- What is older than `before` goes: whole months at once, the rest at most 10,000 rows a call. Returns how many rows of
-- the rest went, so that the caller knows whether to call again. With the owner's rights: strata_app deletes nothing.
CREATE FUNCTION strata.forget_requests(before timestamptz) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' SET lock_timeout = '2s' AS $$
DECLARE
    child text;
    deleted bigint;
BEGIN
    FOR child IN
        SELECT c.relname FROM pg_catalog.pg_inherits i
        JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
        WHERE i.inhparent = 'strata.requests'::regclass AND c.relname ~ '^requests_\d{4}_\d{2}$'
            AND to_date(right(c.relname, 7), 'YYYY_MM') + interval '1 month' <= before AT TIME ZONE 'UTC'
    LOOP
        EXECUTE format('DROP TABLE strata.%I', child);
    END LOOP;
    DELETE FROM strata.requests r USING (
        SELECT id, started_at FROM strata.requests WHERE started_at < before ORDER BY started_at LIMIT 10000
    ) old WHERE r.id = old.id AND r.started_at = old.started_at;
    GET DIAGNOSTICS deleted = ROW_COUNT;
    RETURN deleted;
END $$;
REVOKE ALL ON FUNCTION strata.forget_requests(timestamptz) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION strata.forget_requests(timestamptz) TO strata_app;
