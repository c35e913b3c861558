"""
Gemini's answers: stream and whole say the same, and what is not an answer is an error.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import StreamTruncated, UpstreamError
from proxy.providers import Event, Json, load
from proxy.providers.gemini.answers import usage_of
from proxy.providers.gemini.arguments import Arguments
from proxy.providers.gemini.grounding import annotations_of, searches_of
from tests.golden import check_invariants, fold

texts = st.text(max_size=12)
names = st.text("abcxyz_ .'", min_size=1, max_size=5)
signatures = st.none() | st.sampled_from(["c2ln", "bW9yZQ=="])
values = st.recursive(
    st.booleans() | st.integers(-(10**6), 10**6) | st.none() | texts,
    lambda inner: st.lists(inner, min_size=1, max_size=3) | st.dictionaries(names, inner, min_size=1, max_size=3),
    max_leaves=8,
)
arguments = st.dictionaries(names, values, max_size=3)


def part(kind: str, text: str, args: Json, signature: str | None) -> Json:
    made: Json = {"text": text}
    if kind == "thought":
        made["thought"] = True
    elif kind == "call":
        made = {"functionCall": {"name": "look", "args": args}}
    return made | ({"thoughtSignature": signature} if signature else {})


parts = st.lists(
    st.builds(part, st.sampled_from(["text", "thought", "call"]), texts, arguments, signatures), min_size=1, max_size=6
)
finishes = st.sampled_from(["STOP", "MAX_TOKENS", "SAFETY", "MALFORMED_FUNCTION_CALL", "SOMETHING_NEW"])


def response(parts: list[Json], finish: str | None, usage: Json | None = None) -> Json:
    candidate: Json = {"content": {"role": "model", "parts": parts}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    return {"candidates": [candidate]} | ({"usageMetadata": usage} if usage else {})


def streamed(events: list[Any], api: str = "gemini") -> list[Json]:
    decoder = load(api).stream_decoder()
    chunks = [chunk for event in events for chunk in decoder.feed(Event("", msgspec.json.encode(event)))]
    return chunks + list(decoder.close())


@given(parts, finishes, st.integers(1, 3))
def test_a_stream_says_what_the_whole_answer_says(parts: list[Json], finish: str, size: int) -> None:
    """However the parts are dealt out to events."""
    usage = {"promptTokenCount": 3, "candidatesTokenCount": 4, "totalTokenCount": 7}
    whole = load("gemini").decode_response(msgspec.json.encode(response(parts, finish, usage)))
    dealt = [parts[i : i + size] for i in range(0, len(parts), size)]
    events = [response(some, None, {**usage, "candidatesTokenCount": number}) for number, some in enumerate(dealt)]
    chunks = streamed([*events, response([], finish, usage)])
    check_invariants(chunks)
    assert fold(chunks) == whole


def pieces_of(value: Any, path: str) -> list[Json]:
    """A value as Google sends it in pieces: strings in two."""
    if isinstance(value, dict):
        return [piece for name, inner in value.items() for piece in pieces_of(inner, path + step(name))]
    if isinstance(value, list):
        return [piece for number, inner in enumerate(value) for piece in pieces_of(inner, f"{path}[{number}]")]
    if isinstance(value, bool):
        return [{"jsonPath": path, "boolValue": value}]
    if isinstance(value, int):
        return [{"jsonPath": path, "numberValue": float(value)}]
    if value is None:
        return [{"jsonPath": path, "nullValue": "NULL_VALUE"}]
    half = len(value) // 2
    return [
        {"jsonPath": path, "stringValue": value[:half], "willContinue": True},
        {"jsonPath": path, "stringValue": value[half:]},
    ]


def step(name: str) -> str:
    return f".{name}" if name.isidentifier() else f'["{name}"]'


@given(arguments)
def test_arguments_in_pieces_become_whole(wanted: Json) -> None:
    found = Arguments({})
    for piece in pieces_of(wanted, "$"):
        found.add(piece)
    assert msgspec.json.decode(found.encoded()) == wanted


@pytest.mark.parametrize(
    "path", ["", "$", "a", "$.", "$..a", "$[x]", "$.a[99999999]", "$.text.inside", "$.list.name", "$.map[0]"]
)
def test_a_piece_without_a_place_is_an_error(path: str) -> None:
    found = Arguments({"text": "x", "list": [], "map": {}})
    with pytest.raises(ValueError, match=r"path|index"):
        found.add({"jsonPath": path, "stringValue": "x"})


@pytest.mark.parametrize(
    "body",
    [
        b"", b"nope", b"[]", b"7", b"null", b'"x"', b"{}",
        b'{"candidates": []}', b'{"candidates": 7}', b'{"candidates": [7]}',
        b'{"candidates": [{"content": 7}]}', b'{"candidates": [{"content": {"parts": [7]}}]}',
        b'{"candidates": [{"content": {"parts": [{"functionCall": 7}]}}]}', b'{"usageMetadata": []}',
        b'{"candidates": [{"content": {"parts": [{"inlineData": {}}]}}]}',
        b'{"candidates": [{"finishReason": "STOP", "groundingMetadata": {"groundingSupports": 7}}]}',
        b'{"candidates": [{"finishReason": "STOP", "groundingMetadata": {"groundingSupports": [7]}}]}',
        b'{"candidates": [{"index": [1], "finishReason": "STOP"}]}',
        b'{"promptFeedback": 7}', b'{"promptFeedback": {}}',
        b'{"candidates": [{"content": {"parts": [{"functionCall": {"name": "a", "partialArgs": [7]}}]}}]}',
    ],
)  # fmt: skip
def test_what_is_no_answer_is_an_error(body: bytes) -> None:
    with pytest.raises(UpstreamError) as whole:
        load("gemini").decode_response(body)
    assert whole.value.error_type == "provider_bad_response"
    with pytest.raises(UpstreamError):
        decoder = load("gemini").stream_decoder()
        for _ in decoder.feed(Event("", body)):
            pass
        for _ in decoder.close():
            pass


def test_an_error_inside_an_answer_keeps_its_own_status() -> None:
    body = {"error": {"code": 429, "message": "Slow down.", "status": "RESOURCE_EXHAUSTED"}}
    for said in (body, [body]):
        with pytest.raises(UpstreamError) as refused:
            load("gemini").decode_response(msgspec.json.encode(said))
        assert refused.value.error_type == "provider_rate_limited"


@pytest.mark.parametrize("api", ["gemini", "vertex"])
def test_a_stream_that_said_no_finish_is_cut(api: str) -> None:
    for events in (
        [],
        [response([{"text": "Half"}], None)],
        [{"usageMetadata": {"promptTokenCount": 3, "totalTokenCount": 3}}],
    ):
        with pytest.raises(StreamTruncated):
            streamed(events, api)


def test_only_what_goes_back_keeps_its_signature() -> None:
    """A step of one of Google's own tools does not, and its signature on anything else would be a wrong one."""
    steps: list[Json] = [
        {"toolCall": {"id": "t"}, "thoughtSignature": "b25l"},
        {"text": "So.", "thoughtSignature": "dHdv"},
    ]
    (choice,) = load("gemini").decode_response(msgspec.json.encode(response(steps, "STOP")))["choices"]
    assert [detail["data"] for detail in choice["message"]["reasoning_details"]] == ["dHdv"]
    assert choice["message"]["content"] == "So."


