"""Whatever happens, in whatever order, the bill holds: three thousand histories on every change."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

from tests.invariants.histories import History, lend_and_lose_power

HISTORIES = int(os.environ.get("STRATA_HISTORIES", "3000"))

TestHistories = History.TestCase
TestHistories.settings = settings(
    max_examples=HISTORIES, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_a_loss_of_power_after_a_worker_has_lent_what_an_answer_left_overspends_nothing() -> None:
    assert not lend_and_lose_power().world.forgotten
