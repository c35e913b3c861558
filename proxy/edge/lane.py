"""
One hot request on one client connection: what came in, and the sink its answer is written to.

It stands where uvicorn keeps its `RequestResponseCycle` and offers the same attributes, so that pipelining,
keep-alive and graceful shutdown stay uvicorn's; but there is no scope, no receive queue and no message dict: 50 to 90
µs a request less than ASGI. A client that leaves is a flag here (`gone`), never an exception and never a
cancellation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from proxy.dialects.openai import encode_error
from proxy.edge.heads import Head, body_too_large, no_room
from proxy.edge.replies import error_body, error_headers, lines, new_request_id
from proxy.errors import GatewayError

if TYPE_CHECKING:
    from proxy.edge.protocol import GatewayProtocol

Story = Callable[["LaneRequest"], Awaitable[None]]

COMMENT = b": keepalive\n\n"
CLOSE = b"connection: close\r\n"
SMALL_BODY_BYTES = 65_536
"""A body up to this is not weighed: how many there are is bounded by the connections."""


class LaneRequest:
    __slots__ = (
        "_protocol",
        "body",
        "chunked",
        "disconnected",
        "extra",
        "head",
        "keep_alive",
        "keepalive_head",
        "message_event",
        "more_body",
        "on_gone",
        "request_id",
        "response_complete",
        "started",
        "story",
        "weight_bytes",
        "written_at",
    )

    def __init__(self, protocol: GatewayProtocol, story: Story, head: Head, keep_alive: bool) -> None:
        self._protocol = protocol
        self.story = story
        self.head = head
        self.keep_alive = keep_alive
        self.chunked = True
        """False for HTTP/1.0, which knows no chunks: there a stream ends with its connection."""
        self.body: bytes | bytearray = b""
        self.extra = b""
        """Header lines that are put on any answer: what a browser wants to know."""
        self.weight_bytes = 0
        """Of its body, what the house has counted."""
        self.more_body = True
        self.request_id = ""
        self.started = False
        self.response_complete = False
        self.disconnected = False
        self.written_at = 0.0
        self.keepalive_head: Callable[[], bytes] | None = None
        """Set while a stream may be kept alive: gives the head to commit to if nothing has been sent by then."""
        self.on_gone: Callable[[], None] | None = None
        self.message_event = _NO_EVENT

    @property
    def gone(self) -> bool:
        return self.disconnected

    @property
    def client(self) -> str:
        """Its address: the peer's, or whom a trusted proxy names."""
        return self._protocol.client_address(self.head)

    @property
    def paused(self) -> bool:
        """The client reads more slowly than we write."""
        return self._protocol.flow.write_paused

    async def drained(self) -> None:
        """Waits until the client has read; the deadline ticker hangs up on one that does not."""
        await self._protocol.flow.drain()

    def take(self, piece: bytes) -> None:
        """
        One more piece of the body. Raises GatewayError for one that is too large, or that there is no room for; and for
        one that is no longer small and comes from somebody who is certainly nobody.
        """
        door, size = self._protocol.door, len(self.body) + len(piece)
        if size > door.max_body_bytes:
            raise body_too_large(door.max_body_bytes)
        if size > SMALL_BODY_BYTES:
            if not self.weight_bytes:
                door.recognise(self.head.credentials)
            more = size - self.weight_bytes
            if door.bodies_bytes + more > door.max_bodies_bytes:
                raise no_room()
            self.weight_bytes = size
            door.bodies_bytes += more
        if type(self.body) is bytes:
            self.body = bytearray(self.body)
        self.body += piece

    def release(self) -> None:
        """Lets its body go, and the room that this took. May be called again."""
        self._protocol.door.bodies_bytes -= self.weight_bytes
        self.weight_bytes = 0
        self.body = b""

    def respond(self, status: int, head: bytes, body: bytes) -> None:
        """A whole answer. `head` is its header lines, each with its CRLF."""
        self.started = True
        close = b"" if self.keep_alive else CLOSE
        self._write(
            b"%b%b%b%bcontent-length: %d\r\n\r\n%b" % (STATUS_LINE[status], head, self.extra, close, len(body), body)
        )
        self._complete()

    def refuse(self, error: GatewayError) -> None:
        """An error answer with its true status, or, once a stream has begun, an error event without [DONE]."""
        if self.response_complete:
            return
        if self.started:
            self.finish(encode_error(error.body()))
            return
        request_id = self.request_id or new_request_id()
        self.respond(error.status, lines(error_headers(error, request_id)), error_body(error))

    def start(self, head: bytes) -> None:
        """The head of a streamed answer; chunked, one write an event. A second call does nothing."""
        if self.started:
            return
        self.started = True
        close = b"" if self.keep_alive else CLOSE
        coding = b"transfer-encoding: chunked\r\n" if self.chunked else b""
        self._write(b"%b%b%b%b%b\r\n" % (STATUS_LINE[200], head, self.extra, close, coding))

    def write(self, data: bytes) -> None:
        self._write(b"%x\r\n%b\r\n" % (len(data), data) if self.chunked else data)

    def finish(self, data: bytes) -> None:
        """The last bytes of a streamed answer, and its end, in one write."""
        if not self.chunked:
            self._write(data)
        else:
            self._write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n")
        self._complete()

    def keep_alive_comment(self) -> None:
        """Called by the ticker when a stream has been silent for long: commits the head, then writes a comment."""
        if self.keepalive_head is None or self.response_complete:
            return
        self.start(self.keepalive_head())
        self.write(COMMENT)

    def left(self) -> None:
        """The connection is lost. What is on its way upstream goes on; it only learns of it."""
        self.disconnected = True
        if self.on_gone is not None:
            self.on_gone()

    def _write(self, data: bytes) -> None:
        if not self.disconnected:
            self.written_at = self._protocol.loop.time()
            self._protocol.transport.write(data)

    def _complete(self) -> None:
        self.response_complete = True
        self.keepalive_head = None
        self.on_gone = None
        self._protocol.answered(self)


class _NoEvent(asyncio.Event):
    """uvicorn wakes a waiting `receive()` by its event; nobody waits here."""

    def set(self) -> None:
        pass


_NO_EVENT = _NoEvent()
