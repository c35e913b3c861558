"""The short forms of what `python -m tests.chaos` plays at length: the bill is right, and so is every sum."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.chaos import budgets, money


def test_workers_and_postgres_die_in_the_middle_of_traffic_and_the_bill_is_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = asyncio.run(money.run(tmp_path, workers=2, kills=3, crashes=1, parallel=16))
    assert right, capsys.readouterr().out


def test_parallel_requests_at_small_budgets_overspend_nothing_and_are_hardly_refused_wrongly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right = asyncio.run(budgets.run(tmp_path, workers=(2,), budgets=3, requests=200, parallel=60, kills=1))
    assert right, capsys.readouterr().out
