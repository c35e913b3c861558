"""Budgets: what is spent never exceeds the limit but by what answers cost beyond their holds, whatever fails."""

from __future__ import annotations

import asyncio
import logging
import uuid

import pytest

from proxy.admission.budgets import Budgets
from proxy.errors import GatewayFault, PolicyError
from proxy.exchange import Hold
from tests.leases import WORKER, ModelPostgres, Worker, budget, caller

MINUTE_MS = 60_000


@pytest.fixture
def postgres() -> ModelPostgres:
    return ModelPostgres()


@pytest.fixture
def worker(postgres: ModelPostgres) -> Worker:
    return Worker(postgres)


async def test_a_caller_without_a_budget_is_never_asked_for_money(worker: Worker) -> None:
    assert await worker.budgets.hold(caller(), 10**15) is None
    assert worker.postgres.taken == 0


async def test_the_first_hold_leases_and_the_next_ones_ask_nobody(worker: Worker) -> None:
    who = caller(budget(limit=1_000_000))
    first = await worker.hold(who, 10)
    assert (first.budget_ids, first.period_starts_ms, first.nano_usd) == (("b",), (0,), 10)
    for _ in range(100):
        await worker.hold(who, 10)
    assert worker.postgres.taken == 1
    assert worker.postgres.leased("b") == 1_000_000 // 50


async def test_a_known_lease_is_divided_without_giving_way_to_anybody(worker: Worker) -> None:
    who = caller(budget(limit=1_000_000))
    await worker.hold(who, 10)
    with pytest.raises(StopIteration) as ended:
        worker.budgets.hold(who, 10).send(None)
    assert isinstance(ended.value.value, Hold)


async def test_leases_shrink_towards_the_limit(worker: Worker) -> None:
    who = caller(budget(limit=10_000))
    grants = []
    for _ in range(400):
        before = worker.postgres.leased("b")
        await worker.hold(who, 25)
        grants.append(worker.postgres.leased("b") - before)
    assert max(grants) == 200
    assert grants[-1] in (0, 25)
    assert worker.postgres.leased("b") == 10_000


async def test_what_a_request_did_not_cost_is_free_again(worker: Worker) -> None:
    who = caller(budget(limit=100))
    hold = await worker.hold(who, 100)
    await worker.refused(who, 100)
    worker.budgets.resolve(hold, 30)
    await worker.hold(who, 70)
    assert (await worker.refused(who, 1)).code == "insufficient_quota"


async def test_a_hold_resolves_once(worker: Worker) -> None:
    hold = await worker.hold(caller(budget(limit=100)), 100)
    worker.budgets.resolve(hold, 40)
    worker.budgets.resolve(hold, 40)
    assert worker.budgets.shares() == {("b", 0): (60, 0)}


async def test_a_cost_beyond_its_hold_is_counted_and_owed(worker: Worker) -> None:
    who = caller(budget(limit=100))
    worker.budgets.resolve(await worker.hold(who, 50), 80)
    assert worker.budgets.overrun_nano_usd_total == 30
    assert worker.budgets.shares() == {("b", 0): (-30, 0)}
    await worker.refused(who, 21)
    await worker.hold(who, 20)


async def test_a_debt_is_entered_in_postgres_so_that_no_other_worker_can_borrow_it(postgres: ModelPostgres) -> None:
    one, other = Worker(postgres), Worker(postgres, str(uuid.uuid4()))
    who = caller(budget(limit=100))
    one.budgets.resolve(await one.hold(who, 50), 80)
    await one.idle(1)
    assert postgres.leased("b") == 80
    await other.refused(who, 21)
    await other.hold(who, 20)


async def test_a_request_that_costs_nothing_passes_an_exhausted_budget_but_not_one_of_zero(worker: Worker) -> None:
    who = caller(budget(limit=100))
    await worker.hold(who, 100)
    assert (await worker.hold(who, 0)).nano_usd == 0
    error = await worker.refused(caller(budget("z", limit=0)), 0)
    assert "$0.00" in error.message
    assert worker.postgres.taken == 1


async def test_a_limit_lowered_to_zero_blocks_although_a_lease_is_left(worker: Worker) -> None:
    await worker.hold(caller(budget(limit=1000)), 1)
    await worker.refused(caller(budget(limit=0)), 1)


