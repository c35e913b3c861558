"""The oracle's other APIs are what their owners' own clients expect, and refuse what their owners refuse."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import botocore.session
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, EventStreamError

from tests.oracle import Oracle, marker
from tests.oracle.server import SHAPES

CLAUDE = "us.anthropic.claude-haiku-4-5-20251001-v1:0"
HEADERS = {"authorization": "Bearer sk-oracle"}
TOOL = {"toolSpec": {"name": "tide", "inputSchema": {"json": {"type": "object"}}}}


@pytest.fixture
async def oracle() -> AsyncIterator[Oracle]:
    async with Oracle(seed=7) as running:
        yield running
    assert running.faults == []


@pytest.fixture
def aws(oracle: Oracle) -> Any:
    return botocore.session.get_session().create_client(
        "bedrock-runtime",
        region_name="eu-west-1",
        endpoint_url=oracle.url,
        aws_access_key_id="AKIDORACLE",
        aws_secret_access_key="of-the-tests",
        config=Config(retries={"total_max_attempts": 1}),
    )


def ask(text: str) -> dict[str, Any]:
    return {"modelId": CLAUDE, "messages": [{"role": "user", "content": [{"text": text}]}]}


async def test_converse_is_what_awss_own_client_expects(oracle: Oracle, aws: Any) -> None:
    script = marker(thinking=2, tools=1, cache_read=30, cache_write_5m=7, cache_write_1h=5)
    answer = await asyncio.to_thread(aws.converse, **ask(f"nonce=a1 {script}"), toolConfig={"tools": [TOOL]})
    assert [list(block) for block in answer["output"]["message"]["content"]] == [["reasoningContent"], ["toolUse"]]
    assert answer["stopReason"] == "tool_use"
    [item] = oracle.items_of("a1")
    assert item.model == CLAUDE
    assert answer["usage"] == {
        **{"inputTokens": item.input_tokens, "outputTokens": item.output_tokens},
        **{"cacheReadInputTokens": 30, "cacheWriteInputTokens": 12},
        "totalTokens": item.input_tokens + 42 + item.output_tokens,
        "cacheDetails": [{"ttl": "5m", "inputTokens": 7}, {"ttl": "1h", "inputTokens": 5}],
    }


async def test_converses_streams_are_what_awss_own_client_expects(oracle: Oracle, aws: Any) -> None:
    def read() -> list[dict[str, Any]]:
        answer = aws.converse_stream(**ask(f"nonce=b1 {marker(thinking=1, split=5, comments=2)}"))
        return list(answer["stream"])

    events = await asyncio.to_thread(read)
    deltas = [event["contentBlockDelta"]["delta"] for event in events if "contentBlockDelta" in event]
    assert "".join(delta.get("text", "") for delta in deltas) == " red tree house river stone cloud"
    assert [next(iter(event)) for event in events][-2:] == ["messageStop", "metadata"]
    assert events[-1]["metadata"]["usage"]["outputTokens"] == oracle.items_of("b1")[0].output_tokens == 7


async def test_bedrocks_failures_are_awss_own_exceptions(oracle: Oracle, aws: Any) -> None:
    def read(**script: Any) -> None:
        list(aws.converse_stream(**ask(marker(**script)))["stream"])

    with pytest.raises(ClientError, match="ThrottlingException"):
        await asyncio.to_thread(read, status=429)
    with pytest.raises(ClientError, match=r"ValidationException.*blank"):
        await asyncio.to_thread(aws.converse, **ask(" "))
    with pytest.raises(EventStreamError, match=r"throttlingException.*Slow down"):
        await asyncio.to_thread(read, error=2, code="throttlingException", message="Slow down")
    assert [item.nano_usd > 0 for item in oracle.items] == [False, False, True]


def converse(*messages: tuple[str, dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": [block]} for role, block in messages], **more}


def chat(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "x"}, *messages], **more}


TEXT = {"text": "x"}
USED = {"toolUse": {"toolUseId": "t", "name": "tide", "input": {}}}
GIVEN = {"toolResult": {"toolUseId": "t", "content": [TEXT]}}
BLANK = {"toolResult": {"toolUseId": "t", "content": [{"text": " "}]}}
TOOLS = {"toolConfig": {"tools": [TOOL]}}
CALLS = {"role": "assistant", "tool_calls": [{"id": "abcdefgh1", "function": {"name": "tide", "arguments": "{}"}}]}
RESULT = {"role": "tool", "tool_call_id": "abcdefgh1", "content": "06:10"}


@pytest.mark.parametrize(
    ("api", "body", "said"),
    [
        ("bedrock", converse(("user", TEXT), ("assistant", USED), ("user", GIVEN), **TOOLS), None),
        ("bedrock", converse(("user", {"text": " "})), "blank"),
        ("bedrock", converse(("user", TEXT), system=[{"text": ""}]), "system.0 is blank"),
        ("bedrock", converse(("user", TEXT), ("assistant", USED), ("user", BLANK), **TOOLS), "blank"),
        ("bedrock", converse(("user", TEXT), ("user", TEXT)), "alternate"),
        ("bedrock", converse(("assistant", TEXT)), "start with a user"),
        ("bedrock", converse(("user", TEXT), ("assistant", USED), ("user", TEXT), **TOOLS), "Expected toolResult"),
        ("bedrock", converse(("user", GIVEN), **TOOLS), "exceeds the number"),
        ("bedrock", converse(("user", TEXT), ("assistant", USED), ("user", GIVEN)), "toolConfig field must be defined"),
        ("bedrock", converse(("user", TEXT), toolConfig={"tools": []}), "length"),
        ("bedrock", converse(("user", TEXT), temperature=1), "temperature is not a member"),
        ("bedrock", converse(("user", {"document": {"name": "a"}})), "must have a text block"),
        ("cohere", chat(CALLS, RESULT), None),
        ("cohere", chat(top_p=1), "unknown field: parameter 'top_p'"),
        ("cohere", chat(CALLS), "followed by its result"),
        ("cohere", chat(RESULT), "not found"),
        ("cohere", chat(tools=[{}], response_format={}), "response_format cannot be used"),
        ("cohere", chat(tools=[{}], tool_choice="auto"), "tool_choice"),
        ("cohere", chat({"role": "tool", "tool_call_id": "x", "content": [{"type": "image_url"}]}), "image_url"),
        ("mistral", chat(CALLS, RESULT), None),
        ("mistral", chat(seed=1), "seed: Extra inputs"),
        ("mistral", chat({"role": "user", "content": "x", "name": "ada"}), "messages.1.name: Extra inputs"),
        ("mistral", chat(CALLS, RESULT | {"tool_call_id": "call_1"}), "length of 9"),
        ("mistral", chat(CALLS, RESULT, {"role": "user", "content": "x"}), "'user' after role 'tool'"),
        ("mistral", chat(RESULT), "'tool' after role 'user'"),
        ("mistral", chat(CALLS, {"role": "user", "content": "x"}), "Not the same number"),
        ("mistral", chat({"role": "assistant", "content": "x"}), "prefix True"),
    ],
)
def test_what_the_owner_refuses_is_refused(api: str, body: dict[str, Any], said: str | None) -> None:
    refusal = SHAPES[api].refuse(body, HEADERS)
    assert (refusal is None) == (said is None), refusal
    assert said is None or said in refusal[1]


@pytest.mark.parametrize("api", sorted(SHAPES))
def test_nobody_answers_a_stranger(api: str) -> None:
    assert SHAPES[api].refuse(chat(), {})[0] in (401, 403)
