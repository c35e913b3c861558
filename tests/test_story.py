"""The story of a request, from outside: the official SDK, a real gateway, a provider that keeps its own bill."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import itertools
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from tests.gateway import Gateway, OracleProcess, equal
from tests.oracle import Item, marker

FAST = {"x-strata-sim": "speed=0"}
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {"name": name, "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
    }
    for name in ("get_weather", "get_time")
]
APIS = [
    "gpt",
    "claude",
    "gemini",
    "gemini-on-vertex",
    "claude-on-vertex",
]
"""A model behind each API that the oracle speaks."""
REPORTS_CACHE_WRITES = ("claude", "claude-on-vertex")
PIXEL = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(60)).decode()
nonces = itertools.count()


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OracleProcess]:
    running = OracleProcess(tmp_path_factory.mktemp("oracle"))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def gateway(oracle: OracleProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    running = Gateway(tmp_path_factory.mktemp("story") / "home", oracle=oracle.url).start()
    yield running
    running.stop()


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=gateway.base_url, api_key=gateway.key) as sdk:
        yield sdk


class Asked:
    """One request with a name that both the ledger and the oracle know it by."""

    def __init__(self, **script: Any) -> None:
        self.nonce = f"story-{next(nonces)}"
        self.headers = {"x-request-id": self.nonce}
        self.prompt = f"nonce={self.nonce} {marker(**script) if script else ''} What is this?"
        self.messages: list[Any] = [{"role": "user", "content": self.prompt}]


async def agreed(gateway: Gateway, oracle: OracleProcess, asked: Asked, count: int = 1) -> list[Item]:
    """Waits for the rows, and finds that each equals the provider's own item."""
    rows = await gateway.settled(asked.nonce, count)
    items = oracle.items(asked.nonce)
    assert len(items) == count
    assert [row["attempt"] for row in rows] == list(range(1, count + 1))
    assert [equal(row, item) for row, item in zip(rows, items, strict=True)] == [{}] * count
    return items


async def test_chat_answers_with_cost_and_leaves_a_row(gateway: Gateway, client: AsyncOpenAI) -> None:
    raw = await client.chat.completions.with_raw_response.create(
        model="sim/chat", messages=HELLO, extra_headers={"x-request-id": "story-chat"}
    )
    answer = raw.parse()
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert (answer.usage.model_extra or {})["cost"] == 0
    assert raw.headers["x-request-id"] == answer._request_id == "story-chat"
    assert float(raw.headers["x-strata-cost-usd"]) == 0
    [row] = await gateway.settled("story-chat")
    assert (row["input_tokens"], row["output_tokens"]) == (answer.usage.prompt_tokens, answer.usage.completion_tokens)
    assert (row["provider"], row["deployment"], row["price_state"]) == ("sim", "sim/chat", "free")
    assert (row["source"], row["outcome"], row["key_name"]) == ("provider", "ok", "t")


async def test_a_stream_says_the_same_and_shows_no_usage_unless_asked(client: AsyncOpenAI) -> None:
    whole = await client.chat.completions.create(model="sim/chat", messages=HELLO)
    stream = await client.chat.completions.create(model="sim/chat", messages=HELLO, stream=True, extra_headers=FAST)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["stop"]


@pytest.mark.parametrize("model", ["sim/chat", *APIS])
async def test_usage_comes_in_its_own_last_chunk_with_its_cost(client: AsyncOpenAI, model: str) -> None:
    stream = await client.chat.completions.create(
        model=model, messages=HELLO, stream=True, stream_options={"include_usage": True}, extra_headers=FAST
    )
    chunks = [chunk async for chunk in stream]
    assert [bool(chunk.usage) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    cost = (chunks[-1].usage.model_extra or {})["cost"]
    used = chunks[-1].usage
    expected = 0 if model == "sim/chat" else (used.prompt_tokens * 250 + used.completion_tokens * 2_000) / 1e9
    assert cost == pytest.approx(expected, abs=1e-12)
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("model", ["sim/tools", *APIS])
async def test_tools_are_called_and_their_results_are_understood(client: AsyncOpenAI, model: str, stream: bool) -> None:
    prompt: list[Any] = [{"role": "user", "content": f"weather? {marker(tools=1)}"}]
    if stream:
        async with client.chat.completions.stream(
            model=model, messages=prompt, tools=TOOLS, extra_headers=FAST
        ) as events:
            answer: Any = await events.get_final_completion()
    else:
        answer = await client.chat.completions.create(model=model, messages=prompt, tools=TOOLS)
    [call] = answer.choices[0].message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls"
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"]
    function = {"name": call.function.name, "arguments": call.function.arguments}
    sent_back = {"id": call.id, "type": "function", "function": function}
    history: list[Any] = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [sent_back]},
        {"role": "tool", "tool_call_id": call.id, "content": "18 degrees"},
    ]
    then = await client.chat.completions.create(model=model, messages=history, tools=TOOLS)
    assert then.choices[0].message.content


