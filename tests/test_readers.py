"""From framed events to the client's bytes: pass-through and translated streams keep the same promises."""

from collections.abc import Iterable
from typing import Any

import msgspec
import pytest

from proxy.config import Deployment, Provider
from proxy.dialects.openai import DONE, Envelope
from proxy.errors import StreamTruncated, UpstreamError
from proxy.exchange import Attempt, Exchange
from proxy.providers import Chunk, Event
from proxy.upstream.answers import WholeAnswer, read_fields
from proxy.upstream.readers import PassReader, TranslatedReader

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def attempt() -> Attempt:
    provider = Provider(name="one", api_base="https://one.example/v1")
    return Attempt(number=1, deployment=Deployment(provider=provider, model="a"), started_ns=0)


def envelope() -> Envelope:
    return Envelope(id="chatcmpl-1", created=5, model="m")


def reader(*, asked: bool, of: Attempt | None = None) -> PassReader:
    return PassReader(of or attempt(), envelope(), asked)


def event(**chunk: Any) -> Event:
    return Event("", msgspec.json.encode(chunk))


def content(text: str) -> Event:
    return event(id="u", choices=[{"index": 0, "delta": {"content": text}, "finish_reason": None}])


FINISH = event(id="u", choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])


def test_a_passed_through_payload_keeps_every_byte() -> None:
    odd = b'{"object":"chat.completion.chunk",  "choices":[{"delta":{"content":"\\u00e9"},"index":0}], "new":1.50}'
    shown = reader(asked=False).feed(Event("", odd))
    assert shown == b"data: " + odd + b"\n\n"


def test_a_payload_on_several_lines_is_one_event_for_the_client_too() -> None:
    chunk = b'{"object":"chat.completion.chunk",\n"choices":[{"delta":{"content":"one"},"index":0}]}'
    shown = reader(asked=False).feed(Event("", chunk))
    (data,) = shown.removeprefix(b"data: ").rstrip().splitlines()
    assert msgspec.json.decode(data)["choices"] == msgspec.json.decode(chunk)["choices"]


def test_the_role_alone_commits_nothing_and_content_does() -> None:
    one = reader(asked=False)
    one.feed(event(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}}]))
    assert not one.content
    one.feed(content("x"))
    assert one.content


@pytest.mark.parametrize(
    "delta",
    [
        {"reasoning_content": "x"},
        {"reasoning": "x"},
        {"refusal": "no"},
        {"audio": {"id": "a"}},
        {"function_call": {"name": "f", "arguments": ""}},
        {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": ""}}]},
    ],
)
def test_whatever_a_client_would_see_is_content(delta: dict[str, Any]) -> None:
    one = reader(asked=False)
    one.feed(event(choices=[{"index": 0, "delta": delta}]))
    assert one.content


def test_usage_is_held_back_and_shown_last_with_its_cost_to_who_asked() -> None:
    one = reader(asked=True)
    assert one.feed(content("x")) and one.feed(FINISH)
    assert one.feed(event(id="u", model="up", choices=[], usage=USAGE)) == b""
    assert one.feed(Event("", b"[DONE]")) == b""
    assert one.done and one.usage == USAGE and one.finish_reason == "stop"
    usage, end = one.ending(0.5).split(b"\n\n", 1)
    assert msgspec.json.decode(usage.removeprefix(b"data: ")) == {
        "id": "u",
        "model": "up",
        "object": "chat.completion.chunk",
        "created": 5,
        "choices": [],
        "usage": {**USAGE, "cost": 0.5},
    }
    assert end == DONE


def test_usage_is_hidden_from_who_did_not_ask() -> None:
    one = reader(asked=False)
    one.feed(FINISH)
    one.feed(event(choices=[], usage=USAGE))
    one.feed(Event("", b"[DONE]"))
    assert one.ending(0.5) == DONE
    assert one.usage == USAGE


def test_usage_on_a_choice_chunk_moves_to_a_chunk_of_its_own() -> None:
    one = reader(asked=True)
    shown = one.feed(event(choices=[{"index": 0, "delta": {"content": "x"}, "finish_reason": "stop"}], usage=USAGE))
    assert "usage" not in msgspec.json.decode(shown.removeprefix(b"data: "))
    one.close()
    assert b'"cost":null' in one.ending(None)


@pytest.mark.parametrize(
    "bad", [Event("", b'{"error":{"message":"boom","code":500}}'), Event("error", b'{"message":"boom"}')]
)
def test_an_error_event_is_raised(bad: Event) -> None:
    with pytest.raises(UpstreamError) as failed:
        reader(asked=False).feed(bad)
    assert not isinstance(failed.value, StreamTruncated)


def test_an_event_that_is_no_chunk_ends_the_answer() -> None:
    with pytest.raises(UpstreamError):
        reader(asked=False).feed(Event("", b"<html>"))


def test_an_end_without_done_or_finish_is_a_cut_and_with_a_finish_it_is_an_end() -> None:
    cut = reader(asked=False)
    cut.feed(content("x"))
    with pytest.raises(StreamTruncated):
        cut.close()
    whole = reader(asked=False)
    whole.feed(FINISH)
    whole.close()
    assert whole.done


def test_an_end_is_one_only_when_each_choice_has_its_finish() -> None:
    half = [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}, {"index": 1, "delta": {"content": "b"}}]
    one = reader(asked=False)
    one.feed(event(choices=half))
    with pytest.raises(StreamTruncated):
        one.close()
    one.feed(event(choices=[{"index": 1, "delta": {}, "finish_reason": "length"}]))
    one.feed(event(choices=[{"index": 0, "delta": {}}]))
    one.close()
    assert one.done


