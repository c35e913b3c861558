"""
The head of a request, and how a connection that sends the same one again is spared most of the reading.

On a kept connection heads differ in their Content-Length and in little else. One that is plain in every respect is read
line by line once, and checked by httptools; the next is compared with it, byte for byte. Nothing is inferred: whatever
differs, or was not plain, goes the long way.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import httptools

from proxy.admission.gate import KeptDigest
from proxy.errors import CallerError, GatewayFault

Header = tuple[bytes, bytes]

MAX_HEADERS = 100
MAX_HEAD_BYTES = 32_768
MAX_PLAIN_BYTES = 4_096
MAX_LENGTH_DIGITS = 18

_HOST = re.compile(rb"[A-Za-z0-9._:\[\]-]{1,255}")
_FIELD = re.compile(rb"\r\n([^:\s]+):[ \t]*([^\r\n]*)(?=\r\n)")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*", re.IGNORECASE)
_BAD_TARGET = re.compile(rb"%(?![0-9A-Fa-f]{2})|%00|%0[AaDd]|[^!-~]")
_DOTS = re.compile(rb"(?:^|/)(?:\.|%2[eE]){1,2}(?:/|$)")
_NOT_PLAIN = frozenset({b"transfer-encoding", b"content-encoding", b"expect", b"upgrade"})


class Head:
    """What the story may want to know of a request's head; everything else has been judged and dropped."""

    __slots__ = (
        "chunked",
        "content_type",
        "credentials",
        "digest",
        "expects",
        "forwarded_for",
        "hints",
        "host",
        "origin",
        "request_id",
        "traceparent",
    )

    def __init__(self) -> None:
        self.credentials: list[Header] = []
        """Every header that may carry a key: lower-case name, value."""
        self.digest = KeptDigest()
        self.content_type = b""
        self.request_id: bytes | None = None
        self.hints: dict[str, str] = {}
        """The client's `x-strata-…` headers, and what it wants of a provider's previews (`anthropic-beta`)."""
        self.host = b""
        self.origin = b""
        """The web page's, if a browser asks for one of another site."""
        self.forwarded_for = b""
        """What proxies say of where it comes from; worth something only from those that are trusted."""
        self.traceparent = b""
        """Which trace the client's request is part of, if it says so."""
        self.chunked = False
        self.expects = False
        """It waits for a `100 Continue`."""


class PlainHead:
    """One that has been read: its bytes before and after the digits of its Content-Length, and what they say."""

    __slots__ = ("after", "before", "head", "headers", "keep_alive", "target")

    def __init__(self, before: bytes, after: bytes, headers: list[Header], target: bytes, keep_alive: bool) -> None:
        self.before = before
        self.after = after
        self.headers = headers
        self.target = target
        self.keep_alive = keep_alive
        self.head = Head()

    def find_body(self, data: bytes) -> tuple[int, int] | None:
        """If `data` begins with this head: where its body begins, and how long it is; never 0."""
        before = self.before
        if not data.startswith(before):
            return None
        start = len(before)
        end = data.find(b"\r", start, start + MAX_LENGTH_DIGITS + 1)
        digits = data[start:end]
        if not digits.isdigit() or not data.startswith(self.after, end):
            return None
        size = int(digits)
        return (end + len(self.after), size) if size else None


def read_plain(data: bytes) -> PlainHead | None:
    """
    The head of a POST that `data` begins with. None: it is not all here, has no body of known length, a line that is
    folded or would have to be judged, or httptools does not take it.
    """
    if not data.startswith(b"POST "):
        return None
    end = data.find(b"\r\n\r\n", 0, MAX_PLAIN_BYTES)
    line_end = data.find(b" HTTP/1.1\r\n", 0, end)
    if end < 0 or line_end < 0:
        return None
    head = data[: end + 4]
    headers = [(name.lower(), value) for name, value in _FIELD.findall(head)]
    names = [name for name, _ in headers]
    length = _LENGTH.search(head)
    # As many fields as lines: none is folded, none is hidden behind half a line end.
    if (
        len(headers) != head.count(b"\n") - 2
        or len(headers) > MAX_HEADERS
        or not _NOT_PLAIN.isdisjoint(names)
        or length is None
        or names.count(b"content-length") != 1
    ):
        return None
    checker = httptools.HttpRequestParser(None)
    try:
        checker.feed_data(head)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    after = head[head.index(b"\r", length.end()) :]
    return PlainHead(head[: length.end()], after, headers, data[5:line_end], checker.should_keep_alive())


