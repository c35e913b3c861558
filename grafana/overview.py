"""The board to open first: is it well, for whom not, and since when."""

from __future__ import annotations

from grafana.panels import (
    BAD_ABOVE_ZERO,
    Ask,
    Board,
    Column,
    Panel,
    Row,
    bad_above,
    good_above,
    heat,
    lines,
    logs_link,
    stat,
    table,
)

OURS = 'error_type=~"provider_.*|gateway_.*"'
"""Errors that are not the caller's own, nor what a limit or a budget is for."""
COUNTED = 'error_type!~"caller_.*|policy_.*"'
PROMISED = 0.999
"""The share of such requests that should succeed. What is left of it is the error budget."""


def quantile(share: float, metric: str, filters: str, window: str = "$W", by: str = "") -> str:
    grouped = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, sum by ({grouped}) (rate({metric}_bucket{{{filters}}}[{window}])))"


def burn(window: str) -> str:
    failed = f"(sum(rate(strata_requests_total{{$S,{OURS}}}[{window}])) or vector(0))"
    return f"{failed} / sum(rate(strata_requests_total{{$S,{COUNTED}}}[{window}])) / (1 - {PROMISED})"


NOW: tuple[Panel, ...] = (
    stat(
        "Requests / s",
        "Requests that clients sent, averaged over the window at the top; refused ones too.",
        "reqps",
        "sum(rate(strata_requests_total{$SMP}[$W]))",
    ),
    stat(
        "Success",
        "Of the requests that could succeed, how many did. What callers got wrong, and what limits or budgets refused, "
        "is left out.",
        "percentunit",
        f"1 - (sum(rate(strata_requests_total{{$SMP,{OURS}}}[$__range])) or vector(0))"
        f" / sum(rate(strata_requests_total{{$SMP,{COUNTED}}}[$__range]))",
        steps=good_above(0.99, PROMISED),
        runbook="ErrorBudgetSlowBurn",
    ),
    stat(
        "First token p95",
        "Of 100 streams, 95 showed their first content within this time. Streams only.",
        "s",
        quantile(0.95, "strata_time_to_first_token_seconds", "$SMP", "$__range"),
        steps=bad_above(2, 5),
    ),
    stat(
        "Gateway overhead p95",
        "The gateway's own time for a request; what it waits for providers is left out.",
        "s",
        quantile(0.95, "strata_overhead_seconds", "$S", "$__range"),
        steps=bad_above(0.025, 0.1),
        runbook="EventLoopLate",
    ),
    stat(
        "Spend in range",
        "What the calls cost, as far as counters saw it: the first call of a model after a start is missed. The ledger "
        "is exact.",
        "currencyUSD",
        "sum(increase(strata_cost_usd_total{$SMP}[$__range]))",
    ),
    stat(
        "Deployments down",
        "Deployments that rest after failures. The others of their model serve meanwhile.",
        "short",
        "count(strata_deployment_up{$SP} == 0) or vector(0)",
        steps=BAD_ABOVE_ZERO,
        runbook="DeploymentDown",
    ),
)

TRAFFIC: tuple[Panel, ...] = (
    lines(
        "Requests by endpoint",
        "Requests a second for each API that clients speak.",
        "reqps",
        Ask("sum by (endpoint) (rate(strata_requests_total{$SMP}[$W]))", "{{endpoint}}"),
    ),
    lines(
        "In flight",
        "Requests that are being served. A line that only climbs means that answers do not end.",
        "short",
        Ask("sum by (endpoint) (strata_requests_in_flight{$S})", "{{endpoint}}"),
    ),
)

ERRORS: tuple[Panel, ...] = (
    lines(
        "Errors: whose they are",
        "caller: a mistake in the request. policy: a limit, a budget or a model that is not allowed. provider and "
        "gateway count against success.",
        "reqps",
        Ask(
            'sum by (domain) (label_replace(rate(strata_requests_total{$SMP,error_type!=""}[$W]), '
            '"domain", "$1", "error_type", "([a-z]+)_.*"))',
            "{{domain}}",
        ),
        stacked=True,
        runbook="ErrorBudgetFastBurn",
    ),
    table(
        "Errors by type",
        "Which errors clients got, how often in the range. A click on a type shows the requests.",
        "sort_desc(round(sum by (error_type, code, model) "
        '(increase(strata_requests_total{$SMP,error_type!=""}[$__range]))) > 0)',
        columns=(
            Column("error_type", "Error", "string", logs_link(error_type="${__data.fields.Error}")),
            Column("code", "Status", "string"),
            Column("model", "Model", "string", logs_link(model="${__data.fields.Model}")),
            Column("Value", "Requests"),
        ),
    ),
)

DURATION: tuple[Panel, ...] = (
    lines(
        "Duration p50, p95, p99",
        "From the first byte of a request to the last byte of its answer. Long answers take long: see the next rows "
        "before you blame a provider.",
        "s",
        *(
            Ask(quantile(share, "strata_request_duration_seconds", "$SMP"), f"p{share * 100:.0f}")
            for share in (0.5, 0.95, 0.99)
        ),
    ),
    heat(
        "Duration, all requests",
        "How many requests took how long. Two bands are two kinds of traffic, which no quantile shows.",
        "s",
        "sum by (le) (increase(strata_request_duration_seconds_bucket{$SMP}[$W]))",
    ),
    lines(
        "First token p95 by model",
        "Streams only: from the request to the first event with content.",
        "s",
        Ask(quantile(0.95, "strata_time_to_first_token_seconds", "$SMP", by="model"), "{{model}}"),
        link=logs_link(model="${__field.labels.model}"),
    ),
    lines(
        "Output tokens / s of a stream",
        "How fast one stream speaks, on average. Streams only.",
        "short",
        Ask(
            "sum by (model) (rate(strata_time_per_output_token_seconds_count{$SMP}[$W]))"
            " / sum by (model) (rate(strata_time_per_output_token_seconds_sum{$SMP}[$W]))",
            "{{model}}",
        ),
    ),
)

BUDGET: tuple[Panel, ...] = (
    lines(
        "How fast the error budget burns",
        f"1 is exactly what {PROMISED:.1%} allows. 14.4 over an hour spends two days' worth in that hour; 6 over six "
        "hours is worth a look today.",
        "short",
        Ask(burn("1h"), "1 hour"),
        Ask(burn("6h"), "6 hours"),
        width=24,
        steps=bad_above(6, 14.4),
        runbook="ErrorBudgetFastBurn",
    ),
)

BOARD = Board(
    uid="strata-overview",
    title="Strata: overview",
    says="Is the gateway well, for whom not, and since when.",
    rows=(
        Row("Now", NOW),
        Row("Traffic", TRAFFIC),
        Row("Errors", ERRORS),
        Row("Duration", DURATION),
        Row("Error budget", BUDGET),
    ),
    variables=("provider", "model"),
)
