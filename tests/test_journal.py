"""What the journal has taken can be read back: after a kill, after damage, after a disk that failed for a while."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from proxy.config import Ledger
from proxy.metering.journal import Journal, MeteringUnavailable, boot_id
from proxy.metering.segments import (
    DISPATCH,
    LOCK,
    SETTLE,
    SHIPPED,
    Disk,
    Position,
    read_records,
)

KEY = (b"k" * 16, 1)


class FailingDisk(Disk):
    """The real disk, until told to fail in some of its calls."""

    def __init__(self) -> None:
        self.broken: set[str] = set()
        self.sync_results: list[bool] = []
        """For the next syncs: does each succeed? Empty: see `broken`."""
        self.synced: list[int] = []
        self.partial = False
        self.gate: threading.Event | None = None

    def create(self, path: Path, size: int) -> int:
        self._check("create")
        return super().create(path, size)

    def write(self, fd: int, data: bytes, offset: int) -> int:
        if self.partial:
            return super().write(fd, data[: len(data) // 2], offset)
        self._check("write")
        return super().write(fd, data, offset)

    def sync(self, fd: int) -> None:
        if self.gate is not None:
            self.gate.wait(10)
        if self.sync_results and not self.sync_results.pop(0):
            raise OSError(errno.EIO, "Input/output error")
        self._check("sync")
        super().sync(fd)
        self.synced.append(fd)

    def _check(self, call: str) -> None:
        if call in self.broken:
            raise OSError(errno.ENOSPC, "No space left on device")


def fast(segment_bytes: int = 4096) -> Ledger:
    return Ledger(segment_bytes=segment_bytes, fsync_interval_seconds=0.001)


@pytest.fixture
def disk() -> FailingDisk:
    return FailingDisk()


@pytest.fixture
async def journal(tmp_path: Path, disk: FailingDisk) -> AsyncIterator[Journal]:
    made = Journal(tmp_path / "journal", fast(), disk=disk, recovery_seconds=0.005, stuck_seconds=5.0)
    made.open()
    made.start()
    yield made
    disk.broken.clear()
    disk.partial = False
    await made.close()


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.002)


def everything(journal: Journal) -> list[tuple[int, bytes]]:
    """All records in the order in which they lie in the files."""
    paths = sorted(journal.folder.glob(f"{journal.name}-*.journal"))
    return [(record.kind, record.payload) for path in paths for record in read_records(path)]


async def test_a_record_can_be_read_as_soon_as_append_returns(journal: Journal) -> None:
    journal.append_dispatch(KEY, b"dispatch")
    assert everything(journal) == [(DISPATCH, b"dispatch")]
    position = journal.append(SETTLE, b"settle")
    assert everything(journal) == [(DISPATCH, b"dispatch"), (SETTLE, b"settle")]
    assert position == journal.position
    assert journal.open_dispatches == {KEY: 1}
    journal.close_dispatch(KEY)
    assert journal.open_dispatches == {}


async def test_records_are_synced_in_the_background_and_full_segments_give_their_space_back(
    journal: Journal, disk: FailingDisk
) -> None:
    written = [bytes([n % 250 + 1]) * 100 for n in range(300)]
    for n, payload in enumerate(written):
        journal.append(SETTLE, payload)
        if n % 10 == 0:
            await asyncio.sleep(0.001)
    await until(lambda: journal.synced_records == 300)
    assert [payload for _, payload in everything(journal)] == written
    paths = sorted(journal.folder.glob("*.journal"))
    assert len(paths) >= 8
    assert paths[0].stat().st_size < 4096
    assert len(set(disk.synced)) >= 1


async def test_more_than_a_segment_in_one_turn_of_the_loop_is_taken_too(journal: Journal) -> None:
    written = [bytes([n % 250 + 1]) * 500 for n in range(100)]
    positions = [journal.append(SETTLE, payload) for payload in written]
    assert [payload for _, payload in everything(journal)] == written
    assert positions == sorted(p for p in positions if p is not None)
    journal.append(SETTLE, b"x" * 10_000)
    assert everything(journal)[-1] == (SETTLE, b"x" * 10_000)


async def test_a_file_whose_sync_failed_is_never_synced_again_and_its_records_are_written_once_more(
    journal: Journal, disk: FailingDisk
) -> None:
    disk.sync_results = [False]
    journal.append_dispatch(KEY, b"one")
    journal.append(SETTLE, b"two")
    await until(lambda: journal.sync_failures == 1 and journal.synced_records == 2)
    assert not journal.failing
    assert everything(journal) == [(DISPATCH, b"one"), (SETTLE, b"two")] * 2
    await journal.sync()
    assert journal.position.segment == 2


async def test_when_the_next_file_fails_too_requests_are_refused_until_the_disk_is_back(
    journal: Journal, disk: FailingDisk
) -> None:
    disk.broken = {"sync"}
    journal.append_dispatch(KEY, b"one")
    await until(lambda: journal.failing)
    with pytest.raises(MeteringUnavailable) as refused:
        journal.append_dispatch((b"l" * 16, 1), b"refused")
    assert (refused.value.status, refused.value.code) == (503, "metering_unavailable")
    assert journal.append(SETTLE, b"two") is None
    journal.append_progress(b"a guess is not kept")
    assert journal.kept_in_memory >= 1
    await asyncio.sleep(0.03)
    assert journal.failing
    disk.broken.clear()
    await until(lambda: not journal.failing)
    assert journal.kept_in_memory == 0
    journal.append_dispatch((b"m" * 16, 1), b"three")
    journal.append_progress(b"three so far")
    payloads = [payload for _, payload in everything(journal)]
    assert payloads[-4:] == [b"one", b"two", b"three", b"three so far"]
    assert b"refused" not in payloads


@pytest.mark.parametrize("partial", [False, True])
async def test_a_full_disk_loses_nothing_and_recovers(journal: Journal, disk: FailingDisk, partial: bool) -> None:
    journal.append_dispatch(KEY, b"before")
    disk.broken = {"write", "create"}
    disk.partial = partial
    assert journal.append(SETTLE, b"during") is None
    assert journal.failing
    assert journal.append(SETTLE, b"later") is None
    disk.partial = False
    disk.broken.clear()
    await until(lambda: not journal.failing)
    journal.append(SETTLE, b"after")
    assert [payload for _, payload in everything(journal)] == [b"before", b"during", b"later", b"after"]


async def test_one_failed_write_goes_to_another_file_and_nobody_notices(journal: Journal, disk: FailingDisk) -> None:
    journal.append(SETTLE, b"one")
    real, calls = disk.write, []

    def fail_once(fd: int, data: bytes, offset: int) -> int:
        calls.append(fd)
        if len(calls) == 1:
            real(fd, data[:4], offset)
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, data, offset)

    disk.write = fail_once  # type: ignore[method-assign]
    assert journal.append(SETTLE, b"two") == Position(2, 13)
    assert not journal.failing
    assert [payload for _, payload in everything(journal)] == [b"one", b"two"]


async def test_records_that_come_while_the_disk_recovers_are_kept_too(journal: Journal, disk: FailingDisk) -> None:
    disk.broken = {"write", "create"}
    journal.append(SETTLE, b"one")
    disk.gate = threading.Event()
    disk.broken.clear()
    await asyncio.sleep(0.02)
    assert journal.failing
    journal.append(SETTLE, b"two")
    disk.gate.set()
    disk.gate = None
    await until(lambda: not journal.failing)
    assert [payload for _, payload in everything(journal)][-2:] == [b"one", b"two"]
    assert journal.kept_in_memory == 0


async def test_records_that_come_while_the_disk_recovers_stay_in_memory_if_it_fails_again(
    journal: Journal, disk: FailingDisk
) -> None:
    disk.broken = {"write", "create"}
    journal.append(SETTLE, b"one")
    disk.gate = threading.Event()
    disk.broken.clear()
    await asyncio.sleep(0.02)
    journal.append(SETTLE, b"two")
    journal.append(SETTLE, b"three")
    disk.broken = {"write", "create"}
    disk.gate.set()
    disk.gate = None
    await until(lambda: journal.kept_in_memory == 2)
    assert journal.failing
    disk.broken.clear()
    await until(lambda: not journal.failing)
    assert [payload for _, payload in everything(journal)][-3:] == [b"one", b"two", b"three"]


async def test_when_one_file_after_the_other_fails_it_is_the_disk(tmp_path: Path, disk: FailingDisk) -> None:
    journal = Journal(tmp_path, fast(256), disk=disk)
    journal.open()
    for letter in b"abc":
        journal.append(SETTLE, bytes([letter]) * 200)
    disk.sync_results = [False, False, False]
    await journal.sync()
    assert journal.failing
    assert journal.sync_failures == 3
    assert journal.kept_in_memory == 2
    await journal.close()
    assert {payload[:1] for _, payload in everything(journal)} == {b"a", b"b", b"c"}


async def test_a_full_segment_whose_late_sync_fails_is_written_once_more_into_the_current_one(
    tmp_path: Path, disk: FailingDisk
) -> None:
    journal = Journal(tmp_path, fast(256), disk=disk, recovery_seconds=0.005)
    journal.open()
    journal.append(SETTLE, b"a" * 200)
    journal.append(SETTLE, b"b" * 100)
    disk.sync_results = [False, True]
    await journal.sync()
    assert [payload[:1] for _, payload in everything(journal)] == [b"a", b"b", b"a"]
    assert not journal.failing
    await journal.sync()
    await journal.close()


async def test_records_of_a_failed_sync_are_kept_when_there_is_no_other_file(tmp_path: Path, disk: FailingDisk) -> None:
    journal = Journal(tmp_path, fast(), disk=disk, recovery_seconds=0.005)
    journal.open()
    journal.append(SETTLE, b"one")
    disk.sync_results = [False]
    disk.broken = {"create"}
    await journal.sync()
    assert journal.failing
    assert journal.kept_in_memory == 1
    assert journal.position == Position(3, 0)
    disk.broken.clear()
    await journal.close()
    assert everything(journal) == [(SETTLE, b"one")] * 2


async def test_what_was_never_written_is_said_aloud_at_the_end(
    tmp_path: Path, disk: FailingDisk, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path, fast(), disk=disk)
    journal.open()
    disk.broken = {"create", "write", "sync"}
    journal.append(SETTLE, b"one")
    await journal.close()
    assert "1 usage records were never written" in caplog.text


async def test_a_disk_that_does_not_answer_counts_as_failing_until_it_does(tmp_path: Path, disk: FailingDisk) -> None:
    journal = Journal(tmp_path, fast(), disk=disk, recovery_seconds=0.005, stuck_seconds=0.05)
    journal.open()
    journal.start()
    disk.gate = threading.Event()
    journal.append(SETTLE, b"one")
    await until(lambda: journal.failing)
    gate, disk.gate = disk.gate, None
    await journal.close()
    assert (tmp_path / f"{journal.name}{LOCK}").exists()
    gate.set()
    await until(lambda: not journal.failing)
    await journal.close()


async def test_whoever_asks_hears_whether_the_disk_has_what_was_written(tmp_path: Path, disk: FailingDisk) -> None:
    journal = Journal(tmp_path, fast(), disk=disk, stuck_seconds=0.1)
    journal.open()
    journal.append(SETTLE, b"one")
    assert await journal.keep()
    assert journal.synced_records == 1
    journal.append(SETTLE, b"two")
    disk.sync_results = [False]
    assert not await journal.keep(), "it was written anew elsewhere, and is not synced there"
    assert await journal.keep()
    journal.append(SETTLE, b"three")
    gate = disk.gate = threading.Event()
    assert not await journal.keep(), "the disk does not answer"
    disk.gate = None
    gate.set()
    await journal.close()


async def test_the_sync_goes_on_after_a_mistake_of_ours(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def stumble() -> None:
        monkeypatch.undo()
        raise RuntimeError("a mistake")

    monkeypatch.setattr(journal, "_prepare", stumble)
    journal.append(SETTLE, b"one")
    await until(lambda: "stumbled" in caplog.text)
    journal.append(SETTLE, b"two")
    await until(lambda: journal.synced_records == 2)
    assert journal.sync_failures == 0


async def test_a_spare_that_is_older_than_the_current_segment_is_not_used(tmp_path: Path, disk: FailingDisk) -> None:
    journal = Journal(tmp_path, fast(256), disk=disk)
    journal.open()
    journal.append(SETTLE, b"a" * 150)
    prepared = asyncio.ensure_future(journal._prepare())
    await asyncio.sleep(0)
    journal.append(SETTLE, b"b" * 150)
    await prepared
    positions = [journal.append(SETTLE, bytes([c]) * 150) for c in b"cdef"]
    assert positions == sorted(p for p in positions if p is not None)
    assert [payload[:1] for _, payload in everything(journal)] == [b"a", b"b", b"c", b"d", b"e", b"f"]
    await journal._prepare()
    await journal.close()
    assert len(list(tmp_path.glob("*.journal"))) == 6


async def test_a_spare_that_cannot_be_made_is_made_later(journal: Journal, disk: FailingDisk) -> None:
    disk.broken = {"create"}
    journal.append(SETTLE, b"a" * 3000)
    await journal.sync()
    await journal._prepare()
    disk.broken.clear()
    assert not journal.failing
    assert journal.append(SETTLE, b"b" * 3000) is not None


async def test_a_living_worker_holds_its_lock_and_a_closed_one_does_not(journal: Journal) -> None:
    with (journal.folder / f"{journal.name}{LOCK}").open() as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


async def test_a_journal_with_everything_shipped_needs_no_heir(tmp_path: Path) -> None:
    journal = Journal(tmp_path, fast())
    journal.open()
    position = journal.append(SETTLE, b"one")
    assert position is not None
    journal.note_shipped(position)
    journal.released = True
    await journal.close()
    assert [path.suffix for path in sorted(tmp_path.glob(f"{journal.name}*")) if path.suffix != ".journal"] == [SHIPPED]


def test_a_folder_that_cannot_be_written_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MeteringUnavailable):
        Journal(tmp_path / "file" / "journal").open()


def test_the_boot_has_a_name_where_the_kernel_gives_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(boot_id()) == 8
    monkeypatch.setattr(Path, "read_text", lambda _: (_ for _ in ()).throw(OSError()))
    assert boot_id() == "00000000"