def test_what_was_delivered_is_remembered_for_counting() -> None:
    tried = attempt()
    one = reader(asked=False, of=tried)
    one.feed(content("Hel"))
    one.feed(content("lo"))
    calls = [{"index": 0, "function": {"name": "f", "arguments": '{"a"'}}]
    one.feed(event(choices=[{"index": 0, "delta": {"tool_calls": calls}}]))
    one.feed(event(choices=[{"index": 0, "delta": {"function_call": {"name": "g", "arguments": None}}}]))
    one.feed(event(choices=[{"index": 0, "delta": {"function_call": {"arguments": "{}"}}}]))
    assert "".join(tried.delivered_text) == 'Hellof{"a"g{}'
    assert tried.delivered_events == 5


class Decoder:
    """A provider's decoder, as far as the reader knows it: events are chunks already."""

    def feed(self, event: Event) -> Iterable[Chunk]:
        return msgspec.json.decode(event.data, type=list[dict[str, Any]])

    @property
    def usage_so_far(self) -> dict[str, Any] | None:
        return {"prompt_tokens": 3}

    def close(self) -> Iterable[Chunk]:
        return [{"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}]


def test_translated_chunks_are_stamped_counted_and_their_usage_held() -> None:
    tried = attempt()
    one = TranslatedReader(Decoder(), tried, envelope(), True, lambda *_: None)
    calls = [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}]
    chunks = [
        {"choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {"content": "x"}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {"tool_calls": calls}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {"function_call": {"name": "g"}}, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
        {"choices": [], "usage": USAGE},
    ]
    shown = one.feed(Event("", msgspec.json.encode(chunks)))
    assert shown.count(b"chatcmpl-1") == 5
    assert "".join(tried.delivered_text) == "xf{}g"
    assert one.content and one.done and one.finish_reason == "tool_calls" and one.usage == USAGE
    assert b'"cost":1.0' in one.ending(1.0)


def test_a_translated_stream_without_usage_ends_when_its_decoder_says_so() -> None:
    one = TranslatedReader(Decoder(), attempt(), envelope(), True, lambda *_: None)
    assert b"length" in one.close()
    assert one.done and one.ending(None) == DONE
    assert one.usage is None and one.usage_so_far == {"prompt_tokens": 3}


DEEP = b"[" * 100_000 + b"]" * 100_000
UNREADABLE = {
    "no JSON": b"{nope",
    "no UTF-8": b'{"choices":[{"index":0,"delta":{"content":"\xff"}}]}',
    "half a surrogate": rb'{"choices":[{"index":0,"delta":{"content":"\ud800"}}]}',
    "deep content": b'{"choices":[{"index":0,"delta":{"content":' + DEEP + b"}}]}",
    "deep error": b'{"error":' + DEEP + b"}",
    "deep usage": b'{"choices":[],"usage":{"a":' + DEEP + b"}}",
    "no UTF-8 beside usage": b'{"id":"\xff","choices":[],"usage":{"prompt_tokens":1}}',
    "no UTF-8 in another shape": b'{"id":"\xff","choices":[{"index":0}]}',
    "an array": b"[1]",
    "choices that are a number": b'{"choices":5}',
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_read_ends_the_answer_and_is_no_fault_of_ours(name: str) -> None:
    for kind in ("", "error"):
        with pytest.raises(StreamTruncated, match="not a chunk"):
            reader(asked=True).feed(Event(kind, UNREADABLE[name]))


VALUES = {
    "no UTF-8": b'["\xff"]',
    "half a surrogate": rb'["\ud800"]',
    "deep": DEEP,
    "deep content": b'[{"message":{"content":' + DEEP + b"}}]",
    "number": b"5",
    "empty": b'""',
}


@pytest.mark.parametrize("field", ["choices", "usage", "error", "service_tier"])
@pytest.mark.parametrize("kind", VALUES)
def test_a_whole_answer_that_cannot_be_read_is_a_bad_one_or_does_without(field: str, kind: str) -> None:
    fields = {"choices": b"[]", field: VALUES[kind]}
    body = b"{" + b",".join(b'"%b":%b' % (name.encode(), said) for name, said in fields.items()) + b"}"
    read = 0
    try:
        answer = WholeAnswer(attempt(), read_fields(body), None)
        answer.take_usage(Exchange(b"", "req_1", "chat", 0, 0))
        read += len(answer.choices()) + (answer.attempt.usage is not None)
        assert len(answer.read_service_tier()) < 100
    except UpstreamError as error:
        assert error.status == 502
    assert read == 0
