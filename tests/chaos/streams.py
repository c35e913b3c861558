"""A crowd of clients: many chat streams at once over plain sockets, some of which hang up early."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

import msgspec

from tests.gateway import Gateway
from tests.oracle import marker

MAX_TOKENS = 400


@dataclass
class Crowd:
    """`done`: streams heard to their [DONE]. `failed`: those that ended otherwise."""

    gateway: Gateway
    done: int = 0
    abandoned: int = 0
    failed: int = 0

    async def run(self, names: list[str], *, parallel: int, abandon_every: int, pieces: int, gap_ms: int) -> None:
        """Each name is a nonce; every second stream goes to the Anthropic provider."""
        turn = asyncio.Semaphore(parallel)

        async def one(number: int, name: str) -> None:
            async with turn:
                leave = abandon_every > 0 and number % abandon_every == abandon_every - 1
                script = marker(
                    pieces=pieces + number % 17, gap_ms=gap_ms, cache_read=number % 5, split=number % 3 * 40
                )
                try:
                    await self._stream(name, ("gpt", "claude")[number % 2], f"nonce={name} {script}", leave=leave)
                except (OSError, asyncio.IncompleteReadError):
                    self.failed += 1

        await asyncio.gather(*(one(number, name) for number, name in enumerate(names)))

    async def _stream(self, name: str, model: str, prompt: str, *, leave: bool) -> None:
        asked = {
            "model": model,
            "stream": True,
            "max_tokens": MAX_TOKENS,
            "messages": [{"role": "user", "content": prompt}],
        }
        body = msgspec.json.encode(asked)
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {self.gateway.key}\r\n"
            f"content-type: application/json\r\nx-request-id: {name}\r\ncontent-length: {len(body)}\r\n"
            "connection: close\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", self.gateway.port)
        try:
            writer.write(head.encode() + body)
            heard = b""
            while chunk := await reader.read(65_536):
                heard += chunk
                if leave and heard.count(b"data: ") > 4:
                    self.abandoned += 1
                    return
            if b"data: [DONE]" in heard:
                self.done += 1
            else:
                self.failed += 1
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
