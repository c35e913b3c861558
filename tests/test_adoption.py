"""A worker that died, however it died, has its bill finished by another one."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from proxy.exchange import Budget
from proxy.metering.adoption import Estate, discard_old, find_dead, find_estates, segment_paths
from proxy.metering.segments import DISPATCH, LOCK, PROGRESS, SEGMENT, SETTLE, SHIPPED, read_records
from proxy.storage import budgets
from proxy.storage.ledger import decode_row, encode_row
from proxy.storage.postgres import Database
from tests.journal_worker import HOLD_NANO_USD, row
from tests.shipping import ROWS, Worker, numbers, until


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


async def test_a_dead_workers_bill_is_finished_and_its_leases_go_back(worker: Worker, db: Database) -> None:
    budget = Budget(str(uuid.uuid4()), "key", "k", 10**9)
    dead = Worker(worker.journal.folder, db)
    lease = await budgets.take_lease(db, budget, str(dead.journal.worker_id), 10**8, 1)
    marks: dict[str, Any] = {"budget_ids": (budget.id,), "budget_starts_ms": (lease.starts_at_ms,)}
    for number in range(1, 201):
        dead.dispatch(number, **marks)
        if number % 5:
            dead.settle(number, **marks)
    made = row(dead.me, 200, source="orphan", **{**marks, "cost_nano_usd": 77})
    dead.journal.append(PROGRESS, encode_row(made))
    dead.die()
    await worker.shipper.adopt()
    costs = {
        int.from_bytes(r["request_id"].bytes[8:], "big"): (r["source"], r["cost_nano_usd"])
        for r in await db.fetch(ROWS)
    }
    assert costs == {
        number: ("provider", number) if number % 5 else ("orphan", 77 if number == 200 else HOLD_NANO_USD)
        for number in range(1, 201)
    }
    period = await budgets.read_period(db, budget)
    assert period is not None
    assert (period.settled_nano_usd, period.leased_nano_usd) == (sum(cost for _, cost in costs.values()), 0)
    assert (worker.shipper.adopted_total, worker.shipper.orphans_total) == (1, 40)
    assert not (dead.journal.folder / f"{dead.journal.name}{LOCK}").exists()
    assert max(path.stat().st_size for path in segment_paths(dead.journal.folder, dead.journal.name)) <= 16_384
    await worker.shipper.adopt()
    assert worker.shipper.adopted_total == 1
    await dead.journal.close()


async def test_adopting_twice_gives_the_same_tables(worker: Worker, db: Database) -> None:
    """The heir dies after shipping and before it could say so; the next one finds everything again."""
    dead = Worker(worker.journal.folder, db)
    dead.dispatch(1)
    dead.settle(2)
    dead.die()
    await worker.shipper.adopt()
    before = await db.fetch(ROWS)
    done = dead.journal.folder / f"{dead.journal.name}{SHIPPED}"
    done.rename(done.with_suffix(LOCK))
    await worker.shipper.adopt()
    assert await db.fetch(ROWS) == before
    assert len(before) == 2
    await dead.journal.close()


async def test_what_a_dead_worker_noted_as_shipped_is_not_read_into_postgres_again(
    worker: Worker, db: Database
) -> None:
    dead = Worker(worker.journal.folder, db)
    dead.dispatch(1)
    noted = dead.journal.append(SETTLE, encode_row(row(dead.me, 2)))
    assert noted is not None
    dead.journal.note_shipped(noted)
    dead.settle(3)
    dead.die()
    await worker.shipper.adopt()
    assert await numbers(db) == [1, 3]
    await dead.journal.close()


async def test_a_living_worker_is_never_adopted(worker: Worker, db: Database) -> None:
    living = Worker(worker.journal.folder, db)
    living.dispatch(1)
    worker.dispatch(2)
    await worker.shipper.adopt()
    assert await numbers(db) == []
    assert list(find_estates(worker.journal.folder, worker.journal.name)) == []
    await living.journal.close()


async def test_the_dead_are_known_until_their_bill_is_finished(worker: Worker, db: Database) -> None:
    folder, me = worker.journal.folder, worker.journal.name
    living, dead = Worker(folder, db), Worker(folder, db)
    (folder / f"gone-meanwhile{LOCK}").symlink_to("nowhere")
    assert find_dead(folder, me) == set()
    dead.die()
    assert find_dead(folder, me) == {dead.journal.name}
    (estate,) = find_estates(folder, me)
    assert find_dead(folder, me) == {dead.journal.name}, "somebody is at it, and has not finished"
    estate.finish()
    estate.release()
    assert find_dead(folder, me) == set()
    for one in (living, dead):
        await one.journal.close()


async def test_a_journal_that_cannot_be_read_does_not_hold_up_the_others(
    worker: Worker, db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    folder = worker.journal.folder
    (folder / f"nonsense{LOCK}").write_text("")
    strange, damaged = Worker(folder, db), Worker(folder, db)
    strange.journal.append(DISPATCH, b"\xc1 no row")
    damaged.settle(1)
    damaged.settle(2)
    damaged.settle(3)
    path = damaged.journal.segment_path(1)
    whole = path.read_bytes()
    second = next(record.end for record in read_records(path))
    path.write_bytes(whole[: second + 20] + b"\xff" + whole[second + 21 :])
    for dead in (strange, damaged):
        dead.die()
    await worker.shipper.adopt()
    assert await numbers(db) == [1]
    assert "cannot be adopted" in caplog.text
    assert f"damaged at byte {second}" in caplog.text
    for dead in (strange, damaged):
        await dead.journal.close()


async def test_adoption_waits_for_postgres(worker: Worker, db: Database, absent: Database) -> None:
    heir = Worker(worker.journal.folder, absent, adoption_seconds=0.01)
    dead = Worker(worker.journal.folder, db)
    dead.settle(1)
    dead.die()
    heir.shipper.start()
    await asyncio.sleep(0.1)
    await absent.open()
    await until(lambda: heir.shipper.adopted_total == 1)
    assert await numbers(db) == [1]
    await heir.shipper.close()
    await heir.journal.close()
    await dead.journal.close()


async def test_segments_of_the_dead_go_when_they_are_old(worker: Worker, db: Database) -> None:
    dead = Worker(worker.journal.folder, db)
    for number in range(1, 201):
        dead.settle(number)
    dead.die()
    await worker.shipper.adopt()
    folder, name = dead.journal.folder, dead.journal.name
    paths = segment_paths(folder, name)
    os.utime(paths[0], (0, 0))
    assert discard_old(folder, worker.journal.name, 0, 1000.0) == 1
    assert segment_paths(folder, name) == paths[1:]
    for path in paths[1:]:
        os.utime(path, (0, 0))
    discard_old(folder, worker.journal.name, 0, 1000.0)
    assert list(folder.glob(f"{name}*")) == []
    await dead.journal.close()


def test_two_workers_may_discard_the_same_segments_at_once(tmp_path: Path) -> None:
    name = f"boot-1-{1:032x}"
    (tmp_path / f"{name}{SHIPPED}").touch()
    for number in range(1, 500):
        (tmp_path / f"{name}-{number:06d}{SEGMENT}").touch()
    with ThreadPoolExecutor(4) as pool:
        discarding = [pool.submit(discard_old, tmp_path, "own", 0, time.time() + 10) for _ in range(4)]
        counts = [one.result() for one in discarding]
    assert sum(counts) >= 499
    assert list(tmp_path.iterdir()) == []


async def test_a_lock_that_another_heir_has_finished_with_is_left_alone(
    worker: Worker, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = Worker(worker.journal.folder, db)
    dead.die()
    lock = dead.journal.folder / f"{dead.journal.name}{LOCK}"
    real_open = os.open

    def vanish(path: Any, *rest: Any, **named: Any) -> int:
        fd = real_open(path, *rest, **named)
        if path == lock:
            lock.unlink()
        return fd

    monkeypatch.setattr(os, "open", vanish)
    assert list(find_estates(dead.journal.folder, worker.journal.name)) == []
    lock.write_bytes(b"")
    monkeypatch.setattr(os, "open", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError()))
    assert list(find_estates(dead.journal.folder, worker.journal.name)) == []
    monkeypatch.undo()
    await dead.journal.close()


async def run_and_kill(folder: Path, after_lines: int) -> tuple[bytes, list[tuple[str, int]]]:
    """Starts a worker process, kills it after so many acknowledgements, and returns its id and all it acknowledged."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.journal_worker", str(folder), "32768",
        stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert process.stdout is not None
    async with asyncio.timeout(60):
        lines = [await process.stdout.readline() for _ in range(after_lines)]
        process.send_signal(signal.SIGKILL)
        rest = await process.stdout.read()
        await process.wait()
    lines += rest.splitlines(keepends=True)
    said = [line.decode().split() for line in lines if line.endswith(b"\n")]
    assert said[0][0] == "W"
    return bytes.fromhex(said[0][1]), [(kind, int(number)) for kind, number in said[1:]]


