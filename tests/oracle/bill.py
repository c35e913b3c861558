"""
The provider's own bill: one line of JSON for each request it received, appended before the last bytes go out, or when
the sender has hung up. Another process may read it at any time; a torn last line is not an item yet.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec


class Prices(msgspec.Struct, frozen=True):
    """Nano-dollars a token."""

    input: int = 250
    output: int = 2_000
    cache_read: int = 25
    cache_write: int = 500


class Item(msgspec.Struct, frozen=True):
    """
    One request. The token numbers are what the provider charges for; prompt tokens leave out those read from and
    written to the cache. `complete`: the answer was given to its own end. `sent_events`: content events that went out.
    """

    nonce: str
    ordinal: int
    """From 1: which request with this nonce it was."""
    api: str
    model: str
    stream: bool
    status: int
    input_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    output_tokens: int = 0
    """Reasoning included."""
    reasoning_tokens: int = 0
    sent_events: int = 0
    complete: bool = False
    nano_usd: int = 0


def price(item: Item, prices: Prices) -> int:
    return (
        item.input_tokens * prices.input
        + item.cache_read_tokens * prices.cache_read
        + (item.cache_write_5m_tokens + item.cache_write_1h_tokens) * prices.cache_write
        + item.output_tokens * prices.output
    )


class Bill:
    """The file, and the same items in memory for tests in this process."""

    def __init__(self, path: Path | None) -> None:
        self.items: list[Item] = []
        self._file = None if path is None else os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def add(self, item: Item) -> None:
        self.items.append(item)
        if self._file is not None:
            os.write(self._file, msgspec.json.encode(item) + b"\n")

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def read_bill(path: Path) -> list[Item]:
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    return [msgspec.json.decode(line, type=Item) for line in whole.splitlines()]
