-- Alerts: each once for its subject, period and threshold, whichever replica sees it first; and what was sent of them.

CREATE TABLE strata.alerts (
    id          uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    rule        text NOT NULL,
    subject     text NOT NULL,                          -- a budget's id, a key's, a model's name, or all
    period      text NOT NULL,                          -- the start of the budget's period, or the day
    threshold   bigint NOT NULL,
    title       text NOT NULL,
    detail      jsonb NOT NULL DEFAULT '{}',
    at          timestamptz NOT NULL DEFAULT now(),
    UNIQUE (rule, subject, period, threshold)
);
CREATE INDEX alerts_at ON strata.alerts (at);

CREATE TABLE strata.alert_deliveries (
    alert_id    uuid NOT NULL REFERENCES strata.alerts (id) ON DELETE CASCADE,
    channel     text NOT NULL,
    tries       integer NOT NULL DEFAULT 0,
    next_at     timestamptz NOT NULL DEFAULT now(),     -- when it is tried (again); a claim moves it on
    sent_at     timestamptz,
    error       text NOT NULL DEFAULT '',
    PRIMARY KEY (alert_id, channel)
);
CREATE INDEX alert_deliveries_due ON strata.alert_deliveries (next_at) WHERE sent_at IS NULL;

GRANT SELECT, INSERT, UPDATE, DELETE ON strata.alerts, strata.alert_deliveries TO strata_app;
