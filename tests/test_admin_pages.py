"""What an admin reads over HTTP: prices and alerts; and that nobody else does."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.gateway import Gateway

MASTER = "q7Zt2mVx9Lk4Wn8Rb3Hd6Jc5Pf1Ys0Ga"
CONFIG = f"""\
auth: {{master_key: {MASTER}}}
providers:
  gpu: {{type: openai_compatible, api_base: "http://127.0.0.1:9/v1"}}
models:
  dear: gpu/dear
  dark: gpu/dark
prices:
  models:
    gpu/dear:
      input: 0.25
      output: 2
      tiers: [{{above: 1000, input: 0.5}}]
      service_tiers: {{flex: {{input: 0.1, output: 1}}}}
alerts:
  channels:
    pager: {{type: webhook, url: "https://hooks.example.com/x", secret: whsec-0123456789abcdef}}
"""


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    made = Gateway(tmp_path_factory.mktemp("pages") / "home")
    made.config.write_text(CONFIG)
    yield made.start()
    made.stop()


def get(gateway: Gateway, path: str, key: str | None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)
    connection.request("GET", path, headers={"authorization": f"Bearer {key}"} if key else {})
    answer = connection.getresponse()
    status, body = answer.status, json.loads(answer.read())
    connection.close()
    return status, body


def test_prices_say_what_each_deployment_costs_and_which_have_none(gateway: Gateway) -> None:
    status, said = get(gateway, "/api/prices", MASTER)
    assert status == 200
    assert said["unpriced"] == ["gpu/dark"]
    by_name = {one["deployment"]: one for one in said["prices"]}
    assert by_name["gpu/dear"]["models"] == ["dear"]
    lines = [
        (line["service_tier"], line["above_tokens"], line["usd_per_million_tokens"]["input"])
        for line in by_name["gpu/dear"]["lines"]
    ]
    assert lines == [("", 0, "0.25"), ("", 1000, "0.5"), ("flex", 0, "0.1")]
    assert by_name["gpu/dark"]["state"] == "unknown"
    assert said["table_date"].startswith("20")


def test_alerts_say_their_rules_and_channels_without_secrets(gateway: Gateway) -> None:
    status, said = get(gateway, "/api/alerts", MASTER)
    assert status == 200
    assert said["channels"] == [{"name": "pager", "type": "webhook"}]
    assert said["rules"]
    assert "whsec" not in json.dumps(said)


@pytest.mark.parametrize("path", ["/api/prices", "/api/alerts"])
def test_a_key_that_is_not_the_master_key_is_refused(gateway: Gateway, path: str) -> None:
    assert get(gateway, path, None)[0] == 401
    status, said = get(gateway, path, gateway.key)
    assert (status, said["error"]["code"]) == (403, "forbidden")
