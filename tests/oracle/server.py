"""The oracle's socket half: a plain HTTP/1.1 server on asyncio streams that plays scripts and notices who hangs up."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from tests.oracle import anthropic_shape, bedrock_shape, cohere_shape, gemini_shape, mistral_shape, openai_shape
from tests.oracle.bill import Bill, Item, Prices, price
from tests.oracle.script import BadScript, Script, Wanted, read

SHAPES: dict[str, ModuleType] = {
    "mistral": mistral_shape,
    "openai": openai_shape,
    "anthropic": anthropic_shape,
    "bedrock": bedrock_shape,
    "cohere": cohere_shape,
    "gemini": gemini_shape,
}
"""
By API; the first whose `PATH` is found in what a request asks for has it. `REASONS_APART`: its usage tells thoughts
from other output. A shape may have `said(path, body)`, the request in the words that `script.read` knows, where its own
are others; `error_headers(status, code)`; the `LIMITS` that every answer tells; and where its streams are not SSE,
their `STREAM_TYPE`, and `COMMENT` and `BROKEN`, what stands for a comment and for an event that cannot be read. What it
refuses may depend on the path, which is among the headers as `:path`.
"""


def key_of(headers: Mapping[str, str]) -> str:
    """The key a request came with, in whichever header; "" for none."""
    named = [headers.get(name, "") for name in ("authorization", "x-api-key", "x-goog-api-key", "api-key")]
    return next(filter(None, named), "").removeprefix("Bearer ")


class HungUp(Exception):
    """The sender of the request has gone."""


class Oracle:
    """
    `async with Oracle(...) as oracle`: `oracle.url` is its address, `oracle.items` its bill, `oracle.received` the
    bodies it got. `bills_after_abort`: whether an answer that nobody listens to any more is charged to its end.
    """

    def __init__(
        self,
        *,
        bill: Path | None = None,
        prices: Prices | None = None,
        scripts: Mapping[str, Script] | None = None,
        bills_after_abort: bool = True,
        seed: int = 0,
        keys: Mapping[str, tuple[int, str]] | None = None,
    ) -> None:
        self.bill = Bill(bill)
        self.keys = dict(keys) if keys is not None else None
        """
        Those it knows, each with the status it gets (200: it is served) and what is said with another; any other key is
        refused. None: it asks for none.
        """
        self.prices = prices or Prices()
        self.scripts = dict(scripts or {})
        self.bills_after_abort = bills_after_abort
        self.seed = seed
        self.received: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.faults: list[str] = []
        """What a test wrote that the oracle could not read; a test that ends with some is wrong."""
        self.port = 0
        self.listed = 0
        """How often its list of models was asked for."""
        self._attempts: dict[str, int] = {}
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def items(self) -> list[Item]:
        return self.bill.items

    def items_of(self, nonce: str) -> list[Item]:
        return [item for item in self.items if item.nonce == nonce]

    async def start(self, port: int = 0) -> int:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", port, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]
        return self.port

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        self.bill.close()

    async def __aenter__(self) -> Oracle:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(Connection(self, reader, writer).run())
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    def attempt(self, nonce: str) -> int:
        self._attempts[nonce] = self._attempts.get(nonce, 0) + 1
        return self._attempts[nonce]


class Connection:
    """One connection. While an answer is given a read is pending, so that a hang-up is seen at once."""

    def __init__(self, oracle: Oracle, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.oracle = oracle
        self.reader = reader
        self.writer = writer
        self.next_byte = asyncio.ensure_future(reader.read(1))

    async def run(self) -> None:
        try:
            while first := await self.next_byte:
                path, headers, body = await self._read(first)
                self.next_byte = asyncio.ensure_future(self.reader.read(1))
                await self._serve(path, headers, body)
                if self.writer.is_closing():
                    return
        except (HungUp, ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.next_byte.cancel()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await self.next_byte
            self.writer.close()

    async def _read(self, first: bytes) -> tuple[str, dict[str, str], bytes]:
        head = first + await self.reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:-2])
        }
        if "chunked" not in headers.get("transfer-encoding", ""):
            body = await self.reader.readexactly(int(headers.get("content-length", "0")))
            return lines[0].split(" ")[1], headers, body
        body = b""
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            body += (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readuntil(b"\r\n")
        return lines[0].split(" ")[1], headers, body

    async def _serve(self, path: str, headers: dict[str, str], raw: bytes) -> None:
        refusal = self._refuse_key(headers)
        if path.partition("?")[0].endswith("/models"):
            await self._list_models(refusal)
            return
        api = next((name for name, shape in SHAPES.items() if shape.PATH.search(path.partition("?")[0])), None)
        if api is None:
            await self._whole(404, openai_shape.error(404, f"The oracle does not serve {path}.", "unknown_url"))
            return
        body = msgspec.json.decode(raw)
        self.oracle.received.append((headers, body))
        shape = SHAPES[api]
        try:
            said = shape.said(path, body) if hasattr(shape, "said") else body
            wanted = read(api, said, shape.asked, self.oracle.scripts, whole=body)
        except BadScript as error:
            self.oracle.faults.append(str(error))
            await self._whole(400, shape.error(400, str(error), None))
            return
        ordinal = self.oracle.attempt(wanted.nonce)
        script = wanted.script
        if (script.times is not None and ordinal > script.times) or (
            script.models and wanted.model not in script.models
        ):
            wanted = msgspec.structs.replace(wanted, script=script.healthy())
        answer = Answer(self, shape, wanted, ordinal)
        try:
            await answer.give(refusal or shape.refuse(body, {**headers, ":path": path}))
        finally:
            answer.book()

    def _refuse_key(self, headers: Mapping[str, str]) -> tuple[int, str] | None:
        if self.oracle.keys is None:
            return None
        key = key_of(headers)
        status, message = self.oracle.keys.get(key, (401, f"Incorrect API key provided: {key}."))
        return None if status == 200 else (status, message)

    async def _list_models(self, refusal: tuple[int, str] | None) -> None:
        self.oracle.listed += 1
        if refusal is not None:
            await self._whole(refusal[0], openai_shape.error(*refusal, None))
        else:
            await self._whole(200, b'{"object":"list","data":[{"id":"one"},{"id":"two"}]}')

    async def _whole(self, status: int, body: bytes, more: Mapping[str, str] | None = None) -> None:
        headers = {"content-type": "application/json", **(more or {}), "content-length": str(len(body))}
        self._head(status, headers)
        await self.write(body)

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.writer.write(f"HTTP/1.1 {status} Oracle\r\n{lines}\r\n".encode())

    async def write(self, data: bytes) -> None:
        if self.gone:
            raise HungUp
        self.writer.write(data)
        await self.writer.drain()

    @property
    def gone(self) -> bool:
        if not self.next_byte.done():
            return False
        return self.next_byte.cancelled() or self.next_byte.exception() is not None or not self.next_byte.result()

    async def pause(self, seconds: float | None) -> None:
        """Waits; raises HungUp as soon as the sender has gone. None: until then."""
        if seconds != 0:
            await asyncio.wait({self.next_byte}, timeout=seconds)
        if self.gone:
            raise HungUp


class Answer:
    """One request being answered, and what it costs. `book` writes the item once, whatever happened."""

    def __init__(self, connection: Connection, shape: ModuleType, wanted: Wanted, ordinal: int) -> None:
        self.connection = connection
        self.shape = shape
        self.wanted = wanted
        self.script = wanted.script
        self.sent_events = 0
        self.sent_tokens = 0
        self.complete = False
        self.failed = False
        """The provider itself broke the answer off: it charges for what it gave."""
        self.booked = False
        self.limits: Mapping[str, str] = getattr(shape, "LIMITS", {})
        dice = f"{connection.oracle.seed}:{wanted.nonce}:{ordinal}"
        self.dice = random.Random(dice)
        self.item = Item(
            nonce=wanted.nonce, ordinal=ordinal, api=wanted.api, model=wanted.model, stream=wanted.stream, status=0
        )

    def full(self) -> Item:
        """The item of an answer that is given whole."""
        script = self.script
        output = script.thinking + (len(self.wanted.calls()) if script.tools else len(self.wanted.words()))
        return msgspec.structs.replace(
            self.item,
            input_tokens=self.wanted.prompt_tokens,
            cache_read_tokens=script.cache_read,
            cache_write_5m_tokens=script.cache_write_5m,
            cache_write_1h_tokens=script.cache_write_1h,
            output_tokens=output,
            reasoning_tokens=script.thinking if self.shape.REASONS_APART else 0,
        )

    def book(self) -> None:
        if self.booked:
            return
        self.booked = True
        item = self.item
        if item.status in (0, 200):
            item = self.full()
            if not self.complete and (self.failed or not self.connection.oracle.bills_after_abort):
                item = msgspec.structs.replace(
                    item, output_tokens=self.sent_tokens, reasoning_tokens=min(self.sent_tokens, item.reasoning_tokens)
                )
        item = msgspec.structs.replace(item, sent_events=self.sent_events, complete=self.complete)
        item = msgspec.structs.replace(item, nano_usd=price(item, self.connection.oracle.prices))
        self.connection.oracle.bill.add(item)

    async def give(self, refusal: tuple[int, str] | None) -> None:
        script = self.script
        await self.connection.pause(script.delay_ms / 1000)
        if script.hang:
            await self.connection.pause(None)
        status, message = refusal or (script.status, script.message)
        if status != 200:
            await self._refuse(status, message)
        elif script.garbage and script.garbage != "bad_json":
            await self._garbage()
        elif self.wanted.stream:
            await self._stream()
        else:
            await self._body()

    async def _refuse(self, status: int, message: str | None) -> None:
        self.item = msgspec.structs.replace(self.item, status=status)
        self.complete = True
        self.book()
        more = {"retry-after": self.script.retry_after} if self.script.retry_after is not None else {}
        if hasattr(self.shape, "error_headers"):
            more |= self.shape.error_headers(status, self.script.code)
        await self.connection._whole(status, self.shape.error(status, message, self.script.code), more)

    async def _garbage(self) -> None:
        self.failed = True
        self.item = msgspec.structs.replace(self.item, status=200)
        self.book()
        match self.script.garbage:
            case "html":
                await self.connection._whole(200, b"<html>It works!</html>", {"content-type": "text/html"})
            case "no_content":
                self.connection._head(204, {})
            case "coded":
                body = gzip.compress(self.shape.whole(self.wanted, self.full()))
                await self.connection._whole(200, body, {"content-encoding": "gzip"})
            case _:
                await self.connection.write(b"this is no HTTP\r\n\r\n")
                self.connection.writer.close()

    async def _body(self) -> None:
        self.item = msgspec.structs.replace(self.item, status=200)
        body = self.shape.whole(self.wanted, self.full())
        for _ in range(self.sent_events, len(self.wanted.words())):
            await self.connection.pause(self.script.gap_ms / 1000)
        if self.script.garbage == "bad_json":
            body = body[:-7]
        cut = self.script.cut is not None or self.script.error is not None
        self.complete = not cut and not self.script.garbage
        self.failed = not self.complete
        self.book()
        headers = {"content-type": "application/json", "content-length": str(len(body)), **self.limits}
        self.connection._head(200, headers)
        await self.connection.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.connection.writer.close()

    async def _stream(self) -> None:
        script, connection = self.script, self.connection
        self.item = msgspec.structs.replace(self.item, status=200)
        kind = getattr(self.shape, "STREAM_TYPE", "text/event-stream; charset=utf-8")
        stream = {"content-type": kind, "transfer-encoding": "chunked"}
        connection._head(200, {**stream, **self.limits})
        for _ in range(script.comments):
            await self._send(getattr(self.shape, "COMMENT", b": still there\n\n"))
        for number, (weight, event) in enumerate(self.shape.events(self.wanted, self.full()), start=1):
            if weight and self.sent_events == script.cut:
                await self._break_off()
                return
            if weight and self.sent_events == script.error:
                self.failed = True
                self.book()
                await self._send(self.shape.error_event(script.message, script.code))
                await connection.write(b"0\r\n\r\n")
                return
            if weight:
                await connection.pause(script.gap_ms / 1000)
            broken = script.garbage == "bad_json" and number == 3
            await self._send(getattr(self.shape, "BROKEN", b"data: {broken\n\n") if broken else event)
            self.sent_events += weight > 0
            self.sent_tokens += weight
        self.complete = True
        self.book()
        await self._send(self.shape.END)
        await connection.write(b"0\r\n\r\n")

    async def _break_off(self) -> None:
        self.failed = True
        self.book()
        if self.script.clean_cut:
            await self.connection.write(b"0\r\n\r\n")
        else:
            self.connection.writer.close()

    async def _send(self, event: bytes) -> None:
        for piece in self._pieces(event):
            await self.connection.write(b"%x\r\n%b\r\n" % (len(piece), piece))

    def _pieces(self, event: bytes) -> Iterator[bytes]:
        start = 0
        while start < len(event):
            size = self.dice.randint(1, self.script.split) if self.script.split else len(event)
            yield event[start : start + size]
            start += size
