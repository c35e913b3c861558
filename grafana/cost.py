"""What it costs, for what, and how far the figure can be trusted."""

from __future__ import annotations

from grafana.panels import (
    BAD_ABOVE_ZERO,
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

COST = "sum(increase(strata_cost_usd_total{$SMP}[$__range]))"
TOKENS = (
    "(sum(increase(strata_input_tokens_total{$SMP}[$__range]))"
    " + sum(increase(strata_output_tokens_total{$SMP}[$__range])))"
)


def share(part: str, whole: str, by: str) -> Ask:
    """One counter as a share of another."""
    return Ask(f"sum by ({by}) (rate({part}{{$SMP}}[$W])) / sum by ({by}) (rate({whole}{{$SMP}}[$W]))", f"{{{{{by}}}}}")


NOW: tuple[Panel, ...] = (
    stat(
        "Spend in range",
        "What the calls cost, as far as counters saw it. The rows of the ledger below are exact.",
        "currencyUSD",
        COST,
    ),
    stat(
        "At this pace, 30 days",
        "The range's mean spend, for thirty days. Choose a range of whole days.",
        "currencyUSD",
        "sum(rate(strata_cost_usd_total{$SMP}[$__range])) * 2592000",
    ),
    stat(
        "Cost of 1,000 requests",
        "Cost of all calls, failed ones too, for a thousand requests that succeeded.",
        "currencyUSD",
        f'1000 * {COST} / sum(increase(strata_requests_total{{$SMP,error_type=""}}[$__range]))',
    ),
    stat(
        "Cost of 1M tokens",
        "Input and output together, as they came. It falls when more is read from caches.",
        "currencyUSD",
        f"1e6 * {COST} / {TOKENS}",
    ),
    stat(
        "Calls without a price",
        "They count as no cost, so every sum here is too low by theirs. Give their models a price.",
        "short",
        "sum(increase(strata_unpriced_requests_total{$SMP}[$__range])) or vector(0)",
        steps=BAD_ABOVE_ZERO,
        runbook="UnpricedTraffic",
    ),
    stat(
        "Calls with estimated tokens",
        "The provider did not say what it will bill, so the gateway counted. The provider's export tells.",
        "short",
        "sum(increase(strata_usage_estimated_total{$SMP}[$__range])) or vector(0)",
        steps=ODD_ABOVE_ZERO,
    ),
)

SPEND: tuple[Panel, ...] = (
    lines(
        "$ an hour by model, ten dearest",
        "Where the money goes. A click shows the model's requests.",
        "currencyUSD",
        Ask("topk(10, sum by (model) (rate(strata_cost_usd_total{$SMP}[$W])) * 3600 > 0)", "{{model}}"),
        width=16,
        stacked=True,
        link=logs_link(model="${__field.labels.model}"),
    ),
    bars(
        "$ by provider in range",
        "To compare with the providers' own invoices, use the ledger below.",
        "currencyUSD",
        Ask("sort_desc(sum by (provider) (increase(strata_cost_usd_total{$SMP}[$__range])))", "{{provider}}"),
        width=5,
    ),
    stat(
        "Age of the price list",
        "Of the one that came with this build. Prices of your own stand above it.",
        "s",
        "time() - min(strata_price_list_timestamp_seconds{$S})",
        steps=bad_above(90 * 86_400, 180 * 86_400),
        width=3,
        height=8,
    ),
)

USED: tuple[Panel, ...] = (
    lines(
        "Tokens a minute",
        "Billed tokens. Cached and written ones are part of the input, reasoning is part of the output.",
        "short",
        Ask("sum(rate(strata_input_tokens_total{$SMP}[$W])) * 60", "input"),
        Ask("sum(rate(strata_output_tokens_total{$SMP}[$W])) * 60", "output"),
    ),
    lines(
        "Input read from providers' caches",
        "The share of prompt tokens at the low price. A drop often follows a change at the beginning of a prompt.",
        "percentunit",
        share("strata_cached_input_tokens_total", "strata_input_tokens_total", "provider"),
        top=1,
    ),
    lines(
        "Input written to providers' caches",
        "The share of prompt tokens at the higher price of writing. Much writing and little reading costs more than no "
        "cache.",
        "percentunit",
        share("strata_cache_write_tokens_total", "strata_input_tokens_total", "provider"),
        top=1,
    ),
    lines(
        "Reasoning in the output",
        "The share of billed output that nobody reads.",
        "percentunit",
        share("strata_reasoning_tokens_total", "strata_output_tokens_total", "model"),
        top=1,
    ),
)

EXACT: tuple[Panel, ...] = (
    stat(
        "This month",
        "Spent since the first of the month (UTC), to the last settled call.",
        "currencyUSD",
        "SELECT coalesce(sum(cost_usd), 0) AS this_month FROM grafana.usage_hourly"
        " WHERE bucket >= date_trunc('month', now(), 'UTC')",
        source="ledger",
        width=6,
    ),
    stat(
        "Last month, to the same day",
        "What had been spent a month ago at this time.",
        "currencyUSD",
        "SELECT coalesce(sum(cost_usd), 0) AS last_month FROM grafana.usage_hourly"
        " WHERE bucket >= date_trunc('month', now(), 'UTC') - interval '1 month'"
        " AND bucket < now() - interval '1 month'",
        source="ledger",
        width=6,
    ),
    stat(
        "Estimated in range",
        "Calls whose tokens the gateway counted itself.",
        "short",
        "SELECT coalesce(sum(estimated), 0) AS estimated FROM grafana.usage_hourly WHERE $CHOSEN",
        source="ledger",
        steps=ODD_ABOVE_ZERO,
        width=6,
    ),
    stat(
        "Without a price in range",
        "Calls that count as no cost.",
        "short",
        "SELECT coalesce(sum(unpriced), 0) AS unpriced FROM grafana.usage_hourly WHERE $CHOSEN",
        source="ledger",
        steps=BAD_ABOVE_ZERO,
        runbook="UnpricedTraffic",
        width=6,
    ),
    lines(
        "Exact spend a day by model",
        "From the ledger, by the day in UTC: what will be on the invoices.",
        "currencyUSD",
        "SELECT date_trunc('day', bucket, 'UTC') AS time, model AS metric, sum(cost_usd) AS value"
        " FROM grafana.usage_hourly WHERE $CHOSEN GROUP BY 1, 2 ORDER BY 1",
        source="ledger",
        stacked=True,
        width=24,
    ),
    table(
        "Who pays for what",
        "By team, person, key and model, with sums for each team and for all (empty cells). The panel's menu downloads "
        "it as CSV.",
        "SELECT team, user_email, key_name, model, sum(attempts) AS attempts, sum(input_tokens) AS input_tokens,"
        " sum(output_tokens) AS output_tokens, round(sum(cost_usd), 4) AS cost_usd"
        " FROM grafana.usage_hourly WHERE $CHOSEN"
        " GROUP BY GROUPING SETS ((team, user_email, key_name, model), (team), ())"
        " ORDER BY team NULLS LAST, cost_usd DESC",
        columns=(
            Column("team", "Team", "string"),
            Column("user_email", "Person", "string"),
            Column("key_name", "Key", "string", logs_link(key="${__data.fields.Key}")),
            Column("model", "Model", "string", logs_link(model="${__data.fields.Model}")),
            Column("attempts", "Calls"),
            Column("input_tokens", "Input tokens"),
            Column("output_tokens", "Output tokens"),
            Column("cost_usd", "Cost", "currencyUSD"),
        ),
        source="ledger",
        width=24,
        height=10,
    ),
    table(
        "Dearest requests",
        "The fifty that cost most in the range. A click on one shows it in the console.",
        "SELECT started_at, request_id, key_name, model, provider, attempts, duration_ms, cost_usd"
        " FROM grafana.requests WHERE $__timeFilter(started_at) AND model ~ '^${model:regex}$'"
        " AND cost_usd > 0 ORDER BY cost_usd DESC LIMIT 50",
        columns=(
            Column("started_at", "Began", "dateTimeAsIso"),
            Column("request_id", "Request", "string", logs_link(request="${__data.fields.Request}")),
            Column("key_name", "Key", "string"),
            Column("model", "Model", "string"),
            Column("provider", "Provider", "string"),
            Column("attempts", "Calls"),
            Column("duration_ms", "Duration", "ms"),
            Column("cost_usd", "Cost", "currencyUSD"),
        ),
        source="ledger",
        width=24,
        height=10,
    ),
)

BOARD = Board(
    uid="strata-cost",
    title="Strata: cost and tokens",
    says="What it costs, for what, and how far the figure can be trusted.",
    rows=(
        Row("Now", NOW),
        Row("Spend", SPEND),
        Row("Tokens", USED),
        Row("From the ledger: exact", EXACT, collapsed=True),
    ),
    variables=("provider", "model", "ledger"),
)
