"""
How a provider's own limits stand, in OpenAI's names: `x-ratelimit-{limit,remaining,reset}-{requests,tokens}`, resets as
durations. Other spellings are known by their form; what came under a name of the provider's own is kept under it too.

The caller's own limits come first: `limit_lines` leaves out the names that are `taken`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime

from proxy.admission.limits import format_reset

_OPENAI = re.compile(rb"x-ratelimit-(limit|remaining|reset)-(requests|tokens|req-minute|tokens-minute)")
_NATIVE = re.compile(rb"[a-z]+-ratelimit-(requests|tokens|input-tokens|output-tokens)-(limit|remaining|reset)")
_PLAIN = re.compile(rb"[A-Za-z0-9.:+-]{1,40}")
MAX_CHARACTERS = 40
MAX_KNOWN = 256
MAX_NAMES = 64
_SPELLINGS = {b"req-minute": b"requests", b"tokens-minute": b"tokens"}


_Told = tuple[bytes, bytes, bytes]
"""A header's name as it came; in lower case, if it is shown under it, too; OpenAI's name for it. Or b""."""

_known: dict[tuple[bytes, ...], tuple[_Told, ...]] = {}
"""What a head says of limits, by all its names: a provider sends the same ones again and again."""


def limit_lines(fields: Mapping[bytes, bytes], now_seconds: float, taken: bytes = b"") -> bytes:
    """Header lines for the client; `fields` are an answer's, `now_seconds` is Unix time, `taken` are lines of ours."""
    names = tuple(fields)
    told = _known.get(names)
    if told is None:
        told = _learn(names)
    shown: dict[bytes, bytes] = {}
    for name, kept, openai in told:
        if not kept and openai in taken:
            continue
        value = fields[name]
        if not (value.isalnum() and len(value) <= MAX_CHARACTERS):
            value = value.strip()
            if not _PLAIN.fullmatch(value):
                continue
        if kept:
            shown[kept] = value
        if openai and openai not in taken:
            if b"T" in value:
                value = _duration(value, now_seconds)
            if value and openai not in shown:
                shown[openai] = value
    return b"".join([b"%b: %b\r\n" % pair for pair in shown.items()]) if shown else b""


def _learn(names: tuple[bytes, ...]) -> tuple[_Told, ...]:
    told: list[_Told] = []
    for name in names:
        lower = name.lower()
        if found := _OPENAI.fullmatch(lower):
            told.append((name, b"", b"x-ratelimit-%b-%b" % (found[1], _SPELLINGS.get(found[2], found[2]))))
        elif found := _NATIVE.fullmatch(lower):
            openai = found[1] in (b"requests", b"tokens")
            told.append((name, lower, b"x-ratelimit-%b-%b" % (found[2], found[1]) if openai else b""))
    if len(_known) >= MAX_KNOWN:
        _known.clear()
    if len(names) <= MAX_NAMES:
        _known[names] = tuple(told)
    return tuple(told)


def _duration(moment: bytes, now_seconds: float) -> bytes:
    """From an RFC 3339 moment; nothing if it is none."""
    try:
        at = datetime.fromisoformat(moment.decode("ascii"))
    except ValueError:
        return b""
    at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return format_reset(max(0.0, at.timestamp() - now_seconds)).encode("ascii")
