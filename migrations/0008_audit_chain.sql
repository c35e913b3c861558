-- Audit: rows are added by one function alone, which chains them; a hash is never a client's word.

-- What a row says, in one form only, after the hash of the row before.
CREATE FUNCTION strata.audit_hash(prev_hash bytea, seq bigint, at timestamptz, actor text, action text, object text,
    before jsonb, after jsonb, request_id text) RETURNS bytea LANGUAGE sql STABLE SET search_path = '' AS $$
    SELECT sha256(prev_hash || convert_to(jsonb_build_array(
        seq, to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US'), actor, action, object,
        before IS NULL, before, after IS NULL, after, request_id)::text, 'UTF8'))
$$;

-- Within the transaction of the change. Changes take turns from here to their commit: the chain has no forks and no gaps.
CREATE FUNCTION strata.note_audit(actor text, action text, object text, before jsonb, after jsonb, request_id text)
    RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path = '' AS $$
DECLARE
    last_seq bigint;
    last_hash bytea;
    moment timestamptz;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('strata.audit', 0));
    moment := clock_timestamp();
    SELECT a.seq, a.hash INTO last_seq, last_hash FROM strata.audit a ORDER BY a.seq DESC LIMIT 1;
    last_seq := coalesce(last_seq, 0) + 1;
    last_hash := coalesce(last_hash, ''::bytea);
    INSERT INTO strata.audit (seq, at, actor, action, object, before, after, request_id, prev_hash, hash)
    OVERRIDING SYSTEM VALUE
    VALUES (last_seq, moment, actor, action, object, before, after, request_id, last_hash,
        strata.audit_hash(last_hash, last_seq, moment, actor, action, object, before, after, request_id));
    RETURN last_seq;
END $$;

REVOKE ALL ON FUNCTION strata.note_audit(text, text, text, jsonb, jsonb, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION strata.note_audit(text, text, text, jsonb, jsonb, text) TO strata_app, strata_person;
REVOKE INSERT ON strata.audit FROM strata_app;
CREATE INDEX audit_object ON strata.audit (object, seq);
