"""What an operator scrapes: the right counts, a bounded number of series, both formats."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families
from starlette.requests import Request

from proxy.config import Alerts, Config, Deployment, Keys, Model, Provider, Secret, StaticKey, Webhook
from proxy.config import Metrics as MetricsConfig
from proxy.edge.ops import Ops
from proxy.errors import CallerError, Unauthenticated, UpstreamError
from proxy.exchange import Attempt, Caller, Exchange, Usage
from proxy.telemetry.cells import Distribution, Store
from proxy.telemetry.exposition import SLICE_LINES, slices
from proxy.telemetry.families import FAMILIES, Family
from proxy.telemetry.labels import OTHER
from proxy.telemetry.metrics import Metrics

MS = 1_000_000
SECOND = 1_000_000_000
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


class Clock:
    """A monotonic clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now_ns = 1_000 * SECOND

    def __call__(self) -> int:
        return self.now_ns


ACME = Provider(name="acme", api_base="http://127.0.0.1:1")
WILD = Provider(name="wild", api_base="http://127.0.0.1:1")
FAST = Model(name="fast", deployments=(Deployment(provider=ACME, model="a-1"),), fallbacks=("slow",))
SLOW = Model(name="slow", deployments=(Deployment(provider=ACME, model="a-2"),))
ANY = Model(name="wild/*", deployments=(Deployment(provider=WILD, model="*"),))
CONFIG = Config(
    providers={"acme": ACME, "wild": WILD},
    models={model.name: model for model in (FAST, SLOW, ANY)},
    metrics=MetricsConfig(max_keys=3),
    keys=Keys(static=(StaticKey(name="ci", key=Secret("sk-strata-static")),)),
    alerts=Alerts(channels=(Webhook(name="ops", url=Secret("http://127.0.0.1:9/")),)),
)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def metrics(clock: Clock) -> Metrics:
    return Metrics(CONFIG, clock_ns=clock, wall_clock=lambda: 1_700_000_000.0)


def exchange_of(clock: Clock, model: Model = FAST, *, stream: bool = False, key: str = "ci") -> Exchange:
    return Exchange(
        id=bytes(16),
        request_id="req_1",
        endpoint="chat",
        started_at_ms=0,
        started_ns=clock.now_ns,
        stream=stream,
        model=model.name,
        resolved=model,
        caller=Caller(key_id="1", name=key, display="sk-strata-…"),
        status=200,
    )


def attempt_of(exchange: Exchange, usage: Usage | None = None, outcome: str = "ok") -> Attempt:
    assert exchange.resolved is not None
    attempt = Attempt(
        number=len(exchange.attempts) + 1,
        deployment=exchange.resolved.deployments[0],
        started_ns=exchange.started_ns,
        outcome=outcome,
        usage=usage,
        price_state="priced",
        source="provider" if usage else "none",
    )
    exchange.attempts.append(attempt)
    return attempt


def page(metrics: Metrics, accept: str = "") -> tuple[bytes, str]:
    slices, content_type = metrics.pages(accept)
    return b"".join(slices), content_type


def parsed(text: str, accept: str) -> Iterator[Metric]:
    """As Prometheus' own client reads it."""
    if "openmetrics" in accept:
        yield from openmetrics.text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
    else:
        yield from text_string_to_metric_families(text)


def samples(metrics: Metrics, accept: str = "") -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    body, _ = page(metrics, accept)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parsed(body.decode(), accept)
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, /, **labels: str) -> float:
    return samples(metrics)[name, frozenset(labels.items())]


def total(metrics: Metrics, name: str) -> float:
    return sum(number for (sample, _), number in samples(metrics).items() if sample == name)


