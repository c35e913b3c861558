"""
uvicorn's httptools protocol with the guards it lacks, and a short way for the hot routes.

httptools alone limits no header, accepts none or two Hosts and coded bodies, and uvicorn sets no deadline on a head
or a body; each guard here pins one of these. A POST to a hot route becomes a `LaneRequest`; everything else goes on
to Starlette through ASGI.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, cast

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from proxy.edge.door import Door
from proxy.edge.heads import (
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    Head,
    PlainHead,
    check_target,
    head_too_large,
    no_upgrade,
    only_chunked,
    overloaded,
    read_head,
    read_plain,
)
from proxy.edge.lane import LaneRequest, Story
from proxy.edge.replies import error_body, error_headers, lines, new_request_id
from proxy.edge.unread import Unread
from proxy.errors import CallerError, GatewayError

LINGER_SECONDS = 2.0
MAX_LINGER_BYTES = 64_000_000


def protocol_class(door: Door) -> type[GatewayProtocol]:
    """The class to give to uvicorn's Config; uvicorn makes the instances, so the door rides on the class."""
    return cast("type[GatewayProtocol]", type("BoundGatewayProtocol", (GatewayProtocol,), {"door": door}))


class GatewayProtocol(HttpToolsProtocol):
    door: Door

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.refusal: GatewayError | None = None
        self._head_bytes = 0
        self._in_head = True
        self._waiting_since = self.loop.time()
        self._barren_bytes = 0
        """Since the body last grew: trailers, extensions of chunks, empty lines between requests."""
        self._unread = Unread()
        self._lingered_bytes = 0
        self._between = True
        """Nothing of the next message has been read yet."""
        self._plain: PlainHead | None = None
        """The last plain head of a hot request on this connection."""
        self._body_missing = 0
        """Of a plain message, how many bytes are still to come."""
        self._lane: LaneRequest | None = None
        """The lane request whose body is arriving."""
        self._told: LaneRequest | None = None
        """The lane request whose story is running."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.door.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.door.connections.discard(self)
        for waiting in (self._lane, *(queued for queued, _ in self.pipeline)):
            if isinstance(waiting, LaneRequest):
                waiting.release()
        self.pipeline.clear()
        if self._told is not None and not self._told.response_complete:
            self._told.left()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.refusal is not None:
            return self._linger(data)
        if self.timeout_keep_alive_task is not None:
            self._unset_keepalive_if_required()
        if self._body_missing:
            try:
                self._take_body(data)
            except GatewayError as error:
                self._body_missing = 0
                self.refuse(error)
            return
        try:
            if not self._between or not self._take_plain(data):
                if self._in_head:
                    self._head_bytes += len(data)
                else:
                    self._barren_bytes += len(data)
                self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.refuse(no_upgrade())
        except httptools.HttpParserError as error:
            cause = error.__context__
            if isinstance(cause, GatewayError):
                self.refuse(cause)
            elif self.refusal is None:
                self.refuse(CallerError("This is not a well-formed HTTP/1.1 request.", code="invalid_http"))
        else:
            if (self._head_bytes if self._in_head else self._barren_bytes) > MAX_HEAD_BYTES:
                self.refuse(head_too_large())

    def _take_plain(self, data: bytes) -> bool:
        """Begins a hot request whose head is plain and all here; False: it is none, or there is more than that one."""
        plain = self._plain
        body = plain.find_body(data) if plain is not None else None
        if plain is None or body is None:
            plain = self._plain = self._read_plain(data)
            body = plain.find_body(data) if plain is not None else None
            if plain is None or body is None:
                return False
        start, size = body
        missing = start + size - len(data)
        if missing < 0 or size > self.door.max_body_bytes:
            return False
        self.expect_100_continue = self._in_head = False
        self._head_bytes = 0
        self._waiting_since = self.loop.time()
        lane = self._enter_lane(self.door.hot[plain.target], plain.head, plain.keep_alive)
        lane.body = data[start:]
        self._body_missing = missing
        if not missing:
            self.on_message_complete()
        return True

    def _read_plain(self, data: bytes) -> PlainHead | None:
        plain = read_plain(data)
        if plain is None or plain.target not in self.door.hot:
            return None
        with contextlib.suppress(CallerError):  # the long way refuses it
            plain.head = read_head(plain.headers, self.door.max_body_bytes)
            if self.door.hosts is not None:
                self.door.hosts.check(plain.head.host)
            return plain
        return None

    def _take_body(self, data: bytes) -> None:
        """More of the body of a plain message, and perhaps of what follows it."""
        body, rest = data[: self._body_missing], data[self._body_missing :]
        self._body_missing -= len(body)
        self.on_body(body)
        if not self._body_missing:
            self.on_message_complete()
        if rest:
            self.data_received(rest)

    def refuse(self, error: GatewayError) -> None:
        """Answers a request that is not to be read any further, and closes: what follows cannot be trusted."""
        if self.refusal is not None or self.transport.is_closing():
            return
        self.refusal = error
        if self._lane is not None:
            self._lane.release()
        running: Any = self._told or self.cycle
        if running is None or running.response_complete or running is cast(Any, self._lane):
            self._write_refusal(error)
        elif isinstance(running, LaneRequest):
            # an earlier answer is on its way on this connection; nothing may come between its parts
            running.keep_alive = False
            self.flow.pause_reading()
        else:
            self.transport.close()

    def _write_refusal(self, error: GatewayError) -> None:
        body = error_body(error)
        head = lines(error_headers(error, new_request_id())) + self._extra()
        status = STATUS_LINE[error.status]
        self.transport.write(b"%bconnection: close\r\n%bcontent-length: %d\r\n\r\n%b" % (status, head, len(body), body))
        # Closing a socket with unread bytes resets it, and the client would never see why it was refused.
        self._waiting_since = self.loop.time()
        self._lingered_bytes = 0
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    def _extra(self) -> bytes:
        """What a browser wants to know of a request that is refused in its middle."""
        if self.door.origins is None:
            return b""
        if self._lane is not None:
            return self._lane.extra
        headers: list[tuple[bytes, bytes]] = self.headers or []
        return self.door.origins.lines(next((value for name, value in headers if name == b"origin"), b""))

    def _linger(self, data: bytes) -> None:
        self._lingered_bytes += len(data)
        if self._lingered_bytes > MAX_LINGER_BYTES:
            self.transport.close()

    def on_message_begin(self) -> None:
        self.url = b""
        self.expect_100_continue = False
        self.headers = []
        self._between = False
        self._in_head = True
        self._head_bytes = max(self._head_bytes, 1)
        self._barren_bytes = 0
        self._waiting_since = self.loop.time()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # a trailer comes behind the body, where nobody in front of us has looked: it counts for nothing
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        head_bytes, self._head_bytes = self._head_bytes, 0
        headers = self.headers
        if len(headers) > MAX_HEADERS or (
            head_bytes > MAX_HEAD_BYTES and sum(len(name) + len(value) for name, value in headers) > MAX_HEAD_BYTES
        ):
            raise head_too_large()
        head = read_head(headers, self.door.max_body_bytes)
        if self.parser.should_upgrade():  # before anybody works on it: httptools says so only when the head is over
            raise no_upgrade()
        if head.chunked and self.parser.get_http_version() == "1.0":
            raise only_chunked()
        self.expect_100_continue = head.expects
        story = self.door.hot.get(self.url)
        if story is None:
            check_target(self.url)
            story = self.door.hot.get(self.url.partition(b"?")[0])
        if story is None or self.parser.get_method() != b"POST":
            self._lane = None
            self._enter_asgi()
        else:
            if self.door.hosts is not None:
                self.door.hosts.check(head.host)
            if head.expects:  # who waits for our word is told before he sends a body for nothing
                self.door.recognise(head.credentials)
            chunked = self.parser.get_http_version() == "1.1"
            self._enter_lane(story, head, chunked and self.parser.should_keep_alive()).chunked = chunked

    def on_body(self, body: bytes) -> None:
        self._barren_bytes = 0
        lane = self._lane
        if lane is None:
            super().on_body(body)
            return
        lane.take(body)

    def on_message_complete(self) -> None:
        self._between = True
        self._barren_bytes = 0
        lane = self._lane
        if lane is None:
            super().on_message_complete()
            return
        lane.more_body = False
        self._lane = None
        if not self.pipeline or all(cast(Any, queued) is not lane for queued, _ in self.pipeline):
            self._tell(lane)

    def client_address(self, head: Head) -> str:
        peer = self.client[0] if self.client else ""
        if self.door.proxies is None or not head.forwarded_for:
            return peer
        return self.door.proxies.client_behind(peer, head.forwarded_for)

    def answered(self, lane: LaneRequest) -> None:
        """A lane request has its answer: what uvicorn does at the end of its own cycle, without a timer a request."""
        self._told = None
        if self.transport.is_closing():
            return
        if not lane.keep_alive:
            return self.transport.close()
        self._waiting_since = self.loop.time()
        self.server_state.total_requests += 1
        self.flow.resume_reading()
        if self.pipeline:
            queued, app = self.pipeline.pop()
            self._start_asgi_task(queued, app)

    def check_deadlines(self, now: float) -> None:
        """Hangs up on a connection that keeps us waiting: for a head, a body, or for our answer to be read."""
        door = self.door
        lane = self._told
        if lane is None:  # what follows an answer that is being given has time until it is its turn
            self._check_reading(now - self._waiting_since)
        if self.flow.write_paused or self.transport.is_closing():
            if self._unread.stands_still(self.transport, now, door.write_timeout_seconds):
                self.transport.abort()
            return
        self._unread.is_read()
        if lane is not None and lane.keepalive_head:
            silent_since = max(lane.written_at, self._waiting_since)
            if 0 < door.keepalive_seconds < now - silent_since:
                lane.keep_alive_comment()

    def _check_reading(self, waited: float) -> None:
        door, cycle = self.door, self.cycle
        if self.refusal is not None:
            if waited > LINGER_SECONDS:
                self.transport.close()
        elif (cycle is None or cycle.response_complete) and self._head_bytes == 0:
            if waited > (door.idle_timeout_seconds if cycle is not None else door.header_timeout_seconds):
                self.transport.close()
        elif self._in_head:
            if waited > door.header_timeout_seconds:
                self.refuse(CallerError("The head of this request did not arrive in time.", status=408, code="timeout"))
        elif cycle is not None and cycle.more_body and waited > door.body_timeout_seconds:
            self.refuse(CallerError("The body of this request did not arrive in time.", status=408, code="timeout"))

    def _enter_asgi(self) -> None:
        headers, url, expects = self.headers, self.url, self.expect_100_continue
        super().on_message_begin()
        self.scope["headers"] = self.headers = headers
        if self.door.proxies is not None:
            self.door.proxies.correct(cast("dict[str, Any]", self.scope))
        self.url = url
        self.expect_100_continue = expects
        super().on_headers_complete()

    def _enter_lane(self, story: Story, head: Head, keep_alive: bool) -> LaneRequest:
        lane = LaneRequest(self, story, head, keep_alive)
        if self.door.origins is not None:
            lane.extra = self.door.origins.lines(head.origin)
        before = self.cycle
        self._lane = lane
        self.cycle = cast(RequestResponseCycle, lane)
        if before is not None and not before.response_complete:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, cast(Any, story)))
        elif self.expect_100_continue:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return lane

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if not isinstance(cycle, LaneRequest):
            super()._start_asgi_task(cycle, app)
        elif not cycle.more_body:
            self._tell(cycle)

    def _tell(self, lane: LaneRequest) -> None:
        self._told = lane
        self.tasks.add(self.loop.create_task(self._story(lane)))

    async def _story(self, lane: LaneRequest) -> None:
        door = self.door
        door.in_flight += 1
        try:
            if door.in_flight > door.max_in_flight:
                lane.refuse(overloaded())
            else:
                await lane.story(lane)
        finally:
            door.in_flight -= 1
            lane.release()
            # Here and not in a done callback, which would be one more turn of the event loop for each request.
            self.tasks.discard(cast("asyncio.Task[None]", asyncio.current_task()))
            if not lane.response_complete and not lane.disconnected:
                self.transport.close()
