"""A server on a real socket that answers by method and path, and remembers what it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Place:
    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, bytes]] = {}
        """By the request's line, as in `GET /creds`: a status and a body."""
        self.content_type = "application/json"
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        self.silent = False
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:-2])}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        line = lines[0].rpartition(" ")[0]
        self.asked.append((line, headers, body))
        if not self.silent:
            status, answer = self.answers.get(line, (404, b"not here"))
            head = f"HTTP/1.1 {status} X\r\ncontent-type: {self.content_type}\r\nconnection: close\r\n"
            writer.write(f"{head}content-length: {len(answer)}\r\n\r\n".encode() + answer)
            await writer.drain()
        else:
            await reader.read()
        writer.close()


@asynccontextmanager
async def opened() -> AsyncIterator[Place]:
    place = Place()
    server = await asyncio.start_server(place.serve, "127.0.0.1", 0)
    place.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield place
    finally:
        server.close()
        await server.wait_closed()
