"""
Traces: `begin` at a request's head, `note` at its end, and in between nothing but an id that providers are told.

Whether a request is sampled is decided once, at its head: by the client's `traceparent` if it brings one, else by the
trace's id, as other OpenTelemetry SDKs decide it. Off, `begin` is None, and a request pays for one look at that.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from proxy.config import Traces as Settings
from proxy.exchange import Exchange, Trace
from proxy.telemetry import traceparent
from proxy.telemetry.spans import spans_of

if TYPE_CHECKING:
    from proxy.telemetry.otlp import Export

log = logging.getLogger("strata.traces")

_LOW_BITS = (1 << 64) - 1


class Traces:
    """`start` before the first request, `close` after the last."""

    def __init__(
        self,
        settings: Settings,
        masked: Callable[[str], str] = lambda text: text,
        *,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.begin: Callable[[bytes], Trace | None] | None = None
        """Given the client's `traceparent`, or b"". None: there are no traces here."""
        self.listeners: tuple[Callable[[Exchange], None], ...] = ()
        """Who wants to hear of requests that are over."""
        self._settings = settings
        self._masked = masked
        self._clock_ns = clock_ns
        self._bound = int(settings.sample * (1 << 64))
        self._export: Export | None = None
        if settings.endpoint:
            self.begin, self.listeners = self._begin, (self.note,)
        elif settings.pass_on:
            self.begin = _hand_on

    @property
    def totals(self) -> tuple[int, int]:
        """Spans sent and spans dropped, since the start."""
        export = self._export
        return (export.sent_total, export.dropped_total) if export is not None else (0, 0)

    def start(self) -> None:
        if self._settings.endpoint:
            from proxy.telemetry.otlp import Export  # noqa: PLC0415 - an extra, and a third of a second to import

            headers = {name: value.reveal() for name, value in self._settings.secret_headers.items()}
            self._export = Export(self._settings.endpoint, headers)

    def note(self, exchange: Exchange) -> None:
        """A request is over; its spans are made if it is sampled."""
        trace, export = exchange.trace, self._export
        if trace is not None and trace.sampled and export is not None:
            export.offer(trace, spans_of(exchange, trace, self._clock_ns(), self._masked))

    async def close(self) -> None:
        if self._export is not None:
            await self._export.close()

    def _begin(self, header: bytes) -> Trace:
        parent = traceparent.read(header) if header else None
        if parent is not None:
            trace = Trace(parent.trace_id, traceparent.new_id(traceparent.SPAN_ID_BITS), parent.span_id, parent.sampled)
        else:
            trace_id = traceparent.new_id(128)
            trace = Trace(trace_id, traceparent.new_id(traceparent.SPAN_ID_BITS), 0, trace_id & _LOW_BITS < self._bound)
        trace.content = trace.sampled and self._settings.content
        return trace


def _hand_on(header: bytes) -> Trace | None:
    """Without traces of our own: the client's header as it came, so that its trace goes on behind us."""
    parent = traceparent.read(header)
    if parent is None:
        return None
    return Trace(parent.trace_id, parent.span_id, passed_on=b"traceparent: %b\r\n" % header)