async def test_a_bad_key_is_told_so(gateway: Gateway) -> None:
    async with AsyncOpenAI(base_url=gateway.base_url, api_key="sk-proj-abcdefghijklmnop") as stranger:
        with pytest.raises(openai.AuthenticationError) as raised:
            await stranger.chat.completions.create(model="sim/chat", messages=HELLO)
    assert raised.value.code == "invalid_api_key"
    assert raised.value.request_id


def test_a_key_revoked_between_two_requests_of_one_connection_is_refused(gateway: Gateway) -> None:
    key = gateway.create_key("leaving")
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}", **FAST}
    body = json.dumps({"model": "sim/echo", "messages": HELLO})
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)) as connection:

        def ask() -> tuple[int, bytes]:
            connection.request("POST", "/v1/chat/completions", body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()

        assert [ask()[0] for _ in range(3)] == [200] * 3
        socket = connection.sock
        assert gateway.strata("keys", "revoke", "leaving").returncode == 0
        deadline = time.monotonic() + 20
        while (answer := ask())[0] == 200 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert answer[0] == 401 and b"key_revoked" in answer[1]
        assert connection.sock is socket


async def test_an_unknown_model_comes_with_a_suggestion(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match='Did you mean "claude"') as raised:
        await client.chat.completions.create(model="claued", messages=HELLO)
    assert raised.value.code == "model_not_found"
    assert raised.value.param == "model"


async def test_a_stream_that_is_cut_raises(gateway: Gateway, client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="sim/cut", messages=HELLO, stream=True, extra_headers={**FAST, "x-request-id": "story-cut"}
    )
    said = ""
    with pytest.raises(openai.APIError):
        async for chunk in stream:
            said += chunk.choices[0].delta.content or ""
    assert said
    [row] = await gateway.settled("story-cut")
    assert (row["source"], row["outcome"]) == ("counted", "provider_stream_cut")
    assert row["output_tokens"] > 0


@pytest.mark.parametrize(
    ("header", "source", "outcome"),
    [
        ("usage=none", "counted", "ok"),
        ("usage=exact", "provider", "ok"),
        ("error=midstream,after=2", "counted", "provider_error"),
        ("status=429,after=4", "counted", "provider_rate_limited"),
    ],
)
async def test_a_header_forces_any_fault_on_the_simulated_provider(
    gateway: Gateway, client: AsyncOpenAI, header: str, source: str, outcome: str
) -> None:
    name = f"story-fault-{next(nonces)}"
    stream = await client.chat.completions.create(
        model="sim/chat",
        messages=HELLO,
        stream=True,
        extra_headers={"x-strata-sim": f"speed=0,{header}", "x-request-id": name},
    )
    said = ""
    with contextlib.nullcontext() if outcome == "ok" else pytest.raises(openai.APIError):
        async for chunk in stream:
            said += chunk.choices[0].delta.content or ""
    [row] = await gateway.settled(name)
    assert (row["source"], row["outcome"]) == (source, outcome)
    assert row["output_tokens"] >= len(said.split()) // 2 > 0
    assert row["input_tokens"] > 0


async def test_a_fault_that_is_misspelt_is_refused(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="retry_after"):
        await client.chat.completions.create(
            model="sim/chat", messages=HELLO, extra_headers={"x-strata-sim": "sttaus=503"}
        )


async def test_flaky_is_retried_and_nobody_notices(gateway: Gateway, client: AsyncOpenAI) -> None:
    attempts = []
    for number in range(3):
        headers = {"x-request-id": f"story-flaky-{number}"}
        raw = await client.with_options(max_retries=0).chat.completions.with_raw_response.create(
            model="sim/flaky", messages=HELLO, extra_headers=headers
        )
        assert raw.parse().choices[0].message.content
        attempts.append(int(raw.headers.get("x-strata-attempts", "1")))
    assert sorted(attempts) == [1, 1, 2]
    [failed, served] = await gateway.settled(f"story-flaky-{attempts.index(2)}", 2)
    assert (failed["status"], failed["source"], failed["cost_nano_usd"]) == (503, "none", 0)
    assert (served["status"], served["outcome"]) == (200, "ok")


async def test_a_rate_limit_of_the_provider_is_passed_on(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.RateLimitError) as raised:
        await client.with_options(max_retries=0).chat.completions.create(model="sim/limited", messages=HELLO)
    assert raised.value.response.headers["retry-after"] == "2"


async def test_too_long_is_the_callers_to_mend(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        await client.chat.completions.create(model="sim/long", messages=HELLO)
    assert raised.value.code == "context_length_exceeded"


async def test_models_are_listed_and_found(client: AsyncOpenAI) -> None:
    listed = [model.id async for model in client.models.list()]
    assert {"gpt", "claude", "either", "sim/chat"} <= set(listed)
    assert (await client.models.retrieve("sim/chat")).id == "sim/chat"
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("nothing")


async def test_the_base_url_works_without_its_v1(gateway: Gateway) -> None:
    async with AsyncOpenAI(base_url=gateway.base_url.removesuffix("/v1"), api_key=gateway.key) as client:
        answer = await client.chat.completions.create(model="sim/echo", messages=HELLO)
        assert answer.choices[0].message.content == "Hello"
        assert (await client.models.retrieve("sim/echo")).id == "sim/echo"


@pytest.mark.parametrize(
    ("method", "path", "body", "key", "status", "code"),
    [
        ("POST", "/v1/chat/completions", b"{}", False, 401, "missing_api_key"),
        ("POST", "/v1/chat/completions", b"{", True, 400, "invalid_json"),
        ("POST", "/v1/chat/completion", b"{}", True, 404, "unknown_url"),
        ("GET", "/nowhere", None, True, 404, "unknown_url"),
        ("GET", "/v1/chat/completions", None, True, 405, None),
        ("DELETE", "/v1/models", None, True, 405, None),
        ("GET", "/v1/models/none", None, True, 404, "model_not_found"),
    ],
)
def test_every_error_has_openais_shape_and_an_id(
    gateway: Gateway, method: str, path: str, body: bytes | None, key: bool, status: int, code: str | None
) -> None:
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {gateway.key}"} if key else {})
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)) as connection:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        raw = answer.read()
    assert answer.status == status
    error = json.loads(raw)["error"]
    assert {"message", "type", "param", "code"} <= error.keys()
    assert answer.headers["x-request-id"]
    assert answer.headers["content-type"].startswith("application/json")
    assert code in (None, error["code"])
    assert error["message"].rstrip(".)").count(" ") >= 3