def read_head(headers: list[Header], max_body_bytes: int) -> Head:
    """Refuses what parsers disagree about, and keeps what the story may want. Names are lower case."""
    head = Head()
    hosts = 0
    for name, value in headers:
        judge = _JUDGES.get(name)
        if judge is not None:
            judge(head, name, value)
        elif name == b"host":
            hosts += 1
            if not _HOST.fullmatch(value):
                raise CallerError("The Host header is not a host name.", code="invalid_host")
            head.host = value
        elif name == b"content-length":
            if not value.isdigit() or len(value) > MAX_LENGTH_DIGITS or int(value) > max_body_bytes:
                raise body_too_large(max_body_bytes)
        elif name.startswith(b"x-strata-") or name.endswith(b"-beta"):
            head.hints[name.decode("latin-1")] = value.decode("latin-1")
    if hosts != 1:
        raise CallerError(f"A request needs one Host header, not {hosts}.", code="invalid_host")
    return head


def check_target(target: bytes) -> None:
    """CallerError for what routers and proxies read differently."""
    path = target.partition(b"?")[0]
    if path[:1] != b"/" or path[:2] == b"//" or _BAD_TARGET.search(target) or _DOTS.search(path):
        raise CallerError("The path of this request is not a plain absolute path.", code="invalid_path")


def _judge_transfer(head: Head, name: bytes, value: bytes) -> None:
    if value.lower() != b"chunked":
        raise only_chunked()
    head.chunked = True


def _judge_encoding(head: Head, name: bytes, value: bytes) -> None:
    if value.lower() != b"identity":
        raise CallerError("Send the body uncompressed.", status=415, code="unsupported_encoding")


def _judge_expect(head: Head, name: bytes, value: bytes) -> None:
    head.expects = value.lower() == b"100-continue"


def _keep_credential(head: Head, name: bytes, value: bytes) -> None:
    head.credentials.append((name, value))


def _keep_content_type(head: Head, name: bytes, value: bytes) -> None:
    head.content_type = value


def _keep_request_id(head: Head, name: bytes, value: bytes) -> None:
    head.request_id = value


def _keep_origin(head: Head, name: bytes, value: bytes) -> None:
    head.origin = value


def _add_forwarded_for(head: Head, name: bytes, value: bytes) -> None:
    head.forwarded_for = b"%b,%b" % (head.forwarded_for, value) if head.forwarded_for else value


def _keep_traceparent(head: Head, name: bytes, value: bytes) -> None:
    # said twice it says nothing: the rest of the line makes it unreadable
    head.traceparent = b"%b, %b" % (head.traceparent, value) if head.traceparent else value


_JUDGES: dict[bytes, Callable[[Head, bytes, bytes], None]] = {
    b"transfer-encoding": _judge_transfer,
    b"content-encoding": _judge_encoding,
    b"expect": _judge_expect,
    b"authorization": _keep_credential,
    b"x-api-key": _keep_credential,
    b"api-key": _keep_credential,
    b"content-type": _keep_content_type,
    b"x-request-id": _keep_request_id,
    b"origin": _keep_origin,
    b"x-forwarded-for": _add_forwarded_for,
    b"traceparent": _keep_traceparent,
}


def head_too_large() -> CallerError:
    return CallerError(
        f"The head of this request is too large: at most {MAX_HEADERS} headers and {MAX_HEAD_BYTES} bytes.",
        status=431,
        code="headers_too_large",
        error_type="caller_too_large",
    )


def body_too_large(max_body_bytes: int) -> CallerError:
    return CallerError(
        f"The body is larger than {max_body_bytes} bytes, the limit of this gateway (server.max_body).",
        status=413,
        code="request_too_large",
        error_type="caller_too_large",
    )


def only_chunked() -> CallerError:
    return CallerError("The only transfer coding here is chunked.", code="invalid_http")


def overloaded() -> GatewayFault:
    return GatewayFault(
        "This gateway is at its limit of parallel requests (server.max_in_flight); try again shortly.",
        code="gateway_overloaded",
        error_type="gateway_overloaded",
        headers={"retry-after": "1"},
    )


def no_room() -> GatewayFault:
    return GatewayFault(
        "This gateway holds as many large bodies as it may (server.max_bodies); try again shortly.",
        code="gateway_overloaded",
        error_type="gateway_overloaded",
        headers={"retry-after": "1"},
    )


def no_upgrade() -> CallerError:
    return CallerError(
        "This server speaks HTTP/1.1 only: send no Upgrade.",
        status=426,
        code="no_upgrade",
        headers={"upgrade": "HTTP/1.1"},
    )
