"""
The journal's files: frames in preallocated segments, and how they are read back.

A frame is `length, crc32, version, kind` and its payload. Reading stops at the first frame that is not whole and right,
so a segment that was cut or damaged anywhere gives a beginning of what was written and never anything else.
Preallocated space that nobody wrote is zero, and a length of zero is the end. (CRC-32, not CRC-32C, for zlib has it.)
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from struct import Struct
from typing import NamedTuple

LOCK = ".lock"
SEGMENT = ".journal"
SHIPPED = ".shipped"
VERSION = 1
DISPATCH, PROGRESS, SETTLE = b"DPS"
MAX_PAYLOAD_BYTES = 16_000_000
READ_BYTES = 1_000_000

_HEAD = Struct("<IIBB")
_CHECKED = Struct("<IBB")
HEAD_BYTES = _HEAD.size


class Position(NamedTuple):
    """A place in one worker's journal; later records have greater ones."""

    segment: int
    offset: int


def position_note(position: Position) -> bytes:
    """A position as a line of fixed length, with a sum, for the lock file."""
    line = b"%010d %012d " % position
    return line + b"%08x\n" % zlib.crc32(line)


def read_position_note(note: bytes) -> Position:
    """The position of a whole note; the very beginning, if there is none."""
    line, crc = note[:24], note[24:32]
    if len(crc) == 8 and crc == b"%08x" % zlib.crc32(line):
        return Position(int(line[:10]), int(line[11:23]))
    return Position(0, 0)


class Record(NamedTuple):
    """One frame as it was read. `end` is the offset just behind it."""

    kind: int
    payload: bytes
    end: int


def frame(kind: int, payload: bytes) -> bytes:
    """The bytes of a record. The sum covers the length too, so a damaged one cannot hide."""
    length = len(payload)
    crc = zlib.crc32(payload, zlib.crc32(_CHECKED.pack(length, VERSION, kind)))
    return _HEAD.pack(length, crc, VERSION, kind) + payload


class Disk:
    """The system calls of the journal. Tests put a failing disk here; nothing else does."""

    def create(self, path: Path, size: int) -> int:
        """A new file with its space taken, and its name in the folder durable."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, size)
            sync_folder(path.parent)
        except OSError:
            os.close(fd)
            path.unlink()
            raise
        return fd

    def write(self, fd: int, data: bytes, offset: int) -> int:
        return os.pwrite(fd, data, offset)

    def sync(self, fd: int) -> None:
        os.fdatasync(fd)


def sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Segment:
    """One open file of the journal, and the frames of it that are not yet known to be on the disk."""

    def __init__(self, number: int, path: Path, size: int, disk: Disk) -> None:
        self.number = number
        self.path = path
        self.size = size
        self.offset = 0
        self.unsynced: list[bytes] = []
        self._disk = disk
        self.fd = disk.create(path, size)

    def append(self, data: bytes) -> None:
        """Into the page cache, where it survives us. OSError: the segment is at its end, with a torn frame at most."""
        if self._disk.write(self.fd, data, self.offset) != len(data):
            raise OSError(f"{self.path.name}: the disk took only a part of a record")
        self.offset += len(data)
        self.unsynced.append(data)

    def close(self, *, trim: bool) -> None:
        """Gives the space back that was not used, if the file can still be trusted to be written to."""
        if trim:
            os.ftruncate(self.fd, self.offset)
        os.close(self.fd)


def read_records(path: Path, start: int = 0, end: int | None = None) -> Iterator[Record]:
    """
    The whole records from `start`, to `end` if it is given. Memory is bounded: the file is read in pieces. A file that
    cannot be read is one that ends where it could no longer be read.
    """
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        offset = start
        rest = b""
        while True:
            try:
                piece = file.read(READ_BYTES)
            except OSError:
                return
            data = rest + piece
            at = 0
            while True:
                record = _record_at(data, at, offset + at)
                if record is None or (end is not None and record.end > end):
                    break
                yield record
                at = record.end - offset
            if not piece or not _may_continue(data, at) or (end is not None and offset + at >= end):
                return
            rest = data[at:]
            offset += at


def _record_at(data: bytes, at: int, offset: int) -> Record | None:
    if at + HEAD_BYTES > len(data):
        return None
    length, crc, version, kind = _HEAD.unpack_from(data, at)
    stop = at + HEAD_BYTES + length
    if length == 0 or version != VERSION or stop > len(data):
        return None
    payload = data[at + HEAD_BYTES : stop]
    if zlib.crc32(payload, zlib.crc32(_CHECKED.pack(length, version, kind))) != crc:
        return None
    return Record(kind, payload, offset + HEAD_BYTES + length)


def _may_continue(data: bytes, at: int) -> bool:
    """Whether the frame at `at` is only cut by the end of what was read so far."""
    if at + HEAD_BYTES > len(data):
        return True
    length: int = _HEAD.unpack_from(data, at)[0]
    return 0 < length <= MAX_PAYLOAD_BYTES and at + HEAD_BYTES + length > len(data)


def is_blank(path: Path, start: int) -> bool:
    """Whether nothing was written from `start` on: then the journal ended there, and nothing is missing."""
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while piece := file.read(READ_BYTES):
            if piece.count(0) != len(piece):
                return False
    return True
