"""
Limits that several workers count together, in Redis: exactly, by asking it for every request.

One script decides about all limits of a request; what arrives in one turn of the event loop goes out in one write. What
a request has not used goes back right after its end. Without Redis each worker lets its fair part pass.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from proxy.admission.allowances import Allowance, Kind, Short
from proxy.admission.limits import Standing
from proxy.admission.portions import IDLE_TICKS, NS_PER_MS, RENEW_NS, Lease, Portion
from proxy.admission.refusals import too_fast
from proxy.admission.sharing import Shared, SharedTurn
from proxy.admission.turns import Turn
from proxy.exchange import Caller, Exchange, Limit
from proxy.storage.redis import Away
from proxy.storage.redis_limits import take

KINDS: tuple[Kind, ...] = ("rpm", "tpm", "concurrency")


class StrictPortion(Portion):
    """Leases nothing ahead: what its leases hold is on its way back."""

    __slots__ = ()

    def tick(self, now_ns: int) -> bool:
        self.idle_ticks = IDLE_TICKS + 1
        for lease, bucket in ((self.request_lease, self.requests), (self.token_lease, self.tokens)):
            if lease is not None:
                lease.tick(bucket, now_ns)
        renew = self.running > 0 and now_ns - self.renewed_ns > RENEW_NS
        return self.asking is None and (renew or self.holds_idle_lease)

    def numbers(self) -> tuple[int, ...]:
        """What the script wants to know."""
        limit = self.limit
        most = -1 if limit.max_parallel is None else limit.max_parallel
        return (*_rate(self.request_lease), *_rate(self.token_lease), most, self.running)

    def count(self, tokens: int) -> None:
        """For this worker's own part, should Redis go away."""
        if self.request_lease is not None:
            self.request_lease.spent += 1
        if self.token_lease is not None:
            self.token_lease.spent += min(tokens, self.most_tokens)


class StrictTurn(SharedTurn):
    __slots__ = ("_give_back", "_standing")

    def __init__(
        self,
        portions: Sequence[StrictPortion],
        tokens: int,
        clock_ns: Callable[[], int],
        keep: Callable[[Portion], None],
        give_back: Callable[[Sequence[Portion]], None],
        standing: Standing | None,
    ) -> None:
        super().__init__(portions, tokens, clock_ns, keep)
        self._give_back = give_back
        self._standing = standing

    def end(self, exchange: Exchange) -> None:
        if not self.ended:
            super().end(exchange)
            self._give_back(self.portions)

    def standing(self) -> Standing | None:
        return self._standing


class Strict(Shared):
    """The background says again and again what runs here."""

    def take_now(self, caller: Caller, limits: tuple[Limit, ...], name: str, model: str, tokens: int) -> Turn | None:
        return None if self._redis.up else self._take_alone(caller, limits, name, model, tokens)

    async def _take_shared(self, caller: Caller, limits: tuple[Limit, ...], name: str, model: str, tokens: int) -> Turn:
        if not self._redis.up:
            raise Away
        portions = [self._portion(limit) for limit in limits if limit.model in ("", name, model)]
        strict = [portion for portion in portions if isinstance(portion, StrictPortion)]
        for portion in strict:
            portion.running += 1
        try:
            return await self._ask_redis(caller, strict, tokens)
        except BaseException:
            for portion in strict:
                portion.running -= 1
            raise

    async def _ask_redis(self, caller: Caller, portions: list[StrictPortion], tokens: int) -> Turn:
        self.asked_total += 1
        numbers = [number for portion in portions for number in portion.numbers()]
        keys = [f"{self._prefix}{portion.limit.id}" for portion in portions]
        told = await take(self._redis, self._now_ms(), self._worker_id, tokens, keys, numbers)
        if not told[0]:
            refusing = portions[told[1]]
            short = Short(refusing.limit, KINDS[told[2] - 1], told[3] * NS_PER_MS)
            raise too_fast(caller, short, _standing([refusing], told[4:]))
        for portion in portions:
            portion.count(tokens)
            portion.slots = max(portion.slots, portion.running)
            self._keep(portion)
        return StrictTurn(portions, tokens, self._clock_ns, self._keep, self._give_back, _standing(portions, told[1:]))

    def _give_back(self, portions: Sequence[Portion]) -> None:
        """Soon, with all that end in this turn of the loop; what is in flight already waits for the next tick."""
        if not self._ending:
            asyncio.get_running_loop().call_soon(self._give_back_now)
        self._ending.update(portions)

    def _give_back_now(self) -> None:
        ending, self._ending = self._ending, set()
        due = [portion for portion in ending if portion.asking is None and portion.holds_idle_lease]
        if due and self._redis.up:
            for portion in due:
                portion.idle_ticks = IDLE_TICKS + 1
            self._begin(due, None)

    def _make(self, limit: Limit) -> Allowance:
        return StrictPortion(limit, workers=self.workers)


def _rate(lease: Lease | None) -> tuple[int, int]:
    return (lease.per_minute, lease.size) if lease is not None else (-1, 0)


def _standing(portions: Sequence[Portion], left: Sequence[int]) -> Standing | None:
    """`left` has two numbers for each: requests and tokens. The tightest of each kind count."""
    requests = [(left[2 * at], one.request_lease) for at, one in enumerate(portions) if one.request_lease]
    tokens = [(left[2 * at + 1], one.token_lease) for at, one in enumerate(portions) if one.token_lease]
    if not requests and not tokens:
        return None
    standing = Standing()
    if requests:
        remaining, lease = min(requests, key=lambda pair: pair[0])
        standing = Standing(lease.per_minute, remaining, _reset_seconds(lease, remaining))
    if tokens:
        remaining, lease = min(tokens, key=lambda pair: pair[0])
        told = (lease.per_minute, remaining, _reset_seconds(lease, remaining))
        standing = Standing(standing.limit, standing.remaining, standing.reset_seconds, *told)
    return standing


def _reset_seconds(lease: Lease, remaining: int) -> float:
    return max(0, lease.size - remaining) * 60 / lease.per_minute if lease.per_minute else 60.0
