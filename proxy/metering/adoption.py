"""
What a dead worker left in the journal folder, and how its bill is finished.

The kernel frees a worker's lock when it dies, however it dies, and never before; no clock is involved. Whoever gets the
lock reads everything: settled rows are shipped, and a dispatch without a settlement becomes an `orphan` row, at the
last that is known of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from proxy.metering.segments import (
    LOCK,
    SEGMENT,
    SETTLE,
    SHIPPED,
    Position,
    is_blank,
    read_position_note,
    read_records,
)
from proxy.storage.ledger import LedgerRow, decode_row

HEIR = b"heir"
HEIR_OFFSET = 64
"""In the lock file, behind the note of its worker."""

log = logging.getLogger("strata.metering")


class Estate:
    """A dead worker's journal, ours alone while we hold its lock."""

    def __init__(self, lock: Path, fd: int) -> None:
        self.name = lock.name.removesuffix(LOCK)
        self.worker_id = uuid.UUID(self.name.rpartition("-")[2])
        self.orphans: dict[tuple[bytes, int], LedgerRow] = {}
        """Filled by reading: attempts that were dispatched and not settled."""
        self._lock = lock
        self._fd = fd

    def read_settled(self, most: int) -> Iterator[list[LedgerRow]]:
        """
        Settled rows, at most so many at a time, leaving out those that the worker noted as shipped. Blocking. Space
        that a segment never used is given back.
        """
        shipped_to = read_position_note(os.pread(self._fd, 64, 0))
        rows: list[LedgerRow] = []
        for path in segment_paths(self._lock.parent, self.name):
            number, end = segment_number(path), 0
            for record in read_records(path):
                end = record.end
                row = decode_row(record.payload)
                if record.kind != SETTLE:
                    self.orphans[row.request_id, row.attempt] = row
                    continue
                self.orphans.pop((row.request_id, row.attempt), None)
                if Position(number, end) > shipped_to:
                    rows.append(row)
                if len(rows) >= most:
                    yield rows
                    rows = []
            if is_blank(path, end):
                os.truncate(path, end)
            else:
                log.error("%s is damaged at byte %d: what was written behind it is lost", path.name, end)
        yield rows

    def finish(self) -> None:
        """Everything is in Postgres: nobody need adopt this journal again."""
        self._lock.rename(self._lock.with_suffix(SHIPPED))

    def release(self) -> None:
        os.close(self._fd)


def find_estates(folder: Path, own_name: str) -> Iterator[Estate]:
    """The journals of dead workers, each locked for us; release it before asking for the next."""
    for lock, fd in _locks_of_others(folder, own_name):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between our open and our lock another worker may have finished with it.
            estate = Estate(lock, fd) if lock.exists() else None
        except (BlockingIOError, ValueError):
            estate = None
        if estate is None:
            os.close(fd)
        else:
            os.pwrite(fd, HEIR, HEIR_OFFSET)
            yield estate


def find_dead(folder: Path, own_name: str) -> set[str]:
    """The journals whose workers are dead and whose bills are not finished, whoever is at it."""
    dead = set()
    for lock, fd in _locks_of_others(folder, own_name):
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            is_dead = lock.exists()
        except BlockingIOError:
            is_dead = os.pread(fd, len(HEIR), HEIR_OFFSET) == HEIR
        finally:
            os.close(fd)
        if is_dead:
            dead.add(lock.name.removesuffix(LOCK))
    return dead


def _locks_of_others(folder: Path, own_name: str) -> Iterator[tuple[Path, int]]:
    """Each with a descriptor of its own, which is the caller's to close."""
    for lock in sorted(folder.glob(f"*{LOCK}")):
        if lock.name == own_name + LOCK:
            continue
        try:
            fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:  # another heir has finished with it
            continue
        yield lock, fd


def segment_paths(folder: Path, name: str) -> list[Path]:
    return sorted(folder.glob(f"{name}-*{SEGMENT}"), key=segment_number)


def segment_number(path: Path) -> int:
    return int(path.name.removesuffix(SEGMENT).rpartition("-")[2])


def discard_old(folder: Path, own_name: str, own_below: int, before: float) -> int:
    """
    Deletes segments last written to before that Unix time: those of finished journals, and our own with numbers below
    `own_below`. Returns how many. They are kept until then for a database that has to be restored from a backup.
    """
    discarded = 0
    for done in folder.glob(f"*{SHIPPED}"):
        paths = segment_paths(folder, done.name.removesuffix(SHIPPED))
        gone = sum([_discard(path, before) for path in paths])
        discarded += gone
        if gone == len(paths):
            done.unlink(missing_ok=True)
    for path in segment_paths(folder, own_name):
        if segment_number(path) < own_below:
            discarded += _discard(path, before)
    return discarded


def _discard(path: Path, before: float) -> bool:
    """Whether it is gone; another worker may be at it, too."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_mtime >= before:
            return False
        path.unlink()
    return True
