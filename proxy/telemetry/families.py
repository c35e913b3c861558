"""
Every metric there is: name, type, labels, help, buckets.

Dashboards and alert rules depend on this table, and docs/metrics.md is written from it. Time is kept in nanoseconds and
money in nano-dollars; `divisor` turns them into the base unit.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

NANO = 1_000_000_000


class Family(NamedTuple):
    """One metric. `buckets` are upper bounds in the exposed unit; `divisor` is what a stored value is divided by."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str
    divisor: int = 1
    buckets: tuple[float, ...] = ()


def _counter(name: str, labels: str, text: str, divisor: int = 1) -> Family:
    return Family(name, "counter", tuple(labels.split()), text, divisor)


def _gauge(name: str, labels: str, text: str, divisor: int = 1) -> Family:
    return Family(name, "gauge", tuple(labels.split()), text, divisor)


def _seconds(name: str, labels: str, text: str, *buckets: float) -> Family:
    return Family(name, "histogram", tuple(labels.split()), text, NANO, buckets)


_DURATION = (0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)
_FIRST_TOKEN = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 60)
_PER_TOKEN = (0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1)
_OVERHEAD = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)

FAMILIES: tuple[Family, ...] = (
    _counter(
        "strata_requests_total",
        "endpoint model provider code error_type",
        'Client requests by final result; an empty error_type is success, provider "none" was refused before routing.',
    ),
    _seconds(
        "strata_request_duration_seconds",
        "endpoint model provider",
        "From the first byte of a request to the last byte of its answer.",
        *_DURATION,
    ),
    _seconds(
        "strata_time_to_first_token_seconds",
        "model provider",
        "Streams only: from the request to the first event with content.",
        *_FIRST_TOKEN,
    ),
    _seconds(
        "strata_time_per_output_token_seconds",
        "model provider",
        "Streams only: the mean time between two output tokens of one answer.",
        *_PER_TOKEN,
    ),
    _seconds(
        "strata_overhead_seconds", "endpoint", "The gateway's own time; waits for providers left out.", *_OVERHEAD
    ),
    _gauge("strata_requests_in_flight", "endpoint", "Client requests being served now."),
    _counter(
        "strata_upstream_attempts_total",
        "deployment provider outcome",
        "Calls to providers by outcome: ok, or an error type.",
    ),
    _seconds("strata_upstream_duration_seconds", "deployment provider", "How long one call took.", *_DURATION),
    _counter("strata_retries_total", "model reason", "Further attempts of a request, by what failed before."),
    _counter("strata_fallbacks_total", "model to", "Requests that went on to another model."),
    _gauge("strata_deployment_up", "deployment provider", "0 while a deployment rests."),
    _counter("strata_deployment_cooldowns_total", "deployment provider reason", "How often a deployment went to rest."),
    _gauge(
        "strata_upstream_ratelimit_remaining_ratio",
        "deployment provider limit",
        "What the provider's own headers say is left of its limit, 0 to 1.",
    ),
    _counter("strata_input_tokens_total", "model provider", "Billed prompt tokens, cached and written ones included."),
    _counter("strata_output_tokens_total", "model provider", "Billed completion tokens, reasoning included."),
    _counter("strata_cached_input_tokens_total", "model provider", "Prompt tokens read from a provider's cache."),
    _counter("strata_cache_write_tokens_total", "model provider", "Prompt tokens written to a provider's cache."),
    _counter("strata_reasoning_tokens_total", "model provider", "Completion tokens spent on reasoning."),
    _counter("strata_cost_usd_total", "model provider", "What the calls cost, in US dollars.", NANO),
    _counter(
        "strata_unpriced_requests_total", "model provider", "Calls whose price is unknown; they count as no cost."
    ),
    _counter("strata_usage_estimated_total", "model provider", "Calls whose tokens we counted ourselves."),
    _counter("strata_key_requests_total", "key result", "Requests by virtual key: ok or error."),
    _counter("strata_key_cost_usd_total", "key", "Cost by virtual key, in US dollars.", NANO),
    _counter("strata_key_tokens_total", "key direction", "Tokens by virtual key: input or output."),
    _gauge("strata_budget_limit_usd", "scope name window", "The limit of a budget.", NANO),
    _gauge("strata_budget_spent_usd", "scope name window", "What a budget's current period has spent.", NANO),
    _gauge("strata_budget_reset_timestamp_seconds", "scope name window", "When a budget's current period ends."),
    _counter("strata_rate_limited_total", "scope limit", "Requests refused by our own limits."),
    _counter(
        "strata_limits_alone_total", "", "Requests let pass by a process's own part of a limit, for want of Redis."
    ),
    _counter("strata_limits_asked_total", "", "Questions to Redis about a limit that a request waited for."),
    _gauge("strata_limits_processes", "", "How many processes share the limits, as Redis said last."),
    _counter("strata_redis_late_total", "", "Connections to Redis ended because an answer was late."),
    _gauge("strata_config_last_reload_success_timestamp_seconds", "", "When the configuration in force was loaded."),
    _gauge("strata_config_info", "hash", "1 for the configuration in force."),
    _gauge("strata_build_info", "version python", "1 for this build."),
    _seconds("strata_event_loop_lag_seconds", "", "How late the event loop wakes up.", *_SHORT),
    _seconds(
        "strata_db_query_duration_seconds",
        "op",
        "How long Postgres took, the wait for a connection included, failures too.",
        *_SHORT,
    ),
    _gauge("strata_db_pool_connections", "state", "Connections to Postgres: idle or used."),
    _counter("strata_db_listen_failures_total", "", "Connections for Postgres' notices that were lost or refused."),
    _gauge("strata_connections_open", "", "Connections of clients."),
    _gauge(
        "strata_upstream_connections",
        "provider state",
        "Connections to a provider: active or idle; waiting are requests that wait for one.",
    ),
    _gauge("strata_dependency_up", "dependency", "1 if the last use of a dependency worked."),
    _gauge("strata_ledger_queue_depth", "", "Usage records in the journal that are not yet in Postgres."),
    _gauge("strata_ledger_write_lag_seconds", "", "Age of the oldest usage record that is not yet in Postgres."),
    _counter("strata_ledger_dropped_total", "", "Usage records lost. Anything but 0 is a wrong bill."),
    _counter("strata_ledger_dispatched_total", "", "Attempts written down before they were sent."),
    _counter("strata_ledger_settled_total", "", "Of these, settled: dispatched = settled + open, always."),
    _gauge("strata_ledger_open_attempts", "", "Attempts in the journal that are sent and not settled yet."),
    _counter("strata_ledger_shipped_total", "", "Usage records that this process has brought to Postgres."),
    _counter("strata_ledger_adopted_total", "", "Journals of dead processes that this one has brought to Postgres."),
    _gauge("strata_journal_kept_in_memory", "", "Journal records that no disk has taken yet."),
    _counter("strata_journal_sync_failures_total", "", "Times that the disk did not confirm the journal."),
    _counter("strata_ledger_orphans_total", "", "Attempts of dead processes that were billed by an estimate."),
    _counter("strata_budget_overrun_usd_total", "", "What answers cost beyond the money set aside for them.", NANO),
    _counter("strata_budget_stranded_usd_total", "", "Leases given back without an answer from Postgres.", NANO),
    _counter("strata_budget_failures_total", "", "Sweeps of idle budget leases that failed."),
    _gauge("strata_keys_known", "", "Virtual keys in this process's memory."),
    _gauge("strata_keys_stale", "", "1 while what is known of keys is too old to be believed."),
    _counter("strata_key_lookups_total", "", "Single keys looked up in Postgres, since they were not in memory."),
    _counter(
        "strata_snapshot_failures_total",
        "snapshot",
        "Times that keys, budgets, provider keys or an issuer's signing keys could not be read anew.",
    ),
    _counter("strata_sign_ins_total", "outcome", "Passwords given: ok, refused, or too_often."),
    _counter("strata_passwords_hashed_total", "", "Passwords hashed, to check or to save them."),
    _gauge("strata_passwords_waiting", "", "Passwords that are being hashed or wait for it; 32 at most."),
    _gauge(
        "strata_provider_keys",
        "state",
        "Provider keys of users, teams and everybody: usable, or attention for those that cannot be opened.",
    ),
    _gauge("strata_history_queue_depth", "", "Finished requests that are not yet in the history."),
    _counter("strata_history_written_total", "", "Requests written to the history."),
    _counter("strata_history_dropped_total", "", "Requests left out of the history, for want of room or of Postgres."),
    _gauge("strata_price_list_timestamp_seconds", "", "The day of the price list that came with this build."),
    _counter("strata_trace_spans_sent_total", "", "Spans that a collector of traces has taken."),
    _counter("strata_trace_spans_dropped_total", "", "Spans dropped because the collector was away or too slow."),
    _counter("strata_alerts_sent_total", "channel outcome", "Alerts by channel: sent or failed."),
    _counter("strata_task_failures_total", "task", "Background tasks that failed and were started again."),
    _counter("strata_log_lines_dropped_total", "", "Request log lines left out because the output was too slow."),
    _counter("strata_metric_label_overflow_total", "label", "Label values folded into _other."),
)
