"""
A provider that misbehaves by script: a raw TCP server, and one function for each way to be wrong.

A behaviour gets one `Peer` for each connection and plays its part; when it returns, the connection is closed cleanly.
"""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import count

from proxy.upstream.connections import Origin

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Peer:
    """One accepted connection. `number` counts them from 1."""

    def __init__(self, upstream: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = upstream.connections
        self._upstream = upstream
        self._reader = reader
        self._writer = writer

    async def request(self) -> bytes:
        """Reads a whole request, and remembers it."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        whole = head + await self._reader.readexactly(length)
        self._upstream.requests.append(whole)
        return whole

    async def send(self, *pieces: bytes, pause_seconds: float = 0.0) -> None:
        for piece in pieces:
            self._writer.write(piece)
            await self._writer.drain()
            if pause_seconds:
                await asyncio.sleep(pause_seconds)

    async def gone(self) -> None:
        """Waits until the other side has closed."""
        while await self._reader.read(65536):
            pass

    def reset(self) -> None:
        """RST instead of FIN."""
        connected = self._writer.get_extra_info("socket")
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


Behaviour = Callable[[Peer], Awaitable[None]]


class Upstream:
    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.connections = 0
        self.open = 0
        self.requests: list[bytes] = []
        self.origin = Origin("http", "127.0.0.1", 0)
        self._playing: set[asyncio.Task[None]] = set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._playing.add(task)
        self.connections += 1
        self.open += 1
        try:
            await self.behaviour(Peer(self, reader, writer))
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        except RuntimeError:
            if not writer.is_closing() and "closed" not in repr(writer.transport):  # uvloop's word for a broken pipe
                raise
        finally:
            self.open -= 1
            self._playing.discard(task)
            writer.close()

    async def stop(self) -> None:
        for task in list(self._playing):
            task.cancel()
        if self._playing:
            await asyncio.wait(list(self._playing))


@asynccontextmanager
async def serving(
    behaviour: Behaviour, *, tls: ssl.SSLContext | None = None, listener: socket.socket | None = None
) -> AsyncIterator[Upstream]:
    upstream = Upstream(behaviour)
    if listener is None:
        server = await asyncio.start_server(upstream.accept, "127.0.0.1", 0, ssl=tls)
    else:
        server = await asyncio.start_server(upstream.accept, sock=listener)
    port = server.sockets[0].getsockname()[1]
    upstream.origin = Origin("https" if tls else "http", "localhost" if tls else "127.0.0.1", port)
    try:
        yield upstream
    finally:
        server.close()
        await upstream.stop()
        await server.wait_closed()


def answering(*pieces: bytes, then: Behaviour | None = None, pause_seconds: float = 0.0) -> Behaviour:
    """Reads one request, sends this, and closes; or goes on with `then`."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(*pieces, pause_seconds=pause_seconds)
        if then is not None:
            await then(peer)

    return behave


def keeping(answer: bytes | Sequence[bytes]) -> Behaviour:
    """A keep-alive server that always gives this answer, in one piece or in several."""
    pieces = [answer] if isinstance(answer, bytes) else answer

    async def behave(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(*pieces, pause_seconds=0.001 if len(pieces) > 1 else 0.0)

    return behave


async def healthy(peer: Peer) -> None:
    await keeping(OK)(peer)


async def stay(peer: Peer) -> None:
    """Says nothing more, and does not close."""
    await peer.gone()


async def reset(peer: Peer) -> None:
    peer.reset()


async def never_answer(peer: Peer) -> None:
    await peer.request()
    await stay(peer)


async def never_read(peer: Peer) -> None:
    """Accepts, and that is all."""
    await asyncio.sleep(3600)


async def reset_before_first_byte(peer: Peer) -> None:
    await peer.request()
    peer.reset()


async def refuse_early(peer: Peer) -> None:
    """Answers a large upload before it has read it, and reads no more."""
    await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
    await asyncio.sleep(3600)


async def speak_first(peer: Peer) -> None:
    await peer.send(b"SSH-2.0-OpenSSH_9.2\r\n")
    await stay(peer)


async def die_on_the_second(peer: Peer) -> None:
    """Keeps the connection alive, takes the second request on it, and closes without a word."""
    await peer.request()
    await peer.send(OK)
    await peer.request()


async def reset_on_the_second(peer: Peer) -> None:
    await die_on_the_second(peer)
    peer.reset()


async def die_in_the_second_head(peer: Peer) -> None:
    await die_on_the_second(peer)
    await peer.send(b"HTTP/1.1 20")


async def ping_for_ever(peer: Peer) -> None:
    await peer.request()
    await peer.send(CHUNKED)
    while True:
        await peer.send(chunk(b": ping\n\n"), pause_seconds=0.02)


async def stream_for_ever(peer: Peer) -> None:
    await peer.request()
    await peer.send(CHUNKED)
    while True:
        await peer.send(chunk(b"data: {}\n\n" * 10), pause_seconds=0.002)


async def flood_interim(peer: Peer) -> None:
    await peer.request()
    while True:
        await peer.send(b"HTTP/1.1 100 Continue\r\n\r\n" * 10)


async def flood_trailers(peer: Peer) -> None:
    await peer.request()
    await peer.send(CHUNKED, chunk(b"x"), b"0\r\n")
    for number in count():
        await peer.send(b"X-%d: %b\r\n" % (number, b"y" * 1000))


async def flood_chunk_extension(peer: Peer) -> None:
    await peer.request()
    await peer.send(CHUNKED, b"1;a=")
    while True:
        await peer.send(b"b" * 10_000)


async def flood_header(peer: Peer) -> None:
    """One header that never ends."""
    await peer.request()
    await peer.send(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        await peer.send(b"z" * 10_000)


def coded(body: bytes, *, coding: bytes = b"gzip") -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Encoding: %b\r\nContent-Length: %d\r\n\r\n%b" % (coding, len(body), body)


def gzip_bomb() -> bytes:
    """194 KB on the wire, 200 MB in memory."""
    return coded(gzip.compress(b"\0" * 200_000_000, 9))