async def test_kill_minus_nine_loses_no_acknowledged_record_and_bills_every_dispatch(
    worker: Worker, db: Database
) -> None:
    """I1 and I9, with real processes killed at six different moments."""
    acknowledged: dict[bytes, list[tuple[str, int]]] = {}
    for after_lines in (2, 3, 50, 333, 1000, 2500):
        worker_id, said = await run_and_kill(worker.journal.folder, after_lines)
        acknowledged[worker_id] = said
        kinds = {DISPATCH: "D", SETTLE: "S", PROGRESS: "P"}
        (lock,) = worker.journal.folder.glob(f"*{worker_id.hex()}{LOCK}")
        name = lock.name.removesuffix(LOCK)
        records = [record for path in segment_paths(lock.parent, name) for record in read_records(path)]
        found = [(kinds[record.kind], decode_row(record.payload).input_tokens) for record in records]
        # at most one record was written whose acknowledgement the kill cut off
        assert found[: len(said)] == said
        assert len(found) <= len(said) + 1
    await worker.shipper.adopt()
    assert worker.shipper.adopted_total == 6
    billed = {(r["request_id"].bytes): (r["source"], r["cost_nano_usd"]) for r in await db.fetch(ROWS)}
    for worker_id, said in acknowledged.items():
        dispatched = {number for kind, number in said if kind == "D"}
        settled = {number for kind, number in said if kind == "S"}
        assert dispatched
        for number in dispatched:
            source, cost = billed[row(worker_id, number).request_id]
            if number in settled:
                assert (source, cost) == ("provider", number)
            elif number != max(dispatched):
                assert (source, cost) == ("orphan", 7 if number % 11 == 0 else HOLD_NANO_USD)
    total = sum(len({number for kind, number in said if kind == "D"}) for said in acknowledged.values())
    assert total <= len(billed) <= total + len(acknowledged)


def test_an_estate_knows_its_worker(tmp_path: Path) -> None:
    worker_id = uuid.uuid4()
    lock = tmp_path / f"boot-1-{worker_id.hex}{LOCK}"
    fd = os.open(lock, os.O_RDWR | os.O_CREAT)
    estate = Estate(lock, fd)
    assert (estate.worker_id, estate.name) == (worker_id, f"boot-1-{worker_id.hex}")
    assert list(estate.read_settled(10)) == [[]]
    estate.release()
    with pytest.raises(OSError):
        os.fstat(fd)
