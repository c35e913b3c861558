-- Usage by the day, in UTC: what reports of weeks and years read. A year of hours of a busy gateway is a million rows,
-- which take half a second to add up; a year of days is a tenth or less. Hours are read where a day is cut in two.
-- The statement that ships the ledger's rows writes both, so that a day is always the sum of its hours.

CREATE TABLE strata.usage_daily (
    LIKE strata.usage_hourly INCLUDING DEFAULTS,        -- its columns and what they mean; bucket: midnight UTC
    PRIMARY KEY (bucket, key_id, user_id, team_id, model, deployment, provider)
);

-- Nobody ships between the sums of the past and the commit.
LOCK TABLE strata.usage_hourly IN SHARE MODE;
INSERT INTO strata.usage_daily (bucket, key_id, user_id, team_id, model, deployment, provider, attempts, errors, estimated,
    unpriced, input_tokens, cached_tokens, cache_write_tokens, output_tokens, reasoning_tokens, cost_nano_usd)
SELECT date_trunc('day', bucket, 'UTC'), key_id, user_id, team_id, model, deployment, provider, sum(attempts), sum(errors),
    sum(estimated), sum(unpriced), sum(input_tokens), sum(cached_tokens), sum(cache_write_tokens), sum(output_tokens),
    sum(reasoning_tokens), sum(cost_nano_usd)
FROM strata.usage_hourly GROUP BY 1, 2, 3, 4, 5, 6, 7;

GRANT SELECT, INSERT, UPDATE ON strata.usage_daily TO strata_app;
SELECT strata.secure('strata.usage_daily');

-- Who sees a day's sum is who sees its hours'.
GRANT SELECT ON strata.usage_daily TO strata_person;
CREATE POLICY reads ON strata.usage_daily FOR SELECT TO strata_person USING (
    (SELECT strata.person_role()) = 'admin' OR user_id = (SELECT strata.person_id())
    OR key_id = (SELECT strata.person_key()) OR team_id = (SELECT strata.person_team()));
