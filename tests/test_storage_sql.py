"""Every statement against the migrated schema, and what the ones with logic promise."""

from __future__ import annotations

import asyncio
import importlib
import pkgutil
import uuid
from typing import Any

import asyncpg
import msgspec
import pytest

import proxy.storage
from proxy.errors import CallerError
from proxy.exchange import Budget
from proxy.storage import keys
from proxy.storage.budgets import read_period, release_worker, return_lease, take_lease
from proxy.storage.keys import KeyRow, changed_since, find_key, insert_key, list_keys, revoke_key
from proxy.storage.ledger import LedgerRow, RowsRefused, ship
from proxy.storage.postgres import Database
from proxy.storage.verify import find_rows, sums_by_day

NOON_MS = 1_790_000_000_000
WORKER = uuid.UUID(int=7)
SQL_VERBS = ("SELECT", "INSERT", "UPDATE", "DELETE", "CREATE", "WITH")
INVARIANTS = """
    SELECT
        (SELECT count(*) FROM strata.budget_periods p WHERE p.settled_nano_usd <> (
            SELECT coalesce(sum(u.cost_nano_usd), 0) FROM strata.usage u
            CROSS JOIN LATERAL unnest(u.budget_ids, u.budget_starts) b(id, starts_at)
            WHERE b.id = p.budget_id AND b.starts_at = p.starts_at)) AS settled_wrong,
        (SELECT count(*) FROM strata.budget_periods p WHERE p.leased_nano_usd <> (
            SELECT coalesce(sum(l.granted_nano_usd), 0) FROM strata.leases l
            WHERE l.budget_id = p.budget_id AND l.starts_at = p.starts_at)) AS leased_wrong,
        (SELECT coalesce(sum(cost_nano_usd), 0) FROM strata.usage)
            - (SELECT coalesce(sum(cost_nano_usd), 0) FROM strata.usage_hourly) AS hourly_differs,
        (SELECT count(*) FROM strata.usage WHERE attempt > 0)
            - (SELECT coalesce(sum(attempts), 0) FROM strata.usage_hourly) AS attempts_differ,
        (SELECT count(*) FROM (SELECT date_trunc('day', bucket, 'UTC') AS bucket, key_id, user_id, team_id, model,
                deployment, provider, sum(attempts) AS attempts, sum(cost_nano_usd) AS cost FROM strata.usage_hourly
                GROUP BY 1, 2, 3, 4, 5, 6, 7) h
            FULL JOIN strata.usage_daily d USING (bucket, key_id, user_id, team_id, model, deployment, provider)
            WHERE h.attempts IS DISTINCT FROM d.attempts OR h.cost IS DISTINCT FROM d.cost_nano_usd) AS days_differ
"""


def statements() -> list[tuple[str, str]]:
    """Every SQL constant of the room, by module and name."""
    found = []
    for info in pkgutil.iter_modules(proxy.storage.__path__):
        for name, value in vars(importlib.import_module(f"proxy.storage.{info.name}")).items():
            if name.isupper() and isinstance(value, str) and value.split()[0] in SQL_VERBS:
                found.append((f"{info.name}.{name}", value))
    return found


def ledger_row(**fields: Any) -> LedgerRow:
    row = {
        "request_id": uuid.uuid4().bytes,
        "attempt": 1,
        "started_at_ms": NOON_MS,
        "worker_id": WORKER.bytes,
        "public_id": "req_1",
        "key_id": None,
        "key_name": "ci",
        "user_id": None,
        "team_id": None,
        "endpoint": "chat",
        "model": "fast",
        "deployment": "sim/echo",
        "provider": "sim",
        "stream": True,
        "status": 200,
        "outcome": "ok",
        "source": "provider",
        "input_tokens": 10,
        "cache_read_tokens": 5,
        "cache_write_5m_tokens": 2,
        "cache_write_1h_tokens": 1,
        "audio_input_tokens": 0,
        "output_tokens": 7,
        "reasoning_tokens": 3,
        "audio_output_tokens": 0,
        "cost_nano_usd": 1000,
        "price_state": "priced",
        "price_source": "table 2026-11-01",
        "usage_raw": "{}",
        "usage_suspect": False,
        "duration_ms": 812,
        "first_token_ms": 90,
    }
    return LedgerRow(**{**row, **fields})


def a_budget(limit: int = 1_000_000, **fields: Any) -> Budget:
    return Budget(id=str(uuid.uuid4()), scope="key", subject=str(uuid.uuid4()), limit_nano_usd=limit, **fields)


