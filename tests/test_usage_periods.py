"""Calendar periods of time zones, and that the pieces of the roll-ups cover each hour once, in its period."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.metering.periods import DAY, GRANULARITIES, HOUR, Granularity, full_hour, pieces, starts, zone

ZONES = (
    "UTC", "Europe/Berlin", "America/Los_Angeles", "Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe",
    "Pacific/Apia", "America/Havana", "America/Asuncion", "Asia/Tokyo", "Pacific/Kiritimati",
)  # fmt: skip


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def shown(since: str, until: str, granularity: Granularity, tz: str) -> list[str]:
    where = zone(tz)
    found = starts(moment(since), moment(until), granularity, where)
    return [start.astimezone(where).isoformat(timespec="minutes") for start in found]


@pytest.mark.parametrize(
    ("since", "until", "granularity", "tz", "expected"),
    [
        ("2026-03-28T12:00", "2026-03-30T10:00", "day", "Europe/Berlin",
         ["2026-03-28T00:00+01:00", "2026-03-29T00:00+01:00", "2026-03-30T00:00+02:00"]),
        ("2026-10-25T00:00", "2026-10-25T03:00", "hour", "Europe/Berlin",
         ["2026-10-25T02:00+02:00", "2026-10-25T02:00+01:00", "2026-10-25T03:00+01:00"]),
        ("2026-01-01T00:00", "2026-01-12T00:00", "week", "UTC",
         ["2025-12-29T00:00+00:00", "2026-01-05T00:00+00:00"]),
        ("2026-01-31T23:30", "2026-03-01T00:00", "month", "Europe/Berlin",
         ["2026-02-01T00:00+01:00", "2026-03-01T00:00+01:00"]),
        ("2026-10-31T00:00", "2026-11-02T00:00", "day", "Asia/Kolkata",
         ["2026-10-31T00:00+05:30", "2026-11-01T00:00+05:30", "2026-11-02T00:00+05:30"]),
        ("2026-11-01T05:00", "2026-11-02T04:00", "day", "America/Havana",
         ["2026-11-01T00:00-04:00"]),                    # midnight comes twice: the day begins with the first
        ("2011-12-29T12:00", "2011-12-31T12:00", "day", "Pacific/Apia",
         ["2011-12-29T00:00-10:00", "2011-12-31T00:00+14:00", "2012-01-01T00:00+14:00"]),  # a day was left out
        ("2023-10-01T00:00", "2023-10-02T00:00", "day", "America/Asuncion",
         ["2023-09-30T00:00-04:00", "2023-10-01T01:00-03:00"]),  # midnight was left out
    ],
)  # fmt: skip
def test_periods_begin_when_the_calendar_of_the_zone_says_so(
    since: str, until: str, granularity: Granularity, tz: str, expected: list[str]
) -> None:
    assert shown(since, until, granularity, tz) == expected


def test_a_zone_that_there_is_not_is_refused() -> None:
    for name in ("Mars/Olympus", "../../etc/passwd", "", "Europe", "europe/berlin\0"):
        with pytest.raises(KeyError):
            zone(name)


HOURS = st.integers(0, 24 * 800).map(lambda hours: moment("2025-01-01") + hours * HOUR)


@given(HOURS, st.integers(1, 24 * 90), st.sampled_from(GRANULARITIES), st.sampled_from(ZONES))
def test_each_hour_is_counted_once_in_the_period_in_which_it_begins(
    since: datetime, hours: int, granularity: Granularity, tz: str
) -> None:
    until = since + hours * HOUR
    begun = list(starts(since, until, granularity, zone(tz)))
    assert begun == sorted(set(begun))
    needed = pieces([max(full_hour(start), since) for start in begun] + [until])
    counted: Counter[tuple[datetime, int]] = Counter()
    for day, period in needed.days:
        assert day.hour == 0
        counted.update({(day + hour * HOUR, period): 1 for hour in range(24)})
    for hour, added_to, taken_off in needed.hours:
        counted[hour, -1 if added_to is None else added_to] += 1
        counted[hour, -1 if taken_off is None else taken_off] -= 1
    expected = {}
    for number in range(hours):
        hour = since + number * HOUR
        # of the periods that have begun by then, the last; its first is cut by `since`
        expected[hour, sum(start <= hour for start in begun) - 1] = 1
    assert {key: count for key, count in counted.items() if count and key[1] >= 0} == expected
    assert len(needed.hours) <= (hours + 24 if granularity != "hour" else hours)


def test_a_year_of_days_in_utc_reads_no_hours() -> None:
    since, until = moment("2025-11-01"), moment("2026-11-01")
    for granularity in ("day", "month"):
        needed = pieces([*starts(since, until, granularity, UTC), until])
        assert (len(needed.days), needed.hours) == (365, [])
    whole = pieces([since + HOUR, until - DAY - timedelta(hours=3)])
    assert (len(whole.days), len(whole.hours)) == (364, 4)
