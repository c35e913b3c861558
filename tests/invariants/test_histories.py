"""Whatever happens, in whatever order, the bill holds: three thousand histories on every change."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.invariants.histories import History, lend_and_lose_power

HISTORIES = int(os.environ.get("STRATA_HISTORIES", "3000"))
PARTS = 10
"""So that no single test takes minutes."""
PART = settings(
    max_examples=max(HISTORIES // PARTS, 1),
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("part", range(PARTS))
def test_after_every_step_of_every_history_the_bill_holds(part: int) -> None:
    found = run_state_machine_as_test(History, settings=PART)  # type: ignore[func-returns-value]  # raises what it finds
    assert found is None


def test_a_loss_of_power_after_a_worker_has_lent_what_an_answer_left_overspends_nothing() -> None:
    assert not lend_and_lose_power().world.forgotten
