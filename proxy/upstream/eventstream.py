"""
Bytes to events: the framing of AWS event streams (`application/vnd.amazon.eventstream`), in any split.

It is binary and carries its own checksums, so a flipped bit is an error here and never a wrong word of an answer. The
format: https://smithy.io/2.0/aws/amazon-eventstream.html
"""

from __future__ import annotations

import struct
import zlib
from typing import NoReturn

from proxy.errors import UpstreamError
from proxy.providers import Event
from proxy.upstream.framing import MAX_EVENT_BYTES

PRELUDE_BYTES = 12
CHECKSUM_BYTES = 4
MIN_MESSAGE_BYTES = PRELUDE_BYTES + CHECKSUM_BYTES

_VALUE_BYTES = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}
"""By type of a header's value: true, false, byte, short, integer, long, timestamp, uuid."""
_BYTES, _STRING = 6, 7

_prelude = struct.Struct(">III").unpack_from
_checksum = struct.Struct(">I").unpack_from
_length = struct.Struct(">H").unpack_from


class EventStream:
    """
    The framing state of one stream. Grammar, all numbers big-endian:

        stream  = *message
        message = prelude headers payload crc32(everything before it)
        prelude = total-length:4 headers-length:4 crc32(the two lengths):4
        headers = *(name-length:1 name type:1 value)
        value   = nothing, 1, 2, 4, 8 or 16 bytes by type; or length:2 and so many bytes (types 6 and 7)

    `:message-type` says what a message is: an `event` is named by its `:event-type`; an `exception`, which the service
    models, becomes "exception:" and its `:exception-type`; an `error`, which it does not, becomes "error:" and its
    `:error-code`, with the `:error-message` for data. Nothing follows either of the two.
    """

    __slots__ = ("_failure", "_held", "_wanted")

    def __init__(self) -> None:
        self._failure: UpstreamError | None = None
        """What is wrong with the stream, when what came before it was right and has to be delivered first."""
        self._held = bytearray()
        self._wanted = PRELUDE_BYTES
        """Nothing can be done before so many bytes are held."""

    def feed(self, data: bytes) -> list[Event]:
        """
        The events that `data` completes. Raises UpstreamError for bytes that are damaged, or too many for one; where
        whole events came with them, the next call does.
        """
        if self._failure is not None:
            raise self._failure
        held = self._held
        held += data
        events: list[Event] = []
        start = 0
        try:
            while len(held) - start >= self._wanted:
                total = self._total(start)
                if len(held) - start < total:
                    self._wanted = total
                    break
                events.append(self._event(bytes(held[start : start + total])))
                start += total
                self._wanted = PRELUDE_BYTES
        except UpstreamError as error:
            if not events:
                raise
            self._failure = error
        if start:
            del held[:start]
        return events

    def close(self) -> list[Event]:
        """The bytes have ended. A message that is not whole is none: whether the answer is, its decoder knows."""
        if self._failure is not None:
            raise self._failure
        self._held.clear()
        self._wanted = PRELUDE_BYTES
        return []

    def _total(self, start: int) -> int:
        """How long the message is that begins there, as its prelude says and vouches for."""
        total, headers, told = _prelude(self._held, start)
        if zlib.crc32(self._held[start : start + 8]) != told:
            self._refuse("is damaged: the checksum of a message's length is wrong")
        if total > MAX_EVENT_BYTES:
            self._refuse(f"holds an event of more than {MAX_EVENT_BYTES} bytes", "upstream_event_too_large")
        if total < MIN_MESSAGE_BYTES + headers:
            self._refuse("is malformed: a message is shorter than its own headers")
        return int(total)

    def _event(self, message: bytes) -> Event:
        end = len(message) - CHECKSUM_BYTES
        if zlib.crc32(message[:end]) != _checksum(message, end)[0]:
            self._refuse("is damaged: the checksum of a message is wrong")
        begin = PRELUDE_BYTES + _checksum(message, 4)[0]
        try:
            headers = _headers(message, PRELUDE_BYTES, begin)
        except (IndexError, struct.error, KeyError):
            self._refuse("is malformed: the headers of a message cannot be read")
        match headers.get(b":message-type"):
            case b"exception":
                return Event(f"exception:{_text(headers.get(b':exception-type'))}", message[begin:end])
            case b"error":
                return Event(f"error:{_text(headers.get(b':error-code'))}", headers.get(b":error-message", b""))
        return Event(_text(headers.get(b":event-type")), message[begin:end])

    def _refuse(self, what: str, code: str = "upstream_bad_frame") -> NoReturn:
        self._held.clear()
        raise UpstreamError(
            f"The provider's event stream {what}; it was cut there.", code=code, error_type="provider_bad_response"
        )


def _headers(message: bytes, at: int, end: int) -> dict[bytes, bytes]:
    """The headers whose values are text, by name; those of other types are stepped over."""
    found: dict[bytes, bytes] = {}
    while at < end:
        name_end = at + 1 + message[at]
        name, kind = message[at + 1 : name_end], message[name_end]
        at = name_end + 1
        if kind in (_BYTES, _STRING):
            value_end = at + 2 + _length(message, at)[0]
            if kind == _STRING:
                found[name] = message[at + 2 : value_end]
            at = value_end
        else:
            at += _VALUE_BYTES[kind]
    if at != end:
        raise IndexError
    return found


def _text(name: bytes | None) -> str:
    return (name or b"").decode("utf-8", "replace")