async def new_key(db: Database, name: str = "ci", **fields: Any) -> KeyRow:
    given_fields = {
        "digest": uuid.uuid4().bytes * 2,
        "pepper_id": "p1",
        "display": "sk-strata-Jm3v…f9Tc",
        "models": ["*"],
        "rpm": None,
        "expires_at": None,
        "budget_limit_nano_usd": None,
        "budget_window_seconds": None,
    }
    return await insert_key(db, name=name, **{**given_fields, **fields})


async def assert_sums_hold(db: Database) -> None:
    row = await db.fetchrow(INVARIANTS, timeout_seconds=10.0)
    assert row is not None
    assert set(row.values()) == {0}, dict(row)


async def test_every_statement_is_valid_against_the_schema(database_dsn: str) -> None:
    connection = await asyncpg.connect(database_dsn)
    await connection.execute(dict(statements())["migrations.CREATE_LIST"])
    for name, sql in statements():
        try:
            await connection.prepare(sql)
        except asyncpg.PostgresError as error:
            pytest.fail(f"{name}: {error}")
    await connection.close()
    assert len(statements()) >= 25


async def test_a_key_is_found_with_its_budget_and_listed_until_and_after_it_is_revoked(db: Database) -> None:
    made = await new_key(
        db, models=["fast", "sim/*"], rpm=60, expires_at=1.9e9, budget_limit_nano_usd=5_000_000_000,
        budget_window_seconds=86_400,
    )  # fmt: skip
    assert made.models == ("fast", "sim/*") and made.rpm == 60 and made.expires_at == 1.9e9
    assert made.budgets == (
        Budget(
            id=made.budgets[0].id, scope="key", subject=made.id, limit_nano_usd=5_000_000_000, window_seconds=86_400
        ),
    )
    assert await find_key(db, made.digest) == made
    assert await find_key(db, bytes(32)) is None
    other = await new_key(db, "other")
    assert await list_keys(db) == [other, made]

    revoked = await revoke_key(db, "ci")
    assert revoked is not None and revoked.id == made.id and revoked.revoked_at is not None
    assert revoked.version > made.version
    assert await changed_since(db, made.version) == [other, revoked]
    assert await changed_since(db, revoked.version) == []
    assert await revoke_key(db, "ci") is None
    assert (await revoke_key(db, other.id) or made).id == other.id


async def test_an_active_name_is_taken_and_a_revoked_one_is_free(db: Database) -> None:
    await new_key(db)
    with pytest.raises(CallerError, match='named "ci" is active already') as caught:
        await new_key(db, budget_limit_nano_usd=1)
    assert (caught.value.status, caught.value.code) == (400, "name_taken")
    await revoke_key(db, "ci")
    await new_key(db)
    assert [row.name for row in await list_keys(db)] == ["ci", "ci"]


@pytest.mark.parametrize("fields", [{"name": ""}, {"name": "x" * 65}, {"name": "a\x00b"}, {"rpm": -1}])
async def test_a_key_that_cannot_be_stored_is_the_callers_error(db: Database, fields: dict[str, Any]) -> None:
    with pytest.raises(CallerError, match="cannot be stored"):
        await new_key(db, **fields)
    assert await list_keys(db) == []


async def test_key_versions_appear_in_commit_order(db: Database) -> None:
    """A poller that has seen version n never meets a smaller one later: the second writer waits for the first."""
    async with db.transaction() as first:
        await first.execute("UPDATE strata.keys SET rpm = 1")  # nothing there yet: takes no turn
        early = await new_key(db, "early")
        await first.execute("UPDATE strata.keys SET rpm = 5 WHERE name = 'early'")
        late = asyncio.create_task(new_key(db, "late"))
        await asyncio.sleep(0.1)
        assert not late.done()
    changed = await changed_since(db, early.version)
    assert changed[0].name == "early"
    assert (await late).version > changed[0].version


async def test_using_a_key_is_no_change_that_workers_must_learn(db: Database) -> None:
    made = await new_key(db)
    await db.execute("UPDATE strata.keys SET last_used_at = now()")
    assert await changed_since(db, made.version) == []
    found = await find_key(db, made.digest)
    assert found is not None and found.last_used_at is not None


async def test_a_change_of_a_key_is_announced(db: Database) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    await db.listen(keys.CHANNEL, heard.put_nowait)
    assert await asyncio.wait_for(heard.get(), 10) == ""
    made = await new_key(db)
    assert await asyncio.wait_for(heard.get(), 10) == made.id


async def test_leases_never_exceed_the_limit_however_many_ask_at_once(db: Database) -> None:
    budget = a_budget(1_000)
    leases = await asyncio.gather(*(take_lease(db, budget, str(uuid.uuid4()), 90, 10) for _ in range(20)))
    assert sum(lease.granted_nano_usd for lease in leases) == 1_000
    assert sorted(lease.granted_nano_usd for lease in leases)[-12:] == [10] + [90] * 11
    period = await read_period(db, budget)
    assert period is not None and period.leased_nano_usd == 1_000
    await assert_sums_hold(db)


