"""
Brings a database to this version's schema: plain SQL files in the order of their names, forward only.

A migration must run under the release before it too, so that replicas can be replaced one by one; what it makes
superfluous is dropped in the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import asyncpg

from proxy.errors import GatewayFault
from proxy.storage.address import read_address
from proxy.storage.postgres import translate

CONNECT_SECONDS = 5.0
STATEMENT_SECONDS = 15.0
TURN_SECONDS = 120.0
APPLY_SECONDS = 3_600.0
"""A migration may have to rewrite a table; a server that has gone silent meanwhile is given up after so long."""
ONE_AT_A_TIME = 0x5354_5241_5441

CREATE_LIST = """
    CREATE TABLE IF NOT EXISTS public.strata_migrations (
        name        text PRIMARY KEY,
        sha256      text NOT NULL,
        applied_at  timestamptz NOT NULL DEFAULT now()
    )
"""
LIST_EXISTS = "SELECT to_regclass('public.strata_migrations') IS NOT NULL"
READ_LIST = "SELECT name, sha256 FROM public.strata_migrations ORDER BY name"
RECORD = "INSERT INTO public.strata_migrations (name, sha256) VALUES ($1, $2)"
TAKE_TURN = "SELECT pg_advisory_xact_lock($1)"


class Migration(NamedTuple):
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def known_migrations(folder: Path | None = None) -> list[Migration]:
    """Those of this version: from the wheel, or from the repository."""
    if folder is None:
        carried = Path(__file__).parent / "migrations"
        folder = carried if carried.is_dir() else Path(__file__).parents[2] / "migrations"
    return [Migration(path.stem, path.read_text(encoding="utf-8")) for path in sorted(folder.glob("[0-9]*.sql"))]


async def migrate(owner_dsn: str, *, folder: Path | None = None) -> list[str]:
    """
    Applies what is missing, each file in a transaction. Several may call it at once: they take turns, and each returns
    the names that it applied itself. GatewayFault: the database is newer than we are, or one of its migrations is not
    the file we know.
    """
    applied: list[str] = []
    known = known_migrations(folder)
    async with _owner(owner_dsn) as connection:
        while True:
            # One transaction each, and the turn is its own: behind a pooler, that is all that a session is good for
            async with _transaction(connection):
                await connection.execute(TAKE_TURN, ONE_AT_A_TIME, timeout=TURN_SECONDS)
                await connection.execute(CREATE_LIST)
                missing = _missing(known, await connection.fetch(READ_LIST))
                if not missing:
                    return applied
                await _apply(connection, missing[0])
            applied.append(missing[0].name)


async def pending(owner_dsn: str, *, folder: Path | None = None) -> list[str]:
    """Names that `migrate` would apply, without touching anything; the same GatewayFaults."""
    async with _owner(owner_dsn) as connection:
        listed = await connection.fetch(READ_LIST) if await connection.fetchval(LIST_EXISTS) else []
    return [migration.name for migration in _missing(known_migrations(folder), listed)]


def _missing(known: list[Migration], applied: list[asyncpg.Record]) -> list[Migration]:
    ours = {migration.name: migration for migration in known}
    for row in applied:
        name = row["name"]
        if name not in ours:
            newest = max(ours, default="0000")
            raise _fault(
                f"The database is at migration {_number(applied[-1]['name'])}, this version knows {_number(newest)}. "
                "Upgrade Strata, or restore the backup from before."
                if name > newest
                else f"The database has a migration {name} that this version does not know. Use the Strata it is from."
            )
        if row["sha256"] != ours[name].sha256:
            raise _fault(f"Migration {name} was changed after it was applied. Restore the file, and add a new one.")
    done = {row["name"] for row in applied}
    return [migration for migration in known if migration.name not in done]


async def _apply(connection: asyncpg.Connection[asyncpg.Record], migration: Migration) -> None:
    try:
        await connection.execute(migration.sql, timeout=APPLY_SECONDS)
        await connection.execute(RECORD, migration.name, migration.sha256)
    except asyncpg.InsufficientPrivilegeError as error:
        raise _too_few_rights(f"Migration {migration.name}", error) from error
    except asyncpg.PostgresError as error:
        ours = translate(error)
        raise ours or _fault(f"Migration {migration.name} failed, and changed nothing: {error}") from error


@contextlib.asynccontextmanager
async def _owner(dsn: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    """A connection as the schema's owner, without the pool's role and time limits."""
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            address = read_address(dsn)
            connection = await asyncpg.connect(
                address.dsn,
                server_settings={"application_name": "strata migrate"},
                statement_cache_size=0 if address.pooled else 100,
                command_timeout=STATEMENT_SECONDS,
            )
        try:
            yield connection
        finally:
            connection.terminate()
    except asyncpg.InsufficientPrivilegeError as error:
        raise _too_few_rights("The list of migrations", error) from error
    except Exception as error:
        ours = translate(error)
        if ours is None:
            raise
        raise ours from error


@contextlib.asynccontextmanager
async def _transaction(connection: asyncpg.Connection[asyncpg.Record]) -> AsyncIterator[None]:
    """If it fails, the connection ends, which rolls back too: a ROLLBACK would wait for a server that may be silent."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        yield
    except BaseException:
        connection.terminate()
        raise
    await transaction.commit()


def _number(name: str) -> str:
    return name.split("_")[0]


def _too_few_rights(what: str, error: asyncpg.InsufficientPrivilegeError) -> GatewayFault:
    return _fault(
        f"{what} needs more rights ({error}). The login of DATABASE_URL must own the database and have CREATEROLE, or "
        "the role strata_app must be there and granted to it."
    )


def _fault(message: str) -> GatewayFault:
    return GatewayFault(message, code="gateway_config", error_type="gateway_config")