async def test_a_body_that_is_too_large_is_said_to_be_so_to_the_sdk(client: AsyncOpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "x" * 21_000_000}]
    with pytest.raises(openai.APIStatusError, match="20000000") as raised:
        await client.with_options(max_retries=0).chat.completions.create(model="sim/chat", messages=messages)
    assert raised.value.status_code == 413
    assert raised.value.code == "request_too_large"
    assert raised.value.request_id


async def test_a_missing_key_of_the_sdk_is_explained(gateway: Gateway) -> None:
    async with AsyncOpenAI(base_url=gateway.base_url, api_key=" ") as client:
        with pytest.raises((openai.AuthenticationError, openai.APIConnectionError)):
            await client.chat.completions.create(model="sim/chat", messages=HELLO)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("model", APIS)
@pytest.mark.parametrize(
    "script",
    [
        {},
        {"tools": 1},
        {"tools": 2},
        {"thinking": 4},
        {"cache_read": 40},
        {"cache_read": 1_000, "cache_write_5m": 300, "cache_write_1h": 200},
        {"split": 2, "pieces": 12},
        {"usage": "twice"},
        {"text": "line\u2028separator \r\n\r\ndata: [DONE]\n\n é😀"},
    ],
    ids=str,
)
async def test_each_answer_is_billed_as_the_provider_bills_it(
    gateway: Gateway, oracle: OracleProcess, client: AsyncOpenAI, model: str, stream: bool, script: dict[str, Any]
) -> None:
    if model not in REPORTS_CACHE_WRITES and "cache_write_5m" in script:
        script = {"cache_read": script["cache_read"]}
    asked = Asked(**script)
    options: dict[str, Any] = {"tools": TOOLS} if "tools" in script else {}
    if "thinking" in script:
        options["reasoning_effort"] = "low"
    if stream:
        said = await client.chat.completions.create(
            model=model, messages=asked.messages, stream=True, extra_headers=asked.headers, **options
        )
        chunks = [chunk async for chunk in said]
        deltas = [chunk.choices[0].delta for chunk in chunks]
        text = "".join(delta.content or "" for delta in deltas)
        thought = "".join((delta.model_extra or {}).get("reasoning_content") or "" for delta in deltas)
        calls = {call.index for delta in deltas for call in delta.tool_calls or ()}
    else:
        answer = await client.chat.completions.create(
            model=model, messages=asked.messages, extra_headers=asked.headers, **options
        )
        message = answer.choices[0].message
        text, thought = message.content or "", (message.model_extra or {}).get("reasoning_content") or ""
        calls = set(range(len(message.tool_calls or ())))
    assert len(calls) == script.get("tools", 0)
    assert len(thought.split()) == script.get("thinking", 0)
    assert text == script.get("text", text)
    assert bool(text) == ("tools" not in script)
    [item] = await agreed(gateway, oracle, asked)
    assert item.cache_read_tokens == script.get("cache_read", 0)


