"""
A provider's own usage export against the ledger, by day, model and key. Pure.

The export is CSV with a head line, or a JSON array of objects (an object with one in `data` or `rows` will do), in
these columns: `day` (2026-11-23, UTC) and `model` (the provider's name for it) are needed, `key` (the name of a virtual
key) where the provider knows it, and at least one of the numbers. Tokens are whole: `input_tokens` with cached and
written ones in it, `output_tokens` with reasoning in it, as providers bill them. `cost_usd` is a decimal, read exactly.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from decimal import ROUND_HALF_UP, Decimal
from typing import Any, Literal

import msgspec

from proxy.errors import CallerError

TOKENS = ("input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens", "requests")
COST = "cost_usd"
NUMBERS = (*TOKENS, COST)
COLUMNS = ("day", "model", "key", *NUMBERS)
MAX_VALUE = 10**15
MAX_ROWS = 1_000_000

Place = tuple[str, str, str]
"""Day, model, key; no key: an empty one."""


class Export(msgspec.Struct, frozen=True):
    """What a provider says, summed by place. Money is nano-dollars, under `cost_usd`."""

    numbers: tuple[str, ...]
    by_key: bool
    ignored: tuple[str, ...]
    """Columns that are not ours."""
    sums: dict[Place, dict[str, int]]

    @property
    def days(self) -> tuple[str, str]:
        """The first and the last."""
        days = [day for day, _, _ in self.sums]
        return min(days), max(days)


class Mismatch(msgspec.Struct, frozen=True):
    """`of`: which number; `difference` is what the provider says beyond the ledger."""

    day: str
    model: str
    key: str
    of: str
    provider: int
    ledger: int
    difference: int
    side: Literal["both", "provider", "ledger"]
    """Who knows of this day, model and key at all."""


def read_export(text: str) -> Export:
    """Raises CallerError with the line that is wrong."""
    rows = _json_rows(text) if text.lstrip()[:1] in ("[", "{") else _csv_rows(text)
    if not rows:
        raise _wrong("The export has no rows.")
    names = list(dict.fromkeys(name for row in rows for name in row))
    missing = [name for name in ("day", "model") if name not in names]
    numbers = tuple(name for name in NUMBERS if name in names)
    if missing or not numbers:
        raise _wrong(f"The export lacks {' and '.join(missing) or 'every number'}. Its columns: {', '.join(COLUMNS)}.")
    by_key = "key" in names
    sums: dict[Place, dict[str, int]] = {}
    for number, row in enumerate(rows, 1):
        place = (_day(row.get("day"), number), _text(row.get("model"), number), str(row.get("key") or ""))
        into = sums.setdefault(place, dict.fromkeys(numbers, 0))
        for name in numbers:
            into[name] += _number(row.get(name), name, number)
    return Export(numbers, by_key, tuple(name for name in names if name not in COLUMNS), sums)


def compare(export: Export, ledger: Iterable[Mapping[str, Any]]) -> list[Mismatch]:
    """Every number that differs, and every day, model and key that only one side knows with a number that is not 0."""
    ours: dict[Place, dict[str, int]] = {
        (row["day"], row["model"], row["key"]): {**{name: row[name] for name in TOKENS}, COST: row["cost_nano_usd"]}
        for row in ledger
    }
    found = []
    for place in sorted(ours.keys() | export.sums.keys()):
        theirs, mine = export.sums.get(place), ours.get(place)
        side: Literal["both", "provider", "ledger"] = (
            "ledger" if theirs is None else "provider" if mine is None else "both"
        )
        for name in export.numbers:
            said, known = (theirs or {}).get(name, 0), (mine or {}).get(name, 0)
            if said != known:
                found.append(Mismatch(*place, name, said, known, said - known, side))
    return found


def _csv_rows(text: str) -> Sequence[Mapping[str, Any]]:
    reader = csv.DictReader(io.StringIO(text), restkey="too many")
    try:
        rows = [{(name or "").strip().lower(): value for name, value in row.items()} for row in reader]
    except csv.Error as error:
        raise _wrong(f"Line {reader.line_num} is no CSV: {error}.") from None
    return _bounded(rows)


def _json_rows(text: str) -> Sequence[Mapping[str, Any]]:
    try:
        value = json.loads(text, parse_float=Decimal, parse_constant=lambda name: name)
    except (ValueError, RecursionError):
        raise _wrong("The export begins like JSON, and is none.") from None
    if isinstance(value, dict):
        value = value.get("data", value.get("rows"))
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        raise _wrong("The export must be an array of objects, each with day, model and numbers.")
    return _bounded(value)


def _bounded(rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    if len(rows) > MAX_ROWS:
        raise _wrong(f"The export has more than {MAX_ROWS:,} rows. Compare a month at a time.")
    return rows


def _day(value: object, number: int) -> str:
    try:
        return date.fromisoformat(str(value)[:10]).isoformat()
    except ValueError:
        raise _wrong(f"Row {number}: day must be like 2026-11-23, not {str(value)[:40]!r}.") from None


def _text(value: object, number: int) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _wrong(f"Row {number}: model is missing.")
    return value.strip()


def _number(value: object, name: str, row: int) -> int:
    """Whole tokens, or dollars as nano-dollars, rounded half up; nothing is 0."""
    if value is None or value == "":
        return 0
    scale = 9 if name == COST else 0
    try:
        number = Decimal(str(value).strip().removeprefix("$").replace(",", "")).scaleb(scale)
        whole = number.quantize(Decimal(1), ROUND_HALF_UP)
    except ArithmeticError:
        raise _wrong(f"Row {row}: {name} must be a number, not {str(value)[:40]!r}.") from None
    if not whole.is_finite() or abs(whole) > MAX_VALUE or (not scale and (number != whole or whole < 0)):
        raise _wrong(f"Row {row}: {name} cannot be {str(value)[:40]}.")
    return int(whole)


def _wrong(message: str) -> CallerError:
    return CallerError(message, code="bad_export")