def test_a_request_is_counted_with_its_duration_and_our_share_of_it(metrics: Metrics, clock: Clock) -> None:
    exchange = exchange_of(clock)
    attempt_of(exchange).ended_ns = clock.now_ns + 900 * MS
    exchange.upstream_wait_ns = 896 * MS
    clock.now_ns += 900 * MS
    metrics.record(exchange)
    metrics.record_attempt(exchange, exchange.attempts[0])

    edge = {"endpoint": "chat", "model": "fast", "provider": "acme"}
    assert value(metrics, "strata_requests_total", **edge, code="200", error_type="") == 1
    assert value(metrics, "strata_request_duration_seconds_sum", **edge) == 0.9
    assert value(metrics, "strata_request_duration_seconds_bucket", **edge, le="0.5") == 0
    assert value(metrics, "strata_request_duration_seconds_bucket", **edge, le="1.0") == 1
    assert value(metrics, "strata_overhead_seconds_sum", endpoint="chat") == 0.004
    assert value(metrics, "strata_overhead_seconds_bucket", endpoint="chat", le="0.003") == 0
    assert value(metrics, "strata_overhead_seconds_bucket", endpoint="chat", le="0.005") == 1
    upstream = {"deployment": "acme/a-1", "provider": "acme"}
    assert value(metrics, "strata_upstream_attempts_total", **upstream, outcome="ok") == 1
    assert value(metrics, "strata_upstream_duration_seconds_sum", **upstream) == 0.9
    assert value(metrics, "strata_key_requests_total", key="ci", result="ok") == 1


def test_only_streams_have_a_first_token_and_time_per_token(metrics: Metrics, clock: Clock) -> None:
    for stream in (False, True):
        exchange = exchange_of(clock, stream=stream)
        attempt = attempt_of(exchange, Usage(output=8, reasoning=3))
        attempt.first_event_ns = exchange.started_ns + 350 * MS
        attempt.ended_ns = attempt.first_event_ns + 200 * MS
        clock.now_ns += 600 * MS
        metrics.record(exchange)
    labels = {"model": "fast", "provider": "acme"}
    assert value(metrics, "strata_time_to_first_token_seconds_count", **labels) == 1
    assert value(metrics, "strata_time_to_first_token_seconds_bucket", **labels, le="0.35") == 1
    assert value(metrics, "strata_time_to_first_token_seconds_bucket", **labels, le="0.2") == 0
    assert value(metrics, "strata_time_per_output_token_seconds_sum", **labels) == 0.02


def test_tokens_and_money_are_counted_by_model_and_by_key(metrics: Metrics, clock: Clock) -> None:
    usage = Usage(input=10, cache_read=4, cache_write_5m=2, cache_write_1h=1, output=5, reasoning=7)
    exchange = exchange_of(clock)
    attempt = attempt_of(exchange, usage)
    attempt.cost_nano_usd = 1_234_567_891
    metrics.record_attempt(exchange, attempt)
    labels = {"model": "fast", "provider": "acme"}
    expected = {
        "strata_input_tokens_total": 17,
        "strata_output_tokens_total": 12,
        "strata_cached_input_tokens_total": 4,
        "strata_cache_write_tokens_total": 3,
        "strata_reasoning_tokens_total": 7,
        "strata_cost_usd_total": 1.234567891,
        "strata_unpriced_requests_total": 0,
        "strata_usage_estimated_total": 0,
    }
    assert {name: value(metrics, name, **labels) for name in expected} == expected
    assert value(metrics, "strata_key_cost_usd_total", key="ci") == 1.234567891
    assert value(metrics, "strata_key_tokens_total", key="ci", direction="input") == 17
    assert value(metrics, "strata_key_tokens_total", key="ci", direction="output") == 12


@pytest.mark.parametrize("source", ["counted", "ambiguous", "orphan"])
def test_what_we_estimated_and_could_not_price_says_so(metrics: Metrics, clock: Clock, source: str) -> None:
    exchange = exchange_of(clock)
    attempt = attempt_of(exchange, Usage(input=1))
    attempt.source = source  # type: ignore[assignment]
    attempt.price_state = "unknown"
    metrics.record_attempt(exchange, attempt)
    assert value(metrics, "strata_usage_estimated_total", model="fast", provider="acme") == 1
    assert value(metrics, "strata_unpriced_requests_total", model="fast", provider="acme") == 1


