"""
One HTTP/1.1 connection to a provider, and the response it carries.

The parser writes straight into the response; the connection goes back to the pool in the moment the last byte of the
body arrives, even if nobody has read it yet. Whatever is not a clean end closes it.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from functools import lru_cache
from operator import setitem
from types import MethodType
from typing import TYPE_CHECKING, NoReturn, cast

import httptools
import msgspec

from proxy.errors import StreamTruncated, UpstreamError
from proxy.upstream.origin import Origin, bad_response, timed_out
from proxy.upstream.response import Response

if TYPE_CHECKING:
    from proxy.upstream.connections import Pool

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 200
MAX_INTERIM_RESPONSES = 16
MAX_UNREAD_BYTES = 64 * 1024
MAX_INFLATED_STEP_BYTES = 4 * 1024 * 1024
"""What one read from the socket may inflate to: a real answer stays far below it, a bomb does not."""
ONE_WRITE_BYTES = 64 * 1024
RELEASE_SECONDS = 1.0
ABANDONED_SECONDS = 600.0
"""How long after its last deadline an answer may lie unread before its connection is taken back."""


class Connection(asyncio.Protocol):
    """
    States: connecting, then idle (`_response` is None) and busy in turn, then closed for good. It counts as one of the
    pool's active ones from before `begin` until its single `give_back`.
    """

    __slots__ = (
        "_barren",
        "_bodiless",
        "_fields",
        "_inflate",
        "_interim",
        "_interims",
        "_keep",
        "_loop",
        "_max_bytes",
        "_parser",
        "_paused",
        "_pool",
        "_refusal",
        "_released",
        "_response",
        "_silent",
        "_transport",
        "_waiter",
        "closed",
        "deadline",
        "idle_since",
        "on_header",
        "origin",
    )

    def __init__(self, pool: Pool, origin: Origin, max_bytes: int, loop: asyncio.AbstractEventLoop) -> None:
        self.origin = origin
        self.closed = False
        self.deadline = 0.0
        self.idle_since = 0.0
        self._pool = pool
        self._max_bytes = max_bytes
        self._loop = loop
        self._transport = cast(asyncio.Transport, None)
        self._response: Response | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._fields: dict[bytes, bytes] = {}
        self.on_header: Callable[[bytes, bytes], None] = MethodType(setitem, self._fields)
        """The parser calls C: no Python frame for a header. (`__setitem__` itself would be called by a longer way.)"""
        self._barren = 0
        """Bytes since the body last grew. It bounds heads, trailers and chunk extensions alike."""
        self._silent = True
        self._keep = False
        self._paused = False
        self._released = False
        self._bodiless = False
        self._interim = False
        self._interims = 0
        self._inflate: _Inflate | None = None
        self._refusal: UpstreamError | None = None
        self._parser = httptools.HttpResponseParser(self)

    def begin(self, head: bytes, body: bytes, reused: bool) -> Response:
        """Writes the request. Await `wait` until the response has its status or its error."""
        self._response = response = Response(self, reused)
        self._silent = True
        self._barren = self._interims = 0
        self._fields.clear()
        self._bodiless = head.startswith(b"HEAD ")
        if len(body) <= ONE_WRITE_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)
        return response

    def wait(self, deadline: float) -> asyncio.Future[None]:
        """Resolves at the head, at the next bytes of the body (the end, if the whole was asked for), or at an error."""
        self.deadline = deadline
        self._waiter = waiter = self._loop.create_future()
        return waiter

    def check(self, now: float) -> None:
        """Called by the pool's ticker: fails what is overdue."""
        response = self._response
        if response is None or self.deadline > now:
            return
        if self._released or now > self.deadline + ABANDONED_SECONDS:
            self.hang_up()
        elif self._waiter is None:
            return
        elif response.status:
            self._finish(timed_out(self.origin, "stopped sending its answer for longer than the deadline.", sent=True))
        else:
            self._finish(timed_out(self.origin, "did not begin an answer before the deadline.", sent=True))

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            if not self.closed:
                self._transport.resume_reading()

    def release(self) -> None:
        self._released = True
        self.deadline = self._pool.now() + RELEASE_SECONDS
        self.resume()

    def hang_up(self) -> None:
        if self._response is not None:
            self._finish(StreamTruncated(f"The answer of {self.origin} was hung up on before its end."))

    def shut(self, error: UpstreamError) -> None:
        """The pool is closing: ends it in whatever state it is."""
        if self._response is not None:
            self._finish(error)
        self.abort()

    def abort(self) -> None:
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        response = self._response
        if response is None:
            # Nobody asked: what it says would be taken for the answer to the next request.
            self._pool.forget(self)
            self.abort()
            return
        self._silent = False
        self._barren += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._keep = False
            if not response.complete:
                what = f"sent something that is not an HTTP/1.1 answer: {error}."
                self._finish(self._refusal or bad_response(self.origin, what))
                return
        if response.complete:
            self._finish(None)
        elif self._barren > MAX_HEAD_BYTES:
            self._finish(_head_too_large(self.origin))
        elif self._released:
            response.parts.clear()
            if response.unread > MAX_UNREAD_BYTES:
                self.hang_up()
        elif not response.whole:
            if self._waiter is not None:
                if response.parts:
                    self._wake()
            elif response.unread > MAX_UNREAD_BYTES and not self._paused:
                self._paused = True
                self._transport.pause_reading()

    def eof_received(self) -> None:
        self._ended(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended(exc)
        self._pool.lost(self)
        # The parser holds our bound methods; without this only the garbage collector would free the pair.
        del self._parser

    def on_message_begin(self) -> None:
        if self._response is None or self._response.complete:
            raise ValueError("bytes after the end of the body")

    def on_headers_complete(self) -> None:
        response = cast(Response, self._response)
        status: int = self._parser.get_status_code()
        fields = self._fields
        if status < 200:
            self._interims += 1
            if status < 102 and status != 100:
                self._refuse(bad_response(self.origin, f"answered with HTTP {status}, which nobody asked for."))
            if self._interims > MAX_INTERIM_RESPONSES:
                self._refuse(bad_response(self.origin, "sent interim (1xx) answers without end."))
            self._interim = True
            fields.clear()
            return
        if len(fields) > MAX_HEADERS or (
            self._barren > MAX_HEAD_BYTES and sum(map(len, fields)) + sum(map(len, fields.values())) > MAX_HEAD_BYTES
        ):
            self._refuse(_head_too_large(self.origin))
        response.fields = fields.copy()
        marks = _marks(tuple(fields))
        self._keep = self._parser.should_keep_alive()
        if not self._keep:
            response.delimited = marks.delimit or self._bodiless or status in (204, 304)
        if marks.connection and self._parser.get_http_version() != "1.1":
            self._keep = False
        if marks.transfer is not None and fields[marks.transfer].rstrip(b" \t").lower() != b"chunked":
            self._refuse(bad_response(self.origin, "sent its answer in a transfer coding that was not asked for."))
        if marks.coding is not None:
            self._expect_coding(fields[marks.coding].rstrip(b" \t").lower())
        if self._bodiless:
            # The parser cannot know, and would wait for the body that the head announces.
            self._keep = False
            response.complete = True
        response.status = status
        self._wake()

    def on_body(self, data: bytes) -> None:
        response = cast(Response, self._response)
        self._barren = 0
        size = len(data)
        response.size += size
        if self._inflate is not None:
            data = self._inflated(self._inflate, data)
            size = len(data)
            response.size += size
        if response.size > self._max_bytes:
            what = (
                f"sent an answer of more than {self._max_bytes} bytes; provider setting max_response_bytes allows more."
            )
            self._refuse(bad_response(self.origin, what, "upstream_response_too_large"))
        if size:
            response.unread += size
            response.parts.append(data)

    def on_message_complete(self) -> None:
        if self._interim:
            self._interim = False
            return
        if self._inflate is not None and not self._inflate.whole:
            self._refuse(StreamTruncated(f"The compressed answer of {self.origin} ended before its own end."))
        cast(Response, self._response).complete = True

    def _expect_coding(self, coding: bytes) -> None:
        if coding in (b"gzip", b"x-gzip", b"deflate"):
            self._inflate = _Inflate()
        elif coding not in (b"identity", b""):
            self._refuse(bad_response(self.origin, "sent its answer in a content encoding that was not asked for."))

    def _inflated(self, inflate: _Inflate, data: bytes) -> bytes:
        try:
            return inflate.feed(data)
        except zlib.error:
            self._refuse(bad_response(self.origin, "sent a compressed answer that does not decompress."))

    def _refuse(self, error: UpstreamError) -> NoReturn:
        """Stops the parser: its caller finds the error in `_refusal`."""
        self._refusal = error
        raise error

    def _ended(self, exc: Exception | None) -> None:
        """The peer is gone, or has said that it will send no more."""
        response = self._response
        self._pool.forget(self)
        self.abort()
        if response is None:
            return
        if not response.status:
            response.stale = self._silent and response.reused
            what = "closed the connection before it answered" + (f" ({exc})." if exc else ".")
            self._finish(bad_response(self.origin, what, "upstream_disconnected"))
        elif response.delimited or exc is not None or (self._inflate is not None and not self._inflate.whole):
            self._finish(StreamTruncated(f"{self.origin} closed the connection before the end of its answer."))
        else:
            response.complete = True
            self._finish(None)

    def _finish(self, error: UpstreamError | None) -> None:
        """The one way out of busy: keeps the connection if nothing at all is amiss."""
        response = cast(Response, self._response)
        self._response = None
        response.connection = None
        response.error = error
        reusable = error is None and self._keep and not self.closed and not self._transport.get_write_buffer_size()
        if self._paused or self._released or self._inflate is not None:
            self.resume()
            self._released = False
            self._inflate = None
        if not reusable:
            self.abort()
        self._pool.give_back(self, reusable)
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)


