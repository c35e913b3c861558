"""The pool: bounded in time and number, back when Postgres is back, and never as a superuser."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest

from proxy.errors import GatewayFault
from proxy.storage.embedded import EmbeddedPostgres
from proxy.storage.migrations import migrate
from proxy.storage.postgres import Database, Unavailable, translate
from tests.conftest import run_sql, scratch_folder


@pytest.fixture
def own_server(postgres_server: str) -> Iterator[EmbeddedPostgres]:
    """A server that this test may stop, freeze and kill."""
    home = scratch_folder()
    server = EmbeddedPostgres(home / "home")
    asyncio.run(migrate(server.start()))
    yield server
    server.stop()
    shutil.rmtree(home)


@pytest.fixture
async def own_db(own_server: EmbeddedPostgres) -> AsyncIterator[Database]:
    database = Database(own_server.start(), size=2)
    await database.open()
    yield database
    await database.close()


def processes(server: EmbeddedPostgres) -> list[int]:
    """The postmaster first, then its children."""
    pid = int((server.home / "postgres/data/postmaster.pid").read_text().split()[0])
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=True)
    return [pid, *map(int, children.stdout.split())]


async def until_it_answers(database: Database, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            await database.execute("SELECT 1")
            return
        except Unavailable:
            assert time.monotonic() < deadline, "it does not come back"
            await asyncio.sleep(0.05)


async def test_it_serves_as_strata_app_with_a_pinned_search_path(db: Database) -> None:
    row = await db.fetchrow(
        "SELECT current_user::text, current_setting('search_path'), current_setting('application_name'),"
        " current_setting('statement_timeout')"
    )
    assert row is not None and tuple(row) == ("strata_app", "strata, pg_temp", "strata", "15s")
    assert db.up


async def test_a_superuser_is_refused(database_dsn: str) -> None:
    database = Database(database_dsn, role=None)
    with pytest.raises(GatewayFault, match='role "strata" bypasses row-level security') as caught:
        await database.open()
    assert caught.value.code == "gateway_config"
    await database.close()


async def test_a_role_that_bypasses_row_level_security_is_refused(database_dsn: str) -> None:
    await run_sql(database_dsn, "CREATE ROLE passes_by BYPASSRLS")
    database = Database(database_dsn, role="passes_by")
    with pytest.raises(GatewayFault, match='role "passes_by" bypasses'):
        await database.open()
    await database.close()
    await run_sql(database_dsn, "DROP ROLE passes_by")


async def test_a_database_that_was_never_migrated_is_named(postgres_server: str) -> None:
    database = Database(postgres_server, role="no_such_role")
    with pytest.raises(GatewayFault, match="strata migrate"):
        await database.open()
    await database.close()


async def test_a_wrong_password_says_where_to_look(database_dsn: str) -> None:
    database = Database(database_dsn.replace("@", "x@"))
    with pytest.raises(Unavailable, match="check DATABASE_URL") as caught:
        await database.open()
    assert "x@" not in str(caught.value)
    await database.close()


async def test_the_pool_comes_up_with_a_server_that_starts_later(own_server: EmbeddedPostgres) -> None:
    database = Database(own_server.start())
    own_server.stop()
    with pytest.raises(Unavailable) as caught:
        await database.open()
    assert (caught.value.status, caught.value.code) == (503, "db_unavailable")
    assert caught.value.headers == {"retry-after": "1"} and not database.up
    own_server.start()
    await until_it_answers(database)
    assert database.up
    await database.close()


async def test_the_pool_outlives_a_restart_of_postgres(own_server: EmbeddedPostgres, own_db: Database) -> None:
    own_server.stop()
    with pytest.raises(Unavailable):
        await own_db.fetch("SELECT 1")
    assert not own_db.up
    own_server.start()
    await until_it_answers(own_db)


async def test_a_killed_backend_costs_one_call_at_most(db: Database, database_dsn: str) -> None:
    for _ in range(3):
        await db.execute("SELECT 1")
        await run_sql(
            database_dsn,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        await until_it_answers(db)


async def test_a_frozen_server_is_unavailable_in_bounded_time(own_server: EmbeddedPostgres, own_db: Database) -> None:
    """Established connections and new ones, in a call and in the middle of a transaction."""
    await own_db.fetch("SELECT 1")
    async with asyncio.timeout(20):
        frozen: list[int] = []
        try:
            with pytest.raises(Unavailable):
                async with own_db.transaction(timeout_seconds=0.5) as connection:
                    await connection.execute("SELECT 1")
                    frozen = processes(own_server)
                    for pid in frozen:
                        os.kill(pid, signal.SIGSTOP)
                    await connection.execute("SELECT 1")
            for _ in range(4):
                with pytest.raises(Unavailable):
                    await own_db.fetch("SELECT 1", timeout_seconds=0.3)
        finally:
            for pid in frozen:
                os.kill(pid, signal.SIGCONT)
    await until_it_answers(own_db)


async def test_a_slow_statement_is_cut_off_and_leaves_the_pool_whole(db: Database) -> None:
    for _ in range(6):
        with pytest.raises(Unavailable):
            await db.fetch("SELECT pg_sleep(30)", timeout_seconds=0.1)
    rows = await asyncio.gather(*(db.fetch("SELECT 1 AS n") for _ in range(8)))
    assert [row[0]["n"] for row in rows] == [1] * 8


async def test_whoever_waits_too_long_for_a_connection_is_told(own_db: Database) -> None:
    async with own_db.transaction(), own_db.transaction():
        with pytest.raises(Unavailable):
            await own_db.fetch("SELECT 1", timeout_seconds=0.1)
    assert len(await own_db.fetch("SELECT 1")) == 1


async def test_a_cancelled_caller_stays_cancelled_and_leaves_no_transaction(db: Database) -> None:
    started = asyncio.Event()

    async def work() -> None:
        async with db.transaction() as connection:
            await connection.execute("INSERT INTO strata.teams (name) VALUES ('half')")
            started.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(work())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await db.fetch("SELECT 1 FROM strata.teams") == []


async def test_a_transaction_commits_at_its_end_and_rolls_back_on_an_error(db: Database) -> None:
    async with db.transaction() as connection:
        await connection.execute("INSERT INTO strata.teams (name) VALUES ('kept')")
    with pytest.raises(asyncpg.UniqueViolationError):
        async with db.transaction() as connection:
            await connection.execute("INSERT INTO strata.teams (name) VALUES ('lost')")
            await connection.execute("INSERT INTO strata.teams (name) VALUES ('kept')")
    assert [row["name"] for row in await db.fetch("SELECT name FROM strata.teams")] == ["kept"]
    assert db.up, "an error in a statement is no outage"


async def test_a_plan_that_a_migration_made_stale_is_made_anew(db: Database, database_dsn: str) -> None:
    sql = "SELECT * FROM strata.teams"
    for number in range(3):
        assert await db.fetch(sql) == []
        await run_sql(database_dsn, f"ALTER TABLE strata.teams ADD COLUMN extra_{number} int")
    assert await db.fetch(sql) == []


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (ConnectionRefusedError(), True),
        (TimeoutError(), True),
        (asyncpg.ConnectionDoesNotExistError("x"), True),
        (asyncpg.TooManyConnectionsError("x"), True),
        (asyncpg.AdminShutdownError("x"), True),
        (asyncpg.CannotConnectNowError("x"), True),
        (asyncpg.QueryCanceledError("x"), True),
        (asyncpg.DiskFullError("x"), True),
        (asyncpg.DeadlockDetectedError("x"), True),
        (asyncpg.ReadOnlySQLTransactionError("x"), True),
        (asyncpg.InterfaceError("pool is closed"), True),
        (asyncpg.InterfaceError("the server expects 1 argument for this query, 0 were passed"), False),
        (asyncpg.DataError("invalid input for query argument"), False),
        (asyncpg.UniqueViolationError("x"), False),
        (asyncpg.UndefinedTableError("x"), False),
        (asyncpg.InsufficientPrivilegeError("permission denied for table usage"), False),
        (RuntimeError("x"), False),
    ],
)
def test_only_errors_of_the_connection_become_unavailable(error: Exception, away: bool) -> None:
    assert isinstance(translate(error), Unavailable) is away


async def test_a_listener_hears_notices_and_starts_afresh_after_a_restart(
    own_server: EmbeddedPostgres, own_db: Database
) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()

    def on_notice(payload: str) -> None:
        heard.put_nowait(payload)
        if payload == "bad":
            raise ValueError("a notice that the listener cannot read")

    await own_db.listen("strata_keys", on_notice)
    assert await asyncio.wait_for(heard.get(), 10) == ""
    for payload in ("one", "bad", "two"):
        await own_db.execute("SELECT pg_notify('strata_keys', $1)", payload)
        assert await asyncio.wait_for(heard.get(), 10) == payload
    own_server.stop()
    own_server.start()
    assert await asyncio.wait_for(heard.get(), 30) == ""
    await until_it_answers(own_db)
    await own_db.execute("SELECT pg_notify('strata_keys', 'three')")
    assert await asyncio.wait_for(heard.get(), 10) == "three"
    assert own_db.listen_failures_total > 0


async def test_each_call_is_measured_once_under_its_own_name_failures_too(db: Database) -> None:
    measured: list[tuple[str, bool]] = []
    db.observe = lambda op, seconds: measured.append((op, 0 < seconds < 10))
    await db.fetch("SELECT 1")
    await db.execute("SET LOCAL work_mem = '4MB'")
    await db.fetchrow("SELECT 1", op="keys")
    async with db.transaction(op="ship") as connection:
        await connection.execute("SELECT 1")
    with pytest.raises(asyncpg.PostgresSyntaxError):
        await db.fetch("SELEKT")
    assert measured == [(op, True) for op in ("read", "write", "keys", "ship", "read")]


async def test_connections_are_counted_idle_or_used(db: Database) -> None:
    async with db.transaction():
        assert db.connections[1] == 1
    idle, used = db.connections
    assert idle >= 1 and used == 0
    assert Database("postgresql://nobody@127.0.0.1:1/x").connections == (0, 0)


async def test_a_closed_database_is_unavailable_and_closing_twice_is_fine(database_dsn: str) -> None:
    database = Database(database_dsn)
    await database.open()
    await database.listen("strata_keys", lambda _: None)
    await database.close()
    await database.close()
    with pytest.raises(Unavailable):
        await database.fetch("SELECT 1")
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("listen")]
