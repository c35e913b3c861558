"""Budgets that bind everybody or a provider: from the file at once, from Postgres within a second of a change."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

import pytest

from proxy.admission.bindings import Bindings
from proxy.config import SharedBudget
from proxy.errors import CallerError
from proxy.exchange import Budget
from proxy.storage import postgres
from proxy.storage.budget_settings import end_budgets, list_budgets, set_budget
from proxy.storage.budgets import CHANNEL
from proxy.storage.keys import insert_key, list_keys
from proxy.storage.postgres import Database

GLOBAL = SharedBudget(scope="global", limit_nano_usd=500, calendar="month")
OPENAI = SharedBudget(scope="provider", name="openai", limit_nano_usd=300, window_seconds=2_592_000)
TEAM = SharedBudget(scope="team", name="research", limit_nano_usd=200)


@pytest.fixture
async def running(db: Database) -> AsyncIterator[Callable[..., object]]:
    """Starts bindings that listen, and ends them."""
    started: list[Bindings] = []

    async def start(*shared: SharedBudget, changed: Callable[[tuple[Budget, ...]], None] = lambda _: None) -> Bindings:
        bindings = Bindings(db, shared, changed=changed, poll_seconds=60)
        await bindings.start()
        await db.listen(CHANNEL, bindings.on_notice)
        started.append(bindings)
        return bindings

    yield start
    for bindings in started:
        await bindings.close()


async def in_force(db: Database) -> list[tuple[str, str, int, str]]:
    return [(row.scope, row.name, row.limit_nano_usd, row.source) for row in await list_budgets(db)]


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(1.0):
        while not holds():
            await asyncio.sleep(0.005)


def test_the_file_binds_before_there_is_a_database() -> None:
    bindings = Bindings(Database("postgresql://127.0.0.1:1/away"), (GLOBAL, OPENAI, TEAM))
    assert [budget.limit_nano_usd for budget in bindings.everybody] == [500]
    assert [budget.limit_nano_usd for budget in bindings.providers["openai"]] == [300]


async def test_the_files_budgets_are_entered_changed_and_ended_with_the_file(db: Database) -> None:
    await Bindings(db, (GLOBAL, OPENAI)).refresh()
    first = {row.id for row in await list_budgets(db)}
    assert await in_force(db) == [("global", "", 500, "config"), ("provider", "openai", 300, "config")]
    raised = SharedBudget(scope="global", limit_nano_usd=900, calendar="month")
    again = Bindings(db, (raised,))
    await again.refresh()
    assert await in_force(db) == [("global", "", 900, "config")]
    assert {row.id for row in await list_budgets(db)} < first
    assert again.providers == {}
    await Bindings(db, (GLOBAL, OPENAI)).refresh()
    assert {row.id for row in await list_budgets(db)} == first


async def test_a_team_of_the_file_binds_as_soon_as_it_exists(db: Database, caplog: pytest.LogCaptureFixture) -> None:
    bindings = Bindings(db, (TEAM,))
    with caplog.at_level(logging.ERROR, "strata.admission"):
        await bindings.refresh()
        await bindings.refresh()
    assert caplog.text.count('the team "research" is not in force') == 1
    await db.execute("INSERT INTO strata.teams (name) VALUES ('research')")
    await bindings.refresh()
    assert await in_force(db) == [("team", "research", 200, "config")]


async def test_a_budget_set_by_hand_binds_within_a_second_is_raised_and_ends(
    db: Database, running: Callable[..., object]
) -> None:
    heard: list[tuple[Budget, ...]] = []
    bindings: Bindings = await running(changed=heard.append)  # type: ignore[misc]
    await asyncio.sleep(0.1)
    await set_budget(db, "global", "", 100, None, "day")
    await until(lambda: [budget.limit_nano_usd for budget in bindings.everybody] == [100])
    await set_budget(db, "global", "", 250, None, "day")
    await until(lambda: [budget.limit_nano_usd for budget in bindings.everybody] == [250])
    await set_budget(db, "provider", "openai", 7, 60, None)
    await until(lambda: "openai" in bindings.providers)
    assert await end_budgets(db, "provider", "openai") == 1
    assert await end_budgets(db, "global", "") == 1
    await until(lambda: bindings.providers == {} and bindings.everybody == ())
    assert [len(budgets) for budgets in heard] == [1, 1, 0]


async def test_a_budget_of_a_team_reaches_the_keys_that_carry_it(db: Database) -> None:
    row = await insert_key(
        db, name="ci", digest=bytes(32), pepper_id="p", display="d", models=["*"], rpm=None, expires_at=None,
        budget_limit_nano_usd=5, budget_window_seconds=None, budget_calendar="week",
    )  # fmt: skip
    assert [(budget.scope, budget.calendar) for budget in row.budgets] == [("key", "week")]
    team = await db.fetchrow("INSERT INTO strata.teams (name) VALUES ('research') RETURNING id")
    assert team is not None
    await db.execute("UPDATE strata.keys SET team_id = $1", team["id"])
    before = (await list_keys(db))[0].version
    await set_budget(db, "team", "research", 10, 86_400, None)
    (now,) = await list_keys(db)
    assert now.version > before
    assert sorted(budget.scope for budget in now.budgets) == ["key", "team"]
    await set_budget(db, "key", "ci", 6, None, "week")
    (later,) = await list_keys(db)
    assert later.version > now.version
    assert sorted(budget.limit_nano_usd for budget in later.budgets) == [6, 10]


async def test_nobody_is_bound_by_a_name_that_is_not_there_or_twice(db: Database) -> None:
    with pytest.raises(CallerError, match='There is no team "ghosts"'):
        await set_budget(db, "team", "ghosts", 1, None, None)
    await Bindings(db, (GLOBAL,)).refresh()
    with pytest.raises(CallerError, match=r"config\.yaml has a budget"):
        await set_budget(db, "global", "", 1, None, "month")
    assert await end_budgets(db, "global", "") == 0


async def test_the_files_budgets_bind_though_the_database_takes_no_changes(
    db: Database, database_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await set_budget(db, "provider", "openai", 7, 60, None)
    monkeypatch.setitem(postgres.SETTINGS, "default_transaction_read_only", "on")
    standby = Database(database_dsn)
    await standby.open()
    bindings = Bindings(standby, (GLOBAL,))
    await bindings.refresh()
    assert [budget.limit_nano_usd for budget in bindings.everybody] == [500]
    assert [budget.limit_nano_usd for budget in bindings.providers["openai"]] == [7]
    await standby.close()


async def test_a_mistake_of_ours_is_logged_and_the_next_poll_reads_on(
    db: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await Bindings(db, ()).close()  # never started: nothing to end
    bindings = Bindings(db, (), poll_seconds=0.01)
    await bindings.start()

    async def stumble(_: Database) -> None:
        monkeypatch.undo()
        raise RuntimeError("a mistake")

    monkeypatch.setattr("proxy.admission.bindings.read_for_all", stumble)
    await until(lambda: bindings.failures_total == 1)
    await set_budget(db, "global", "", 500, None, "month")
    await until(lambda: [budget.limit_nano_usd for budget in bindings.everybody] == [500])
    await bindings.close()
    assert "could not be read" in caplog.text


async def test_while_the_database_is_away_what_was_read_goes_on_and_nobody_is_alarmed(
    db: Database, running: Callable[..., object], caplog: pytest.LogCaptureFixture
) -> None:
    bindings = await running(GLOBAL)  # type: ignore[misc]
    before = bindings.everybody
    await db.close()
    bindings.on_notice("")
    await until(lambda: bindings.failures_total == 1)
    assert bindings.everybody == before != ()
    assert [record for record in caplog.records if record.name == "strata.admission"] == []
