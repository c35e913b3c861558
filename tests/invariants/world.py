"""
A small world: workers with the real meter, journal, budgets and adoption; a ledger as Postgres keeps it; a provider
that knows what it did. `History` (in `histories`) makes things happen, and asks after each whether all still holds.

What is true of a real Postgres too (nothing is inserted twice, counters move with the rows) is tested there, in
tests/test_ledger_sql.py; here the same rules are written once more in ten lines.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from proxy.admission.budgets import Budgets
from proxy.config import Deployment, Ledger, PriceOverride, Prices, Provider
from proxy.exchange import Attempt, Budget, Caller, Exchange, Usage
from proxy.metering import segments
from proxy.metering.adoption import Estate, find_estates
from proxy.metering.journal import Journal
from proxy.metering.meter import Meter
from proxy.metering.prices import PriceBook
from proxy.metering.segments import Disk, Position
from proxy.metering.tokens import Tokenizer
from proxy.storage.ledger import Charge, LedgerRow, decode_row
from tests.leases import ModelPostgres

KEYS = (Budget("key-a", "key", "a", 4_000_000, 60), Budget("key-b", "key", "b", 1_500_000))
TEAM = Budget("team", "team", "t", 5_000_000, 120)
CALLERS = (
    Caller("a", "a", "", budgets=(KEYS[0],)),
    Caller("b", "b", "", budgets=(KEYS[1], TEAM)),
    Caller("c", "c", ""),
)
LIMITS = {budget.id: budget.limit_nano_usd for budget in (*KEYS, TEAM)}
SEGMENT_BYTES = 20_000
INPUT_PICO, CACHED_PICO, OUTPUT_PICO, REQUEST_NANO = 1_234_567, 123_456, 9_876_543, 777
PRICES = Prices(
    models={
        "p/m": PriceOverride(
            input_pico_usd=INPUT_PICO,
            cached_input_pico_usd=CACHED_PICO,
            output_pico_usd=OUTPUT_PICO,
            request_nano_usd=REQUEST_NANO,
        )
    }
)
DEPLOYMENT = Deployment(provider=Provider(name="p", api_base="http://127.0.0.1:9"), model="m")
TOKENIZER = Tokenizer()
TOKENIZER.load()

Key = tuple[bytes, int]


class Power(Disk):
    """Remembers how much of each file the disk has promised to keep."""

    def __init__(self) -> None:
        self.paths: dict[int, Path] = {}
        self.written: Counter[Path] = Counter()
        self.synced: Counter[Path] = Counter()

    def create(self, path: Path, size: int) -> int:
        fd = super().create(path, size)
        self.paths[fd] = path
        return fd

    def write(self, fd: int, data: bytes, offset: int) -> int:
        self.written[self.paths[fd]] = offset + len(data)
        return super().write(fd, data, offset)

    def sync(self, fd: int) -> None:
        self.synced[self.paths[fd]] = self.written[self.paths[fd]]


class Bank(ModelPostgres):
    """Postgres: what `strata.usage` and the counters of its budgets are, in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.limits.update(LIMITS)
        self.rows: dict[Key, LedgerRow] = {}

    def insert(self, row: LedgerRow) -> bool:
        """One row of a batch; False: it was there."""
        if (row.request_id, row.attempt) in self.rows:
            return False
        self.rows[row.request_id, row.attempt] = row
        self.count(row)
        return True

    def count(self, row: LedgerRow) -> None:
        worker_id = str(row.worker_id.hex())
        for period in zip(row.budget_ids, row.budget_starts_ms, strict=True):
            self.settled[period] = self.settled.get(period, 0) + row.cost_nano_usd
            if (*period, worker_id) in self.granted:
                self.granted[*period, worker_id] -= row.cost_nano_usd


class Done(NamedTuple):
    """What the provider knows of an attempt that it answered."""

    source: str
    usage: Usage
    text: str


