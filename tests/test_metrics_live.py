"""A gateway that streams, fails, refuses and is killed: every metric of the table tells something, or says why not."""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from proxy.admission.keys import new_key
from proxy.telemetry.families import FAMILIES
from tests.conftest import needs
from tests.gateway import Gateway, OracleProcess
from tests.metrics_page import TARGET, table
from tests.oracle import marker
from tests.test_accounts import GOOD, MASTER

OPENMETRICS = {"accept": "application/openmetrics-text; version=1.0.0"}
CONFIG = """\
auth: {{master_key: {master}}}
providers:
  oai: {{type: openai_compatible, api_base: "{oracle}/v1", api_key: sk-oracle-of-the-tests}}
  claude: {{type: anthropic, api_base: "{oracle}", api_key: sk-oracle-of-the-tests}}
models:
  gpt: oai/gpt
  claude: claude/claude
  unpriced: oai/unpriced
  first: {{deployments: [oai/first], fallbacks: [claude]}}
keys: {{static: [{{name: ci, key: sk-strata-of-the-configuration}}]}}
budgets: [{{scope: provider, name: claude, max_budget: 500, budget_duration: month}}]
alerts:
  channels: {{ops: {{type: webhook, url: "http://127.0.0.1:9/"}}}}
prices: {{models: {{oai/gpt: {price}, oai/first: {price}, claude/*: {price}}}}}
telemetry: {{metrics: {{max_keys: 3}}}}
"""
PRICE = "{input: 0.25, output: 2, cached_input: 0.025, cache_write: 0.5, cache_write_1h: 0.5}"

QUIET = {
    "strata_alerts_sent_total": "no budget is nearly spent; the alerts have tests of their own",
    "strata_budget_failures_total": "needs a bug, or Postgres away",
    "strata_budget_overrun_usd_total": "needs a provider that sends more than it was asked for",
    "strata_budget_stranded_usd_total": "needs Postgres to fall silent while a lease is given back",
    "strata_db_listen_failures_total": "needs Postgres away",
    "strata_history_dropped_total": "needs Postgres away for very long",
    "strata_history_queue_depth": "empty twice a second",
    "strata_journal_kept_in_memory": "needs a full disk",
    "strata_journal_sync_failures_total": "needs a broken disk",
    "strata_keys_stale": "needs Postgres away for 15 minutes",
    "strata_ledger_dropped_total": "anything but 0 is a wrong bill",
    "strata_ledger_queue_depth": "empty four times a second",
    "strata_ledger_write_lag_seconds": "as the queue",
    "strata_limits_alone_total": "needs Redis, and that it is away",
    "strata_limits_asked_total": "needs Redis",
    "strata_log_lines_dropped_total": "needs an output that takes nothing",
    "strata_passwords_waiting": "50 ms for each password",
    "strata_provider_keys": "nobody has brought a key; those have tests of their own",
    "strata_trace_spans_dropped_total": "needs a collector of traces that takes nothing",
    "strata_trace_spans_sent_total": "needs a collector of traces; it has tests of its own",
    "strata_redis_late_total": "needs Redis, and that it is slow",
    "strata_snapshot_failures_total": "needs Postgres away",
    "strata_task_failures_total": "needs a bug",
}
"""What stays at 0 in this run, and why."""


class Site:
    """One gateway over two lives; `touched` are the metrics that were seen with a value other than 0."""

    def __init__(self, folder: Path, oracle: OracleProcess) -> None:
        self.gateway = Gateway(folder / "home", oracle=oracle.url)
        self.gateway.config.write_text(CONFIG.format(master=MASTER, oracle=oracle.url, price=PRICE))
        self.touched: set[str] = set()
        self.shown: set[str] = set()

    def chat(self, model: str, text: str, key: str = "", **more: object) -> int:
        with self.answer(model, text, key, **more) as answer:
            answer.read()
            return answer.status

    @contextlib.contextmanager
    def answer(self, model: str, text: str, key: str = "", **more: object) -> Iterator[http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self.gateway.port, timeout=30)
        body = {"model": model, "max_tokens": 50, "messages": [{"role": "user", "content": text}], **more}
        headers = {"authorization": f"Bearer {key or self.gateway.key}", "content-type": "application/json"}
        with contextlib.closing(connection):
            connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
            with connection.getresponse() as answer:
                yield answer

    def post(self, path: str, body: object, token: str = "") -> int:
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})
        return self.gateway.ask("POST", path, headers, json.dumps(body).encode()).status

    def scrape(self) -> dict[str, float]:
        """The sums by name, of samples that count something."""
        page = self.gateway.ask("GET", "/metrics", OPENMETRICS).body.decode()
        sums: dict[str, float] = {}
        for family in text_string_to_metric_families(page):  # type: ignore[no-untyped-call]
            for sample in family.samples:
                name = sample.name.removesuffix("_count") if family.type == "histogram" else sample.name
                self.shown.add(name)
                sums[name] = sums.get(name, 0) + sample.value
                if sample.value:
                    self.touched.add(name)
        return sums


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("metrics")
    oracle = OracleProcess(folder / "oracle")
    made = Site(folder, oracle)
    try:
        made.gateway.start()
        yield made
    finally:
        made.gateway.stop()
        oracle.stop()


