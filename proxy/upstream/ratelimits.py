"""
How a provider's own limits stand, in OpenAI's names: `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`, resets as
durations. Other spellings are known by their form; what came under a name of the provider's own is kept under it too.

The caller's own limits come first: `limit_lines` leaves out the names that are `taken`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec

from proxy.admission.limits import format_reset

_OPENAI = re.compile(rb"x-ratelimit-(limit|remaining|reset)-(requests|tokens|req-minute|tokens-minute)")
_NATIVE = re.compile(rb"[a-z]+-ratelimit-(requests|tokens|input-tokens|output-tokens)-(limit|remaining|reset)")
_PLAIN = re.compile(rb"[A-Za-z0-9.:+-]{1,40}")
_ALL_SHORT = re.compile(rb"[A-SU-Za-z0-9.:+-]{1,40}(?:\n[A-SU-Za-z0-9.:+-]{1,40})*")
"""Plain values in lines; a moment, which has to be turned into a duration, has a T."""
_WHOLE = re.compile(rb"[0-9]{1,15}")
MAX_KNOWN = 256
MAX_NAMES = 64
_SPELLINGS = {b"req-minute": b"requests", b"tokens-minute": b"tokens"}


class _Told(msgspec.Struct, frozen=True):
    """What a head says of limits, by all its names: a provider sends the same ones again and again."""

    headers: tuple[tuple[bytes, bytes, bytes], ...]
    """A header's name as it came; in lower case, if it is shown under it, too; OpenAI's name for it. Or b""."""
    sources: tuple[bytes, ...]
    template: bytes
    """The lines, for values that are all plain: those of `sources`."""


_known: dict[tuple[tuple[bytes, ...], bool, bool], _Told] = {}


def limit_lines(fields: Mapping[bytes, bytes], now_seconds: float, taken: bytes = b"") -> bytes:
    """Header lines for the client; `fields` are an answer's, `now_seconds` is Unix time, `taken` are lines of ours."""
    # Not `in`: between bytes it costs a microsecond, for it makes and drops an exception first.
    key = tuple(fields), taken.find(b"-requests:") >= 0, taken.find(b"-tokens:") >= 0
    told = _known.get(key) or _learn(*key)
    if not told.headers:
        return b""
    values = [fields[name] for name in told.sources]
    if _ALL_SHORT.fullmatch(b"\n".join(values)):
        return told.template % tuple(values)
    shown: dict[bytes, bytes] = {}
    for name, kept, openai in told.headers:
        value = fields[name].strip()
        if not _PLAIN.fullmatch(value):
            continue
        if kept:
            shown[kept] = value
        if openai:
            value = _duration(value, now_seconds) if b"T" in value else value
            if value:
                shown.setdefault(openai, value)
    return b"".join([b"%b: %b\r\n" % pair for pair in shown.items()])


def _learn(names: tuple[bytes, ...], requests_taken: bool, tokens_taken: bool) -> _Told:
    headers: list[tuple[bytes, bytes, bytes]] = []
    for name in names:
        lower, kept, what, kind = name.lower(), b"", b"", b""
        if found := _OPENAI.fullmatch(lower):
            what, kind = found[1], _SPELLINGS.get(found[2], found[2])
        elif found := _NATIVE.fullmatch(lower):
            kept, what, kind = lower, found[2], found[1]
        free = (kind == b"requests" and not requests_taken) or (kind == b"tokens" and not tokens_taken)
        openai = b"x-ratelimit-%b-%b" % (what, kind) if free else b""
        if kept or openai:
            headers.append((name, kept, openai))
    shown: dict[bytes, bytes] = {}
    for name, kept, openai in headers:
        if kept:
            shown[kept] = name
        if openai:
            shown.setdefault(openai, name)
    told = _Told(tuple(headers), tuple(shown.values()), b"".join([b"%b: %%b\r\n" % name for name in shown]))
    if len(_known) >= MAX_KNOWN:
        _known.clear()
    if len(names) <= MAX_NAMES:
        _known[names, requests_taken, tokens_taken] = told
    return told


def _duration(moment: bytes, now_seconds: float) -> bytes:
    """From an RFC 3339 moment; nothing if it is none."""
    try:
        at = datetime.fromisoformat(moment.decode("ascii"))
    except ValueError:
        return b""
    at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return format_reset(max(0.0, at.timestamp() - now_seconds)).encode("ascii")


def shares_left(fields: Mapping[bytes, bytes]) -> dict[str, float]:
    """By kind of limit (`requests`, `tokens`, `input_tokens` …): what is left of it, 0 to 1."""
    numbers: dict[tuple[bytes, bytes], float] = {}
    for name, value in fields.items():
        lower = name.lower()
        if found := _OPENAI.fullmatch(lower):
            what, kind = found[1], _SPELLINGS.get(found[2], found[2])
        elif found := _NATIVE.fullmatch(lower):
            what, kind = found[2], found[1]
        else:
            continue
        if _WHOLE.fullmatch(value):
            numbers[what, kind] = int(value)
    return {
        kind.decode().replace("-", "_"): min(1.0, numbers[b"remaining", kind] / limit)
        for (what, kind), limit in numbers.items()
        if what == b"limit" and limit > 0 and (b"remaining", kind) in numbers
    }
