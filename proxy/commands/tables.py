"""How commands write on a terminal: columns, money to the last digit, and text from elsewhere that moves no cursor."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec


def aligned(table: Sequence[Sequence[str]]) -> str:
    """Columns two spaces apart, the first row on top as it is."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in table]
    return "\n".join(line.rstrip() for line in lines)


def plain(text: str) -> str:
    """Text from the database on a terminal: nothing in it may move the cursor."""
    return "".join(char if char.isprintable() else "�" for char in text)


def exact_dollars(nano_usd: int) -> str:
    """Every digit there is, two of them at least: `$0.00`, `-$0.000061`."""
    whole, rest = divmod(abs(nano_usd), 10**9)
    return f"{'-' if nano_usd < 0 else ''}${whole:,}.{f'{rest:09d}'.rstrip('0').ljust(2, '0')}"


def to_json(value: object) -> str:
    return msgspec.json.encode(value).decode()
