"""
Bytes to events: the framing of Server-Sent Events, in any split and with any of its three line endings.

Only CR, LF and CRLF end a line. JSON may hold U+2028 and its like raw, so nothing here ever becomes text before it is
an event name.
"""

from __future__ import annotations

from proxy.errors import UpstreamError
from proxy.providers import Event

MAX_EVENT_BYTES = 1024 * 1024
BOM = b"\xef\xbb\xbf"
DONE = (b"data: [DONE]", b"data:[DONE]")


class SSE:
    """
    The framing state of one stream. Grammar, after line endings have become LF and a leading BOM is gone:

        stream = *(event | LF)
        event  = 1*(line LF) LF
        line   = "data" [":" [" "] value] | "event" [":" [" "] name] | anything else, which is dropped
    """

    __slots__ = ("_after_cr", "_held", "_held_bytes", "_start")

    def __init__(self) -> None:
        self._start: bytes | None = b""
        self._after_cr = False
        self._held: list[bytes] = []
        self._held_bytes = 0

    def feed(self, data: bytes) -> list[Event]:
        """The events that `data` completes. Raises UpstreamError when one grows beyond MAX_EVENT_BYTES."""
        if self._start is not None:
            data = self._skip_bom(data)
        # `find` here and below: `in` between bytes makes and drops an exception first, which costs a microsecond
        if self._after_cr or data.find(b"\r") >= 0:
            data = self._normalise(data)
        if not data:
            return []
        held = self._held
        if held:
            ends = data.find(b"\n\n") >= 0 or (data[0] == 10 and held[-1][-1] == 10)
            held.append(data)
            if not ends:
                self._held_bytes += len(data)
                self._check(self._held_bytes - 1)
                return []
            data = b"".join(held)
            held.clear()
        blocks = data.split(b"\n\n")
        rest = blocks.pop()
        self._held_bytes = len(rest)
        if rest:
            held.append(rest)
        if len(data) > MAX_EVENT_BYTES:
            self._check(max(map(len, blocks), default=0), self._held_bytes)
        events: list[Event] = []
        for block in blocks:
            if block[:6] == b"data: " and block.find(b"\n") < 0:
                events.append(Event("", block[6:]))
            else:
                _parse(block, events)
        return events

    def close(self) -> list[Event]:
        """
        The bytes have ended. An event whose last line is whole but whose blank line never came is still delivered, and
        so is a bare `[DONE]`: providers end like that. An event cut inside a line is not.
        """
        rest = b"".join(self._held)
        self._held.clear()
        self._held_bytes = 0
        events: list[Event] = []
        if rest.rpartition(b"\n")[2] in (b"", *DONE):
            _parse(rest, events)
        return events

    def _skip_bom(self, data: bytes) -> bytes:
        data = (self._start or b"") + data
        if len(data) < len(BOM) and BOM.startswith(data):
            self._start = data
            return b""
        self._start = None
        return data.removeprefix(BOM)

    def _normalise(self, data: bytes) -> bytes:
        """A CR ends its line at once, so that an event never waits for the LF that may follow; that LF is dropped."""
        if not data:
            return data
        if self._after_cr and data[0] == 10:
            data = data[1:]
        self._after_cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _check(self, *sizes: int) -> None:
        if max(sizes) > MAX_EVENT_BYTES:
            self._held.clear()
            self._held_bytes = 0
            raise UpstreamError(
                f"The provider sent a stream event of more than {MAX_EVENT_BYTES} bytes; the stream was cut there.",
                code="upstream_event_too_large",
                error_type="provider_bad_response",
            )


def _parse(block: bytes, events: list[Event]) -> None:
    """Appends the event of these lines, if they hold any data."""
    name = b""
    values: list[bytes] = []
    for line in block.split(b"\n"):
        field, _, value = line.partition(b":")
        if field == b"data":
            values.append(value[1:] if value[:1] == b" " else value)
        elif field == b"event":
            name = value[1:] if value[:1] == b" " else value
    if values:
        data = values[0] if len(values) == 1 else b"\n".join(values)
        events.append(Event(name.decode("utf-8", "replace"), data))
