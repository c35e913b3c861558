"""
Writes the metrics that `families` declares: `record` for a finished request, `record_attempt` for a settled one.

Every label value comes from the configuration or a closed list; anything else is `_other`, and counted. All methods
belong to the event loop's thread, and all but `pages` cost a few dictionary look-ups.
"""

from __future__ import annotations

import itertools
import platform
import time
from collections.abc import Callable, Iterable, Iterator

import msgspec
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder

from proxy import __version__
from proxy.config import Config
from proxy.errors import ERROR_TYPES
from proxy.exchange import Attempt, Exchange
from proxy.telemetry.cells import Cell, Distribution, Store
from proxy.telemetry.exposition import slices
from proxy.telemetry.families import NANO
from proxy.telemetry.labels import CODES, LIMITED, LIMITS, NO_PROVIDER, OTHER, OUTCOMES, SCOPES, Labels

FIRST_ENDPOINT = "chat"
"""The endpoint whose series start at zero."""

_ESTIMATED = frozenset({"counted", "ambiguous", "orphan"})
_BOUND_LIMIT = 4096
"""Bound combinations kept; past it they are forgotten and bound again."""


class _RequestCells(msgspec.Struct, frozen=True):
    """Where one kind of request is counted: bound once, so that a request pays for one look-up."""

    requests: Cell
    duration: Distribution
    overhead: Distribution
    first_token: Distribution | None
    per_token: Distribution | None


class _KeyCells(msgspec.Struct, frozen=True):
    cost: Cell
    input: Cell
    output: Cell


class _AttemptCells(msgspec.Struct, frozen=True):
    attempts: Cell
    duration: Distribution
    input: Cell
    output: Cell
    cached: Cell
    written: Cell
    reasoning: Cell
    cost: Cell
    unpriced: Cell
    estimated: Cell
    key: _KeyCells | None


