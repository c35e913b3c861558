"""A journal with its shipper, as the tests of shipping and adoption use them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from proxy.config import Ledger
from proxy.metering.journal import Journal
from proxy.metering.segments import SETTLE
from proxy.metering.shipper import Shipper
from proxy.storage.ledger import LedgerRow, encode_row
from proxy.storage.postgres import Database
from tests.journal_worker import key_of, row

ROWS = "SELECT request_id, attempt, source, cost_nano_usd FROM strata.usage ORDER BY request_id, attempt"
FAST = Ledger(segment_bytes=16_384, fsync_interval_seconds=0.001, ship_interval_seconds=0.01, batch_rows=50)


class Worker:
    """A journal and its shipper, and short ways to use them."""

    def __init__(self, folder: Path, database: Database, ledger_settings: Ledger = FAST, **options: Any) -> None:
        self.journal = Journal(folder, ledger_settings, recovery_seconds=0.005)
        self.journal.open()
        self.shipper = Shipper(self.journal, database, ledger_settings, **options)
        self.me = self.journal.worker_id.bytes

    def dispatch(self, number: int, **fields: Any) -> None:
        made = row(self.me, number, source="orphan", **fields)
        self.journal.append_dispatch(key_of(made), encode_row(made))

    def settle(self, number: int, **fields: Any) -> LedgerRow:
        made = row(self.me, number, **fields)
        record = encode_row(made)
        charge = (made.budget_ids, made.budget_starts_ms)
        self.shipper.offer(record, self.journal.append(SETTLE, record), charge)
        self.journal.close_dispatch(key_of(made))
        return made

    def die(self) -> None:
        """What the kernel does for a killed process: the lock goes, the files stay as they are."""
        os.close(self.journal._lock)
        self.journal._lock = os.open(os.devnull, os.O_RDWR)


async def numbers(db: Database) -> list[int]:
    return [int.from_bytes(record["request_id"].bytes[8:], "big") for record in await db.fetch(ROWS)]


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0.005)
