"""The framing of Server-Sent Events."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.errors import UpstreamError
from proxy.providers import Event
from proxy.upstream.framing import MAX_EVENT_BYTES, SSE


def frame(*pieces: bytes) -> list[Event]:
    sse = SSE()
    return [event for piece in pieces for event in sse.feed(piece)] + sse.close()


def only(*data: bytes) -> list[Event]:
    return [Event("", item) for item in data]


UNICODE_ENDS = "a\u2028b\u2029c\x85d\x0be\x0cf".encode()

CASES = [
    ("a plain event", b"data: {}\n\n", only(b"{}")),
    ("several in one read", b"data: 1\n\ndata: 2\n\ndata: 3\n\n", only(b"1", b"2", b"3")),
    ("no space after the colon", b"data:1\n\n", only(b"1")),
    ("only one space is dropped", b"data:  1\n\n", only(b" 1")),
    ("several data lines", b"data: 1\ndata:2\ndata: 3\n\n", only(b"1\n2\n3")),
    ("a name", b"event: delta\ndata: 1\n\n", [Event("delta", b"1")]),
    ("a name after the data", b"data: 1\nevent:delta\n\n", [Event("delta", b"1")]),
    ("the last name counts", b"event: a\nevent: b\ndata: 1\n\n", [Event("b", b"1")]),
    ("a name does not outlive its event", b"event: a\ndata: 1\n\ndata: 2\n\n", [Event("a", b"1"), Event("", b"2")]),
    ("a name without data is no event", b"event: ping\n\ndata: 1\n\n", only(b"1")),
    ("a name that is not UTF-8", b"event: \xff\ndata: 1\n\n", [Event("\ufffd", b"1")]),
    ("comments", b": hi\n\n:\n: data: 0\ndata: 1\n\n", only(b"1")),
    ("id and retry", b"id: 7\nretry: 1000\ndata: 1\n\n", only(b"1")),
    ("unknown fields", b"datum: 0\nDATA: 0\n data: 0\ndata: 1\n\n", only(b"1")),
    ("empty data is an event", b"data:\n\ndata\n\ndata: \n\n", only(b"", b"", b"")),
    ("a data line and an empty one", b"data: 1\ndata\n\n", only(b"1\n")),
    ("blank lines between events", b"\n\n\ndata: 1\n\n\n\ndata: 2\n\n\n", only(b"1", b"2")),
    ("colons in the data", b"data: a: b: c\n\n", only(b"a: b: c")),
    ("characters that are not line ends", b"data: " + UNICODE_ENDS + b"\n\n", only(UNICODE_ENDS)),
    ("a byte order mark", b"\xef\xbb\xbfdata: 1\n\n", only(b"1")),
    ("a second byte order mark", b"\xef\xbb\xbf\xef\xbb\xbfdata: 1\n\ndata: 2\n\n", only(b"2")),
    ("half a byte order mark", b"\xef\xbbdata: 1\n\ndata: 2\n\n", only(b"2")),
    ("nothing but half a byte order mark", b"\xef\xbb", []),
    ("CR alone", b"data: 1\r\rdata: 2\r\r", only(b"1", b"2")),
    ("CRLF", b"data: 1\r\ndata: 2\r\n\r\n", only(b"1\n2")),
    ("line ends mixed", b"data: 1\n\r\ndata: 2\r\n\rdata: 3\r\n\ndata: 4\r\r\n", only(b"1", b"2", b"3", b"4")),
    ("nothing", b"", []),
    ("an end without a blank line", b"data: 1\n\ndata: [DONE]\n", only(b"1", b"[DONE]")),
    ("an end without a line end", b"data: 1\n\ndata: [DONE]", only(b"1", b"[DONE]")),
    ("the same, without the space", b"data: 1\n\ndata:[DONE]", only(b"1", b"[DONE]")),
    ("a named end without a blank line", b"event: stop\ndata: {}\r\n", [Event("stop", b"{}")]),
    ("an event cut in its line", b'data: 1\n\ndata: {"a":', only(b"1")),
    ("an event cut in its second line", b"data: 1\ndata: 2", []),
    ("an event cut after its name", b"data: 1\n\nevent: x\n", only(b"1")),
]  # fmt: skip


@pytest.mark.parametrize(("stream", "events"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_each_stream_is_the_same_events_whole_and_byte_by_byte(stream: bytes, events: list[Event]) -> None:
    assert frame(stream) == events
    assert frame(*(stream[i : i + 1] for i in range(len(stream)))) == events


LINES = st.sampled_from(
    [
        b"data: {}",
        b"data:x",
        b"data",
        b"data: \xe2\x80\xa8",
        b"event: a",
        b"event:",
        b": ping",
        b"id: 1",
        b"x",
        b"",
        b"",
    ]
)
ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
STREAMS = st.lists(st.tuples(LINES, ENDS), max_size=25)


@given(STREAMS, st.sampled_from([b"", b"data: [DONE]", b"data: cut", b"\xef"]), st.lists(st.integers(0, 200)))
@example([(b"data: 1", b"\r"), (b"", b"\r\n")], b"", [8])
def test_any_split_gives_the_same_events(lines: list[tuple[bytes, bytes]], tail: bytes, cuts: list[int]) -> None:
    stream = b"".join(line + end for line, end in lines) + tail
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    assert frame(*(stream[a:b] for a, b in pairwise(edges))) == frame(stream)


@given(STREAMS)
def test_every_line_ending_gives_the_same_events(lines: list[tuple[bytes, bytes]]) -> None:
    plain = frame(b"".join(line + b"\n" for line, _ in lines))
    assert frame(b"".join(line + b"\r\n" for line, _ in lines)) == plain
    assert frame(b"".join(line + b"\r" for line, _ in lines)) == plain


@given(st.lists(st.binary(max_size=30).filter(lambda data: not set(data) & set(b"\r\n")), max_size=20))
def test_data_without_line_ends_comes_back_as_it_was(items: list[bytes]) -> None:
    assert frame(b"".join(b"data: %b\n\n" % item for item in items)) == only(*items)


def test_an_event_is_delivered_with_the_read_that_ends_it() -> None:
    sse = SSE()
    assert sse.feed(b"data: 1\n") == []
    assert sse.feed(b"\n") == only(b"1")
    assert sse.feed(b"data: 2\r\r") == only(b"2"), "a CR does not wait for the LF that may follow"
    assert sse.feed(b"\ndata: 3\n\n") == only(b"3")


@pytest.mark.parametrize("step", [1000, 65536, MAX_EVENT_BYTES * 2])
def test_an_event_that_never_ends_is_cut_at_the_cap(step: int) -> None:
    sse = SSE()
    assert sse.feed(b"data: fine\n\n") == only(b"fine")
    with pytest.raises(UpstreamError) as caught:
        for _ in range(MAX_EVENT_BYTES // step + 2):
            sse.feed(b"x" * step)
    assert caught.value.code == "upstream_event_too_large"
    assert caught.value.error_type == "provider_bad_response"


def test_a_complete_event_over_the_cap_is_refused_and_one_below_it_is_not() -> None:
    fits = b"x" * (MAX_EVENT_BYTES - len(b"data: "))
    assert frame(b"data: %b\n\n" % fits) == only(fits)
    assert frame(b"data: " + fits[:9], fits[9:], b"\n", b"\n") == only(fits)
    with pytest.raises(UpstreamError, match="more than 1048576 bytes"):
        SSE().feed(b"data: %bx\n\n" % fits)


def test_many_events_in_one_read_may_be_larger_than_the_cap_together() -> None:
    assert len(frame(b"data: 12345678\n\n" * 100_000)) == 100_000


def test_nothing_arriving_changes_nothing() -> None:
    framing = SSE()
    assert framing.feed(b"") == []
    assert framing.feed(b"\xef\xbb") == []
    assert framing.feed(b"\xbf") == []
    assert framing.feed(b"data: x\r") == []
    assert framing.feed(b"") == []
    assert framing.feed(b"\n\r\n") == [Event("", b"x")]
