"""
Calendar periods of a time zone, and the pieces of the roll-ups that add up to them. Pure.

Roll-ups are by the hour and by the day, in UTC, and a day elsewhere begins at another hour. Reading a year of hours is
slow, so a day that is cut in two is taken whole, and its smaller parts are moved: taken off one period and added to the
other. All numbers are integers, so nothing is lost by that.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Literal, NamedTuple, get_args
from zoneinfo import ZoneInfo, available_timezones

Granularity = Literal["hour", "day", "week", "month"]
GRANULARITIES: tuple[Granularity, ...] = get_args(Granularity)

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


class Pieces(NamedTuple):
    """What of the roll-ups is added up: days with their period, and hours with the one that they are added to and the
    one that they are taken off; None: no such period."""

    days: list[tuple[datetime, int]]
    hours: list[tuple[datetime, int | None, int | None]]


@lru_cache(1)
def zone_names() -> frozenset[str]:
    return frozenset(available_timezones()) | {"UTC"}


def zone(name: str) -> tzinfo:
    """KeyError: there is no such zone, or this machine does not know it."""
    if name == "UTC":
        return UTC
    if name not in zone_names():
        raise KeyError(name)
    return ZoneInfo(name)


def midnight(day: date, where: tzinfo) -> datetime:
    """The first moment of a day, in UTC. Where clocks skip midnight, the day begins at the first moment after it."""
    return datetime(day.year, day.month, day.day, tzinfo=where).astimezone(UTC)


def first_day(day: date, granularity: Granularity) -> date:
    """Of the period that the day is in. Weeks begin on Monday."""
    if granularity == "week":
        return day - timedelta(days=day.weekday())
    return day.replace(day=1) if granularity == "month" else day


def begins(moment: datetime, granularity: Granularity, where: tzinfo) -> datetime:
    """When the period began that the moment is in, in UTC."""
    if granularity == "hour":
        return hour_of(moment)
    return midnight(first_day(moment.astimezone(where).date(), granularity), where)


def hour_of(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def full_hour(moment: datetime) -> datetime:
    """The next full hour in UTC, or this one."""
    hour = hour_of(moment)
    return hour if hour == moment else hour + HOUR


def starts(since: datetime, until: datetime, granularity: Granularity, where: tzinfo) -> Iterator[datetime]:
    """The start of each period that has a part between the two, oldest first."""
    start = begins(since, granularity, where)
    while start < until:
        yield start
        start = _next(start, granularity, where)


def _next(start: datetime, granularity: Granularity, where: tzinfo) -> datetime:
    if granularity == "hour":
        return start + HOUR
    day = start.astimezone(where).date()
    if granularity == "month":
        return midnight((day.replace(day=1) + timedelta(days=32)).replace(day=1), where)
    return midnight(day + timedelta(days=7 if granularity == "week" else 1), where)


def pieces(cuts: Sequence[datetime]) -> Pieces:
    """For the periods between each of the cuts and the next, all of them on full hours in UTC: what to add up."""
    found = Pieces([], [])
    day = cuts[0].replace(hour=0)
    while day < cuts[-1]:
        at = bisect_right(cuts, day)
        if at and cuts[at] >= day + DAY:
            found.days.append((day, at - 1))
            day += DAY
            continue
        parts = list(_parts(day, cuts))
        most = max(parts, key=lambda part: part[1] - part[0])
        taken_off = most[2] if most[1] - most[0] > DAY / 2 else None
        if taken_off is not None:
            found.days.append((day, taken_off))
        for start, end, period in parts:
            if period != taken_off:
                found.hours.extend((hour, period, taken_off) for hour in _hours(start, end))
        day += DAY
    return found


def _parts(day: datetime, cuts: Sequence[datetime]) -> Iterator[tuple[datetime, datetime, int | None]]:
    """A day cut in parts, each with its period; None: before the first or after the last."""
    at = bisect_right(cuts, day)
    start = day
    while start < day + DAY:
        end = min(cuts[at], day + DAY) if at < len(cuts) else day + DAY
        yield start, end, at - 1 if 0 < at < len(cuts) else None
        start, at = end, at + 1


def _hours(start: datetime, end: datetime) -> Iterator[datetime]:
    while start < end:
        yield start
        start += HOUR
