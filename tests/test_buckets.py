"""A bucket is exact: never more than it holds and what time refills, in any stretch of time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.admission.allowances import Allowance, burst_of
from proxy.buckets import MINUTE_NS, Bucket
from proxy.exchange import Limit

RATES = st.integers(1, 1_000_000_000)
STEPS = st.lists(st.tuples(st.integers(0, MINUTE_NS), st.integers(1, 40)), min_size=1, max_size=60)


def allowance(
    rpm: int | None = None, tpm: int | None = None, max_parallel: int | None = None, *, burst_seconds: int = 60
) -> Allowance:
    return Allowance(Limit("key:k", "key", rpm, tpm, max_parallel, burst_seconds))


@given(per_minute=RATES, size=st.integers(1, 60), steps=STEPS)
def test_no_stretch_of_time_lets_more_pass_than_the_burst_and_what_refills(
    per_minute: int, size: int, steps: list[tuple[int, int]]
) -> None:
    bucket, now, passed = Bucket(per_minute, size), 0, []
    for step, count in steps:
        now += step
        if bucket.take(count, now):
            passed.append((now, count))
        assert 0 <= bucket.remaining(now) <= size
    for first in range(len(passed)):
        total = 0
        for at, count in passed[first:]:
            total += count
            assert total * MINUTE_NS <= size * MINUTE_NS + (at - passed[first][0]) * per_minute


@given(per_minute=st.integers(1, 1000), size=st.integers(1, 60), now=st.integers(0, 10**18))
def test_whoever_waits_as_long_as_told_passes_and_not_a_nanosecond_sooner(per_minute: int, size: int, now: int) -> None:
    bucket = Bucket(per_minute, size)
    while bucket.take(1, now):
        pass
    wait = bucket.wait_ns(1, now)
    assert wait > 0
    assert not bucket.take(1, now + wait - 1)
    assert bucket.take(1, now + wait)


@given(
    tpm=st.integers(1, 10_000_000),
    turns=st.lists(st.tuples(st.integers(0, MINUTE_NS), st.integers(1, 5000), st.integers(0, 5000)), max_size=40),
)
def test_what_is_taken_less_what_is_given_back_never_exceeds_the_limit(
    tpm: int, turns: list[tuple[int, int, int]]
) -> None:
    """Tokens are taken by an estimate and put right by the truth: in any stretch their sum stays within the limit."""
    bucket, now = Bucket(tpm, 5000), 0
    moves: list[tuple[int, int]] = []
    for step, estimate, used in turns:
        now += step
        if bucket.take(estimate, now):
            moves.append((now, estimate))
            now += step
            before = bucket.owed_at(now)
            bucket.charge(min(used, estimate) - estimate, now)
            moves.append((now, -(before - bucket.owed_at(now)) // MINUTE_NS))
    for first in range(len(moves)):
        total = 0
        for at, tokens in moves[first:]:
            total += tokens
            if tokens > 0:
                assert (total - 1) * MINUTE_NS <= bucket.full + (at - moves[first][0]) * tpm


def test_an_answer_longer_than_was_taken_for_it_is_paid_before_the_next_one_passes() -> None:
    mine = allowance(tpm=600)
    assert mine.take(100, 0)
    mine.end(100, 700, 0)
    assert not mine.take(1, 0)
    assert mine.short(1, 0).wait_ns == (700 - 600 + 1) * MINUTE_NS // 600
    assert mine.take(1, 11 * 1_000_000_000)


def test_a_request_larger_than_the_whole_bucket_passes_when_it_is_full() -> None:
    mine = allowance(tpm=600)
    assert mine.take(10_000, 0)
    assert not mine.take(1, 0)
    mine.end(10_000, 20, 0)
    assert mine.take(580, 0)


@given(steps=st.lists(st.tuples(st.integers(0, 10**9), st.integers(1, 400), st.booleans()), min_size=1, max_size=60))
def test_a_turn_takes_of_everything_or_of_nothing(steps: list[tuple[int, int, bool]]) -> None:
    mine, now, running = allowance(rpm=20, tpm=1000, max_parallel=3), 0, 0
    assert mine.requests is not None and mine.tokens is not None
    for step, tokens, ends in steps:
        now += step
        before = (mine.requests.owed_at(now), mine.tokens.owed_at(now), mine.running)
        if mine.take(tokens, now):
            running += 1
            assert mine.requests.owed_at(now) == before[0] + MINUTE_NS
            assert mine.tokens.owed_at(now) == before[1] + tokens * MINUTE_NS
            assert mine.running == running <= 3
        else:
            assert (mine.requests.owed_at(now), mine.tokens.owed_at(now), mine.running) == before
            assert mine.short(tokens, now).wait_ns > 0 or mine.running == 3
        if ends and running:
            running -= 1
            mine.end(tokens, tokens, now)


def test_a_lowered_limit_holds_at_once_and_owes_no_more_than_it_holds() -> None:
    mine = allowance(rpm=100)
    for _ in range(100):
        assert mine.take(0, 0)
    mine.set(Limit("key:k", "key", rpm=1))
    assert mine.short(0, 0).wait_ns == MINUTE_NS
    assert mine.take(0, MINUTE_NS)


def test_a_raised_limit_holds_at_once() -> None:
    mine = allowance(rpm=1)
    assert mine.take(0, 0)
    assert not mine.take(0, 0)
    mine.set(Limit("key:k", "key", rpm=100))
    assert mine.take(0, 0)


def test_a_burst_is_what_its_seconds_allow_and_one_at_least() -> None:
    assert burst_of(60, 60) == 60
    assert burst_of(60, 10) == 10
    assert burst_of(60, 120) == 120
    assert burst_of(5, 1) == 1
    assert burst_of(0, 60) == 0
    mine = allowance(rpm=60, burst_seconds=2)
    assert [mine.take(0, 0) for _ in range(3)] == [True, True, False]


def test_a_limit_of_zero_lets_nothing_pass() -> None:
    for mine in (allowance(rpm=0), allowance(tpm=0), allowance(max_parallel=0)):
        assert not mine.take(1, 0)


def test_a_part_of_a_limit_is_fair_and_never_nothing() -> None:
    part = Allowance(Limit("key:k", "key", 60, 6000, 1), workers=3)
    assert part.requests is not None and part.tokens is not None
    assert (part.requests.per_minute, part.requests.size, part.parallel) == (20, 20, 1)
    assert (part.tokens.per_minute, part.tokens.size) == (2000, 2000)
