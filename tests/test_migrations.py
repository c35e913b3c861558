"""Migrations: once, in order, one at a time, and never backwards."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from proxy.errors import GatewayFault
from proxy.storage import migrations
from proxy.storage.migrations import known_migrations, migrate, pending
from proxy.storage.postgres import Database, Refused, Unavailable
from tests.conftest import run_sql
from tests.gateway import Gateway


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "0001_first.sql").write_text("CREATE TABLE public.a (n int); CREATE TABLE public.b (n int);")
    (tmp_path / "0002_second.sql").write_text("INSERT INTO public.a VALUES (1)")
    (tmp_path / "readme.sql").write_text("this is no migration")
    return tmp_path


async def column(dsn: str, sql: str) -> list[object]:
    connection = await asyncpg.connect(dsn)
    rows = await connection.fetch(sql)
    await connection.close()
    return [row[0] for row in rows]


async def test_a_fresh_database_gets_everything_and_a_second_run_is_nothing(empty_database_dsn: str) -> None:
    names = [migration.name for migration in known_migrations()]
    assert names[0] == "0001_initial" and names == sorted(names)
    assert await pending(empty_database_dsn) == names
    assert await migrate(empty_database_dsn) == names
    assert await migrate(empty_database_dsn) == []
    assert await pending(empty_database_dsn) == []
    database = Database(empty_database_dsn)
    await database.open()
    assert await database.fetch("SELECT 1 FROM strata.usage") == []
    await database.close()


async def test_files_are_numbered_without_gaps_and_name_what_they_do() -> None:
    names = [migration.name for migration in known_migrations()]
    assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))
    assert all(re.fullmatch(r"\d{4}_[a-z_]+", name) for name in names)


async def test_replicas_that_migrate_at_once_take_turns(empty_database_dsn: str) -> None:
    runs = await asyncio.gather(*(migrate(empty_database_dsn) for _ in range(4)))
    assert sorted(name for run in runs for name in run) == [migration.name for migration in known_migrations()]


async def test_a_new_file_is_applied_alone(empty_database_dsn: str, folder: Path) -> None:
    assert await migrate(empty_database_dsn, folder=folder) == ["0001_first", "0002_second"]
    (folder / "0003_third.sql").write_text("INSERT INTO public.a VALUES (3)")
    assert await pending(empty_database_dsn, folder=folder) == ["0003_third"]
    assert await migrate(empty_database_dsn, folder=folder) == ["0003_third"]
    assert await column(empty_database_dsn, "SELECT n FROM public.a ORDER BY n") == [1, 3]


async def test_a_migration_that_fails_changes_nothing_and_those_before_it_stay(
    empty_database_dsn: str, folder: Path
) -> None:
    (folder / "0003_third.sql").write_text("INSERT INTO public.b VALUES (1); SELECT 1 / 0; SELECT 2")
    with pytest.raises(GatewayFault, match="Migration 0003_third failed, and changed nothing: division by zero"):
        await migrate(empty_database_dsn, folder=folder)
    assert await column(empty_database_dsn, "SELECT n FROM public.a") == [1]
    assert await column(empty_database_dsn, "SELECT n FROM public.b") == []
    (folder / "0003_third.sql").write_text("INSERT INTO public.b VALUES (2)")
    assert await migrate(empty_database_dsn, folder=folder) == ["0003_third"]


async def test_a_newer_database_is_refused(empty_database_dsn: str, folder: Path) -> None:
    (folder / "0009_later.sql").write_text("SELECT 1")
    await migrate(empty_database_dsn, folder=folder)
    (folder / "0009_later.sql").unlink()
    for refuse in (migrate, pending):
        with pytest.raises(GatewayFault) as caught:
            await refuse(empty_database_dsn, folder=folder)
        assert caught.value.message == (
            "The database is at migration 0009, this version knows 0002. "
            "Upgrade Strata, or restore the backup from before."
        )
        assert caught.value.code == "gateway_config"


async def test_a_migration_of_somebody_elses_is_refused(empty_database_dsn: str, folder: Path) -> None:
    await migrate(empty_database_dsn, folder=folder)
    (folder / "0001_first.sql").unlink()
    with pytest.raises(GatewayFault, match="has a migration 0001_first that this version does not know"):
        await migrate(empty_database_dsn, folder=folder)


async def test_a_file_that_was_changed_afterwards_is_refused(empty_database_dsn: str, folder: Path) -> None:
    await migrate(empty_database_dsn, folder=folder)
    (folder / "0001_first.sql").write_text("CREATE TABLE public.other (n int)")
    with pytest.raises(GatewayFault, match="Migration 0001_first was changed after it was applied"):
        await migrate(empty_database_dsn, folder=folder)


async def test_an_owner_who_is_no_superuser_can_migrate_and_serve(postgres_server: str) -> None:
    """As on a hosted Postgres: a login that owns its database and may create roles."""
    await run_sql(
        postgres_server,
        "DROP ROLE IF EXISTS hosted",
        "CREATE ROLE hosted LOGIN CREATEROLE PASSWORD 'hosted'",
        "CREATE DATABASE hosted OWNER hosted",
        # the role is the server's, and may be there from another database
        "DO $$ BEGIN IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'strata_app')"
        " THEN GRANT strata_app TO hosted; END IF; END $$",
    )
    credentials = postgres_server[: postgres_server.index("@")]
    dsn = postgres_server.replace(credentials, "postgresql://hosted:hosted").replace("/postgres?", "/hosted?")
    assert await migrate(dsn) == [migration.name for migration in known_migrations()]
    database = Database(dsn)
    await database.open()
    row = await database.fetchrow("SELECT current_user::text, session_user::text")
    assert row is not None and tuple(row) == ("strata_app", "hosted")
    await database.close()
    await run_sql(postgres_server, "DROP DATABASE hosted WITH (FORCE)", "DROP ROLE hosted")


async def test_an_owner_with_too_few_rights_is_told_which(postgres_server: str) -> None:
    await run_sql(
        postgres_server, "CREATE ROLE poor LOGIN PASSWORD 'poor'", "CREATE DATABASE poor OWNER poor"
    )  # fmt: skip
    credentials = postgres_server[: postgres_server.index("@")]
    dsn = postgres_server.replace(credentials, "postgresql://poor:poor").replace("/postgres?", "/poor?")
    with pytest.raises(GatewayFault, match="must own the database and have CREATEROLE"):
        await migrate(dsn)
    await run_sql(postgres_server, "DROP DATABASE poor WITH (FORCE)", "DROP ROLE poor")


async def test_an_owner_of_nothing_is_told_what_is_needed(postgres_server: str) -> None:
    await run_sql(postgres_server, "CREATE ROLE nobodys LOGIN PASSWORD 'nobodys'", "CREATE DATABASE somebodys")
    credentials = postgres_server[: postgres_server.index("@")]
    dsn = postgres_server.replace(credentials, "postgresql://nobodys:nobodys").replace("/postgres?", "/somebodys?")
    for prepare in (None, "CREATE TABLE public.strata_migrations (name text, sha256 text)"):
        if prepare is not None:
            await run_sql(postgres_server.replace("/postgres?", "/somebodys?"), prepare)
            with pytest.raises(GatewayFault, match="must own the database and have CREATEROLE"):
                await pending(dsn)
        with pytest.raises(GatewayFault, match="must own the database and have CREATEROLE"):
            await migrate(dsn)
    await run_sql(postgres_server, "DROP DATABASE somebodys WITH (FORCE)", "DROP ROLE nobodys")


@pytest.mark.parametrize(
    ("setting", "said"),
    [("sslmode=maybe", "`sslmode` parameter must be one of"), ("schema=public", 'configuration parameter "schema"')],
)
async def test_a_setting_that_postgres_does_not_take_is_named(setting: str, said: str, empty_database_dsn: str) -> None:
    dsn = f"{empty_database_dsn}{'&' if '?' in empty_database_dsn else '?'}{setting}"
    with pytest.raises(Refused, match=f"DATABASE_URL has a setting that Postgres does not take .*{said}"):
        await migrate(dsn)
    database = Database(dsn)
    with pytest.raises(Refused, match=said):
        await database.open()
    await database.close()


async def test_a_database_that_is_away_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        await migrate(f"postgresql://nobody@/nothing?host={tmp_path}")


class Silent:
    """Stands before a Postgres, and passes nothing on any more once a client has said `word`."""

    def __init__(self, dsn: str, folder: Path, word: bytes) -> None:
        place = parse_qs(urlsplit(dsn).query)["host"][0]
        self.behind = f"{place}/.s.PGSQL.5432"
        self.here = folder / ".s.PGSQL.5432"
        self.dsn = dsn.replace(place, str(folder))
        self.fell_silent = asyncio.Event()
        self._word = word
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Silent:
        self._server = await asyncio.start_unix_server(self._serve, self.here)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, to_it = await asyncio.open_unix_connection(self.behind)
        for source, target in ((reader, to_it), (behind, writer)):
            self._tasks.add(asyncio.create_task(self._pass_on(source, target)))

    async def _pass_on(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while (data := await source.read(65_536)) and not self.fell_silent.is_set():
                if self._word in data:
                    self.fell_silent.set()
                    await asyncio.Event().wait()
                target.write(data)
        finally:
            target.close()


async def test_a_postgres_that_falls_silent_is_given_up(
    empty_database_dsn: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "STATEMENT_SECONDS", 0.2)
    async with Silent(empty_database_dsn, folder, b"strata_migrations") as silent, asyncio.timeout(10):
        with pytest.raises(Unavailable):
            await migrate(silent.dsn, folder=folder)
    assert len(await migrate(empty_database_dsn, folder=folder)) == 2


async def test_whoever_stops_does_not_wait_for_a_postgres_that_fell_silent(
    empty_database_dsn: str, folder: Path
) -> None:
    async with Silent(empty_database_dsn, folder, b"INSERT INTO public.a") as silent:
        migrating = asyncio.create_task(migrate(silent.dsn, folder=folder))
        await silent.fell_silent.wait()
        migrating.cancel()
        done, _ = await asyncio.wait({migrating}, timeout=5)
        assert done


def test_a_gateway_says_in_one_line_why_it_cannot_use_its_database(empty_database_dsn: str, tmp_path: Path) -> None:
    stranger = Gateway(tmp_path / "stranger", database_url=re.sub(r"://[^@]*@", "://strata:wrong@", empty_database_dsn))
    stranger.serve_for(seconds=3)
    assert "The operator can check DATABASE_URL" in stranger.log.read_text()
    asyncio.run(migrate(empty_database_dsn))
    asyncio.run(run_sql(empty_database_dsn, "INSERT INTO public.strata_migrations VALUES ('9999_later', '')"))
    older = Gateway(tmp_path / "older", database_url=empty_database_dsn)
    older.serve_for(seconds=3)
    assert "Upgrade Strata, or restore the backup" in older.log.read_text()
    assert "Traceback" not in older.log.read_text()