async def test_a_lease_is_all_that_is_needed_or_nothing(db: Database) -> None:
    budget = a_budget(100)
    worker = str(WORKER)
    first = await take_lease(db, budget, worker, 70, 1)
    assert (first.granted_nano_usd, first.free_nano_usd, first.settled_nano_usd) == (70, 30, 0)
    assert (first.starts_at_ms, first.ends_at_ms) == (0, None)
    refused = await take_lease(db, budget, worker, 70, 31)
    assert (refused.granted_nano_usd, refused.free_nano_usd) == (0, 30)
    rest = await take_lease(db, budget, worker, 70, 30)
    assert (rest.granted_nano_usd, rest.free_nano_usd) == (30, 0)
    await return_lease(db, budget.id, 0, worker, 60)
    assert (await take_lease(db, budget, "00000000-0000-0000-0000-00000000000a", 99, 1)).granted_nano_usd == 60
    assert await release_worker(db, worker) == 1
    assert await release_worker(db, worker) == 0
    assert (await take_lease(db, budget, worker, 99, 1)).granted_nano_usd == 40
    await assert_sums_hold(db)


async def test_a_budgets_limit_is_the_rows_and_a_configured_ones_is_the_files(db: Database) -> None:
    made = await new_key(db, budget_limit_nano_usd=50)
    stale = msgspec.structs.replace(made.budgets[0], limit_nano_usd=9_999)
    assert (await take_lease(db, stale, str(WORKER), 9_999, 1)).granted_nano_usd == 50
    configured = a_budget(10)
    assert (await take_lease(db, configured, str(WORKER), 99, 1)).granted_nano_usd == 10
    raised = msgspec.structs.replace(configured, limit_nano_usd=25)
    assert (await take_lease(db, raised, str(WORKER), 99, 1)).granted_nano_usd == 15


@pytest.mark.parametrize("wrong", [True, 1.5])
async def test_money_that_is_no_whole_number_is_refused(db: Database, wrong: Any) -> None:
    """asyncpg itself stores True as 1 and 1.5 as 1."""
    with pytest.raises(TypeError, match="whole"):
        await take_lease(db, a_budget(), str(WORKER), wrong, 1)
    with pytest.raises(RowsRefused):
        await ship(db, [ledger_row(cost_nano_usd=wrong)])


@pytest.mark.parametrize(
    ("window_seconds", "calendar", "moment", "starts", "ends"),
    [
        (3600, None, "2026-11-23 09:59:59.9+00", "2026-11-23 09:00:00+00", "2026-11-23 10:00:00+00"),
        (86_400, None, "2026-11-23 23:30:00-02", "2026-11-24 00:00:00+00", "2026-11-25 00:00:00+00"),
        (None, "day", "2026-11-23 01:00:00+02", "2026-11-22 00:00:00+00", "2026-11-23 00:00:00+00"),
        (None, "week", "2026-11-22 12:00:00+00", "2026-11-16 00:00:00+00", "2026-11-23 00:00:00+00"),
        (None, "month", "2028-02-29 12:00:00+00", "2028-02-01 00:00:00+00", "2028-03-01 00:00:00+00"),
        (None, None, "2026-11-23 12:00:00+00", "1970-01-01 00:00:00+00", None),
    ],
)
async def test_periods_are_counted_in_utc(
    db: Database, window_seconds: int | None, calendar: str | None, moment: str, starts: str, ends: str | None
) -> None:
    row = await db.fetchrow(
        "SELECT starts_at = $4::text::timestamptz AS first, ends_at IS NOT DISTINCT FROM $5::text::timestamptz AS last"
        " FROM strata.period_at($1, $2, $3::text::timestamptz)",
        window_seconds, calendar, moment, starts, ends,
    )  # fmt: skip
    assert row is not None and tuple(row) == (True, True)


async def test_what_a_users_own_key_paid_is_in_the_ledger_and_not_on_the_operators_invoice(db: Database) -> None:
    own = ledger_row(provider_key_id=str(uuid.UUID(int=9)))
    operators = ledger_row()
    assert await ship(db, [own, operators]) == 2
    found = await find_rows(db, [own, operators])
    assert found == {(row.request_id, row.attempt): row for row in (own, operators)}
    day = "2026-09-21"
    [line] = await sums_by_day(db, day, day, None, False)
    assert (line["requests"], line["cost_nano_usd"]) == (1, 1000)