class Metrics:
    """All metrics of one process. `configure` before use and after every reload; `clock` is the one of `Exchange`."""

    def __init__(
        self,
        config: Config | None = None,
        *,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock_ns = clock_ns
        self._wall_clock = wall_clock
        self._store = Store()
        self._process = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._process)
        self._labels = Labels(self._store.scalars["strata_metric_label_overflow_total"])
        self._request_cells: dict[tuple[str, str, str, int, str, bool], _RequestCells] = {}
        self._attempt_cells: dict[tuple[str, str, str, str, str], _AttemptCells] = {}
        self._key_requests = self._store.scalars["strata_key_requests_total"].cell
        self._in_flight: dict[str, Cell] = {}
        self._start_at_zero()
        self._lag = self._histogram("strata_event_loop_lag_seconds")
        self._scalar("strata_build_info", __version__, platform.python_version()).value = 1
        self.configure(config or Config())

    def configure(self, config: Config) -> None:
        """Learns the names that a configuration gives, and starts their series at zero. Again after every reload."""
        self._labels.learn(config)
        self._request_cells.clear()
        self._attempt_cells.clear()
        live = set()
        for model in config.models.values():
            for deployment in model.deployments:
                provider = deployment.provider.name
                self._bind_attempt(provider, deployment.model, "ok", model.name, "")
                self._bind_request(FIRST_ENDPOINT, model.name, provider, 200, "", True)
                live.add((deployment.name, provider))
            for to in model.fallbacks:
                self._scalar("strata_fallbacks_total", model.name, self._labels.known_model(to))
        for channel, outcome in itertools.product(config.alerts.channels, ("sent", "failed")):
            self._scalar("strata_alerts_sent_total", self._labels.channels.take(channel.name), outcome)
        for key in config.keys.static:
            name = self._labels.keys.take(key.name)
            self._key_requests(name, "ok")
            self._key_cells(name)
        up = self._store.scalars["strata_deployment_up"].cells
        for gone in up.keys() - live:
            del up[gone]
        for values in live - up.keys():
            self._scalar("strata_deployment_up", *values).value = 1

    def request_started(self, endpoint: str) -> None:
        cell = self._in_flight.get(endpoint) or self._bind_in_flight(endpoint)
        cell.value += 1

    def request_ended(self, endpoint: str) -> None:
        cell = self._in_flight.get(endpoint) or self._bind_in_flight(endpoint)
        cell.value -= 1

    def record(self, exchange: Exchange) -> None:
        """Counts a request whose answer has ended, by its final result. Call once."""
        ended_ns = self._clock_ns()
        model = self._labels.model(exchange)
        served = exchange.served
        provider = served.deployment.provider.name if served is not None else NO_PROVIDER
        error = exchange.error
        error_type = error.error_type if error is not None else "caller_cancelled" if exchange.client_left else ""
        key = (exchange.endpoint, model, provider, exchange.status, error_type, exchange.stream)
        cells = self._request_cells.get(key) or self._bind_request(*key)
        cells.requests.value += 1
        duration_ns = ended_ns - exchange.started_ns
        cells.duration.observe_of(duration_ns, exchange.request_id, exchange.started_at_ms)
        overhead_ns = duration_ns - exchange.upstream_wait_ns
        cells.overhead.observe(overhead_ns if overhead_ns > 0 else 0)
        if served is not None and cells.first_token is not None and cells.per_token is not None:
            first_ns = served.first_event_ns
            if first_ns:
                cells.first_token.observe_of(
                    first_ns - exchange.started_ns, exchange.request_id, exchange.started_at_ms
                )
                tokens = served.usage.completion if served.usage is not None else 0
                if tokens > 1:
                    cells.per_token.observe(((served.ended_ns or ended_ns) - first_ns) // (tokens - 1))
        caller = exchange.caller
        if caller is not None:
            self._key_requests(self._labels.keys.take(caller.name), "error" if error_type else "ok").value += 1

    def record_attempt(self, exchange: Exchange, attempt: Attempt) -> None:
        """Counts a settled attempt: its outcome, duration, tokens and cost. Call once, after it has been priced."""
        model = self._labels.model(exchange)
        deployment = attempt.deployment
        caller = exchange.caller
        name = self._labels.keys.take(caller.name) if caller is not None else ""
        key = (deployment.provider.name, deployment.model, attempt.outcome, model, name)
        cells = self._attempt_cells.get(key) or self._bind_attempt(*key)
        cells.attempts.value += 1
        cells.duration.observe((attempt.ended_ns or self._clock_ns()) - attempt.started_ns)
        usage = attempt.usage
        if usage is None:
            return
        prompt, completion = usage.prompt, usage.completion
        cells.input.value += prompt
        cells.output.value += completion
        if usage.cache_read:
            cells.cached.value += usage.cache_read
        if usage.cache_write_5m or usage.cache_write_1h:
            cells.written.value += usage.cache_write_5m + usage.cache_write_1h
        if usage.reasoning:
            cells.reasoning.value += usage.reasoning
        cost = attempt.cost_nano_usd
        cells.cost.value += cost
        if attempt.price_state == "unknown":
            cells.unpriced.value += 1
        if attempt.source in _ESTIMATED:
            cells.estimated.value += 1
        if cells.key is not None:
            cells.key.cost.value += cost
            cells.key.input.value += prompt
            cells.key.output.value += completion

    def set_deployment_up(self, deployment: str, provider: str, up: bool) -> None:
        self._scalar("strata_deployment_up", *self._deployment_labels(deployment, provider)).value = int(up)

    def count_cooldown(self, deployment: str, provider: str, reason: str) -> None:
        labels = self._deployment_labels(deployment, provider)
        reason = self._labels.closed("reason", reason, ERROR_TYPES)
        self._scalar("strata_deployment_cooldowns_total", *labels, reason).value += 1

    def set_ratelimits(self, remaining: Iterable[tuple[str, str, str, float]]) -> None:
        """All that is known now: deployment, provider, limit, and what is left of it, 0 to 1."""
        gauge = self._store.scalars["strata_upstream_ratelimit_remaining_ratio"]
        gauge.cells.clear()
        for deployment, provider, limit, ratio in remaining:
            labels = self._deployment_labels(deployment, provider)
            gauge.cell(*labels, self._labels.provider_limits.take(limit)).value = ratio

    def count_retry(self, model: str, reason: str) -> None:
        reason = self._labels.closed("reason", reason, ERROR_TYPES)
        self._scalar("strata_retries_total", self._labels.known_model(model), reason).value += 1

    def count_fallback(self, model: str, to: str) -> None:
        self._scalar("strata_fallbacks_total", self._labels.known_model(model), self._labels.known_model(to)).value += 1

    def count_rate_limited(self, scope: str, limit: str) -> None:
        """`scope`: key, user, team, model, provider or global; `limit`: rpm, tpm, concurrency or budget."""
        scope, limit = self._labels.closed("scope", scope, SCOPES), self._labels.closed("limit", limit, LIMITS)
        self._scalar("strata_rate_limited_total", scope, limit).value += 1

    def set(self, name: str, value: float, *labels: str) -> None:
        """
        What another part counts by itself: a gauge, or the total of a counter since the start. Names and labels are
        those of `families`; money is in nano-dollars. The labels must be of a closed list, or have been folded.
        """
        self._scalar(name, *labels).value = value

    def start_at_zero(self, name: str, *labels: str) -> None:
        """Shows a series before it is counted for the first time, so that its first increment is seen as one."""
        self._scalar(name, *labels)

    def observe_loop_lag(self, seconds: float) -> None:
        self._lag.observe(int(seconds * NANO))

    def observe_query(self, op: str, seconds: float) -> None:
        op = self._labels.operations.take(op)
        self._histogram("strata_db_query_duration_seconds", op).observe(int(seconds * NANO))

    def set_budget(
        self,
        scope: str,
        name: str,
        window: str,
        *,
        limit_nano_usd: int,
        spent_nano_usd: int,
        resets_at_seconds: float | None = None,
    ) -> None:
        """The current period of one budget; `name` is the key's, user's, team's or provider's, `window` as in `30d`."""
        name = self._labels.budgets.take(name)
        if name == OTHER:
            return  # several budgets in one gauge would say nothing about any of them
        labels = (self._labels.closed("scope", scope, SCOPES), name, self._labels.windows.take(window))
        self._scalar("strata_budget_limit_usd", *labels).value = limit_nano_usd
        self._scalar("strata_budget_spent_usd", *labels).value = spent_nano_usd
        if resets_at_seconds is not None:
            self._scalar("strata_budget_reset_timestamp_seconds", *labels).value = resets_at_seconds

    def forget_budgets(self) -> None:
        """Before those in force are set again: one that has ended is no number any more."""
        for name in ("strata_budget_limit_usd", "strata_budget_spent_usd", "strata_budget_reset_timestamp_seconds"):
            self._store.scalars[name].cells.clear()

    def count_alert(self, channel: str, sent: bool) -> None:
        channel = self._labels.channels.take(channel)
        self._scalar("strata_alerts_sent_total", channel, "sent" if sent else "failed").value += 1

    def count_task_failure(self, task: str) -> None:
        self._scalar("strata_task_failures_total", self._labels.tasks.take(task)).value += 1

    def config_loaded(self, hash: str) -> None:
        info = self._store.scalars["strata_config_info"]
        info.cells.clear()
        info.cell(hash).value = 1
        self._scalar("strata_config_last_reload_success_timestamp_seconds").value = self._wall_clock()

    def pages(self, accept: str = "") -> tuple[Iterator[bytes], str]:
        """
        The exposition in slices, and its content type: OpenMetrics if `accept` asks for it, else Prometheus' text
        format. Each slice takes well under a millisecond: give way to others between two.
        """
        encode, content_type = choose_encoder(accept)
        openmetrics = "openmetrics" in content_type

        def sliced() -> Iterator[bytes]:
            for text in slices(self._store, openmetrics=openmetrics):
                yield text.encode()
            yield encode(self._process)

        return sliced(), content_type

    def _start_at_zero(self) -> None:
        """What needs no configuration to be known."""
        for scalars in self._store.scalars.values():
            if not scalars.family.labels:
                scalars.cell()
        for distributions in self._store.distributions.values():
            if not distributions.family.labels:
                distributions.cell()
        self._scalar("strata_requests_in_flight", FIRST_ENDPOINT)
        for scope, limit in LIMITED:
            self._scalar("strata_rate_limited_total", scope, limit)

    def _scalar(self, name: str, *labels: str) -> Cell:
        return self._store.scalars[name].cell(*labels)

    def _histogram(self, name: str, *labels: str) -> Distribution:
        return self._store.distributions[name].cell(*labels)

    def _deployment_labels(self, deployment: str, provider: str) -> tuple[str, str]:
        known = self._labels.deployment(provider, deployment.removeprefix(f"{provider}/"))
        return known, self._labels.provider(provider)

    def _bind_in_flight(self, endpoint: str) -> Cell:
        cell = self._scalar("strata_requests_in_flight", self._labels.endpoints.take(endpoint))
        if len(self._in_flight) < _BOUND_LIMIT:
            self._in_flight[endpoint] = cell
        return cell

    def _bind_request(
        self, endpoint: str, model: str, provider: str, status: int, error_type: str, stream: bool
    ) -> _RequestCells:
        key = (endpoint, model, provider, status, error_type, stream)
        endpoint = self._labels.endpoints.take(endpoint)
        provider = self._labels.provider(provider)
        error_type = self._labels.closed("error_type", error_type, OUTCOMES)
        code = CODES.get(status, OTHER)
        cells = _RequestCells(
            self._scalar("strata_requests_total", endpoint, model, provider, code, error_type),
            self._histogram("strata_request_duration_seconds", endpoint, model, provider),
            self._histogram("strata_overhead_seconds", endpoint),
            self._histogram("strata_time_to_first_token_seconds", model, provider) if stream else None,
            self._histogram("strata_time_per_output_token_seconds", model, provider) if stream else None,
        )
        if len(self._request_cells) >= _BOUND_LIMIT:
            self._request_cells.clear()
        self._request_cells[key] = cells
        return cells

    def _bind_attempt(self, provider: str, upstream_model: str, outcome: str, model: str, key: str) -> _AttemptCells:
        bound = (provider, upstream_model, outcome, model, key)
        deployment = self._labels.deployment(provider, upstream_model)
        provider = self._labels.provider(provider)
        outcome = self._labels.closed("error_type", outcome, OUTCOMES)
        pair = (model, provider)
        cells = _AttemptCells(
            self._scalar("strata_upstream_attempts_total", deployment, provider, outcome),
            self._histogram("strata_upstream_duration_seconds", deployment, provider),
            self._scalar("strata_input_tokens_total", *pair),
            self._scalar("strata_output_tokens_total", *pair),
            self._scalar("strata_cached_input_tokens_total", *pair),
            self._scalar("strata_cache_write_tokens_total", *pair),
            self._scalar("strata_reasoning_tokens_total", *pair),
            self._scalar("strata_cost_usd_total", *pair),
            self._scalar("strata_unpriced_requests_total", *pair),
            self._scalar("strata_usage_estimated_total", *pair),
            self._key_cells(key) if key else None,
        )
        if len(self._attempt_cells) >= _BOUND_LIMIT:
            self._attempt_cells.clear()
        self._attempt_cells[bound] = cells
        return cells

    def _key_cells(self, key: str) -> _KeyCells:
        return _KeyCells(
            self._scalar("strata_key_cost_usd_total", key),
            self._scalar("strata_key_tokens_total", key, "input"),
            self._scalar("strata_key_tokens_total", key, "output"),
        )
