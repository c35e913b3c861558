"""
How a command reaches the data, whether or not the gateway runs: the configured database, else the embedded one of the
running gateway, else the embedded one, started for the moment.
"""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from proxy.config import Config
from proxy.storage.embedded import connect_or_start
from proxy.storage.migrations import migrate
from proxy.storage.postgres import Database, Unavailable

T = TypeVar("T")


@contextmanager
def owner_dsn(config: Config, home: Path) -> Iterator[str]:
    """The address of the database, with the rights of its owner, for as long as the block lasts."""
    if config.database.url is not None:
        yield config.database.url.reveal()
        return
    with connect_or_start(home) as dsn:
        yield dsn


def run(config: Config, home: Path, work: Callable[[Database], Awaitable[T]]) -> T:
    """Does the work with a database that is migrated (if the configuration lets us). Raises GatewayError."""

    async def connected(dsn: str) -> T:
        if config.database.auto_migrate:
            await migrate(dsn)
        database = Database(dsn, size=1)
        await database.open()
        try:
            return await work(database)
        finally:
            await database.close()

    with owner_dsn(config, home) as dsn:
        return _run(connected(dsn))


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(work)
    except Unavailable as away:
        if type(away) is not Unavailable:
            raise
        raise Unavailable(
            "The database cannot be reached at the moment. See whether it runs, and what DATABASE_URL says."
        ) from away


def operator() -> str:
    """Who runs the command, for the audit log."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):  # a container's user may have no name
        return "cli"


def apply_migrations(config: Config, home: Path) -> list[str]:
    """The names of the migrations that were applied."""
    with owner_dsn(config, home) as dsn:
        return _run(migrate(dsn))
