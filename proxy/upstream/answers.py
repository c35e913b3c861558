"""
What the relay hands to the edge: a whole answer, or a stream whose first content has already arrived.

`AnswerStream.read` gives the client's bytes as they come. When it gives `b""` the answer is complete and may be
settled; only then does `ending` give the last bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from proxy.config import Deployment, Timeouts
from proxy.errors import GatewayError, UpstreamError
from proxy.exchange import Attempt, Exchange, Usage
from proxy.metering.usage import NOTHING_USED, from_openai, read_service_tier, read_untouched
from proxy.providers import Event, Notice, Translator
from proxy.providers.faults import bad_response, stream_error
from proxy.providers.usage import openai_usage
from proxy.upstream.connections import Response
from proxy.upstream.eventstream import EventStream
from proxy.upstream.framing import SSE
from proxy.upstream.readers import UNREADABLE, Reader

FRAMINGS: dict[str, type[SSE | EventStream]] = {"sse": SSE, "aws": EventStream}
"""By `Translator.framing`."""

DRAIN_BILLED_SECONDS = 120.0
"""How long an abandoned answer is read on from a provider that bills it all the same."""
DRAIN_UNBILLED_SECONDS = 2.0
"""… and from one that stops billing when we hang up: in case it is nearly done."""

PROGRESS_NS = 1_000_000_000
"""How often a long stream is noted in the journal: so much of it is guessed if this process is killed."""


class _Message(msgspec.Struct):
    content: Any = None
    reasoning_content: Any = None
    refusal: Any = None
    function_call: Any = None
    tool_calls: Any = None


class Choice(msgspec.Struct):
    """What metering reads of a choice; the rest is not decoded."""

    message: _Message | None = None
    finish_reason: str | None = None


_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_choices = msgspec.json.Decoder(list[Choice]).decode
_decode_usage = msgspec.json.Decoder(dict[str, Any] | None).decode
_decode_any = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class WholeAnswer:
    """
    A complete answer. Where the dialect is the client's own, `fields` holds it undecoded, so that every byte which is
    not ours to change goes through as it came; else `completion` is the translated answer.
    """

    __slots__ = ("_choices", "_plain_usage", "attempt", "completion", "fields", "usage")

    def __init__(
        self, attempt: Attempt, fields: dict[str, msgspec.Raw] | None, completion: dict[str, Any] | None
    ) -> None:
        self.attempt = attempt
        self.fields = fields
        self.completion = completion
        self.usage: dict[str, Any] | None = None
        """Of an undecoded answer, in OpenAI's arithmetic, if it had to be put into it …"""
        self._plain_usage = b""
        """… or as it came."""
        self._choices: list[Choice] | None = None

    def take_usage(self, exchange: Exchange) -> None:
        """Has the attempt remember the usage, if there is one. Raises UpstreamError if it is not an object."""
        if self.fields is None:
            self.usage = (self.completion or {}).get("usage")
            raw = b""
        else:
            raw = bytes(self.fields.get("usage", b"null"))
            plain = read_untouched(raw)
            if plain is not None:
                self._plain_usage = raw
                _note_usage(exchange, self.attempt, plain, False, raw)
                return
            try:
                said = _decode_usage(raw)
            except UNREADABLE:
                raise bad_response("The provider's usage is not a JSON object.") from None
            self.usage = openai_usage(said) if said is not None else None
        if self.usage:
            remember_usage(exchange, self.attempt, self.usage, raw)

    def read_service_tier(self) -> str:
        """The tier that the answer says it was served at; "" for the standard one."""
        if self.fields is None:
            return read_service_tier((self.completion or {}).get("service_tier"))
        raw = self.fields.get("service_tier")
        try:
            return read_service_tier(_decode_any(raw)) if raw is not None else ""
        except UNREADABLE:
            return ""

    def is_regular(self) -> bool:
        """
        False: no client of OpenAI's could read it, for a choice has no message (Azure's content filter) or content that
        is an object (Cloudflare's JSON mode).
        """
        return all(
            choice.message is not None and not isinstance(choice.message.content, dict) for choice in self.choices()
        )

    def choices(self) -> list[Choice]:
        """Raises UpstreamError if they are not choices."""
        if self._choices is None:
            try:
                if self.fields is not None:
                    self._choices = _decode_choices(self.fields["choices"])
                else:
                    self._choices = msgspec.convert((self.completion or {}).get("choices", []), list[Choice])
            except UNREADABLE:
                raise bad_response("The provider's answer has choices that are none.") from None
        return self._choices

    def messages(self) -> list[dict[str, Any]]:
        """What it says, choice by choice."""
        said = [choice.message for choice in self.choices() if choice.message is not None]
        return [{"role": "assistant", **msgspec.structs.asdict(message)} for message in said]

    def with_cost(self, cost: float | None, notices: Sequence[Notice] = ()) -> bytes:
        """The undecoded answer, with `usage.cost` and, if there are any, `strata.notices`."""
        fields = self.fields or {}
        if notices:
            fields["strata"] = msgspec.Raw(_encode({"notices": notices}))
        if self.usage is not None:
            fields["usage"] = msgspec.Raw(_encode({**self.usage, "cost": cost}))
        elif self._plain_usage:
            fields["usage"] = msgspec.Raw(b'%b,"cost":%b}' % (self._plain_usage[:-1], _encode(cost)))
        return _encode(fields)


