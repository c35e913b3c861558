"""
Takes settled rows from the journal to Postgres: our own as they come, a dead worker's when we find its journal.

Rows wait in a bounded queue. When it is full, or Postgres is away for long, they are simply not queued: they are in the
journal, and are read from there once Postgres is back. Sending a row twice is harmless, so nothing here is exact but
the order: a position is noted as shipped only after everything before it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec

from proxy.config import Ledger
from proxy.errors import GatewayFault
from proxy.metering.adoption import (
    Estate,
    discard_old,
    find_dead,
    find_estates,
    segment_number,
    segment_paths,
)
from proxy.metering.journal import Journal
from proxy.metering.segments import SETTLE, Position, read_records
from proxy.storage import budgets, ledger
from proxy.storage.ledger import Charge, LedgerRow, RowsRefused, decode_row
from proxy.storage.postgres import Database

log = logging.getLogger("strata.metering")

ADOPTION_SECONDS = 10.0
ADOPTION_PAUSE_SECONDS = 0.1
"""The least time between two looks at the journals of others, however often somebody asks."""
HEIRS_SECONDS = 2.0
"""Whoever is short of money waits so long for the leases of the dead."""
HEIRS_LOOK_SECONDS = 0.02
MAX_QUEUED_ROWS = 10_000
MAX_PAUSE_SECONDS = 5.0
REFUSED_FILE = "refused.jsonl"


class Shipper:
    """One worker's way to Postgres."""

    def __init__(
        self,
        journal: Journal,
        database: Database,
        settings: Ledger | None = None,
        *,
        max_queued_rows: int = MAX_QUEUED_ROWS,
        adoption_seconds: float = ADOPTION_SECONDS,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.shipped_total = 0
        self.adopted_total = 0
        self.orphans_total = 0
        self.dropped_total = 0
        """Rows that Postgres will never take; they lie in refused.jsonl. Anything but 0 is a wrong bill."""
        self._journal = journal
        self._database = database
        self._settings = settings or Ledger()
        self._max_queued_rows = max_queued_rows
        self._adoption_seconds = adoption_seconds
        self._wall_clock = wall_clock
        self._queue: deque[tuple[bytes, Position | None, Charge]] = deque()
        """Encoded, as Postgres gets it: as objects they would push what is hot out of the caches."""
        self._behind = False
        """Rows are missing from the queue: after what is in it, go on from the journal."""
        self._full = asyncio.Event()
        """A batch is waiting: it need not grow old, and a short queue stays in the processor's caches."""
        self._shipped_to = Position(1, 0)
        self._oldest_unqueued_ms = 0
        self._turn = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._adopt_now = asyncio.Event()
        self._waiting_for_heirs: asyncio.Task[None] | None = None
        self._beyond_us: set[str] = set()
        """Journals of the dead that we could not adopt."""

    async def wait_for_heirs(self) -> None:
        """
        Returns when no dead worker of this machine has leases any more: at once, unless one has just died. For whoever
        is short of money; all who wait share one look.
        """
        if self._waiting_for_heirs is None:
            self._waiting_for_heirs = asyncio.create_task(self._wait_for_heirs(), name="heirs")
        await asyncio.shield(self._waiting_for_heirs)

    async def _wait_for_heirs(self) -> None:
        try:
            async with asyncio.timeout(HEIRS_SECONDS):
                while find_dead(self._journal.folder, self._journal.name) - self._beyond_us:
                    self._adopt_now.set()
                    await asyncio.sleep(HEIRS_LOOK_SECONDS)
        except TimeoutError:
            log.warning("a dead worker's leases are not back after %g s", HEIRS_SECONDS)
        finally:
            self._waiting_for_heirs = None

    def offer(self, record: bytes, position: Position | None, charge: Charge) -> None:
        """A row as it was journalled, the position behind it, and its budgets. Never blocks, never loses."""
        if self._behind:
            return
        if len(self._queue) < self._max_queued_rows:
            self._queue.append((record, position, charge))
            if len(self._queue) == self._settings.batch_rows:
                self._full.set()
        else:
            self._behind = True
            self._oldest_unqueued_ms = _ended_ms(decode_row(record))

    @property
    def queue_depth(self) -> int:
        """Rows in the queue; while `behind`, there are more in the journal."""
        return len(self._queue)

    @property
    def behind(self) -> bool:
        return self._behind

    @property
    def lag_seconds(self) -> float:
        """The age of the oldest row that is not in Postgres."""
        if self._queue:
            oldest_ms = _ended_ms(decode_row(self._queue[0][0]))
        elif self._behind:
            oldest_ms = self._oldest_unqueued_ms
        else:
            return 0.0
        return max(self._wall_clock() - oldest_ms / 1000, 0.0)

    def start(self) -> None:
        """Begins to ship and to adopt; needs the running loop."""
        shipping = self._repeat(self.ship_pending, self._settings.ship_interval_seconds, wake=self._full)
        adopting = self._repeat(
            self.adopt, self._adoption_seconds, at_once=True, wake=self._adopt_now, least=ADOPTION_PAUSE_SECONDS
        )
        self._tasks = [asyncio.create_task(shipping, name="ship"), asyncio.create_task(adopting, name="adopt")]

    async def drain(self, timeout_seconds: float) -> bool:
        """Ships everything that is settled by now. False: there was no time, or no Postgres; the journal has it."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self.ship_pending()
        except (TimeoutError, GatewayFault) as error:
            log.warning("usage rows stay in the journal for the next start: %s", error or "no time left")
            return False
        return True

    async def close(self, timeout_seconds: float = 5.0) -> None:
        """Drains, gives this worker's leases back, and ends. Before the journal's own close, after the last settle."""
        tasks = [*self._tasks, *filter(None, (self._waiting_for_heirs,))]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks = []
        if await self.drain(timeout_seconds) and not self._journal.open_dispatches:
            try:
                await budgets.release_worker(self._database, str(self._journal.worker_id))
            except GatewayFault as error:
                log.warning("leases stay until this journal is adopted: %s", error)
                return
            self._journal.note_shipped(self._shipped_to)
            self._journal.released = True

    async def ship_pending(self) -> None:
        """Ships until nothing is left. Raises GatewayFault when Postgres is away; what was shipped is not forgotten."""
        async with self._turn:
            while self._queue or self._behind:
                if self._queue:
                    await self._ship_queued()
                else:
                    await self._ship_from_journal()

    async def adopt(self) -> None:
        """Finishes the bills of dead workers, and deletes what is old. Raises GatewayFault when Postgres is away."""
        beyond_us = set()
        for estate in find_estates(self._journal.folder, self._journal.name):
            try:
                await self._settle_estate(estate)
            except GatewayFault:
                raise
            except Exception:
                beyond_us.add(estate.name)
                log.exception("the journal %s cannot be adopted; the others are", estate.name)
            finally:
                estate.release()
        self._beyond_us = beyond_us
        self._journal.note_shipped(self._shipped_to)
        needed = min(self._journal.open_dispatches.values(), default=self._shipped_to.segment)
        below = min(needed, self._shipped_to.segment)
        before = self._wall_clock() - self._settings.retention_seconds
        await asyncio.to_thread(discard_old, self._journal.folder, self._journal.name, below, before)

    async def _ship_queued(self) -> None:
        batch = list(itertools.islice(self._queue, self._settings.batch_rows))
        records = [record for record, _, _ in batch]
        try:
            inserted = await self._send(records, {charge for _, _, charge in batch})
            self.shipped_total += inserted
        except RowsRefused:
            await self._ship([decode_row(record) for record in records])
        for _ in batch:
            self._queue.popleft()
        for _, position, _ in batch:
            if position is not None and position > self._shipped_to:
                self._shipped_to = position

    async def _ship_from_journal(self) -> None:
        """One batch; notices when it has caught up, and goes back to the queue without an await in between."""
        start, written = self._shipped_to, self._journal.position
        if start >= written and not self._journal.kept_in_memory:
            self._behind = False
            return
        rows, position = await asyncio.to_thread(self._read_batch, start, written)
        if position == start:
            # all that is left is in memory, for want of a disk
            await asyncio.sleep(self._settings.ship_interval_seconds)
            return
        await self._ship(rows)
        self._shipped_to = position
        if rows:
            self._oldest_unqueued_ms = _ended_ms(rows[-1])

    def _read_batch(self, start: Position, written: Position) -> tuple[list[LedgerRow], Position]:
        """The next settled rows behind `start`, and how far that is. A segment that ends early ends there."""
        rows: list[LedgerRow] = []
        for path in segment_paths(self._journal.folder, self._journal.name):
            number = segment_number(path)
            if not start.segment <= number <= written.segment:
                continue
            first = start.offset if number == start.segment else 0
            last = written.offset if number == written.segment else None
            for record in read_records(path, first, last):
                if record.kind == SETTLE:
                    rows.append(decode_row(record.payload))
                    if len(rows) == self._settings.batch_rows:
                        return rows, Position(number, record.end)
        return rows, max(start, written)

    async def _settle_estate(self, estate: Estate) -> None:
        pieces = estate.read_settled(self._settings.batch_rows)
        adopted = 0
        while (rows := await asyncio.to_thread(next, pieces, None)) is not None:
            await self._ship(rows)
            adopted += len(rows)
        orphans = list(estate.orphans.values())
        for at in range(0, len(orphans), self._settings.batch_rows):
            await self._ship(orphans[at : at + self._settings.batch_rows])
        await budgets.release_worker(self._database, str(estate.worker_id))
        await asyncio.to_thread(estate.finish)
        self.adopted_total += 1
        self.orphans_total += len(orphans)
        log.info("adopted the journal %s: %d settled rows, %d estimated", estate.name, adopted, len(orphans))

    async def _ship(self, rows: Sequence[LedgerRow]) -> None:
        try:
            inserted = await ledger.ship(self._database, rows)
            self.shipped_total += inserted
        except RowsRefused:
            if len(rows) == 1:
                await asyncio.to_thread(_set_aside, self._journal.folder, rows[0])
                self.dropped_total += 1
                log.error(
                    "Postgres refuses the usage row of request %s: it lies in %s", rows[0].public_id, REFUSED_FILE
                )
                return
            for row in rows:
                await self._ship([row])

    async def _send(self, records: Sequence[bytes], charges: set[Charge]) -> int:
        return await ledger.ship_encoded(self._database, records, charges)

    async def _repeat(
        self,
        work: Callable[[], Awaitable[None]],
        seconds: float,
        *,
        at_once: bool = False,
        wake: asyncio.Event | None = None,
        least: float = 0.0,
    ) -> None:
        """`wake` cuts a pause short, to no `least` than that; without a least, not while Postgres is away."""
        pause = 0.0 if at_once else seconds
        away = False
        while True:
            if wake is None or (away and not least):
                await asyncio.sleep(pause)
            else:
                await asyncio.sleep(min(pause, least))
                # not wait_for, which before Python 3.12 may lose a cancellation
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(pause - least, 0.0)):
                        await wake.wait()
                wake.clear()
            try:
                await work()
                pause, away = seconds, False
            except Exception as error:
                if not isinstance(error, GatewayFault):
                    log.exception("shipping usage rows stumbled, and goes on")
                elif not away:
                    log.warning("usage rows wait in the journal: %s", error)
                away = True
                pause = max(seconds, min(max(pause, seconds) * 2, MAX_PAUSE_SECONDS))


def _ended_ms(row: LedgerRow) -> int:
    return row.started_at_ms + row.duration_ms


def _set_aside(folder: Path, row: LedgerRow) -> None:
    with (folder / REFUSED_FILE).open("ab") as file:
        file.write(msgspec.json.encode(msgspec.structs.asdict(row)) + b"\n")
