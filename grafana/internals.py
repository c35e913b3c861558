"""The process itself: what it runs, what it waits for, and whether it loses anything."""

from __future__ import annotations

from grafana.overview import quantile
from grafana.panels import (
    BAD_ABOVE_ZERO,
    ODD_ABOVE_ZERO,
    Ask,
    Board,
    Column,
    Panel,
    Row,
    bad_above,
    lines,
    stat,
    states,
    table,
)

HEALTH: tuple[Panel, ...] = (
    table(
        "Versions and configurations",
        "Each process with its build and the configuration in force. Two hashes for longer than a roll-out: one "
        "process has not taken the new file.",
        "max by (instance, version, python) (strata_build_info{$S})",
        "max by (instance, hash) (strata_config_info{$S})",
        columns=(
            Column("instance", "Process", "string"),
            Column("version", "Version", "string"),
            Column("python", "Python", "string"),
            Column("hash", "Configuration", "string"),
        ),
        width=12,
        runbook="ConfigDrift",
    ),
    stat(
        "Configuration in force for",
        "The time since a configuration was last taken over, in the process where it was most recent.",
        "s",
        "time() - max(strata_config_last_reload_success_timestamp_seconds{$S})",
        runbook="ConfigDrift",
        height=8,
    ),
    states(
        "What it depends on",
        "1 if the last use worked. Without Postgres requests are served and recorded in the journal; without Redis "
        "each process counts its own part of a limit.",
        Ask("min by (dependency) (strata_dependency_up{$S})", "{{dependency}}"),
        width=8,
        runbook="DatabaseAway",
    ),
)

SATURATION: tuple[Panel, ...] = (
    lines(
        "CPU",
        "Cores in use. A process cannot use more than one for requests.",
        "short",
        Ask("rate(process_cpu_seconds_total{$S}[$W])", "{{instance}}"),
        steps=bad_above(0.8, 0.95),
        runbook="EventLoopLate",
    ),
    lines(
        "Memory",
        "Resident memory of each process. It should level out.",
        "bytes",
        Ask("process_resident_memory_bytes{$S}", "{{instance}}"),
    ),
    lines(
        "Event loop lag p99",
        "How late the loop wakes up. Every stream of the process is late by as much.",
        "s",
        Ask(quantile(0.99, "strata_event_loop_lag_seconds", "$S", by="instance"), "{{instance}}"),
        steps=bad_above(0.1, 0.25),
        runbook="EventLoopLate",
    ),
    lines(
        "Time in Postgres p95",
        "By what was asked. No request waits for it, but for a budget's first lease and an unknown key.",
        "s",
        Ask(quantile(0.95, "strata_db_query_duration_seconds", "$S", by="op"), "{{op}}"),
        runbook="DatabaseAway",
    ),
    lines(
        "Connections to Postgres",
        "Of all processes. All of them used for minutes: Postgres is slow, or the pool too small.",
        "short",
        Ask("sum by (state) (strata_db_pool_connections{$S})", "{{state}}"),
        stacked=True,
        runbook="DatabaseAway",
    ),
    lines(
        "Clients connected",
        "Open connections of each process, idle ones too.",
        "short",
        Ask("sum by (instance) (strata_connections_open{$S})", "{{instance}}"),
    ),
)

