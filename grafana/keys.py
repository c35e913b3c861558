"""Who uses how much, whose money runs out, and whom limits refuse."""

from __future__ import annotations

from grafana.panels import (
    ODD_ABOVE_ZERO,
    Ask,
    Board,
    Column,
    Panel,
    Row,
    bad_above,
    bars,
    lines,
    logs_link,
    stat,
    table,
)

LEFT_HOURS = (
    "max by (scope, name, window) ((strata_budget_limit_usd{$S} - strata_budget_spent_usd{$S})"
    " / (deriv(strata_budget_spent_usd{$S}[6h]) > 0) / 3600)"
)
RESET_HOURS = "max by (scope, name, window) ((strata_budget_reset_timestamp_seconds{$S} - time()) / 3600)"
KEY_LINK = logs_link(key="${__data.fields.Key}")

BUDGETS: tuple[Panel, ...] = (
    bars(
        "Budgets used",
        "The share of its limit that a budget's current period has spent. At 100 % its requests are refused.",
        "percentunit",
        Ask(
            "sort_desc(max by (scope, name, window) (strata_budget_spent_usd{$S} / (strata_budget_limit_usd{$S} > 0)))",
            "{{scope}} {{name}} / {{window}}",
        ),
        steps=bad_above(0.8, 0.9),
        top=1,
        runbook="BudgetNearlySpent",
    ),
    table(
        "Spent before their reset, at this pace",
        "Budgets that will not last, by the pace of the last six hours. Nothing here is good news.",
        f"{LEFT_HOURS} < {RESET_HOURS}",
        columns=(
            Column("scope", "For", "string"),
            Column("name", "Name", "string"),
            Column("window", "Each", "string"),
            Column("Value", "Spent in", "h"),
        ),
        runbook="BudgetNearlySpent",
    ),
)

KEYS: tuple[Panel, ...] = (
    table(
        "Spend by key in range, top twenty",
        "What each key's calls cost. Keys beyond the configured number are _other; the ledger has all.",
        'topk(20, sum by (key) (increase(strata_key_cost_usd_total{$S,key=~"$key"}[$__range])))',
        columns=(Column("key", "Key", "string", KEY_LINK), Column("Value", "Cost", "currencyUSD")),
    ),
    table(
        "Errors by key, top twenty",
        "The share of a key's requests that ended in an error, whoever's fault it was.",
        'topk(20, sum by (key) (increase(strata_key_requests_total{$S,key=~"$key",result="error"}[$__range]))'
        ' / sum by (key) (increase(strata_key_requests_total{$S,key=~"$key"}[$__range])))',
        columns=(Column("key", "Key", "string", KEY_LINK), Column("Value", "Errors", "percentunit")),
    ),
    lines(
        "Requests by key, ten busiest",
        "Requests a second. A click shows the key's requests.",
        "reqps",
        Ask('topk(10, sum by (key) (rate(strata_key_requests_total{$S,key=~"$key"}[$W])))', "{{key}}"),
        link=logs_link(key="${__field.labels.key}"),
    ),
    lines(
        "Tokens a minute by key, ten busiest",
        "Billed tokens, input and output together.",
        "short",
        Ask('topk(10, sum by (key) (rate(strata_key_tokens_total{$S,key=~"$key"}[$W])) * 60)', "{{key}}"),
        link=logs_link(key="${__field.labels.key}"),
    ),
)

