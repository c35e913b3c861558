"""
From framed events to the client's bytes, for one answer stream.

Two readers, one contract. `PassReader` serves a provider that speaks the client's own dialect: payloads go through as
they came, a typed tap reads what metering needs, and what no client of OpenAI's could read is mended.
`TranslatedReader` runs a translator's decoder and stamps its chunks. Both hold the usage back: it is shown last, with
its cost, and only to a client that asked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from proxy.dialects.openai import CHUNK, DONE, Envelope
from proxy.errors import StreamTruncated
from proxy.exchange import Attempt
from proxy.metering.usage import read_service_tier
from proxy.providers import Chunk, Event, Json, StreamDecoder
from proxy.providers.faults import stream_error
from proxy.providers.quirks import UNSIGNED
from proxy.providers.usage import openai_usage


class Reader(Protocol):
    done: bool
    """The stream's own terminal event has been seen."""
    content: bool
    """Something that a client would see has arrived: the stream is committed."""
    usage: dict[str, Any] | None
    """The provider's last word on usage, in OpenAI's arithmetic."""
    finish_reason: str

    @property
    def usage_so_far(self) -> dict[str, Any] | None:
        """What the provider had said of usage before the stream was cut."""

    @property
    def usage_raw(self) -> bytes:
        """The usage in the provider's own words, if they are at hand."""

    def feed(self, event: Event) -> bytes:
        """What this event amounts to for the client, framed; often nothing. Raises UpstreamError on an error event."""

    def close(self) -> bytes:
        """The bytes have ended. Raises StreamTruncated if the answer had not."""

    def ending(self, cost: float | None) -> bytes:
        """The last bytes: the usage chunk, if it was asked for, and [DONE]."""


