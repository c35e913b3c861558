"""The past is priced again in new rows, and every sum moves with them exactly once, however often it is done."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from proxy.cli import main
from proxy.config import Deployment, PriceList, PriceOverride, Prices, Provider
from proxy.exchange import Usage
from proxy.metering.meter import MAX_COST_NANO_USD
from proxy.metering.price_lines import recalculate
from proxy.metering.prices import PriceBook
from proxy.metering.rerating import Change, Rerating
from proxy.storage import prices as sql
from proxy.storage.budgets import read_period, take_lease
from proxy.storage.ledger import LedgerRow, ship
from proxy.storage.postgres import Database, Unavailable
from tests.test_storage_sql import NOON_MS, WORKER, a_budget, assert_sums_hold, ledger_row

SINCE = datetime.fromtimestamp(NOON_MS / 1000, UTC) - timedelta(days=1)
UNTIL = SINCE + timedelta(days=5)
GPU = Provider(name="gpu", api_base="http://127.0.0.1:9")
TOKENS = {"input_tokens": 10, "cache_read_tokens": 0, "cache_write_5m_tokens": 0, "cache_write_1h_tokens": 0}


def book(input_pico_usd: int | None = 1_000, **fields: Any) -> PriceBook:
    prices = PriceOverride(input_pico_usd=input_pico_usd, output_pico_usd=input_pico_usd, **fields)
    return PriceBook(Prices(models={"gpu/*": prices}))


def row(**fields: Any) -> LedgerRow:
    """Ten tokens in and ten out."""
    usual = {"deployment": "gpu/a", "provider": "gpu", "model": "fast", "price_source": "old", "cost_nano_usd": 50}
    return ledger_row(**{**usual, **TOKENS, **fields})


async def rerate(db: Database, prices: PriceBook, *models: str, dry_run: bool = False) -> list[Change]:
    return await Rerating(prices, {"gpu": GPU}).run(db, SINCE, UNTIL, models, dry_run=dry_run)


async def spent(db: Database) -> int:
    found = await db.fetchrow("SELECT sum(cost_nano_usd)::bigint AS n FROM strata.usage_hourly")
    return int(found["n"]) if found is not None else 0


async def corrections(db: Database) -> list[tuple[int, int]]:
    rows = await db.fetch(
        "SELECT attempt, cost_nano_usd FROM strata.usage WHERE source = 'adjustment' ORDER BY attempt DESC"
    )
    return [tuple(one) for one in rows]


async def test_a_row_is_priced_by_the_model_that_the_configuration_names_behind_it(db: Database) -> None:
    provider = Provider(name="azure-eu", api="azure", api_base="https://eu.azure.example")
    known = Deployment(provider=provider, model="ours", base_model="gpt-5-mini")
    await ship(db, [row(deployment="azure-eu/ours", provider="azure-eu", cost_nano_usd=0)])
    (without,) = await Rerating(PriceBook(), {"azure-eu": provider}).run(db, SINCE, UNTIL, dry_run=True)
    (named,) = await Rerating(PriceBook(), {"azure-eu": provider}, {known.name: known}).run(db, SINCE, UNTIL)
    assert (without.unpriced, named.unpriced) == (1, 0)
    assert await spent(db) == named.after_nano_usd > 0


async def test_hours_and_budgets_move_once_however_often_it_is_done(db: Database) -> None:
    budget = a_budget(10_000_000)
    lease = await take_lease(db, budget, str(WORKER), 1_000, 1)
    charged = {"budget_ids": (budget.id,), "budget_starts_ms": (lease.starts_at_ms,)}
    await ship(db, [row(**charged), row(**charged), row(started_at_ms=NOON_MS + 3_600_000)])
    written = await db.fetch("SELECT * FROM strata.usage ORDER BY request_id")
    for _ in range(3):
        (change,) = await rerate(db, book())
        assert (change.rows, change.after_nano_usd) == (3, 60)
        assert await spent(db) == 60
        period = await read_period(db, budget)
        assert period is not None
        # The worker's lease is its own affair: what it holds in hand is not touched.
        assert (period.settled_nano_usd, period.leased_nano_usd) == (40, 900)
        await assert_sums_hold(db)
    assert await corrections(db) == [(-1, -30)] * 3
    assert await db.fetch("SELECT * FROM strata.usage WHERE attempt > 0 ORDER BY request_id") == written
    hours = await db.fetch("SELECT attempts, input_tokens, cost_nano_usd FROM strata.usage_hourly ORDER BY bucket")
    assert [tuple(hour) for hour in hours] == [(2, 20, 40), (1, 10, 20)]


async def test_prices_that_change_again_are_another_correction(db: Database) -> None:
    one = row()
    await ship(db, [one])
    for pico, cost in ((1_000, 20), (4_000, 80), (4_000, 80), (2_500, 50)):
        await rerate(db, book(pico))
        assert await spent(db) == cost
    assert await corrections(db) == [(-1, -30), (-101, 60), (-201, -30)]
    stored = await db.fetchrow("SELECT * FROM strata.usage WHERE attempt = -101")
    assert stored is not None
    assert (stored["model"], stored["deployment"], stored["key_name"]) == (one.model, one.deployment, one.key_name)
    assert msgspec.json.decode(stored["usage_raw"]) == {"adjusts": 1, "cost_nano_usd": 20, "price_source": "old"}
    assert stored["price_source"].startswith("config.yaml gpu/* #")
    await assert_sums_hold(db)


async def test_each_attempt_of_a_request_is_corrected_by_itself(db: Database) -> None:
    first = row(cost_nano_usd=50)
    second = row(attempt=2, request_id=first.request_id, deployment="gpu/b", cost_nano_usd=5)
    await ship(db, [first, second])
    await rerate(db, book())
    await rerate(db, book())
    assert await corrections(db) == [(-1, -30), (-2, 15)]
    found = await db.fetch("SELECT deployment, cost_nano_usd FROM strata.usage_hourly ORDER BY deployment")
    assert [tuple(one) for one in found] == [("gpu/a", 20), ("gpu/b", 20)]


async def test_two_at_once_correct_once(db: Database) -> None:
    await ship(db, [row() for _ in range(40)])
    await asyncio.gather(*(rerate(db, book()) for _ in range(4)))
    assert await spent(db) == 40 * 20
    assert len(await corrections(db)) == 40
    await assert_sums_hold(db)


async def test_a_dry_run_says_what_would_change_and_changes_nothing(db: Database) -> None:
    await ship(db, [row(), row(cost_nano_usd=20), row(model="slow", started_at_ms=NOON_MS + 86_400_000)])
    first, second = await rerate(db, book(), dry_run=True)
    assert (first.model, first.rows, first.changed, first.before_nano_usd, first.after_nano_usd) == (
        "fast", 2, 1, 70, 40,
    )  # fmt: skip
    assert (second.model, second.changed) == ("slow", 1)
    assert first.day < second.day
    assert (await corrections(db), await spent(db)) == ([], 120)
    assert await db.fetch("SELECT 1 FROM strata.price_lines") == []


@pytest.mark.parametrize(
    ("fields", "cost"),
    [
        pytest.param({"source": "none", "cost_nano_usd": 0}, 0, id="nothing was done"),
        pytest.param({"source": "orphan", "cost_nano_usd": 900}, 900, id="the hold of a worker that died"),
        pytest.param({"source": "orphan", "price_state": "unknown", "cost_nano_usd": 0}, 20, id="one without a price"),
        pytest.param({"source": "counted", "cost_nano_usd": 1}, 20, id="tokens that we counted"),
        pytest.param({"price_state": "unknown", "cost_nano_usd": 0, "price_source": ""}, 20, id="no price then"),
        pytest.param({"deployment": "lost/x", "provider": "lost"}, 50, id="no price now"),
        pytest.param({"deployment": "openai/gpt-5", "provider": "openai"}, 112_500, id="a provider that is gone"),
        pytest.param({"service_tier": "priority"}, 90, id="a tier with its price"),
        pytest.param({"service_tier": "turbo"}, 50, id="a tier without a price"),
        pytest.param({"searches": 1}, 50, id="searches without a price"),
        pytest.param({"attempt": 100}, 50, id="more attempts than we can number"),
        pytest.param({"started_at_ms": NOON_MS - 3 * 86_400_000}, 50, id="before that time"),
        pytest.param({"input_tokens": 10**15}, MAX_COST_NANO_USD, id="somebody's mistake"),
    ],
)
async def test_what_is_priced_again_and_what_is_not(db: Database, fields: dict[str, Any], cost: int) -> None:
    await ship(db, [row(**fields)])
    prices = book(service_tiers={"priority": PriceList(input_pico_usd=8_000, output_pico_usd=1_000)})
    await rerate(db, prices)
    assert await spent(db) == cost
    await assert_sums_hold(db)


@pytest.mark.parametrize(("names", "changed"), [(("fast",), 1), (("gpu/a",), 2), (("nobody",), 0), ((), 2)])
async def test_only_the_models_that_are_named(db: Database, names: Sequence[str], changed: int) -> None:
    await ship(db, [row(), row(model="slow")])
    changes = await rerate(db, book(), *names)
    assert sum(change.changed for change in changes) == changed == len(await corrections(db))


async def test_more_rows_than_a_batch_are_all_seen_once(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.metering.rerating.BATCH_ROWS", 7)
    await ship(db, [row(started_at_ms=NOON_MS + n % 3) for n in range(40)])
    (change,) = await rerate(db, book())
    assert (change.rows, change.changed) == (40, 40)
    assert await spent(db) == 800


async def test_lines_are_written_once_and_every_row_can_be_calculated_from_them(db: Database) -> None:
    prices = PriceBook()
    where = Deployment(provider=Provider(name="openai", api_base="http://127.0.0.1:9"), model="gpt-5")
    usage = Usage(input=1_000, cache_read=7, output=3, searches=2)
    price = prices.cost(where, usage, NOON_MS, "priority")
    shipped = ledger_row(
        input_tokens=1_000, cache_read_tokens=7, cache_write_5m_tokens=0, cache_write_1h_tokens=0, output_tokens=3,
        reasoning_tokens=0, searches=2, cost_nano_usd=price.nano_usd, price_source=price.source,
    )  # fmt: skip
    await ship(db, [shipped])
    await asyncio.gather(prices.write_new_lines(db), PriceBook().write_new_lines(db))
    await prices.write_new_lines(db)
    lines = await sql.read_lines(db, [price.source, "another"])
    assert lines == {price.source: prices.lines(price.source)}
    assert recalculate(shipped, lines[price.source]) == price.nano_usd
    await sql.write_lines(db, {price.source: {"input": 1, "request": 0}})
    assert await sql.read_lines(db, [price.source]) == lines


async def test_lines_that_could_not_be_written_are_written_later(db: Database) -> None:
    prices = book()
    source = prices.cost(Deployment(provider=GPU, model="a"), Usage(input=1), NOON_MS).source
    with pytest.raises(Unavailable):
        await prices.write_new_lines(Database("postgresql://127.0.0.1:1/none"))
    await prices.write_new_lines(db)
    assert list(await sql.read_lines(db, [source])) == [source]


def configure(dsn: str, pico: str = "0.001") -> None:
    Path("config.yaml").write_text(
        f"database: {{url: '{dsn}'}}\n"
        "providers: {gpu: {type: openai_compatible, api_base: 'http://127.0.0.1:9/v1'}}\n"
        "models: {fast: gpu/a}\n"
        f"prices: {{models: {{gpu/*: {{input: {pico}, output: {pico}}}}}}}\n"
    )


def test_the_command_says_what_it_changed_by_model_and_day(
    database_dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    configure(database_dsn)

    async def prepare() -> None:
        database = Database(database_dsn)
        await database.open()
        await ship(database, [row(), row()])
        await database.close()

    asyncio.run(prepare())
    words = ["prices", "rerate", "--since", f"{SINCE:%Y-%m-%d}"]
    assert main([*words, "--dry-run", "--until", f"{UNTIL:%Y-%m-%d}"], {}) == 0
    assert "2 of 2 rows would be adjusted, -$0.00000006 in all." in capsys.readouterr().out
    assert main([*words, "--json", "--model", "fast"], {}) == 0
    (change,) = msgspec.json.decode(capsys.readouterr().out)["changes"]
    assert (change["model"], change["changed"], change["before_nano_usd"], change["after_nano_usd"]) == (
        "fast", 2, 100, 40,
    )  # fmt: skip
    assert main(words, {}) == 0
    told = capsys.readouterr().out
    assert "0 of 2 rows adjusted, $0.00 in all." in told and f"{change['day']}  fast" in told
    assert main(["prices", "rerate", "--since", "2020-01-01", "--until", "2020-01-02"], {}) == 0
    assert "no rows" in capsys.readouterr().out


async def test_each_run_is_in_the_audit_log_and_a_trial_is_not(db: Database) -> None:
    for dry_run in (True, False):
        await rerate(db, PriceBook(), "fast", dry_run=dry_run)
    [noted] = await db.fetch("SELECT action, after FROM strata.audit")
    assert noted["action"] == "prices.rerate"
    assert msgspec.json.decode(noted["after"])["models"] == ["fast"]