def test_the_document_is_the_table() -> None:
    assert TARGET.read_text() == table(), "write it anew with: python -m tests.metrics_page"


def test_every_metric_tells_something_or_is_quiet_for_a_reason(site: Site) -> None:
    with site.answer("gpt", marker(pieces=50, gap_ms=200), stream=True) as answer:
        answer.read(10)
        site.gateway.kill9()
    site.gateway.start()
    _succeed(site)
    _fail(site)
    _refuse(site)
    _sign_in(site)
    with site.answer("gpt", marker(pieces=10, gap_ms=100), stream=True) as answer:
        answer.read(10)
        sums = site.scrape()
        assert sums["strata_requests_in_flight"] == sums["strata_ledger_open_attempts"] == 1
        answer.read()
    site.scrape()
    # the dead one's journal is adopted, budgets and pools are looked at every few seconds
    deadline = time.monotonic() + 60
    while (missing := _names() - site.touched - QUIET.keys()) and time.monotonic() < deadline:
        time.sleep(0.3)
        site.scrape()
    assert missing == set()
    assert _names() - site.shown == set()
    assert QUIET.keys() <= _names()


@pytest.mark.needs("promtool")
def test_prometheus_finds_nothing_wrong_with_the_page(site: Site) -> None:
    body = site.gateway.get("/metrics")[1]
    done = subprocess.run(
        [needs("promtool"), "check", "metrics"], input=body, capture_output=True, timeout=30, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")


def test_what_was_admitted_is_a_row_or_in_flight_on_every_page(site: Site) -> None:
    pages = []
    with ThreadPoolExecutor(20) as pool:
        chats = [pool.submit(site.chat, "gpt", marker(gap_ms=50), stream=True) for _ in range(20)]
        while not all(chat.done() for chat in chats):
            pages.append(site.scrape())
    assert {chat.result() for chat in chats} == {200}
    for sums in pages:
        settled, still_open = sums["strata_ledger_settled_total"], sums["strata_ledger_open_attempts"]
        assert sums["strata_ledger_dispatched_total"] == settled + still_open
        assert sums["strata_ledger_dropped_total"] == 0
    assert max(sums["strata_ledger_open_attempts"] for sums in pages) > 1


def test_the_request_behind_an_exemplar_can_be_looked_up(site: Site) -> None:
    body = {"model": "gpt", "messages": [{"role": "user", "content": marker(delay_ms=600)}]}
    headers = {
        "authorization": f"Bearer {site.gateway.key}",
        "content-type": "application/json",
        "x-request-id": "who-was-slow",
    }
    assert site.gateway.ask("POST", "/v1/chat/completions", headers, json.dumps(body).encode()).status == 200
    page = site.gateway.ask("GET", "/metrics", OPENMETRICS).body.decode()
    [line] = [line for line in page.splitlines() if 'trace_id="who-was-slow"' in line]
    assert line.startswith('strata_request_duration_seconds_bucket{endpoint="chat",le="1.0",model="gpt"')


def _names() -> set[str]:
    return {family.name for family in FAMILIES}


def _succeed(site: Site) -> None:
    for stream in (True, False):
        assert site.chat("gpt", "Hello", stream=stream) == 200
    assert site.chat("gpt", marker(thinking=3), stream=True) == 200
    assert site.chat("claude", marker(cache_read=7, cache_write_5m=5), stream=True) == 200
    assert site.chat("unpriced", "Hello") == 200
    assert site.chat("gpt", marker(usage="none"), stream=True) == 200
    for number in range(4):
        assert site.chat("gpt", "Hello", site.gateway.create_key(f"one of many {number}")) == 200


def _fail(site: Site) -> None:
    assert site.chat("gpt", marker(status=500, times=1) + "nonce=again") == 200  # a retry
    assert site.chat("first", marker(status=500, models=("first",))) == 200  # a fallback
    assert site.chat("unpriced", marker(status=401)) >= 400  # rests at once
    assert site.chat("no such model", "Hello") == 404


def _refuse(site: Site) -> None:
    slow = site.gateway.create_key("slow", "--rpm", "1")
    assert [site.chat("gpt", "Hello", slow) for _ in range(2)] == [200, 429]
    poor = site.gateway.create_key("poor", "--budget", "0.000000001")
    assert site.chat("gpt", "Hello", poor) == 429
    assert site.chat("gpt", "Hello", new_key()) == 401


def _sign_in(site: Site) -> None:
    who = {"email": "ann@example.com", "password": GOOD}
    assert site.post("/auth/register", {**who, "name": "Ann"}, MASTER) == 201
    assert site.post("/auth/login", who) == 200
    assert site.post("/auth/login", {**who, "password": "wrong password"}) == 401