def test_a_reason_that_says_nothing_is_no_finish() -> None:
    with pytest.raises(StreamTruncated):
        streamed([response([{"text": "Half"}], "FINISH_REASON_UNSPECIFIED")])


def test_a_cut_stream_still_tells_what_was_counted() -> None:
    for api in ("gemini", "vertex"):
        decoder = load(api).stream_decoder()
        assert decoder.usage_so_far is None
        usage = {"promptTokenCount": 3, "candidatesTokenCount": 1, "thoughtsTokenCount": 5, "totalTokenCount": 9}
        list(decoder.feed(Event("", msgspec.json.encode(response([{"text": "Half"}], None, usage)))))
        assert decoder.usage_so_far is not None
        assert decoder.usage_so_far["completion_tokens"] == 6


@pytest.mark.parametrize(
    ("native", "prompt", "completion", "cached", "reasoning"),
    [
        ({"promptTokenCount": 5, "candidatesTokenCount": 3, "totalTokenCount": 8}, 5, 3, 0, 0),
        (
            {"promptTokenCount": 5, "candidatesTokenCount": 3, "thoughtsTokenCount": 9, "totalTokenCount": 17},
            5,
            12,
            0,
            9,
        ),
        ({"promptTokenCount": 50, "cachedContentTokenCount": 40, "totalTokenCount": 50}, 50, 0, 40, 0),
        (
            {"promptTokenCount": 5, "toolUsePromptTokenCount": 100, "candidatesTokenCount": 1, "totalTokenCount": 106},
            105,
            1,
            0,
            0,
        ),
        ({"totalTokenCount": 0}, 0, 0, 0, 0),
    ],
)
def test_tokens_are_counted_as_openai_counts_them(
    native: Json, prompt: int, completion: int, cached: int, reasoning: int
) -> None:
    usage = usage_of(native)
    assert usage is not None
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (prompt, completion)
    assert usage["total_tokens"] == native["totalTokenCount"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == cached
    assert usage["completion_tokens_details"]["reasoning_tokens"] == reasoning


def test_what_counts_nothing_is_no_usage() -> None:
    assert usage_of({"trafficType": "ON_DEMAND"}) is None


@pytest.mark.parametrize(
    ("native", "tier"),
    [
        ({"serviceTier": "standard"}, None),
        ({"serviceTier": "flex"}, "flex"),
        ({"trafficType": "ON_DEMAND"}, None),
        ({"trafficType": "PROVISIONED_THROUGHPUT"}, None),
        ({"trafficType": "ON_DEMAND_PRIORITY"}, "priority"),
    ],
)
def test_the_tier_that_it_was_served_at_is_beside_the_tokens(native: Json, tier: str | None) -> None:
    usage = usage_of({"promptTokenCount": 1, **native})
    assert usage is not None
    assert usage.get("service_tier") == tier


@pytest.mark.parametrize(
    ("model", "queries", "searches"),
    [
        ("gemini-2.5-flash", ["a", "b"], 1),
        ("gemini-3-pro", ["a", "", "b"], 2),
        ("gemini-2.5-flash", [], 0),
        (None, ["a", "b"], 1),
    ],
)
def test_searches_are_counted_as_they_are_billed(model: str | None, queries: list[str], searches: int) -> None:
    assert searches_of({"webSearchQueries": queries}, model) == searches


@given(st.text("aäß€🐦 ", min_size=1, max_size=20), st.data())
def test_a_citation_points_at_its_own_words(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    places = {"startIndex": len(text[:start].encode()), "endIndex": len(text[:end].encode())}
    grounding = {
        "groundingChunks": [{"web": {"uri": "https://example.com"}}],
        "groundingSupports": [{"segment": {**places, "text": text[start:end]}, "groundingChunkIndices": [0]}],
    }
    (annotation,) = annotations_of(grounding, [], text)
    cited = annotation["url_citation"]
    assert text[cited["start_index"] : cited["end_index"]] == text[start:end]


def test_a_place_in_a_later_part_is_found_by_its_words() -> None:
    segment = {"partIndex": 1, "endIndex": 4, "text": "wren"}
    grounding = {
        "groundingChunks": [{"retrievedContext": {"uri": "gs://nest", "title": "Nest"}}],
        "groundingSupports": [{"segment": segment, "groundingChunkIndices": [0]}],
    }
    (annotation,) = annotations_of(grounding, [], "A bird: wren")
    assert annotation["url_citation"] == {"url": "gs://nest", "title": "Nest", "start_index": 8, "end_index": 12}
