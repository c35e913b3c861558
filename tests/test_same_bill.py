"""Streamed or whole, an answer is the same usage and the same bill: for every golden case of every provider."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from proxy.config import Deployment, Provider
from proxy.dialects.openai import Envelope
from proxy.errors import UpstreamError
from proxy.exchange import Attempt, Exchange
from proxy.metering.prices import PriceBook
from proxy.providers import Event, Json
from proxy.upstream.answers import WholeAnswer, remember_usage
from proxy.upstream.framing import SSE
from proxy.upstream.readers import PassReader, Reader, TranslatedReader
from tests.golden import CASES, Case, decode

BOOK = PriceBook()
PRICED = {
    "openai": Deployment(provider=Provider(name="openai", api_base="http://127.0.0.1:9"), model="gpt-5"),
    "anthropic": Deployment(
        provider=Provider(name="anthropic", api="anthropic", api_base="http://127.0.0.1:9"), model="claude-sonnet-4-5"
    ),
    "gemini": Deployment(
        provider=Provider(name="gemini", api="gemini", api_base="http://127.0.0.1:9"), model="gemini-2.5-flash"
    ),
    "vertex": Deployment(
        provider=Provider(name="vertex", api="vertex", api_base="http://127.0.0.1:9"), model="gemini-2.5-flash"
    ),
}
NOON_MS = 1_790_000_000_000


def exchange() -> Exchange:
    return Exchange(
        id=b"i" * 16, request_id="req_1", endpoint="chat", started_at_ms=NOON_MS, started_ns=0, stream=True, model="m"
    )


def attempt(case: Case) -> Attempt:
    return Attempt(1, PRICED.get(case.api, PRICED["openai"]), 0)


def bill(one: Attempt) -> tuple[Any, ...]:
    assert one.usage is not None
    price = BOOK.cost(one.deployment, one.usage, NOON_MS, one.service_tier)
    return one.usage, one.usage_suspect, one.service_tier, price


def streamed(case: Case, stream: bytes, *, translated: bool) -> Attempt:
    """As the relay reads it."""
    one, envelope = attempt(case), Envelope(id="c", created=1, model="m")
    reader: Reader = (
        TranslatedReader(case.translator.stream_decoder(), one, envelope, True, lambda details, calls: None)
        if translated
        else PassReader(one, envelope, True)
    )
    framing = SSE()
    events: list[Event] = [*framing.feed(stream), *framing.close()]
    for event in events:
        reader.feed(event)
    reader.close()
    if reader.usage is not None:
        remember_usage(exchange(), one, reader.usage)
    return one


def whole(case: Case, body: bytes, *, translated: bool) -> Attempt:
    one = attempt(case)
    if translated:
        answer = WholeAnswer(one, None, case.translator.decode_response(body))
    else:
        answer = WholeAnswer(one, msgspec.json.decode(body, type=dict[str, msgspec.Raw]), None)
    one.service_tier = answer.read_service_tier()
    answer.take_usage(exchange())
    return one


def frames(*events: Json) -> bytes:
    return b"".join(
        b"event: %s\ndata: %s\n\n" % (event.get("type", "message").encode(), msgspec.json.encode(event))
        for event in events
    )


def openai_stream(native: Json) -> bytes:
    """The stream of a whole answer in OpenAI's shape: all at once, and usage last."""
    tier = {"service_tier": native["service_tier"]} if "service_tier" in native else {}
    chunk = {**tier, "choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": "stop"}]}
    return frames(chunk, {**tier, "choices": [], "usage": native["usage"]}) + b"data: [DONE]\n\n"


