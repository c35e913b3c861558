"""
A head that is read at one go says what httptools says of it, line by line; and whatever is not the same head again,
byte for byte but for the number in its Content-Length, is not taken for it.
"""

from __future__ import annotations

import httptools
import pytest

from proxy.edge.heads import Header, PlainHead, read_plain

LINES = [
    b"Host: gateway:4000",
    b"accept:application/json",
    b"User-Agent:   OpenAI/Python 3.0.0 ",
    b"authorization: Bearer sk-strata-1",
    b"X-Strata-Strict: true",
    b"x-empty:",
    b"Content-Type: application/json",
    b"Content-Length: 12",
]


def request(lines: list[bytes], body: bytes = b"x" * 12, start: bytes = b"POST /v1/chat/completions HTTP/1.1") -> bytes:
    return b"\r\n".join([start, *lines, b"", b""]) + body


class Collector:
    def __init__(self) -> None:
        self.headers: list[Header] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))


def plain(data: bytes) -> PlainHead:
    found = read_plain(data)
    assert found is not None
    return found


def test_a_plain_head_says_what_httptools_says() -> None:
    data = request(LINES)
    collector = Collector()
    httptools.HttpRequestParser(collector).feed_data(data)
    head = plain(data)
    assert head.headers == collector.headers
    assert (head.target, head.keep_alive) == (b"/v1/chat/completions", True)
    assert head.find_body(data) == (len(data) - 12, 12)
    assert plain(request([*LINES, b"connection: close"])).keep_alive is False


def test_the_same_head_with_another_length_is_the_same_head() -> None:
    head, longer = plain(request(LINES)), request([*LINES[:-1], b"Content-Length: 123456"])
    assert head.find_body(longer) == (longer.index(b"\r\n\r\n") + 4, 123456)


@pytest.mark.parametrize(
    "lines",
    [
        [*LINES[:-1], b"content-length: 12"],
        [*LINES[:-1], b"Content-Length: 12 "],
        [*LINES[:-1], b"Content-Length: +12"],
        [*LINES[:-1], b"Content-Length: 12, 12"],
        [*LINES[:-1], b"Content-Length: 0"],
        [*LINES[:-1], b"Content-Length: "],
        [*LINES[:-1], b"Content-Length: 12\n"],
        [*LINES[:-1], b"Content-Length: 1234567890123456789"],
        [*LINES, b"Content-Length: 12"],
        [*LINES, b"transfer-encoding: chunked"],
        [*LINES, b"host: evil"],
        [b"host: evil", *LINES[1:]],
        LINES[1:],
    ],
)
def test_any_other_head_is_another_one(lines: list[bytes]) -> None:
    assert plain(request(LINES)).find_body(request(lines)) is None


@pytest.mark.parametrize(
    "data",
    [
        request([*LINES, b"content-length: 12"]),
        request([*LINES, b"transfer-encoding: chunked"]),
        request([*LINES, b"Content-Encoding: identity"]),
        request([*LINES, b"expect: 100-continue"]),
        request([*LINES, b"upgrade: h2c", b"connection: upgrade"]),
        request([*LINES, b" folded: 1"]),
        request([*LINES, b"\tfolded"]),
        request([b"x-a: 1\nhost: evil", *LINES]),
        request([b"x-a: 1\rhost: evil", *LINES]),
        request([b"x-a: 1\x00", *LINES]),
        request([b"x a: 1", *LINES]),
        request([b"x-a : 1", *LINES]),
        request([b": 1", *LINES]),
        request([b"nothing", *LINES]),
        request([b"x-a: " + b"1" * 5_000, *LINES]),
        request([b"x-%d: 1" % number for number in range(100)] + LINES),
        request(LINES[:-1]),
        request(LINES)[:-14],
        request(LINES, start=b"GET /v1/chat/completions HTTP/1.1"),
        request(LINES, start=b"POST /v1/chat/completions HTTP/1.0"),
        request(LINES, start=b"POST  /v1/chat/completions"),
        b"\r\n" + request(LINES),
    ],
)
def test_what_is_not_plain_goes_the_long_way(data: bytes) -> None:
    assert read_plain(data) is None