@pytest.mark.parametrize("model", APIS)
async def test_an_image_reaches_each_api_as_it_wants_it(
    gateway: Gateway, oracle: OracleProcess, client: AsyncOpenAI, model: str
) -> None:
    asked = Asked()
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
    content = [{"type": "text", "text": asked.prompt}, picture]
    answer = await client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": content}], extra_headers=asked.headers  # type: ignore[list-item,misc]
    )  # fmt: skip
    assert answer.choices[0].message.content
    [item] = await agreed(gateway, oracle, asked)
    assert item.input_tokens >= 85


@pytest.mark.parametrize("stream", [True, False])
async def test_an_overloaded_provider_hands_over_to_the_next_and_both_have_a_row(
    gateway: Gateway, oracle: OracleProcess, client: AsyncOpenAI, stream: bool
) -> None:
    asked = Asked(status=529, models=["claude"])
    answer: Any = await client.chat.completions.create(
        model="either", messages=asked.messages, stream=stream, extra_headers=asked.headers
    )
    if stream:
        assert [chunk async for chunk in answer]
    items = await agreed(gateway, oracle, asked, 2)
    assert [(item.api, item.status) for item in items] == [("anthropic", 529), ("openai", 200)]
    rows = await gateway.rows(asked.nonce)
    assert [(row["provider"], row["source"]) for row in rows] == [("claude", "none"), ("oai", "provider")]


async def test_an_overload_inside_a_stream_before_any_content_still_hands_over(
    gateway: Gateway, oracle: OracleProcess, client: AsyncOpenAI
) -> None:
    asked = Asked(error=0, models=["claude"])
    stream = await client.chat.completions.create(
        model="either", messages=asked.messages, stream=True, extra_headers=asked.headers
    )
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    rows = await gateway.settled(asked.nonce, 2)
    assert [row["outcome"] for row in rows][1] == "ok"
    assert [item.api for item in oracle.items(asked.nonce)] == ["anthropic", "openai"]


