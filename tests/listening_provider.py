"""A provider in a thread of its own that remembers what it was sent, and answers as the test says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from threading import Event, Thread
from typing import NamedTuple

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
MESSAGE = {"role": "assistant", "content": "Hello there"}


class Request(NamedTuple):
    method: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes

    def headers_named(self, name: str) -> list[str]:
        return [value for known, value in self.headers if known.lower() == name]


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes
    pieces: Iterable[bytes] = ()
    """What follows the body, each for itself as it comes; the connection is closed behind the last."""


def completion(**fields: object) -> Reply:
    said = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt",
        "choices": [{"index": 0, "message": MESSAGE, "finish_reason": "stop"}],
        "usage": USAGE,
        **fields,
    }
    return Reply(200, {"content-type": "application/json"}, json.dumps(said).encode())


class ListeningProvider:
    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.asked = 0
        """How often, ever."""
        self.answer: Callable[[Request], Reply] = lambda request: completion()
        provider = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", "0")))
                request = Request(self.command, self.path, self.headers.items(), body)
                provider.requests.append(request)
                provider.asked += 1
                reply = provider.answer(request)
                with suppress(ConnectionError):  # who asked may have left
                    self.reply(reply)

            def reply(self, reply: Reply) -> None:
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                if reply.pieces:
                    self.close_connection = True
                    self.send_header("connection", "close")
                else:
                    self.send_header("content-length", str(len(reply.body)))
                self.end_headers()
                for data in chain((reply.body,), reply.pieces):
                    self.wfile.write(data)

            do_GET = do_POST = do_PUT = answer

            def log_message(self, *words: object) -> None:
                """Nothing: what it was sent is in `requests`."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)

    def __enter__(self) -> ListeningProvider:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def answering(provider: ListeningProvider, answer: Callable[[Request], Reply]) -> Iterator[list[Request]]:
    """For a while it answers like this; gives what it is sent meanwhile."""
    usual, provider.answer = provider.answer, answer
    provider.requests.clear()
    try:
        yield provider.requests
    finally:
        provider.answer = usual


@contextmanager
def held(provider: ListeningProvider) -> Iterator[Callable[[], None]]:
    """It answers nobody before what this gives is called."""
    free = Event()

    def wait(request: Request) -> Reply:
        free.wait(60)
        return completion()

    with answering(provider, wait):
        try:
            yield free.set
        finally:
            free.set()
