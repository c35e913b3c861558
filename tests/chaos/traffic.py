"""
Clients that never tire: half of them stream, some hang up early, some requests meet a provider that misbehaves.

A request's name is its nonce, so that the provider's bill and the ledger can be laid side by side. A client whose
worker dies goes on with another, and never asks under the same name again.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from tests.gateway import Gateway
from tests.oracle import marker

MAX_TOKENS = 60
FAULTS: tuple[dict[str, Any], ...] = (
    {"status": 500, "times": 1},
    {"status": 429, "times": 1, "retry_after": "0"},
    {"cut": 3},
    {"error": 2},
    {"usage": "none"},
    {"garbage": "not_http", "times": 1},
)
"""What the provider does in one request of fifty, each in its turn."""


class Traffic:
    """`heard` counts how requests ended: done, left, refused (a status), broken (the worker died), unreached."""

    def __init__(
        self,
        gateways: Sequence[Gateway],
        keys: Sequence[str],
        *,
        prefix: str,
        parallel: int,
        abandon_every: int = 20,
        fault_every: int = 50,
        gap_ms: int = 10,
        seed: int = 0,
    ) -> None:
        self.heard: Counter[str] = Counter()
        self._gateways = gateways
        self._keys = keys
        self._prefix = prefix
        self._parallel = parallel
        self._abandon_every = abandon_every
        self._fault_every = fault_every
        self._gap_ms = gap_ms
        self._numbers = itertools.count()
        self._dice = random.Random(seed)
        self._over = False

    @property
    def asked(self) -> int:
        return sum(self.heard.values())

    async def run(self) -> None:
        """Until `end`."""
        await asyncio.gather(*(self._client() for _ in range(self._parallel)))

    def end(self) -> None:
        self._over = True

    async def _client(self) -> None:
        while not self._over:
            number = next(self._numbers)
            gateway = self._dice.choice(self._gateways)
            try:
                ending = await self._ask(number, gateway)
            except ConnectionRefusedError:
                ending = "unreached"
                await asyncio.sleep(0.05)
            except (OSError, asyncio.IncompleteReadError):
                ending = "broken"
            self.heard[ending] += 1

    def _request(self, number: int) -> bytes:
        fault = FAULTS[number // self._fault_every % len(FAULTS)] if number % self._fault_every == 7 else {}
        script = marker(
            pieces=8 + number % 17, gap_ms=self._gap_ms, cache_read=number % 5, split=number % 3 * 40, **fault
        )
        name = f"{self._prefix}-{number}"
        asked = {
            "model": ("gpt", "claude")[number // 2 % 2],
            "stream": number % 2 == 0,
            "max_tokens": MAX_TOKENS,
            "messages": [{"role": "user", "content": f"nonce={name} {script}"}],
        }
        body = msgspec.json.encode(asked)
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"
            f"authorization: Bearer {self._keys[number % len(self._keys)]}\r\ncontent-type: application/json\r\n"
            f"x-request-id: {name}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        return head.encode() + body

    async def _ask(self, number: int, gateway: Gateway) -> str:
        leaves = self._abandon_every > 0 and number % self._abandon_every >= self._abandon_every - 1
        patience = self._dice.uniform(0.01, 0.2) if leaves else 60.0
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        try:
            writer.write(self._request(number))
            async with asyncio.timeout(patience):
                return _ending(await reader.read(-1))
        except TimeoutError:
            return "left" if leaves else "silent"
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


def _ending(heard: bytes) -> str:
    head, _, body = heard.partition(b"\r\n\r\n")
    status = head[9:12].decode("latin-1")
    if status != "200":
        return f"refused {status}" if status else "broken"
    if b"text/event-stream" in head:
        return "done" if b"data: [DONE]" in body else "broken"
    return "done"


async def ask_once(
    gateway: Gateway, key: str, nonce: str, *, stream: bool = False, pieces: int = 10, gap_ms: int = 5
) -> str:
    """`served`, `broken` (a stream without its end), or a status with its code."""
    prompt = f"nonce={nonce} {marker(pieces=pieces, gap_ms=gap_ms)}"
    messages = [{"role": "user", "content": prompt}]
    body = msgspec.json.encode({"model": "gpt", "stream": stream, "max_tokens": 2 * pieces, "messages": messages})
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {key}\r\nx-request-id: {nonce}"
        f"\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    try:
        writer.write(head.encode() + body)
        heard = await reader.read(-1)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    status, (_, _, answer) = heard[9:12].decode(), heard.partition(b"\r\n\r\n")
    if status == "200":
        return "served" if not stream or b"[DONE]" in answer else "broken"
    return f"{status} {msgspec.json.decode(answer)['error']['code']}"
