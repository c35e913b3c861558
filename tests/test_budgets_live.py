"""Budgets on a running gateway: set from the command line, in force within a second, refused in plain words."""

from __future__ import annotations

import asyncio
import http.client
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from tests.gateway import Gateway, OracleProcess
from tests.oracle import marker

# A worst case of these requests is some 165,000 nano-dollars: the budget of the provider holds one of them.
MORE = """\
budgets:
  - {scope: global, max_budget: 100}
  - {scope: provider, name: claude, max_budget: 0.00017, budget_duration: month}
"""
Answer = tuple[int, dict[str, str], dict[str, Any]]


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OracleProcess]:
    process = OracleProcess(tmp_path_factory.mktemp("oracle"))
    yield process
    process.stop()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, oracle: OracleProcess) -> Iterator[Gateway]:
    running = Gateway(tmp_path_factory.mktemp("live") / "home", oracle=oracle.url, more=MORE).start()
    yield running
    running.stop()


def ask(gateway: Gateway, name: str, model: str = "gpt", **more: Any) -> Answer:
    prompt = f"nonce={name} {marker(pieces=5)}"
    body = {"model": model, "max_tokens": 50, "messages": [{"role": "user", "content": prompt}], **more}
    wanted = {name: value for name, value in body.items() if value is not None}
    headers = {"authorization": f"Bearer {gateway.key}", "content-type": "application/json", "x-request-id": name}
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)
    try:
        connection.request("POST", "/v1/chat/completions", msgspec.json.encode(wanted), headers)
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, msgspec.json.decode(answer.read())
    finally:
        connection.close()


def within_a_second(gateway: Gateway, name: str, status: int, **asked: Any) -> Answer:
    """Asks until the answer has this status; a budget that was set must be in force by then."""
    deadline = time.monotonic() + 1.0
    for number in range(1000):
        answer = ask(gateway, f"{name}-{number}", **asked)
        if answer[0] == status:
            return answer
        assert time.monotonic() < deadline, answer
    raise AssertionError("not reached")


def test_a_global_budget_binds_every_key_at_once_and_its_end_frees_them(gateway: Gateway) -> None:
    assert ask(gateway, "global-before")[0] == 200
    assert gateway.strata("budgets", "set", "global", "0.00001/day").returncode == 0
    _, headers, body = within_a_second(gateway, "global", 429)
    error = body["error"]
    assert (error["code"], headers["x-should-retry"]) == ("insufficient_quota", "false")
    assert "This gateway has spent $0.00 of $0.00001" in error["message"]
    assert "the budget resets in" in error["message"]
    assert error["details"]["limit_nano_usd"] == 10_000
    assert gateway.gauge('strata_rate_limited_total{limit="budget",scope="global"}') > 0
    assert gateway.strata("budgets", "set", "global", "5/day").returncode == 0
    within_a_second(gateway, "global-raised", 200)
    listed = msgspec.json.decode(gateway.strata("budgets", "list", "--json").stdout)
    found = {(row["limit_nano_usd"], row["calendar"], row["source"]) for row in listed if row["scope"] == "global"}
    assert found == {(5 * 10**9, "day", "database"), (100 * 10**9, None, "config")}
    assert gateway.strata("budgets", "end", "global").returncode == 0
    assert "no budget set here" in gateway.strata("budgets", "end", "global").stderr


async def test_a_spent_provider_gives_way_to_the_next_and_alone_is_refused(
    gateway: Gateway, oracle: OracleProcess
) -> None:
    assert ask(gateway, "provider-first", model="either")[0] == 200
    [first] = await gateway.settled("provider-first")
    assert (first["provider"], len(first["budget_ids"])) == ("claude", 2)
    assert ask(gateway, "provider-next", model="either")[0] == 200
    [row] = await gateway.settled("provider-next")
    assert (row["provider"], len(row["budget_ids"])) == ("oai", 1)
    assert [item.api for item in oracle.items("provider-next")] == ["openai"]
    status, headers, body = ask(gateway, "provider-alone", model="claude")
    assert (status, headers["x-should-retry"]) == (429, "false")
    assert 'This gateway\'s budget for "claude" has spent' in body["error"]["message"]
    assert oracle.items("provider-alone") == []


async def test_an_answer_without_a_limit_is_cut_to_what_is_left_and_the_caller_is_told(
    gateway: Gateway, oracle: OracleProcess
) -> None:
    gateway.key, usual = gateway.create_key("poor", "--budget", "0.002"), gateway.key
    try:
        status, headers, _ = ask(gateway, "no-limit", max_tokens=None)
        assert status == 200
        assert "max_completion_tokens" in headers["x-strata-warning"]
        [row] = await gateway.settled("no-limit")
        assert row["cost_nano_usd"] <= 2_000_000
        status, _, body = ask(gateway, "no-limit-strict", max_tokens=None, strata={"strict": True})
        assert (status, body["error"]["param"]) == (400, "max_completion_tokens")
    finally:
        gateway.key = usual


async def test_where_budgets_stand_is_in_the_metrics(gateway: Gateway) -> None:
    assert gateway.strata("budgets", "set", "key", "t", "7/30d").returncode == 0
    async with asyncio.timeout(15):
        while gateway.gauge('strata_budget_limit_usd{name="t",scope="key",window="30d"}') != 7.0:
            await asyncio.sleep(0.2)
    assert gateway.gauge('strata_budget_limit_usd{name="claude",scope="provider",window="month"}') == 0.00017
    assert gateway.gauge('strata_budget_spent_usd{name="claude",scope="provider",window="month"}') > 0
    assert gateway.strata("budgets", "end", "key", "t").returncode == 0
