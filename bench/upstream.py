"""
A provider that costs little: OpenAI completions and streams, Anthropic streams, all rendered beforehand.

Every chunk carries the clock (`@T=`, 16 digits of microseconds), so that the load generator can tell how long it was on
its way.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import time
from collections.abc import Callable

import uvloop

CHUNKS = 100
GAP_SECONDS = 0.010
CHUNK_BYTES = 270
STAMP = b"@T=%016d"

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_HEADERS = (
    b"HTTP/1.1 200 OK\r\ndate: Mon, 01 Jan 2024 00:00:00 GMT\r\nserver: bench\r\nopenai-organization: org-bench\r\n"
    b"openai-processing-ms: 12\r\nopenai-version: 2020-10-01\r\nx-ratelimit-limit-requests: 10000\r\n"
    b"x-ratelimit-limit-tokens: 2000000\r\nx-ratelimit-remaining-requests: 9999\r\n"
    b"x-ratelimit-remaining-tokens: 1999900\r\nx-ratelimit-reset-requests: 6ms\r\nx-request-id: req_bench_01234\r\n"
)
_USAGE = (
    b'{"prompt_tokens":193,"completion_tokens":107,"total_tokens":300,'
    b'"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},'
    b'"completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0}}'
)
_COMPLETION = (
    b'{"id":"chatcmpl-bench","object":"chat.completion","created":1700000000,"model":"bench-1","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":"' + b"All work and no play makes a dull benchmark. " * 11 + b'",'
    b'"refusal":null},"logprobs":null,"finish_reason":"stop"}],"usage":' + _USAGE + b',"service_tier":"default"}'
)
_ENVELOPE = (
    b'{"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,"model":"bench-1",'
    b'"service_tier":"default","system_fingerprint":"fp_0123456789",'
)


def _framed(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _padded(before: bytes, after: bytes) -> bytes:
    """An event of CHUNK_BYTES with a place for the clock."""
    return before + STAMP + b"." * max(1, CHUNK_BYTES - len(before) - len(after) - 19) + after


class Script:
    """One kind of stream: what comes first, what each chunk is (with `%d` for the clock), what ends it."""

    def __init__(self, first: bytes, chunk: bytes, last: bytes) -> None:
        self.head = _HEADERS + b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        if first:
            self.head += _framed(first)
        self.chunk = b"%x\r\n" % (len(chunk) - 5 + 16) + chunk + b"\r\n"  # `%016d` is written as sixteen digits
        self.last = _framed(last) + b"0\r\n\r\n"


OPENAI = Script(
    b"",
    _padded(
        b"data: " + _ENVELOPE + b'"choices":[{"index":0,"delta":{"content":"',
        b'"},"logprobs":null,"finish_reason":null}]}\n\n',
    ),
    b"data: " + _ENVELOPE + b'"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}]}\n\n'
    b"data: " + _ENVELOPE + b'"choices":[],"usage":' + _USAGE + b"}\n\ndata: [DONE]\n\n",
)
ANTHROPIC = Script(
    b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_bench","type":"message",'
    b'"role":"assistant","model":"bench-1","content":[],"stop_reason":null,"stop_sequence":null,'
    b'"usage":{"input_tokens":193,"output_tokens":1}}}\n\n'
    b'event: content_block_start\ndata: {"type":"content_block_start","index":0,'
    b'"content_block":{"type":"text","text":""}}\n\nevent: ping\ndata: {"type":"ping"}\n\n',
    _padded(
        b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
        b'"delta":{"type":"text_delta","text":"',
        b'"}}\n\n',
    ),
    b'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'
    b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},'
    b'"usage":{"output_tokens":107}}\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n',
)
WHOLE = _HEADERS + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(_COMPLETION) + _COMPLETION


class Connection(asyncio.Protocol):
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.buffer = b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None

    def data_received(self, data: bytes) -> None:
        self.buffer = self.buffer + data if self.buffer else data
        while self.buffer:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            length = _LENGTH.search(self.buffer, 0, end)
            size = end + 4 + (int(length[1]) if length else 0)
            if len(self.buffer) < size:
                return
            request, self.buffer = self.buffer[:size], self.buffer[size:]
            self.answer(request, end)

    def answer(self, request: bytes, end: int) -> None:
        if self.transport is None:
            return
        if request.find(b'"stream":true', end) < 0 and request.find(b'"stream": true', end) < 0:
            self.transport.write(WHOLE)
            return
        script = ANTHROPIC if request.startswith(b"POST /v1/messages") else OPENAI
        self.transport.write(script.head)
        self.send(script, CHUNKS, 0.0)

    def send(self, script: Script, left: int, due: float) -> None:
        """The first chunk at once, the second after a random part of a gap, the others at fixed gaps."""
        if self.transport is None:
            return
        if left == 0:
            self.transport.write(script.last)
            return
        self.transport.write(script.chunk % (time.monotonic_ns() // 1000))
        now = self.loop.time()
        due = now + random.random() * GAP_SECONDS if left == CHUNKS else max(due + GAP_SECONDS, now)
        self.loop.call_at(due, self.send, script, left - 1, due)


async def serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    make: Callable[[], Connection] = lambda: Connection(loop)  # noqa: E731
    server = await loop.create_server(make, "127.0.0.1", port, backlog=4096)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(serve(parser.parse_args().port))
