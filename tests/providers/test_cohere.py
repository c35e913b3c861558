"""Real answers of Cohere's, where they are at hand: billed as it bills them, and readable as OpenAI's."""

from __future__ import annotations

import gzip
from functools import cache
from typing import Any

import msgspec
import pytest

from proxy.providers import Json, Target, load
from tests.answers import check_for_clients, streamed, whole
from tests.compatible import RECORDINGS
from tests.golden import check_invariants, decode, fold

COHERE = load("cohere")

recorded_only = pytest.mark.skipif(not RECORDINGS.exists(), reason="the recordings are not here")


@cache
def recorded() -> tuple[Json, ...]:
    with gzip.open(RECORDINGS) as lines:
        rows = [msgspec.json.decode(line) for line in lines]
    return tuple(row for row in rows if row["api"] == "v2.chat" and row["response"]["status"] == 200)


def events(stream: str) -> list[Json]:
    lines = [line[5:] for line in stream.splitlines() if line.startswith("data:")]
    return [msgspec.json.decode(line) for line in lines if line.strip() != "[DONE]"]


def told(stream: list[Json], kind: str, *path: str) -> list[Any]:
    found = []
    for event in stream:
        value: Any = event.get("delta") or {} if event["type"] == kind else None
        for step in path:
            value = value.get(step) if isinstance(value, dict) else None
        found += [value] if value is not None else []
    return found


@recorded_only
def test_recorded_answers() -> None:
    count = 0
    for row in recorded():
        native = row["response"].get("json")
        if not native:
            continue
        answer = whole(COHERE, msgspec.json.encode(native), passes=False)
        billed = native["usage"]["billed_units"]
        assert answer.usage is not None and not answer.suspect
        assert (answer.usage.prompt, answer.usage.completion) == (billed["input_tokens"], billed["output_tokens"])
        ((choice,),) = [completion["choices"] for completion in check_for_clients(answer.shown)]
        blocks, message = native["message"].get("content") or [], choice["message"]
        assert (message["content"] or "") == "".join(block.get("text", "") for block in blocks)
        thoughts = native["message"].get("tool_plan", "") + "".join(block.get("thinking", "") for block in blocks)
        assert message.get("reasoning_content", "") == thoughts
        assert [call["id"] for call in message.get("tool_calls", ())] == [
            call["id"] for call in native["message"].get("tool_calls") or ()
        ]
        assert message.get("citations", []) == (native["message"].get("citations") or [])
        count += 1
    assert count >= 14


@recorded_only
def test_recorded_streams() -> None:
    count = 0
    for row in recorded():
        text = row["response"].get("sse")
        if not text:
            continue
        native, stream = events(text), text.encode()
        answer = streamed(COHERE, stream, passes=False)
        check_for_clients(answer.shown)
        (billed,) = told(native, "message-end", "usage", "billed_units")
        assert answer.usage is not None and not answer.suspect
        assert (answer.usage.prompt, answer.usage.completion) == (billed["input_tokens"], billed["output_tokens"])
        chunks = decode(COHERE, [stream[i : i + 7] for i in range(0, len(stream), 7)])
        check_invariants(chunks)
        message = fold(chunks)["choices"][0]["message"]
        assert (message["content"] or "") == "".join(told(native, "content-delta", "message", "content", "text"))
        plan = told(native, "tool-plan-delta", "message", "tool_plan")
        thinking = told(native, "content-delta", "message", "content", "thinking")
        assert message.get("reasoning_content", "") == "".join([*plan, *thinking])
        for call in message.get("tool_calls", ()):
            assert isinstance(msgspec.json.decode(call["function"]["arguments"]), dict)
        assert len(message.get("tool_calls", ())) == len(told(native, "tool-call-start", "message", "tool_calls"))
        count += 1
    assert count >= 14


@recorded_only
def test_recorded_conversations_are_sent_as_they_were() -> None:
    """What was sent to Cohere in its own form is OpenAI's form too, but for the results of tools."""
    count = 0
    for row in recorded():
        sent = (row["request"] or {}).get("json")
        if not sent:
            continue
        body = COHERE.encode_request(sent, Target(sent["model"])).body
        for message in sent["messages"]:
            if message["role"] == "tool":
                message["content"] = [{"type": "document", "document": {"data": {"content": message["content"]}}}]
            elif message.get("content", "") is None:
                del message["content"]
        assert body == sent
        count += 1
    assert count >= 18


@pytest.mark.parametrize(
    ("result", "documents"),
    [
        ("4:20 PM", [{"content": "4:20 PM"}]),
        ('{"a": 1}', [{"a": 1}]),
        ('[{"a": 1}, {"b": "c"}]', [{"a": 1}, {"b": "c"}]),
        ('[{"a": 1}, 2]', [{"content": '[{"a": 1}, 2]'}]),
        ("[]", [{"content": "[]"}]),
        ("{}", [{"content": "{}"}]),
        ("", [{"content": ""}]),
    ],
)
def test_a_result_is_documents_that_an_answer_can_cite(result: str, documents: list[Json]) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    talk = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": result},
    ]
    body = COHERE.encode_request({"model": "m", "messages": talk}, Target("m")).body
    assert [part["document"]["data"] for part in body["messages"][2]["content"]] == documents


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"billed_units": {"input_tokens": 12.0, "output_tokens": 5.0}, "tokens": {"input_tokens": 900}}, (12, 5)),
        ({"tokens": {"input_tokens": 900, "output_tokens": 6}}, (900, 6)),
        ({"billed_units": {"search_units": 1}, "tokens": {"input_tokens": 9, "output_tokens": 1}}, (9, 1)),
        ({"billed_units": {"output_tokens": 5}, "tokens": {"input_tokens": 9, "output_tokens": 7}}, (9, 5)),
    ],
)
def test_what_is_billed_counts(usage: Json, expected: tuple[int, int]) -> None:
    native = {"id": "a", "finish_reason": "COMPLETE", "message": {"role": "assistant", "content": []}, "usage": usage}
    answer = whole(COHERE, msgspec.json.encode(native), passes=False)
    assert answer.usage is not None and (answer.usage.prompt, answer.usage.completion) == expected
    assert answer.usage.searches == usage.get("billed_units", {}).get("search_units", 0)


@pytest.mark.parametrize("body", [b"", b"[]", b'"x"', b"{}", b'{"finish_reason": "COMPLETE", "message": 7}', b"{"])
def test_what_is_no_answer_is_none(body: bytes) -> None:
    with pytest.raises(Exception, match="provider sent") as refused:
        COHERE.decode_response(body)
    assert getattr(refused.value, "code", "") == "bad_response"


@pytest.mark.parametrize(("kind", "annotated"), [("TEXT_CONTENT", True), ("PLAN", False), ("THINKING_CONTENT", False)])
def test_only_what_cites_the_text_has_a_place_in_it(kind: str, annotated: bool) -> None:
    source = {"type": "document", "document": {"url": "https://a.example", "title": "A"}}
    cited = {"start": 0, "end": 4, "text": "Blue", "type": kind, "sources": [source]}
    message = {"tool_plan": "Blue it is.", "content": [{"type": "text", "text": "Blue."}], "citations": [cited]}
    body = {"finish_reason": "COMPLETE", "message": {"role": "assistant", **message}}
    (choice,) = load("cohere").decode_response(msgspec.json.encode(body))["choices"]
    assert ("annotations" in choice["message"], choice["message"]["citations"]) == (annotated, [cited])