def test_a_failed_request_names_the_fault_and_a_refused_one_no_provider(metrics: Metrics, clock: Clock) -> None:
    failed = exchange_of(clock)
    attempt_of(failed, outcome="provider_timeout")
    failed.error, failed.status = UpstreamError("late", status=504, error_type="provider_timeout"), 504
    metrics.record(failed)
    refused = exchange_of(clock)
    refused.model, refused.resolved, refused.caller = "", None, None
    refused.error, refused.status = CallerError("no such model", status=404, error_type="caller_model_not_found"), 404
    metrics.record(refused)
    gone = exchange_of(clock)
    gone.client_left, gone.status = True, 499
    metrics.record(gone)

    def requests(model: str, provider: str, code: str, error_type: str) -> float:
        labels = {"model": model, "provider": provider, "code": code, "error_type": error_type}
        return value(metrics, "strata_requests_total", endpoint="chat", **labels)

    assert requests("fast", "acme", "504", "provider_timeout") == 1
    assert requests(OTHER, "none", "404", "caller_model_not_found") == 1
    assert requests("fast", "none", "499", "caller_cancelled") == 1
    assert value(metrics, "strata_key_requests_total", key="ci", result="error") == 2


def test_everything_the_configuration_names_starts_at_zero(metrics: Metrics) -> None:
    for model, provider in (("fast", "acme"), ("slow", "acme"), ("wild/*", "wild")):
        edge = {"endpoint": "chat", "model": model, "provider": provider}
        assert value(metrics, "strata_requests_total", **edge, code="200", error_type="") == 0
        assert value(metrics, "strata_cost_usd_total", model=model, provider=provider) == 0
        assert value(metrics, "strata_time_to_first_token_seconds_count", model=model, provider=provider) == 0
    assert value(metrics, "strata_fallbacks_total", model="fast", to="slow") == 0
    assert value(metrics, "strata_deployment_up", deployment="acme/a-1", provider="acme") == 1
    assert value(metrics, "strata_key_requests_total", key="ci", result="ok") == 0
    assert value(metrics, "strata_ledger_dropped_total") == 0
    for outcome in ("sent", "failed"):
        assert value(metrics, "strata_alerts_sent_total", channel="ops", outcome=outcome) == 0
    assert value(metrics, "strata_rate_limited_total", scope="team", limit="concurrency") == 0
    assert value(metrics, "strata_requests_in_flight", endpoint="chat") == 0
    assert value(metrics, "strata_event_loop_lag_seconds_count") == 0


@pytest.mark.parametrize(
    ("sent", "let_in"),
    [("", False), ("Bearer nope", False), ("of-the-test", False), ("Bearer \xff", False), ("Bearer of-the-test", True)],
)
async def test_with_a_token_only_who_sends_it_reads_the_metrics(metrics: Metrics, sent: str, let_in: bool) -> None:
    ops = Ops(ready=lambda: True, degraded=list, scrape=metrics.pages, token=Secret("of-the-test"))
    request = Request({"type": "http", "headers": [(b"authorization", sent.encode("latin-1"))]})
    if let_in:
        assert (await ops.metrics(request)).status_code == 200
        return
    with pytest.raises(Unauthenticated, match=re.escape("Authorization: Bearer <telemetry.metrics.token>")):
        await ops.metrics(request)


def test_keys_beyond_the_limit_share_one_series_and_are_counted(metrics: Metrics, clock: Clock) -> None:
    for number in range(10):
        metrics.record(exchange_of(clock, key=f"k{number}"))
    assert value(metrics, "strata_key_requests_total", key="k1", result="ok") == 1
    assert value(metrics, "strata_key_requests_total", key=OTHER, result="ok") == 8
    assert total(metrics, "strata_key_requests_total") == 10
    assert value(metrics, "strata_metric_label_overflow_total", label="key") == 8