def read_fields(body: bytes) -> dict[str, msgspec.Raw]:
    """A whole answer, of which only the fields are decoded. Raises UpstreamError if it is an error or no answer."""
    try:
        fields = _decode_fields(body)
        error = _decode_any(body) if bytes(fields.get("error", b"null")) != b"null" else None
    except UNREADABLE:
        raise bad_response("The provider's answer is not a JSON object.") from None
    if error is not None:
        raise stream_error(error)
    if bytes(fields.get("choices", b""))[:1] != b"[":
        raise bad_response("The provider's answer has no choices.")
    return fields


class AnswerStream:
    def __init__(
        self,
        deployment: Deployment,
        exchange: Exchange,
        attempt: Attempt,
        response: Response,
        translator: Translator,
        reader: Reader,
        timeouts: Timeouts,
        *,
        clock: Callable[[], float],
        deadline: float,
        failed: Callable[[Deployment, UpstreamError], None],
        progress: Callable[[Exchange, Attempt, Usage | None], None],
        censor: Callable[[UpstreamError], None],
    ) -> None:
        self.deployment = deployment
        self.attempt = attempt
        self._exchange = exchange
        self._response = response
        self._reader = reader
        self._framing = FRAMINGS[translator.framing]()
        self._clock = clock
        self._idle_seconds = timeouts.idle_seconds
        self._total_deadline = deadline
        self._deadline = min(clock() + timeouts.first_byte_seconds, deadline)
        self._held: list[bytes] = []
        self._failure: UpstreamError | None = None
        self._failed = failed
        self._progress = progress
        self._censor = censor
        self._progress_due_ns = attempt.started_ns + PROGRESS_NS
        self._opened = False

    async def open(self) -> None:
        """Reads until the first content event, and keeps what it read: until then another provider may still serve."""
        while not self._reader.content and not self._reader.done:
            if self._failure is not None:
                raise self._failure
            self._held.append(await self._pull())
        self._opened = True

    async def read(self) -> bytes:
        """The next bytes for the client; `b""` when the answer is complete. Raises UpstreamError."""
        if self._held:
            held = b"".join(self._held)
            self._held.clear()
            if held:
                return held
        while not self._reader.done:
            if self._failure is not None:
                raise self._failure
            shown = await self._pull()
            if shown:
                return shown
        self._learn()
        believe_usage(self.attempt)
        self._response.release()
        return b""

    def ending(self, cost: float | None) -> bytes:
        return self._reader.ending(cost)

    def client_left(self) -> None:
        """Nobody listens any more: read on for as long as the bill is the better for it, and not longer."""
        self._exchange.client_left = True
        billed = self.deployment.provider.bills_after_abort
        self._total_deadline = min(
            self._total_deadline, self._clock() + (DRAIN_BILLED_SECONDS if billed else DRAIN_UNBILLED_SECONDS)
        )
        self._deadline = min(self._deadline, self._total_deadline)
        self._response.hasten(self._deadline)

    def abandon(self, error: BaseException) -> None:
        """Hangs up. The attempt keeps what it knows; without a usage it is settled by what was delivered."""
        if isinstance(error, UpstreamError):
            self._censor(error)
        self._learn()
        self._response.close()
        if self._exchange.client_left:
            self.attempt.outcome = "caller_cancelled"
        else:
            self.attempt.outcome = error.error_type if isinstance(error, GatewayError) else "gateway_internal"
            self.attempt.error = error.message if isinstance(error, GatewayError) else ""
            if self._opened and isinstance(error, UpstreamError):
                self._failed(self.deployment, error)  # too late for anybody else to serve, but not to let it rest
        if self.attempt.usage is None:
            said = self._reader.usage_so_far
            if said is not None:
                remember_usage(self._exchange, self.attempt, said, self._reader.usage_raw)
            self.attempt.source = "counted"
        believe_usage(self.attempt)

    async def _pull(self) -> bytes:
        waited_from = time.monotonic_ns()
        data = await self._response.read(self._deadline)
        now = time.monotonic_ns()
        self._exchange.upstream_wait_ns += now - waited_from
        if not data:
            shown = b"".join([self._reader.feed(event) for event in self._framing.close()])
            return shown if self._reader.done else shown + self._reader.close()
        events = self._framing.feed(data)
        if not events:
            return b""  # comments only: they keep nothing alive but the connection
        if not self.attempt.first_event_ns:
            self.attempt.first_event_ns = now
        self._deadline = min(self._clock() + self._idle_seconds, self._total_deadline)
        shown = self._feed(events)
        if now >= self._progress_due_ns:
            self._progress_due_ns = now + PROGRESS_NS
            said = self._reader.usage_so_far
            self._progress(self._exchange, self.attempt, from_openai(said)[0] if said else None)
        return shown

    def _feed(self, events: list[Event]) -> bytes:
        """What the events show. An error among them is raised after what came before it has been delivered."""
        shown = []
        for event in events:
            try:
                shown.append(self._reader.feed(event))
            except UpstreamError as error:
                self._learn()
                if not any(shown):
                    raise
                self._failure = error
                break
        return b"".join(shown)

    def _learn(self) -> None:
        self._exchange.finish_reason = self._reader.finish_reason
        if self._reader.usage is not None:
            remember_usage(self._exchange, self.attempt, self._reader.usage, self._reader.usage_raw)


def remember_usage(exchange: Exchange, attempt: Attempt, usage: dict[str, Any], raw: bytes = b"") -> None:
    """Takes over a provider's usage: in our buckets, and in its own words (`raw`, if they are at hand)."""
    _note_usage(exchange, attempt, *from_openai(usage), raw or _encode(usage))
    # Where an API speaks of the tier inside its usage, the translator leaves it there.
    if "service_tier" in usage:
        attempt.service_tier = read_service_tier(usage["service_tier"])


def believe_usage(attempt: Attempt) -> None:
    """What an answer has used is counted if its provider says nothing of it, or that something was made of nothing."""
    if attempt.usage == NOTHING_USED and attempt.delivered_events:
        attempt.usage, attempt.usage_suspect = None, True
    if attempt.usage is None:
        attempt.source = "counted"


def _note_usage(exchange: Exchange, attempt: Attempt, usage: Usage, suspect: bool, raw: bytes) -> None:
    attempt.usage, attempt.usage_suspect, attempt.usage_raw = usage, suspect, raw
    attempt.source = "drained" if exchange.client_left else "provider"