@pytest.mark.parametrize("model", APIS)
@pytest.mark.parametrize("script", [{"error": 3}, {"cut": 3}, {"cut": 3, "clean_cut": True}], ids=str)
async def test_a_stream_that_breaks_raises_and_is_billed_for_what_came(
    gateway: Gateway, oracle: OracleProcess, client: AsyncOpenAI, model: str, script: dict[str, Any]
) -> None:
    asked = Asked(**script)
    stream = await client.chat.completions.create(
        model=model, messages=asked.messages, stream=True, extra_headers=asked.headers
    )
    said = []
    with pytest.raises(openai.APIError):
        async for chunk in stream:
            said.append(chunk.choices[0].delta.content or "")
    assert "".join(said).split() == ["red", "tree", "house"]
    [row] = await gateway.settled(asked.nonce)
    [item] = oracle.items(asked.nonce)
    assert row["output_tokens"] >= item.output_tokens == 3
    assert row["input_tokens"] > 0
    assert row["outcome"] != "ok"


@pytest.mark.parametrize("model", APIS)
@pytest.mark.parametrize("garbage", ["html", "not_http", "no_content", "bad_json"])
async def test_garbage_of_a_provider_is_a_bad_gateway(
    gateway: Gateway, oracle: OracleProcess, client: AsyncOpenAI, garbage: str, model: str
) -> None:
    asked = Asked(garbage=garbage)
    with pytest.raises(openai.InternalServerError) as raised:
        await client.with_options(max_retries=0).chat.completions.create(
            model=model, messages=asked.messages, extra_headers=asked.headers
        )
    assert raised.value.status_code == 502
    items = oracle.items(asked.nonce)
    assert len(await gateway.settled(asked.nonce, len(items))) == len(items) >= 1


@pytest.mark.parametrize("model", APIS)
async def test_a_client_that_leaves_is_billed_for_what_happened(
    gateway: Gateway, oracle: OracleProcess, client: AsyncOpenAI, model: str
) -> None:
    asked = Asked(pieces=60, gap_ms=20)
    stream = await client.chat.completions.create(
        model=model, messages=asked.messages, stream=True, extra_headers=asked.headers
    )
    heard = ""
    async for chunk in stream:
        heard += chunk.choices[0].delta.content or ""
        if len(heard.split()) >= 5:
            break
    await stream.close()
    [row] = await gateway.settled(asked.nonce)
    assert row["source"] in ("drained", "counted")
    assert row["output_tokens"] >= len(heard.split())
    async with asyncio.timeout(20):
        while not (items := oracle.items(asked.nonce)):
            await asyncio.sleep(0.1)
    if row["source"] == "drained":
        assert equal(row, items[0]) == {}


async def test_a_wrong_key_of_the_operator_is_not_the_callers_fault(
    gateway: Gateway, oracle: OracleProcess, client: AsyncOpenAI
) -> None:
    asked = Asked(status=401, models=["gpt-refused"])
    with pytest.raises(openai.InternalServerError) as raised:
        await client.with_options(max_retries=0).chat.completions.create(
            model="gpt-refused", messages=asked.messages, extra_headers=asked.headers
        )
    assert raised.value.status_code == 502
    assert "sk-oracle" not in str(raised.value)
    [row] = await gateway.settled(asked.nonce)
    assert (row["status"], row["cost_nano_usd"]) == (401, 0)


async def test_many_at_once_are_billed_item_by_item(
    gateway: Gateway, oracle: OracleProcess, client: AsyncOpenAI
) -> None:
    async def one(number: int) -> Asked:
        asked = Asked(pieces=3 + number % 9, cache_read=number, split=number % 4)
        answer: Any = await client.chat.completions.create(
            model=APIS[number % len(APIS)],
            messages=asked.messages,
            stream=number % 3 > 0,
            extra_headers=asked.headers,
        )
        if number % 3:
            assert [chunk async for chunk in answer]
        return asked

    for asked in await asyncio.gather(*(one(number) for number in range(60))):
        await agreed(gateway, oracle, asked)


def test_nothing_is_left_open_at_the_end(gateway: Gateway) -> None:
    assert gateway.alive()
    assert "Traceback" not in gateway.log.read_text()
