"""Every settled row comes to Postgres once, however often it is sent and whatever is away in between."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.config import Ledger
from proxy.exchange import Budget
from proxy.metering import shipper
from proxy.metering.adoption import segment_paths
from proxy.metering.segments import LOCK, SHIPPED
from proxy.metering.shipper import REFUSED_FILE
from proxy.storage import budgets, ledger
from proxy.storage.postgres import Database
from tests.journal_worker import row
from tests.shipping import FAST, Worker, numbers, until


@pytest.fixture
async def worker(tmp_path: Path, db: Database) -> AsyncIterator[Worker]:
    made = Worker(tmp_path / "journal", db)
    yield made
    await made.shipper.close()
    await made.journal.close()


@pytest.fixture
async def absent(database_dsn: str) -> AsyncIterator[Database]:
    """The same database to somebody who has not reached it yet: every call fails, until `open`."""
    made = Database(database_dsn)
    yield made
    await made.close()


async def test_rows_are_shipped_in_the_background_in_batches(worker: Worker, db: Database) -> None:
    worker.journal.start()
    worker.shipper.start()
    for number in range(1, 171):
        worker.dispatch(number)
        worker.settle(number)
    assert worker.shipper.queue_depth == 170
    await until(lambda: worker.shipper.shipped_total == 170)
    assert await numbers(db) == list(range(1, 171))
    assert (worker.shipper.queue_depth, worker.shipper.lag_seconds, worker.shipper.dropped_total) == (0, 0.0, 0)


async def test_while_postgres_is_away_rows_wait_in_the_journal_and_none_is_lost(
    tmp_path: Path, db: Database, absent: Database
) -> None:
    worker = Worker(tmp_path, absent, max_queued_rows=20, wall_clock=lambda: 1_790_000_100.0)
    worker.shipper.start()
    for number in range(1, 501):
        worker.settle(number)
        if number == 10:
            assert 99 < worker.shipper.lag_seconds < 100
    assert (worker.shipper.queue_depth, worker.shipper.behind) == (20, True)
    assert not await worker.shipper.drain(1.0)
    assert len(segment_paths(tmp_path, worker.journal.name)) > 3
    await absent.open()
    assert await worker.shipper.drain(30.0)
    assert (worker.shipper.behind, worker.shipper.lag_seconds) == (False, 0.0)
    worker.settle(501)
    assert worker.shipper.queue_depth == 1
    assert await worker.shipper.drain(5.0)
    assert await numbers(db) == list(range(1, 502))
    assert worker.shipper.shipped_total == 501
    await worker.shipper.close()
    await worker.journal.close()


async def test_the_lag_is_known_while_rows_are_only_in_the_journal(tmp_path: Path, db: Database) -> None:
    worker = Worker(tmp_path, db, max_queued_rows=0, wall_clock=lambda: 1_790_000_100.0)
    for number in range(1, 121):
        worker.settle(number)
    assert (worker.shipper.queue_depth, worker.shipper.behind) == (0, True)
    assert 99 < worker.shipper.lag_seconds < 100
    assert await worker.shipper.drain(10.0)
    assert await numbers(db) == list(range(1, 121))
    await worker.shipper.close()
    await worker.journal.close()


async def test_dispatches_in_the_journal_are_passed_over_when_it_is_read(tmp_path: Path, db: Database) -> None:
    worker = Worker(tmp_path, db, max_queued_rows=0)
    for number in range(1, FAST.batch_rows + 1):
        worker.dispatch(number)
        worker.settle(number)
    worker.dispatch(1000)
    assert await worker.shipper.drain(10.0)
    assert await numbers(db) == list(range(1, FAST.batch_rows + 1))
    await worker.shipper.close()
    await worker.journal.close()


async def test_rows_that_no_disk_took_are_shipped_all_the_same(tmp_path: Path, db: Database) -> None:
    worker = Worker(tmp_path, db, max_queued_rows=2)
    worker.settle(1)
    worker.journal.failing = True
    for number in (2, 3, 4):
        worker.settle(number)
    assert worker.journal.kept_in_memory == 3
    assert not await worker.shipper.drain(0.3)
    assert await numbers(db) == [1, 2]
    worker.journal.start()
    worker.journal._dirty.set()
    assert await worker.shipper.drain(10.0)
    assert await numbers(db) == [1, 2, 3, 4]
    await worker.shipper.close()
    await worker.journal.close()


@given(st.lists(st.lists(st.integers(1, 30), max_size=40), min_size=1, max_size=5))
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_shipping_any_rows_any_number_of_times_gives_the_same_tables(
    database_dsn: str, batches: list[list[int]]
) -> None:
    """I4 and I5: the counters are the sums of the rows, whatever came twice."""
    owner = await asyncpg.connect(database_dsn)
    await owner.execute(
        "TRUNCATE strata.usage, strata.usage_hourly, strata.usage_daily, strata.budget_periods, strata.leases, "
        "strata.budgets"
    )
    await owner.close()
    db = Database(database_dsn)
    await db.open()
    try:
        budget = Budget(str(uuid.uuid4()), "key", "k", 10**12)
        worker_id = uuid.uuid4()
        lease = await budgets.take_lease(db, budget, str(worker_id), 10**6, 1)
        for batch in batches:
            rows = [
                row(worker_id.bytes, number, budget_ids=(budget.id,), budget_starts_ms=(lease.starts_at_ms,))
                for number in batch
            ]
            await ledger.ship(db, rows)
        distinct = {number for batch in batches for number in batch}
        assert await numbers(db) == sorted(distinct)
        period = await budgets.read_period(db, budget)
        assert period is not None
        assert period.settled_nano_usd == sum(distinct)
        assert period.leased_nano_usd == 10**6 - sum(distinct)
        hourly = await db.fetchrow("SELECT coalesce(sum(cost_nano_usd), 0)::bigint AS cost FROM strata.usage_hourly")
        assert hourly is not None and hourly["cost"] == sum(distinct)
    finally:
        await db.close()


async def test_a_row_that_postgres_refuses_is_set_aside_and_holds_up_nobody(
    worker: Worker, db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(1, 6):
        worker.settle(number, key_id="no uuid" if number == 3 else None)
    assert await worker.shipper.drain(5.0)
    assert await numbers(db) == [1, 2, 4, 5]
    assert worker.shipper.dropped_total == 1
    (line,) = (worker.journal.folder / REFUSED_FILE).read_bytes().splitlines()
    assert msgspec.json.decode(line)["public_id"] == "req_3"
    assert "req_3" in caplog.text


async def test_segments_go_when_they_are_shipped_and_old_and_needed_by_nobody(worker: Worker, db: Database) -> None:
    folder, name = worker.journal.folder, worker.journal.name
    for number in range(1, 201):
        worker.settle(number)
        if number == 100:
            worker.dispatch(1000)
    paths = segment_paths(folder, name)
    held = worker.journal.open_dispatches[row(worker.me, 1000).request_id, 1]
    assert 1 < held < len(paths)
    for path in paths:
        os.utime(path, (0, 0))
    await worker.shipper.adopt()
    assert segment_paths(folder, name) == paths, "nothing is shipped yet"
    assert await worker.shipper.drain(10.0)
    await worker.shipper.adopt()
    assert segment_paths(folder, name) == paths[held - 1 :], "an attempt of this segment still runs"
    worker.settle(1000)
    os.utime(paths[-2])
    assert await worker.shipper.drain(10.0)
    await worker.shipper.adopt()
    assert segment_paths(folder, name) == paths[-2:], "the rest is young, or in use"


async def test_a_worker_that_ends_in_order_leaves_nothing_to_adopt(worker: Worker, db: Database) -> None:
    budget = Budget(str(uuid.uuid4()), "key", "k", 10**9)
    leaving = Worker(worker.journal.folder, db)
    await budgets.take_lease(db, budget, str(leaving.journal.worker_id), 10**6, 1)
    leaving.dispatch(1)
    leaving.settle(1)
    await leaving.shipper.close()
    await leaving.journal.close()
    assert (leaving.journal.folder / f"{leaving.journal.name}{SHIPPED}").exists()
    period = await budgets.read_period(db, budget)
    assert period is not None
    assert period.leased_nano_usd == 0
    assert await numbers(db) == [1]


@pytest.mark.parametrize("trouble", ["open attempt", "no postgres", "no postgres at the end"])
async def test_a_worker_that_cannot_finish_leaves_its_journal_to_be_adopted(
    worker: Worker, db: Database, absent: Database, trouble: str
) -> None:
    if trouble == "open attempt":
        await absent.open()
    leaving = Worker(worker.journal.folder, absent)
    if trouble == "open attempt":
        leaving.dispatch(1)
    elif trouble == "no postgres":
        leaving.settle(1)
    await leaving.shipper.close(1.0)
    await leaving.journal.close()
    assert (leaving.journal.folder / f"{leaving.journal.name}{LOCK}").exists()
    await worker.shipper.adopt()
    assert len(await numbers(db)) == (0 if trouble == "no postgres at the end" else 1)
    assert worker.shipper.adopted_total == 1


async def test_shipping_goes_on_after_a_mistake_of_ours(
    worker: Worker, db: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def stumble(*_: object) -> int:
        monkeypatch.undo()
        raise RuntimeError("a mistake")

    monkeypatch.setattr(worker.shipper, "_send", stumble)
    worker.shipper.start()
    worker.settle(1)
    await until(lambda: worker.shipper.shipped_total == 1)
    assert "stumbled" in caplog.text


async def test_a_full_batch_does_not_wait_for_its_time(tmp_path: Path, db: Database) -> None:
    slow = Ledger(segment_bytes=65_536, fsync_interval_seconds=0.001, ship_interval_seconds=3_600, batch_rows=20)
    worker = Worker(tmp_path, db, slow)
    worker.shipper.start()
    for batches in (1, 2):
        for number in range(20):
            worker.settle(batches * 100 + number)
        async with asyncio.timeout(30):
            while worker.shipper.shipped_total < batches * 20:
                await asyncio.sleep(0.005)
    assert worker.shipper.queue_depth == 0
    await worker.shipper.close()
    await worker.journal.close()


async def test_whoever_is_short_of_money_waits_until_the_dead_are_adopted_and_that_is_at_once(
    tmp_path: Path, db: Database
) -> None:
    worker = Worker(tmp_path, db, adoption_seconds=3600.0)
    worker.shipper.start()
    await worker.shipper.wait_for_heirs()  # nobody is dead
    living, dead = Worker(tmp_path, db), Worker(tmp_path, db)
    dead.dispatch(1)
    dead.die()
    async with asyncio.timeout(10):
        await asyncio.gather(*(worker.shipper.wait_for_heirs() for _ in range(3)))
    assert (worker.shipper.adopted_total, worker.shipper.orphans_total) == (1, 1)
    assert await numbers(db) == [1]
    for one in (worker, living):
        await one.shipper.close()
        await one.journal.close()
    await dead.journal.close()


async def test_nobody_waits_long_for_the_dead_nor_twice_for_one_whose_journal_cannot_be_read(
    tmp_path: Path, db: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shipper, "HEIRS_SECONDS", 0.1)
    worker = Worker(tmp_path, db)
    dead = Worker(tmp_path, db)
    dead.journal._lock, kept = os.open(os.devnull, os.O_RDWR), dead.journal._lock
    os.close(kept)
    for path in segment_paths(tmp_path, dead.journal.name):
        path.unlink()
        path.mkdir()
    await worker.shipper.wait_for_heirs()
    assert "are not back after 0.1 s" in caplog.text
    caplog.clear()
    await worker.shipper.adopt()
    await worker.shipper.wait_for_heirs()
    assert "not back" not in caplog.text
    await worker.shipper.close()
    await worker.journal.close()
