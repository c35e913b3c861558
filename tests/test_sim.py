"""The simulated provider: the same answer for the same prompt, exact usage, and every fault on command."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import msgspec
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import AsyncOpenAI

from proxy.sim import SimServer, answers, faults
from proxy.sim.replies import Call, Reply, decide
from proxy.sim.schemas import instance

FAST = {"x-strata-sim": "speed=0"}
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "unit": {"enum": ["c", "f"]},
                "days": {"type": "integer", "minimum": 30},
            },
            "required": ["city"],
        },
    },
}


@pytest.fixture
async def port() -> AsyncIterator[int]:
    server = SimServer(clock=lambda: 1_800_000_000.0)
    yield await server.start()
    await server.close()


@pytest.fixture
async def client(port: int) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as sdk:
        yield sdk


def post(model: str, *, header: str = "", ordinal: int = 1, path: str = "/v1/chat/completions", **body: Any) -> Reply:
    raw = msgspec.json.encode({"model": model, "messages": HELLO, **body})
    return decide(Call("POST", path, {"x-strata-sim": header}, raw), ordinal=ordinal, created=1)


def events(reply: Reply) -> list[dict[str, Any]]:
    assert reply.steps is not None
    data = b"".join(step.data for step in reply.steps)
    return [json.loads(line[6:]) for line in data.decode().split("\n\n") if line and line != "data: [DONE]"]


def body_of(reply: Reply) -> Any:
    return json.loads(reply.body)


@pytest.mark.parametrize("model", ["chat", "echo", "json", "reasoning"])
def test_the_same_prompt_has_the_same_answer_and_another_prompt_another(model: str) -> None:
    assert post(model).body == post(f"sim/{model}").body.replace(b'"model":"sim/', b'"model":"')
    assert post(model).body != post(model, messages=[{"role": "user", "content": "Bye"}]).body


def test_choices_of_one_answer_differ() -> None:
    texts = [choice["message"]["content"] for choice in body_of(post("chat", n=5))["choices"]]
    assert len(set(texts)) > 1
    assert body_of(post("chat", n=129))["error"]["param"] == "n"


@pytest.mark.parametrize("model", ["chat", "echo", "json", "reasoning", "tools"])
@pytest.mark.parametrize("count", [1, 3])
def test_a_stream_says_what_the_whole_answer_says_and_costs_the_same(model: str, count: int) -> None:
    request: dict[str, Any] = {"n": count, "tools": [WEATHER], "parallel_tool_calls": True}
    whole = body_of(post(model, **request))
    chunks = events(post(model, stream=True, stream_options={"include_usage": True}, **request))
    assert chunks[-1]["usage"] == whole["usage"]
    for choice in whole["choices"]:
        deltas = [part["delta"] for chunk in chunks for part in chunk["choices"] if part["index"] == choice["index"]]
        message = choice["message"]
        assert "".join(delta.get("content") or "" for delta in deltas) == (message["content"] or "")
        assert "".join(delta.get("reasoning_content", "") for delta in deltas) == message.get("reasoning_content", "")
        for index, call in enumerate(message.get("tool_calls", [])):
            parts = [one for delta in deltas for one in delta.get("tool_calls", []) if one["index"] == index]
            assert [part["id"] for part in parts if "id" in part] == [call["id"]]
            assert "".join(part["function"]["arguments"] for part in parts) == call["function"]["arguments"]


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize("model", ["chat", "tools"])
def test_streams_have_the_shape_of_openais_own(model: str, asked: bool) -> None:
    chunks = events(post(model, stream=True, stream_options={"include_usage": asked}, tools=[WEATHER]))
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    assert choices[0]["delta"]["role"] == "assistant"
    assert sum("role" in choice["delta"] for choice in choices) == 1
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == [
        "tool_calls" if model == "tools" else "stop"
    ]
    assert choices[-1]["delta"] == {}
    assert len({(chunk["id"], chunk["created"], chunk["object"]) for chunk in chunks}) == 1
    if asked:
        assert chunks[-1]["choices"] == []
        assert all(chunk["usage"] is None for chunk in chunks[:-1])
    else:
        assert not any("usage" in chunk for chunk in chunks)


def test_a_tool_is_called_with_what_the_prompt_says() -> None:
    def arguments(prompt: str, **more: Any) -> Any:
        messages = [{"role": "user", "content": prompt}]
        other = {"type": "function", "function": {"name": "other", "parameters": {}}}
        body = body_of(post("tools", messages=messages, tools=[other, WEATHER], **more))
        (call,) = body["choices"][0]["message"]["tool_calls"]
        return call["function"]["name"], json.loads(call["function"]["arguments"])

    assert arguments("Use get_weather for 'Löwenstein', 45 days, in f") == (
        "get_weather",
        {"city": "Löwenstein", "unit": "f", "days": 45},
    )
    assert arguments("get_weather for 3 days")[1]["days"] == 30, "the schema's bounds come first"
    assert arguments("Weather?")[0] == "other"
    only = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [WEATHER]}}
    assert arguments("Weather?", tool_choice=only)[0] == "get_weather"


@given(st.text(max_size=400))
def test_pieces_put_together_are_the_text(text: str) -> None:
    assert "".join(answers.pieces(text)) == text


def test_a_very_long_text_comes_in_a_bounded_number_of_pieces() -> None:
    text = "word " * 50_000
    pieces = answers.pieces(text)
    assert "".join(pieces) == text
    assert len(pieces) <= 2_048


def test_tokens_are_a_quarter_of_the_bytes_and_the_limit_holds() -> None:
    said = body_of(post("echo", messages=[{"role": "user", "content": "é" * 100}], max_tokens=7))
    assert said["usage"]["prompt_tokens"] == 50
    assert said["usage"]["completion_tokens"] == 7
    assert said["choices"][0]["finish_reason"] == "length"
    assert said["choices"][0]["message"]["content"] == "é" * 14
    stopped = body_of(post("echo", messages=[{"role": "user", "content": "one two three"}], stop=["two"]))
    assert stopped["choices"][0]["message"]["content"] == "one "


async def test_reasoning_is_counted_as_part_of_the_completion(client: AsyncOpenAI) -> None:
    said = await client.chat.completions.create(model="reasoning", messages=HELLO)
    assert said.usage is not None
    details = said.usage.completion_tokens_details
    assert details is not None
    thought = said.choices[0].message.model_extra or {}
    assert details.reasoning_tokens == answers.tokens(thought["reasoning_content"])
    assert said.usage.completion_tokens > (details.reasoning_tokens or 0)


async def test_tools_are_called_once_and_their_results_answered(client: AsyncOpenAI) -> None:
    said = await client.chat.completions.create(model="tools", messages=HELLO, tools=[WEATHER])  # type: ignore[list-item]
    [call] = said.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert json.loads(call.function.arguments)["days"] >= 30
    result = [*HELLO, said.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "18 degrees"}]
    then = await client.chat.completions.create(model="tools", messages=result, tools=[WEATHER])  # type: ignore[list-item]
    assert "18 degrees" in (then.choices[0].message.content or "")


@pytest.mark.parametrize(
    ("request_fields", "names"),
    [
        ({"parallel_tool_calls": True}, ["get_weather", "get_weather"]),
        ({"parallel_tool_calls": False}, ["get_weather"]),
        ({"tool_choice": "none"}, []),
        ({"tool_choice": {"type": "function", "function": {"name": "get_weather"}}}, ["get_weather"]),
    ],
)
def test_how_many_tools_are_called_is_the_callers_wish(request_fields: dict[str, Any], names: list[str]) -> None:
    message = body_of(post("tools", tools=[WEATHER], **request_fields))["choices"][0]["message"]
    assert [call["function"]["name"] for call in message.get("tool_calls", [])] == names


def test_json_obeys_the_schema_it_is_given() -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": WEATHER["function"]["parameters"]}}
    said = json.loads(body_of(post("json", response_format=wanted))["choices"][0]["message"]["content"])
    assert isinstance(said["city"], str)
    assert said["unit"] in ("c", "f")
    plain = body_of(post("chat", response_format={"type": "json_object"}))["choices"][0]["message"]["content"]
    assert isinstance(json.loads(plain), dict)


PARAMETERS = WEATHER["function"]["parameters"]
CIRCLE: dict[str, Any] = {
    "type": "object",
    "properties": {"next": {"$ref": "#"}, "all": {"type": "array", "items": {"$ref": "#"}, "minItems": 9}},
    "required": ["next", "all"],
}


@pytest.mark.parametrize(
    ("schema", "holds"),
    [
        ({"type": "string", "format": "date"}, lambda value: value == "2026-03-14"),
        ({"type": "string", "minLength": 40}, lambda value: len(value) >= 40),
        ({"type": "string", "maxLength": 2}, lambda value: len(value) <= 2),
        ({"type": "number", "exclusiveMinimum": 100, "multipleOf": 5}, lambda value: value > 100 and value % 5 == 0),
        ({"type": "integer", "maximum": -4}, lambda value: value <= -4),
        ({"type": ["null", "boolean"]}, lambda value: isinstance(value, bool)),
        ({"const": 5}, lambda value: value == 5),
        ({"enum": []}, lambda value: isinstance(value, str)),
        ({"anyOf": [{"type": "null"}, {"type": "integer"}]}, lambda value: isinstance(value, int)),
        ({"allOf": [{"$ref": "#/$defs/a"}, {"properties": {"y": {"type": "null"}}}], "$defs": {"a": PARAMETERS}},
         lambda value: value["y"] is None and "city" in value),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 3}, lambda value: len(value) >= 3),
        ({"$ref": "#"}, lambda value: value is not None),
        ({"$ref": "https://example.com/other"}, lambda value: isinstance(value, str)),
        (CIRCLE, lambda value: "next" in value and len(msgspec.json.encode(value)) < 1_000_000),
        ("nonsense", lambda value: isinstance(value, str)),
    ],
)  # fmt: skip
def test_instances_are_what_the_schema_asks_for(schema: Any, holds: Any) -> None:
    assert holds(instance(schema, b"seed"))


KEYWORDS = ["type", "properties", "items", "enum", "minimum", "anyOf", "allOf", "$ref", "required"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYWORDS), inner),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(json_values)
def test_no_schema_breaks_the_provider(schema: Any) -> None:
    assert msgspec.json.encode(instance(schema, b"seed"))


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["n", "stop", "tools", "tool_choice", "response_format", "max_tokens", "messages"]), json_values
    )
)
def test_no_request_breaks_the_provider(fields: dict[str, Any]) -> None:
    reply = post("tools", **fields)
    assert reply.status in (200, 400)
    assert body_of(reply)


async def test_equal_texts_have_equal_vectors_of_length_one(client: AsyncOpenAI) -> None:
    answer = await client.embeddings.create(model="embed", input=["one", "two", "one"], dimensions=64)
    vectors = [one.embedding for one in answer.data]
    assert vectors[0] == vectors[2] != vectors[1]
    assert all(abs(sum(number * number for number in vector) - 1) < 1e-5 for vector in vectors)
    assert answer.usage.prompt_tokens == 3
    floats = body_of(post("embed", path="/v1/embeddings", input=[1, 2, 3], dimensions=8))
    packed = body_of(post("embed", path="/v1/embeddings", input=[1, 2, 3], dimensions=8, encoding_format="base64"))
    assert struct.unpack("<8f", base64.b64decode(packed["data"][0]["embedding"])) == pytest.approx(
        floats["data"][0]["embedding"]
    )


@pytest.mark.parametrize("fields", [{"input": ""}, {"input": []}, {"input": [[]]}, {"input": "x", "dimensions": 0}, {}])
def test_bad_embedding_requests_are_refused(fields: dict[str, Any]) -> None:
    assert post("embed", path="/v1/embeddings", **fields).status == 400


async def test_each_third_call_of_flaky_fails(client: AsyncOpenAI) -> None:
    outcomes = []
    for _ in range(6):
        try:
            await client.chat.completions.create(model="flaky", messages=HELLO)
            outcomes.append(200)
        except openai.InternalServerError as error:
            outcomes.append(error.status_code)
    assert outcomes == [200, 200, 503, 200, 200, 503]


async def test_limited_says_when_to_come_back(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.RateLimitError) as raised:
        await client.chat.completions.create(model="limited", messages=HELLO)
    assert raised.value.response.headers["retry-after"] == "2"


async def test_long_is_a_context_overflow(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        await client.chat.completions.create(model="long", messages=HELLO)
    assert raised.value.code == "context_length_exceeded"


@pytest.mark.parametrize("stream", [True, False])
async def test_cut_drops_the_connection_before_the_answers_end(client: AsyncOpenAI, stream: bool) -> None:
    with pytest.raises((openai.APIError, httpx2.RemoteProtocolError)):
        answer = await client.chat.completions.create(model="cut", messages=HELLO, stream=stream, extra_headers=FAST)
        if stream:
            [chunk async for chunk in answer]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("header", "status"),
    [("status=503", 503), ("status=429,retry_after=1", 429), ("error=midstream", 500), ("delay=1ms,status=401", 401)],
)
def test_the_header_forces_a_status_on_any_model(header: str, status: int) -> None:
    for ordinal in (1, 2, 3):
        reply = post("chat", header=header, ordinal=ordinal)
        assert reply.status == status
        assert body_of(reply)["error"].keys() == {"message", "type", "param", "code"}
        assert reply.headers.get("retry-after") == ("1" if "retry_after" in header else None)


@pytest.mark.parametrize(
    ("header", "before"), [("status=503,after=5", 5), ("error=midstream", 3), ("error=midstream,after=0", 0)]
)
def test_a_stream_can_fail_after_it_began(header: str, before: int) -> None:
    reply = post("chat", header=f"speed=0,{header}", stream=True)
    assert reply.steps is not None
    raw = b"".join(step.data for step in reply.steps)
    assert b"[DONE]" not in raw
    parsed = [json.loads(line[6:]) for line in raw.decode().split("\n\n") if line]
    assert "error" in parsed[-1]
    spoken = [one for one in parsed[:-1] if one["choices"][0]["delta"].get("content")]
    assert len(spoken) == before


def test_usage_can_be_missing_or_late() -> None:
    asked: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    assert "usage" not in body_of(post("chat", header="usage=none"))
    assert not any(chunk.get("usage") for chunk in events(post("chat", header="usage=none", **asked)))
    late = post("chat", header="usage=late", **asked)
    assert late.steps is not None
    data = [step.data for step in late.steps]
    assert data[-2] == b"data: [DONE]\n\n"
    assert json.loads(data[-1][6:])["usage"]["total_tokens"] > 0


@pytest.mark.parametrize(
    "header",
    ["bogus=1", "status", "status=200", "status=99999999", "status=²", "delay=5", "delay=-1s", "speed=fast", "cut=1.5",
     "usage=maybe", "error=yes", "cut=1,cut=2", "after=-1", "speed=nan", "status=+503"],
)  # fmt: skip
def test_a_header_that_is_not_understood_is_refused_with_the_reason(header: str) -> None:
    reply = post("chat", header=header)
    assert reply.status == 400
    assert body_of(reply)["error"]["code"] == "bad_fault"
    if header == "bogus=1":
        assert all(key in body_of(reply)["error"]["message"] for key in ("status", "retry_after", "speed"))


def test_speed_and_delay_are_kept() -> None:
    reply = post("chat", header="speed=10,delay=200ms", stream=True)
    assert reply.steps is not None
    assert reply.delay_seconds == 0.2
    waits = [step.wait_seconds for step in reply.steps]
    said = body_of(post("chat"))["usage"]["completion_tokens"]
    assert said / 10 <= sum(waits) <= 2.5 * said / 10
    assert post("slow").delay_seconds == 8
    assert faults.MODELS["chat"].speed == 40


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v1/models", b"", 200),
        ("GET", "/v1/chat/completions", b"", 405),
        ("POST", "/v1/nowhere", b"{}", 404),
        ("POST", "/chat/completions", b"[1]", 400),
        ("POST", "/chat/completions", b"{", 400),
        ("POST", "/chat/completions", b'{"model":"nope","messages":[]}', 404),
        ("POST", "/chat/completions", b'{"model":7}', 404),
        ("POST", "/chat/completions", b'{"model":"chat","messages":[]}', 400),
        ("POST", "/chat/completions", b"[" * 100_000, 400),
    ],
)
def test_every_request_gets_an_answer(method: str, path: str, body: bytes, status: int) -> None:
    assert decide(Call(method, path, {}, body), ordinal=1, created=1).status == status


async def test_a_connection_is_kept_and_pipelined_requests_are_answered_in_turn(port: int) -> None:
    body = msgspec.json.encode({"model": "echo", "messages": HELLO})
    request = b"POST /v1/chat/completions HTTP/1.1\r\nhost: sim\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for batch in (1, 3):
        writer.write(request * batch)
        for _ in range(batch):
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            assert b"Hello" in await reader.readexactly(length)
    writer.write(b"this is no HTTP\r\n\r\n")
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        await asyncio.wait_for(reader.readexactly(1), 10)
    writer.close()


async def test_closing_ends_answers_that_are_being_given() -> None:
    server = SimServer()
    port = await server.start()
    client = AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    stream = await client.chat.completions.create(model="chat", messages=HELLO, stream=True)
    await anext(aiter(stream))
    await asyncio.wait_for(server.close(), 5)
    assert not any(connection.task for connection in server.connections)
    with pytest.raises((openai.APIError, httpx2.TransportError)):
        async for _ in stream:
            pass
    await client.close()


def test_every_model_of_the_tutorial_is_there() -> None:
    known = "chat echo tools json reasoning embed slow flaky limited cut long"
    assert list(faults.MODELS) == known.split()