LIMITS: tuple[Panel, ...] = (
    lines(
        "Limits and Redis",
        "Waited: requests that had to ask Redis first. Alone: let pass by a process's own part of a limit, "
        "because Redis was away.",
        "reqps",
        Ask("sum(rate(strata_limits_asked_total{$S}[$W]))", "waited"),
        Ask("sum(rate(strata_limits_alone_total{$S}[$W]))", "alone"),
        width=16,
        runbook="RedisAway",
    ),
    stat(
        "Processes that share the limits",
        "As Redis said last. Fewer than are running: some do not reach it.",
        "short",
        "max(strata_limits_processes{$S})",
        runbook="RedisAway",
        height=8,
    ),
    stat(
        "Redis was late",
        "Connections given up in the range because an answer did not come in time.",
        "short",
        "sum(increase(strata_redis_late_total{$S}[$__range]))",
        steps=ODD_ABOVE_ZERO,
        runbook="RedisAway",
        height=8,
    ),
    stat(
        "Keys too old to be believed",
        "They have not heard of changed keys for too long: they ask Postgres for each, and refuse while it is away.",
        "short",
        "sum(strata_keys_stale{$S})",
        steps=BAD_ABOVE_ZERO,
        runbook="KeysStale",
        height=8,
    ),
    stat(
        "Keys known",
        "Virtual keys in memory, in the process that knows most.",
        "short",
        "max(strata_keys_known{$S})",
        height=8,
    ),
    lines(
        "Keys looked up in Postgres",
        "Keys that were not in memory: new ones, and wrong ones. A flood of these is somebody who tries keys.",
        "reqps",
        Ask("sum by (instance) (rate(strata_key_lookups_total{$S}[$W]))", "{{instance}}"),
        width=16,
    ),
    lines(
        "What could not be read anew",
        "Keys, budgets, provider keys or an issuer's signing keys: what was known before stays in force. Notices: the "
        "connection that hears of changes was lost.",
        "short",
        Ask("sum by (snapshot) (increase(strata_snapshot_failures_total{$S}[$W]))", "{{snapshot}}"),
        Ask("sum(increase(strata_db_listen_failures_total{$S}[$W]))", "notices"),
        width=12,
        runbook="KeysStale",
    ),
    lines(
        "Sign-ins and passwords",
        "Sign-ins by outcome, passwords that were hashed, and those that wait for it: 32 at most, then sign-ins are "
        "refused for a moment.",
        "short",
        Ask("sum by (outcome) (increase(strata_sign_ins_total{$S}[$W]))", "{{outcome}}"),
        Ask("sum(increase(strata_passwords_hashed_total{$S}[$W]))", "hashed"),
        Ask("sum(strata_passwords_waiting{$S})", "waiting"),
        width=12,
        runbook="PasswordsGuessed",
    ),
)

