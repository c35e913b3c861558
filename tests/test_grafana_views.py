"""What dashboards may read: the five views, whole and right, and nothing else of the database."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from proxy.storage.migrations import known_migrations, migrate
from tests.conftest import on_database, run_sql
from tests.test_row_level_security import KEY, ROWS, TEAM, USER

VIEWS = ("budgets", "keys", "requests", "usage", "usage_hourly")
PASSWORD = "of-the-tests"

MAY_READ = """
    SELECT n.nspname || '.' || c.relname
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_(toast|temp)'
        AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND has_schema_privilege(n.oid, 'USAGE')
        AND (has_table_privilege(c.oid, 'SELECT') OR has_any_column_privilege(c.oid, 'SELECT'))
    ORDER BY 1
"""
MAY_CHANGE = """
    SELECT c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND c.relkind IN ('r', 'p', 'v')
        AND has_table_privilege(c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER')
"""
MEMBER_OF = """
    SELECT r.rolname FROM pg_catalog.pg_roles r
    WHERE r.rolname <> current_user AND pg_has_role(r.oid, 'MEMBER')
"""
TABLES = """
    SELECT c.relname FROM pg_catalog.pg_class c
    WHERE c.relnamespace = 'strata'::regnamespace AND c.relkind IN ('r', 'p', 'v')
"""


@pytest.fixture
def tenants_dsn(database_dsn: str) -> Iterator[str]:
    """The owner's: a database with the rows of two tenants, in which strata_grafana may log in."""
    statements = [ROWS.format(who=who, team=TEAM[who], user=USER[who], key=KEY[who]) for who in "ab"]
    asyncio.run(run_sql(database_dsn, *statements, f"ALTER ROLE strata_grafana LOGIN PASSWORD '{PASSWORD}'"))
    yield database_dsn
    asyncio.run(run_sql(database_dsn, "ALTER ROLE strata_grafana NOLOGIN PASSWORD NULL"))


async def as_grafana(dsn: str) -> asyncpg.Connection[asyncpg.Record]:
    """A log-in of its own, as Grafana's is: what the role may not, no session of ours lends it."""
    return await asyncpg.connect(dsn, user="strata_grafana", password=PASSWORD, timeout=10)


async def column(dsn: str, sql: str) -> list[object]:
    connection = await as_grafana(dsn)
    try:
        return [row[0] for row in await connection.fetch(sql, timeout=10)]
    finally:
        await connection.close(timeout=5)


async def test_the_role_may_read_the_views_and_nothing_else(tenants_dsn: str) -> None:
    assert await column(tenants_dsn, MAY_READ) == [f"grafana.{name}" for name in VIEWS]
    assert await column(tenants_dsn, MAY_CHANGE) == []
    assert await column(tenants_dsn, MEMBER_OF) == []
    assert await column(tenants_dsn, "SELECT has_schema_privilege('strata', 'USAGE')") == [False]
    assert await column(
        tenants_dsn, "SELECT rolsuper OR rolbypassrls OR rolcreaterole FROM pg_roles WHERE rolname = user"
    ) == [False]


async def test_every_table_and_view_of_the_gateway_refuses_the_role(tenants_dsn: str) -> None:
    owner = await asyncpg.connect(tenants_dsn, timeout=10)
    names = [row[0] for row in await owner.fetch(TABLES)]
    await owner.close(timeout=5)
    assert {"users", "keys", "usage", "vault", "bound_keys", "audit"} <= set(names)
    connection = await as_grafana(tenants_dsn)
    readable = []
    for name in names:
        try:
            await connection.fetch(f"SELECT * FROM strata.{name}", timeout=10)
            readable.append(name)
        except asyncpg.InsufficientPrivilegeError:
            pass
    await connection.close(timeout=5)
    assert readable == []


@pytest.mark.parametrize("name", VIEWS)
async def test_a_view_shows_every_tenant_and_no_secret(tenants_dsn: str, name: str) -> None:
    connection = await as_grafana(tenants_dsn)
    rows = await connection.fetch(f"SELECT * FROM grafana.{name}", timeout=10)
    await connection.close(timeout=5)
    assert len(rows) == 2
    words = {part for column_name in rows[0].keys() for part in column_name.split("_")}  # noqa: SIM118 (a Record)
    assert (
        words & {"digest", "sealed", "dek", "pepper", "hash", "password", "detail", "metadata", "raw", "nano"} == set()
    )
    if name != "budgets":
        assert sorted(str(row["user_email"]) for row in rows) == ["a@example.com", "b@example.com"]
        assert sorted(str(row["team"]) for row in rows) == ["team a", "team b"]


async def test_money_is_in_dollars_to_the_last_digit(tenants_dsn: str) -> None:
    await run_sql(
        tenants_dsn,
        "UPDATE strata.usage_hourly SET cost_nano_usd = 9007199254740993",
        "UPDATE strata.budgets SET limit_nano_usd = 5000000000",
        "UPDATE strata.budget_periods SET settled_nano_usd = 1250000001",
    )
    spent = [str(value) for value in await column(tenants_dsn, "SELECT cost_usd FROM grafana.usage_hourly")]
    assert [value.rstrip("0") for value in spent] == ["9007199.254740993"] * 2
    connection = await as_grafana(tenants_dsn)
    rows = await connection.fetch("SELECT limit_usd, spent_usd, left_usd, name FROM grafana.budgets ORDER BY name")
    await connection.close(timeout=5)
    assert [row["name"] for row in rows] == ["a", "b"]
    assert {(float(row[0]), str(row[1]).rstrip("0"), str(row[2]).rstrip("0")) for row in rows} == {
        (5.0, "1.250000001", "3.749999999")
    }


async def test_a_period_that_nobody_began_is_there_and_has_spent_nothing(tenants_dsn: str) -> None:
    await run_sql(
        tenants_dsn,
        "INSERT INTO strata.budgets (scope, limit_nano_usd, calendar) VALUES ('global', 7000000000, 'month')",
        "UPDATE strata.budgets SET ended_at = now() WHERE scope = 'key'",
    )
    connection = await as_grafana(tenants_dsn)
    rows = await connection.fetch("SELECT * FROM grafana.budgets")
    await connection.close(timeout=5)
    assert [(row["scope"], float(row["spent_usd"]), float(row["left_usd"])) for row in rows] == [("global", 0.0, 7.0)]
    assert rows[0]["starts_at"] < rows[0]["resets_at"]


@pytest.mark.parametrize("sql", ["SET ROLE strata_app", "SET ROLE strata_person", "SELECT strata.owns_key('')"])
async def test_the_role_becomes_nobody_and_calls_nothing(tenants_dsn: str, sql: str) -> None:
    connection = await as_grafana(tenants_dsn)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await connection.execute(sql, timeout=10)
    await connection.close(timeout=5)


async def test_a_session_of_the_role_reads_only_and_not_for_long(empty_database_dsn: str) -> None:
    await migrate(empty_database_dsn)
    await run_sql(empty_database_dsn, f"ALTER ROLE strata_grafana LOGIN PASSWORD '{PASSWORD}'")
    connection = await as_grafana(empty_database_dsn)
    assert await connection.fetchval("SHOW statement_timeout") == "30s"
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        await connection.execute("CREATE TEMP TABLE mine (n int)", timeout=10)
    await connection.close(timeout=5)
    await run_sql(empty_database_dsn, "ALTER ROLE strata_grafana NOLOGIN PASSWORD NULL")


async def test_a_login_that_may_not_make_roles_any_more_is_upgraded_all_the_same(
    postgres_server: str, migrated_template: str, tmp_path: Path
) -> None:
    for migration in known_migrations():
        if migration.name < "0013":
            (tmp_path / f"{migration.name}.sql").write_text(migration.sql)
    await run_sql(
        postgres_server,
        "CREATE ROLE plain LOGIN CREATEROLE PASSWORD 'plain'",
        "GRANT strata_app, strata_person TO plain",
        "CREATE DATABASE plain OWNER plain",
    )
    credentials = postgres_server[: postgres_server.index("@")]
    dsn = on_database(postgres_server.replace(credentials, "postgresql://plain:plain"), "plain")
    try:
        before = await migrate(dsn, folder=tmp_path)
        await run_sql(postgres_server, "ALTER ROLE plain NOCREATEROLE")
        after = await migrate(dsn)
        assert before + after == [migration.name for migration in known_migrations()]
        connection = await asyncpg.connect(dsn, timeout=10)
        assert await connection.fetchval("SELECT has_table_privilege('strata_grafana', 'grafana.usage', 'SELECT')")
        await connection.close(timeout=5)
    finally:
        await run_sql(postgres_server, "DROP DATABASE plain WITH (FORCE)", "DROP ROLE plain")
