"""The short form of `python -m tests.chaos revocation`: what is revoked at one worker is refused by all of them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.chaos import revocation


def test_a_key_revoked_at_one_worker_is_refused_by_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # How fast is measured by the command: here others may have the processor.
    right = asyncio.run(revocation.run(tmp_path, workers=2, rounds=2, calm_seconds=revocation.WORST_SECONDS))
    assert right, capsys.readouterr().out
