"""
The journals of this data folder against the ledger: what is noted as shipped must be there, and be the same.

Nothing is locked and nothing changed: a gateway may be at work. Its note of how far it has shipped is read first, so
whatever is behind that is only counted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from proxy.metering.adoption import segment_number, segment_paths
from proxy.metering.segments import LOCK, SETTLE, SHIPPED, Position, Record, read_position_note, read_records
from proxy.storage.ledger import LedgerRow, decode_row, storable
from proxy.storage.postgres import Database
from proxy.storage.verify import MAX_SHOWN, Check, Difference, find_rows

BATCH_ROWS = 500
THE_END = Position(2**31, 0)


class Journals:
    """What the journals hold that must be in the ledger by now."""

    def __init__(self, folder: Path) -> None:
        self.waiting = 0
        """Settled rows that are not noted as shipped yet: no difference, they are on their way."""
        self._folder = folder

    def rows(self) -> Iterator[tuple[LedgerRow, bool]]:
        """
        Blocking. Every row that must be in the ledger, and whether it is known exactly: not for an attempt that was
        never settled, whose journal has been adopted.
        """
        for name, shipped_to in self._workers():
            unsettled: dict[tuple[bytes, int], LedgerRow] = {}
            for path in segment_paths(self._folder, name):
                number = segment_number(path)
                for record in _records(path):
                    row = decode_row(record.payload)
                    if record.kind != SETTLE:
                        unsettled[row.request_id, row.attempt] = row
                        continue
                    unsettled.pop((row.request_id, row.attempt), None)
                    if Position(number, record.end) <= shipped_to:
                        yield row, True
                    else:
                        self.waiting += 1
            if shipped_to == THE_END:
                yield from ((row, False) for row in unsettled.values())

    def _workers(self) -> list[tuple[str, Position]]:
        found = []
        for lock in sorted(self._folder.glob(f"*{LOCK}")):
            with contextlib.suppress(FileNotFoundError):  # finished by now, and found below
                found.append((lock.name.removesuffix(LOCK), read_position_note(lock.read_bytes()[:64])))
        for done in sorted(self._folder.glob(f"*{SHIPPED}")):
            found.append((done.name.removesuffix(SHIPPED), THE_END))
        return found


def _records(path: Path) -> Iterator[Record]:
    """Nothing, of a segment that was discarded a moment ago."""
    with contextlib.suppress(FileNotFoundError):
        yield from read_records(path)


async def check_journals(db: Database, folder: Path) -> list[Check]:
    """Two lines: what was compared, and what waits. Raises Unavailable."""
    journals = Journals(folder)
    compared = 0
    differences: list[Difference] = []
    total = 0
    batch: list[tuple[LedgerRow, bool]] = []
    for row in journals.rows():
        batch.append(row)
        if len(batch) == BATCH_ROWS:
            found = await _compare(db, batch)
            compared, total, batch = compared + len(batch), total + len(found), []
            differences += found[: MAX_SHOWN - len(differences)]
    found = await _compare(db, batch)
    compared, total = compared + len(batch), total + len(found)
    differences += found[: MAX_SHOWN - len(differences)]
    return [
        Check("journal against the ledger", compared, total, tuple(differences)),
        Check("journal rows still to be shipped", journals.waiting, 0, ()),
    ]


async def _compare(db: Database, batch: list[tuple[LedgerRow, bool]]) -> list[Difference]:
    stored = await find_rows(db, [row for row, _ in batch]) if batch else {}
    differences = []
    for row, exact in batch:
        wanted, found = storable(row), stored.get((row.request_id, row.attempt))
        subject = f"request {row.public_id} attempt {row.attempt}"
        if found is None:
            differences.append(Difference(subject, "the whole row", f"{row.cost_nano_usd}", "nothing"))
        elif exact and wanted != found:
            said, stands = msgspec.structs.asdict(wanted), msgspec.structs.asdict(found)
            names = [name for name in said if said[name] != stands[name]]
            differences.append(Difference(subject, ", ".join(names), _values(said, names), _values(stands, names)))
    return differences


def _values(fields: dict[str, object], names: list[str]) -> str:
    return ", ".join(f"{fields[name]}"[:40] for name in names)
