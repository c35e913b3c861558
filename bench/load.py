"""
A load generator: closed loop, or open loop at a rate; whole answers or streams. Checks every answer. Prints JSON.

    python -m bench.load --port 4000 --key sk-… --model fast --connections 64 --seconds 3 [--rate 100] [--stream]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import re
import sys
import time
from typing import Any

import msgspec
import uvloop

from bench.upstream import CHUNKS

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_STAMP_BYTES = 19
_PROMPT = "Please summarise the following text in two sentences and list three follow-up questions. " * 8


def request(model: str, path: str, key: str, stream: bool) -> bytes:
    """About 1 KB of body under the headers that OpenAI's SDK sends."""
    chat: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "system", "content": "You are concise."}, {"role": "user", "content": _PROMPT}],
        "temperature": 0.7,
        "max_tokens": 256,
    }
    if stream:
        chat |= {"stream": True, "stream_options": {"include_usage": True}}
    body = msgspec.json.encode(chat)
    headers = {
        "host": "127.0.0.1",
        "accept": "application/json",
        "accept-encoding": "identity",
        "connection": "keep-alive",
        "user-agent": "OpenAI/Python 3.0.0",
        "x-stainless-lang": "python",
        "x-stainless-package-version": "3.0.0",
        "x-stainless-os": "Linux",
        "x-stainless-arch": "x64",
        "x-stainless-runtime": "CPython",
        "x-stainless-runtime-version": "3.11.7",
        "x-stainless-async": "false",
        "x-stainless-retry-count": "0",
        "x-stainless-read-timeout": "600",
        "authorization": f"Bearer {key}",
        "content-type": "application/json",
        "content-length": str(len(body)),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body


class Run:
    """One measurement: what to send, until when, and what came back. Times are nanoseconds."""

    def __init__(self, payload: bytes, *, stream: bool, count: int, until_ns: int) -> None:
        self.payload = payload
        self.stream = stream
        self.left = count
        self.until_ns = until_ns
        self.done = 0
        self.chunks = 0
        self.errors = 0
        self.first_error = b""
        self.latencies: list[int] = []
        self.delays: list[int] = []
        self.idle: list[Connection] = []
        self.open_loop = False
        self.busy = 0
        self.finished = asyncio.Event()

    @property
    def over(self) -> bool:
        return self.left <= 0 or time.monotonic_ns() >= self.until_ns

    def fail(self, what: bytes) -> None:
        self.errors += 1
        self.first_error = self.first_error or what[:300]


class Connection(asyncio.Protocol):
    def __init__(self, run: Run) -> None:
        self.run = run
        self.transport: asyncio.Transport | None = None
        self.started_ns = 0
        self.buffer = b""
        self.seen = 0
        self.end = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self.started_ns:
            self.run.fail(b"the connection was closed in the middle of an answer")
            self.settle()

    def start(self) -> None:
        if self.transport is None:
            self.run.fail(b"the connection was closed")
            return
        self.run.left -= 1
        self.run.busy += 1
        self.buffer, self.end, self.seen = b"", b"", 0
        self.started_ns = time.monotonic_ns()
        self.transport.write(self.run.payload)

    def data_received(self, data: bytes) -> None:
        if self.run.stream:
            self.stream_received(data)
        else:
            self.whole_received(data)

    def whole_received(self, data: bytes) -> None:
        self.buffer = self.buffer + data if self.buffer else data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        length = _LENGTH.search(self.buffer, 0, end)
        complete = len(self.buffer) >= end + 4 + int(length[1]) if length else self.buffer.endswith(b"0\r\n\r\n")
        if complete:
            if self.buffer[9:12] != b"200" or self.buffer.find(b'"usage":{', end) < 0:
                self.run.fail(self.buffer)
            self.settle()

    def stream_received(self, data: bytes) -> None:
        now_ns = time.monotonic_ns()
        if not self.end and data[9:12] != b"200":
            self.run.fail(data)
        self.end = (self.end + data)[-5:]
        buffer = self.buffer + data if self.buffer else data
        place = buffer.find(b"@T=")
        rest = buffer[-2:]
        while place >= 0:
            if place + _STAMP_BYTES > len(buffer):
                rest = buffer[place:]
                break
            self.run.delays.append(now_ns - 1000 * int(buffer[place + 3 : place + _STAMP_BYTES]))
            self.seen += 1
            following = place + _STAMP_BYTES
            rest = buffer[max(following, len(buffer) - 2) :]
            place = buffer.find(b"@T=", following)
        self.buffer = rest
        if self.end == b"0\r\n\r\n":
            self.run.chunks += self.seen
            if self.seen != CHUNKS:
                self.run.fail(b"%d chunks: %s" % (self.seen, data))
            self.settle()

    def settle(self) -> None:
        run = self.run
        run.latencies.append(time.monotonic_ns() - self.started_ns)
        self.started_ns = 0
        run.done += 1
        run.busy -= 1
        if run.open_loop:
            run.idle.append(self)
        elif self.transport is not None and not run.over:
            self.start()
        if run.busy == 0 and run.over:
            run.finished.set()


async def generate(run: Run, port: int, connections: int, rate: float) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    opened: list[Connection] = []
    for _ in range(connections):
        _, connection = await loop.create_connection(lambda: Connection(run), "127.0.0.1", port)
        opened.append(connection)
    gc.disable()  # a pause here would look like one there
    began_ns = time.monotonic_ns()
    if rate:
        run.open_loop, run.idle = True, list(opened)
        due = loop.time()
        while not run.over:
            due += random.expovariate(rate)
            await asyncio.sleep(max(0.0, due - loop.time()))
            if run.over:
                break
            if run.idle:
                run.idle.pop().start()
            else:
                run.fail(b"every connection was busy")
    else:
        for connection in opened:
            connection.start()
    if run.busy:
        await asyncio.wait_for(run.finished.wait(), 60 + (run.until_ns - began_ns) / 1e9)
    seconds = (time.monotonic_ns() - began_ns) / 1e9
    for connection in opened:
        if connection.transport is not None:
            connection.transport.close()
    await asyncio.sleep(0)
    return {
        "done": run.done,
        "chunks": run.chunks,
        "errors": run.errors,
        "first_error": run.first_error.decode(errors="replace"),
        "per_second": run.done / seconds,
        "latency_us": _percentiles(run.latencies),
        "delay_us": _percentiles(run.delays),
    }


def _percentiles(values: list[int]) -> dict[str, float]:
    ordered = sorted(values)
    if not ordered:
        return {}
    return {name: ordered[min(len(ordered) - 1, int(len(ordered) * part))] / 1e3 for name, part in _PARTS.items()}


_PARTS = {"p50": 0.5, "p99": 0.99}


async def main(options: argparse.Namespace) -> dict[str, Any]:
    run = Run(
        request(options.model, options.path, options.key, options.stream),
        stream=options.stream,
        count=options.count or sys.maxsize,
        until_ns=time.monotonic_ns() + int(options.seconds * 1e9),
    )
    return await generate(run, options.port, options.connections, options.rate)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--key", default="")
    parser.add_argument("--model", default="bench")
    parser.add_argument("--path", default="/v1/chat/completions")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--stream", action="store_true")
    print(msgspec.json.encode(uvloop.run(main(parser.parse_args()))).decode())