async def test_several_budgets_are_taken_together_or_not_at_all(worker: Worker) -> None:
    large, small = budget("a", 1000), budget("z", 10)
    await worker.refused(caller(small, large), 11)
    assert {period: held for period, (_, held) in worker.budgets.shares().items()} == {("a", 0): 0, ("z", 0): 0}
    hold = await worker.hold(caller(small, large), 10)
    assert hold.budget_ids == ("a", "z")
    worker.budgets.resolve(hold, 4)
    assert worker.budgets.shares()["z", 0] == (6, 0)
    assert [held for _, held in worker.budgets.shares().values()] == [0, 0]


async def test_a_refusal_asks_postgres_twice_and_then_not_for_a_moment(worker: Worker) -> None:
    who = caller(budget(limit=100))
    await worker.hold(who, 100)
    asked = worker.postgres.taken
    error = await worker.refused(who, 50)
    assert worker.postgres.taken == asked + 2
    assert worker.slept == [0.05]
    assert (error.status, error.type, error.headers["x-should-retry"]) == (429, "insufficient_quota", "false")
    await worker.refused(who, 60)
    assert worker.postgres.taken == asked + 2
    worker.now += 1
    await worker.refused(who, 60)
    assert worker.postgres.taken == asked + 4


async def test_money_that_comes_back_within_the_moment_is_found(worker: Worker) -> None:
    who = caller(budget(limit=100))
    hold = await worker.hold(who, 100)
    waiting = asyncio.create_task(worker.hold(who, 60))
    while not worker.slept:
        await asyncio.sleep(0)
    worker.budgets.resolve(hold, 40)
    assert (await waiting).nano_usd == 60


async def test_money_that_comes_back_before_postgres_is_asked_is_taken_instead(worker: Worker) -> None:
    who = caller(budget(limit=100))
    hold = await worker.hold(who, 100)
    asked = worker.postgres.taken
    waiting = asyncio.create_task(worker.hold(who, 60))
    await asyncio.sleep(0)
    worker.budgets.resolve(hold, 40)
    assert (await waiting).nano_usd == 60
    assert worker.postgres.taken == asked


async def test_many_at_once_share_one_question_to_postgres(worker: Worker) -> None:
    who = caller(budget(limit=10_000))
    holds = await asyncio.gather(*(worker.hold(who, 100) for _ in range(100)))
    assert len(holds) == 100
    assert worker.postgres.taken == 1


async def test_a_small_request_passes_where_a_large_one_is_refused_beside_it(worker: Worker) -> None:
    who = caller(budget(limit=100))
    await worker.hold(who, 60)
    asked = await asyncio.gather(*(worker.budgets.hold(who, n) for n in (90, 30, 80, 10)), return_exceptions=True)
    assert [isinstance(answer, Hold) for answer in asked] == [False, True, False, True]


async def test_whoever_arrives_while_a_larger_need_is_refused_asks_for_itself(worker: Worker) -> None:
    who = caller(budget(limit=100))
    worker.postgres.pause = asyncio.Event()
    large = asyncio.create_task(worker.budgets.hold(who, 150))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    small = asyncio.create_task(worker.budgets.hold(who, 70))
    await asyncio.sleep(0)
    worker.postgres.pause.set()
    assert isinstance(await small, Hold)
    with pytest.raises(PolicyError):
        await large


async def test_a_request_whose_lease_others_take_each_time_is_refused_in_the_end(worker: Worker) -> None:
    who = caller(budget(limit=1_000_000))
    thieves: list[Hold] = []

    def steal() -> None:
        free, _ = worker.budgets.shares()["b", 0]
        try:
            worker.budgets.hold(who, free).send(None)
        except StopIteration as ended:
            thieves.append(ended.value)

    worker.postgres.on_granted = steal
    await worker.refused(who, 10)
    assert len(thieves) == 8


async def test_a_cancelled_request_loses_neither_its_hold_nor_a_lease_under_way(worker: Worker) -> None:
    first, second = budget("a", 1000), budget("b", 1000)
    await worker.hold(caller(first), 10)
    worker.postgres.pause = asyncio.Event()
    request = asyncio.create_task(worker.budgets.hold(caller(first, second), 10))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    worker.postgres.pause.set()
    await asyncio.sleep(0.01)
    assert worker.budgets.shares() == {("a", 0): (10, 10), ("b", 0): (20, 0)}
    assert worker.postgres.leased("b") == 20


