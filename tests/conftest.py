"""
What the tests share: a real Postgres for the session, a fresh migrated database for each test that asks, and programs.

A test that lacks a program says so and is skipped; with STRATA_CI=1 it fails instead, since CI has all of them.
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from hypothesis import settings

from proxy.errors import GatewayFault
from proxy.storage.embedded import EmbeddedPostgres
from proxy.storage.migrations import migrate
from proxy.storage.postgres import Database

# A busy machine is slow; that is no failure of a property.
settings.register_profile("strata", deadline=None)
settings.load_profile("strata")

PROGRAMS = {
    "chromium": ("chromium", "chromium-browser", "google-chrome"),
    "nginx": ("nginx", "/usr/sbin/nginx"),
    "pgbouncer": ("pgbouncer", "/usr/sbin/pgbouncer"),
    "node": ("node", "nodejs"),
    "prometheus": ("prometheus",),
    "promtool": ("promtool",),
    "redis-server": ("redis-server",),
}
TEMPLATE = "strata_template"
_numbers = itertools.count(1)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(program): skip where this program is not installed")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        for program in mark.args:
            needs(program)


def lack(reason: str) -> None:
    """Skips the test, or fails it where nothing may be lacking."""
    if os.environ.get("STRATA_CI") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def needs(program: str) -> str:
    """The program's path: `nginx = needs("nginx")`, with `from tests.conftest import needs`."""
    for name in PROGRAMS.get(program, (program,)):
        path = shutil.which(name)
        if path:
            return path
    lack(f"{program} is not installed")
    raise AssertionError("not reached")


def needs_module(name: str, extra: str) -> Any:
    """The module; without it the file that asks is skipped, or cannot be imported where nothing may be lacking."""
    if os.environ.get("STRATA_CI") == "1":
        return importlib.import_module(name)
    reason = f"{name} is not installed: it comes with pip install -e '.[{extra}]'"
    return pytest.importorskip(name, reason=reason, exc_type=ImportError)


def scratch_folder() -> Path:
    """A new private folder with a short path (a socket fits), in memory where there is room."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2_000_000_000
    return Path(tempfile.mkdtemp(prefix="strata-test-", dir=memory if roomy else "/tmp"))


def on_database(dsn: str, database: str) -> str:
    """The same server and login, another database."""
    return urlunsplit(urlsplit(dsn)._replace(path=f"/{database}"))


async def run_sql(dsn: str, *statements: str) -> None:
    """As the owner, on a connection of its own."""
    connection = await asyncpg.connect(dsn, timeout=10)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close(timeout=5)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The owner's DSN of a server that the session shares."""
    home = scratch_folder()
    server = EmbeddedPostgres(home / "home")
    try:
        dsn = server.start()
    except GatewayFault as fault:
        if "pip install" not in fault.message:
            raise
        lack(fault.message)
    yield dsn
    server.stop()
    shutil.rmtree(home)


@pytest.fixture(scope="session")
def migrated_template(postgres_server: str) -> str:
    """The owner's DSN of a migrated database that new ones are copied from. Nothing connects to it."""
    asyncio.run(run_sql(postgres_server, f"CREATE DATABASE {TEMPLATE}"))
    asyncio.run(migrate(on_database(postgres_server, TEMPLATE)))
    return postgres_server


@pytest.fixture
def empty_database_dsn(postgres_server: str) -> Iterator[str]:
    """The owner's DSN of a fresh database without our schema."""
    name = f"empty_{next(_numbers)}"
    asyncio.run(run_sql(postgres_server, f"CREATE DATABASE {name}"))
    yield on_database(postgres_server, name)
    asyncio.run(run_sql(postgres_server, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def database_dsn(migrated_template: str) -> Iterator[str]:
    """The owner's DSN of a fresh, migrated database."""
    name = f"test_{next(_numbers)}"
    asyncio.run(run_sql(migrated_template, f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}"))
    yield on_database(migrated_template, name)
    asyncio.run(run_sql(migrated_template, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
async def db(database_dsn: str) -> AsyncIterator[Database]:
    """The gateway's own view of that database: an open pool, as strata_app."""
    database = Database(database_dsn)
    await database.open()
    yield database
    await database.close()