REFUSALS: tuple[Panel, ...] = (
    lines(
        "Refused by our own limits",
        "Requests that limits and budgets of the gateway refused, by whose limit it was.",
        "reqps",
        Ask("sum by (scope, limit) (rate(strata_rate_limited_total{$S}[$W])) > 0", "{{scope}}: {{limit}}"),
        stacked=True,
    ),
    stat(
        "Cost beyond what was set aside",
        "Money that answers cost beyond the worst case they had reserved. Budgets may be over by this much.",
        "currencyUSD",
        "sum(increase(strata_budget_overrun_usd_total{$S}[$__range]))",
        steps=ODD_ABOVE_ZERO,
        height=8,
        runbook="BudgetNearlySpent",
    ),
    stat(
        "Set aside and stuck",
        "Money given back without an answer from Postgres. It counts as spent until its budget's period ends.",
        "currencyUSD",
        "sum(increase(strata_budget_stranded_usd_total{$S}[$__range]))",
        steps=ODD_ABOVE_ZERO,
        height=8,
        runbook="DatabaseAway",
    ),
    stat(
        "Sweeps that failed",
        "Money set aside and not needed comes back by sweeps. Failed ones are tried again; many mean that Postgres is "
        "away.",
        "short",
        "sum(increase(strata_budget_failures_total{$S}[$__range]))",
        steps=ODD_ABOVE_ZERO,
        height=8,
        runbook="DatabaseAway",
    ),
)

LEDGER: tuple[Panel, ...] = (
    table(
        "Budgets in force",
        "From the ledger: settled spending of the current period, and when the next one begins.",
        "SELECT scope, name, limit_usd, spent_usd, left_usd, resets_at FROM grafana.budgets"
        " ORDER BY spent_usd / nullif(limit_usd, 0) DESC NULLS LAST",
        columns=(
            Column("scope", "For", "string"),
            Column("name", "Name", "string"),
            Column("limit_usd", "Limit", "currencyUSD"),
            Column("spent_usd", "Spent", "currencyUSD"),
            Column("left_usd", "Left", "currencyUSD"),
            Column("resets_at", "Next period", "dateTimeAsIso"),
        ),
        source="ledger",
        width=24,
    ),
    table(
        "Keys that need a look",
        "They expire within two weeks, were never used, or not for thirty days.",
        "SELECT name, team, user_email, display, last_used_at, expires_at,"
        " CASE WHEN expires_at < now() THEN 'has expired'"
        " WHEN expires_at < now() + interval '14 days' THEN 'expires soon'"
        " WHEN last_used_at IS NULL THEN 'never used' ELSE 'idle for 30 days' END AS why"
        " FROM grafana.keys WHERE revoked_at IS NULL AND (expires_at < now() + interval '14 days'"
        " OR last_used_at IS NULL OR last_used_at < now() - interval '30 days')"
        " ORDER BY expires_at NULLS LAST, name LIMIT 500",
        columns=(
            Column("name", "Key", "string", KEY_LINK),
            Column("team", "Team", "string"),
            Column("user_email", "Person", "string"),
            Column("display", "Begins with", "string"),
            Column("last_used_at", "Last used", "dateTimeAsIso"),
            Column("expires_at", "Expires", "dateTimeAsIso"),
            Column("why", "Why", "string"),
        ),
        source="ledger",
        width=24,
        height=10,
    ),
    table(
        "What each key cost in range",
        "From the ledger, all keys: exact.",
        "SELECT key_name, team, sum(attempts) AS attempts, sum(errors) AS errors, round(sum(cost_usd), 4) AS cost_usd"
        " FROM grafana.usage_hourly WHERE $__timeFilter(bucket) AND key_name ~ '^${key:regex}$'"
        " GROUP BY 1, 2 ORDER BY 5 DESC LIMIT 500",
        columns=(
            Column("key_name", "Key", "string", KEY_LINK),
            Column("team", "Team", "string"),
            Column("attempts", "Calls"),
            Column("errors", "Failed"),
            Column("cost_usd", "Cost", "currencyUSD"),
        ),
        source="ledger",
        width=24,
        height=10,
    ),
)

BOARD = Board(
    uid="strata-keys",
    title="Strata: keys and budgets",
    says="Who uses how much, whose money runs out, and whom limits refuse.",
    rows=(
        Row("Budgets", BUDGETS),
        Row("Keys", KEYS),
        Row("Refusals", REFUSALS),
        Row("From the ledger: exact", LEDGER, collapsed=True),
    ),
    variables=("key", "ledger"),
)
