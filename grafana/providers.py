"""Which provider is slow, fails or is about to refuse, and what the gateway did about it."""

from __future__ import annotations

from grafana.overview import quantile
from grafana.panels import (
    Ask,
    Board,
    Column,
    Panel,
    Row,
    bad_above,
    good_above,
    lines,
    logs_link,
    states,
    table,
)

CALLS = "sum by (provider) (increase(strata_upstream_attempts_total{$SP}[$__range]))"
GOOD_CALLS = 'sum by (provider) (increase(strata_upstream_attempts_total{$SP,outcome="ok"}[$__range]))'

SCOREBOARD: tuple[Panel, ...] = (
    table(
        "Providers compared",
        "Every call to a provider counts, tries that another one made good as well. First token is of streams only.",
        CALLS,
        f"{GOOD_CALLS} / {CALLS}",
        quantile(0.95, "strata_upstream_duration_seconds", "$SP", "$__range", "provider"),
        quantile(0.95, "strata_time_to_first_token_seconds", "$SMP", "$__range", "provider"),
        "sum by (provider) (increase(strata_cost_usd_total{$SMP}[$__range]))",
        columns=(
            Column("provider", "Provider", "string", logs_link(provider="${__data.fields.Provider}")),
            Column("Value #A", "Calls"),
            Column("Value #B", "Success", "percentunit"),
            Column("Value #C", "Duration p95", "s"),
            Column("Value #D", "First token p95", "s"),
            Column("Value #E", "Cost", "currencyUSD"),
        ),
        width=24,
        height=6,
    ),
)

STATE: tuple[Panel, ...] = (
    states(
        "Deployments",
        "Red: the deployment rests after failures, and others serve. If all of a model rest, the one that rests "
        "shortest is tried.",
        Ask("min by (deployment) (strata_deployment_up{$SP})", "{{deployment}}"),
        runbook="DeploymentDown",
    ),
    lines(
        "What is left of providers' limits",
        "As the providers' answers say, 1 is all. The only warning before they refuse with 429.",
        "percentunit",
        Ask("min by (deployment, limit) (strata_upstream_ratelimit_remaining_ratio{$SP})", "{{deployment}} {{limit}}"),
        steps=good_above(0.1, 0.25),
        top=1,
        runbook="ProviderLimitNear",
    ),
)

FAILURES: tuple[Panel, ...] = (
    lines(
        "Failed calls by deployment",
        "Calls to providers that failed, by what went wrong; clients may have got an answer all the same.",
        "reqps",
        Ask(
            'sum by (deployment, outcome) (rate(strata_upstream_attempts_total{$SP,outcome!="ok"}[$W]))',
            "{{deployment}}: {{outcome}}",
        ),
        stacked=True,
        runbook="DeploymentDown",
    ),
    lines(
        "Calls for one request",
        "1 is one call for each request that was routed; more is what retries and fallbacks add, also to the bill.",
        "short",
        Ask(
            "sum(rate(strata_upstream_attempts_total{$S}[$W]))"
            ' / sum(rate(strata_requests_total{$S,provider!="none"}[$W]))',
            "calls",
        ),
        steps=bad_above(1.2, 2),
    ),
    lines(
        "Retries by reason",
        "Further calls of a request, by what failed before.",
        "reqps",
        Ask("sum by (reason) (rate(strata_retries_total{$SM}[$W]))", "{{reason}}"),
    ),
    lines(
        "Rests by reason",
        "How often a deployment was sent to rest, in each window.",
        "short",
        Ask(
            "sum by (deployment, reason) (increase(strata_deployment_cooldowns_total{$SP}[$W]))",
            "{{deployment}}: {{reason}}",
        ),
        runbook="DeploymentDown",
    ),
    table(
        "Fallbacks",
        "Requests for one model that another one answered. If it is always the same pair, the first one is not needed.",
        "sum by (model, to) (increase(strata_fallbacks_total{$SM}[$__range])) > 0",
        columns=(
            Column("model", "Asked for", "string", logs_link(model="${__data.fields[0]}")),
            Column("to", "Answered by", "string"),
            Column("Value", "Requests"),
        ),
        width=24,
        height=6,
    ),
)

LATENCY: tuple[Panel, ...] = (
    lines(
        "Duration of a call p95",
        "One call to one deployment, to its last byte.",
        "s",
        Ask(quantile(0.95, "strata_upstream_duration_seconds", "$SP", by="deployment"), "{{deployment}}"),
    ),
    lines(
        "First token p95 by provider",
        "Streams only, and of the whole request: what calls that failed before took is part of it.",
        "s",
        Ask(quantile(0.95, "strata_time_to_first_token_seconds", "$SMP", by="provider"), "{{provider}}"),
        link=logs_link(provider="${__field.labels.provider}"),
    ),
)
CONNECTIONS: tuple[Panel, ...] = (
    lines(
        "Connections to providers",
        "active: an answer is on its way. idle: open for the next one.",
        "short",
        Ask('sum by (provider, state) (strata_upstream_connections{$SP,state!="waiting"})', "{{provider}}: {{state}}"),
        stacked=True,
    ),
    lines(
        "Requests that wait for a connection",
        "All connections to the provider are in use: raise its max_connections, or ask it less.",
        "short",
        Ask('sum by (provider) (strata_upstream_connections{$SP,state="waiting"})', "{{provider}}"),
        steps=bad_above(1, 10),
    ),
)

BOARD = Board(
    uid="strata-providers",
    title="Strata: providers and reliability",
    says="Which provider is slow, fails or is about to refuse, and what the gateway did about it.",
    rows=(
        Row("Compared", SCOREBOARD),
        Row("State", STATE),
        Row("Failures", FAILURES),
        Row("Latency", LATENCY),
        Row("Connections", CONNECTIONS),
    ),
    variables=("provider", "model"),
)