def test_a_pattern_is_counted_as_the_pattern_whatever_tail_the_client_chose(metrics: Metrics, clock: Clock) -> None:
    for tail in ("x", "y\n", '"'):
        exchange = exchange_of(clock, ANY)
        exchange.model = f"wild/{tail}"
        attempt = attempt_of(exchange, Usage(input=1))
        attempt.deployment = Deployment(provider=WILD, model=tail)
        metrics.record(exchange)
        metrics.record_attempt(exchange, attempt)
        metrics.count_retry(exchange.model, "provider_error")
    edge = {"endpoint": "chat", "model": "wild/*", "provider": "wild"}
    assert value(metrics, "strata_requests_total", **edge, code="200", error_type="") == 3
    assert value(metrics, "strata_retries_total", model="wild/*", reason="provider_error") == 3
    assert value(metrics, "strata_upstream_attempts_total", deployment="wild/*", provider="wild", outcome="ok") == 3


@given(
    st.lists(
        st.tuples(st.text(max_size=8), st.text(max_size=8), st.text(max_size=8), st.integers(-5, 700)), max_size=30
    )
)
def test_no_input_makes_series_without_bound_or_an_unreadable_page(rows: list[tuple[str, str, str, int]]) -> None:
    clock = Clock()
    metrics = Metrics(CONFIG, clock_ns=clock)
    for model, key, outcome, status in rows:
        exchange = exchange_of(clock, key=key)
        exchange.model, exchange.resolved, exchange.status = model, None, status
        attempt = Attempt(1, Deployment(provider=Provider(name=key, api_base=""), model=model), 0, outcome=outcome)
        exchange.attempts.append(attempt)
        metrics.record(exchange)
        metrics.record_attempt(exchange, attempt)
        metrics.count_retry(model, outcome)
        metrics.count_cooldown(model, key, outcome)
        metrics.count_rate_limited(key, outcome)
    found = samples(metrics)
    names = {dict(labels).get("model") for _, labels in found} - {None}
    assert names <= {"fast", "slow", "wild/*", OTHER}
    assert len({dict(labels)["key"] for _, labels in found if "key" in dict(labels)}) <= 4
    assert sum(number for (name, _), number in found.items() if name == "strata_requests_total") == len(rows)


@given(st.lists(st.integers(0, 700 * SECOND), max_size=50))
def test_a_histogram_agrees_with_counting(observed: list[int]) -> None:
    bounds = (100 * MS, 1 * SECOND, 600 * SECOND)
    cell = Distribution(bounds)
    for item in observed:
        cell.observe(item)
    for index, bound in enumerate(bounds):
        assert sum(cell.counts[: index + 1]) == sum(item <= bound for item in observed)
    assert (sum(cell.counts), cell.total) == (len(observed), sum(observed))


def test_a_reload_keeps_counts_and_forgets_deployments_that_are_gone(metrics: Metrics, clock: Clock) -> None:
    metrics.record(exchange_of(clock))
    metrics.configure(Config(providers={"acme": ACME}, models={"slow": SLOW}))
    metrics.record(exchange_of(clock))
    assert total(metrics, "strata_requests_total") == 2
    up = {dict(labels)["deployment"] for name, labels in samples(metrics) if name == "strata_deployment_up"}
    assert up == {"acme/a-2"}


