"""
Limits that several workers count together, in Redis: in shares that are leased behind the requests.

A request that finds enough leased here waits for nobody. One that does not asks for more, for at most `WAIT_SECONDS`;
what Redis refuses is refused here for a moment without asking. Without Redis each worker lets its fair part pass.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from proxy.admission.allowances import UNLIMITED, Allowance
from proxy.admission.limits import Limits, Standing
from proxy.admission.portions import NS_PER_MS, Portion
from proxy.admission.refusals import too_fast
from proxy.admission.turns import Turn, Turns, used_tokens
from proxy.exchange import Caller, Exchange, Limit
from proxy.storage.redis import Away, Redis, limit_tag
from proxy.storage.redis_limits import Asked, lease, say_alive

TICK_SECONDS = 0.05
HEARTBEAT_SECONDS = 1.0
WAIT_SECONDS = 0.05
"""The most that a request waits for Redis, however often it must ask."""
BATCH = 32
"""Limits that one script call is about; Redis does nothing else meanwhile."""
SLICE = 500
"""Limits that are looked at before the event loop has its turn."""
MAX_ASKED = 8

log = logging.getLogger("strata.admission")


class SharedTurn(Turn):
    """A turn out of what is leased."""

    __slots__ = ("_keep", "portions")

    def __init__(
        self, portions: Sequence[Portion], tokens: int, clock_ns: Callable[[], int], keep: Callable[[Portion], None]
    ) -> None:
        super().__init__(portions, tokens, clock_ns)
        self.portions = portions
        self._keep = keep

    def end(self, exchange: Exchange) -> None:
        if self.ended:
            return
        self.ended = True
        used = used_tokens(exchange)
        for portion in self.portions:
            portion.settle(self.tokens, used)
            portion.idle_ticks = 0
            if not portion.active:
                self._keep(portion)

    def standing(self) -> Standing | None:
        return _standing(self.portions)


class Shared(Turns):
    """
    `redis` is started and ended by somebody else. `run` looks after the leases as long as the worker lives. `workers`:
    how many share the limits, as Redis has said last.
    """

    def __init__(
        self,
        limits: Limits,
        redis: Redis,
        worker_id: str,
        *,
        prefix: str = "strata",
        clock_ns: Callable[[], int] = time.monotonic_ns,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(limits, clock_ns=clock_ns)
        self.workers = 1
        self._redis = redis
        self._worker_id = worker_id
        self._prefix = limit_tag(prefix)
        self._ahead_ms = int(wall_clock() * 1000) - clock_ns() // NS_PER_MS
        self._active: dict[str, Portion] = {}
        self._was_up = False
        self._questions: set[asyncio.Task[None]] = set()
        self._ending: set[Portion] = set()
        self.asked_total = 0
        """Questions to Redis that a request waited for."""
        self.alone_total = 0
        """Turns that were given out of this worker's own part, since Redis could not be asked."""

    def take_now(self, caller: Caller, limits: tuple[Limit, ...], name: str, model: str, tokens: int) -> Turn | None:
        if not self._redis.up:
            return self._take_alone(caller, limits, name, model, tokens)
        known = self._known
        portions: list[Portion] = []
        for limit in limits:
            if limit.model and limit.model != name and limit.model != model:
                continue
            portion = known.get(limit.id)
            if portion is None or portion.limit is not limit:
                portion = self._find(limit)
            assert isinstance(portion, Portion)
            if not portion.spend(tokens):
                for spent in portions:
                    spent.unspend(tokens)
                return None
            portions.append(portion)
        for portion in portions:
            if not portion.active:
                self._keep(portion)
        return SharedTurn(portions, tokens, self._clock_ns, self._keep)

    async def take(self, caller: Caller, limits: tuple[Limit, ...], name: str, model: str, tokens: int) -> Turn:
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                return await self._take_shared(caller, limits, name, model, tokens)
        except (Away, TimeoutError):
            return self._take_alone(caller, limits, name, model, tokens)

    async def run(self) -> None:
        """Tops leases up, gives back what is not used, says that this worker lives. Ends when it is cancelled."""
        beat_at = float("-inf")
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(TICK_SECONDS)
            up = self._redis.up
            if up and not self._was_up:
                self._start_anew()
                beat_at = float("-inf")
            self._was_up = up
            if not up:
                continue
            try:
                if loop.time() - beat_at >= HEARTBEAT_SECONDS:
                    beat_at = loop.time()
                    await self._heartbeat()
                await self._tick()
            except Away:
                continue

    async def close(self) -> None:
        """Gives back what is leased, so that the others need not wait until it lapses."""
        portions = [portion for portion in self._active.values() if portion.asking is None]
        for portion in portions:
            portion.idle_ticks = 1_000
        if self._redis.up:
            try:
                async with asyncio.timeout(WAIT_SECONDS):
                    await self._ask_in_batches(portions)
            except (Away, TimeoutError):
                return

    async def _take_shared(self, caller: Caller, limits: tuple[Limit, ...], name: str, model: str, tokens: int) -> Turn:
        for _ in range(MAX_ASKED):
            turn = self.take_now(caller, limits, name, model, tokens)
            if turn is not None:
                return turn
            portions = [self._portion(limit) for limit in limits if limit.model in ("", name, model)]
            lacking = [portion for portion in portions if portion.lacks(tokens)]
            self._refuse(caller, portions, lacking, tokens)
            under_way = [portion.asking for portion in lacking if portion.asking is not None]
            if under_way:
                await asyncio.shield(under_way[0])
                continue
            self.asked_total += 1
            await self._ask(lacking, tokens)
            self._refuse(caller, portions, [portion for portion in lacking if portion.lacks(tokens)], tokens)
        raise Away

    def _refuse(self, caller: Caller, portions: Sequence[Portion], lacking: Sequence[Portion], tokens: int) -> None:
        """Raises PolicyError 429 for what Redis has refused just now."""
        now_ns = self._clock_ns()
        for portion in lacking:
            short = portion.still_refuses(tokens, now_ns)
            if short is not None:
                raise too_fast(caller, short, _standing(portions))

    def _take_alone(self, caller: Caller, limits: tuple[Limit, ...], name: str, model: str, tokens: int) -> Turn:
        """Out of this worker's own part."""
        for limit in limits:
            portion = self._portion(limit)
            if portion.workers != self.workers:
                portion.share_with(self.workers)
        turn = super().take_now(caller, limits, name, model, tokens)
        assert turn is not None
        for allowance in turn.allowances:
            if isinstance(allowance, Portion) and not allowance.active:
                self._keep(allowance)
        self.alone_total += 1
        return turn

    async def _heartbeat(self) -> None:
        self.workers, now_ms = await say_alive(self._redis, self._worker_id, f"{self._prefix}workers")
        self._ahead_ms = now_ms - self._clock_ns() // NS_PER_MS

    def _now_ms(self) -> int:
        """Redis's time, as far as we know: our own wall clock may be wrong, and may jump."""
        return self._clock_ns() // NS_PER_MS + self._ahead_ms

    async def _tick(self) -> None:
        now_ns = self._clock_ns()
        due = []
        for number, portion in enumerate(list(self._active.values()), 1):
            if number % SLICE == 0:
                await asyncio.sleep(0)
            if portion.workers != self.workers:
                portion.share_with(self.workers)
            if portion.tick(now_ns):
                due.append(portion)
            elif portion.over:
                portion.active = False
                self._active.pop(portion.limit.id, None)
        await self._ask_in_batches(due)

    async def _ask_in_batches(self, portions: Sequence[Portion]) -> None:
        batches = [portions[at : at + BATCH] for at in range(0, len(portions), BATCH)]
        for outcome in await asyncio.gather(*(self._ask(batch, None) for batch in batches), return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def _ask(self, portions: Sequence[Portion], tokens: int | None) -> None:
        await asyncio.shield(self._begin(portions, tokens))

    def _begin(self, portions: Sequence[Portion], tokens: int | None) -> asyncio.Task[None]:
        """One question about all of these. In a task of its own: what is granted to a request that leaves is kept."""
        asked = [portion.ask(self._prefix, tokens) for portion in portions]
        question = asyncio.create_task(self._ask_for(portions, asked), name="limits")
        for portion in portions:
            portion.asking = question
            self._keep(portion)
        self._questions.add(question)
        question.add_done_callback(self._heard)
        return question

    def _heard(self, question: asyncio.Task[None]) -> None:
        """Whoever asked may have left."""
        self._questions.discard(question)
        error = None if question.cancelled() else question.exception()
        if error is not None and not isinstance(error, Away):
            log.error("a question about limits failed", exc_info=error)

    async def _ask_for(self, portions: Sequence[Portion], asked: Sequence[Asked]) -> None:
        try:
            told = await lease(self._redis, self._now_ms(), self._worker_id, asked)
        finally:
            for portion in portions:
                portion.asking = None
        now_ns = self._clock_ns()
        for portion, question, granted in zip(portions, asked, told, strict=True):
            portion.told(question, granted, now_ns)

    def _start_anew(self) -> None:
        """Redis was away: what was leased before counts for nothing."""
        now_ns = self._clock_ns()
        for portion in self._active.values():
            portion.forget_lease(now_ns)

    def _keep(self, portion: Portion) -> None:
        if len(self._active) < self._max_allowances:
            portion.active = True
            self._active[portion.limit.id] = portion

    def _portion(self, limit: Limit) -> Portion:
        portion = self._find(limit)
        assert isinstance(portion, Portion)
        return portion

    def _make(self, limit: Limit) -> Allowance:
        return Portion(limit, workers=self.workers)

    def _change(self, allowance: Allowance, limit: Limit) -> None:
        allowance.set(limit, self.workers)


def _standing(portions: Sequence[Portion]) -> Standing | None:
    """As all workers together have it."""
    requests = tokens = None
    left = tokens_left = UNLIMITED
    for portion in portions:
        lease = portion.request_lease
        if lease is not None and lease.remaining < left:
            requests, left = lease, lease.remaining
        lease = portion.token_lease
        if lease is not None and lease.remaining < tokens_left:
            tokens, tokens_left = lease, lease.remaining
    if requests is None:
        if tokens is None:
            return None
        return Standing(None, 0, 0.0, tokens.per_minute, tokens_left, tokens.reset_seconds)
    if tokens is None:
        return Standing(requests.per_minute, left, requests.reset_seconds)
    told = (tokens.per_minute, tokens_left, tokens.reset_seconds)
    return Standing(requests.per_minute, left, requests.reset_seconds, *told)
