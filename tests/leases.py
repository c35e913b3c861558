"""Leases as Postgres keeps them, in memory: the same sums, and every way in which a call can go wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Literal

import pytest

from proxy.admission.budgets import Budgets
from proxy.errors import PolicyError
from proxy.exchange import Budget, Caller, Hold
from proxy.storage.budgets import Lease
from proxy.storage.postgres import Database, Unavailable

WORKER = "00000000-0000-0000-0000-0000000000aa"


class ModelPostgres(Database):
    """`now_ms` is its clock. `lose_answer` makes the next call fail, before or after it has done its work."""

    def __init__(self) -> None:
        super().__init__("postgresql://127.0.0.1:1/model")
        self.now_ms = 0
        self.is_up = True
        self.lose_answer: Literal["before", "after"] | None = None
        self.pause: asyncio.Event | None = None
        self.on_granted: Callable[[], None] | None = None
        self.on_returned: Callable[[], None] | None = None
        self.asked = 0
        self.taken = 0
        self.limits: dict[str, int] = {}
        self.settled: dict[tuple[str, int], int] = {}
        self.granted: dict[tuple[str, int, str], int] = {}
        self.lost: dict[tuple[str, int, str], int] = {}
        """Leased by a worker who does not know it."""
        self.hearers: list[Callable[[str], None]] = []
        """Who listens on the channel of budgets."""

    @property
    def up(self) -> bool:
        return self.is_up

    def leased(self, budget_id: str, starts_ms: int = 0) -> int:
        return sum(granted for key, granted in self.granted.items() if key[:2] == (budget_id, starts_ms))

    def free(self, budget_id: str, starts_ms: int) -> int:
        leased = self.leased(budget_id, starts_ms)
        return self.limits[budget_id] - self.settled.get((budget_id, starts_ms), 0) - leased

    async def take_lease(self, _: Database, budget: Budget, worker_id: str, want: int, need: int) -> Lease:
        self.asked += 1
        await self._travel()
        self.taken += 1
        lost = self._lost()
        self.limits[budget.id] = budget.limit_nano_usd
        window_ms = budget.window_seconds * 1000 if budget.window_seconds else None
        starts_ms = self.now_ms // window_ms * window_ms if window_ms else 0
        free = self.free(budget.id, starts_ms)
        granted = max(0, min(max(want, need), free)) if free >= need else 0
        key = (budget.id, starts_ms, worker_id)
        if lost == "before":
            raise Unavailable
        if granted:
            self.granted[key] = self.granted.get(key, 0) + granted
        if lost == "after":
            self.lost[key] = self.lost.get(key, 0) + granted
            raise Unavailable
        if self.on_granted is not None:
            asyncio.get_running_loop().call_soon(self.on_granted)
        ends_ms = starts_ms + window_ms if window_ms else None
        settled = self.settled.get((budget.id, starts_ms), 0)
        return Lease(starts_ms, ends_ms, granted, max(0, free - granted), settled)

    async def return_lease(self, _: Database, budget_id: str, starts_ms: int, worker_id: str, nano_usd: int) -> None:
        await self._travel()
        key = (budget_id, starts_ms, worker_id)
        lost = self._lost()
        if lost == "before":
            self.lost[key] = self.lost.get(key, 0) + nano_usd
            raise Unavailable
        self.granted[key] = self.granted.get(key, 0) - nano_usd
        if self.on_returned is not None:
            self.on_returned()
            self.on_returned = None
        if lost == "after":
            raise Unavailable

    async def ask_for_leases(self, _: Database, budget_id: str, worker_id: str) -> None:
        await self._travel()
        for hear in self.hearers:
            hear(f"short {budget_id} {worker_id}")

    async def listen(self, channel: str, on_notice: Callable[[str], None]) -> None:
        self.hearers.append(on_notice)

    def ship(self, budget_id: str, starts_ms: int, worker_id: str, cost: int) -> None:
        """A row has reached the ledger: it counts as settled, and no longer as leased."""
        period, key = (budget_id, starts_ms), (budget_id, starts_ms, worker_id)
        self.settled[period] = self.settled.get(period, 0) + cost
        self.granted[key] = self.granted.get(key, 0) - cost

    def release_worker(self, worker_id: str) -> None:
        for key in [key for key in self.granted if key[2] == worker_id]:
            del self.granted[key]
            self.lost.pop(key, None)

    async def _travel(self) -> None:
        if not self.is_up:
            raise Unavailable
        await asyncio.sleep(0)
        if self.pause is not None:
            await self.pause.wait()

    def _lost(self) -> Literal["before", "after"] | None:
        lost, self.lose_answer = self.lose_answer, None
        return lost


def budget(name: str = "b", limit: int = 1000, window_seconds: int | None = 60) -> Budget:
    return Budget(name, "key", "k", limit, window_seconds)


def caller(*budgets: Budget) -> Caller:
    return Caller("k", "ci", "sk-strata-…", budgets=budgets)


class Worker:
    """`Budgets` over the model, with a clock that only moves when told."""

    def __init__(self, postgres: ModelPostgres, worker_id: str = WORKER, **options: Any) -> None:
        self.postgres = postgres
        self.now = 0.0
        self.ahead_ms = 0
        self.slept: list[float] = []
        self.budgets = Budgets(
            postgres,
            worker_id,
            clock=lambda: self.now,
            wall_clock=lambda: (postgres.now_ms + self.ahead_ms) / 1000,
            sleep=self._sleep,
            take=postgres.take_lease,
            give_back=postgres.return_lease,
            ask_others=postgres.ask_for_leases,
            **options,
        )
        postgres.hearers.append(self.budgets.on_notice)

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        await asyncio.sleep(0)

    async def hold(self, who: Caller, nano_usd: int) -> Hold:
        hold = await self.budgets.hold(who, nano_usd)
        assert hold is not None
        return hold

    async def refused(self, who: Caller, nano_usd: int) -> PolicyError:
        with pytest.raises(PolicyError) as caught:
            await self.budgets.hold(who, nano_usd)
        return caught.value

    async def idle(self, sweeps: int = 7) -> None:
        for _ in range(sweeps):
            await self.budgets.sweep()