def test_what_other_rooms_report_shows(metrics: Metrics) -> None:
    metrics.request_started("chat")
    metrics.request_started("chat")
    metrics.request_ended("chat")
    metrics.set_deployment_up("acme/a-1", "acme", False)
    metrics.count_cooldown("acme/a-1", "acme", "provider_rate_limited")
    metrics.set_ratelimits([("acme/a-1", "acme", "requests", 0.25)])
    metrics.count_retry("fast", "provider_error")
    metrics.count_fallback("fast", "slow")
    metrics.count_rate_limited("key", "rpm")
    metrics.set("strata_ledger_queue_depth", 7)
    metrics.set("strata_budget_overrun_usd_total", 2_500_000_000)
    metrics.set("strata_dependency_up", 1, "database")
    metrics.observe_loop_lag(0.004)
    metrics.observe_query("ship", 0.02)
    metrics.set("strata_db_pool_connections", 4, "idle")
    metrics.set_budget("key", "ci", "30d", limit_nano_usd=5 * SECOND, spent_nano_usd=SECOND // 2, resets_at_seconds=9)
    metrics.count_alert("slack", sent=True)
    metrics.count_task_failure("shipper")
    metrics.config_loaded("abc")
    deployment = {"deployment": "acme/a-1", "provider": "acme"}
    budget = {"scope": "key", "name": "ci", "window": "30d"}
    assert value(metrics, "strata_requests_in_flight", endpoint="chat") == 1
    assert value(metrics, "strata_deployment_up", **deployment) == 0
    assert value(metrics, "strata_deployment_cooldowns_total", **deployment, reason="provider_rate_limited") == 1
    assert value(metrics, "strata_upstream_ratelimit_remaining_ratio", **deployment, limit="requests") == 0.25
    assert value(metrics, "strata_retries_total", model="fast", reason="provider_error") == 1
    assert value(metrics, "strata_fallbacks_total", model="fast", to="slow") == 1
    assert value(metrics, "strata_rate_limited_total", scope="key", limit="rpm") == 1
    assert value(metrics, "strata_ledger_queue_depth") == 7
    assert value(metrics, "strata_budget_overrun_usd_total") == 2.5
    assert value(metrics, "strata_dependency_up", dependency="database") == 1
    assert value(metrics, "strata_event_loop_lag_seconds_bucket", le="0.005") == 1
    assert value(metrics, "strata_db_query_duration_seconds_sum", op="ship") == 0.02
    assert value(metrics, "strata_db_pool_connections", state="idle") == 4
    assert value(metrics, "strata_budget_limit_usd", **budget) == 5
    assert value(metrics, "strata_budget_spent_usd", **budget) == 0.5
    assert value(metrics, "strata_budget_reset_timestamp_seconds", **budget) == 9
    assert value(metrics, "strata_alerts_sent_total", channel="slack", outcome="sent") == 1
    assert value(metrics, "strata_task_failures_total", task="shipper") == 1
    assert value(metrics, "strata_config_info", hash="abc") == 1
    assert value(metrics, "strata_config_last_reload_success_timestamp_seconds") == 1_700_000_000


def test_a_new_configuration_replaces_the_old_hash(metrics: Metrics) -> None:
    metrics.config_loaded("one")
    metrics.config_loaded("two")
    hashes = {dict(labels)["hash"] for name, labels in samples(metrics) if name == "strata_config_info"}
    assert hashes == {"two"}


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8"),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text; version=1.0.0"),
    ],
)
def test_the_page_speaks_what_the_scraper_asked_for(metrics: Metrics, accept: str, content_type: str) -> None:
    body, actual = page(metrics, accept)
    assert actual.startswith(content_type)
    assert body.endswith(b"# EOF\n") == ("openmetrics" in accept)
    found = {name for name, _ in samples(metrics, accept)}
    assert {"strata_requests_total", "strata_build_info", "process_resident_memory_bytes"} <= found
    assert {"python_gc_collections_total", "python_info"} <= found
    assert not any(name.endswith("_created") for name in found)


def test_every_declared_metric_has_a_sentence_and_a_name_in_the_convention() -> None:
    names = [family.name for family in FAMILIES]
    assert len(names) == len(set(names))
    for family in FAMILIES:
        assert family.name.startswith("strata_")
        assert family.help.endswith(".") and len(family.help) > 15, family.name
        assert family.name.endswith("_total") == (family.kind == "counter"), family.name
        assert (family.kind == "histogram") == bool(family.buckets), family.name
        assert list(family.buckets) == sorted(set(family.buckets)), family.name
        assert not set(family.labels) & {"user", "path", "request_id", "session"}, family.name


