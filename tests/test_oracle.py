"""The oracle tells the truth about itself: what it was asked to do happens, and its bill holds each request once."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from anthropic import APIStatusError, AsyncAnthropic
from openai import AsyncOpenAI

from tests.chaos.verdict import judge
from tests.oracle import Item, Oracle, Prices, Script, marker, read_bill


@pytest.fixture
async def oracle(tmp_path: Path) -> AsyncIterator[Oracle]:
    async with Oracle(bill=tmp_path / "bill.jsonl", seed=7) as running:
        yield running
    assert running.faults == []


@pytest.fixture
async def client(oracle: Oracle) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{oracle.url}/v1", api_key="sk-oracle", max_retries=0) as sdk:
        yield sdk


@pytest.fixture
async def claude(oracle: Oracle) -> AsyncIterator[AsyncAnthropic]:
    headers = {"x-api-key": "sk-oracle"}
    async with AsyncAnthropic(base_url=oracle.url, api_key="k", max_retries=0, default_headers=headers) as sdk:
        yield sdk


def ask(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


async def booked(oracle: Oracle, nonce: str, count: int = 1) -> list[Item]:
    async with asyncio.timeout(10):
        while len(items := oracle.items_of(nonce)) < count:
            await asyncio.sleep(0.01)
    return items


async def test_a_plain_answer_is_billed_as_its_own_usage_says(oracle: Oracle, client: AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(model="m", messages=ask("nonce=a1 hello"))
    assert answer.choices[0].message.content == " red tree house river stone cloud"
    assert answer.usage is not None
    [item] = oracle.items_of("a1")
    assert (
        (item.input_tokens, item.output_tokens)
        == (answer.usage.prompt_tokens, answer.usage.completion_tokens)
        == (4, 6)
    )
    assert item.complete
    assert item.nano_usd == 4 * 250 + 6 * 2000


async def test_streams_have_openais_shape(oracle: Oracle, client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="m", messages=ask("nonce=a2"), stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]].count("stop") == 1
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == oracle.items_of("a2")[0].output_tokens


async def test_anthropic_streams_are_what_anthropics_own_sdk_expects(oracle: Oracle, claude: AsyncAnthropic) -> None:
    script = marker(thinking=2, tools=2, cache_read=30, cache_write_5m=7, cache_write_1h=5, split=3)
    tools: list[Any] = [{"name": name, "input_schema": {"type": "object"}} for name in ("one", "two")]
    async with claude.messages.stream(
        model="m", max_tokens=99, messages=ask(f"nonce=b1 {script}"), tools=tools
    ) as stream:
        message = await stream.get_final_message()
    assert [block.type for block in message.content] == ["thinking", "tool_use", "tool_use"]
    assert message.stop_reason == "tool_use"
    [item] = oracle.items_of("b1")
    assert message.usage.cache_read_input_tokens == item.cache_read_tokens == 30
    assert message.usage.cache_creation_input_tokens == 12
    assert message.usage.output_tokens == item.output_tokens == 4
    assert item.nano_usd == item.input_tokens * 250 + 30 * 25 + 12 * 500 + 4 * 2000


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"extra_body": {"frequency_penalty": 1}}, "Extra inputs"),
        ({"messages": ask("")}, "non-empty"),
        ({"messages": [{"role": "system", "content": "x"}]}, "role"),
        (
            {
                "messages": [
                    *ask("x"),
                    {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "n", "input": {}}]},
                ]
            },
            "tool_result",
        ),
        ({"messages": ask([{"type": "image", "source": {"type": "base64"}}])}, "image"),  # type: ignore[arg-type]
    ],
)
async def test_what_anthropic_refuses_is_refused_and_costs_nothing(
    oracle: Oracle, claude: AsyncAnthropic, change: dict[str, Any], said: str
) -> None:
    given: dict[str, Any] = {"model": "m", "max_tokens": 5, "messages": ask("x"), **change}
    with pytest.raises(APIStatusError, match=said) as raised:
        await claude.messages.create(**given)
    assert raised.value.status_code == 400
    assert [item.nano_usd for item in oracle.items] == [0]


async def test_faults_end_after_the_attempts_they_are_for(oracle: Oracle, client: AsyncOpenAI) -> None:
    messages = ask(f"nonce=c1 {marker(status=503, times=2)}")
    for _ in range(2):
        with pytest.raises(openai.InternalServerError):
            await client.chat.completions.create(model="m", messages=messages)
    await client.chat.completions.create(model="m", messages=messages)
    assert [(item.ordinal, item.status, item.nano_usd > 0) for item in oracle.items_of("c1")] == [
        (1, 503, False),
        (2, 503, False),
        (3, 200, True),
    ]


async def test_a_fault_may_be_for_one_model_only(oracle: Oracle, client: AsyncOpenAI) -> None:
    oracle.scripts["broken"] = Script(status=500)
    messages = ask(f"nonce=c2 {marker(status=429, retry_after='3', models=('first',))}")
    with pytest.raises(openai.RateLimitError) as raised:
        await client.chat.completions.create(model="first", messages=messages)
    assert raised.value.response.headers["retry-after"] == "3"
    await client.chat.completions.create(model="second", messages=messages)
    with pytest.raises(openai.InternalServerError):
        await client.chat.completions.create(model="broken", messages=ask("hello"))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("script", [{"cut": 2}, {"error": 2}, {"garbage": "not_http"}, {"garbage": "bad_json"}])
async def test_what_the_provider_breaks_off_is_charged_as_far_as_it_went(
    oracle: Oracle, client: AsyncOpenAI, script: dict[str, Any], stream: bool
) -> None:
    with pytest.raises((openai.APIError, ValueError)):
        answer = await client.chat.completions.create(
            model="m", messages=ask(f"nonce=d1 {marker(**script)}"), stream=stream
        )
        if stream:
            [chunk async for chunk in answer]  # type: ignore[union-attr]
    [item] = oracle.items_of("d1")
    if script != {"garbage": "bad_json"}:
        assert not item.complete
        assert item.output_tokens == (2 if stream and "garbage" not in script else 0)


@pytest.mark.parametrize(("bills_after_abort", "charged"), [(True, 500), (False, None)])
async def test_who_hangs_up_is_charged_by_the_providers_policy(
    tmp_path: Path, bills_after_abort: bool, charged: int | None
) -> None:
    async with Oracle(bill=tmp_path / "bill", bills_after_abort=bills_after_abort) as oracle:
        client = AsyncOpenAI(base_url=f"{oracle.url}/v1", api_key="sk-oracle", max_retries=0)
        stream = await client.chat.completions.create(
            model="m", messages=ask(f"nonce=e1 {marker(pieces=500, gap_ms=5)}"), stream=True
        )
        for _ in range(5):
            await anext(aiter(stream))
        await stream.close()
        await client.close()
        [item] = await booked(oracle, "e1")
    assert not item.complete
    assert 4 <= item.sent_events < 500
    assert item.output_tokens == (charged or item.sent_events)


async def test_a_request_that_hangs_is_billed_when_its_sender_leaves(oracle: Oracle, client: AsyncOpenAI) -> None:
    with pytest.raises(openai.APITimeoutError):
        await client.chat.completions.create(model="m", messages=ask(f"nonce=f1 {marker(hang=True)}"), timeout=0.3)
    [item] = await booked(oracle, "f1")
    assert not item.complete


async def test_a_marker_that_is_wrong_is_said_aloud(tmp_path: Path) -> None:
    async with Oracle() as oracle:
        client = AsyncOpenAI(base_url=f"{oracle.url}/v1", api_key="sk-oracle", max_retries=0)
        with pytest.raises(openai.BadRequestError, match="is no script"):
            await client.chat.completions.create(model="m", messages=ask('@@{"stauts":500}@@'))
        await client.close()
        assert len(oracle.faults) == 1
    with pytest.raises(ValueError, match="stauts"):
        marker(stauts=500)


async def test_splits_are_seeded_and_change_no_byte_of_the_content(oracle: Oracle, client: AsyncOpenAI) -> None:
    texts = []
    for split in (0, 1, 9):
        stream = await client.chat.completions.create(
            model="m", messages=ask(marker(split=split, comments=2)), stream=True
        )
        texts.append("".join([chunk.choices[0].delta.content or "" async for chunk in stream]))
    assert texts == [" red tree house river stone cloud"] * 3


async def test_another_process_writes_a_bill_that_outlives_it(tmp_path: Path) -> None:
    bill = tmp_path / "bill.jsonl"
    script = 'broken={"status":500}'
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.oracle", "--bill", str(bill), "--script", script), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    port = int(await process.stdout.readline())
    client = AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="sk-oracle", max_retries=0)
    await client.chat.completions.create(model="m", messages=ask("nonce=g1"))
    with pytest.raises(openai.InternalServerError):
        await client.chat.completions.create(model="broken", messages=ask("nonce=g2"))
    process.send_signal(signal.SIGKILL)
    await process.wait()
    await client.close()
    with bill.open("ab") as torn:
        torn.write(b'{"nonce":"half')
    items = read_bill(bill)
    assert [(item.nonce, item.status, item.complete) for item in items] == [("g1", 200, True), ("g2", 500, True)]
    assert items[0].nano_usd == items[0].input_tokens * Prices().input + items[0].output_tokens * Prices().output


def row(nonce: str, source: str = "provider", **changes: Any) -> dict[str, Any]:
    """The ledger row of `ITEM`."""
    return {
        **{"public_id": nonce, "request_id": nonce, "attempt": 1, "source": source, "status": 200, "stream": True},
        **{"deployment": "oai/m", "input_tokens": 10, "output_tokens": 5, "reasoning_tokens": 0},
        **{"cache_read_tokens": 0, "cache_write_5m_tokens": 0, "cache_write_1h_tokens": 0, "cost_nano_usd": 12_500},
        **changes,
    }


ITEM = Item("a", 1, "openai", "m", True, 200, input_tokens=10, output_tokens=5, complete=True, nano_usd=12_500)


@pytest.mark.parametrize(
    ("rows", "items", "lost", "doubled", "wrong"),
    [
        ([row("a")], [ITEM], 0, 0, 0),
        ([], [ITEM], 1, 0, 0),
        ([row("a"), row("a")], [ITEM], 0, 1, 0),
        ([row("a"), row("a", attempt=2)], [ITEM], 0, 1, 0),
        ([row("a"), row("a", "orphan", attempt=2)], [ITEM], 0, 0, 0),
        ([row("a", output_tokens=6)], [ITEM], 0, 0, 1),
        ([row("a", "drained", cost_nano_usd=12_499)], [ITEM], 0, 0, 1),
        ([row("a", "orphan", cost_nano_usd=12_499)], [ITEM], 0, 0, 1),
        ([row("a", "orphan", cost_nano_usd=99_999)], [ITEM], 0, 0, 0),
        ([row("a", "guessed")], [ITEM], 0, 0, 1),
        ([row("b")], [], 0, 1, 0),
    ],
)
def test_the_verdict_finds_what_is_lost_doubled_or_wrong(
    rows: list[dict[str, Any]], items: list[Item], lost: int, doubled: int, wrong: int
) -> None:
    verdict = judge(rows, items)
    assert (len(verdict.lost), len(verdict.doubled), len(verdict.wrong)) == (lost, doubled, wrong)
    assert verdict.right == (lost == doubled == wrong == 0)


GOOGLE = "/v1beta/models/gemini-3-m:"
CLOUD = "/v1/projects/p/locations/global/publishers/google/models/m:"
CALL: dict[str, Any] = {"functionCall": {"name": "n", "args": {}}, "thoughtSignature": "c2lnbmVk"}
RESULT: dict[str, Any] = {"functionResponse": {"name": "n", "response": {}}}


def turns(*parts: dict[str, Any]) -> list[Any]:
    return [{"role": ("user", "model")[number % 2], "parts": [part]} for number, part in enumerate(parts)]


async def post(oracle: Oracle, path: str, body: dict[str, Any], **headers: str) -> tuple[int, str]:
    async with httpx2.AsyncClient(base_url=oracle.url) as client:
        answer = await client.post(path, json=body, headers=headers or {"x-goog-api-key": "AIza"})
    return answer.status_code, answer.text


async def test_gemini_streams_count_up_and_end_with_a_finish_reason(oracle: Oracle) -> None:
    script = marker(thinking=2, pieces=3, cache_read=30)
    body = {"contents": turns({"text": f"nonce=k1 {script}"})}
    status, text = await post(oracle, f"{GOOGLE}streamGenerateContent?alt=sse", body)
    assert status == 200
    events = [json.loads(event.removeprefix("data: ")) for event in text.removesuffix("\r\n\r\n").split("\r\n\r\n")]
    parts = [part for event in events for part in event["candidates"][0]["content"]["parts"]]
    assert [(part["text"], part.get("thought", False)) for part in parts] == [
        *((" hill", True), (" sea", True)),
        *((" red", False), (" tree", False), (" house", False), ("", False)),
    ]
    assert [event["candidates"][0].get("finishReason") for event in events] == [*[None] * 5, "STOP"]
    assert [event["usageMetadata"].get("candidatesTokenCount", 0) for event in events] == [0, 0, 1, 2, 3, 3]
    [item] = oracle.items_of("k1")
    used = events[-1]["usageMetadata"]
    assert used["promptTokenCount"] == item.input_tokens + item.cache_read_tokens
    assert used["cachedContentTokenCount"] == 30
    assert used["candidatesTokenCount"] + used["thoughtsTokenCount"] == item.output_tokens == 5
    assert used["totalTokenCount"] == used["promptTokenCount"] + 5
    assert (item.api, item.model, item.reasoning_tokens) == ("gemini", "gemini-3-m", 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"contents": []}, "not specified"),
        ({"contents": turns({"text": ""})}, "must have one initialized"),
        ({"contents": [{"role": "assistant", "parts": [{"text": "x"}]}]}, "valid role"),
        ({"contents": turns({"text": "x"}, CALL)}, "number of function response parts"),
        ({"contents": turns({"text": "x"}, {"text": "y"}, RESULT)}, "number of function response parts"),
        ({"contents": turns({"text": "x"}, {"functionCall": CALL["functionCall"]}, RESULT)}, "thought_signature"),
        ({"contents": turns({"inlineData": {"data": "AAAA"}})}, "mime_type"),
        ({"labels": {"a": "b"}}, 'Unknown name \\"labels\\"'),
        ({"generationConfig": {"top_p": 1}}, 'Unknown name \\"top_p\\"'),
        ({"generationConfig": {"responseJsonSchema": {}}}, "only allowed for"),
        ({"toolConfig": {"functionCallingConfig": {"mode": "ANY"}}}, "without function_declarations"),
        ({"tools": [{"functionDeclarations": [{"name": "1"}]}]}, "Invalid function name"),
        (
            {"tools": [{"functionDeclarations": [{"name": "n", "parameters": {"type": "OBJECT", "properties": {}}}]}]},
            "non-empty for OBJECT",
        ),
    ],
)
async def test_what_google_refuses_is_refused_and_costs_nothing(
    oracle: Oracle, change: dict[str, Any], said: str
) -> None:
    status, text = await post(oracle, f"{GOOGLE}generateContent", {"contents": turns({"text": "x"}), **change})
    assert (status, "INVALID_ARGUMENT" in text, said in text) == (400, True, True), text
    assert [item.nano_usd for item in oracle.items] == [0]


async def test_google_wants_a_key_and_its_cloud_a_token(oracle: Oracle) -> None:
    body = {"contents": turns({"text": "x"}, CALL, RESULT), "labels": {"a": "b"}}
    token = {"authorization": "Bearer ya29"}
    assert (await post(oracle, f"{CLOUD}generateContent", body, **token))[0] == 200
    assert (await post(oracle, f"{CLOUD}generateContent", body))[0] == 401
    assert (await post(oracle, f"{GOOGLE}generateContent", body, **token))[0] == 403


async def test_claude_on_vertex_has_its_model_in_the_path(oracle: Oracle) -> None:
    path = "/v1/projects/p/locations/global/publishers/anthropic/models/claude-m:"
    body = {"anthropic_version": "vertex-2023-10-16", "max_tokens": 5, "messages": ask("nonce=v1")}
    token = {"authorization": "Bearer ya29"}
    assert (await post(oracle, f"{path}rawPredict", body, **token))[0] == 200
    assert "message_stop" in (await post(oracle, f"{path}streamRawPredict", {**body, "stream": True}, **token))[1]
    for wrong in ({"model": "claude-m"}, {"anthropic_version": "2023-06-01"}, {"stream": True}):
        assert (await post(oracle, f"{path}rawPredict", {**body, **wrong}, **token))[0] == 400
    assert (await post(oracle, f"{path}rawPredict", body, **{"x-api-key": "k"}))[0] == 401
    assert [(item.api, item.model, item.nano_usd > 0) for item in oracle.items_of("v1")] == [
        *[("anthropic", "claude-m", True)] * 2,
        *[("anthropic", "claude-m", False)] * 4,
    ]
