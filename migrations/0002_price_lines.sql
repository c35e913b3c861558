-- What else a provider may bill for, and the price lines themselves: with them every row can be calculated again.

ALTER TABLE strata.usage
    ADD COLUMN image_input_tokens  bigint NOT NULL DEFAULT 0,      -- two more of the disjoint buckets
    ADD COLUMN image_output_tokens bigint NOT NULL DEFAULT 0,
    ADD COLUMN searches            bigint NOT NULL DEFAULT 0,      -- run by the provider, billed one by one; no tokens
    ADD COLUMN service_tier        text NOT NULL DEFAULT '';       -- the provider's own word: priority, flex, batch …

-- Written by the first worker that uses a price, never changed: usage.price_source names one.
CREATE TABLE strata.price_lines (
    source   text PRIMARY KEY CHECK (length(source) BETWEEN 1 AND 300),
    lines    jsonb NOT NULL,                            -- pico-dollars by bucket: {"input": 250000, …, "request": 0}
    seen_at  timestamptz NOT NULL DEFAULT now()
);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON strata.price_lines
    FOR EACH ROW EXECUTE FUNCTION strata.refuse_change();
GRANT SELECT, INSERT ON strata.price_lines TO strata_app;
