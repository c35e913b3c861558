"""
The metrics page of a gateway: what the parts count by themselves is read when somebody scrapes, in one step, and the
page then rendered in slices.

In one step: nothing else runs meanwhile, so that attempts sent are attempts settled and open on every page, to the
last one. A part that keeps a number keeps a plain integer, and knows nothing of metrics.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from proxy.admission.sharing import Shared

if TYPE_CHECKING:
    from proxy.app import Gateway


def scrape(gateway: Gateway, accept: str) -> tuple[Iterator[bytes], str]:
    """The page in slices, and its content type."""
    gateway.resting.wake(time.monotonic())
    _tell_money(gateway)
    _tell_stores(gateway)
    _tell_people(gateway)
    _tell_limits(gateway)
    _tell_connections(gateway)
    return gateway.metrics.pages(accept)


def _tell_money(gateway: Gateway) -> None:
    tell, meter, shipper, journal = gateway.metrics.set, gateway.meter, gateway.shipper, gateway.journal
    tell("strata_ledger_dispatched_total", meter.dispatched_total)
    tell("strata_ledger_settled_total", meter.settled_total)
    tell("strata_ledger_open_attempts", len(journal.open_dispatches))
    tell("strata_ledger_shipped_total", shipper.shipped_total)
    tell("strata_ledger_queue_depth", shipper.queue_depth)
    tell("strata_ledger_write_lag_seconds", shipper.lag_seconds)
    tell("strata_ledger_dropped_total", shipper.dropped_total)
    tell("strata_ledger_adopted_total", shipper.adopted_total)
    tell("strata_ledger_orphans_total", shipper.orphans_total)
    tell("strata_journal_kept_in_memory", journal.kept_in_memory)
    tell("strata_journal_sync_failures_total", journal.sync_failures)
    budgets = gateway.budgets
    tell("strata_budget_overrun_usd_total", budgets.overrun_nano_usd_total)
    tell("strata_budget_stranded_usd_total", budgets.stranded_nano_usd_total)
    tell("strata_budget_failures_total", budgets.failures_total)
    day = datetime.fromisoformat(gateway.prices.date).replace(tzinfo=UTC)
    tell("strata_price_list_timestamp_seconds", int(day.timestamp()))


def _tell_stores(gateway: Gateway) -> None:
    tell, database, redis, history = gateway.metrics.set, gateway.database, gateway.redis, gateway.history
    tell("strata_dependency_up", int(database.up), "database")
    tell("strata_dependency_up", int(not gateway.journal.failing), "journal")
    idle, used = database.connections
    tell("strata_db_pool_connections", idle, "idle")
    tell("strata_db_pool_connections", used, "used")
    tell("strata_db_listen_failures_total", database.listen_failures_total)
    if redis is not None:
        tell("strata_dependency_up", int(redis.up), "redis")
        tell("strata_redis_late_total", redis.late_total)
    tell("strata_history_queue_depth", history.queue_depth)
    tell("strata_history_written_total", history.written_total)
    tell("strata_history_dropped_total", history.dropped_total)
    spans_sent, spans_dropped = gateway.traces.totals
    tell("strata_trace_spans_sent_total", spans_sent)
    tell("strata_trace_spans_dropped_total", spans_dropped)
    tell("strata_log_lines_dropped_total", gateway.request_log.dropped)


def _tell_people(gateway: Gateway) -> None:
    tell, keyring, own_keys = gateway.metrics.set, gateway.keyring, gateway.own_keys
    tell("strata_keys_known", len(keyring))
    tell("strata_keys_stale", int(keyring.stale))
    tell("strata_key_lookups_total", keyring.lookups_total)
    tell("strata_snapshot_failures_total", keyring.failures_total, "keys")
    tell("strata_snapshot_failures_total", gateway.bindings.failures_total, "budgets")
    tell("strata_snapshot_failures_total", own_keys.failures_total, "provider_keys")
    if gateway.published_keys is not None:
        tell("strata_snapshot_failures_total", gateway.published_keys.failures_total, "signing_keys")
    attention = len(own_keys.attention)
    tell("strata_provider_keys", max(0, len(own_keys) - attention), "usable")
    tell("strata_provider_keys", attention, "attention")
    for outcome, count in gateway.signing_in.outcomes.items():
        tell("strata_sign_ins_total", count, outcome)
    tell("strata_passwords_hashed_total", gateway.passwords.hashed_total)
    tell("strata_passwords_waiting", gateway.passwords.waiting)


def _tell_limits(gateway: Gateway) -> None:
    turns = gateway.turns
    if isinstance(turns, Shared):
        gateway.metrics.set("strata_limits_alone_total", turns.alone_total)
        gateway.metrics.set("strata_limits_asked_total", turns.asked_total)
        gateway.metrics.set("strata_limits_processes", turns.workers)
    else:
        gateway.metrics.set("strata_limits_processes", 1)
    gateway.metrics.set_ratelimits(gateway.headroom.left())


def _tell_connections(gateway: Gateway) -> None:
    metrics = gateway.metrics
    metrics.set("strata_connections_open", len(gateway.door.connections))
    for name, account in gateway.accounts.items():
        pool = account.pool
        for state, count in (("active", pool.active), ("idle", pool.idle), ("waiting", pool.waiting)):
            metrics.set("strata_upstream_connections", count, name, state)
    for task in gateway.rounds.names:
        metrics.start_at_zero("strata_task_failures_total", task)
