"""Workers of one limit, each with a connection of its own to one Redis, for tests."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from proxy.admission.limits import Limits
from proxy.admission.sharing import Shared
from proxy.admission.strict import Strict
from proxy.admission.turns import Turn
from proxy.config import Deployment, Provider, Secret
from proxy.config import Redis as Settings
from proxy.errors import PolicyError
from proxy.exchange import Attempt, Caller, Exchange, Limit, Usage
from proxy.storage.redis import Redis

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
DEPLOYMENT = Deployment(provider=Provider(name="p", api_base="http://127.0.0.1:9"), model="m")


class Worker:
    def __init__(self, number: int, settings: Settings, clock_off_seconds: float = 0.0) -> None:
        self.redis = Redis(settings)
        kind = Strict if settings.limits == "strict" else Shared
        self.turns = kind(
            Limits(),
            self.redis,
            f"worker-{number}",
            prefix=settings.prefix,
            wall_clock=lambda: time.time() + clock_off_seconds,
        )
        self._run: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self.redis.start()
        self._run = asyncio.create_task(self.turns.run())

    async def until_up(self, up: bool = True) -> None:
        async with asyncio.timeout(10):
            while self.redis.up != up:
                await asyncio.sleep(0.01)

    async def close(self) -> None:
        if self._run is not None:
            self._run.cancel()
            await asyncio.gather(self._run, return_exceptions=True)
        await self.turns.close()
        await self.redis.close()

    async def take(self, *limits: Limit, tokens: int = 1) -> Turn:
        who = Caller("k", "ci", "sk-strata-…", limits=limits)
        return self.turns.take_now(who, limits, "m", "m", tokens) or await self.turns.take(
            who, limits, "m", "m", tokens
        )

    async def passes(self, *limits: Limit, tokens: int = 1) -> bool:
        """Whether a request passes that ends at once."""
        try:
            turn = await self.take(*limits, tokens=tokens)
        except PolicyError:
            return False
        turn.end(finished(tokens))
        return True


@contextlib.asynccontextmanager
async def workers(
    url: str, count: int = 3, *, mode: str = "shares", up: bool = True, clocks_off: float = 0.0, **more: object
) -> AsyncIterator[list[Worker]]:
    settings = Settings(url=Secret(url), limits=mode, **more)  # type: ignore[arg-type]
    made = [Worker(number, settings, number * clocks_off) for number in range(count)]
    try:
        for worker in made:
            await worker.start()
        if up:
            for worker in made:
                await worker.until_up()
            async with asyncio.timeout(10):
                while any(worker.turns.workers != count for worker in made):
                    await asyncio.sleep(0.05)
        yield made
    finally:
        for worker in made:
            await worker.close()


def finished(tokens: int) -> Exchange:
    attempt = Attempt(1, DEPLOYMENT, 0, usage=Usage(input=tokens))
    return Exchange(bytes(16), "req_1", "chat", 0, 0, attempts=[attempt])


@contextlib.asynccontextmanager
async def listening(serve: Serve) -> AsyncIterator[int]:
    """A port. Whoever is still being served at the end is let go, and no socket is left for the collector."""
    served: set[asyncio.Task[None]] = set()

    async def serve_and_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.add(asyncio.create_task(serve_and_close(reader, writer)))

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            for task in served:
                task.cancel()
            await asyncio.gather(*served, return_exceptions=True)
            await asyncio.sleep(0)  # what was closed is gone in the loop's next turn


@contextlib.asynccontextmanager
async def between(port: int, delay_seconds: float) -> AsyncIterator[int]:
    """A port that leads to another, whose answers come later."""

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float) -> None:
        try:
            while data := await reader.read(65_536):
                await asyncio.sleep(delay)
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward, back = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.suppress(OSError):
            await asyncio.gather(carry(reader, back, 0.0), carry(onward, writer, delay_seconds))

    async with listening(serve) as here:
        yield here


@contextlib.asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[int]:
    """A port where every write is answered with the same."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(answer * max(1, data.count(b"\r\n*") + 1))
                await writer.drain()

    async with listening(serve) as here:
        yield here
