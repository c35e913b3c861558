"""
Histories of workers, requests and failures over leases, drawn by Hypothesis. After every step: no budget is overspent
but by what answers cost beyond their holds (I6), every hold resolves once (I7), and no lease is free in Postgres while
its worker could still spend it (I8).
"""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import Coroutine
from typing import Any, Literal, NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from proxy.admission.budgets import Budgets
from proxy.errors import GatewayFault, PolicyError
from proxy.exchange import Budget, Caller, Hold
from tests.leases import ModelPostgres

KEYS = (Budget("key-a", "key", "a", 1000, 60), Budget("key-b", "key", "b", 300))
TEAM = Budget("team", "team", "t", 1200, 120)
CALLERS = (
    Caller("a", "a", "", budgets=(KEYS[0],)),
    Caller("b", "b", "", budgets=(KEYS[1], TEAM)),
    Caller("c", "c", "", budgets=(TEAM, KEYS[0])),
)
LIMITS = {budget.id: budget.limit_nano_usd for budget in (*KEYS, TEAM)}
MONEY = st.integers(0, 400)
SIDE = st.integers(0, 1)


class Open(NamedTuple):
    worker: int
    hold: Hold


class Row(NamedTuple):
    worker_id: str
    hold: Hold
    cost: int


class Leases(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.runner = asyncio.Runner()
        self.postgres = ModelPostgres()
        self.postgres.limits.update(LIMITS)
        self.now = 0.0
        self.ids = [self._new_id(), self._new_id()]
        self.workers = [self._worker(worker_id) for worker_id in self.ids]
        self.open: list[Open] = []
        self.rows: list[Row] = []
        self.spent: Counter[tuple[str, int]] = Counter()
        self.overrun: Counter[tuple[str, int]] = Counter()

    def _new_id(self) -> str:
        return str(uuid.uuid4())

    def _worker(self, worker_id: str) -> Budgets:
        budgets = Budgets(
            self.postgres,
            worker_id,
            clock=lambda: self.now,
            wall_clock=lambda: self.postgres.now_ms / 1000,
            sleep=lambda _: asyncio.sleep(0),
            take=self.postgres.take_lease,
            give_back=self.postgres.return_lease,
            ask_others=self.postgres.ask_for_leases,
        )
        self.postgres.hearers.append(budgets.on_notice)
        return budgets

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """One step, and whatever it started."""

        async def step() -> None:
            await work
            for _ in range(30):
                await asyncio.sleep(0)

        self.runner.run(step())
        self.now += 1

    async def _hold(self, side: int, caller: Caller, nano_usd: int) -> None:
        try:
            hold = await self.workers[side].hold(caller, nano_usd)
        except PolicyError:
            return
        except GatewayFault as error:
            assert error.code == "budget_unavailable"
            return
        assert hold is not None
        assert set(hold.budget_ids) == {budget.id for budget in caller.budgets}
        self.open.append(Open(side, hold))

    @rule(side=SIDE, caller=st.sampled_from(CALLERS), nano_usd=MONEY)
    def hold(self, side: int, caller: Caller, nano_usd: int) -> None:
        self.run(self._hold(side, caller, nano_usd))

    @rule(requests=st.lists(st.tuples(SIDE, st.sampled_from(CALLERS), MONEY), min_size=2, max_size=8))
    def hold_at_once(self, requests: list[tuple[int, Caller, int]]) -> None:
        async def all_of_them() -> None:
            await asyncio.gather(*(self._hold(*request) for request in requests))

        self.run(all_of_them())

    @rule(side=SIDE, caller=st.sampled_from(CALLERS), nano_usd=MONEY, after=st.integers(0, 6))
    def hold_and_leave(self, side: int, caller: Caller, nano_usd: int, after: int) -> None:
        async def leave() -> None:
            request = asyncio.create_task(self._hold(side, caller, nano_usd))
            for _ in range(after):
                await asyncio.sleep(0)
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)

        self.run(leave())

    @rule(which=st.integers(0, 1000), cost=MONEY, again=st.booleans())
    def resolve(self, which: int, cost: int, again: bool) -> None:
        if self.open:
            side, hold = self.open.pop(which % len(self.open))
            self.workers[side].resolve(hold, cost)
            self._spend(self.ids[side], hold, cost)
            if again:
                self.workers[side].resolve(hold, cost)

    def _spend(self, worker_id: str, hold: Hold, cost: int) -> None:
        self.rows.append(Row(worker_id, hold, cost))
        for period in zip(hold.budget_ids, hold.period_starts_ms, strict=True):
            self.spent[period] += cost
            self.overrun[period] += max(0, cost - hold.nano_usd)

    @rule(count=st.integers(1, 5))
    def ship(self, count: int) -> None:
        for row in self.rows[:count]:
            for budget_id, starts_ms in zip(row.hold.budget_ids, row.hold.period_starts_ms, strict=True):
                self.postgres.ship(budget_id, starts_ms, row.worker_id, row.cost)
        del self.rows[:count]

    @rule(seconds=st.sampled_from([1, 30, 60]))
    def time_passes(self, seconds: int) -> None:
        self.postgres.now_ms += seconds * 1000

    @rule(is_up=st.sampled_from([True, True, True, False]))
    def postgres_comes_and_goes(self, is_up: bool) -> None:
        self.postgres.is_up = is_up

    @rule(when=st.sampled_from(["before", "after"]))
    def lose_an_answer(self, when: Literal["before", "after"]) -> None:
        self.postgres.lose_answer = when

    @rule(side=SIDE, sweeps=st.integers(1, 7))
    def sweep(self, side: int, sweeps: int) -> None:
        async def sweep() -> None:
            for _ in range(sweeps):
                await self.workers[side].sweep()

        self.run(sweep())

    @rule(
        side=SIDE,
        more=st.lists(st.tuples(st.sampled_from(CALLERS), MONEY), min_size=1, max_size=3),
        after=st.integers(0, 4),
    )
    def sweep_while_requests_come(self, side: int, more: list[tuple[Caller, int]], after: int) -> None:
        async def sweep() -> None:
            for _ in range(after):
                await asyncio.sleep(0)
            await self.workers[side].sweep()

        async def both() -> None:
            for _ in range(6):
                await self.workers[side].sweep()
            await asyncio.gather(*(self._hold(side, *request) for request in more), sweep())

        self.run(both())

    @rule(side=SIDE)
    def kill_and_adopt(self, side: int) -> None:
        """What it settled is shipped, what it had under way counts with its whole hold, then its leases go back."""
        dead = self.ids[side]
        for open_ in [open_ for open_ in self.open if open_.worker == side]:
            self.open.remove(open_)
            self._spend(dead, open_.hold, open_.hold.nano_usd)
        self.rows.sort(key=lambda row: row.worker_id != dead)
        self.ship(sum(row.worker_id == dead for row in self.rows))
        self.postgres.release_worker(dead)
        self.postgres.hearers.remove(self.workers[side].on_notice)
        self.ids[side] = self._new_id()
        self.workers[side] = self._worker(self.ids[side])

    @invariant()
    def nothing_is_overspent(self) -> None:
        for (budget_id, starts_ms), spent in self.spent.items():
            allowed = LIMITS[budget_id] + self.overrun[budget_id, starts_ms]
            assert spent <= allowed
            settled = self.postgres.settled.get((budget_id, starts_ms), 0)
            assert settled + self.postgres.leased(budget_id, starts_ms) <= allowed

    @invariant()
    def all_that_is_held_is_held_by_a_request(self) -> None:
        held: Counter[tuple[int, str, int]] = Counter()
        for side, hold in self.open:
            for period in zip(hold.budget_ids, hold.period_starts_ms, strict=True):
                held[side, *period] += hold.nano_usd
        for side, worker in enumerate(self.workers):
            for period, (_, amount) in worker.shares().items():
                assert amount == held.pop((side, *period), 0)
        assert not +held

    @invariant()
    def every_lease_is_what_its_worker_can_spend_and_has_spent(self) -> None:
        accounted: Counter[tuple[str, int, str]] = Counter()
        for worker_id, worker in zip(self.ids, self.workers, strict=True):
            for (budget_id, starts_ms), (free, held) in worker.shares().items():
                accounted[budget_id, starts_ms, worker_id] += free + held
        for row in self.rows:
            for budget_id, starts_ms in zip(row.hold.budget_ids, row.hold.period_starts_ms, strict=True):
                accounted[budget_id, starts_ms, row.worker_id] += row.cost
        accounted.update(self.postgres.lost)
        for key in accounted.keys() | self.postgres.granted.keys():
            assert accounted[key] == self.postgres.granted.get(key, 0)

    def teardown(self) -> None:
        """In the end everything is settled, shipped and given back, and the sums are those of the rows."""
        if not hasattr(self, "runner"):
            return
        self.postgres.is_up, self.postgres.lose_answer = True, None
        for side, hold in self.open:
            self.workers[side].resolve(hold, hold.nano_usd)
            self._spend(self.ids[side], hold, hold.nano_usd)
        self.open.clear()
        for worker in self.workers:
            self.run(worker.close())
        self.ship(len(self.rows))
        assert self.postgres.settled == {period: spent for period, spent in self.spent.items()}
        assert +Counter(self.postgres.granted) == +Counter(self.postgres.lost)
        self.runner.close()


TestLeases = Leases.TestCase
TestLeases.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
