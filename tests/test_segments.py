"""A segment that was cut or damaged anywhere gives a beginning of what was written, and never anything else."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.metering.segments import (
    DISPATCH,
    SETTLE,
    Disk,
    Position,
    Record,
    frame,
    is_blank,
    position_note,
    read_position_note,
    read_records,
)


def is_prefix(some: list[Record], whole: list[bytes]) -> bool:
    return [record.payload for record in some] == whole[: len(some)]


_payloads = st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=8)


@given(_payloads, st.data())
def test_a_segment_cut_at_any_byte_gives_a_beginning_of_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, payloads: list[bytes], data: st.DataObject
) -> None:
    written = b"".join(frame(SETTLE, payload) for payload in payloads)
    path = tmp_path_factory.mktemp("cut") / "segment"
    cut = data.draw(st.integers(0, len(written)))
    path.write_bytes(written[:cut] + b"\0" * data.draw(st.sampled_from([0, 1, 5, 200])))
    records = list(read_records(path))
    assert is_prefix(records, payloads)
    complete = sum(1 for n in range(len(payloads)) if sum(10 + len(p) for p in payloads[: n + 1]) <= cut)
    assert len(records) == complete


@given(_payloads, st.data())
def test_a_segment_damaged_at_any_byte_gives_a_beginning_of_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, payloads: list[bytes], data: st.DataObject
) -> None:
    written = bytearray(b"".join(frame(SETTLE, payload) for payload in payloads))
    at = data.draw(st.integers(0, len(written) - 1))
    written[at] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("damage") / "segment"
    path.write_bytes(bytes(written) + b"\0" * 100)
    records = list(read_records(path))
    assert is_prefix(records, payloads)
    assert len(records) < len(payloads)


def test_records_longer_than_a_read_come_back_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.metering.segments.READ_BYTES", 64)
    payloads = [bytes([n]) * (n * 37 % 300 + 1) for n in range(1, 60)]
    path = tmp_path / "segment"
    path.write_bytes(b"".join(frame(DISPATCH, payload) for payload in payloads) + b"\0" * 500)
    records = list(read_records(path))
    assert [record.payload for record in records] == payloads
    middle = records[20].end
    assert [record.payload for record in read_records(path, middle, records[30].end)] == payloads[21:31]
    assert list(read_records(path, middle, middle + 3)) == []
    assert is_blank(path, records[-1].end)
    assert not is_blank(path, middle)


def test_a_file_that_cannot_be_read_ends_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unreadable:
        def __enter__(self) -> Unreadable:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def seek(self, _: int) -> None:
            pass

        def read(self, _: int) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "open", lambda *_, **__: Unreadable())
    assert list(read_records(tmp_path / "segment")) == []


@given(st.integers(0, 10**9), st.integers(0, 10**11), st.integers(0, 40))
def test_a_noted_position_comes_back_or_not_at_all(segment: int, offset: int, cut: int) -> None:
    position = Position(segment, offset)
    note = position_note(position)
    assert read_position_note(note) == position
    assert read_position_note(note[:cut]) in (position, Position(0, 0))
    assert read_position_note(b"9" + note[1:]) in (position, Position(0, 0))
    assert read_position_note(b"") == Position(0, 0)


def test_a_disk_without_room_for_a_segment_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        Disk().create(tmp_path / "segment", 2**62)
    assert list(tmp_path.iterdir()) == []
