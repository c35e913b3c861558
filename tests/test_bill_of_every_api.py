"""Whatever API the oracle speaks, the ledger holds what it charges: whole or streamed, healthy or broken off."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import openai
import pytest
from openai import OpenAI

from tests.conformance import MODELS
from tests.gateway import Gateway, OracleProcess, equal
from tests.oracle import marker
from tests.oracle.server import SHAPES

CACHES: dict[str, dict[str, int]] = {
    "openai": {"cache_read": 30},
    "mistral": {"cache_read": 30},
    "anthropic": {"cache_read": 30, "cache_write_5m": 7, "cache_write_1h": 5},
    "bedrock": {"cache_read": 30, "cache_write_5m": 7, "cache_write_1h": 5},
    "gemini": {"cache_read": 30},
}
"""What each tells apart from other input; those that are not here have no other price for it."""
TOOLS: Any = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}
    for name in ("one", "two")
]
every_api = pytest.mark.parametrize("api", sorted(SHAPES))


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OracleProcess]:
    running = OracleProcess(tmp_path_factory.mktemp("oracle"))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def gateway(oracle: OracleProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    running = Gateway(tmp_path_factory.mktemp("gateway") / "home", oracle=oracle.url).start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Iterator[OpenAI]:
    with OpenAI(base_url=gateway.base_url, api_key=gateway.key, max_retries=0) as sdk:
        yield sdk


def say(client: OpenAI, api: str, id: str, *, stream: bool, **script: Any) -> str:
    """The text of the answer; `id` is the request's and the oracle's."""
    more: dict[str, Any] = {"tools": TOOLS} if "tools" in script else {}
    more |= {"stream_options": {"include_usage": True}} if stream else {}
    answer: Any = client.chat.completions.create(
        model=MODELS[api],
        messages=[{"role": "user", "content": f"nonce={id} {marker(**script)}"}],
        stream=stream,
        extra_headers={"x-request-id": id},
        **more,
    )
    if not stream:
        return answer.choices[0].message.content or ""
    return "".join(chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices)


@every_api
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(
    "script",
    [{}, {"thinking": 3, "split": 3}, {"tools": 2}, {"cached": True}, {"usage": "twice", "comments": 2}],
    ids=["text", "thoughts", "tools", "cached", "usage twice"],
)
async def test_a_healthy_answer_costs_what_the_provider_charges(
    client: OpenAI, gateway: Gateway, oracle: OracleProcess, api: str, stream: bool, script: dict[str, Any]
) -> None:
    id = uuid4().hex
    caches = CACHES.get(api, {}) if "cached" in script else {}
    given = {name: value for name, value in script.items() if name != "cached"} | caches
    text = say(client, api, id, stream=stream, **given)
    assert text == ("" if "tools" in script else " red tree house river stone cloud")
    [item] = oracle.items(id)
    [row] = await gateway.settled(id)
    assert item.complete and item.api == api
    assert equal(row, item) == {}
    assert row["source"] == "provider"
    assert row["reasoning_tokens"] == (script.get("thinking", 0) if SHAPES[api].REASONS_APART else 0)


@every_api
@pytest.mark.parametrize("script", [{"error": 3}, {"cut": 3}, {"cut": 3, "clean_cut": True}, {"garbage": "bad_json"}])
async def test_a_stream_that_breaks_off_is_an_error_and_is_counted(
    client: OpenAI, gateway: Gateway, oracle: OracleProcess, api: str, script: dict[str, Any]
) -> None:
    id = uuid4().hex
    with pytest.raises(openai.APIError):
        say(client, api, id, stream=True, **script)
    items = oracle.items(id)
    rows = await gateway.settled(id, len(items))
    for row, item in zip(rows, items, strict=True):
        assert row["source"] == "counted"
        if "garbage" in script:  # the third event: what comes after it nobody reads, and Gemini has text from the first
            assert row["output_tokens"] <= 2
        else:
            assert row["output_tokens"] == item.output_tokens == 3


@every_api
@pytest.mark.parametrize(
    ("status", "expected"),
    [(400, openai.BadRequestError), (401, openai.InternalServerError), (429, openai.RateLimitError),
     (500, openai.InternalServerError), (503, openai.InternalServerError)],
)  # fmt: skip
async def test_a_refusal_is_the_exception_it_would_be_at_openai_and_costs_nothing(
    client: OpenAI, gateway: Gateway, oracle: OracleProcess, api: str, status: int, expected: type[openai.APIError]
) -> None:
    id = uuid4().hex
    with pytest.raises(expected):
        say(client, api, id, stream=False, status=status, message="This is what it said.")
    items = oracle.items(id)
    rows = await gateway.settled(id, len(items))
    assert [(row["cost_nano_usd"], row["status"]) for row in rows] == [(0, status)] * len(items)
