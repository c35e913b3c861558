"""The calling side of the tests of the pool: a pool that must come back to rest, and requests with a secret in them."""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from proxy.errors import UpstreamError
from proxy.upstream.connections import CLOSE_SECONDS, Origin, Pool, Response

HEAD = (
    b"POST /v1/secret-path?key=secret HTTP/1.1\r\n"
    b"host: x\r\nauthorization: Bearer sk-secret\r\ncontent-length: %d\r\n\r\n"
)
BODY = b'{"stream":true}'


def both_loops(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Runs the test on the loop of production, and on the one that Python brings."""

    @functools.wraps(test)
    def run(new_loop: Callable[[], asyncio.AbstractEventLoop], **arguments: object) -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(test(**arguments))

    signature = inspect.signature(test)
    first = inspect.Parameter("new_loop", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    run.__signature__ = signature.replace(parameters=[first, *signature.parameters.values()])  # type: ignore[attr-defined]
    loops = [uvloop.new_event_loop, asyncio.new_event_loop]
    parametrized: Callable[..., None] = pytest.mark.parametrize("new_loop", loops, ids=["uvloop", "asyncio"])(run)
    return parametrized


@asynccontextmanager
async def pooled(**settings: object) -> AsyncIterator[Pool]:
    """A pool that must come back to nothing active and nobody waiting, and close to nothing open."""
    pool = Pool(**settings)  # type: ignore[arg-type]
    try:
        yield pool
        assert (pool.active, pool.waiting) == (0, 0)
    finally:
        started = time.monotonic()
        await pool.close()
        assert time.monotonic() - started < CLOSE_SECONDS, "a connection was waited for that never ended"


async def send(pool: Pool, origin: Origin, body: bytes = BODY, *, seconds: float = 5.0, head: bytes = HEAD) -> Response:
    head = head % len(body) if b"%d" in head else head
    return await pool.send(origin, head, body, connect_seconds=2.0, deadline=time.monotonic() + seconds)


async def ask(pool: Pool, origin: Origin, body: bytes = BODY, *, seconds: float = 5.0) -> bytes:
    response = await send(pool, origin, body, seconds=seconds)
    return await response.read_all(time.monotonic() + seconds)


async def read_in_pieces(response: Response, *, seconds: float = 5.0) -> tuple[bytes, UpstreamError | None]:
    got = b""
    try:
        while data := await response.read(time.monotonic() + seconds):
            got += data
    except UpstreamError as error:
        return got, error
    return got, None


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.01)


def head(*lines: bytes, status: bytes = b"HTTP/1.1 200 OK") -> bytes:
    return b"".join(line + b"\r\n" for line in (status, *lines, b""))
