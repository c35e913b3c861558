"""A collector of traces in a thread of its own: takes OTLP over HTTP, and remembers every span it was sent."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any, NamedTuple

from tests.conftest import needs_module

trace_service = needs_module("opentelemetry.proto.collector.trace.v1.trace_service_pb2", "otel")

WAIT_SECONDS = 20.0
KINDS = {1: "internal", 2: "server", 3: "client"}
FAILED = 2


class Seen(NamedTuple):
    """A span as it arrived."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    failed: bool
    words: str
    """Of its status."""
    attributes: dict[str, object]


class Collector:
    """`status`: what it answers; `free` is set unless it keeps everybody waiting."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.free = Event()
        self.free.set()
        self.spans: list[Seen] = []
        self.resources: list[dict[str, object]] = []
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.asked = 0
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.asked += 1
                collector.headers.append({name.lower(): value for name, value in self.headers.items()})
                collector.free.wait(60)
                if collector.status == 200:
                    collector.take(body)
                with suppress(ConnectionError):  # who sent it may have given up
                    self.send_response(collector.status)
                    self.send_header("content-length", "0")
                    self.end_headers()

            def log_message(self, *words: object) -> None:
                """Nothing: what arrived is in `spans`."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Collector:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.free.set()
        self._server.shutdown()
        self._server.server_close()

    def take(self, body: bytes) -> None:
        self.bodies.append(body)
        for resource in trace_service.ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append({one.key: _value(one.value) for one in resource.resource.attributes})
            for scope in resource.scope_spans:
                self.spans += [
                    Seen(
                        span.name,
                        KINDS[span.kind],
                        span.trace_id.hex(),
                        span.span_id.hex(),
                        span.parent_span_id.hex(),
                        span.start_time_unix_nano,
                        span.end_time_unix_nano,
                        span.status.code == FAILED,
                        span.status.message,
                        {one.key: _value(one.value) for one in span.attributes},
                    )
                    for span in scope.spans
                ]

    def of_request(self, request_id: str, count: int) -> list[Seen]:
        """Its spans, its own first and the others in the order of time, as soon as there are so many."""
        root = self.wait_for(lambda span: span.attributes.get("strata.request_id") == request_id)
        self.until(lambda: len(self._below(root)) + 1 >= count)
        return [root, *sorted(self._below(root), key=lambda span: (span.start_ns, span.end_ns))]

    def wait_for(self, wanted: Callable[[Seen], bool]) -> Seen:
        self.until(lambda: any(map(wanted, self.spans)))
        return next(filter(wanted, self.spans))

    def until(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while not true():
            assert time.monotonic() < deadline, f"what was waited for did not come; {len(self.spans)} spans did"
            time.sleep(0.02)

    def _below(self, root: Seen) -> list[Seen]:
        return [span for span in self.spans if span.parent_id == root.span_id]


def _value(value: Any) -> object:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, kind) if kind else None
