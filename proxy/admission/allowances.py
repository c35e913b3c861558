"""
One limit, as one worker keeps it: a bucket of requests, one of tokens, and how many requests run. Pure: the clock is an
argument, in integer nanoseconds.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from proxy.buckets import MINUTE_NS, Bucket
from proxy.exchange import Limit

UNLIMITED = 2**62

Kind = Literal["rpm", "tpm", "concurrency"]


class Short(NamedTuple):
    """What kept a request from passing, and how long until it would."""

    limit: Limit
    kind: Kind
    wait_ns: int


def burst_of(per_minute: int, burst_seconds: int) -> int:
    """How many may come at once: those of `burst_seconds`, and one at least."""
    return max(1, per_minute * burst_seconds // 60) if per_minute else 0


class Allowance:
    """One limit, as this worker keeps it: two buckets, and how many requests run."""

    __slots__ = ("limit", "parallel", "requests", "running", "tokens")

    def __init__(self, limit: Limit, *, workers: int = 1) -> None:
        self.running = 0
        self.requests: Bucket | None = None
        self.tokens: Bucket | None = None
        self.set(limit, workers)

    def set(self, limit: Limit, workers: int = 1) -> None:
        """From now on this limit, or a fair part of it. What is owed stays owed, as far as a bucket can hold it."""
        self.limit = limit
        self.requests = _bucket(limit.rpm, limit.burst_seconds, workers, self.requests)
        self.tokens = _bucket(limit.tpm, limit.burst_seconds, workers, self.tokens)
        self.parallel = UNLIMITED if limit.max_parallel is None else _part(limit.max_parallel, workers)

    def idle(self, now_ns: int) -> bool:
        """Nothing would change if it were forgotten."""
        return self.running == 0 and all(
            bucket is None or not bucket.owed_at(now_ns) for bucket in (self.requests, self.tokens)
        )

    def take(self, tokens: int, now_ns: int) -> bool:
        """A request's turn, with so many tokens: all of it, or nothing. `Bucket.take` twice, without the calls."""
        running = self.running
        if running >= self.parallel:
            return False
        requests, bucket, owed = self.requests, self.tokens, 0
        if requests is not None:
            owed = requests.owed - (now_ns - requests.at_ns) * requests.per_minute
            owed = owed + MINUTE_NS if owed > 0 else MINUTE_NS
            if owed > requests.full:
                return False
        if bucket is not None:
            left = bucket.owed - (now_ns - bucket.at_ns) * bucket.per_minute
            taken = (tokens if tokens < bucket.most else bucket.most) * MINUTE_NS
            left = left + taken if left > 0 else taken
            if left > bucket.full:
                return False
            bucket.owed = left
            bucket.at_ns = now_ns
        if requests is not None:
            requests.owed = owed
            requests.at_ns = now_ns
        self.running = running + 1
        return True

    def put_back(self, tokens: int, now_ns: int) -> None:
        """The turn was not used after all."""
        self.running -= 1
        if self.requests is not None:
            self.requests.charge(-1, now_ns)
        if self.tokens is not None:
            self.tokens.charge(-min(tokens, self.tokens.most), now_ns)

    def end(self, tokens: int, used: int, now_ns: int) -> None:
        """The request is over, and has used so many tokens."""
        self.running -= 1
        bucket = self.tokens
        if bucket is not None:
            owed = bucket.owed - (now_ns - bucket.at_ns) * bucket.per_minute
            more = (used - (tokens if tokens < bucket.most else bucket.most)) * MINUTE_NS
            owed = owed + more if owed > 0 else more
            bucket.owed = owed if owed > 0 else 0
            bucket.at_ns = now_ns

    def short(self, tokens: int, now_ns: int) -> Short:
        """Why `take` has just said no."""
        requests, bucket = self.requests, self.tokens
        if self.running >= self.parallel:
            return Short(self.limit, "concurrency", 0)
        waits = [Short(self.limit, "rpm", requests.wait_ns(1, now_ns))] if requests is not None else []
        if bucket is not None:
            waits.append(Short(self.limit, "tpm", bucket.wait_ns(min(tokens, bucket.most), now_ns)))
        return max(waits, key=lambda short: short.wait_ns)


def _bucket(per_minute: int | None, burst_seconds: int, workers: int, old: Bucket | None) -> Bucket | None:
    if per_minute is None:
        return None
    size = _part(burst_of(per_minute, burst_seconds), workers)
    bucket = Bucket(_part(per_minute, workers), size)
    if old is not None:
        # What the old one owes stays owed as a part of what it holds, whatever the new one holds
        bucket.owed, bucket.at_ns = min(old.owed, bucket.full), old.at_ns
    return bucket


def _part(number: int, workers: int) -> int:
    return max(1, number // workers) if number else 0
