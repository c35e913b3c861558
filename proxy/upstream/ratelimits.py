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
MAX_KNOWN = 1024
_SPELLINGS = {b"req-minute": b"requests", b"tokens-minute": b"tokens"}


_Names = tuple[bytes, bool]
"""OpenAI's name for a header, or b"", and whether it is shown under its own too."""

_known: dict[bytes, _Names | None] = {}
"""By name; None: it says nothing of limits. Providers send the same names again and again."""
_NEW: _Names = (b"new", False)


def limit_lines(fields: Mapping[bytes, bytes], now_seconds: float, taken: bytes = b"") -> bytes:
    """Header lines for the client; `fields` are an answer's, `now_seconds` is Unix time, `taken` are lines of ours."""
    shown: dict[bytes, bytes] = {}
    for name in fields:
        names = _known.get(name, _NEW)
        if names is _NEW:
            names = _learn(name)
        if names is None:
            continue
        openai, kept = names
        if not kept and openai in taken:
            continue
        value = fields[name].strip()
        if not (value.isalnum() and len(value) <= MAX_CHARACTERS) and not _PLAIN.fullmatch(value):
            continue
        if kept:
            shown[name] = value
        if openai:
            if b"T" in value:
                value = _duration(value, now_seconds)
            if value:
                shown.setdefault(openai, value)
    return b"".join([b"%b: %b\r\n" % pair for pair in shown.items() if pair[0] not in taken]) if shown else b""


def _learn(name: bytes) -> _Names | None:
    if len(_known) >= MAX_KNOWN:
        _known.clear()
    names: _Names | None = None
    if found := _OPENAI.fullmatch(name):
        names = b"x-ratelimit-%b-%b" % (found[1], _SPELLINGS.get(found[2], found[2])), False
    elif found := _NATIVE.fullmatch(name):
        openai = found[1] in (b"requests", b"tokens")
        names = (b"x-ratelimit-%b-%b" % (found[2], found[1]) if openai else b""), True
    _known[name] = names
    return names


def _duration(moment: bytes, now_seconds: float) -> bytes:
    """From an RFC 3339 moment; nothing if it is none."""
    try:
        at = datetime.fromisoformat(moment.decode("ascii"))
    except ValueError:
        return b""
    at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return format_reset(max(0.0, at.timestamp() - now_seconds)).encode("ascii")