LEDGER: tuple[Panel, ...] = (
    stat(
        "Usage records lost",
        "Anything but 0 is a wrong bill.",
        "short",
        "sum(increase(strata_ledger_dropped_total{$S}[$__range]))",
        steps=BAD_ABOVE_ZERO,
        runbook="UsageLost",
    ),
    stat(
        "Sent, neither settled nor open",
        "Attempts sent = settled + open, always: this is what is left over.",
        "short",
        "sum(strata_ledger_dispatched_total{$S} - strata_ledger_settled_total{$S} - strata_ledger_open_attempts{$S})",
        steps=BAD_ABOVE_ZERO,
        runbook="UsageUnbalanced",
    ),
    stat(
        "Billed by an estimate after a crash",
        "Attempts that were on the way when their process died. What they really cost is on the provider's invoice.",
        "short",
        "sum(increase(strata_ledger_orphans_total{$S}[$__range]))",
        steps=ODD_ABOVE_ZERO,
    ),
    stat(
        "Requests missing in the history",
        "Left out for want of room or of Postgres. The bill has them; the console's log does not.",
        "short",
        "sum(increase(strata_history_dropped_total{$S}[$__range]))",
        steps=ODD_ABOVE_ZERO,
        runbook="DatabaseAway",
    ),
    stat(
        "Log lines left out",
        "The output was too slow for them.",
        "short",
        "sum(increase(strata_log_lines_dropped_total{$S}[$__range]))",
        steps=ODD_ABOVE_ZERO,
    ),
    stat(
        "Spans that were not sent",
        "The collector of traces was away or too slow. As a share of all spans; 0 too where there are no traces.",
        "percentunit",
        "sum(increase(strata_trace_spans_dropped_total{$S}[$__range])) / clamp_min("
        "sum(increase(strata_trace_spans_dropped_total{$S}[$__range]))"
        " + sum(increase(strata_trace_spans_sent_total{$S}[$__range])), 1)",
        steps=ODD_ABOVE_ZERO,
    ),
    stat(
        "Background tasks that failed",
        "They were started again. Which ones: the line below.",
        "short",
        "sum(increase(strata_task_failures_total{$S}[$__range])) or vector(0)",
        steps=ODD_ABOVE_ZERO,
        runbook="TaskFailing",
    ),
    lines(
        "Not yet in Postgres",
        "Usage records in the journal, and finished requests for the history. Both go down once Postgres is back.",
        "short",
        Ask("sum(strata_ledger_queue_depth{$S})", "usage records"),
        Ask("sum(strata_history_queue_depth{$S})", "history"),
        runbook="UsageLate",
    ),
    lines(
        "How far the ledger is behind",
        "Age of the oldest usage record that is not yet in Postgres.",
        "s",
        Ask("max by (instance) (strata_ledger_write_lag_seconds{$S})", "{{instance}}"),
        steps=bad_above(60, 300),
        runbook="UsageLate",
    ),
    stat(
        "Journal records that no disk has",
        "The disk is full or gone. They are kept in memory, and lost if the process dies now.",
        "short",
        "sum(strata_journal_kept_in_memory{$S})",
        steps=BAD_ABOVE_ZERO,
        width=8,
        runbook="JournalFailing",
    ),
    stat(
        "Journal not confirmed by the disk",
        "Times that the disk refused to say that the journal is safe.",
        "short",
        "sum(increase(strata_journal_sync_failures_total{$S}[$__range]))",
        steps=BAD_ABOVE_ZERO,
        width=8,
        runbook="JournalFailing",
    ),
    stat(
        "Journals of dead processes taken over",
        "Each is one that did not end in order; its records are in Postgres now.",
        "short",
        "sum(increase(strata_ledger_adopted_total{$S}[$__range]))",
        steps=ODD_ABOVE_ZERO,
        width=8,
    ),
    lines(
        "Records a second",
        "Attempts written down before they are sent, brought to Postgres, and requests written to the history.",
        "ops",
        Ask("sum(rate(strata_ledger_dispatched_total{$S}[$W]))", "sent"),
        Ask("sum(rate(strata_ledger_shipped_total{$S}[$W]))", "in Postgres"),
        Ask("sum(rate(strata_history_written_total{$S}[$W]))", "in the history"),
        width=24,
    ),
)

REST: tuple[Panel, ...] = (
    lines(
        "Failed background tasks",
        "Each is started again, after a pause that grows.",
        "short",
        Ask("sum by (task) (increase(strata_task_failures_total{$S}[$W]))", "{{task}}"),
        width=8,
        runbook="TaskFailing",
    ),
    lines(
        "Alerts by channel",
        "Alerts that went out or could not. A failed one is tried again.",
        "short",
        Ask("sum by (channel, outcome) (increase(strata_alerts_sent_total{$S}[$W]))", "{{channel}}: {{outcome}}"),
        width=8,
    ),
    lines(
        "Provider keys in the vault",
        "Those that need attention cannot be opened with the master keys this process has.",
        "short",
        Ask("max by (state) (strata_provider_keys{$S})", "{{state}}"),
        width=8,
        runbook="ProviderKeysUnusable",
    ),
    lines(
        "Series that Prometheus reads",
        "Of each process. Names come from the configuration, so this grows with it and not with traffic.",
        "short",
        Ask("scrape_samples_scraped{$S}", "{{instance}}"),
    ),
    lines(
        "Label values folded into _other",
        "Names that are in no configuration, or beyond a bound. For keys: raise telemetry.metrics.max_keys.",
        "short",
        Ask("sum by (label) (increase(strata_metric_label_overflow_total{$S}[$W]))", "{{label}}"),
    ),
)

BOARD = Board(
    uid="strata-internals",
    title="Strata: gateway internals",
    says="The process itself: what it runs, what it waits for, and whether it loses anything.",
    rows=(
        Row("Health", HEALTH),
        Row("Saturation", SATURATION),
        Row("Limits, keys, people", LIMITS),
        Row("Ledger and history", LEDGER),
        Row("Tasks, alerts, vault, metrics", REST),
    ),
)
