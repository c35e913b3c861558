"""Budgets over a real Postgres: two workers at one limit."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence

import pytest

from proxy.admission.budgets import Budgets
from proxy.errors import PolicyError
from proxy.exchange import Budget, Caller, Hold
from proxy.storage.budgets import read_period
from proxy.storage.postgres import Database


def caller(budget: Budget) -> Caller:
    return Caller("k", "ci", "sk-strata-…", budgets=(budget,))


async def test_two_workers_at_a_real_limit_overspend_nothing_and_refuse_hardly_anybody_wrongly(db: Database) -> None:
    affordable, cost = 100, 1_000_000
    shared = Budget(str(uuid.uuid4()), "key", str(uuid.uuid4()), affordable * cost)
    workers = [Budgets(db, str(uuid.uuid4())) for _ in range(2)]

    async def request(number: int) -> Hold | None:
        await asyncio.sleep(0.001 * (number % 10))
        try:
            return await workers[number % 2].hold(caller(shared), cost)
        except PolicyError:
            return None

    answers: Sequence[Hold | None] = await asyncio.gather(*(request(number) for number in range(200)))
    passed = [(number, hold) for number, hold in enumerate(answers) if hold is not None]
    assert 0.98 * affordable <= len(passed) <= affordable
    for number, hold in passed:
        workers[number % 2].resolve(hold, cost)
    period = await read_period(db, shared)
    assert period is not None
    assert period.settled_nano_usd + period.leased_nano_usd <= shared.limit_nano_usd
    for worker in workers:
        await worker.close()
    period = await read_period(db, shared)
    assert period is not None
    assert period.leased_nano_usd == len(passed) * cost


async def test_an_overrun_is_entered_in_a_real_postgres_too(db: Database) -> None:
    mine = Budget(str(uuid.uuid4()), "key", str(uuid.uuid4()), 1000)
    one, other = Budgets(db, str(uuid.uuid4())), Budgets(db, str(uuid.uuid4()))
    hold = await one.hold(caller(mine), 400)
    assert hold is not None
    one.resolve(hold, 900)
    await one.close()
    with pytest.raises(PolicyError):
        await other.hold(caller(mine), 101)
    assert await other.hold(caller(mine), 100) is not None
    await other.close()