class Worker:
    def __init__(self, folder: Path, bank: Bank, disk: Power) -> None:
        self.journal = Journal(folder, Ledger(segment_bytes=SEGMENT_BYTES), disk=disk)
        self.journal.open()
        self.id = self.journal.worker_id.hex
        self.bank = bank
        self.queue: list[LedgerRow] = []
        self.open: list[tuple[Exchange, Attempt]] = []
        self.now = 0.0
        self.budgets = Budgets(
            bank,
            self.id,
            clock=lambda: self.now,
            wall_clock=lambda: bank.now_ms / 1000,
            sleep=self._pause,
            take=bank.take_lease,
            give_back=bank.return_lease,
            ask_others=bank.ask_for_leases,
            keep=self.journal.keep,
        )
        bank.hearers.append(self.budgets.on_notice)
        self.meter = Meter(
            self.journal, PriceBook(PRICES), offer=self._offer, on_settled=[self._settled], tokenizer=TOKENIZER
        )

    async def _pause(self, _: float) -> None:
        """As long as the others need to give something back."""
        await asyncio.sleep(0)
        others = [hear.__self__ for hear in self.bank.hearers]  # type: ignore[attr-defined]  # a bound method's
        if returning := [task for budgets in others for task in budgets._returning]:
            await asyncio.wait(returning)

    def _offer(self, record: bytes, position: Position | None, charge: Charge) -> None:
        self.queue.append(decode_row(record))

    def _settled(self, exchange: Exchange, attempt: Attempt) -> None:
        if attempt.hold is not None:
            self.budgets.resolve(attempt.hold, attempt.cost_nano_usd)

    @property
    def unsynced(self) -> int:
        """Records of which the journal does not say that the disk has them."""
        journal = self.journal
        return sum(len(segment.unsynced) for segment in (*journal._retired, journal._current) if segment is not None)

    def die(self) -> None:
        """What the kernel does for a killed process: the lock goes, the files stay as they are."""
        self.bank.hearers.remove(self.budgets.on_notice)
        os.close(self.journal._lock)
        self.journal._thread.shutdown(wait=False)
        for segment in (self.journal._current, self.journal._spare, *self.journal._retired):
            if segment is not None:
                os.close(segment.fd)


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bank = Bank()
        self.disk = Power()
        self.workers: list[Worker] = []
        self.sent: dict[Key, int] = {}
        """Every attempt whose bytes left, and the most it may cost."""
        self.done: dict[Key, Done] = {}
        self.told: set[Key] = set()
        """Settled, and the client has its last byte."""
        self.forgotten: set[Key] = set()
        """What a loss of power may have taken: written, and not yet promised by the disk."""
        self.overrun: Counter[tuple[str, int]] = Counter()
        self.first_seen: dict[Key, LedgerRow] = {}
        self.numbers = iter(range(1, 10**9))

    def hire(self) -> None:
        self.workers.append(Worker(self.folder, self.bank, self.disk))

    def new_exchange(self, caller: Caller) -> Exchange:
        return Exchange(
            id=next(self.numbers).to_bytes(16, "big"),
            request_id="req_1",
            endpoint="chat",
            started_at_ms=self.bank.now_ms + 1_790_000_000_000,
            started_ns=time.monotonic_ns(),
            model="m",
            caller=caller,
        )

    def frames_of(self, name: str) -> list[tuple[int, bytes]]:
        """What can be read in a worker's journal now."""
        paths = sorted(self.folder.glob(f"{name}-*.journal"))
        return [(record.kind, record.payload) for path in paths for record in segments.read_records(path)]

    def adopt(self) -> None:
        """What every worker does now and then: finishes the bills of the dead."""
        own = self.workers[0].journal.name if self.workers else ""
        for estate in find_estates(self.folder, own):
            try:
                self._settle(estate)
            finally:
                estate.release()

    def _settle(self, estate: Estate) -> None:
        for rows in estate.read_settled(3):
            for row in rows:
                self.bank.insert(row)
        for row in estate.orphans.values():
            self.bank.insert(row)
        self.bank.release_worker(estate.worker_id.hex)
        estate.finish()

    def close(self) -> None:
        for worker in self.workers:
            worker.die()
        shutil.rmtree(self.folder, ignore_errors=True)
