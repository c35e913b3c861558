"""Limits on a running gateway: told in headers, refused in plain words, counted, and shared once Redis is there."""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.conftest import needs
from tests.gateway import Gateway, free_port
from tests.redis_server import RedisServer

REDIS_PORT = free_port()
MORE = f"""\
redis: {{url: "redis://127.0.0.1:{REDIS_PORT}/0"}}
limits:
  - {{scope: model, name: sim/json, rpm: 2}}
  - {{scope: key, name: slow, tpm: 100000}}
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    running = Gateway(tmp_path_factory.mktemp("limits") / "home", more=MORE).start()
    yield running
    running.stop()


def begin(gateway: Gateway, key: str, model: str = "sim/echo", **more: Any) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=30)
    body = {"model": model, "max_tokens": 50, "messages": [{"role": "user", "content": "Hello"}], **more}
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    connection.request("POST", "/v1/chat/completions", msgspec.json.encode(body), headers)
    return connection


def ask(gateway: Gateway, key: str, model: str = "sim/echo", **more: Any) -> tuple[int, dict[str, str], bytes]:
    connection = begin(gateway, key, model, **more)
    try:
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def refusal(answer: tuple[int, dict[str, str], bytes]) -> dict[str, Any]:
    assert answer[0] == 429
    error: dict[str, Any] = msgspec.json.decode(answer[2])["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    return error


def test_six_headers_tell_how_a_key_stands_and_the_one_too_many_when_to_come_again(gateway: Gateway) -> None:
    key = gateway.create_key("six", "--rpm", "2", "--tpm", "60000")
    status, headers, _ = ask(gateway, key)
    assert status == 200
    assert (headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]) == ("2", "1")
    assert headers["x-ratelimit-reset-requests"] == "30s"
    assert headers["x-ratelimit-limit-tokens"] == "60000"
    assert 59_800 < int(headers["x-ratelimit-remaining-tokens"]) < 60_000
    assert headers["x-ratelimit-reset-tokens"].endswith("ms")
    assert ask(gateway, key)[0] == 200
    answer = ask(gateway, key)
    error = refusal(answer)
    assert error["message"].startswith('The key "six" is limited to 2 requests a minute. Try again in ')
    assert error["details"] == {"scope": "key", "limit": "rpm"}
    assert 25 <= int(answer[1]["retry-after"]) <= 30
    assert answer[1]["x-ratelimit-remaining-requests"] == "0"
    assert gateway.gauge('strata_rate_limited_total{limit="rpm",scope="key"}') == 1


def test_a_key_without_limits_hears_nothing_of_them(gateway: Gateway) -> None:
    status, headers, _ = ask(gateway, gateway.key)
    assert status == 200
    assert not [name for name in headers if name.startswith("x-ratelimit")]


def test_a_model_s_limit_binds_whoever_asks_for_it(gateway: Gateway) -> None:
    assert [ask(gateway, gateway.key, "sim/json")[0] for _ in range(2)] == [200, 200]
    other = gateway.create_key("other")
    error = refusal(ask(gateway, other, "sim/json"))
    assert error["message"].startswith('The model "sim/json" is limited to 2 requests a minute.')
    assert gateway.gauge('strata_rate_limited_total{limit="rpm",scope="model"}') == 1


def test_tokens_are_counted_as_they_were_used(gateway: Gateway) -> None:
    key = gateway.create_key("slow")
    before = int(ask(gateway, key, max_tokens=90_000)[1]["x-ratelimit-remaining-tokens"])
    assert before < 10_000
    assert int(ask(gateway, key, max_tokens=10)[1]["x-ratelimit-remaining-tokens"]) > 99_000


def test_an_answer_that_is_under_way_takes_a_place_until_it_ends(gateway: Gateway) -> None:
    key = gateway.create_key("narrow", "--max-parallel", "1")
    connection = begin(gateway, key, "sim/chat", stream=True)
    answer = connection.getresponse()
    assert answer.status == 200
    error = refusal(ask(gateway, key))
    assert error["message"] == (
        'The key "narrow" is limited to 1 requests at once, and they run. Try again when one has ended.'
    )
    answer.read()
    connection.close()
    assert ask(gateway, key)[0] == 200


def test_an_answer_that_nobody_waits_for_gives_its_place_back(gateway: Gateway) -> None:
    key = gateway.create_key("leaving", "--max-parallel", "1")
    connection = begin(gateway, key, "sim/chat", stream=True)
    connection.getresponse().read(10)
    connection.close()
    deadline = time.monotonic() + 20
    while ask(gateway, key)[0] != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.needs("redis-server")
def test_without_its_redis_it_serves_says_so_and_goes_back_to_it(gateway: Gateway, tmp_path: Path) -> None:
    assert gateway.get("/readyz") == (200, b'{"status":"ready","degraded":["redis"]}')
    assert gateway.gauge('strata_dependency_up{dependency="redis"}') == 0
    server = RedisServer(needs("redis-server"), tmp_path, port=REDIS_PORT).start()
    try:
        deadline = time.monotonic() + 10
        while b"redis" in gateway.get("/readyz")[1]:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        key = gateway.create_key("shared", "--rpm", "3")
        assert [ask(gateway, key)[0] for _ in range(4)] == [200, 200, 200, 429]
        assert b"{strata-limits}:key:" in server.command("KEYS", "*")
    finally:
        server.stop()
    assert ask(gateway, gateway.create_key("after", "--rpm", "3"))[0] == 200
