"""One bill, read in five ways, after a run in which much went wrong: all of them say the same."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from proxy.storage.embedded import find_running
from tests.gateway import OracleProcess
from tests.oracle import marker
from tests.test_accounts import MASTER
from tests.test_metrics_live import Site

SCRIPTS: tuple[dict[str, Any], ...] = (
    {},
    {"pieces": 30, "gap_ms": 5},
    {"thinking": 3},
    {"cache_read": 7, "cache_write_5m": 5},
    {"usage": "none"},
    {"status": 500, "times": 1},
    {"status": 401},
    {"delay_ms": 200},
)
SUMS = """
    SELECT (SELECT sum(cost_nano_usd)::bigint FROM strata.usage) AS ledger,
        (SELECT sum(cost_nano_usd)::bigint FROM strata.usage_hourly) AS by_hour,
        (SELECT sum(cost_nano_usd)::bigint FROM strata.usage_daily) AS by_day,
        (SELECT sum(cost_nano_usd)::bigint FROM strata.usage WHERE worker_id = $1) AS of_this_life,
        (SELECT count(*) FROM strata.usage WHERE worker_id = $1) AS rows_of_this_life,
        (SELECT count(*) FROM strata.usage WHERE attempt > 0) AS attempts
"""
LAST_WORKER = "SELECT worker_id FROM strata.usage ORDER BY started_at DESC LIMIT 1"
SETTLE_SECONDS = 60.0


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    oracle = OracleProcess(tmp_path / "oracle")
    made = Site(tmp_path, oracle)
    try:
        made.gateway.start()
        yield made
    finally:
        made.gateway.stop()
        oracle.stop()


def test_ledger_hours_days_reports_and_counters_say_the_same(site: Site) -> None:
    _chaos(site, 40)
    site.gateway.kill9()
    site.gateway.start()
    _chaos(site, 120)
    sums, rows = _settled(site)
    reported = json.loads(site.gateway.get("/api/usage", MASTER)[1])["totals"]
    assert rows["ledger"] == rows["by_hour"] == rows["by_day"] == reported["cost_nano_usd"]
    assert Decimal(reported["cost_usd"]) * 10**9 == rows["ledger"]
    assert reported["attempts"] == rows["attempts"] > 160
    # counters begin with the process; the rows that it finished for the one before it bear that one's name
    assert round(sums["strata_cost_usd_total"] * 1e9) == rows["of_this_life"] > 0
    assert round(sums["strata_key_cost_usd_total"] * 1e9) == rows["of_this_life"]


def _chaos(site: Site, count: int) -> None:
    def one(number: int) -> None:
        script = SCRIPTS[number % len(SCRIPTS)]
        text = f"{marker(**script)} nonce=n{number}-{time.monotonic_ns()}"
        model = ("gpt", "claude", "first")[number % 3]
        with site.answer(model, text, stream=number % 2 == 0) as answer, contextlib.suppress(OSError):
            answer.read(20 if number % 5 == 0 else None)  # every fifth leaves in the middle

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(one, range(count)))


def _settled(site: Site) -> tuple[dict[str, float], asyncpg.Record]:
    """The metrics and the sums of the ledger, as soon as everything that was sent is in it."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while time.monotonic() < deadline:
        sums, rows = site.scrape(), asyncio.run(_rows(site))
        if sums["strata_ledger_dispatched_total"] == rows["rows_of_this_life"]:
            return sums, rows
        time.sleep(0.2)
    raise AssertionError(site.gateway.tail())


async def _rows(site: Site) -> asyncpg.Record:
    dsn = find_running(site.gateway.home)
    assert dsn is not None
    connection = await asyncpg.connect(dsn, timeout=10)
    try:
        worker = await connection.fetchval(LAST_WORKER, timeout=10)
        found = await connection.fetchrow(SUMS, worker, timeout=10)
    finally:
        await connection.close()
    assert found is not None
    return found
