"""The ledger and what moves with it: replay is harmless, sums equal rows, and nobody changes what is written."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.storage.budgets import read_period, release_worker, return_lease, take_lease
from proxy.storage.ledger import LedgerRow, RowsRefused, make_partitions, ship
from proxy.storage.postgres import Database
from tests.test_storage_sql import NOON_MS, WORKER, a_budget, assert_sums_hold, ledger_row, new_key

SNAPSHOT = """
    SELECT (SELECT json_agg(p ORDER BY p.budget_id, p.starts_at) FROM strata.budget_periods p)::text,
        (SELECT json_agg(l ORDER BY l.budget_id, l.starts_at, l.worker_id) FROM strata.leases l)::text,
        (SELECT json_agg(h ORDER BY h.bucket, h.model) FROM strata.usage_hourly h)::text,
        (SELECT json_agg(u ORDER BY u.request_id, u.attempt) FROM strata.usage u)::text
"""


async def test_shipping_twice_inserts_nothing_and_changes_nothing(db: Database) -> None:
    budget, hourly = a_budget(), a_budget(window_seconds=3600)
    lease = await take_lease(db, budget, str(WORKER), 10_000, 1)
    other = await take_lease(db, hourly, str(WORKER), 10_000, 1)
    charged = {
        "budget_ids": (budget.id, hourly.id),
        "budget_starts_ms": (lease.starts_at_ms, other.starts_at_ms),
    }
    rows = [ledger_row(**charged) for _ in range(5)] + [ledger_row(source="orphan", price_state="unknown")]
    assert await ship(db, [*rows, rows[0]]) == 6
    before = await db.fetchrow(SNAPSHOT)
    assert await ship(db, list(reversed(rows))) == 0
    assert await db.fetchrow(SNAPSHOT) == before
    for each in (budget, hourly):
        period = await read_period(db, each)
        assert period is not None and (period.settled_nano_usd, period.leased_nano_usd) == (5_000, 5_000)
    await assert_sums_hold(db)


async def test_hourly_sums_count_tokens_errors_estimates_and_corrections(db: Database) -> None:
    await ship(
        db,
        [
            ledger_row(),
            ledger_row(outcome="provider_error", source="none", cost_nano_usd=0, price_state="free"),
            ledger_row(source="counted", price_state="unknown", cost_nano_usd=0),
            ledger_row(attempt=-1, source="adjustment", cost_nano_usd=-300),
            ledger_row(started_at_ms=NOON_MS + 3_600_000),
        ],
    )
    first, second = await db.fetch("SELECT * FROM strata.usage_hourly ORDER BY bucket")
    assert (first["attempts"], first["errors"], first["estimated"], first["unpriced"]) == (3, 1, 1, 1)
    assert (first["input_tokens"], first["cached_tokens"], first["cache_write_tokens"]) == (72, 20, 12)
    assert (first["output_tokens"], first["reasoning_tokens"], first["cost_nano_usd"]) == (40, 12, 700)
    assert second["attempts"] == 1
    await assert_sums_hold(db)


async def test_a_row_keeps_every_field_even_characters_that_postgres_cannot_store(db: Database) -> None:
    row = ledger_row(key_id=str(uuid.UUID(int=3)), usage_raw='{"a": "\x00\ud800é"}', model="mödel", started_at_ms=123)
    assert await ship(db, [row]) == 1
    stored = await db.fetchrow("SELECT *, extract(epoch FROM started_at) * 1000 AS at_ms FROM strata.usage")
    assert stored is not None
    assert (stored["request_id"].bytes, stored["worker_id"].bytes) == (row.request_id, row.worker_id)
    assert (str(stored["key_id"]), stored["model"], stored["at_ms"]) == (row.key_id, "mödel", 123)
    assert stored["usage_raw"] == '{"a": "\ufffd?é"}'
    same = [name for name in LedgerRow.__struct_fields__[12:28] if stored[name] == getattr(row, name)]
    assert same == list(LedgerRow.__struct_fields__[12:28])


@pytest.mark.parametrize(
    "bad", [{"cost_nano_usd": -1}, {"source": "guess"}, {"status": 99_999}, {"key_id": "x"}, {"input_tokens": 2**63}]
)
async def test_a_bad_row_refuses_the_batch_and_says_so(db: Database, bad: dict[str, Any]) -> None:
    with pytest.raises(RowsRefused, match="batch of 2 rows"):
        await ship(db, [ledger_row(), ledger_row(**bad)])
    assert await db.fetch("SELECT 1 FROM strata.usage") == []


async def test_a_lease_that_was_released_already_does_not_move_again(db: Database) -> None:
    """A row that comes late is settled; the money of its lease went back when the worker was declared dead."""
    budget = a_budget(1_000)
    lease = await take_lease(db, budget, str(WORKER), 1_000, 1)
    await release_worker(db, str(WORKER))
    await ship(db, [ledger_row(cost_nano_usd=400, budget_ids=(budget.id,), budget_starts_ms=(lease.starts_at_ms,))])
    period = await read_period(db, budget)
    assert period is not None and (period.settled_nano_usd, period.leased_nano_usd) == (400, 0)
    await assert_sums_hold(db)


async def test_a_row_of_a_period_that_a_restored_backup_lacks_is_counted_all_the_same(db: Database) -> None:
    made = await new_key(db, budget_limit_nano_usd=9_000, budget_window_seconds=3600)
    starts_ms = NOON_MS // 3_600_000 * 3_600_000
    await ship(db, [ledger_row(budget_ids=(made.budgets[0].id,), budget_starts_ms=(starts_ms,))])
    settled = await db.fetchrow("SELECT settled_nano_usd, ends_at - starts_at AS length FROM strata.budget_periods")
    assert settled is not None and settled["settled_nano_usd"] == 1_000 and settled["length"].seconds == 3600
    await assert_sums_hold(db)


@pytest.mark.parametrize("table", ["usage", "audit", "usage_default"])
async def test_the_gateway_cannot_change_the_ledger(db: Database, table: str) -> None:
    await ship(db, [ledger_row()])
    column = "actor" if table == "audit" else "model"
    for sql in (f"UPDATE strata.{table} SET {column} = ''", f"DELETE FROM strata.{table}", f"TRUNCATE strata.{table}"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await db.execute(sql)


async def test_not_even_the_owner_changes_the_ledger(db: Database, database_dsn: str) -> None:
    await ship(db, [ledger_row()])
    owner = await asyncpg.connect(database_dsn)
    for sql in ("UPDATE strata.usage SET cost_nano_usd = 0", "DELETE FROM strata.usage"):
        with pytest.raises(asyncpg.RaiseError, match="append-only"):
            await owner.execute(sql)
    await owner.close()


async def test_partitions_are_made_ahead_by_many_at_once_and_late_ones_lose_nothing(
    db: Database, database_dsn: str
) -> None:
    owner = await asyncpg.connect(database_dsn)
    await owner.execute("DROP TABLE " + ", ".join(
        row["name"] for row in await owner.fetch(
            "SELECT inhrelid::regclass::text AS name FROM pg_inherits"
            " WHERE inhparent = 'strata.usage'::regclass AND inhrelid <> 'strata.usage_default'::regclass")
    ))  # fmt: skip
    now_ms = await owner.fetchval("SELECT (extract(epoch FROM now()) * 1000)::bigint")
    await ship(db, [ledger_row(started_at_ms=now_ms)])
    await asyncio.gather(*(make_partitions(db, 2) for _ in range(3)))
    count = await owner.fetchval("SELECT count(*) FROM pg_inherits WHERE inhparent = 'strata.usage'::regclass")
    assert count == 1 + 2  # the default one, which holds this month's row, and two months to come
    assert await owner.fetchval("SELECT count(*) FROM strata.usage") == 1
    await owner.close()


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(0, 2), st.integers(0, 1), st.integers(1, 400)),
        st.tuples(st.just("spend"), st.integers(0, 2), st.integers(0, 3), st.integers(0, 300)),
        st.tuples(st.just("return"), st.integers(0, 2), st.integers(0, 1), st.integers(0, 50)),
        st.tuples(st.just("release"), st.integers(0, 2), st.just(0), st.just(0)),
        st.tuples(st.just("replay"), st.integers(0, 2), st.just(0), st.integers(1, 9)),
    ),
    max_size=15,
)


@given(operations=OPERATIONS)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
async def test_sums_equal_rows_whatever_happens_in_whatever_order(
    db: Database, operations: list[tuple[str, int, int, int]]
) -> None:
    """Rows go out once or many times, alone or with others, for living workers and dead ones."""
    budgets = [a_budget(1_000), a_budget(10_000)]
    workers = [uuid.uuid4() for _ in range(3)]
    shipped: list[LedgerRow] = []
    for operation, worker, which, amount in operations:
        name = str(workers[worker])
        if operation == "take":
            lease = await take_lease(db, budgets[which], name, amount, 1)
            assert lease.granted_nano_usd in (0, amount) or lease.free_nano_usd == 0
        elif operation == "spend":
            charged = [budget for bit, budget in enumerate(budgets) if which >> bit & 1]
            row = ledger_row(
                worker_id=workers[worker].bytes,
                cost_nano_usd=amount,
                budget_ids=tuple(budget.id for budget in charged),
                budget_starts_ms=(0,) * len(charged),
            )
            for budget in charged:
                await take_lease(db, budget, name, amount, amount)
            assert await ship(db, [*shipped[-3:], row]) == 1
            shipped.append(row)
        elif operation == "return":
            await return_lease(db, budgets[which].id, 0, name, amount)
        elif operation == "release":
            await release_worker(db, name)
        else:
            assert await ship(db, list(itertools.islice(shipped, amount))) == 0
        await assert_sums_hold(db)


async def test_workers_that_ship_the_same_rows_at_once_do_not_count_them_twice(db: Database) -> None:
    budgets = [a_budget(10**12) for _ in range(3)]
    for budget in budgets:
        await take_lease(db, budget, str(WORKER), 10**9, 1)
    rows = [
        ledger_row(model=f"m{n % 5}", budget_ids=(budgets[n % 3].id,), budget_starts_ms=(0,)) for n in range(60)
    ]  # fmt: skip
    counts = await asyncio.gather(
        ship(db, rows), ship(db, rows[::-1]), ship(db, rows[30:]), ship(db, rows[:30]), ship(db, rows[::2])
    )
    assert sum(counts) == 60
    await assert_sums_hold(db)
