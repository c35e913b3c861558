"""Requests as bytes over real sockets, the way strangers send them, and what must hold of every refusal."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any, NamedTuple

from tests.gateway import Gateway

PATH = "/v1/chat/completions"
SECONDS = 20.0


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str | None:
        code: str | None = json.loads(self.body)["error"]["code"]
        return code

    @property
    def param(self) -> str | None:
        param: str | None = json.loads(self.body)["error"]["param"]
        return param


async def unharmed(gateway: Gateway, before: int) -> None:
    """It lives, nothing is under way any more, and there are as many rows in the ledger as `before`."""
    assert gateway.alive()
    assert await shipped(gateway) == before
    await at_rest(gateway)


async def at_rest(gateway: Gateway) -> None:
    async with asyncio.timeout(SECONDS):
        while gateway.gauge("strata_requests_in_flight"):
            await asyncio.sleep(0.05)


async def shipped(gateway: Gateway) -> int:
    """How many rows there are, once every settled attempt has its own: rows reach Postgres a moment later."""
    async with asyncio.timeout(SECONDS):
        while (rows := len(await gateway.rows())) < gateway.gauge("strata_upstream_attempts_total"):
            await asyncio.sleep(0.05)
    return rows


def head(gateway: Gateway, *lines: str, target: str = PATH, method: str = "POST", key: str = "") -> bytes:
    """A request head: Host, credential and type, with `lines` after them."""
    usual = (f"host: 127.0.0.1:{gateway.port}", f"authorization: Bearer {key or gateway.key}")
    return "\r\n".join(
        (f"{method} {target} HTTP/1.1", *usual, "content-type: application/json", *lines, "", "")
    ).encode("latin-1")


def whole(gateway: Gateway, body: bytes, *lines: str, **options: Any) -> bytes:
    return head(gateway, *lines, f"content-length: {len(body)}", **options) + body


async def send(gateway: Gateway, raw: bytes, *, answers: int = 1) -> list[Answer]:
    """Sends bytes, and reads up to so many answers; fewer if the gateway closes the connection before."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=2**22)
    got: list[Answer] = []
    try:
        async with asyncio.timeout(SECONDS):
            writing = asyncio.ensure_future(_write(writer, raw))
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while len(got) < answers:
                    got.append(await _answer(reader))
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
    finally:
        writer.close()
    return got


async def _write(writer: asyncio.StreamWriter, raw: bytes) -> None:
    with contextlib.suppress(ConnectionError):
        writer.write(raw)
        await writer.drain()


async def _answer(reader: asyncio.StreamReader) -> Answer:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:-2])}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Answer(int(lines[0].split(" ")[1]), headers, body)


async def post(gateway: Gateway, body: bytes, *lines: str) -> Answer:
    [answer] = await send(gateway, whole(gateway, body, *lines))
    return answer


def refused(answer: Answer, *statuses: int) -> None:
    """A 4xx in OpenAI's shape, with a request id and a sentence."""
    assert answer.status in (statuses or range(400, 500)), answer
    error = json.loads(answer.body)["error"]
    assert {"message", "type", "param", "code"} <= error.keys()
    assert len(error["message"]) > 10
    assert len(error["message"]) < 600
    assert answer.headers["x-request-id"]
