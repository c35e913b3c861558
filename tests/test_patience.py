"""How long a client may take: not long for what it sends, and as long as it likes for what it reads, if it reads."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from proxy.edge.door import Door
from proxy.edge.lane import LaneRequest, Story
from proxy.edge.protocol import protocol_class
from tests.calling import both_loops

HEAD = b"POST /hot HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n"
WHOLE = HEAD + b"\r\n{}"
SECONDS = 20.0
WAIT_SECONDS = 0.3


async def nothing_else(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("nobody asks for anything else")


@contextlib.asynccontextmanager
async def serving(story: Story) -> AsyncIterator[tuple[Door, int]]:
    """The protocol alone, before a story, with little patience."""
    door = Door(
        hot={b"/hot": story},
        header_timeout_seconds=WAIT_SECONDS,
        body_timeout_seconds=WAIT_SECONDS,
        write_timeout_seconds=WAIT_SECONDS,
    )
    config = uvicorn.Config(nothing_else, http=protocol_class(door), ws="none", lifespan="off", log_config=None)
    config.load()
    state, loop = ServerState(), asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: config.http_protocol_class(config=config, server_state=state, app_state={}),  # type: ignore[call-arg]
        "127.0.0.1",
        0,
    )

    async def tick() -> None:
        while True:
            await asyncio.sleep(0.02)
            door.tick(loop.time())

    ticking = asyncio.create_task(tick())
    try:
        yield door, server.sockets[0].getsockname()[1]
    finally:
        ticking.cancel()
        await asyncio.gather(ticking, return_exceptions=True)
        server.close()
        for connection in list(door.connections):
            connection.transport.abort()
        await asyncio.sleep(0.05)


async def until_closed(door: Door) -> None:
    async with asyncio.timeout(SECONDS):
        while door.connections:
            await asyncio.sleep(0.02)


@both_loops
@pytest.mark.parametrize("rest", [WHOLE[:-1], b"POST /hot HT", b"this is no request\r\n\r\n"])
async def test_what_follows_a_request_does_not_cut_its_answer_off(rest: bytes) -> None:
    async def slowly(lane: LaneRequest) -> None:
        await asyncio.sleep(10 * WAIT_SECONDS)
        lane.respond(200, b"x-told: whole\r\n", b"whole")

    async with serving(slowly) as (door, port), asyncio.timeout(SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(WHOLE)
        await asyncio.sleep(0.05)
        writer.write(rest)
        answer = await reader.readuntil(b"whole\r\n")
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert (await reader.read()).partition(b"whole")[2][:12] in (b"", b"HTTP/1.1 408")
        writer.close()
        await until_closed(door)


@both_loops
async def test_a_client_that_reads_slowly_but_reads_has_all_of_its_answer() -> None:
    body = b"x" * 20_000_000

    async def much(lane: LaneRequest) -> None:
        lane.respond(200, b"", body)

    async with serving(much) as (_, port), asyncio.timeout(SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**16)
        writer.write(WHOLE)
        await reader.readuntil(b"\r\n\r\n")
        read = 0
        while read < len(body):
            piece = await reader.read(400_000)
            assert piece, f"it was hung up on after {read} bytes"
            read += len(piece)
            await asyncio.sleep(len(piece) / 5_000_000)
        writer.close()


@both_loops
@pytest.mark.parametrize("large", [False, True])
async def test_a_client_that_reads_nothing_is_hung_up_on_though_its_answer_is_over(large: bool) -> None:
    async def much_and_goodbye(lane: LaneRequest) -> None:
        if not large:  # as if what is left were too little to be waited for
            lane._protocol.transport.set_write_buffer_limits(high=2**30)
        lane.respond(200, b"", b"x" * 30_000_000)

    async with serving(much_and_goodbye) as (door, port):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(HEAD + b"connection: close\r\n\r\n{}")
        await asyncio.sleep(0.1)
        assert door.connections
        await until_closed(door)
        writer.transport.abort()


async def test_a_client_of_http_1_0_gets_a_stream_without_chunks() -> None:
    async def stream(lane: LaneRequest) -> None:
        lane.start(b"content-type: text/event-stream\r\n")
        lane.write(b"data: 1\n\n")
        lane.finish(b"data: [DONE]\n\n")

    async with serving(stream) as (_, port), asyncio.timeout(SECONDS):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(WHOLE.replace(b"HTTP/1.1", b"HTTP/1.0"))
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert b"transfer-encoding" not in head
        assert body == b"data: 1\n\ndata: [DONE]\n\n"
        writer.close()