class TapFunction(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class TapCall(msgspec.Struct):
    function: TapFunction | None = None


class TapDelta(msgspec.Struct):
    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    refusal: Any = None
    audio: Any = None
    function_call: Any = None
    tool_calls: list[TapCall] | None = None


class TapChoice(msgspec.Struct):
    index: int | None = None
    delta: TapDelta | None = None
    finish_reason: str | None = None


class TapMore(msgspec.Struct):
    usage: dict[str, Any] | None = None


class TapChunk(msgspec.Struct):
    choices: list[TapChoice] | None = None
    usage: dict[str, Any] | None = None
    x_groq: TapMore | None = None
    service_tier: Any = None
    error: Any = None
    object: Any = None


Keep = Callable[[list[Json], list[Json]], None]
"""Takes the `reasoning_details` and the tool calls of an answer that is whole."""

UNREADABLE = (msgspec.DecodeError, ValueError, RecursionError)
"""What reading JSON from a stranger may raise: it is none, is no UTF-8, or is nested without end."""

_tap = msgspec.json.Decoder(TapChunk).decode
_decode = msgspec.json.Decoder(dict[str, Any]).decode
_encode = msgspec.json.Encoder().encode


class PassReader:
    def __init__(self, attempt: Attempt, envelope: Envelope, asked_usage: bool) -> None:
        self._attempt = attempt
        self._envelope = envelope
        self._asked_usage = asked_usage
        self._usage_frame: Json = {}
        self._service_tier: Any = None
        self.done = False
        self.content = False
        self.usage: dict[str, Any] | None = None
        self.usage_so_far: dict[str, Any] | None = None
        self._said: Json | None = None
        self._begun: set[int | None] = set()
        self._finished: set[int | None] = set()
        """Choices, by their index."""
        self.finish_reason = ""

    @property
    def usage_raw(self) -> bytes:
        return _encode(self._said) if self._said is not None else b""

    def feed(self, event: Event) -> bytes:
        data = event.data
        if data == b"[DONE]":
            self._finish()
            return b""
        try:
            return self._take(event.name, data)
        except UNREADABLE:
            raise StreamTruncated("The provider sent a stream event that is not a chunk.") from None

    def _take(self, name: str, data: bytes) -> bytes:
        chunk = _tap(data)
        if chunk.error is not None or name == "error":
            raise stream_error(_decode(data))
        if chunk.service_tier is not None and chunk.service_tier != self._service_tier:
            self._service_tier = chunk.service_tier
            self._attempt.service_tier = read_service_tier(chunk.service_tier)
        regular = self._read(chunk)
        if chunk.usage is not None:
            return self._hold_usage(chunk.usage, chunk, data)
        if chunk.x_groq is not None and chunk.x_groq.usage is not None:
            self._take_usage(chunk.x_groq.usage)
        if not regular or data.find(b"\n") >= 0:  # an event may have its data on several lines
            return self._envelope.mend(_decode(data))
        return b"data: " + data + b"\n\n"

    def close(self) -> bytes:
        # Some servers never say [DONE]; a finish for each choice is proof enough, an end of bytes alone is none.
        if not self.done and not (self._finished and self._begun <= self._finished):
            raise StreamTruncated()
        self._finish()
        return b""

    def ending(self, cost: float | None) -> bytes:
        if not self._asked_usage or self.usage is None:
            return DONE
        if self._usage_frame:
            return self._envelope.mend({**self._usage_frame, "usage": {**self.usage, "cost": cost}}) + DONE
        return self._envelope.usage(self.usage, cost) + DONE

    def _finish(self) -> None:
        self.done = True
        self.usage = self.usage_so_far

    def _take_usage(self, native: Json) -> None:
        """Each mention replaces the one before; which was the last is known at the end."""
        self._said = native
        self.usage_so_far = openai_usage(native)

    def _hold_usage(self, native: Json, chunk: TapChunk, data: bytes) -> bytes:
        self._take_usage(native)
        if not chunk.choices:
            self._usage_frame = _decode(data)
            return b""
        shown = _decode(data)
        del shown["usage"]
        return self._envelope.mend(shown)

    def _read(self, chunk: TapChunk) -> bool:
        """Takes what metering needs; False: a client of OpenAI's would stumble over this chunk (Azure's filter)."""
        regular = bool(chunk.object == CHUNK)
        for choice in chunk.choices or ():
            self._begun.add(choice.index)
            if choice.finish_reason:
                self._finished.add(choice.index)
                self.finish_reason = choice.finish_reason
                self.content = True
            delta = choice.delta
            if delta is None:
                regular = False
                continue
            for text in (delta.content, delta.reasoning_content, delta.reasoning, delta.refusal, delta.function_call):
                if text:
                    self.content = True
                    keep_text(self._attempt, text)
            if delta.tool_calls or delta.audio:
                self.content = True
                for call in delta.tool_calls or ():
                    if call.function:
                        keep_text(self._attempt, (call.function.name or "") + (call.function.arguments or ""))
        return regular


class TranslatedReader:
    def __init__(
        self, decoder: StreamDecoder, attempt: Attempt, envelope: Envelope, asked_usage: bool, keep: Keep
    ) -> None:
        self._decoder = decoder
        self._keep = keep
        self._details: list[Json] = []
        self._calls: list[Json] = []
        self._attempt = attempt
        self._envelope = envelope
        self._asked_usage = asked_usage
        self.done = False
        self.content = False
        self.usage: dict[str, Any] | None = None
        self.finish_reason = ""

    @property
    def usage_so_far(self) -> dict[str, Any] | None:
        return self._decoder.usage_so_far

    @property
    def usage_raw(self) -> bytes:
        return b""

    def feed(self, event: Event) -> bytes:
        return b"".join([self._show(chunk) for chunk in self._decoder.feed(event)])

    def close(self) -> bytes:
        shown = b"".join([self._show(chunk) for chunk in self._decoder.close()])
        self.done = True
        return shown

    def ending(self, cost: float | None) -> bytes:
        if self._calls:
            self._keep(self._details, self._calls)
        if self._asked_usage and self.usage is not None:
            return self._envelope.usage(self.usage, cost) + DONE
        return DONE

    def _show(self, chunk: Chunk) -> bytes:
        if "service_tier" in chunk:
            self._attempt.service_tier = read_service_tier(chunk["service_tier"])
        if not chunk["choices"]:
            # usage comes last, so nothing of this answer is still to come
            self.usage = chunk.get("usage")
            self.done = True
            return b""
        for choice in chunk["choices"]:
            if choice.get("finish_reason"):
                self.finish_reason = choice["finish_reason"]
                self.content = True
            delta = choice["delta"]
            for name in ("content", "reasoning_content", "refusal", "function_call"):
                if delta.get(name):
                    self.content = True
                    keep_text(self._attempt, delta[name])
            for call in delta.get("tool_calls") or ():
                self.content = True
                function = call.get("function", {})
                keep_text(self._attempt, function.get("name", "") + function.get("arguments", ""))
        shown = self._envelope.encode(chunk)
        for choice in chunk["choices"]:
            delta = choice["delta"]
            self._details += thoughts_in(delta)
            # after it was encoded, which gives an id to a call without one
            self._calls += (call for call in delta.get("tool_calls") or () if call.get("id"))
        return shown


def thoughts_in(message: Json) -> list[Json]:
    """The `reasoning_details` of a message or delta; of plain thoughts one that says that they are unsigned."""
    details: list[Json] | None = message.get("reasoning_details")
    if details is None and message.get("reasoning_content"):
        return [{"type": "reasoning.text", "text": message["reasoning_content"], "format": UNSIGNED}]
    return details or []


def keep_text(attempt: Attempt, text: Any) -> None:
    """Remembers what was delivered, so that an answer without usage can be counted. A pool bounds an answer's size."""
    if isinstance(text, dict) and text.keys() <= {"name", "arguments"}:
        text = "".join([str(part) for part in text.values() if part])
    attempt.delivered_events += 1
    attempt.delivered_text.append(text if isinstance(text, str) else str(text))
