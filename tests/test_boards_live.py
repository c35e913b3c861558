"""
The dashboards on a real gateway under traffic: every query is asked of a real Prometheus, or of the ledger as
strata_grafana, and must bring something to show.
"""

from __future__ import annotations

import asyncio
import html
import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import msgspec
import pytest

from proxy.storage.embedded import find_running
from tests.boards import FILES, Query, filled, panels_of, queries, read
from tests.conftest import needs
from tests.gateway import PRICES, ROOT, Gateway, OracleProcess
from tests.prometheus_server import PrometheusServer

CONFIG = """\
server: {{shutdown_grace: 5s}}
providers:
  ours: {{type: openai_compatible, api_base: "{oracle}/v1", api_key: sk-oracle-of-the-tests}}
models:
  fast: ours/gpt
  shaky: {{deployments: [sim/limited], fallbacks: [fast]}}
  tried-twice: {{deployments: [sim/flaky, ours/gpt]}}
defaults: {{allowed_fails: 2, cooldown_time: 1s}}
budgets:
  - {{scope: global, max_budget: 50, budget_duration: month}}
prices: {{models: {{"ours/*": {prices}}}}}
alerts: {{channels: {{ops: {{type: webhook, url: "http://127.0.0.1:9/", secret: of-the-tests}}}}}}
logging: {{level: info, format: json}}
"""
PATIENCE_SECONDS = 120.0
RANGE_SECONDS = 60
VALUES = {
    "interval": "15s",
    "__range": f"{RANGE_SECONDS}s",
    "job": "strata",
    "instance": ".*",
    "model": ".*",
    "provider": ".*",
    "key": ".*",
}
QUIET = {
    "Configuration applied": "nobody changes the configuration of a running gateway here",
}
"""Queries that have nothing to show, each with the reason."""


