"""OpenAI's own SDK for Python: everything it does beyond sending and reading, with each API behind the gateway."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.lib.streaming.chat import ChatCompletionStreamEvent
from pydantic import BaseModel, Field

from tests.conformance import MODELS, UNTOLD_LIMITS
from tests.gateway import Gateway
from tests.oracle.server import SHAPES

FAST = {"x-strata-sim": "speed=0"}
LIMITS = {"remaining-requests": "3999", "reset-requests": "0s", "remaining-tokens": "479000"}
every_api = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())


class Peak(BaseModel):
    name: str
    metres: int


class Climb(BaseModel):
    """Climbs a mountain."""

    peak: str
    days: int


class Camp(BaseModel):
    """What schemas are hard to take of: it refers to itself with a word about it, and says little of its contents."""

    below: Camp = Field(description="The camp before")
    stock: dict[str, int]
    notes: list[Any]


CLIMB: Any = openai.pydantic_function_tool(Climb)


def ask(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Iterator[OpenAI]:
    with OpenAI(base_url=gateway.base_url, api_key=gateway.key, default_headers=FAST, max_retries=0) as sdk:
        yield sdk


def test_every_api_of_the_oracle_is_here() -> None:
    assert set(SHAPES) <= set(MODELS)


@every_api
def test_the_stream_helper_puts_the_answer_together(client: OpenAI, model: str) -> None:
    options: Any = {"include_usage": True}
    with client.chat.completions.stream(model=model, messages=ask("Say something"), stream_options=options) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    said = [event.delta for event in events if event.type == "content.delta"]
    assert len(said) > 1
    assert final.choices[0].message.content == "".join(said)
    assert [event.content for event in events if event.type == "content.done"] == ["".join(said)]
    assert final.choices[0].finish_reason == "stop"
    assert final.usage is not None
    assert final.usage.total_tokens == final.usage.prompt_tokens + final.usage.completion_tokens > 0


@every_api
@pytest.mark.parametrize("asked", [True, False])
def test_usage_comes_once_and_last_and_only_if_asked_for(client: OpenAI, model: str, asked: bool) -> None:
    more: Any = {"stream_options": {"include_usage": True}} if asked else {}
    chunks = list(client.chat.completions.create(model=model, messages=ask("Hello"), stream=True, **more))
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [asked]
    assert [not chunk.choices for chunk in chunks] == [False] * (len(chunks) - 1) + [asked]
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1


@every_api
def test_a_schema_is_parsed_into_its_class(client: OpenAI, model: str) -> None:
    answer = client.chat.completions.parse(model=model, messages=ask("The peak of Wales?"), response_format=Peak)
    assert isinstance(answer.choices[0].message.parsed, Peak)
    assert answer.choices[0].finish_reason == "stop"
    assert not answer.choices[0].message.tool_calls


@every_api
def test_a_streamed_schema_is_parsed_into_its_class(client: OpenAI, model: str) -> None:
    with client.chat.completions.stream(model=model, messages=ask("A peak?"), response_format=Peak) as stream:
        done = [event.parsed for event in stream if event.type == "content.done"]
        final = stream.get_final_completion()
    assert done == [final.choices[0].message.parsed]
    assert isinstance(done[0], Peak)


@every_api
def test_a_called_tool_is_parsed_and_its_result_answered(client: OpenAI, model: str) -> None:
    messages = ask("Climb 'Snowdon' in 2 days")
    first = client.chat.completions.parse(model=model, messages=messages, tools=[CLIMB])
    (call,) = first.choices[0].message.tool_calls or []
    assert first.choices[0].finish_reason == "tool_calls"
    assert call.function.parsed_arguments == Climb(peak="Snowdon", days=2)
    messages += [first.choices[0].message.to_dict(), {"role": "tool", "tool_call_id": call.id, "content": "done"}]
    second = client.chat.completions.create(model=model, messages=messages, tools=[CLIMB])
    assert second.choices[0].finish_reason == "stop"
    assert second.choices[0].message.content


@every_api
def test_a_user_may_speak_right_after_a_tool(client: OpenAI, model: str) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "Climb", "arguments": "{}"}}
    used: list[Any] = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    used += [{"role": "tool", "tool_call_id": "call_1", "content": "cancelled"}, *ask("Never mind")]
    messages = ask("Climb") + used
    answer = client.chat.completions.create(model=model, messages=messages, tools=[CLIMB], tool_choice="auto")
    assert answer.choices[0].finish_reason in ("stop", "tool_calls")


def arguments_of(events: list[ChatCompletionStreamEvent[None]]) -> tuple[str, Any]:
    pieces = "".join(event.arguments_delta for event in events if event.type == "tool_calls.function.arguments.delta")
    (done,) = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert pieces == done.arguments
    return done.name, done.parsed_arguments


@every_api
def test_a_streamed_tool_call_is_parsed(client: OpenAI, model: str) -> None:
    messages = ask("Climb 'Snowdon' in 2 days")
    with client.chat.completions.stream(model=model, messages=messages, tools=[CLIMB]) as stream:
        name, arguments = arguments_of(list(stream))
        final = stream.get_final_completion()
    assert (name, arguments) == ("Climb", Climb(peak="Snowdon", days=2))
    assert final.choices[0].finish_reason == "tool_calls"
    assert len({call.id for call in final.choices[0].message.tool_calls or []}) == 1


@every_api
@pytest.mark.parametrize(
    ("choice", "called"),
    [
        ("required", True),
        ("none", False),
        ({"type": "function", "function": {"name": "Climb"}}, True),
    ],
)
def test_tool_choice_is_honoured(client: OpenAI, model: str, choice: Any, called: bool) -> None:
    answer = client.chat.completions.create(model=model, messages=ask("Hello"), tools=[CLIMB], tool_choice=choice)
    assert bool(answer.choices[0].message.tool_calls) is called


@every_api
def test_schemas_of_every_kind_are_taken(client: OpenAI, model: str) -> None:
    schemas = {"camp": Camp.model_json_schema(), "rest": {"type": "object", "properties": {}}, "turn_back": None}
    tools: list[Any] = [
        {"type": "function", "function": {"name": name, **({"parameters": schema} if schema else {})}}
        for name, schema in schemas.items()
    ]
    answer = client.chat.completions.create(model=model, messages=ask("Hello"), tools=tools, tool_choice="none")
    assert answer.choices[0].message.content


@every_api
def test_raw_responses_have_their_headers(client: OpenAI, model: str) -> None:
    raw = client.chat.completions.with_raw_response.create(model=model, messages=ask("Hello"))
    assert raw.headers["x-request-id"] == raw.parse()._request_id
    assert int(raw.headers["openai-processing-ms"]) >= 0
    told = {name: raw.headers.get(f"x-ratelimit-{name}") for name in LIMITS}
    assert told == {**LIMITS, **dict.fromkeys(UNTOLD_LIMITS.get(model, ()), None)}


@every_api
def test_streamed_responses_can_be_read_line_by_line(client: OpenAI, model: str) -> None:
    asked = client.chat.completions.with_streaming_response.create(model=model, messages=ask("Hello"), stream=True)
    with asked as response:
        lines = [line for line in response.iter_lines() if line]
    assert response.headers["content-type"].startswith("text/event-stream")
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    assert json.loads(lines[0].removeprefix("data: "))["object"] == "chat.completion.chunk"


@every_api
def test_what_is_wrong_is_the_exception_that_openai_would_cause(client: OpenAI, model: str) -> None:
    bad: Any = [{"role": "user", "content": 7}]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=model, messages=bad)
    assert caught.value.param == "messages[0].content"
    assert caught.value.request_id
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model=f"nobody/{model}", messages=ask("Hello"))


@every_api
async def test_the_asynchronous_client_streams_too(gateway: Gateway, model: str) -> None:
    sdk = AsyncOpenAI(base_url=gateway.base_url, api_key=gateway.key, default_headers=FAST)
    async with sdk, sdk.chat.completions.stream(model=model, messages=ask("Hello")) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_completion()
    assert kinds.count("content.done") == 1
    assert final.choices[0].message.content


@pytest.mark.parametrize(
    "more",
    [
        {"extra_headers": {"anthropic-beta": "context-management-2025-06-27"}},
        {"extra_body": {"betas": ["context-management-2025-06-27"]}},
    ],
)
def test_previews_of_anthropics_are_reached_by_header_or_body(client: OpenAI, more: dict[str, Any]) -> None:
    body = {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}, **more.pop("extra_body", {})}
    asked: Any = {"model": "claude-clever", "messages": ask("Hello"), "extra_body": body}
    assert client.chat.completions.create(**asked, **more).choices[0].message.content
    asked["extra_body"] = {"context_management": body["context_management"]}
    with pytest.raises(openai.BadRequestError, match="context_management"):
        client.chat.completions.create(**asked)