class _Inflate:
    """gzip or zlib, with a bound on what one step may become."""

    __slots__ = ("_stream",)

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(wbits=47)

    @property
    def whole(self) -> bool:
        return self._stream.eof

    def feed(self, data: bytes) -> bytes:
        out = self._stream.decompress(data, MAX_INFLATED_STEP_BYTES)
        if self._stream.unconsumed_tail:
            raise zlib.error("inflates out of proportion")
        return out


class _Marks(msgspec.Struct, frozen=True):
    """What of a head says how its body is to be read: whether it is there, or its name as it came."""

    connection: bool
    delimit: bool
    transfer: bytes | None
    coding: bytes | None


@lru_cache(maxsize=256)
def _marks(names: tuple[bytes, ...]) -> _Marks:
    """By all names of a head, which are the same in almost all answers of a provider."""
    known = {name.lower(): name for name in names}
    return _Marks(
        b"connection" in known,
        b"content-length" in known or b"transfer-encoding" in known,
        known.get(b"transfer-encoding"),
        known.get(b"content-encoding"),
    )


def _head_too_large(origin: Origin) -> UpstreamError:
    what = f"sent more than {MAX_HEADERS} headers or {MAX_HEAD_BYTES} bytes of them."
    return bad_response(origin, what, "upstream_head_too_large")
