"""
The journal of money: what is in it survives this process, an absent database, and with one sync interval's exception
the loss of power.

`append` is one write into the page cache, on the event loop, so a killed worker loses nothing. A thread makes the disk
keep it, in groups. A file whose sync failed is never synced again (the kernel has forgotten what it could not write):
its doubtful records are written once more, to another file. While no file takes them, new requests are refused and what
must not be lost is kept in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from proxy.config import Ledger
from proxy.errors import GatewayFault
from proxy.metering.segments import (
    DISPATCH,
    LOCK,
    PROGRESS,
    SEGMENT,
    SHIPPED,
    Disk,
    Position,
    Segment,
    frame,
    position_note,
    sync_folder,
)

log = logging.getLogger("strata.metering")

RECOVERY_SECONDS = 0.5
MAX_STRETCH = 10
CALM_RECORDS_PER_SECOND = 100
"""Up to here every record is synced within one interval; beyond, up to ten, so that syncing costs 1 % of a core."""
STUCK_SECONDS = 30.0
"""A disk that has not answered for this long counts as failing, until it does."""

T = TypeVar("T")
P = ParamSpec("P")


class MeteringUnavailable(GatewayFault):
    """503. What cannot be written down is not started."""

    def __init__(self) -> None:
        super().__init__(
            "The gateway cannot write its usage journal, so it starts no new request. Try again in a few seconds; "
            "the operator should look at the disk of the data folder.",
            code="metering_unavailable",
            headers={"retry-after": "2"},
        )


class Journal:
    """One worker's journal in `folder`. Only the event loop's thread may call it."""

    def __init__(
        self,
        folder: Path,
        settings: Ledger | None = None,
        *,
        disk: Disk | None = None,
        clock: Callable[[], float] = time.monotonic,
        recovery_seconds: float = RECOVERY_SECONDS,
        stuck_seconds: float = STUCK_SECONDS,
    ) -> None:
        self.folder = folder
        self.settings = settings or Ledger()
        self.worker_id = uuid.uuid4()
        self.name = f"{boot_id()}-{os.getpid()}-{self.worker_id.hex}"
        self.failing = False
        self.synced_records = 0
        self.sync_failures = 0
        self.open_dispatches: dict[tuple[bytes, int], int] = {}
        """For each attempt that runs, the segment with its dispatch: that segment must stay."""
        self.shipped_to = Position(0, 0)
        """All settled rows before it are in Postgres; a hint for whoever adopts this journal."""
        self.released = False
        """This worker's leases are back: then, with every row shipped, nobody need adopt the journal."""
        self._disk = disk or Disk()
        self._clock = clock
        self._recovery_seconds = recovery_seconds
        self._stuck_seconds = stuck_seconds
        self._lock = -1
        self._number = 0
        self._current: Segment | None = None
        self._spare: Segment | None = None
        self._retired: list[Segment] = []
        """Segments that take no more, and whose last records are not synced yet; oldest first."""
        self._kept: list[bytes] = []
        """Frames that no file has taken."""
        self._failed_in_a_row = 0
        self._dirty = asyncio.Event()
        self._turn = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="strata-journal")
        self._task: asyncio.Task[None] | None = None
        self._keeping: set[asyncio.Task[None]] = set()

    @property
    def position(self) -> Position:
        """Where the next record will be: everything before it has been written."""
        current = self._current
        return Position(self._number + 1, 0) if current is None else Position(current.number, current.offset)

    @property
    def kept_in_memory(self) -> int:
        """Records that no disk has taken yet."""
        return len(self._kept)

    def segment_path(self, number: int) -> Path:
        return self.folder / f"{self.name}-{number:06d}{SEGMENT}"

    def open(self) -> None:
        """Blocking, for the start: takes the lock that says we live, and the first segment. MeteringUnavailable."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Locked before it has the name that others look for: nobody can take us for dead in between.
            unborn = self.folder / f".{self.name}"
            self._lock = os.open(unborn, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            unborn.rename(self.folder / f"{self.name}{LOCK}")
            sync_folder(self.folder)
            self._current = self._create(self._next_number())
        except OSError as error:
            log.error("the usage journal in %s cannot be opened: %s", self.folder, error)
            raise MeteringUnavailable from error

    def start(self) -> None:
        """Begins to sync; needs the running loop."""
        self._task = asyncio.create_task(self._run(), name="journal sync")

    def append_dispatch(self, key: tuple[bytes, int], payload: bytes) -> None:
        """Written when this returns, or MeteringUnavailable and nothing was."""
        if self.failing or not self._write(frame(DISPATCH, payload)) or self._current is None:
            raise MeteringUnavailable
        self.open_dispatches[key] = self._current.number

    def append_progress(self, payload: bytes) -> None:
        """A better guess at what a dispatch will cost; while the disk is away the one before it must do."""
        if not self.failing:
            self._write(frame(PROGRESS, payload))

    def append(self, kind: int, payload: bytes) -> Position | None:
        """Never refuses. The position behind it; None: no disk takes it now, so it is kept in memory until one does."""
        data = frame(kind, payload)
        if self.failing or not self._write(data):
            self._kept.append(data)
            return None
        return self.position

    def close_dispatch(self, key: tuple[bytes, int]) -> None:
        """The attempt is settled; its dispatch record has done its work."""
        self.open_dispatches.pop(key, None)

    def note_shipped(self, position: Position) -> None:
        """Keeps the hint where an adopter finds it, so that it need not ship a day's rows again."""
        self.shipped_to = position
        with contextlib.suppress(OSError):
            os.pwrite(self._lock, position_note(position), 0)

    async def sync(self) -> None:
        """Makes the disk keep what has been appended so far."""
        async with self._turn:
            await self._sync()

    async def keep(self) -> bool:
        """Whether the disk has what was appended so far; asked to sync, it has `stuck_seconds` to answer."""
        failures = self.sync_failures
        # Never cancelled: a sync that is cut off would forget which records it was to keep
        syncing = asyncio.create_task(self.sync(), name="journal keep")
        self._keeping.add(syncing)
        syncing.add_done_callback(self._keeping.discard)
        done, _ = await asyncio.wait({syncing}, timeout=self._stuck_seconds)
        whole = bool(done) and syncing.exception() is None and not self.failing and not self._kept
        return whole and self.sync_failures == failures

    async def close(self) -> None:
        """Syncs, and lets the lock go. What is unsettled or unshipped then is for the next worker to adopt."""
        try:
            async with asyncio.timeout(self._stuck_seconds):
                await self._turn.acquire()
            self._turn.release()
        except TimeoutError:
            log.error("the usage journal's disk does not answer; it is left as it is")
            return
        # The task holds nothing now: it is asleep, and will not be woken in the middle of a sync.
        await self._end_task()
        if self._kept:
            await self._recover()
        await self._sync()
        if self._kept:
            log.error("%d usage records were never written: adoption will estimate their requests", len(self._kept))
        if self._spare is not None:
            self._spare.path.unlink(missing_ok=True)
        for segment in filter(None, (*self._retired, self._current, self._spare)):
            with contextlib.suppress(OSError):
                segment.close(trim=not segment.unsynced)
        done = self.shipped_to >= self.position and not self.open_dispatches and not self._kept
        self._retired, self._current, self._spare = [], None, None
        self._thread.shutdown(wait=False)
        if done and self.released:
            lock = self.folder / f"{self.name}{LOCK}"
            lock.rename(lock.with_suffix(SHIPPED))
        os.close(self._lock)

    async def _end_task(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def _next_number(self) -> int:
        self._number += 1
        return self._number

    def _create(self, number: int) -> Segment:
        return Segment(number, self.segment_path(number), self.settings.segment_bytes, self._disk)

    def _write(self, data: bytes) -> bool:
        """Tries the current segment, then the next one."""
        current = self._current
        if current is not None and current.offset + len(data) <= current.size:
            try:
                current.append(data)
            except OSError as error:
                log.error("the usage journal cannot write to %s: %s", current.path.name, error)
            else:
                if not self._dirty.is_set():
                    self._dirty.set()
                return True
        return self._turn_page([data])

    def _turn_page(self, frames: list[bytes]) -> bool:
        """Goes on in the spare segment, or in one made here and now, beginning with these frames; else fails."""
        try:
            fresh, self._spare = self._spare or self._create(self._next_number()), None
            if self._current is not None:
                self._retired.append(self._current)
            self._current = fresh
            for data in frames:
                fresh.append(data)
        except OSError as error:
            self._fail(error)
            return False
        self._dirty.set()
        return True

    def _fail(self, error: OSError) -> None:
        if not self.failing:
            log.error("the usage journal cannot be written (%s): new requests are refused until it can", error)
        self.failing = True
        self._dirty.set()

    async def _run(self) -> None:
        stretch = 1.0
        while True:
            try:
                await self._dirty.wait()
                before, started = self.synced_records, self._clock()
                calm_seconds = self.settings.fsync_interval_seconds * stretch
                await asyncio.sleep(self._recovery_seconds if self.failing else calm_seconds)
                async with self._turn:
                    self._dirty.clear()
                    if self.failing:
                        await self._recover()
                    await self._sync()
                    await self._prepare()
                rate = (self.synced_records - before) / max(self._clock() - started, 1e-6)
                stretch = min(max(rate / CALM_RECORDS_PER_SECOND, 1.0), MAX_STRETCH)
            except Exception:
                log.exception("the usage journal's sync stumbled, and goes on")
                self._dirty.set()
                await asyncio.sleep(self._recovery_seconds)

    async def _sync(self) -> None:
        """Every segment with unsynced records, oldest first; those that take no more are closed then."""
        for segment in [*self._retired, *filter(None, (self._current,))]:
            frames, segment.unsynced = segment.unsynced, []
            try:
                if frames:
                    await self._in_thread(self._disk.sync, segment.fd)
            except OSError as error:
                self._move(segment, frames + segment.unsynced, error)
                continue
            if frames:
                self.synced_records += len(frames)
                self._failed_in_a_row = 0
            if segment in self._retired and not segment.unsynced:
                self._retired.remove(segment)
                segment.close(trim=True)

    def _move(self, failed: Segment, frames: list[bytes], error: OSError) -> None:
        """Writes anew what the failed file may have lost. If the next file fails too, it is the disk."""
        log.error("syncing %s failed (%s): its last %d records go to another", failed.path.name, error, len(frames))
        self.sync_failures += 1
        self._failed_in_a_row += 1
        if failed is self._current:
            self._current = None
        else:
            self._retired.remove(failed)
        failed.close(trim=False)
        if self._failed_in_a_row > 1:
            self._fail(error)
        if self.failing or not all(self._write(data) for data in frames):
            self._kept[:0] = frames

    async def _recover(self) -> None:
        """Tries the disk anew: a fresh segment with all that was kept must be created, written and synced."""
        count = len(self._kept)
        try:
            fresh = await self._in_thread(self._create_with, self._next_number(), self._kept[:count])
        except OSError as error:
            log.warning("the usage journal still cannot be written: %s", error)
            self._dirty.set()
            return
        if self._current is not None:
            self._retired.append(self._current)
        self._current = fresh
        later, self._kept = self._kept[count:], []
        self.failing = False
        self._failed_in_a_row = 0
        self._drop_spare()
        for data in later:
            if self.failing or not self._write(data):
                self._kept.append(data)
        log.warning("the usage journal can be written again; %d records were kept meanwhile", count + len(later))

    def _create_with(self, number: int, frames: list[bytes]) -> Segment:
        segment = self._create(number)
        try:
            for data in frames:
                segment.append(data)
            self._disk.sync(segment.fd)
        except OSError:
            segment.close(trim=False)
            segment.path.unlink()
            raise
        segment.unsynced = []
        return segment

    async def _prepare(self) -> None:
        """Has the next segment ready before this one is full, so that the event loop never waits for a new file."""
        current = self._current
        if self._spare is None and current is not None and current.offset * 2 > current.size:
            with contextlib.suppress(OSError):
                self._spare = await self._in_thread(self._create, self._next_number())
            if self._current is not current:
                self._drop_spare()

    def _drop_spare(self) -> None:
        """A spare older than the current segment would put later records before earlier ones."""
        if self._spare is not None:
            self._spare.path.unlink(missing_ok=True)
            self._spare.close(trim=False)
            self._spare = None

    async def _in_thread(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        future = asyncio.get_running_loop().run_in_executor(self._thread, lambda: call(*args, **kwargs))
        done, _ = await asyncio.wait({future}, timeout=self._stuck_seconds)
        if not done:
            self._fail(OSError(errno.ETIMEDOUT, "the disk does not answer"))
        return await future


def boot_id() -> str:
    """Names this start of the machine, for whoever reads the folder after a crash of it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    except OSError:
        return "00000000"
