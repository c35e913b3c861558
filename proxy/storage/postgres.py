"""
A bounded pool of connections to Postgres. Every wait has a limit, and this is where asyncpg's errors become ours.

Postgres may be away at any time, at start too: a call then raises `Unavailable`, and the next one tries again. Errors
of a statement itself (a broken constraint) pass as they are, to the module that knows what they mean.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Literal, TypeAlias, TypeVar

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from proxy.errors import GatewayFault
from proxy.exchange import Caller
from proxy.storage.address import read_address

log = logging.getLogger("strata.storage")

CONNECT_SECONDS = 3.0
RELEASE_SECONDS = 1.0
LISTEN_PROBE_SECONDS = 15.0
LISTEN_RETRY_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
STATEMENTS_KEPT = 100
NAME = {"application_name": "strata"}
SETTINGS = {
    "search_path": "strata, pg_temp",
    # Backstops in the server: a worker that hangs or is cut off must not hold a budget's row for ever.
    "statement_timeout": "'15s'",
    "idle_in_transaction_session_timeout": "'15s'",
}
"""Set by statements: a pooler refuses to start a session with them."""

WHO_AM_I = "SELECT rolname, rolsuper, rolbypassrls FROM pg_catalog.pg_roles WHERE rolname = current_user"
PROBE = "SELECT 1"
BECOME_PERSON = "SET LOCAL ROLE strata_person"
SAY_WHO = """
    SELECT set_config('strata.role', $1, true), set_config('strata.user_id', $2, true),
        set_config('strata.team_id', $3, true), set_config('strata.key_id', $4, true)
"""
"""What the policies of migration 0006 read; gone with the transaction."""

Operation = Literal["read", "write", "transaction", "keys", "lease", "ship", "history"]
"""What calls are told apart by where their time is measured."""

T = TypeVar("T")
Connection: TypeAlias = "PoolConnectionProxy[asyncpg.Record]"


class Unavailable(GatewayFault):
    """503. Postgres is away, busy or too slow. What was asked may or may not have happened: ask again."""

    def __init__(self, message: str = "The database cannot be reached at the moment; try again in a second.") -> None:
        super().__init__(message, code="db_unavailable", headers={"retry-after": "1"})


class Refused(Unavailable):
    """503, too; asking again helps only once somebody has changed something there, or in DATABASE_URL."""


AWAY: tuple[type[BaseException], ...] = (
    OSError,  # TimeoutError is one of them
    asyncpg.PostgresConnectionError,
    asyncpg.InternalClientError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.InsufficientResourcesError,  # 53…: too many connections, out of memory, disk full
    asyncpg.QueryCanceledError,  # our statement_timeout, or an operator
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.LockNotAvailableError,
    asyncpg.TransactionRollbackError,  # 40…: deadlock, serialization
    asyncpg.ReadOnlySQLTransactionError,  # a failover left us on the replica
    asyncpg.InvalidAuthorizationSpecificationError,  # 28…, wrong password included
    asyncpg.InvalidCatalogNameError,
)
REFUSED_LOGIN = (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError)
LOST_STATEMENT = (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError)
OUTDATED_PLAN = (asyncpg.InvalidCachedStatementError, asyncpg.OutdatedSchemaCacheError)


def translate(error: BaseException) -> GatewayFault | None:
    """Ours for asyncpg's; None: it is about the statement, and passes."""
    if isinstance(error, REFUSED_LOGIN):
        return Refused("The database refuses the gateway's login. The operator can check DATABASE_URL.")
    if isinstance(error, asyncpg.ClientConfigurationError | asyncpg.UndefinedObjectError):
        said = str(error).partition("\n")[0]
        if "parameter" in said:  # other messages may quote the address
            return Refused(
                f"DATABASE_URL has a setting that Postgres does not take ({said}). The operator can check it."
            )
        is_address = isinstance(error, asyncpg.ClientConfigurationError)
        return Refused("DATABASE_URL is no address. The operator can check it.") if is_address else None
    if isinstance(error, AWAY):
        return Unavailable()
    if isinstance(error, asyncpg.InterfaceError) and not isinstance(error, asyncpg.DataError):
        # One class for "the pool is closed" and for calls with the wrong number of arguments; the latter are bugs.
        return Unavailable() if "clos" in str(error) or "terminated" in str(error) else None
    if isinstance(error, OUTDATED_PLAN):
        return Unavailable("The database's schema has just changed; try again.")
    if isinstance(error, LOST_STATEMENT):
        return _pooler_fault()
    if isinstance(error, asyncpg.InsufficientPrivilegeError | asyncpg.InvalidParameterValueError):
        text = str(error)
        if 'role "' in text or '"role"' in text or "set role" in text:
            return _config_fault(f"The database login may not act as strata_app ({text}). Run: strata migrate")
    return None


