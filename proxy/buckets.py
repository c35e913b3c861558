"""
So many a minute. Pure: the clock is an argument, in integer nanoseconds.

A token bucket (GCRA) in exact integers: what is owed is counted in parts so small that every nanosecond pays a whole
number of them. A bucket that owes nothing is the same as none, so forgetting idle ones changes nothing.
"""

from __future__ import annotations

MINUTE_NS = 60_000_000_000


class Bucket:
    """So many a minute, `size` of them at once. `owed` is in parts: MINUTE_NS of them are one request, or one token."""

    __slots__ = ("at_ns", "full", "most", "owed", "per_minute", "size")

    def __init__(self, per_minute: int, size: int) -> None:
        self.per_minute = per_minute
        self.size = size
        self.full = size * MINUTE_NS
        self.most = max(1, size)
        """That a request takes, whatever it wants: one that is larger than the bucket passes when it is full."""
        self.owed = 0
        self.at_ns = 0

    def take(self, count: int, now_ns: int) -> bool:
        """Takes all of `count`, or nothing."""
        owed = self.owed_at(now_ns) + count * MINUTE_NS
        if owed > self.full:
            return False
        self.owed = owed
        self.at_ns = now_ns
        return True

    def charge(self, count: int, now_ns: int) -> None:
        """What was used beyond what was taken; below zero: given back. It may come to owe more than it holds."""
        self.owed = max(0, self.owed_at(now_ns) + count * MINUTE_NS)
        self.at_ns = now_ns

    def wait_ns(self, count: int, now_ns: int) -> int:
        """How long until `count` may be taken."""
        missing = self.owed_at(now_ns) + count * MINUTE_NS - self.full
        if missing <= 0:
            return 0
        return -(-missing // self.per_minute) if self.per_minute else MINUTE_NS

    def remaining(self, now_ns: int) -> int:
        return max(0, self.full - self.owed_at(now_ns)) // MINUTE_NS

    def reset_seconds(self, now_ns: int) -> float:
        """Until it is whole again."""
        return self.owed_at(now_ns) / self.per_minute / 1e9 if self.per_minute else 60.0

    def owed_at(self, now_ns: int) -> int:
        """In parts."""
        return max(0, self.owed - (now_ns - self.at_ns) * self.per_minute)