def test_a_page_is_whole_though_requests_are_counted_between_its_slices(metrics: Metrics, clock: Clock) -> None:
    def count(number: int) -> None:
        exchange = exchange_of(clock, stream=True)
        exchange.status, exchange.endpoint = 100 + number % 400, f"e{number % 50}"
        attempt_of(exchange, Usage(output=9)).first_event_ns = clock.now_ns
        clock.now_ns += number * MS
        metrics.record(exchange)

    for number in range(400):
        count(number)
    for accept in ("", OPENMETRICS):
        parts = []
        for number, part in enumerate(metrics.pages(accept)[0]):
            assert part.count(b"\n") < 2 * SLICE_LINES
            parts.append(part)
            for more in range(number, number + 20):
                count(more)
        assert len(parts) > 3
        assert {"strata_requests", "strata_request_duration_seconds"} <= set(_families(b"".join(parts), accept))


async def test_a_scrape_gives_way_to_others_after_each_slice(metrics: Metrics, clock: Clock) -> None:
    for number in range(300):
        exchange = exchange_of(clock)
        exchange.endpoint, exchange.status = f"e{number % 50}", 100 + number
        metrics.record(exchange)
    ops = Ops(ready=lambda: True, degraded=list, scrape=metrics.pages, token=None)
    scrape = asyncio.create_task(ops.metrics(Request({"type": "http", "headers": []})))
    turns = 0
    while not scrape.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > len(list(metrics.pages()[0])) > 3
    assert bytes((await scrape).body).count(b"\nstrata_requests_total{") >= 300


def test_a_bucket_names_the_last_request_that_fell_into_it(metrics: Metrics, clock: Clock) -> None:
    for number, milliseconds in enumerate((300, 400, 4_000)):
        exchange = exchange_of(clock)
        exchange.request_id, exchange.started_at_ms = f"req_{number}", 1_700_000_000_000
        clock.now_ns += milliseconds * MS
        metrics.record(exchange)
    body, _ = page(metrics, OPENMETRICS)
    found = {
        sample.labels["le"]: sample.exemplar
        for family in parsed(body.decode(), OPENMETRICS)
        for sample in family.samples
        if sample.name == "strata_request_duration_seconds_bucket" and sample.exemplar is not None
    }
    assert {bound: exemplar.labels for bound, exemplar in found.items()} == {
        "0.5": {"trace_id": "req_1"},
        "5.0": {"trace_id": "req_2"},
    }
    assert (found["5.0"].value, str(found["5.0"].timestamp)) == (4.0, "1700000004.000000000")
    assert b"req_" not in page(metrics)[0]


@given(st.lists(st.tuples(st.text(), st.text()), max_size=20), st.floats(0, 1e12))
def test_what_is_rendered_is_read_back_as_it_was(pairs: list[tuple[str, str]], number: float) -> None:
    """Whatever a budget or a provider is called."""
    store = Store((Family("strata_of_the_test", "gauge", ("b", "a"), 'A "help" with a \\ in it.'),))
    for values in pairs:
        store.scalars["strata_of_the_test"].cell(*values).value = number
    text = "".join(slices(store, openmetrics=True)) + "# EOF\n"
    read = [
        (sample.labels["b"], sample.labels["a"], sample.value)
        for family in parsed(text, OPENMETRICS)
        for sample in family.samples
    ]
    assert sorted(read) == sorted((*values, number) for values in set(pairs))


def _families(text: bytes, accept: str) -> Iterator[str]:
    """Their names; a histogram whose buckets, sum and count do not belong together fails here."""
    for family in parsed(text.decode(), accept):
        if family.type == "histogram":
            buckets: dict[frozenset[tuple[str, str]], list[float]] = {}
            counts: dict[frozenset[tuple[str, str]], float] = {}
            for sample in family.samples:
                series = frozenset((name, value) for name, value in sample.labels.items() if name != "le")
                if sample.name.endswith("_bucket"):
                    buckets.setdefault(series, []).append(sample.value)
                elif sample.name.endswith("_count"):
                    counts[series] = sample.value
            assert counts == {series: numbers[-1] for series, numbers in buckets.items()}
            assert all(numbers == sorted(numbers) for numbers in buckets.values())
        yield family.name