class Traffic:
    """Several keys that ask in every way that a board tells apart. `round` once a second or so."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.keys = [gateway.create_key("team-a", "--budget", "2/30d"), gateway.create_key("team-b")]
        self.narrow = gateway.create_key("narrow", "--rpm", "1")
        self.number = 0

    def round(self) -> None:
        self.number += 1
        script: dict[str, Any] = {"pieces": 20, "thinking": 5, "cache_read": 30, "cache_write_5m": 10, "gap_ms": 2}
        asked: list[tuple[str, str, bool, dict[str, Any]]] = [
            *((key, "fast", stream, script) for key in self.keys for stream in (True, False)),
            (self.keys[0], "fast", False, {"status": 500}),
            (self.keys[1], "fast", True, {"usage": "none"}),
            (self.keys[1], "shaky", False, {}),
            (self.keys[1], "tried-twice", False, {}),
            (self.keys[1], "sim/reasoning", False, {}),
            (self.keys[1], "nobody-has-this", False, {}),
            (self.narrow, "sim/echo", False, {}),
            (self.narrow, "sim/echo", False, {}),
        ]
        with ThreadPoolExecutor(len(asked)) as threads:
            statuses = list(threads.map(lambda one: self._ask(*one), asked))
        assert 200 in statuses and 429 in statuses and 404 in statuses, statuses

    def _ask(self, key: str, model: str, stream: bool, script: dict[str, Any]) -> int:
        words = f"nonce=n{self.number} @@{msgspec.json.encode(script).decode()}@@ Hello"
        body = {"model": model, "stream": stream, "max_tokens": 40, "messages": [{"role": "user", "content": words}]}
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        return self.gateway.ask("POST", "/v1/chat/completions", headers, msgspec.json.encode(body)).status


def numbers(series: dict[str, Any]) -> list[float]:
    return [float(value) for _, value in series.get("values") or [series["value"]]]


def brings(prometheus: PrometheusServer, query: Query) -> bool:
    text = filled(query.text, VALUES)
    found = prometheus.at(text) if query.instant else prometheus.over(text, RANGE_SECONDS)
    return any(not math.isnan(number) for series in found for number in numbers(series))


def missing_columns(prometheus: PrometheusServer) -> list[str]:
    """Of tables from Prometheus: a label that no series has is a column that Grafana would not show."""
    missing = []
    for name in FILES:
        for panel in panels_of(read(name)):
            targets = panel["targets"]
            if panel["type"] != "table" or "rawSql" in targets[0]:
                continue
            there: set[str] = set()
            for target in targets:
                for series in prometheus.at(filled(target["expr"], VALUES)):
                    there |= {*series["metric"], f"Value #{target['refId']}" if len(targets) > 1 else "Value"}
            missing += [f"{panel['title']}: {column}" for column in columns_of(panel) if column not in there]
    return missing


def columns_of(panel: dict[str, Any]) -> list[str]:
    names: list[str] = panel["transformations"][-2]["options"]["include"]["names"]
    return names


class Watched(NamedTuple):
    gateway: Gateway
    prometheus: PrometheusServer
    empty: list[Query]
    """Queries that brought nothing, however long the traffic went on."""
    missing: list[str]
    """Columns of tables that no series had."""


def watch(gateway: Gateway, prometheus: PrometheusServer) -> Watched:
    """Lets traffic go on until every query has something to show, or patience ends."""
    traffic = Traffic(gateway)
    empty = [query for query in queries() if not query.ledger]
    missing = ["not asked yet"]
    deadline = time.monotonic() + PATIENCE_SECONDS
    while ({query.panel for query in empty} - QUIET.keys() or missing) and time.monotonic() < deadline:
        traffic.round()
        time.sleep(0.5)
        empty = [query for query in empty if not brings(prometheus, query)]
        missing = missing_columns(prometheus)
    return Watched(gateway, prometheus, empty, missing)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    program = needs("prometheus")
    folder = tmp_path_factory.mktemp("boards")
    oracle = OracleProcess(folder / "oracle")
    gateway = Gateway(folder / "home", oracle=oracle.url)
    gateway.config.write_text(CONFIG.format(oracle=oracle.url, prices=PRICES))
    prometheus = PrometheusServer(program, folder / "prometheus", gateway.port)
    try:
        gateway.start()
        prometheus.start()
        yield watch(gateway, prometheus)
    finally:
        prometheus.stop()
        gateway.stop()
        oracle.stop()


def test_every_query_has_something_to_show(watched: Watched) -> None:
    assert {query.panel: query.text for query in watched.empty if query.panel not in QUIET} == {}
    assert {query.panel for query in watched.empty} == QUIET.keys()


def test_every_choice_has_something_to_choose(watched: Watched) -> None:
    found = {}
    for name in FILES:
        for variable in read(name)["templating"]["list"]:
            if variable["type"] == "query":
                match = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"])
                assert match is not None
                found[variable["name"]] = watched.prometheus.label_values(match[2], filled(match[1], VALUES))
    assert found["job"] == ["strata"] and found["instance"] == [f"127.0.0.1:{watched.gateway.port}"]
    assert {"fast", "shaky"} <= set(found["model"]) and {"ours", "sim"} <= set(found["provider"])
    assert {"team-a", "team-b", "narrow"} <= set(found["key"])


def test_tables_have_the_columns_that_they_show(watched: Watched) -> None:
    assert watched.missing == []


async def of_ledger(dsn: str, text: str) -> list[asyncpg.Record]:
    """What dashboards get: as strata_grafana, with Grafana's own words replaced."""
    sql = re.sub(r"\$__timeFilter\((\w+)\)", r"\1 BETWEEN now() - interval '6 hours' AND now()", filled(text, VALUES))
    connection = await asyncpg.connect(dsn, timeout=10)
    try:
        await connection.execute("SET ROLE strata_grafana")
        return await connection.fetch(sql, timeout=20)
    finally:
        await connection.close(timeout=5)


def test_the_ledger_answers_every_panel_that_asks_it(watched: Watched) -> None:
    dsn = find_running(Path(watched.gateway.home))
    assert dsn is not None
    asked = 0
    for name in FILES:
        for panel in panels_of(read(name)):
            for target in panel["targets"]:
                if "rawSql" not in target:
                    continue
                asked += 1
                rows = asyncio.run(of_ledger(dsn, target["rawSql"]))
                assert rows, panel["title"]
                if panel["type"] == "table":
                    assert set(columns_of(panel)) <= set(rows[0].keys()), panel["title"]
                elif panel["type"] == "timeseries":
                    assert set(rows[0].keys()) == {"time", "metric", "value"}
    assert asked >= 9


def test_what_was_sent_is_settled_or_open_at_every_scrape(watched: Watched) -> None:
    balance = next(query for query in queries() if query.panel == "Sent, neither settled nor open")
    (series,) = watched.prometheus.over(filled(balance.text, VALUES), RANGE_SECONDS)
    assert len(series["values"]) > 5 and set(numbers(series)) == {0.0}


def test_a_preview_draws_every_panel(watched: Watched, tmp_path: Path) -> None:
    dsn = find_running(Path(watched.gateway.home))
    command = [sys.executable, "-m", "grafana.preview", "--prometheus", f"http://127.0.0.1:{watched.prometheus.port}"]
    command += ["--ledger", dsn or "", "--minutes", "2", "--interval", "15s", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    for name in FILES:
        text = (tmp_path / f"{name}.html").read_text(encoding="utf-8")
        panels = panels_of(read(name))
        assert text.count("<section") == len(panels)
        assert all(html.escape(panel["title"]) in text for panel in panels)
        assert text.count("No data") == 0, name