async def test_without_postgres_leases_are_spent_and_then_503(worker: Worker) -> None:
    who = caller(budget(limit=1000))
    await worker.hold(who, 10)
    worker.postgres.is_up = False
    await worker.hold(who, 10)
    with pytest.raises(GatewayFault) as caught:
        await worker.hold(who, 10)
    assert (caught.value.status, caught.value.code) == (503, "budget_unavailable")
    assert "retry-after" in caught.value.headers


async def test_a_hold_belongs_to_the_period_of_its_lease(worker: Worker) -> None:
    who = caller(budget(limit=1000))
    old = await worker.hold(who, 100)
    worker.postgres.now_ms = MINUTE_MS
    new = await worker.hold(who, 100)
    assert (old.period_starts_ms, new.period_starts_ms) == ((0,), (MINUTE_MS,))
    worker.budgets.resolve(old, 60)
    assert worker.budgets.shares() == {("b", 0): (40, 0), ("b", MINUTE_MS): (0, 100)}
    await worker.idle(1)
    assert worker.postgres.leased("b", 0) == 60
    assert ("b", 0) not in worker.budgets.shares()


async def test_the_period_of_an_idle_budget_ends_with_its_lease_given_back(worker: Worker) -> None:
    hold = await worker.hold(caller(budget(limit=5000)), 10)
    worker.postgres.now_ms = MINUTE_MS
    await worker.idle(1)
    assert worker.budgets.shares() == {("b", 0): (0, 10)}
    assert len(worker.budgets) == 1
    worker.budgets.resolve(hold, 10)
    await worker.idle(1)
    assert len(worker.budgets) == 0
    assert worker.postgres.leased("b", 0) == 10


async def test_a_clock_that_runs_ahead_neither_loses_nor_asks_for_money_each_time(postgres: ModelPostgres) -> None:
    ahead = Worker(postgres)
    ahead.ahead_ms = 5000
    who = caller(budget(limit=1_000_000))
    postgres.now_ms = MINUTE_MS - 1000
    for _ in range(10):
        await ahead.hold(who, 10)
    assert postgres.taken == 1
    postgres.now_ms += 1
    assert ahead.budgets.shares() == {("b", 0): (19_900, 100)}


async def test_a_period_that_postgres_takes_up_again_keeps_its_share(worker: Worker) -> None:
    who = caller(budget(limit=5000))
    hold = await worker.hold(who, 100)
    worker.postgres.now_ms = MINUTE_MS
    await worker.hold(who, 100)
    worker.postgres.now_ms = 0
    worker.ahead_ms = 10 * MINUTE_MS
    again = await worker.hold(who, 100)
    assert again.period_starts_ms == hold.period_starts_ms == (0,)
    worker.budgets.resolve(hold, 100)
    assert worker.budgets.shares()["b", 0] == (0, 100)


async def test_an_idle_lease_goes_back_and_the_budget_is_forgotten(worker: Worker) -> None:
    hold = await worker.hold(caller(budget(limit=1_000_000)), 10)
    await worker.idle(5)
    assert worker.postgres.leased("b") == 20_000
    await worker.idle(1)
    assert worker.postgres.leased("b") == 10
    assert len(worker.budgets) == 1
    worker.budgets.resolve(hold, 10)
    await worker.idle(1)
    assert len(worker.budgets) == 0
    assert worker.postgres.leased("b") == 10


async def test_nothing_goes_back_to_a_postgres_that_is_away(worker: Worker) -> None:
    await worker.hold(caller(budget(limit=1_000_000)), 10)
    worker.postgres.is_up = False
    await worker.idle(20)
    assert worker.budgets.shares() == {("b", 0): (19_990, 10)}


@pytest.mark.parametrize("arrives", [True, False])
async def test_what_went_back_without_an_answer_is_neither_spent_nor_given_twice(worker: Worker, arrives: bool) -> None:
    await worker.hold(caller(budget(limit=1_000_000)), 10)
    worker.postgres.lose_answer = "after" if arrives else "before"
    await worker.idle()
    assert worker.budgets.stranded_nano_usd_total == 19_990
    assert worker.budgets.shares() == {("b", 0): (0, 10)}
    assert worker.postgres.leased("b") == (10 if arrives else 20_000)


