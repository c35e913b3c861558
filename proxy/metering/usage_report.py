"""
The answer to a question of usage: totals and lines, as objects for JSON or as CSV.

Money is integers of nano-dollars, and beside them the same as dollars in decimal text; no float touches it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any

import msgspec

from proxy.metering.periods import full_hour, pieces
from proxy.metering.usage_questions import Question, cursor_after
from proxy.storage.postgres import Connection
from proxy.storage.usage_reports import NOBODY, After, read_report

COUNTS = (
    "attempts",
    "errors",
    "estimated",
    "unpriced",
    "input_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "output_tokens",
    "reasoning_tokens",
    "cost_nano_usd",
)
WITH_IDS = ("key", "user", "team")
FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""What a cell begins with that a spreadsheet would calculate."""

CUT_HOURS = (
    "Usage is kept by the full hour in UTC, and periods in this time zone begin within one: such an hour is counted in "
    "the period in which it begins."
)


class Report(msgspec.Struct, frozen=True):
    question: Question
    totals: dict[str, Any]
    lines: list[dict[str, Any]]
    after: After | None
    """Where the next page begins, if there is one."""
    cut_hours: bool
    """Whether a period begins within an hour of what is kept."""


async def answer(
    connection: Connection, question: Question, static: Mapping[str, str] = MappingProxyType({})
) -> Report:
    """
    One page, of what the connection's role may see. `static`: id -> name of the keys of the configuration, which the
    database does not know.
    """
    narrowed = question.narrowed
    ids = {name: id for id, name in static.items()}
    if narrowed.key in ids:
        narrowed = msgspec.structs.replace(narrowed, key=ids[narrowed.key])
    periods = question.periods()
    cuts = [max(full_hour(start), question.since) for start in periods] + [question.until]
    needed = pieces(cuts)
    totals, rows = await read_report(
        connection,
        days=needed.days,
        hours=needed.hours,
        by=question.by,
        narrowed=narrowed,
        by_time=question.granularity is not None,
        after=question.after,
        limit=question.limit + 1,
    )
    spans = list(zip(periods, [*periods[1:], question.until], strict=True))
    lines = [_line(question, row, static, *spans[row["period"]]) for row in rows[: question.limit]]
    after = None
    if len(rows) > question.limit:
        last = rows[question.limit - 1]
        after = After(last["period"], last["descending"], tuple(last["label"]))
    cut_hours = any(start != full_hour(start) for start in periods)
    return Report(question, _counted(totals), lines, after, cut_hours)


def next_cursor(report: Report) -> str | None:
    return None if report.after is None else cursor_after(report.question, report.after)


def to_object(report: Report) -> dict[str, Any]:
    question, cursor = report.question, next_cursor(report)
    return {
        "object": "usage",
        "since": question.since.astimezone(question.where).isoformat(),
        "until": question.until.astimezone(question.where).isoformat(),
        "tz": question.tz,
        "granularity": question.granularity,
        "by": question.by,
        "notice": CUT_HOURS if report.cut_hours else None,
        "totals": report.totals,
        "data": report.lines,
        "has_more": cursor is not None,
        "next_cursor": cursor,
    }


def to_csv(report: Report) -> str:
    """A head line and the lines of the page; no totals, which would be counted twice by whoever adds up a column."""
    written = io.StringIO()
    writer = csv.writer(written)
    columns = list(_columns(report.question))
    writer.writerow(columns)
    for line in report.lines:
        writer.writerow([_cell(line[column]) for column in columns])
    return written.getvalue()


def dollars(nano_usd: int) -> str:
    """Every digit there is, always nine of them: `-0.000061000`."""
    whole, rest = divmod(abs(nano_usd), 10**9)
    return f"{'-' if nano_usd < 0 else ''}{whole}.{rest:09d}"


def _columns(question: Question) -> Iterator[str]:
    if question.granularity is not None:
        yield from ("start", "end")
    for name in question.by:
        if name in WITH_IDS:
            yield f"{name}_id"
        yield name
    yield from (*COUNTS, "cost_usd")


def _line(
    question: Question, row: Mapping[str, Any], static: Mapping[str, str], start: datetime, end: datetime
) -> dict[str, Any]:
    line: dict[str, Any] = {}
    if question.granularity is not None:
        begun = start if full_hour(start) >= question.since else question.since
        line["start"] = begun.astimezone(question.where).isoformat()
        line["end"] = end.astimezone(question.where).isoformat()
    for name in question.by:
        if name in WITH_IDS:
            id = row[f"{name}_id"]
            line[f"{name}_id"] = None if id == NOBODY else id
        line[name] = row[name]
        if name == "key" and row["key"] is None:
            line[name] = static.get(row["key_id"])
    return line | _counted(row)


def _counted(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in COUNTS} | {"cost_usd": dollars(row["cost_nano_usd"])}


def _cell(value: object) -> object:
    """Text from elsewhere must not be a formula where the file is opened; numbers, below zero too, stay numbers."""
    if isinstance(value, str) and value.lstrip(" ").startswith(FORMULAS) and not _is_number(value):
        return f"'{value}"
    return value


def _is_number(text: str) -> bool:
    return text.removeprefix("-").replace(".", "", 1).isdecimal()
