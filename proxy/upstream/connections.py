"""
The pool of connections to one provider. It never dies: what it counts is counted in one place and given back once.

No redirect is followed, no cookie kept, no proxy setting of the environment read. Requests wait for a connection in our
own line; a caller that is cancelled loses its connection and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from proxy.errors import UpstreamError
from proxy.upstream.origin import Origin, timed_out, unreachable
from proxy.upstream.resolver import Resolver
from proxy.upstream.response import Response
from proxy.upstream.wire import Connection

__all__ = ["Origin", "Pool", "Response"]

log = logging.getLogger("strata.upstream")

TICK_SECONDS = 0.25
MAX_WAITING = 4096
KEEPALIVE_PROBE_SECONDS = 60
CLOSE_SECONDS = 5.0


class _Turn(NamedTuple):
    """A place in the line for a connection."""

    called: asyncio.Future[None]
    origin: Origin
    deadline: float
    sent: bool


class Pool:
    """
    At most `max_connections` at a time, kept for `idle_seconds` after use, newest first. `clock` gives the values that
    deadlines are compared with; they are checked every TICK_SECONDS. Use it on one event loop.
    """

    def __init__(
        self,
        *,
        max_connections: int = 256,
        max_response_bytes: int = 64_000_000,
        ssl_context: ssl.SSLContext | None = None,
        idle_seconds: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
        resolver: Resolver | None = None,
    ) -> None:
        self._max_connections = max_connections
        self._max_response_bytes = max_response_bytes
        self._ssl_context = ssl_context
        self._idle_seconds = idle_seconds
        self._clock = clock
        self._resolver = resolver or Resolver(clock)
        self._active = 0
        """Requests that hold a place: connecting or under way."""
        self._idle: dict[Origin, list[Connection]] = {}
        self._connections: set[Connection] = set()
        self._waiting: deque[_Turn] = deque()
        self._connecting: set[asyncio.Timeout] = set()
        self._ticker: asyncio.TimerHandle | None = None
        self._ticked_at = 0.0
        self._closed = False
        self._emptied = asyncio.Event()

    @property
    def active(self) -> int:
        return self._active

    @property
    def idle(self) -> int:
        return sum(map(len, self._idle.values()))

    @property
    def waiting(self) -> int:
        return sum(not turn.called.done() for turn in self._waiting)

    async def send(
        self, origin: Origin, head: bytes, body: bytes, *, connect_seconds: float, deadline: float
    ) -> Response:
        """
        Sends one request and waits for the head of its answer. `head` is complete, with its blank line. A reused
        connection that turns out to be dead before any byte came back is replaced once by a fresh one. Raises
        UpstreamError; its `sent` is False only if no byte can have left.
        """
        sent = False
        while True:
            if self._active < self._max_connections:
                self._active += 1
            else:
                await self._turn(origin, deadline, sent)
            idle = self._idle.get(origin)
            if idle and not sent:
                connection = idle.pop()
                reused = True
            else:
                connection = await self._connect(origin, connect_seconds, deadline, sent)
                reused = False
            response = connection.begin(head, body, reused)
            try:
                if response.connection is not None:
                    await connection.wait(deadline)
            except asyncio.CancelledError:
                response.close()
                raise
            if response.status:
                return response
            sent = True
            if not response.stale:
                raise response.error or self._closing(origin, sent)

    async def close(self) -> None:
        """Ends every connection, request and wait. When it returns no socket is left."""
        self._closed = True
        self._max_connections = 0  # so that `send` goes to the line, which turns it away
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None
        for bound in self._connecting:
            if not bound.expired():
                bound.reschedule(0)
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.called.done():
                turn.called.set_exception(self._closing(turn.origin, turn.sent))
        for connection in list(self._connections):
            connection.shut(self._closing(connection.origin, True))
        await self._resolver.close()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                self._note_empty()
                await self._emptied.wait()
        except TimeoutError:
            log.warning(
                "%d connections to a provider were still closing when we stopped waiting", len(self._connections)
            )

    def now(self) -> float:
        return self._clock()

    def lost(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._note_empty()

    def forget(self, connection: Connection) -> None:
        """A connection that is not to be used again, if it was idle."""
        idle = self._idle.get(connection.origin)
        if idle and connection in idle:
            idle.remove(connection)
            if not idle:
                del self._idle[connection.origin]

    def give_back(self, connection: Connection, reusable: bool) -> None:
        if reusable:
            connection.idle_since = self._ticked_at
            idle = self._idle.get(connection.origin)
            if idle is None:
                self._idle[connection.origin] = [connection]
            else:
                idle.append(connection)
        self._free()

    def _free(self) -> None:
        """One place less is taken, or goes to the first in the line."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.called.done():
                turn.called.set_result(None)
                return
        self._active -= 1
        self._note_empty()

    def _note_empty(self) -> None:
        if self._closed and not self._connections and not self._active:
            self._emptied.set()

    async def _turn(self, origin: Origin, deadline: float, sent: bool) -> None:
        if self._closed:
            raise self._closing(origin, sent)
        if len(self._waiting) >= MAX_WAITING:
            raise self._crowded(origin, sent)
        turn = _Turn(asyncio.get_running_loop().create_future(), origin, deadline, sent)
        self._waiting.append(turn)
        self._start_ticker()
        try:
            await turn.called
        except asyncio.CancelledError:
            if turn.called.done() and not turn.called.cancelled() and turn.called.exception() is None:
                self._free()
            raise
        if deadline <= self._clock():
            self._free()
            raise self._crowded(origin, sent)

    async def _connect(self, origin: Origin, connect_seconds: float, deadline: float, sent: bool) -> Connection:
        """A fresh connection for a place already held; the place is free again if there is none."""
        seconds = min(connect_seconds, deadline - self._clock())
        try:
            if seconds <= 0:
                raise timed_out(origin, "was not contacted: the deadline had already passed.", sent=sent)
            if self.idle + self._active > self._max_connections:
                self._evict()
            self._start_ticker()
            bound = asyncio.timeout(seconds)
            async with bound:
                self._connecting.add(bound)
                try:
                    connection = await self._dial(origin, seconds)
                finally:
                    self._connecting.discard(bound)
            if self._closed:
                connection.abort()
            if connection.closed:
                raise ConnectionAbortedError("closed at once")
            return connection
        except BaseException as error:
            self._free()
            if self._closed and isinstance(error, OSError):
                raise self._closing(origin, sent) from error
            if isinstance(error, TimeoutError) and seconds < connect_seconds:
                raise timed_out(origin, "could not be reached before the request's own deadline.", sent=sent) from error
            if isinstance(error, TimeoutError):
                what = f"could not be reached within {seconds:.3g} s. Check the provider's address and the network."
                raise unreachable(origin, what, sent=sent) from error
            if isinstance(error, OSError | UnicodeError):
                raise unreachable(origin, _why(error), sent=sent) from error
            raise

    async def _dial(self, origin: Origin, seconds: float) -> Connection:
        """Tries the addresses in turn; each but the last has only its share of the time that is left."""
        loop = asyncio.get_running_loop()
        context = None
        if origin.scheme == "https":
            context = self._ssl_context or _system_context()
        ends_at = self._clock() + seconds
        addresses = await self._resolver.resolve(origin.host)
        for index, address in enumerate(addresses):
            left = len(addresses) - index
            try:
                async with asyncio.timeout((ends_at - self._clock()) / left if left > 1 else None):
                    transport, connection = await loop.create_connection(
                        lambda: Connection(self, origin, self._max_response_bytes, loop),
                        address,
                        origin.port,
                        ssl=context,
                        server_hostname=origin.host if context is not None else None,
                    )
            except OSError:
                if left == 1:
                    raise
                continue
            # Only now: a connect that uvloop ends after `connection_made` never hears `connection_lost`.
            if not connection.closed:
                self._connections.add(connection)
                _probe(transport)
            if index:
                self._resolver.prefer(origin.host, address)
            return connection
        raise OSError("it has no address")

    def _evict(self) -> None:
        """Makes room for an origin by closing the longest unused connection to any."""
        oldest = min((idle[0] for idle in self._idle.values() if idle), key=lambda c: c.idle_since, default=None)
        if oldest is not None:
            self.forget(oldest)
            oldest.abort()

    def _start_ticker(self) -> None:
        if self._ticker is None and not self._closed:
            self._ticked_at = self._clock()
            self._ticker = asyncio.get_running_loop().call_later(TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        self._ticker = None
        now = self._clock()
        for connection in list(self._connections):
            connection.check(now)
        for origin, idle in list(self._idle.items()):
            while idle and idle[0].idle_since + self._idle_seconds <= now:
                oldest = idle[0]
                self.forget(oldest)
                oldest.abort()
            if not idle:  # its last connection was taken and did not come back
                self._idle.pop(origin, None)
        overdue = [turn for turn in self._waiting if turn.deadline <= now]
        if overdue:
            self._waiting = deque(turn for turn in self._waiting if turn.deadline > now)
        for turn in overdue:
            if not turn.called.done():
                turn.called.set_exception(self._crowded(turn.origin, turn.sent))
        if self._connections or self._waiting or self._active:
            self._start_ticker()
        self._ticked_at = now

    def _crowded(self, origin: Origin, sent: bool) -> UpstreamError:
        return UpstreamError(
            f"All {self._max_connections} connections to {origin} were busy; raise the provider's max_connections.",
            status=503,
            code="upstream_busy",
            error_type="provider_overloaded",
            rest=False,
            sent=sent,
        )

    def _closing(self, origin: Origin, sent: bool) -> UpstreamError:
        return unreachable(origin, "was let go because the gateway is shutting down.", sent=sent)


@cache
def _system_context() -> ssl.SSLContext:
    """Reads the system's certificates, which takes tens of milliseconds: once a process, at the first TLS provider."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _probe(transport: asyncio.BaseTransport) -> None:
    """TCP keep-alive: a long silent answer is else forgotten by the NAT on its way."""
    connected = transport.get_extra_info("socket")
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_PROBE_SECONDS)


def _why(error: OSError | UnicodeError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"has a TLS certificate that is not trusted ({error.verify_message}). Check the address, "
            "or add its authority to the system's certificates."
        )
    if isinstance(error, ssl.SSLError):
        return f"could not agree on TLS ({error.reason or 'handshake failed'}). Check that the address speaks https."
    if isinstance(error, socket.gaierror | UnicodeError):
        return "has a host name that could not be resolved. Check the provider's address and DNS."
    reason = os.strerror(error.errno) if error.errno else str(error) or type(error).__name__
    return f"could not be reached ({reason}). Check the provider's address and that it is up."
