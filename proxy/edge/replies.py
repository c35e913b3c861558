"""
What every answer has in common: ids, our headers, and OpenAI's one error shape.

`x-request-id` is on everything; both it and `request-id` are what SDKs look for.
"""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

import msgspec

from proxy.admission.limits import Standing, format_reset
from proxy.errors import GatewayError
from proxy.exchange import Attempt, Exchange
from proxy.upstream import ratelimits

Header = tuple[bytes, bytes]

MAX_WARNING_CHARACTERS = 1_000

_SAFE_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_NO_TEXT = re.compile(rb"[\x00-\x1f\x7f]")
_JSON = (b"content-type", b"application/json")
_STREAM = b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\nx-accel-buffering: no\r\n"
_REQUESTS = (
    b"x-ratelimit-limit-requests: %d\r\nx-ratelimit-remaining-requests: %d\r\nx-ratelimit-reset-requests: %b\r\n"
)
_TOKENS = _REQUESTS.replace(b"-requests", b"-tokens")

_start = int.from_bytes(os.urandom(8)) >> 2
_count = itertools.count()


def new_id(now_ms: int) -> bytes:
    """A UUIDv7: the time in milliseconds, then 62 bits that count up from a random start of this process."""
    low = (_start + next(_count)) & ((1 << 62) - 1)
    return ((now_ms & ((1 << 48) - 1)) << 80 | 0x7 << 76 | 0b10 << 62 | low).to_bytes(16)


def request_id(id: bytes, sent: bytes | None) -> str:
    """The id that the client sent, if it is short and plain; else ours."""
    if sent is not None and _SAFE_ID.fullmatch(sent):
        return sent.decode("ascii")
    return "req_" + id.hex()[-20:]


def new_request_id() -> str:
    return request_id(new_id(time.time_ns() // 1_000_000), None)


def error_body(error: GatewayError) -> bytes:
    body = error.body()
    shape = body["error"]
    if isinstance(shape, dict):
        shape["timestamp"] = datetime.now(UTC).isoformat(timespec="milliseconds")
    return msgspec.json.encode(body)


def error_headers(error: GatewayError, id: str) -> Iterator[Header]:
    yield _JSON
    yield b"x-request-id", id.encode("ascii")
    for name, value in error.headers.items():
        yield name.encode("ascii"), value.encode("latin-1", "replace")


def lines(headers: Iterable[Header]) -> bytes:
    """Header lines, each with its CRLF."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


def answer_head(exchange: Exchange, attempt: Attempt, limits: bytes, *, full: bool) -> bytes:
    """The header lines of a whole answer. `full`: also who served it, how its limits stand and what it cost."""
    head = b"content-type: application/json\r\nx-request-id: %b\r\n%b%b" % (
        exchange.request_id.encode("ascii"),
        limits,
        _times(exchange),
    )
    if full:
        head += _about(attempt, limits)
        if attempt.price_state != "unknown":
            head += b"x-strata-cost-usd: %b\r\n" % _dollars(attempt.cost_nano_usd)
    return head + _warning(exchange) if exchange.notices else head


def stream_head(exchange: Exchange, attempt: Attempt | None, limits: bytes, *, full: bool) -> bytes:
    """The header lines of a stream; without an attempt if it must begin before anybody has answered."""
    head = _STREAM + b"x-request-id: %b\r\n%b" % (exchange.request_id.encode("ascii"), limits)
    if attempt is not None:
        head += _times(exchange) + (_about(attempt, limits) if full else b"")
    return head + _warning(exchange) if exchange.notices else head


def limit_lines(standing: Standing) -> bytes:
    """OpenAI's names, for the caller's own limits. Names that are free are the provider's."""
    told = b""
    if standing.limit is not None:
        told = _REQUESTS % (standing.limit, standing.remaining, _reset(standing.reset_seconds))
    if standing.token_limit is not None:
        told += _TOKENS % (standing.token_limit, standing.tokens_remaining, _reset(standing.tokens_reset_seconds))
    return told


def _reset(seconds: float) -> bytes:
    return format_reset(seconds).encode("ascii")


def _times(exchange: Exchange) -> bytes:
    total_us = (time.monotonic_ns() - exchange.started_ns) // 1000
    wait_us = exchange.upstream_wait_ns // 1000
    own_us = total_us - wait_us
    return b"openai-processing-ms: %d\r\nserver-timing: gateway;dur=%d.%03d, upstream;dur=%d\r\n" % (
        total_us // 1000,
        own_us // 1000,
        own_us % 1000,
        wait_us // 1000,
    )


def _about(attempt: Attempt, limits: bytes) -> bytes:
    provider = attempt.deployment.provider.name.encode("ascii", "replace")
    told = ratelimits.limit_lines(attempt.head, time.time(), limits) if attempt.head else b""
    if attempt.number == 1:
        return b"x-strata-provider: %b\r\n%b" % (provider, told)
    return b"x-strata-provider: %b\r\nx-strata-attempts: %d\r\n%b" % (provider, attempt.number, told)


def _warning(exchange: Exchange) -> bytes:
    told, count = "", len(exchange.notices)
    for number, notice in enumerate(exchange.notices):
        words = f"{'; ' if told else ''}{notice.param}: {notice.message}"
        if number and len(told) + len(words) > MAX_WARNING_CHARACTERS:
            told += f"; and {count - number} more, which strata.notices tells"
            break
        told += words[:MAX_WARNING_CHARACTERS]
    # a notice may name what the client made up, and not everything can stand in a header
    return b"x-strata-warning: %b\r\n" % _NO_TEXT.sub(b" ", told.encode("ascii", "replace"))


def _dollars(nano_usd: int) -> bytes:
    """Plain decimal, never an exponent: `0.000061`."""
    whole, rest = divmod(nano_usd, 1_000_000_000)
    return (b"%d.%09d" % (whole, rest)).rstrip(b"0") if rest else b"%d.0" % whole
