"""The short form of `python -m tests.chaos limits`: what passes is what the limit allows, whatever becomes of Redis."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.chaos import limits

pytestmark = pytest.mark.needs("redis-server")


@pytest.mark.parametrize("mode", ["shares", "strict"])
def test_gateways_share_a_limit_and_a_redis_that_fails_costs_nobody_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    # How much later an answer comes is measured by the command: here others may have the processor.
    promise = limits.Promise(off=0.1, added_seconds=2.0)
    right = asyncio.run(limits.run(tmp_path, workers=2, pace=100, rpm=3000, seconds=5, modes=(mode,), promise=promise))
    assert right, capsys.readouterr().out
