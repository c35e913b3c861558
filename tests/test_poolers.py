"""Behind PgBouncer, by the session and by the transaction, as hosted databases offer it: the same, and nothing lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from proxy.errors import GatewayFault
from proxy.exchange import Budget, Caller
from proxy.storage import budgets
from proxy.storage.address import read_address
from proxy.storage.migrations import known_migrations, migrate
from proxy.storage.postgres import Database
from tests.conftest import needs, scratch_folder


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Relay(socketserver.ThreadingTCPServer):
    """The server's socket as a port: PgBouncer does not run as root, and nobody else may pass the server's folders."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, path: str) -> None:
        super().__init__(("127.0.0.1", 0), RelayHandler)
        self.path = path


class RelayHandler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, Relay)
        with socket.socket(socket.AF_UNIX) as there:
            there.connect(self.server.path)
            back = threading.Thread(target=pump, args=(there, self.request), daemon=True)
            back.start()
            pump(self.request, there)
            back.join(10)


def pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def pgbouncer(dsn: str, mode: str) -> Iterator[str]:
    """A pooler before this database; yields its DSN, without any word about poolers."""
    program = needs("pgbouncer")
    parts = urlsplit(dsn)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    folder, port = scratch_folder(), free_port()
    relay = Relay(f"{query['host']}/.s.PGSQL.{query.get('port', '5432')}")
    threading.Thread(target=relay.serve_forever, args=(0.05,), daemon=True).start()
    server = f"host=127.0.0.1 port={relay.server_address[1]} user={parts.username}"
    config = folder / "pgbouncer.ini"
    config.write_text(
        f"[databases]\n* = {server} password={unquote(parts.password or '')}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
        f"pool_mode = {mode}\ndefault_pool_size = 3\n"
    )
    config.chmod(0o644)
    folder.chmod(0o755)
    nobody = 65_534 if os.getuid() == 0 else None
    process = subprocess.Popen([program, "-q", config], user=nobody, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
            except OSError:
                assert process.poll() is None, "pgbouncer has ended"
                assert time.monotonic() < deadline, "pgbouncer does not listen"
                time.sleep(0.05)
            else:
                break
        yield f"postgresql://{parts.username}:x@127.0.0.1:{port}{parts.path}"
    finally:
        process.terminate()
        process.wait(10)
        relay.shutdown()
        relay.server_close()
        shutil.rmtree(folder)


@pytest.fixture(params=["session", "transaction"])
async def pooled(request: pytest.FixtureRequest, database_dsn: str) -> AsyncIterator[Database]:
    with pgbouncer(database_dsn, request.param) as dsn:
        told = f"{dsn}?pgbouncer=true" if request.param == "transaction" else dsn
        database = Database(told, size=3, listen_dsn=database_dsn)
        await database.open()
        yield database
        await database.close()


async def test_every_statement_acts_as_strata_app_whichever_session_it_gets(pooled: Database) -> None:
    sql = (
        "SELECT current_user AS who, current_setting('search_path') AS path, current_setting('statement_timeout') AS t"
    )

    async def ask(_: int) -> tuple[str, str, str]:
        row = await pooled.fetchrow(sql)
        assert row is not None
        return row["who"], row["path"], row["t"]

    answers = {answer for answer in await asyncio.gather(*map(ask, range(30)))}
    assert answers == {("strata_app", "strata, pg_temp", "15s")}


async def test_leases_are_taken_and_returned_by_many_at_once(pooled: Database) -> None:
    budget, worker = Budget("7b6a2c5e-0000-4000-8000-000000000001", "key", "k", 1_000), "0" * 32
    leases = await asyncio.gather(*(budgets.take_lease(pooled, budget, worker, 10, 10) for _ in range(20)))
    assert sum(lease.granted_nano_usd for lease in leases) == 200
    await budgets.return_lease(pooled, budget.id, leases[0].starts_at_ms, worker, 200)
    period = await budgets.read_period(pooled, budget)
    assert period is not None
    assert period.leased_nano_usd == 0


async def test_people_are_told_apart_from_transaction_to_transaction(pooled: Database) -> None:
    user_id = "7b6a2c5e-0000-4000-8000-0000000000aa"

    async def ask(number: int) -> tuple[str, str | None]:
        if number % 2:
            async with pooled.acting_as(Caller("", "", "", user_id=user_id, role="member")) as connection:
                return "person", await connection.fetchval("SELECT strata.person_id()::text")
        row = await pooled.fetchrow("SELECT strata.person_id()::text AS id")
        assert row is not None
        return "gateway", row["id"]

    assert set(await asyncio.gather(*map(ask, range(20)))) == {("person", user_id), ("gateway", None)}


async def test_notices_are_heard_at_the_databases_own_address(pooled: Database) -> None:
    heard: list[str] = []
    await pooled.listen("strata_budgets", heard.append)
    async with asyncio.timeout(20):
        while "" not in heard:
            await asyncio.sleep(0.01)
        await pooled.execute("SELECT pg_notify('strata_budgets', 'short a b')")
        while len(heard) < 2:
            await asyncio.sleep(0.01)
    assert heard == ["", "short a b"]


async def test_without_one_whoever_listens_is_told_to_look_once(database_dsn: str) -> None:
    with pgbouncer(database_dsn, "transaction") as dsn:
        database, heard = Database(f"{dsn}?pgbouncer=true"), list[str]()
        await database.open()
        await database.listen("strata_budgets", heard.append)
        assert heard == [""]
        await database.close()


async def test_migrations_run_through_a_pooler_too(empty_database_dsn: str) -> None:
    with pgbouncer(empty_database_dsn, "transaction") as dsn:
        runs = await asyncio.gather(*(migrate(f"{dsn}?pgbouncer=true") for _ in range(3)))
    assert sorted(name for run in runs for name in run) == [migration.name for migration in known_migrations()]


async def test_a_pooler_that_nobody_spoke_of_is_named_with_its_cure(database_dsn: str) -> None:
    with pgbouncer(database_dsn, "transaction") as dsn:
        database = Database(dsn, size=3)
        with pytest.raises(GatewayFault, match=r"add \?pgbouncer=true"):
            await database.open()
            for _ in range(20):
                await asyncio.gather(*(database.fetch("SELECT $1::int", number) for number in range(10)))
        await database.close()


@pytest.mark.parametrize(
    ("dsn", "address"),
    [
        ("postgresql://u:p@db.example.com/x", ("postgresql://u:p@db.example.com/x", False)),
        (
            "postgresql://u:p@aws-0.pooler.supabase.com:6543/x",
            ("postgresql://u:p@aws-0.pooler.supabase.com:6543/x", True),
        ),
        (
            "postgresql://u:p@aws-0.pooler.supabase.com:5432/x",
            ("postgresql://u:p@aws-0.pooler.supabase.com:5432/x", False),
        ),
        ("postgresql://u@h/x?pgbouncer=true", ("postgresql://u@h/x", True)),
        ("postgresql://u@h/x?sslmode=require&pgbouncer=true", ("postgresql://u@h/x?sslmode=require", True)),
        ("postgresql://u@h/x?pgbouncer=false", ("postgresql://u@h/x", False)),
        ("postgresql://u@h:port/x", ("postgresql://u@h:port/x", False)),
    ],
)
def test_a_pooler_is_known_by_its_port_or_by_its_word(dsn: str, address: tuple[str, bool]) -> None:
    assert read_address(dsn) == address
