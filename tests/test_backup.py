"""The backup of docs/deploy.md: its own commands, with real programs, to a new server and over the old one."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from proxy.storage import embedded
from proxy.storage.binaries import find_binaries
from proxy.storage.embedded import EmbeddedPostgres
from proxy.storage.migrations import known_migrations, migrate
from proxy.storage.postgres import Database
from tests.conftest import lack, on_database, run_sql, scratch_folder
from tests.gateway import ROOT
from tests.test_row_level_security import KEY, ROWS, TEAM, USER

PREFIX = "docker compose exec -T postgres "
LOGIN = "a-password-of-the-tests"
TABLES = """
    SELECT c.relname FROM pg_catalog.pg_class c
    WHERE c.relnamespace = 'strata'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
"""


class Server(NamedTuple):
    """As the one of compose.yaml after its first start."""

    dsn: str
    """The superuser's."""

    @property
    def login(self) -> str:
        """The gateway's."""
        return f"postgresql://strata:{LOGIN}@{on_database(self.dsn, 'strata').partition('@')[2]}"

    def run(self, *command: str | Path, **options: object) -> None:
        place = urlsplit(self.dsn)
        environ = {
            **os.environ,
            "PATH": f"{find_binaries(None)}:{os.environ['PATH']}",
            "PGHOST": parse_qs(place.query)["host"][0],
            "PGPASSWORD": place.password or "",
            "STRATA_DATABASE_PASSWORD": LOGIN,
            "GRAFANA_DATABASE_PASSWORD": LOGIN,
        }
        done = subprocess.run(command, env=environ, stderr=subprocess.PIPE, timeout=120, **options)  # type: ignore[call-overload]
        assert done.returncode == 0, done.stderr.decode()

    async def counts(self) -> dict[str, int]:
        connection = await asyncpg.connect(on_database(self.dsn, "strata"), timeout=10)
        names = [row["relname"] for row in await connection.fetch(TABLES)]
        found = {name: await connection.fetchval(f"SELECT count(*) FROM strata.{name}") for name in names}
        await connection.close(timeout=5)
        return found


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Server, Server]]:
    monkeypatch.setattr(embedded, "OWNER", "postgres")  # as in the image
    if not all((find_binaries(None) / program).exists() for program in ("psql", "pg_dump", "pg_restore")):
        lack("psql, pg_dump and pg_restore are not installed beside the Postgres of the tests")
    homes = [scratch_folder(), scratch_folder()]
    running = [EmbeddedPostgres(home / "home") for home in homes]
    try:
        first, second = (Server(postgres.start()) for postgres in running)
        for server in (first, second):
            logins = ROOT / "grafana/postgres/logins.sql"
            server.run("psql", "-U", "postgres", "--no-psqlrc", "-v", "ON_ERROR_STOP=1", "-qf", logins)
        yield first, second
    finally:
        for postgres, home in zip(running, homes, strict=True):
            postgres.stop()
            shutil.rmtree(home)


def command_of(program: str) -> tuple[list[str], str]:
    """The words of the page's command, and the direction of its file."""
    lines = (ROOT / "docs/deploy.md").read_text().splitlines()
    found = [line.strip().removeprefix(PREFIX) for line in lines if line.strip().startswith(f"{PREFIX}{program} ")]
    assert len(found) == 1
    *words, file = shlex.split(found[0])
    assert file.lstrip("<>") == "strata.dump"
    return words, file[0]


async def test_a_backup_brings_back_every_row_and_right_on_a_new_server_and_over_an_old_one(
    servers: tuple[Server, Server], tmp_path: Path
) -> None:
    first, second = servers
    names = [migration.name for migration in known_migrations()]
    assert await migrate(first.login) == names
    statements = [ROWS.format(who=who, team=TEAM[who], user=USER[who], key=KEY[who]) for who in "ab"]
    await run_sql(first.login, *statements)
    kept = await first.counts()
    assert kept["usage"] == kept["keys"] == 2
    dump, restore = command_of("pg_dump"), command_of("pg_restore")
    assert (dump[1], restore[1]) == (">", "<")
    with (tmp_path / "dump").open("wb") as file:
        await asyncio.to_thread(first.run, *dump[0], stdout=file)

    assert await migrate(second.login) == names
    await run_sql(first.login, "INSERT INTO strata.teams (name) VALUES ('after the backup')")
    for server in (second, first):
        with (tmp_path / "dump").open("rb") as file:
            await asyncio.to_thread(server.run, *restore[0], stdin=file)
        assert await server.counts() == kept
        assert await migrate(server.login) == []
        database = Database(server.login)
        await database.open()
        assert len(await database.fetch("SELECT FROM strata.bound_keys")) == 2
        await database.execute("SELECT strata.make_partitions(6)")
        await database.close()
        place = server.login.replace("//strata:", "//strata_grafana:", 1)
        reader = await asyncpg.connect(place, timeout=10)
        assert len(await reader.fetch("SELECT * FROM grafana.usage")) == 2
        await reader.close(timeout=5)
