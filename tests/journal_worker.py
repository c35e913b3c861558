"""
A worker that the kill test kills: journals dispatches and settlements, and says of each only afterwards that it did.

`python -m tests.journal_worker FOLDER SEGMENT_BYTES`; on stdout, a line `D number` or `S number` for each record.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import msgspec

from proxy.config import Ledger
from proxy.metering.journal import Journal
from proxy.metering.segments import PROGRESS, SETTLE
from proxy.storage.ledger import LedgerRow, encode_row

HOLD_NANO_USD = 1_000_000
STARTED_AT_MS = 1_790_000_000_000


def row(worker_id: bytes, number: int, *, source: str = "provider", attempt: int = 1, **fields: object) -> LedgerRow:
    """A row whose numbers all follow from `number`; one of a dispatch costs its hold."""
    settled = source != "orphan"
    made = LedgerRow(
        request_id=worker_id[:8] + number.to_bytes(8, "big"),
        attempt=attempt,
        started_at_ms=STARTED_AT_MS + number,
        worker_id=worker_id,
        public_id=f"req_{number}",
        key_id=None,
        key_name="test",
        user_id=None,
        team_id=None,
        endpoint="/v1/chat/completions",
        model="m",
        deployment="sim/m",
        provider="sim",
        stream=False,
        status=200 if settled else 0,
        outcome="ok" if settled else "gateway_internal",
        source=source,
        input_tokens=number,
        cache_read_tokens=0,
        cache_write_5m_tokens=0,
        cache_write_1h_tokens=0,
        audio_input_tokens=0,
        output_tokens=1,
        reasoning_tokens=0,
        audio_output_tokens=0,
        cost_nano_usd=number if settled else HOLD_NANO_USD,
        price_state="priced",
        price_source="test",
        usage_raw="{}" * (number % 200),
        usage_suspect=False,
        duration_ms=5,
        first_token_ms=None,
    )
    return msgspec.structs.replace(made, **fields)


def key_of(one: LedgerRow) -> tuple[bytes, int]:
    return one.request_id, one.attempt


async def work(folder: Path, segment_bytes: int) -> None:
    journal = Journal(folder, Ledger(segment_bytes=segment_bytes, fsync_interval_seconds=0.002))
    journal.open()
    journal.start()
    me = journal.worker_id.bytes
    os.write(1, f"W {journal.worker_id.hex}\n".encode())
    number = 0
    while True:
        number += 1
        dispatched = row(me, number, source="orphan")
        journal.append_dispatch(key_of(dispatched), encode_row(dispatched))
        os.write(1, f"D {number}\n".encode())
        if number % 11 == 0:
            journal.append(PROGRESS, encode_row(msgspec.structs.replace(dispatched, cost_nano_usd=7)))
            os.write(1, f"P {number}\n".encode())
        if number % 7:
            # every seventh stays open, as if its answer were still coming
            journal.append(SETTLE, encode_row(row(me, number)))
            journal.close_dispatch(key_of(dispatched))
            os.write(1, f"S {number}\n".encode())
        await asyncio.sleep(0)


if __name__ == "__main__":
    asyncio.run(work(Path(sys.argv[1]), int(sys.argv[2])))
