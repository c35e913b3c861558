"""Whatever happens, in whatever order, the bill holds: three thousand histories on every change."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

from tests.invariants.histories import History

HISTORIES = int(os.environ.get("STRATA_HISTORIES", "3000"))

TestHistories = History.TestCase
TestHistories.settings = settings(
    max_examples=HISTORIES, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
