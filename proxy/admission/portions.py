"""
What a worker has of a limit that several count together: requests, tokens and places to run, leased ahead, so that a
request touches whole numbers here and nothing else. Pure.

While nobody can be asked, the worker's fair part of the limit holds: that is the `Allowance` below, which hears of what
was used in the meantime too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from proxy.admission.allowances import UNLIMITED, Allowance, Kind, Short, burst_of
from proxy.buckets import MINUTE_NS, Bucket
from proxy.exchange import Limit
from proxy.storage.redis_limits import Asked, Granted

if TYPE_CHECKING:
    from asyncio import Future

NS_PER_MS = 1_000_000
IDLE_TICKS = 4
"""Unused for so many ticks, what is leased goes back."""
SHORT_AT_LEAST_NS = 10 * NS_PER_MS
SHORT_AT_MOST_NS = 250 * NS_PER_MS
"""For so long nobody asks again after a refusal, however long it takes until there would be enough."""
RENEW_NS = 2_000 * NS_PER_MS


class Wanted(NamedTuple):
    charge: int = 0
    want: int = 0
    need: int = 0


class Lease:
    """Of requests, or of tokens. Below zero, `free` is what was used without a lease, and is paid first."""

    __slots__ = ("free", "left", "pace", "per_minute", "size", "spent")

    def __init__(self, per_minute: int, size: int) -> None:
        self.per_minute = per_minute
        self.size = size
        self.free = 0
        self.left = 0
        """Nobody's, when Redis was last asked."""
        self.spent = 0
        """Since the last tick; what was given back is subtracted."""
        self.pace = 0
        """Spent in the tick before."""

    def plan(self, need: int | None, *, quiet: bool, workers: int) -> Wanted:
        """
        What to ask for: `need` and a little more; None: the use of two ticks. What is paid or given back leaves `free`
        at once, so that nobody spends it while Redis is told.
        """
        if self.free < 0:
            debt, self.free = -self.free, 0
            missing = need or 0
            return Wanted(debt, missing + self._usual(workers) if need or not quiet else 0, missing)
        usual = 0 if quiet else self._usual(workers)
        if need is not None:
            missing = max(0, need - self.free)
            return Wanted(0, missing + usual + self.size // (100 * workers) if missing else 0, missing)
        surplus = self.free - usual if quiet or self.free > 2 * usual + self.size // (50 * workers) else 0
        if surplus > 0:
            self.free = usual
            return Wanted(-surplus)
        return Wanted(0, max(0, usual - self.free))

    @property
    def remaining(self) -> int:
        return max(0, self.free) + self.left

    @property
    def reset_seconds(self) -> float:
        return max(0, self.size - self.remaining) * 60 / self.per_minute if self.per_minute else 60.0

    def _usual(self, workers: int) -> int:
        return min(2 * max(self.pace, self.spent, 0), self.size // (4 * workers))

    def take_over(self, granted: int, left: int) -> None:
        self.free += granted
        self.left = left

    def tick(self, bucket: Bucket | None, now_ns: int) -> bool:
        """Whether anything was used. The worker's own part, which holds while Redis is away, hears of it."""
        used, self.pace, self.spent = self.spent, self.spent, 0
        if used and bucket is not None:
            bucket.charge(used, now_ns)
            bucket.owed = min(bucket.owed, bucket.full)
        return used != 0


class Portion(Allowance):
    """One limit as this worker has it while Redis is there (`spend`, `settle`) and while it is not (`take`, `end`)."""

    __slots__ = (
        "active",
        "asking",
        "idle_ticks",
        "most_tokens",
        "refused",
        "refused_tokens",
        "refused_until_ns",
        "renewed_ns",
        "request_lease",
        "slots",
        "token_lease",
        "workers",
    )

    def __init__(self, limit: Limit, *, workers: int) -> None:
        self.active = False
        """Whether the background looks after it."""
        self.asking: Future[None] | None = None
        """Redis is being asked: one question at a time, and this is done when it is answered."""
        self.idle_ticks = 0
        self.renewed_ns = 0
        self.refused: Short | None = None
        self.refused_tokens = 0
        """So many were too many; fewer may still pass."""
        self.refused_until_ns = 0
        self.request_lease: Lease | None = None
        self.token_lease: Lease | None = None
        self.slots = 0
        """How many may run here."""
        super().__init__(limit, workers=workers)

    def set(self, limit: Limit, workers: int = 1) -> None:
        super().set(limit, workers)
        self.workers = workers
        self.most_tokens = max(1, burst_of(limit.tpm or 0, limit.burst_seconds))
        self.drop_lease()

    def share_with(self, workers: int) -> None:
        """There are more workers now, or fewer: the part that is this one's alone is another."""
        super().set(self.limit, workers)
        self.workers = workers

    def idle(self, now_ns: int) -> bool:
        return not self.active and super().idle(now_ns)

    def drop_lease(self) -> None:
        """What was leased is not known any more: Redis was away, or the limit is another."""
        rpm, tpm, burst_seconds = self.limit.rpm, self.limit.tpm, self.limit.burst_seconds
        self.request_lease = None if rpm is None else Lease(rpm, burst_of(rpm, burst_seconds))
        self.token_lease = None if tpm is None else Lease(tpm, burst_of(tpm, burst_seconds))
        self.slots = UNLIMITED if self.limit.max_parallel is None else 0
        self.refused = None

    def forget_lease(self, now_ns: int) -> None:
        """Redis was away and is back: what was leased counts for nothing, what was used without a lease is owed."""
        self.refused = None
        self.slots = UNLIMITED if self.limit.max_parallel is None else 0
        for lease, bucket in ((self.request_lease, self.requests), (self.token_lease, self.tokens)):
            if lease is not None and bucket is not None:
                # No more than time has not paid yet
                lease.free = max(min(lease.free, 0), -bucket.owed_at(now_ns) // MINUTE_NS)

    def take(self, tokens: int, now_ns: int) -> bool:
        """A request's turn out of this worker's own part. Redis hears of it later."""
        if not super().take(tokens, now_ns):
            return False
        if self.request_lease is not None:
            self.request_lease.free -= 1
        if self.token_lease is not None:
            self.token_lease.free -= min(tokens, self.most_tokens)
        return True

    def put_back(self, tokens: int, now_ns: int) -> None:
        super().put_back(tokens, now_ns)
        if self.request_lease is not None:
            self.request_lease.free += 1
        if self.token_lease is not None:
            self.token_lease.free += min(tokens, self.most_tokens)

    def end(self, tokens: int, used: int, now_ns: int) -> None:
        super().end(tokens, used, now_ns)
        if self.token_lease is not None:
            self.token_lease.free += min(tokens, self.most_tokens) - used

    def spend(self, tokens: int) -> bool:
        """A request's turn out of what is leased: all of it, or nothing."""
        requests, bucket = self.request_lease, self.token_lease
        if self.running >= self.slots or (requests is not None and requests.free < 1):
            return False
        if bucket is not None:
            if tokens > self.most_tokens:
                tokens = self.most_tokens
            if bucket.free < tokens:
                return False
            bucket.free -= tokens
            bucket.spent += tokens
        if requests is not None:
            requests.free -= 1
            requests.spent += 1
        self.running += 1
        return True

    def unspend(self, tokens: int) -> None:
        """The turn was not used after all."""
        if self.request_lease is not None:
            self.request_lease.free += 1
            self.request_lease.spent -= 1
        self.settle(tokens, 0)

    def settle(self, tokens: int, used: int) -> None:
        """The request is over, and has used so many tokens."""
        self.running -= 1
        bucket = self.token_lease
        if bucket is not None:
            more = used - (tokens if tokens < self.most_tokens else self.most_tokens)
            bucket.free -= more
            bucket.spent += more

    def lacks(self, tokens: int) -> bool:
        requests, bucket = self.request_lease, self.token_lease
        return (
            self.running >= self.slots
            or (requests is not None and requests.free < 1)
            or (bucket is not None and bucket.free < min(tokens, self.most_tokens))
        )

    def ask(self, prefix: str, tokens: int | None) -> Asked:
        """What to ask Redis for: so that a request with so many tokens passes; None: so that the next ones do."""
        limit, quiet, workers = self.limit, self.idle_ticks >= IDLE_TICKS, self.workers
        requests, bucket = self.request_lease, self.token_lease
        of_requests, of_tokens, slots = Wanted(), Wanted(), -1
        if requests is not None:
            of_requests = requests.plan(None if tokens is None else 1, quiet=quiet, workers=workers)
        if bucket is not None:
            need = None if tokens is None else min(tokens, self.most_tokens)
            of_tokens = bucket.plan(need, quiet=quiet, workers=workers)
        if limit.max_parallel is not None:
            slots = self.running + (0 if quiet else limit.max_parallel // workers // 4) + (tokens is not None)
            # Given up before it is asked: nobody may run on a place that another worker has by then
            self.slots = min(self.slots, slots)
        return Asked(
            f"{prefix}{limit.id}",
            *((requests.per_minute, requests.size, *of_requests) if requests is not None else (-1, 0, 0, 0, 0)),
            *((bucket.per_minute, bucket.size, *of_tokens) if bucket is not None else (-1, 0, 0, 0, 0)),
            *(-1 if limit.max_parallel is None else limit.max_parallel, slots),
        )

    def told(self, asked: Asked, granted: Granted, now_ns: int) -> None:
        """Redis has answered. What it refused is refused here for a moment, too."""
        self.renewed_ns = now_ns
        self.refused = None
        if self.request_lease is not None:
            self.request_lease.take_over(granted.requests, granted.requests_left)
        if self.token_lease is not None:
            self.token_lease.take_over(granted.tokens, granted.tokens_left)
        if self.limit.max_parallel is not None:
            self.slots = granted.slots
        waits: tuple[tuple[Kind, int], ...] = (("rpm", granted.requests_wait_ms), ("tpm", granted.tokens_wait_ms))
        kind, wait_ms = max(waits, key=lambda one: one[1])
        if wait_ms > 0:
            self.refuse(kind, wait_ms, now_ns)
            self.refused_tokens = asked.tokens_need if kind == "tpm" else 0
        elif granted.slots < asked.slots and granted.slots <= self.running:
            self.refuse("concurrency", 0, now_ns)

    def refuse(self, kind: Kind, wait_ms: int, now_ns: int) -> None:
        wait_ns = wait_ms * NS_PER_MS
        self.refused = Short(self.limit, kind, wait_ns)
        self.refused_until_ns = now_ns + min(max(wait_ns, SHORT_AT_LEAST_NS), SHORT_AT_MOST_NS)

    def still_refuses(self, tokens: int, now_ns: int) -> Short | None:
        """What Redis has said just now, if that holds for so many tokens too."""
        if self.refused is None or now_ns >= self.refused_until_ns:
            return None
        if self.refused.kind == "tpm" and self.token_lease is not None:
            missing = min(tokens, self.most_tokens) - max(0, self.token_lease.free)
            return self.refused if missing >= self.refused_tokens else None
        return self.refused

    def tick(self, now_ns: int) -> bool:
        """Whether Redis should be asked now."""
        used = False
        if self.request_lease is not None:
            used = self.request_lease.tick(self.requests, now_ns)
        if self.token_lease is not None:
            used = self.token_lease.tick(self.tokens, now_ns) or used
        self.idle_ticks = 0 if used else self.idle_ticks + 1
        if self.asking is not None:
            return False
        if (
            self.limit.max_parallel is not None
            and self.slots > self.running + self.limit.max_parallel // self.workers // 4
        ):
            return True  # somebody else may be waiting for the place
        if self.idle_ticks <= IDLE_TICKS:
            return used or self.idle_ticks == IDLE_TICKS
        return self.holds_idle_lease or (self.running > 0 and now_ns - self.renewed_ns > RENEW_NS)

    @property
    def holds_idle_lease(self) -> bool:
        leases = (self.request_lease, self.token_lease)
        places = self.slots if self.limit.max_parallel is not None else 0
        return any(lease is not None and lease.free != 0 for lease in leases) or places > self.running

    @property
    def over(self) -> bool:
        """Nothing runs, nothing is leased: the background need not look after it."""
        return not (self.running or self.asking is not None or self.holds_idle_lease or self.idle_ticks < IDLE_TICKS)