def _config_fault(message: str) -> GatewayFault:
    return GatewayFault(message, code="gateway_config", error_type="gateway_config")


def _pooler_fault() -> GatewayFault:
    return _config_fault(
        "A pooler before the database hands each transaction to another session. Say so in DATABASE_URL: add "
        "?pgbouncer=true to it."
    )


async def assert_role(connection: asyncpg.Connection[asyncpg.Record] | Connection, role: str | None = None) -> None:
    """
    GatewayFault if this connection's role is not the one that it was given, or passes by row-level security; run on
    every new connection.
    """
    row = await connection.fetchrow(WHO_AM_I, timeout=CONNECT_SECONDS)
    if row is not None and role not in (None, row["rolname"]):
        raise _pooler_fault()  # another session has taken the role
    if row is None or row["rolsuper"] or row["rolbypassrls"]:
        name = row["rolname"] if row else "?"
        raise _config_fault(
            f'The database role "{name}" bypasses row-level security. Serve as strata_app, which strata migrate makes, '
            "or as another role that is neither SUPERUSER nor BYPASSRLS."
        )


def _terminate(connection: Connection) -> None:
    # One that has closed by itself is the pool's again already, and says so.
    with contextlib.suppress(asyncpg.InterfaceError):
        connection.terminate()


async def _keep_session(_: object) -> None:
    """Instead of asyncpg's reset on every release, a round trip: what we set, we set for a transaction only."""


