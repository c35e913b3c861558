"""One thing that was looked at, and how it is. The message holds cause and fix, and never a secret."""

from __future__ import annotations

from typing import Literal

import msgspec

Level = Literal["ok", "warn", "fail"]


class Finding(msgspec.Struct, frozen=True):
    level: Level
    about: str
    message: str


def ok(about: str, message: str) -> Finding:
    return Finding("ok", about, message)


def warn(about: str, message: str) -> Finding:
    """It works, and is not fit for others to rely on."""
    return Finding("warn", about, message)


def fail(about: str, message: str) -> Finding:
    return Finding("fail", about, message)


def count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def some(names: list[str], most: int = 3) -> str:
    """`a, b, c and 4 more`."""
    shown = ", ".join(name if name.isprintable() else "?" for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
