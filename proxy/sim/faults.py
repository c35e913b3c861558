"""
What goes wrong on purpose. A fault comes with the model's name (`sim/cut`) or with the header `x-strata-sim`, and the
header wins, key by key: `x-strata-sim: status=503,retry_after=1`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Literal

import msgspec

HEADER = "x-strata-sim"
DEFAULT_AFTER = 3


class Faults(msgspec.Struct, frozen=True):
    """How one answer is given. The defaults are a healthy provider that speaks at 40 tokens a second."""

    status: int = 0
    """Refuse with this HTTP status; 0: do not. Together with `after` a stream begins well and then fails with it."""
    after: int | None = None
    """How many content events come before the fault."""
    delay_seconds: float = 0.0
    """Silence before the response head."""
    speed: float = 40.0
    """Tokens a second of a stream; 0: as fast as the socket takes them."""
    cut: int | None = None
    """Drop the connection after so many content events; an answer that is not streamed loses its second half."""
    retry_after_seconds: float | None = None
    usage: Literal["exact", "none", "late"] = "exact"
    """`none`: usage is left out. `late`: a stream reports it behind `[DONE]`."""
    error: Literal["", "midstream"] = ""
    code: str = ""
    """OpenAI's error code, where the status alone does not say it."""
    every: int = 1
    """The fault meets every n-th call only."""

    @property
    def error_after(self) -> int | None:
        """After how many content events a stream ends in an error event; None: it does not."""
        if self.error == "midstream" or (self.status and self.after is not None):
            return DEFAULT_AFTER if self.after is None else self.after
        return None


MODELS: Mapping[str, Faults] = {
    "chat": Faults(),
    "echo": Faults(),
    "tools": Faults(),
    "json": Faults(),
    "reasoning": Faults(),
    "embed": Faults(),
    "slow": Faults(delay_seconds=8.0),
    "flaky": Faults(status=503, every=3),
    "limited": Faults(status=429, retry_after_seconds=2.0),
    "cut": Faults(cut=8),
    "long": Faults(status=400, code="context_length_exceeded"),
}
"""Every model there is, and what ails it."""


class BadFault(ValueError):
    """The header is not understood; the message says which part, and what may stand there."""


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", text):
        raise ValueError("a whole number")
    return int(text)


def _status(text: str) -> int:
    status = _count(text)
    if not 400 <= status <= 599:
        raise ValueError("a status from 400 to 599")
    return status


def _number(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,3})?", text):
        raise ValueError("a number that is not negative")
    return float(text)


def _duration(text: str) -> float:
    match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)(ms|s)", text)
    if not match:
        raise ValueError("a duration such as 200ms or 2s")
    return float(match[1]) / (1000 if match[2] == "ms" else 1)


def _one_of(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in words:
            raise ValueError(" or ".join(words))
        return text

    return read


_KEYS: Mapping[str, tuple[str, Callable[[str], object]]] = {
    "status": ("status", _status),
    "after": ("after", _count),
    "delay": ("delay_seconds", _duration),
    "speed": ("speed", _number),
    "cut": ("cut", _count),
    "retry_after": ("retry_after_seconds", _number),
    "usage": ("usage", _one_of("exact", "none", "late")),
    "error": ("error", _one_of("midstream")),
}


def parse(header: str, preset: Faults) -> Faults:
    """The preset, changed by the header's `key=value` pairs. A forced status or cut meets every call."""
    changes: dict[str, object] = {}
    for part in filter(None, (piece.strip() for piece in header.split(","))):
        key, equals, value = part.partition("=")
        if not equals or key not in _KEYS:
            raise BadFault(
                f'{HEADER} does not know "{part[:64]}". It takes {", ".join(f"{name}=…" for name in _KEYS)}.'
            )
        name, read = _KEYS[key]
        if name in changes:
            raise BadFault(f"{HEADER} names {key} twice. Give it once.")
        try:
            changes[name] = read(value)
        except ValueError as error:
            raise BadFault(f'{HEADER}: {key} must be {error}, not "{value[:64]}".') from None
    if changes.keys() & {"status", "cut", "error"}:
        changes |= {"every": 1, "code": ""}
    return msgspec.structs.replace(preset, **changes)