class Database:
    """
    A pool of at most `size` connections. `role`: whom they act as; None for the login's own, which must be as harmless.
    `listen_dsn`: where notices are heard, if not there: behind a pooler by the transaction none are.
    """

    def __init__(
        self, dsn: str, *, size: int = 4, role: str | None = "strata_app", listen_dsn: str | None = None
    ) -> None:
        self._dsn, self._pooled = read_address(dsn)
        self._listen_at = read_address(listen_dsn or dsn)
        self._size = size
        self._role = role
        settings = SETTINGS if role is None else {**SETTINGS, "role": '"{}"'.format(role.replace('"', '""'))}
        self._session_settings = "; ".join(f"SET {name} = {value}" for name, value in settings.items())
        self._local_settings = "; ".join(f"SET LOCAL {name} = {value}" for name, value in settings.items())
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._listeners: list[asyncio.Task[None]] = []
        self._up = False
        self.observe: Callable[[str, float], None] = lambda op, seconds: None
        """Hears how long each call took, the wait for a connection included."""
        self.listen_failures_total = 0
        """Connections for notices that ended, or did not come about."""

    @property
    def up(self) -> bool:
        """Whether the last call reached Postgres."""
        return self._up

    @property
    def connections(self) -> tuple[int, int]:
        """How many are idle, and how many are used."""
        if self._pool is None:
            return 0, 0
        idle = self._pool.get_idle_size()
        return idle, self._pool.get_size() - idle

    async def open(self) -> None:
        """Tries to connect. Unavailable if that fails now; the pool then comes up with the first call that succeeds."""
        if self._pool is None:
            self._pool = await asyncpg.create_pool(
                self._dsn,
                min_size=0,
                max_size=self._size,
                timeout=CONNECT_SECONDS,
                server_settings=NAME,
                statement_cache_size=0 if self._pooled else STATEMENTS_KEPT,
                init=self._begin_session,
                reset=_keep_session,
            )
        await self.execute(PROBE, timeout_seconds=CONNECT_SECONDS + 1.0)

    async def close(self) -> None:
        """Ends listeners and connections; those in use get a moment."""
        for task in self._listeners:
            task.cancel()
        await asyncio.gather(*self._listeners, return_exceptions=True)
        self._listeners.clear()
        pool, self._pool = self._pool, None
        self._up = False
        if pool is not None:
            try:
                async with asyncio.timeout(RELEASE_SECONDS):
                    await pool.close()
            except AWAY:
                pool.terminate()

    async def fetch(
        self, sql: str, *args: Any, timeout_seconds: float = 2.0, op: Operation = "read"
    ) -> list[asyncpg.Record]:
        return await self._call(lambda connection: connection.fetch(sql, *args), timeout_seconds, op)

    async def fetchrow(
        self, sql: str, *args: Any, timeout_seconds: float = 2.0, op: Operation = "read"
    ) -> asyncpg.Record | None:
        return await self._call(lambda connection: connection.fetchrow(sql, *args), timeout_seconds, op)

    async def execute(self, sql: str, *args: Any, timeout_seconds: float = 2.0, op: Operation = "write") -> str:
        """The command's tag, such as `UPDATE 1`."""
        return await self._call(lambda connection: connection.execute(sql, *args), timeout_seconds, op)

    @contextlib.asynccontextmanager
    async def transaction(
        self, *, timeout_seconds: float = 5.0, op: Operation = "transaction"
    ) -> AsyncIterator[Connection]:
        """One transaction, bounded as a whole; commits at the end of the block, rolls back when it raises."""
        began = time.monotonic()
        try:
            async with self._transaction(timeout_seconds) as connection:
                yield connection
        finally:
            self.observe(op, time.monotonic() - began)

    @contextlib.asynccontextmanager
    async def _transaction(self, timeout_seconds: float) -> AsyncIterator[Connection]:
        async with self._connection(timeout_seconds) as connection:
            transaction = connection.transaction()
            await transaction.start()
            try:
                if self._pooled:
                    await connection.execute(self._local_settings)
                yield connection
            except asyncio.CancelledError:
                # Ends the connection, which rolls back too: a ROLLBACK would wait for a server that may be silent.
                raise
            except BaseException:
                try:
                    await transaction.rollback()
                except Exception:
                    # No connection goes back into the pool with a transaction open.
                    _terminate(connection)
                raise
            else:
                await transaction.commit()

    @contextlib.asynccontextmanager
    async def acting_as(self, caller: Caller, *, timeout_seconds: float = 5.0) -> AsyncIterator[Connection]:
        """
        A transaction in which row-level security lets through what this caller may see and change, and nothing else.
        The only way in which a page reads or writes on somebody's behalf.
        """
        async with self.transaction(timeout_seconds=timeout_seconds) as connection:
            await connection.execute(BECOME_PERSON)
            if caller.role == "key":
                # Not what its user may: a key that leaks must not show its owner's other keys
                await connection.execute(SAY_WHO, caller.role, "", "", caller.key_id)
            else:
                await connection.execute(SAY_WHO, caller.role, caller.user_id or "", caller.team_id or "", "")
            yield connection

    async def listen(self, channel: str, on_notice: Callable[[str], None]) -> None:
        """
        Calls `on_notice(payload)` for each NOTIFY on `channel`, and `on_notice("")` after every connect: whatever was
        said before it is lost, so read afresh. Goes on until `close`, over a connection of its own. Where no notice can
        be heard, that is all: whoever listens must look now and then.
        """
        if self._listen_at.pooled:
            log.warning("a pooler stands before the database: %s are noticed by looking now and then", channel)
            on_notice("")
            return
        self._listeners.append(asyncio.create_task(self._keep_listening(channel, on_notice), name=f"listen {channel}"))

    async def _call(self, call: Callable[[Connection], Awaitable[T]], timeout_seconds: float, op: Operation) -> T:
        began = time.monotonic()
        try:
            return await self._call_once_or_twice(call, timeout_seconds)
        finally:
            self.observe(op, time.monotonic() - began)

    async def _call_once_or_twice(self, call: Callable[[Connection], Awaitable[T]], timeout_seconds: float) -> T:
        try:
            if self._pooled:
                async with self._transaction(timeout_seconds) as connection:
                    return await call(connection)
            async with self._connection(timeout_seconds, translated=False) as connection:
                return await call(connection)
        except OUTDATED_PLAN:
            # asyncpg has dropped the plan by now
            async with self._connection(timeout_seconds) as connection:
                return await call(connection)

    async def _begin_session(self, connection: asyncpg.Connection[asyncpg.Record] | Connection) -> None:
        if self._pooled:
            async with connection.transaction():
                await connection.execute(self._local_settings)
                await assert_role(connection, self._role)
            return
        await connection.execute(self._session_settings)
        await assert_role(connection, self._role)

    @contextlib.asynccontextmanager
    async def _connection(self, timeout_seconds: float, *, translated: bool = True) -> AsyncIterator[Connection]:
        if self._pool is None:
            raise Unavailable("The database pool is not open.")
        pool = self._pool
        try:
            async with asyncio.timeout(timeout_seconds):
                connection = await pool.acquire(timeout=timeout_seconds)
                try:
                    yield connection
                except (TimeoutError, asyncio.CancelledError):
                    # In the middle of something: asking a silent server to cancel it would be one more unbounded wait.
                    _terminate(connection)
                    raise
                finally:
                    await pool.release(connection, timeout=RELEASE_SECONDS)
        except Exception as error:
            ours = translate(error) if translated or not isinstance(error, OUTDATED_PLAN) else None
            if isinstance(ours, Unavailable):
                if self._up:
                    log.warning("the database is away: %s", type(error).__name__)
                self._up = False
            if ours is None:
                raise
            raise ours from error
        if not self._up:
            log.info("the database is up")
        self._up = True

    async def _keep_listening(self, channel: str, on_notice: Callable[[str], None]) -> None:
        failures = 0
        while True:
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    connection = await asyncpg.connect(self._listen_at.dsn, server_settings=NAME)
                try:
                    await self._hear(connection, channel, on_notice)
                    failures = 0
                    self.listen_failures_total += 1
                finally:
                    connection.terminate()
            except Exception as error:
                pause_seconds = LISTEN_RETRY_SECONDS[min(failures, len(LISTEN_RETRY_SECONDS) - 1)]
                failures = failures + 1
                self.listen_failures_total += 1
                log.warning("not listening on %s (%s): again in %s s", channel, type(error).__name__, pause_seconds)
                await asyncio.sleep(pause_seconds)

    async def _hear(
        self, connection: asyncpg.Connection[asyncpg.Record], channel: str, on_notice: Callable[[str], None]
    ) -> None:
        """Returns when the connection has ended; a probe finds those that ended without a word."""
        ended = asyncio.Event()

        def heard(_connection: object, _pid: int, _channel: str, payload: object) -> None:
            tell(str(payload))

        def tell(payload: str) -> None:
            try:
                on_notice(payload)
            except Exception:
                log.exception("a notice on %s was not understood", channel)

        connection.add_termination_listener(lambda _: ended.set())
        async with asyncio.timeout(CONNECT_SECONDS):
            await connection.execute(self._session_settings)
            await assert_role(connection, self._role)
            await connection.add_listener(channel, heard)
        tell("")
        while not ended.is_set():
            try:
                async with asyncio.timeout(LISTEN_PROBE_SECONDS):
                    await ended.wait()
            except TimeoutError:
                async with asyncio.timeout(CONNECT_SECONDS):
                    await connection.execute(PROBE)
