"""The journal on a disk that is really full."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.config import Ledger
from proxy.metering.adoption import segment_paths
from proxy.metering.journal import Journal, MeteringUnavailable
from proxy.metering.segments import SETTLE, read_records


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("no tmpfs may be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


async def test_a_disk_that_is_really_full_refuses_requests_and_keeps_settlements(small_disk: Path) -> None:
    journal = Journal(
        small_disk / "journal", Ledger(segment_bytes=64 * 1024, fsync_interval_seconds=0.001), recovery_seconds=0.005
    )
    journal.open()
    journal.start()
    ballast = small_disk / "ballast"
    written: list[bytes] = []
    with pytest.raises(MeteringUnavailable):
        for n in range(10_000):
            payload = n.to_bytes(4, "big") * 250
            journal.append_dispatch((payload[:4], n), payload)
            written.append(payload)
            if n == 100:
                ballast.write_bytes(b"x" * 600_000)
            await asyncio.sleep(0)
    assert len(written) > 100
    assert journal.append(SETTLE, b"kept") is None
    ballast.unlink()
    async with asyncio.timeout(20):
        while journal.failing:
            await asyncio.sleep(0.002)
    await journal.close()
    paths = segment_paths(journal.folder, journal.name)
    payloads = [record.payload for path in paths for record in read_records(path)]
    assert payloads == [*written, b"kept"]
