"""Several gateways in one data folder over one Postgres that the command starts itself; each may be killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path

import asyncpg

from proxy.admission.keys import digest, display, new_key
from proxy.storage.embedded import EmbeddedPostgres
from proxy.storage.keys import insert_key
from proxy.storage.postgres import Database
from proxy.storage.vault import Vault
from tests.gateway import Gateway

DIE_SECONDS = 10.0


class Postgres:
    """A real server that can be made to crash. Everything here blocks, and belongs to the main thread."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._server = EmbeddedPostgres(home)
        self._frozen: list[int] = []
        self.dsn = self._server.start()

    def crash(self, sign: signal.Signals = signal.SIGQUIT) -> None:
        """SIGKILL is an out-of-memory killer's way; SIGQUIT is what `pg_ctl stop -m immediate` sends. No checkpoint."""
        os.kill(self._postmaster(), sign)
        deadline = time.monotonic() + DIE_SECONDS
        while self._server.alive and time.monotonic() < deadline:
            time.sleep(0.005)
        if self._server.alive:
            raise AssertionError(f"Postgres survived {sign.name}")

    def freeze(self) -> None:
        """All of its processes stop, and answer nothing; connections stay open."""
        postmaster = self._postmaster()
        self._frozen = [postmaster, *_children(postmaster)]
        for pid in self._frozen:
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        frozen, self._frozen = self._frozen, []
        for pid in frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _postmaster(self) -> int:
        return int((self._home / "postgres" / "data" / "postmaster.pid").read_text().split("\n")[0])

    def start(self) -> None:
        """Returns when it has recovered and takes connections."""
        self._server.start()

    def stop(self) -> None:
        self._server.stop()


class Workers:
    """`count` gateways with one key. A killed one comes back with its own `start`."""

    def __init__(
        self, folder: Path, count: int, *, oracle: str, more: str = "", server: str = "max_body: 20MB"
    ) -> None:
        self.postgres = Postgres(folder / "home")
        self.gateways = [
            Gateway(
                folder / "home",
                oracle=oracle,
                name=f"worker-{number}",
                database_url=self.postgres.dsn,
                more=more,
                server=server,
            )
            for number in range(1, count + 1)
        ]

    @property
    def dsn(self) -> str:
        return self.postgres.dsn

    @property
    def first(self) -> Gateway:
        return self.gateways[0]

    async def start(self) -> None:
        """The first makes the schema and a key; then the others come at once."""
        await asyncio.to_thread(self.first.start)
        for gateway in self.gateways[1:]:
            gateway.key = self.first.key
        await asyncio.gather(*(asyncio.to_thread(gateway.start) for gateway in self.gateways[1:]))

    async def create_key(self, name: str, *, budget_nano_usd: int | None = None, seconds: int | None = 86_400) -> str:
        """As `strata keys create` does, without a process for each. The budget is for a day unless said otherwise."""
        vault, key = Vault.open(self.first.home, {}), new_key("sk-strata-")
        database = Database(self.dsn)
        await database.open()
        try:
            await insert_key(
                database,
                name=name,
                digest=digest(key, vault.pepper),
                pepper_id=vault.pepper_id,
                display=display(key),
                models=("*",),
                rpm=None,
                expires_at=None,
                budget_limit_nano_usd=budget_nano_usd,
                budget_window_seconds=seconds,
            )
        finally:
            await database.close()
        return key

    async def stop(self) -> None:
        """All of them, then the database."""
        try:
            await self.stop_gateways()
        finally:
            self.postgres.stop()

    async def stop_gateways(self) -> None:
        await asyncio.gather(*(asyncio.to_thread(gateway.stop) for gateway in self.gateways))

    async def sql(self, sql: str, *args: object) -> list[asyncpg.Record]:
        """As the owner, on a connection of its own."""
        connection = await asyncpg.connect(self.dsn, timeout=10)
        try:
            return await connection.fetch(sql, *args, timeout=60)
        finally:
            with contextlib.suppress(asyncpg.PostgresError, OSError):
                await connection.close(timeout=5)


def _children(parent: int) -> list[int]:
    """Of a process, as the kernel lists them."""
    listed = [path.read_text() for path in Path(f"/proc/{parent}/task").glob("*/children")]
    return [int(pid) for line in listed for pid in line.split()]
