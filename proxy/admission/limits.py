"""
How many requests a minute. Pure: the clock is an argument, in integer nanoseconds.

GCRA, the token bucket that needs one number a key: the instant at which its bucket is full again. A bucket holds one
minute's requests; one that is full is the same as none, so forgetting idle keys changes nothing.
"""

from __future__ import annotations

import msgspec

MINUTE_NS = 60_000_000_000


class RateLimit(msgspec.Struct, frozen=True):
    """The state of a limit after a request asked for its turn."""

    limit: int
    """Requests a minute."""
    remaining: int
    """How many would pass right now."""
    reset_seconds: float
    """Until all of them would."""
    retry_after_seconds: float = 0.0
    """0: this request passed. Otherwise it was refused, and one would pass after so long."""


class Limits:
    """Buckets of this process, by any string. At most `max_entries`: beyond that the oldest makes room."""

    def __init__(self, *, max_entries: int = 100_000) -> None:
        self._full_at_ns: dict[str, int] = {}
        self._max_entries = max_entries
        self.evicted_total = 0
        """Buckets dropped before they were full again; each let a key have its whole minute once more."""

    def __len__(self) -> int:
        return len(self._full_at_ns)

    def take(self, subject: str, per_minute: int, now_ns: int) -> RateLimit:
        """One request's turn at `now_ns`, or how long to wait for one."""
        if per_minute <= 0:
            return RateLimit(0, 0, 60.0, 60.0)
        interval = -(-MINUTE_NS // per_minute)
        minute = interval * per_minute
        known = self._full_at_ns.get(subject)
        full_at = now_ns if known is None or known < now_ns else known
        # After a change of the limit a bucket may owe more than a new one can hold
        owed = min(full_at - now_ns, minute)
        if owed + interval > minute:
            return RateLimit(per_minute, 0, owed / 1e9, (owed + interval - minute) / 1e9)
        owed += interval
        if known is None:
            self._make_room(now_ns)
        self._full_at_ns[subject] = now_ns + owed
        return RateLimit(per_minute, (minute - owed) // interval, owed / 1e9)

    def _make_room(self, now_ns: int) -> None:
        """Looks at the two oldest buckets for each new one, so that a sweep never holds the event loop."""
        for _ in range(min(2, len(self._full_at_ns))):
            subject = next(iter(self._full_at_ns))
            full_at = self._full_at_ns.pop(subject)
            if full_at > now_ns:
                self._full_at_ns[subject] = full_at
        if len(self._full_at_ns) >= self._max_entries:
            del self._full_at_ns[next(iter(self._full_at_ns))]
            self.evicted_total += 1


def format_reset(seconds: float) -> str:
    """A duration as OpenAI's `x-ratelimit-reset-…` headers write it: `12ms`, `1.5s`, `6m0s`, `1h0m0s`."""
    milliseconds = max(0, round(seconds * 1000))
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds else "0s"
    minutes, rest = divmod(milliseconds, 60_000)
    tail = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if not minutes:
        return tail
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{tail}" if hours else f"{minutes}m{tail}"
