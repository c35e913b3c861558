"""
Anthropic's answers: stream and whole say the same, and what is not an answer is an error.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import UpstreamError
from proxy.providers import Event, Json, load
from proxy.providers.anthropic.answers import ANSWER_TOOL, usage_of
from tests.golden import check_invariants, fold

texts = st.text(max_size=12)
inputs = st.dictionaries(texts, st.integers() | texts | st.none(), max_size=2)
counts = st.integers(0, 10_000)
blocks = st.one_of(
    texts.map(lambda text: {"type": "text", "text": text}),
    st.tuples(texts, texts).map(lambda t: {"type": "thinking", "thinking": t[0], "signature": f"s{t[1]}"}),
    texts.map(lambda text: {"type": "redacted_thinking", "data": f"d{text}"}),
    st.tuples(st.integers(0, 99), inputs).map(
        lambda t: {"type": "tool_use", "id": f"toolu_{t[0]}", "name": "look", "input": t[1]}
    ),
    inputs.map(lambda given: {"type": "tool_use", "id": "toolu_a", "name": ANSWER_TOOL, "input": given}),
    inputs.map(lambda given: {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": given}),
    texts.map(lambda text: {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [text]}),
    st.tuples(texts, st.booleans()).map(
        lambda t: {
            "type": "text",
            "text": t[0],
            "citations": [{"type": "web", "url": "https://example.com", "title": None} if t[1] else {"type": "page"}],
        }
    ),
)
answers = st.fixed_dictionaries(
    {
        "content": st.lists(blocks, max_size=5),
        "stop_reason": st.sampled_from(["end_turn", "tool_use", "max_tokens", "refusal", "pause_turn", "new"]),
        "stop_sequence": st.sampled_from([None, "END"]),
        "stop_details": st.sampled_from([None, {"type": "refusal", "explanation": "No."}]),
        "usage": st.fixed_dictionaries(
            {"input_tokens": counts, "output_tokens": counts},
            optional={"cache_read_input_tokens": counts, "cache_creation_input_tokens": counts},
        ),
    }
)


def pieces(text: str) -> list[str]:
    return [text[i : i + 3] for i in range(0, len(text), 3)]


def deltas(block: Json) -> tuple[Json, list[Json]]:
    """A block as its start and the deltas that follow."""
    match block["type"]:
        case "text":
            cited = [{"type": "citations_delta", "citation": citation} for citation in block.get("citations", ())]
            return {"type": "text", "text": ""}, [
                *cited,
                *({"type": "text_delta", "text": t} for t in pieces(block["text"])),
            ]
        case "thinking":
            said = [{"type": "thinking_delta", "thinking": t} for t in pieces(block["thinking"])]
            signed = {"type": "signature_delta", "signature": block["signature"]}
            return {"type": "thinking", "thinking": "", "signature": ""}, [*said, signed]
        case "tool_use" | "server_tool_use":
            text = msgspec.json.encode(block["input"]).decode() if block["input"] else ""
            return {**block, "input": {}}, [
                {"type": "input_json_delta", "partial_json": t} for t in ["", *pieces(text)]
            ]
    return block, []


def events(answer: Json) -> list[Json]:
    found: list[Json] = [
        {"type": "message_start", "message": {"id": "msg_1", "usage": {**answer["usage"], "output_tokens": 1}}}
    ]
    for index, block in enumerate(answer["content"]):
        start, parts = deltas(block)
        found.append({"type": "content_block_start", "index": index, "content_block": start})
        found += [{"type": "content_block_delta", "index": index, "delta": part} for part in parts]
        found += [{"type": "ping"}, {"type": "content_block_stop", "index": index}]
    ending = {name: answer[name] for name in ("stop_reason", "stop_sequence", "stop_details")}
    return [*found, {"type": "message_delta", "delta": ending, "usage": answer["usage"]}, {"type": "message_stop"}]


def stream(answer_events: list[Json]) -> list[Any]:
    decoder = load("anthropic").stream_decoder()
    chunks = [chunk for event in answer_events for chunk in decoder.feed(Event("", msgspec.json.encode(event)))]
    return [*chunks, *decoder.close()]


@given(answers)
def test_stream_and_whole_answer_say_the_same(answer: Json) -> None:
    chunks = stream(events(answer))
    check_invariants(chunks)
    whole = load("anthropic").decode_response(msgspec.json.encode({"type": "message", **answer}))
    assert fold(chunks) == whole


@given(answers, st.data())
def test_a_stream_without_its_last_event_is_cut(answer: Json, data: st.DataObject) -> None:
    found = events(answer)
    with pytest.raises(UpstreamError) as cut:
        stream(found[: data.draw(st.integers(0, len(found) - 1))])
    assert cut.value.code == "upstream_incomplete"


@given(st.recursive(st.none() | st.booleans() | counts | texts, lambda x: st.lists(x) | st.dictionaries(texts, x)))
def test_anything_at_all_is_an_answer_or_a_bad_response(body: object) -> None:
    for candidate in (
        body,
        {"content": body},
        {"content": [body]},
        {"content": [], "usage": body, "stop_reason": body},
    ):
        try:
            load("anthropic").decode_response(msgspec.json.encode(candidate))
        except UpstreamError as error:
            assert error.error_type == "provider_bad_response"


@given(
    st.sampled_from(
        ["message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta"]
    ),
    st.recursive(st.none() | counts | texts, lambda x: st.lists(x, max_size=2) | st.dictionaries(texts, x, max_size=2)),
)
def test_malformed_events_are_bad_responses(kind: str, junk: object) -> None:
    decoder = load("anthropic").stream_decoder()
    fields = ("message", "index", "content_block", "delta", "usage")
    for event in (
        {"type": kind},
        {"type": kind, **dict.fromkeys(fields, junk)},
        {"type": kind, "index": 0, "delta": junk},
    ):
        try:
            decoder.feed(Event("", msgspec.json.encode(event)))
        except UpstreamError as error:
            assert error.error_type == "provider_bad_response"


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'"x"', b"{}", b'{"content": null}', b"\xff", b"[" * 100_000])
def test_what_is_no_message_is_a_bad_response(body: bytes) -> None:
    for decode in (load("anthropic").decode_response, load("openai").decode_response):
        with pytest.raises(UpstreamError) as bad:
            decode(body)
        assert bad.value.error_type == "provider_bad_response"
        assert bad.value.code == "bad_response"
        assert bad.value.status == 502


def test_a_repeated_message_start_is_passed_over_and_another_message_is_not() -> None:
    start: Json = {
        "type": "message_start",
        "message": {"id": "msg_1", "usage": {"input_tokens": 5, "output_tokens": 1}},
    }
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "Hi"}}
    ending: list[Json] = [{"type": "message_delta", "delta": {"stop_reason": "end_turn"}}, {"type": "message_stop"}]
    assert fold(stream([start, start, block, start, *ending]))["choices"][0]["message"]["content"] == "Hi"
    with pytest.raises(UpstreamError, match="second message"):
        stream([start, block, {"type": "message_start", "message": {"id": "msg_2"}}])


def test_a_cut_stream_still_says_what_it_used() -> None:
    """Its tokens are billed, so whoever settles must be able to read them."""
    decoder = load("anthropic").stream_decoder()
    usage = {"input_tokens": 5, "cache_read_input_tokens": 90, "output_tokens": 1}
    decoder.feed(Event("", msgspec.json.encode({"type": "message_start", "message": {"id": "m", "usage": usage}})))
    with pytest.raises(UpstreamError):
        decoder.close()
    told = getattr(decoder, "usage_so_far", None)
    assert told is not None and told["prompt_tokens"] == 95


@given(counts, counts, counts, counts, counts, counts)
def test_every_token_is_counted_once(fresh: int, read: int, five: int, hour: int, out: int, thought: int) -> None:
    usage = usage_of(
        {
            "input_tokens": fresh,
            "cache_read_input_tokens": read,
            "cache_creation_input_tokens": five + hour,
            "cache_creation": {"ephemeral_5m_input_tokens": five, "ephemeral_1h_input_tokens": hour},
            "output_tokens": out,
            "output_tokens_details": {"thinking_tokens": thought},
        }
    )
    assert usage is not None
    details = usage["prompt_tokens_details"]
    assert usage["prompt_tokens"] == fresh + details["cached_tokens"] + details["cache_write_tokens"]
    assert details["cache_write_tokens"] - details.get("cache_write_1h_tokens", 0) == five
    assert usage["total_tokens"] == fresh + read + five + hour + out
    assert usage["completion_tokens_details"]["reasoning_tokens"] <= usage["completion_tokens"]


def test_no_usage_is_none_and_not_zero() -> None:
    assert usage_of({}) is None
    assert usage_of({"input_tokens": None, "output_tokens": 3}) is not None


def streamed(block: Json, *pieces: Json, stop: str, closed: bool = True) -> Json:
    """The one choice of an answer that is this block."""
    events: list[Json] = [
        {"type": "message_start", "message": {"id": "m", "usage": {"input_tokens": 5, "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": block},
        *({"type": "content_block_delta", "index": 0, "delta": piece} for piece in pieces),
        *([{"type": "content_block_stop", "index": 0}] if closed else []),
        {"type": "message_delta", "delta": {"stop_reason": stop}, "usage": {"output_tokens": 9}},
        {"type": "message_stop"},
    ]
    decoder = load("anthropic").stream_decoder()
    chunks = [chunk for event in events for chunk in decoder.feed(Event("", msgspec.json.encode(event)))]
    (choice,) = fold([*chunks, *decoder.close()])["choices"]
    return dict(choice)


SEARCH: Json = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}


def test_a_search_that_the_limit_cut_is_an_answer_that_was_cut_and_no_failure() -> None:
    piece = {"type": "input_json_delta", "partial_json": '{"query": "tal'}
    for closed in (True, False):
        choice = streamed(SEARCH, piece, stop="max_tokens", closed=closed)
        assert (choice["finish_reason"], "native_blocks" in choice["message"]) == ("length", False)
        with pytest.raises(UpstreamError, match="malformed"):
            streamed(SEARCH, piece, stop="end_turn", closed=closed)


def test_a_block_that_was_left_open_is_not_lost() -> None:
    piece = {"type": "input_json_delta", "partial_json": '{"query": "tall"}'}
    choice = streamed(SEARCH, piece, stop="pause_turn", closed=False)
    (block,) = choice["message"]["native_blocks"]
    assert block["input"] == {"query": "tall"}
    call = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"a": 1}}
    (told,) = streamed(call, stop="tool_use", closed=False)["message"]["tool_calls"]
    assert told["function"]["arguments"] == '{"a":1}'
