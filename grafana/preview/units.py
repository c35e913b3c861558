"""How numbers are written in each unit that the boards use."""

from __future__ import annotations

from datetime import datetime

_BIG = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def shown(value: object, unit: str) -> str:
    """A cell or a number on an axis. What is no number is shown as it is."""
    if value is None:
        return "–"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    if unit == "string" or isinstance(value, str):
        return str(value)
    number = float(value)  # type: ignore[arg-type]  # numbers of Postgres are int, float and Decimal
    match unit:
        case "percentunit":
            return f"{number * 100:.4g} %"
        case "currencyUSD":
            return f"${_short(number)}"
        case "reqps":
            return f"{_short(number)} req/s"
        case "ops":
            return f"{_short(number)} /s"
        case "bytes":
            return f"{number / 2**20:.4g} MiB"
        case "ms":
            return _seconds(number / 1000)
        case "s":
            return _seconds(number)
        case "h":
            return _seconds(number * 3600)
    return _short(number)


def _short(number: float) -> str:
    for size, letter in _BIG:
        if abs(number) >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.3g}"


def _seconds(number: float) -> str:
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"), (1e-3, "ms")):
        if abs(number) >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number * 1e6:.3g} µs" if number else "0 s"