async def test_closing_gives_back_what_is_not_spent_and_no_more(worker: Worker) -> None:
    who = caller(budget(limit=5000))
    settled, held = await worker.hold(who, 30), await worker.hold(who, 20)
    worker.budgets.resolve(settled, 25)
    await worker.budgets.start()
    await worker.budgets.close()
    assert worker.postgres.leased("b") == 25 + 20
    assert not held.resolved
    with pytest.raises(GatewayFault, match="budget"):
        await worker.hold(who, 1)


async def test_closing_waits_for_a_lease_under_way(worker: Worker) -> None:
    worker.postgres.pause = asyncio.Event()
    request = asyncio.create_task(worker.budgets.hold(caller(budget(limit=5000)), 10))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    request.cancel()
    closing = asyncio.create_task(worker.budgets.close())
    await asyncio.sleep(0)
    worker.postgres.pause.set()
    await closing
    assert worker.postgres.leased("b") == 0


async def test_closing_waits_only_once_for_a_postgres_that_does_not_answer(worker: Worker) -> None:
    for name in ("a", "b", "c"):
        await worker.hold(caller(budget(name, limit=5000)), 10)
    worker.postgres.is_up = False
    await worker.budgets.close()
    assert worker.budgets.stranded_nano_usd_total == 90


async def test_closing_waits_only_once_for_a_postgres_that_does_not_take_what_is_left_of_the_past(
    worker: Worker,
) -> None:
    holds = [await worker.hold(caller(budget(name, limit=5000)), 100) for name in ("a", "b", "c")]
    worker.postgres.now_ms = MINUTE_MS
    await worker.idle(1)
    for hold in holds:
        worker.budgets.resolve(hold, 0)
    worker.postgres.is_up = False
    await worker.budgets.close()
    assert worker.budgets.stranded_nano_usd_total == 100


async def test_money_freed_while_a_past_period_is_cleared_is_not_forgotten(worker: Worker) -> None:
    who = caller(budget(limit=5000))
    hold = await worker.hold(who, 60)
    worker.postgres.now_ms = MINUTE_MS
    worker.postgres.on_returned = lambda: worker.budgets.resolve(hold, 0)
    await worker.idle(1)
    assert worker.budgets.shares() == {("b", 0): (60, 0)}
    await worker.idle(1)
    assert worker.postgres.leased("b", 0) == 0


async def test_more_budgets_than_there_is_room_for_are_a_503(postgres: ModelPostgres) -> None:
    worker = Worker(postgres, max_accounts=1)
    await worker.hold(caller(budget("a")), 1)
    with pytest.raises(GatewayFault, match="budget"):
        await worker.hold(caller(budget("b")), 1)


async def test_a_sweep_over_many_budgets_lets_others_run_in_between(worker: Worker) -> None:
    for number in range(600):
        await worker.hold(caller(budget(str(number))), 1)
    sweep = worker.budgets.sweep()
    assert sweep.send(None) is None
    sweep.close()


async def test_a_sweep_that_fails_is_counted_logged_and_followed_by_the_next(
    postgres: ModelPostgres, caplog: pytest.LogCaptureFixture
) -> None:
    broken = asyncio.Event()

    async def give_back(*_: object) -> None:
        broken.set()
        raise ZeroDivisionError("a bug")

    budgets = Budgets(postgres, WORKER, take=postgres.take_lease, give_back=give_back, sweep_seconds=0.001)
    hold = await budgets.hold(caller(budget(limit=5000)), 10)
    assert hold is not None
    with caplog.at_level(logging.ERROR, "strata.admission"):
        await budgets.start()
        async with asyncio.timeout(10):
            await broken.wait()
            while not budgets.failures_total:
                await asyncio.sleep(0.001)
    assert "next sweep" in caplog.text
    budgets.resolve(hold, 110)
    broken.clear()
    async with asyncio.timeout(10):
        await broken.wait()
    await budgets.close()


