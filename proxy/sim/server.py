"""
The socket half of the simulated provider: HTTP/1.1 with keep-alive on loopback, one task for each answer being given.
"""

from __future__ import annotations

import asyncio
import http
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import cast

import httptools
import msgspec

from proxy.config import Provider
from proxy.config.presets import SIM_API_BASE
from proxy.sim.replies import Call, Reply, decide, model_in

log = logging.getLogger("strata.sim")

MAX_BODY_BYTES = 64_000_000
MAX_HEAD_BYTES = 65_536
MAX_CONNECTIONS = 1_024
CLOSE_SECONDS = 2.0
REASONS = {status.value: status.phrase for status in http.HTTPStatus}


def located(provider: Provider, port: int) -> Provider:
    """The simulated provider where it is: in this process, at a port known only now. Any other stays as it is."""
    if provider.api_base != SIM_API_BASE:
        return provider
    return msgspec.structs.replace(provider, api_base=f"http://127.0.0.1:{port}/v1")


class SimServer:
    """
    `start` listens on an ephemeral port of 127.0.0.1 and returns it; `close` drops every connection. Both may be called
    once. `clock` is the wall clock, for the `created` field alone.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self.connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._calls: dict[str, int] = {}

    async def start(self, port: int = 0) -> int:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self), "127.0.0.1", port)
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        tasks = [connection.drop() for connection in list(self.connections)]
        running = [task for task in tasks if task is not None]
        if running:
            await asyncio.wait(running, timeout=CLOSE_SECONDS)

    def reply(self, call: Call) -> Reply:
        model = model_in(call.body)[:64]
        ordinal = self._calls.get(model, 0) + 1
        if model in self._calls or len(self._calls) < 64:
            self._calls[model] = ordinal
        return decide(call, ordinal=ordinal, created=int(self.clock()))


class Connection(asyncio.Protocol):
    """One client connection. Requests are answered in turn; reading rests while an answer is being given."""

    def __init__(self, server: SimServer) -> None:
        self.server = server
        self.parser = httptools.HttpRequestParser(self)
        self.transport: asyncio.Transport | None = None
        self.waiting: deque[Call] = deque()
        self.task: asyncio.Task[None] | None = None
        self.writable = asyncio.Event()
        self.writable.set()
        self._begin()

    def _begin(self) -> None:
        self.url = b""
        self.headers: dict[str, str] = {}
        self.body = bytearray()
        self.head_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's own transports are no subclass
        self.server.connections.add(self)
        if len(self.server.connections) > MAX_CONNECTIONS:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.connections.discard(self)
        self.writable.set()
        if self.task is not None:
            self.task.cancel()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.drop()

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.head_bytes += len(name) + len(value)
        if self.head_bytes > MAX_HEAD_BYTES:
            raise ValueError("the head is too large")
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        if len(self.body) + len(body) > MAX_BODY_BYTES:
            raise ValueError("the body is too large")
        self.body += body

    def on_message_complete(self) -> None:
        method = self.parser.get_method().decode("latin-1")
        self.waiting.append(Call(method, self.url.decode("latin-1"), self.headers, bytes(self.body)))
        self._begin()
        if self.transport is not None and not self.transport.is_closing():
            self.transport.pause_reading()
        if self.task is None:
            self._next()

    def _next(self) -> None:
        if self.transport is None or self.transport.is_closing():
            return
        if not self.waiting:
            self.transport.resume_reading()
            return
        self.task = asyncio.get_running_loop().create_task(self._answer(self.waiting.popleft(), self.transport))
        self.task.add_done_callback(self._answered)

    def _answered(self, task: asyncio.Task[None]) -> None:
        self.task = None
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the simulated provider failed: %s", type(error).__name__, exc_info=error)
            self.drop()
            return
        self._next()

    async def _answer(self, call: Call, transport: asyncio.Transport) -> None:
        reply = self.server.reply(call)
        if reply.delay_seconds:
            await asyncio.sleep(reply.delay_seconds)
        if reply.steps is None:
            length = len(reply.body)
            body = reply.body[: length // 2] if reply.cut else reply.body
            transport.write(_head(reply, f"content-length: {length}") + body)
        else:
            transport.write(_head(reply, "transfer-encoding: chunked"))
            for step in reply.steps:
                if step.wait_seconds:
                    await asyncio.sleep(step.wait_seconds)
                await self.writable.wait()
                transport.write(b"%x\r\n%b\r\n" % (len(step.data), step.data))
            if not reply.cut:
                transport.write(b"0\r\n\r\n")
        if reply.cut:
            transport.close()

    def drop(self) -> asyncio.Task[None] | None:
        """Closes at once; gives the answer that was being given, which ends with it."""
        if self.transport is not None:
            self.transport.abort()
        if self.task is not None:
            self.task.cancel()
        return self.task


def _head(reply: Reply, framing: str) -> bytes:
    named = "".join(f"{name}: {value}\r\n" for name, value in reply.headers.items())
    reason = REASONS.get(reply.status, "Unknown")
    return f"HTTP/1.1 {reply.status} {reason}\r\n{named}{framing}\r\n\r\n".encode("latin-1")
