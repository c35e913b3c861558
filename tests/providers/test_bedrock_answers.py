"""
Bedrock's answers: stream and whole say the same, and what is not an answer is an error.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import UpstreamError
from proxy.providers import Event, Json, load
from proxy.providers.bedrock.answers import usage_of
from tests.golden import check_invariants, fold

texts = st.text(max_size=12)
inputs = st.dictionaries(texts, st.integers() | texts | st.none(), max_size=2)
counts = st.integers(0, 10_000)
citations = st.sampled_from(
    [{"title": "a", "location": {"web": {"url": "https://example.com"}}}, {"location": {"documentPage": {"start": 1}}}]
)
blocks = st.one_of(
    texts.map(lambda text: {"text": text}),
    st.tuples(texts, texts).map(
        lambda t: {"reasoningContent": {"reasoningText": {"text": t[0], "signature": f"s{t[1]}"}}}
    ),
    texts.map(lambda text: {"reasoningContent": {"reasoningText": {"text": text}}}),
    st.just({"reasoningContent": {"redactedContent": "aGlkZGVu"}}),
    st.just({"image": {"format": "png", "source": {"bytes": "aW1hZ2U="}}}),
    st.tuples(st.integers(0, 99), inputs, st.sampled_from(["look", "strata_answer"])).map(
        lambda t: {"toolUse": {"toolUseId": f"tooluse_{t[0]}", "name": t[2], "input": t[1], "type": "tool_use"}}
    ),
    st.just({"toolUse": {"toolUseId": "s", "name": "nova_grounding", "input": {}, "type": "server_tool_use"}}),
    st.tuples(texts, st.lists(citations, max_size=2)).map(
        lambda t: {"citationsContent": {"content": [{"text": t[0]}], "citations": t[1]}}
    ),
)
answers = st.fixed_dictionaries(
    {
        "content": st.lists(blocks, max_size=5),
        "stopReason": st.sampled_from(
            ["end_turn", "tool_use", "max_tokens", "guardrail_intervened", "malformed_tool_use", "new"]
        ),
        "trace": st.sampled_from([None, {"guardrail": {"actionReason": "No action."}}]),
        "usage": st.fixed_dictionaries(
            {"inputTokens": counts, "outputTokens": counts},
            optional={"cacheReadInputTokens": counts, "cacheWriteInputTokens": counts},
        ),
    }
)


def pieces(text: str) -> list[str]:
    return [text[i : i + 3] for i in range(0, len(text), 3)]


def deltas(block: Json) -> list[Json]:
    """What follows the start of a block, if it has one."""
    match block:
        case {"text": str(text)}:
            return [{"text": piece} for piece in pieces(text)]
        case {"reasoningContent": {"reasoningText": dict(said)}}:
            signed = [{"signature": said["signature"]}] if said.get("signature") else []
            return [{"reasoningContent": part} for part in [*({"text": t} for t in pieces(said["text"])), *signed]]
        case {"reasoningContent": dict(said)}:
            return [{"reasoningContent": said}]
        case {"image": {"source": {"bytes": str(data)}}}:
            return [{"image": {"source": {"bytes": piece}}} for piece in (data[:4], data[4:])]
        case {"toolUse": dict(call)}:
            text = msgspec.json.encode(call["input"]).decode() if call["input"] else ""
            return [{"toolUse": {"input": piece}} for piece in ["", *pieces(text)]]
        case {"citationsContent": dict(said)}:
            cited = [{"citation": citation} for citation in said["citations"]]
            return [*({"text": piece} for piece in pieces(said["content"][0]["text"])), *cited]
    raise ValueError(block)


def events(answer: Json) -> list[Event]:
    found: list[tuple[str, Json]] = [("messageStart", {"role": "assistant"})]
    for index, block in enumerate(answer["content"]):
        at = {"contentBlockIndex": index}
        if "toolUse" in block:
            start = {name: value for name, value in block["toolUse"].items() if name != "input"}
            found.append(("contentBlockStart", {**at, "start": {"toolUse": start}}))
        if "image" in block:
            found.append(("contentBlockStart", {**at, "start": {"image": {"format": block["image"]["format"]}}}))
        found += [("contentBlockDelta", {**at, "delta": delta}) for delta in deltas(block)]
        found.append(("contentBlockStop", at))
    found.append(("messageStop", {"stopReason": answer["stopReason"]}))
    found.append(("metadata", {"usage": answer["usage"], "trace": answer["trace"], "metrics": {"latencyMs": 1}}))
    return [Event(name, msgspec.json.encode(data)) for name, data in found]


def stream(answer_events: list[Event]) -> list[Any]:
    decoder = load("bedrock").stream_decoder()
    chunks = [chunk for event in answer_events for chunk in decoder.feed(event)]
    return [*chunks, *decoder.close()]


@given(answers)
def test_stream_and_whole_answer_say_the_same(answer: Json) -> None:
    chunks = stream(events(answer))
    check_invariants(chunks)
    native = {**answer, "output": {"message": {"role": "assistant", "content": answer["content"]}}}
    assert fold(chunks) == load("bedrock").decode_response(msgspec.json.encode(native))


@given(answers, st.data())
def test_a_stream_without_its_last_event_is_cut(answer: Json, data: st.DataObject) -> None:
    found = events(answer)
    with pytest.raises(UpstreamError) as cut:
        stream(found[: data.draw(st.integers(0, len(found) - 1))])
    assert cut.value.code == "upstream_incomplete"


junk = st.recursive(st.none() | st.booleans() | counts | texts, lambda x: st.lists(x) | st.dictionaries(texts, x))


@given(junk)
def test_anything_at_all_is_an_answer_or_a_bad_response(body: object) -> None:
    for candidate in (
        body,
        {"output": body},
        {"output": {"message": {"content": body}}, "stopReason": "end_turn"},
        {"output": {"message": {"content": [body]}}, "stopReason": "end_turn"},
        {"output": {"message": {"content": [{"toolUse": body}]}}, "stopReason": "tool_use"},
        {"output": {"message": {"content": [{"citationsContent": body}]}}, "stopReason": "end_turn"},
        {"output": {"message": {"content": []}}, "usage": body, "stopReason": body, "serviceTier": body},
    ):
        try:
            load("bedrock").decode_response(msgspec.json.encode(candidate))
        except UpstreamError as error:
            assert error.error_type == "provider_bad_response"


@given(
    st.sampled_from(["contentBlockStart", "contentBlockDelta", "contentBlockStop", "messageStop", "metadata", "new"]),
    junk,
)
def test_malformed_events_are_bad_responses(kind: str, found: object) -> None:
    for data in (
        found,
        {"contentBlockIndex": found, "delta": found, "start": found, "usage": found, "stopReason": found},
        {"contentBlockIndex": 0, "delta": {"toolUse": found}, "start": {"toolUse": found}},
        {"contentBlockIndex": 0, "delta": {"reasoningContent": found}, "usage": {"inputTokens": found}},
        {"contentBlockIndex": 0, "delta": {"toolUse": {"input": "{}"}}},
    ):
        decoder = load("bedrock").stream_decoder()
        try:
            decoder.feed(Event("messageStop", b'{"stopReason": "end_turn"}'))
            decoder.feed(Event(kind, msgspec.json.encode(data)))
        except UpstreamError as error:
            assert error.error_type == "provider_bad_response"


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'"x"', b"{}", b'{"output": null}', b"\xff", b"[" * 100_000])
def test_what_is_no_message_is_a_bad_response(body: bytes) -> None:
    with pytest.raises(UpstreamError) as bad:
        load("bedrock").decode_response(body)
    assert (bad.value.error_type, bad.value.code, bad.value.status) == ("provider_bad_response", "bad_response", 502)


@given(counts, counts, counts, counts, counts)
def test_every_token_is_counted_once(fresh: int, read: int, five: int, hour: int, out: int) -> None:
    usage = usage_of(
        {
            "usage": {
                "inputTokens": fresh,
                "outputTokens": out,
                "totalTokens": fresh + read + five + hour + out,
                "cacheReadInputTokens": read,
                "cacheWriteInputTokens": five + hour,
                "cacheDetails": [{"ttl": "1h", "inputTokens": hour}, {"ttl": "5m", "inputTokens": five}],
            }
        }
    )
    assert usage is not None
    details = usage["prompt_tokens_details"]
    assert usage["prompt_tokens"] == fresh + details["cached_tokens"] + details["cache_write_tokens"]
    assert details["cache_write_tokens"] - details.get("cache_write_1h_tokens", 0) == five
    assert usage["total_tokens"] == fresh + read + five + hour + out


def test_no_usage_is_none_and_not_zero() -> None:
    assert usage_of({}) is None
    assert usage_of({"usage": {"inputTokens": None, "outputTokens": 3}}) is not None


@pytest.mark.parametrize(
    ("name", "status", "error_type", "rest"),
    [
        ("validationException", 400, "caller_invalid_request", False),
        ("throttlingException", 429, "provider_rate_limited", True),
        ("serviceUnavailableException", 503, "provider_overloaded", True),
        ("modelTimeoutException", 504, "provider_timeout", True),
        ("modelStreamErrorException", 502, "provider_error", True),
        ("internalServerException", 502, "provider_error", True),
        ("somethingNewException", 502, "provider_error", True),
    ],
)
def test_an_exception_in_a_stream_is_what_it_would_have_been_as_an_answer(
    name: str, status: int, error_type: str, rest: bool
) -> None:
    with pytest.raises(UpstreamError) as raised:
        load("bedrock").stream_decoder().feed(Event(f"exception:{name}", b'{"message": "Because."}'))
    error = raised.value
    assert (error.status, error.error_type, error.rest) == (status, error_type, rest)
    assert "Because." in error.message


@pytest.mark.parametrize(
    ("status", "kind", "message", "error_type"),
    [
        (403, "AccessDeniedException", "User: arn:aws:iam::123456789012:user/x is not authorized", "provider_auth"),
        (403, "ExpiredTokenException", "The security token included in the request is expired", "provider_auth"),
        (400, "ValidationException", "Operation not allowed", "provider_auth"),
        (400, "ValidationException", "Input is too long for requested model.", "caller_context_length"),
        (400, "ValidationException", "Malformed input request: extraneous key [x]", "caller_invalid_request"),
        (404, "ResourceNotFoundException", "The model is past its end of life.", "provider_error"),
        (408, "ModelTimeoutException", "Too slow.", "provider_timeout"),
        (424, "ModelErrorException", "The model failed.", "provider_error"),
        (429, "ModelNotReadyException", "The model is being loaded.", "provider_overloaded"),
        (400, "ServiceQuotaExceededException", "Too much.", "provider_rate_limited"),
        (503, "", "", "provider_overloaded"),
    ],
)
def test_an_error_is_the_callers_or_the_operators_or_aws_own(
    status: int, kind: str, message: str, error_type: str
) -> None:
    headers = {"x-amzn-errortype": f"{kind}:http://internal.amazon.com/coral/com.amazon.bedrock/"} if kind else {}
    error = load("bedrock").decode_error(status, headers, msgspec.json.encode({"message": message}))
    assert error.error_type == error_type
    assert "123456789012" not in error.message, "the operator's account is nobody's business"
    in_the_body = msgspec.json.encode({"__type": f"com.amazon.bedrock#{kind}", "Message": message})
    assert load("bedrock").decode_error(status, {}, in_the_body).error_type == error_type
