"""Requests a minute: never more than the limit in a bucket, and a refusal says exactly when to come back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.admission.limits import MINUTE_NS, Limits, RateLimit, format_reset


def test_a_minute_s_requests_pass_at_once_and_the_next_is_told_when() -> None:
    limits = Limits()
    passed = [limits.take("ci", 3, 0) for _ in range(3)]
    assert [turn.remaining for turn in passed] == [2, 1, 0]
    assert passed[-1].reset_seconds == 60.0
    assert limits.take("ci", 3, 0) == RateLimit(3, 0, 60.0, 20.0)
    assert limits.take("ci", 3, 20_000_000_000).retry_after_seconds == 0.0


def test_a_limit_of_zero_lets_nothing_pass_and_remembers_nobody() -> None:
    limits = Limits()
    assert limits.take("ci", 0, 0).retry_after_seconds > 0
    assert len(limits) == 0


def test_one_key_s_requests_are_not_another_s() -> None:
    limits = Limits()
    assert limits.take("a", 1, 0).retry_after_seconds == 0
    assert limits.take("b", 1, 0).retry_after_seconds == 0
    assert limits.take("a", 1, 0).retry_after_seconds == 60.0


@given(
    per_minute=st.integers(1, 5_000_000),
    steps=st.lists(st.integers(0, 2 * MINUTE_NS), min_size=1, max_size=60),
)
def test_no_stretch_of_time_lets_more_pass_than_one_bucket_and_what_refills(per_minute: int, steps: list[int]) -> None:
    limits, now, passed = Limits(), 0, []
    for step in steps:
        now += step
        turn = limits.take("ci", per_minute, now)
        assert 0 <= turn.remaining < per_minute
        assert turn.limit == per_minute
        if not turn.retry_after_seconds:
            passed.append(now)
    for first in range(len(passed)):
        for last in range(first, len(passed)):
            refilled = (passed[last] - passed[first]) * per_minute // MINUTE_NS
            assert last - first + 1 <= per_minute + refilled + 1


@given(per_minute=st.integers(1, 300), now=st.integers(0, 10**18))
def test_whoever_waits_as_long_as_told_passes(per_minute: int, now: int) -> None:
    limits = Limits()
    while not (turn := limits.take("ci", per_minute, now)).retry_after_seconds:
        assert turn.reset_seconds <= 60.001
    assert limits.take("ci", per_minute, now + int(turn.retry_after_seconds * 1e9) - 1000).retry_after_seconds
    assert not limits.take("ci", per_minute, now + int(turn.retry_after_seconds * 1e9) + 1000).retry_after_seconds


def test_a_lowered_limit_holds_at_once_and_owes_no_more_than_a_minute() -> None:
    limits = Limits()
    for _ in range(100):
        limits.take("ci", 100, 0)
    assert limits.take("ci", 1, 0).retry_after_seconds <= 60.0
    assert not limits.take("ci", 1, MINUTE_NS).retry_after_seconds


def test_keys_that_rest_are_forgotten_and_nobody_notices() -> None:
    limits = Limits(max_entries=4)
    for number in range(1000):
        limits.take(str(number), 60, number * MINUTE_NS)
    assert len(limits) <= 4
    assert limits.evicted_total == 0


def test_a_full_map_of_busy_keys_drops_one_of_them_and_counts_it() -> None:
    limits = Limits(max_entries=4)
    for number in range(10):
        limits.take(str(number), 1, 0)
    assert len(limits) == 4
    assert limits.evicted_total == 6
    assert limits.take("9", 1, 0).retry_after_seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (-1, "0s"),
        (0.012, "12ms"),
        (0.9996, "1s"),
        (1.5, "1.5s"),
        (59.999, "59.999s"),
        (60, "1m0s"),
        (360, "6m0s"),
        (90.951, "1m30.951s"),
        (3600, "1h0m0s"),
        (3661.5, "1h1m1.5s"),
    ],
)
def test_resets_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert format_reset(seconds) == text
