"""
Real traffic, where it is at hand: every recorded answer decodes, keeps what clients rely on,
and counts what was billed.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest

from proxy.providers import Json, Target, load
from tests.eventstream import event
from tests.golden import check_invariants, decode, fold
from tests.providers import assembly

RECORDINGS = Path(__file__).parents[3] / "shared" / "fidelity" / "recorded.jsonl.gz"

pytestmark = pytest.mark.skipif(not RECORDINGS.exists(), reason="the recordings are not here")


@cache
def recorded() -> tuple[Json, ...]:
    with gzip.open(RECORDINGS) as lines:
        rows = [msgspec.json.decode(line) for line in lines]
    return tuple(row for row in rows if row["response"]["status"] < 300 and not row["problems"])


def streams(provider: str | None, api: str) -> Iterator[tuple[str, bytes]]:
    for row in recorded():
        stream = row["response"].get("sse")
        if not stream or "msg_second" in stream:  # two answers spliced into one, refused on purpose
            continue
        if row["api"] == api and provider in (None, row["provider"]):
            yield row["id"], stream.encode()


def wholes(provider: str | None, api: str) -> Iterator[tuple[str, Any]]:
    for row in recorded():
        if row["api"] == api and provider in (None, row["provider"]) and row["response"].get("json"):
            yield row["id"], row["response"]["json"]


def first_message(stream: bytes) -> tuple[Json, list[str]]:
    """Usage and text pieces of the first message in a stream; some recordings hold several."""
    usage: Json = {}
    texts: list[str] = []
    for line in stream.splitlines():
        if not line.startswith(b"data:"):
            continue
        event = msgspec.json.decode(line[5:])
        match event["type"]:
            case "message_start":
                usage |= event["message"]["usage"]
            case "content_block_start" if event["content_block"]["type"] == "text":
                texts.append(event["content_block"]["text"])
            case "content_block_delta" if event["delta"]["type"] == "text_delta":
                texts.append(event["delta"]["text"])
            case "message_delta":
                usage |= event["usage"]
            case "message_stop":
                break
    return usage, texts


def check_usage(usage: Json, native: Json) -> None:
    """The totals, and what they leave out: the tokens of compactions."""
    made = [one for one in native.get("iterations") or () if one["type"] == "compaction"]
    native = {name: native[name] for name in native if isinstance(native[name], int)}
    for one in made:
        for name in ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"):
            native[name] = native.get(name, 0) + one[name]
    read, written = native.get("cache_read_input_tokens") or 0, native.get("cache_creation_input_tokens") or 0
    assert usage["prompt_tokens"] == native["input_tokens"] + read + written
    assert usage["completion_tokens"] == native["output_tokens"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == read
    assert usage["prompt_tokens_details"]["cache_write_tokens"] == written


def test_recorded_anthropic_streams() -> None:
    count = 0
    for id, stream in streams("anthropic", "messages"):
        pieces = [stream[i : i + 7] for i in range(0, len(stream), 7)]
        chunks = decode(load("anthropic"), pieces)
        assert "error" not in chunks[-1], id
        check_invariants(chunks)
        usage, texts = first_message(stream)
        completion = fold(chunks)
        check_usage(completion["usage"], usage)
        assert (completion["choices"][0]["message"]["content"] or "") == "".join(texts), id
        count += 1
    assert count > 100


def test_recorded_anthropic_streams_say_what_they_would_have_said_whole() -> None:
    count = 0
    for id, stream in streams("anthropic", "messages"):
        native = assembly.anthropic(stream)
        whole = load("anthropic").decode_response(msgspec.json.encode(native))
        assert assembly.comparable(fold(decode(load("anthropic"), [stream]))) == assembly.comparable(whole), id
        count += 1
    assert count > 100


def test_recorded_openai_streams_say_what_they_would_have_said_whole() -> None:
    count = 0
    for id, stream in streams("openai", "chat"):
        if b"prompt_filter_results" in stream:  # Azure's, whose first chunk is none in OpenAI's own terms
            continue
        chunks = decode(load("openai"), [stream])
        whole = load("openai").decode_response(msgspec.json.encode(assembly.openai(stream)))
        if len(whole["choices"]) != 1 or "error" in chunks[-1]:
            continue
        assert assembly.comparable(fold(chunks)) == assembly.comparable(whole), id
        count += 1
    assert count > 100


def test_recorded_anthropic_answers() -> None:
    count = 0
    for id, native in wholes("anthropic", "messages"):
        if native.get("type") != "message":
            continue
        completion = load("anthropic").decode_response(msgspec.json.encode(native))
        check_usage(completion["usage"], native["usage"])
        (choice,) = completion["choices"]
        texts = [block["text"] for block in native["content"] if block["type"] == "text"]
        assert (choice["message"]["content"] or "") == "".join(texts), id
        calls = [block for block in native["content"] if block["type"] == "tool_use"]
        told = choice["message"].get("tool_calls", [])
        assert [(call["id"], msgspec.json.decode(call["function"]["arguments"])) for call in told] == [
            (call["id"], call["input"]) for call in calls
        ]
        count += 1
    assert count > 100


def google_events(stream: bytes) -> list[Json]:
    return [msgspec.json.decode(line[5:]) for line in stream.splitlines() if line.startswith(b"data:")]


def check_google(completion: Json, events: list[Json], id: str) -> None:
    """Text, calls and usage, read from the events in the plainest way."""
    parts = [part for event in events for part in event["candidates"][0].get("content", {}).get("parts", ())]
    (choice,) = completion["choices"]
    message = choice["message"]
    if not any("executableCode" in part for part in parts):
        texts = [part["text"] for part in parts if "text" in part and not part.get("thought")]
        assert (message["content"] or "") == "".join(texts), id
    thoughts = [part["text"] for part in parts if part.get("thought")]
    assert message.get("reasoning_content", "") == "".join(thoughts), id
    native = [part for part in parts if part.get("functionCall", {}).get("name")]
    calls = message.get("tool_calls", [])
    assert [call["function"]["name"] for call in calls] == [part["functionCall"]["name"] for part in native], id
    signed = [part.get("thoughtSignature") for part in native]
    assert [call.get("extra_content", {}).get("google", {}).get("thought_signature") for call in calls] == signed, id
    for call, part in zip(calls, native, strict=True):
        if not part["functionCall"].get("willContinue"):
            assert msgspec.json.decode(call["function"]["arguments"]) == part["functionCall"].get("args", {}), id
    usage: Json = {}
    for one in events:
        usage |= one.get("usageMetadata", {})
    prompt = usage.get("promptTokenCount", 0) + usage.get("toolUsePromptTokenCount", 0)
    answered = usage.get("candidatesTokenCount", 0) + usage.get("thoughtsTokenCount", 0)
    told = completion["usage"]
    assert (told["prompt_tokens"], told["completion_tokens"]) == (prompt, answered), id
    assert told["total_tokens"] == usage.get("totalTokenCount", prompt + answered), id


@pytest.mark.parametrize(("provider", "least"), [("gemini", 70), ("vertex", 10)])
def test_recorded_streams_of_google(provider: str, least: int) -> None:
    count = 0
    for id, text in streams(provider, "streamGenerateContent"):
        stream = text.rstrip() + b"\n\n"  # some were stored without the end of their last line
        chunks = decode(load(provider), [stream[i : i + 7] for i in range(0, len(stream), 7)])
        assert "error" not in chunks[-1], id
        check_invariants(chunks)
        check_google(fold(chunks), google_events(stream), id)
        count += 1
    assert count > least


@pytest.mark.parametrize(("provider", "least"), [("gemini", 40), ("vertex", 25)])
def test_recorded_answers_of_google(provider: str, least: int) -> None:
    count = 0
    for id, native in wholes(provider, "generateContent"):
        if "candidates" not in native:
            continue
        check_google(load(provider).decode_response(msgspec.json.encode(native)), [native], id)
        count += 1
    assert count > least


def test_recorded_answers_of_claude_on_vertex() -> None:
    count = 0
    for _, native in wholes("vertex", "rawPredict"):
        check_usage(load("vertex").decode_response(msgspec.json.encode(native))["usage"], native["usage"])
        count += 1
    for id, stream in streams("vertex", "streamRawPredict"):
        chunks = decode(load("vertex"), [stream])
        assert "error" not in chunks[-1], id
        check_invariants(chunks)
        check_usage(fold(chunks)["usage"], first_message(stream)[0])
        count += 1
    assert count > 5


def test_a_signature_of_google_goes_back_where_it_was() -> None:
    """What a client keeps of an answer can be sent again: each signature on the part that carried it."""
    signed = 0
    for id, text in streams("gemini", "streamGenerateContent"):
        stream = text.rstrip() + b"\n\n"
        message = fold(decode(load("gemini"), [stream]))["choices"][0]["message"]
        calls = message.get("tool_calls", ())
        for number, call in enumerate(calls):
            call.setdefault("id", f"call_{number}")
        results = [{"role": "tool", "tool_call_id": call["id"], "content": "1"} for call in calls]
        ask = {"role": "user", "content": "Hi"}
        chat = {"model": "m", "messages": [ask, message, *results, ask]}
        turn = load("gemini").encode_request(chat, Target(model="gemini-2.5-flash")).body["contents"][1]
        parts = [part for event in google_events(stream) for part in event["candidates"][0]["content"].get("parts", ())]
        sent = [part["thoughtSignature"] for part in turn["parts"] if "thoughtSignature" in part]
        assert sent == [part["thoughtSignature"] for part in parts if "thoughtSignature" in part], id
        signed += len(sent)
    assert signed > 40


def test_recorded_streams_of_openai_and_its_kin() -> None:
    """Many providers, some of which break off or send errors; the rest keep the invariants, whatever they sent."""
    ended = failed = 0
    for _, stream in streams(None, "chat"):
        chunks = decode(load("openai"), [stream])
        if "error" in chunks[-1]:
            failed += 1
        else:
            check_invariants(chunks)
            ended += 1
    assert ended > 300
    assert failed < 10


def test_a_recorded_answer_goes_back_as_history() -> None:
    """What a client keeps of an answer can be sent again: signed thoughts first, and calls as they were."""
    thoughtful = 0
    for id, stream in streams("anthropic", "messages"):
        completion = fold(decode(load("anthropic"), [stream]))
        message = completion["choices"][0]["message"] if completion["choices"] else {}
        if not (message.get("content") or message.get("tool_calls")):
            continue
        ask = {"role": "user", "content": "Hi"}
        results = [
            {"role": "tool", "tool_call_id": call["id"], "content": "1"} for call in message.get("tool_calls", ())
        ]
        chat = {"model": "m", "max_tokens": 9, "messages": [ask, message, *results, ask]}
        turn = load("anthropic").encode_request(chat, Target(model="claude-sonnet-4-5")).body["messages"][1]
        kinds = [block["type"] for block in turn["content"]]
        if "reasoning_details" in message and turn["role"] == "assistant":
            thoughtful += 1
            assert kinds[0] in ("thinking", "redacted_thinking"), id
        assert kinds.count("tool_use") == len(results)
    assert thoughtful > 4


def bedrock_streams() -> Iterator[tuple[str, list[Json]]]:
    for row in recorded():
        events = row["response"].get("eventstream")
        if row["api"] == "converse-stream" and events and events[-1]["event"] == "metadata":  # some were trimmed
            yield row["id"], events


def test_recorded_bedrock_streams() -> None:
    count = 0
    for id, events in bedrock_streams():
        stream = b"".join(event(each["event"], each["payload"]) for each in events)
        chunks = decode(load("bedrock"), [stream[i : i + 7] for i in range(0, len(stream), 7)])
        assert "error" not in chunks[-1], id
        check_invariants(chunks)
        usage, completion = events[-1]["payload"]["usage"], fold(chunks)
        assert completion["usage"]["total_tokens"] == usage["totalTokens"], id
        deltas = [each["payload"]["delta"] for each in events if each["event"] == "contentBlockDelta"]
        message = completion["choices"][0]["message"]
        assert (message["content"] or "") == "".join(delta.get("text", "") for delta in deltas), id
        arguments = "".join(delta["toolUse"]["input"] for delta in deltas if "toolUse" in delta)
        told = [call["function"]["arguments"] for call in message.get("tool_calls", ())]
        assert "".join(told) in (arguments, arguments or "{}"), id
        thoughts = "".join(delta["reasoningContent"].get("text", "") for delta in deltas if "reasoningContent" in delta)
        assert message.get("reasoning_content", "") == thoughts, id
        count += 1
    assert count > 25


def test_recorded_bedrock_answers() -> None:
    count = 0
    for id, native in wholes("bedrock", "converse"):
        completion = load("bedrock").decode_response(msgspec.json.encode(native))
        assert completion["usage"]["total_tokens"] == native["usage"]["totalTokens"], id
        (choice,) = completion["choices"]
        calls = [block["toolUse"] for block in native["output"]["message"]["content"] if "toolUse" in block]
        told = choice["message"].get("tool_calls", [])
        assert [(call["id"], msgspec.json.decode(call["function"]["arguments"])) for call in told] == [
            (call["toolUseId"], call["input"]) for call in calls
        ]
        count += 1
    assert count > 25