def anthropic_stream(native: Json) -> bytes:
    """Counters are cumulative: what begins with one token of output ends with all of them."""
    return frames(
        {"type": "message_start", "message": {"usage": {**native["usage"], "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "x"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": native["usage"]},
        {"type": "message_stop"},
    )


def openai_whole(events: list[Json]) -> Json:
    usage = [event["usage"] for event in events if event.get("usage")]
    choices = [{"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}]
    return {"choices": choices, "usage": usage[-1] if usage else None}


def anthropic_whole(events: list[Json]) -> Json:
    """The last word on each counter counts, never their sum."""
    usage: Json = {}
    for event in events:
        said = event.get("usage") or event.get("message", {}).get("usage") or {}
        usage |= {name: value for name, value in said.items() if value is not None}
    return {"type": "message", "content": [], "stop_reason": "end_turn", "usage": usage}


STREAM_OF = {"openai": openai_stream, "anthropic": anthropic_stream}
WHOLE_OF = {"openai": openai_whole, "anthropic": anthropic_whole}


def told_whole(case: Case) -> Json | None:
    path = case.folder / "3_upstream_response.json"
    native = msgspec.json.decode(path.read_bytes()) if path.exists() else {}
    return native if isinstance(native, dict) and isinstance(native.get("usage"), dict) else None


WHOLE = [case for case in CASES if case.api in STREAM_OF and told_whole(case) is not None]
ENDED = [
    case
    for case in CASES
    if case.api in WHOLE_OF and case.stream is not None and "error" not in decode(case.translator, [case.stream])[-1]
]
ROADS = [pytest.param(True, id="translated"), pytest.param(False, id="passed through")]


@pytest.mark.parametrize("translated", ROADS)
@pytest.mark.parametrize("case", WHOLE, ids=lambda case: case.name)
def test_a_whole_answer_costs_the_same_when_it_is_streamed(case: Case, translated: bool) -> None:
    native = told_whole(case)
    if native is None or (not translated and not case.translator.same_dialect):
        return
    body = msgspec.json.encode(native)
    as_whole = whole(case, body, translated=translated)
    as_stream = streamed(case, STREAM_OF[case.api](native), translated=translated)
    assert bill(as_stream) == bill(as_whole)
    assert bill(as_whole)[3].state == "priced"


@pytest.mark.parametrize("case", ENDED, ids=lambda case: case.name)
def test_a_stream_costs_the_same_when_it_comes_whole(case: Case) -> None:
    assert case.stream is not None
    framing = SSE()
    events = [
        msgspec.json.decode(event.data)
        for event in [*framing.feed(case.stream), *framing.close()]
        if event.data.strip() not in (b"", b"[DONE]")
    ]
    native = WHOLE_OF[case.api](events)
    as_stream = streamed(case, case.stream, translated=True)
    if not native["usage"]:
        assert as_stream.usage is None
        return
    assert bill(as_stream) == bill(whole(case, msgspec.json.encode(native), translated=True))
    if case.translator.same_dialect:
        assert bill(streamed(case, case.stream, translated=False)) == bill(as_stream)


def test_there_are_cases_of_each_provider() -> None:
    for cases in (WHOLE, ENDED):
        assert {case.api for case in cases} >= {"openai", "anthropic"}
    assert len(WHOLE) > 8 and len(ENDED) > 12


@pytest.mark.parametrize("translated", ROADS)
@pytest.mark.parametrize(
    ("said", "expected"), [("priority", "priority"), ("default", ""), (None, ""), (7, ""), ("flex", "flex")]
)
def test_openais_tier_is_what_the_answer_says(said: object, expected: str, translated: bool) -> None:
    case = next(case for case in WHOLE if case.api == "openai")
    native: Json = {**(told_whole(case) or {}), "service_tier": said}
    tiers = {
        whole(case, msgspec.json.encode(native), translated=translated).service_tier,
        streamed(case, openai_stream(native), translated=translated).service_tier,
    }
    assert tiers == {expected}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"service_tier": "priority"}, "priority"),
        ({"service_tier": "batch"}, "batch"),
        ({"service_tier": "standard"}, ""),
        ({"service_tier": "standard", "speed": "fast"}, "fast"),
        ({"speed": "standard"}, ""),
        ({}, ""),
    ],
)
def test_anthropics_tier_and_searches_come_inside_its_usage(said: Json, expected: str) -> None:
    case = next(case for case in WHOLE if case.api == "anthropic")
    usage = {"input_tokens": 7, "output_tokens": 3, "server_tool_use": {"web_search_requests": 2}, **said}
    native: Json = {"type": "message", "content": [], "stop_reason": "end_turn", "usage": usage}
    for one in (
        whole(case, msgspec.json.encode(native), translated=True),
        streamed(case, anthropic_stream(native), translated=True),
    ):
        assert one.service_tier == expected
        assert one.usage is not None and (one.usage.searches, one.usage.prompt) == (2, 7)


def test_a_counter_that_is_repeated_is_replaced_and_never_added() -> None:
    case = next(case for case in WHOLE if case.api == "openai")
    usage: Json = {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}
    chunks: list[Json] = [
        {"choices": [{"index": 0, "delta": {"content": "x"}}], "usage": {**usage, "completion_tokens": n}}
        for n in range(1, 5)
    ]
    last: Json = {"choices": [], "usage": {**usage, "completion_tokens": 5, "total_tokens": 15}}
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    for translated in (True, False):
        one = streamed(case, frames(*chunks, end, last) + b"data: [DONE]\n\n", translated=translated)
        assert one.usage is not None and (one.usage.prompt, one.usage.completion) == (10, 5)


def test_an_answer_that_is_no_answer_has_no_bill() -> None:
    case = next(case for case in WHOLE if case.api == "openai")
    with pytest.raises(UpstreamError):
        whole(case, b'{"choices": [], "usage": 7}', translated=False)
