"""
Spans on their way to a collector: OpenTelemetry's own batches and its exporter, in its own thread, by OTLP over HTTP.

The one module that imports the SDK, which is an extra; it is imported only where traces are on. What is counted here is
every span: sent, or dropped because the collector took none or too few. Traces are dropped whole, never in part.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping, Sequence

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.status import Status, StatusCode

from proxy import __version__
from proxy.exchange import Trace
from proxy.telemetry.spans import Span

log = logging.getLogger("strata.traces")

MAX_WAITING_SPANS = 4_096
BATCH_SPANS = 128
"""Encoded in one go, which holds the interpreter for 20 µs a span: more would keep the event loop waiting."""
INTERVAL_MS = 1_000
EXPORT_SECONDS = 10.0
CLOSE_SECONDS = 3.0

_KINDS = {"server": SpanKind.SERVER, "client": SpanKind.CLIENT, "internal": SpanKind.INTERNAL}
_FLAGS = TraceFlags(TraceFlags.SAMPLED)
_UNSET, _FAILED = Status(StatusCode.UNSET), Status(StatusCode.ERROR)
_SCOPE = InstrumentationScope("strata", __version__)


class _Exporter(OTLPSpanExporter):
    """Counts. `sent` and `lost` are written by one thread at a time, the batch's; others read them."""

    def __init__(self, endpoint: str, headers: dict[str, str]) -> None:
        super().__init__(endpoint, headers=headers, timeout=EXPORT_SECONDS)
        self.sent = 0
        self.lost = 0
        self._failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            result = super().export(spans)
        except Exception:  # whatever it is, the spans are gone and must be counted
            log.exception("spans could not be exported")
            result = SpanExportResult.FAILURE
        failed = result is not SpanExportResult.SUCCESS
        if failed:
            self.lost += len(spans)
        else:
            self.sent += len(spans)
        if failed is not self._failing:
            self._failing = failed
            if failed:
                log.warning("the collector of traces takes no spans; they are dropped and counted until it does")
            else:
                log.info("the collector of traces takes spans again")
        return result


class Export:
    """`offer` belongs to the event loop, and never waits."""

    def __init__(self, endpoint: str, headers: Mapping[str, str]) -> None:
        # one line a batch that failed is enough: its retries need no more
        logging.getLogger("opentelemetry").setLevel(logging.ERROR)
        self._exporter = _Exporter(endpoint, dict(headers))
        self._processor = BatchSpanProcessor(
            self._exporter,
            max_queue_size=MAX_WAITING_SPANS + BATCH_SPANS,  # `offer` keeps it from ever being full
            schedule_delay_millis=INTERVAL_MS,
            max_export_batch_size=BATCH_SPANS,
        )
        # the operator's OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win
        ours = Resource({"service.name": "strata", "service.version": __version__})
        self._resource = ours.merge(OTELResourceDetector().detect())
        self._offered = 0
        self._refused = 0

    @property
    def waiting(self) -> int:
        """Spans in the queue, and in the batch that is being sent."""
        return self._offered - self._exporter.sent - self._exporter.lost

    @property
    def sent_total(self) -> int:
        return self._exporter.sent

    @property
    def dropped_total(self) -> int:
        return self._exporter.lost + self._refused

    def offer(self, trace: Trace, spans: Sequence[Span]) -> None:
        if self.waiting + len(spans) > MAX_WAITING_SPANS:
            self._refused += len(spans)
            return
        self._offered += len(spans)
        for span in spans:
            self._processor.on_end(self._readable(trace, span))

    async def close(self, timeout_seconds: float = CLOSE_SECONDS) -> None:
        """Sends what is left, for so long; in a daemon thread, so that the end of the process never waits for more."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def finish() -> None:
            self._processor.shutdown()  # type: ignore[no-untyped-call]  # the SDK leaves it untyped
            if not loop.is_closed():
                loop.call_soon_threadsafe(done.set)

        threading.Thread(target=finish, name="last-spans", daemon=True).start()
        try:
            async with asyncio.timeout(timeout_seconds):
                await done.wait()
        except TimeoutError:
            log.warning("%d spans are dropped at the end: the collector of traces is away or slow", self.waiting)

    def _readable(self, trace: Trace, span: Span) -> ReadableSpan:
        parent = None
        if span.parent_id:
            parent = SpanContext(trace.trace_id, span.parent_id, span.kind == "server", _FLAGS)
        return ReadableSpan(
            span.name,
            SpanContext(trace.trace_id, span.span_id, False, _FLAGS),
            parent,
            self._resource,
            span.attributes,
            kind=_KINDS[span.kind],
            status=_FAILED if span.failed else _UNSET,
            start_time=span.start_ns,
            end_time=span.end_ns,
            instrumentation_scope=_SCOPE,
        )
