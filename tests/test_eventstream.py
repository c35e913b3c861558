"""The framing of AWS event streams."""

from __future__ import annotations

import zlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import UpstreamError
from proxy.providers import Event
from proxy.upstream.eventstream import EventStream
from proxy.upstream.framing import MAX_EVENT_BYTES
from tests.eventstream import error, event, exception, message


def frame(*pieces: bytes) -> list[Event]:
    stream = EventStream()
    return [event for piece in pieces for event in stream.feed(piece)] + stream.close()


HELLO = event("contentBlockDelta", {"delta": {"text": "Ahoy"}})
OTHERS: dict[str, str | bytes] = {
    "true": b"\x00",
    "false": b"\x01",
    "byte": b"\x02\x7f",
    "short": b"\x03\x00\x01",
    "integer": b"\x04\x00\x00\x00\x01",
    "long": b"\x05" + bytes(8),
    "bytes": b"\x06\x00\x02ab",
    "timestamp": b"\x08" + bytes(8),
    "uuid": b"\x09" + bytes(16),
    ":event-type": "metadata",
}
CASES = [
    ("an event", HELLO, [Event("contentBlockDelta", b'{"delta":{"text":"Ahoy"}}')]),
    ("several in one read", HELLO * 3, [Event("contentBlockDelta", b'{"delta":{"text":"Ahoy"}}')] * 3),
    ("no payload", message({":event-type": "ping"}, b""), [Event("ping", b"")]),
    ("no headers", message({}, b"{}"), [Event("", b"{}")]),
    ("headers of every type", message(OTHERS, b"{}"), [Event("metadata", b"{}")]),
    ("an exception", exception("throttlingException", {}), [Event("exception:throttlingException", b"{}")]),
    ("an error", error("InternalError", "Oh no."), [Event("error:InternalError", b"Oh no.")]),
    ("an error without words", message({":message-type": "error"}, b""), [Event("error:", b"")]),
    ("a name that is not UTF-8", message({":event-type": b"\x07\x00\x01\xff"}, b""), [Event("\ufffd", b"")]),
    ("a payload that is no JSON", message({":event-type": "blob"}, b"\x00\xff"), [Event("blob", b"\x00\xff")]),
    ("nothing", b"", []),
    ("half a prelude", HELLO + HELLO[:7], [Event("contentBlockDelta", b'{"delta":{"text":"Ahoy"}}')]),
    ("half a message", HELLO[:-1], []),
]


@pytest.mark.parametrize(("stream", "events"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_each_stream_is_the_same_events_whole_and_byte_by_byte(stream: bytes, events: list[Event]) -> None:
    assert frame(stream) == events
    assert frame(*(stream[i : i + 1] for i in range(len(stream)))) == events


names = st.text(max_size=12).filter(lambda text: len(text.encode()) < 200)
messages = st.builds(
    lambda kind, name, payload: message({":message-type": kind, ":event-type": name, ":exception-type": name}, payload),
    st.sampled_from(["event", "exception"]),
    names,
    st.binary(max_size=40),
)


@given(st.lists(messages, max_size=8), st.integers(0, 60), st.lists(st.integers(0, 900)))
def test_any_split_gives_the_same_events(parts: list[bytes], cut: int, cuts: list[int]) -> None:
    stream = b"".join(parts)
    stream = stream[: max(0, len(stream) - cut)]
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    assert frame(*(stream[a:b] for a, b in pairwise(edges))) == frame(stream)


@given(st.lists(messages, min_size=1, max_size=4), st.data())
def test_a_stream_that_ends_early_gives_its_whole_messages_and_no_more(parts: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(parts)
    length = data.draw(st.integers(0, len(stream) - 1))
    whole = sum(sum(len(part) for part in parts[: number + 1]) <= length for number in range(len(parts)))
    assert frame(stream[:length]) == frame(*parts[:whole])


@given(st.lists(messages, min_size=1, max_size=3), st.data())
def test_a_flipped_bit_never_becomes_an_event(parts: list[bytes], data: st.DataObject) -> None:
    """Every message before it is delivered as it was; the damaged one and all that follows are not."""
    stream = bytearray(b"".join(parts))
    place = data.draw(st.integers(0, len(stream) - 1))
    stream[place] ^= 1 << data.draw(st.integers(0, 7))
    intact = [part for number, part in enumerate(parts) if sum(map(len, parts[: number + 1])) <= place]
    step = data.draw(st.integers(1, len(stream)))
    framing, events = EventStream(), []
    with pytest.raises(UpstreamError) as refused:
        for start in range(0, len(stream), step):
            events += framing.feed(bytes(stream[start : start + step]))
        framing.close()
    assert refused.value.error_type == "provider_bad_response"
    assert events == frame(*intact)


def test_an_event_is_delivered_with_the_byte_that_ends_it() -> None:
    stream = EventStream()
    assert stream.feed(HELLO[:-1]) == []
    assert len(stream.feed(HELLO[-1:] + HELLO[:20])) == 1
    assert len(stream.feed(HELLO[20:])) == 1


@pytest.mark.parametrize("extra", [0, 1])
def test_a_message_up_to_the_cap_is_taken_and_one_above_it_is_not(extra: int) -> None:
    payload = b"x" * (MAX_EVENT_BYTES - 16 + extra)
    if not extra:
        assert frame(message({}, payload)) == [Event("", payload)]
        return
    with pytest.raises(UpstreamError, match="more than 1048576 bytes") as refused:
        EventStream().feed(message({}, payload)[:12])  # its own length is enough: nothing of it is ever held
    assert refused.value.code == "upstream_event_too_large"


def test_a_web_page_is_no_event_stream() -> None:
    with pytest.raises(UpstreamError, match="checksum of a message's length"):
        frame(b"<!doctype html><title>Service Unavailable</title>")


def raw(total: int, headers: int, rest: bytes) -> bytes:
    """A message whose checksums are right and whose lengths or headers are not."""
    prelude = total.to_bytes(4, "big") + headers.to_bytes(4, "big")
    prelude += zlib.crc32(prelude).to_bytes(4, "big")
    return prelude + rest + zlib.crc32(prelude + rest).to_bytes(4, "big")


@pytest.mark.parametrize(
    ("total", "headers", "rest"),
    [
        (15, 0, b""),  # shorter than nothing at all
        (20, 5, b"abcd"),  # headers longer than the message
        (18, 2, b"\x05a"),  # a name that reaches past the end
        (19, 3, b"\x01a\x0a"),  # a type that is none
        (20, 4, b"\x01a\x07\x00"),  # a length that is cut
        (20, 4, b"\x01a\x04\x00"),  # a value that reaches past its headers
        (24, 6, b"\x01a\x07\x00\x09bcd"),  # a text that does
    ],
)
def test_malformed_messages_are_refused_and_not_misread(total: int, headers: int, rest: bytes) -> None:
    with pytest.raises(UpstreamError, match="malformed") as refused:
        frame(raw(total, headers, rest))
    assert refused.value.code == "upstream_bad_frame"


def test_a_damaged_payload_is_refused() -> None:
    with pytest.raises(UpstreamError, match="checksum of a message is wrong"):
        frame(HELLO.replace(b"Ahoy", b"Ahoi"))