async def test_the_refusal_of_a_hold_knows_its_period(worker: Worker) -> None:
    worker.postgres.now_ms = 15_000
    await worker.hold(caller(budget(limit=100)), 100)
    assert (await worker.refused(caller(budget(limit=100)), 1)).message.endswith("the budget resets in 45 s.")
    await worker.hold(caller(budget("e", 100, None)), 100)
    assert (await worker.refused(caller(budget("e", 100, None)), 1)).message.endswith("owner can raise the budget.")


async def test_a_worker_that_is_short_gets_what_another_does_not_use(postgres: ModelPostgres) -> None:
    idle, short = Worker(postgres, "00000000-0000-0000-0000-0000000000bb"), Worker(postgres)
    who = caller(budget(limit=1000))
    first = await idle.hold(who, 600)
    idle.budgets.resolve(first, 100)
    assert postgres.leased("b") == 600
    assert (await short.hold(who, 700)).nano_usd == 700
    assert idle.budgets.shares() == {("b", 0): (0, 0)}
    assert short.slept == [0.05]


async def test_what_is_held_is_not_given_away(postgres: ModelPostgres) -> None:
    other, short = Worker(postgres, "00000000-0000-0000-0000-0000000000bb"), Worker(postgres)
    who = caller(budget(limit=1000))
    hold = await other.hold(who, 600)
    await short.refused(who, 700)
    assert other.budgets.shares() == {("b", 0): (0, 600)}
    other.budgets.resolve(hold, 600)


async def test_nobody_is_refused_before_the_leases_of_the_dead_are_back(postgres: ModelPostgres) -> None:
    dead = Worker(postgres, "00000000-0000-0000-0000-0000000000bb")
    who = caller(budget(limit=1000))
    await dead.hold(who, 600)

    async def adopted() -> None:
        postgres.release_worker("00000000-0000-0000-0000-0000000000bb")

    short = Worker(postgres, wait_for_heirs=adopted)
    assert (await short.hold(who, 700)).nano_usd == 700


async def test_what_an_answer_left_is_only_given_away_when_the_disk_has_its_settlement(postgres: ModelPostgres) -> None:
    disk_answers = False

    async def keep() -> bool:
        return disk_answers

    idle, short = Worker(postgres, "00000000-0000-0000-0000-0000000000bb", keep=keep), Worker(postgres)
    who = caller(budget(limit=1000))
    hold = await idle.hold(who, 600)
    idle.budgets.resolve(hold, 100)
    await short.refused(who, 700)
    assert idle.budgets.shares() == {("b", 0): (500, 0)}
    assert postgres.leased("b") == 600
    disk_answers = True
    await idle.idle()
    assert postgres.leased("b") == 100


async def test_money_that_waits_for_a_disk_in_vain_is_not_forgotten(postgres: ModelPostgres) -> None:
    answered = asyncio.Event()

    async def keep() -> bool:
        await answered.wait()
        return False

    worker = Worker(postgres, keep=keep)
    who = caller(budget(limit=1000))
    worker.budgets.resolve(await worker.hold(who, 1000), 0)
    worker.budgets.on_notice("short b 00000000-0000-0000-0000-0000000000bb")
    await asyncio.sleep(0)
    await worker.idle(2)
    answered.set()
    await asyncio.sleep(0.01)
    assert worker.budgets.shares() == {("b", 0): (1000, 0)}
    assert (await worker.hold(who, 1000)).nano_usd == 1000


async def test_a_raised_budget_is_asked_for_at_once(worker: Worker) -> None:
    await worker.hold(caller(budget(limit=100)), 100)
    await worker.refused(caller(budget(limit=100)), 50)
    taken = worker.postgres.taken
    worker.budgets.on_notice("changed b")
    await worker.hold(caller(budget(limit=200)), 50)
    assert worker.postgres.taken == taken + 1


async def test_a_database_that_does_not_answer_is_not_waited_for_by_everybody_in_turn(worker: Worker) -> None:
    who = caller(budget(limit=100))
    worker.postgres.is_up = False
    for _ in range(3):
        with pytest.raises(GatewayFault) as caught:
            await worker.budgets.hold(who, 10)
        assert caught.value.code == "budget_unavailable"
    asked = worker.postgres.asked
    worker.now += 1.1
    with pytest.raises(GatewayFault):
        await worker.budgets.hold(who, 10)
    assert (asked, worker.postgres.asked) == (1, 2)
    worker.postgres.is_up = True
    await worker.hold(who, 10)
