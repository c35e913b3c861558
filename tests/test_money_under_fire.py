"""The short forms of what `python -m tests.chaos` plays at length: the bill is right, and so is every sum."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.chaos import budgets, disk, money, outage
from tests.conftest import lack


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


@pytest.mark.parametrize("how", ["crash", "freeze"])
def test_postgres_is_away_for_a_while_and_whoever_has_a_lease_is_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: outage.How
) -> None:
    assert asyncio.run(outage.run(tmp_path, seconds=3, workers=1, how=how)), capsys.readouterr().out


@pytest.mark.parametrize(("how", "seconds"), [("fsync", 2), ("full", 5)])
def test_the_journals_disk_fails_and_nothing_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: disk.How, seconds: float
) -> None:
    if what := disk.missing(how):
        lack(what)
    assert asyncio.run(disk.run(tmp_path, how=how, seconds=seconds)), capsys.readouterr().out
