"""
The process: the database server first, on the main thread (it dies with the thread that starts it), then uvicorn, whose
lifespan starts and stops the gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import logging
import signal
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import uvicorn
import uvloop

from proxy.app import Gateway
from proxy.config import Config
from proxy.config.certificates import reload_certificate, tls_context
from proxy.config.listeners import Tls
from proxy.config.problems import Wrong
from proxy.edge.plain import Plain
from proxy.edge.protocol import protocol_class
from proxy.errors import GatewayFault
from proxy.first_start import greet
from proxy.hiding import Hiding, secrets_of
from proxy.storage.embedded import EmbeddedPostgres
from proxy.storage.vault import split_keys
from proxy.telemetry.logs import configure

log = logging.getLogger("strata")

CERTIFICATE_SECONDS = 5.0
"""How often the files are looked at."""
LAST_PORT = 65_535
HANDSHAKE_SECONDS = 10.0
GOODBYE_SECONDS = 5.0
"""How long a client may take to begin TLS, and to end it."""


class Listeners(NamedTuple):
    """Sockets that are bound already, so that a taken port costs nothing."""

    served: list[socket.socket]
    """The public one, and the admin's if that is another."""
    plain: socket.socket | None
    """Without TLS, where the served ones have it."""

    def close(self) -> None:
        for listener in (*self.served, *([self.plain] if self.plain is not None else [])):
            listener.close()


class Entry(NamedTuple):
    """A listener, and what is served there."""

    listener: socket.socket
    config: uvicorn.Config
    context: ssl.SSLContext | None


class Server(uvicorn.Server):
    """uvicorn's server, with a word when it takes connections, and several listeners that need not be alike."""

    def __init__(
        self, config: uvicorn.Config, entries: Sequence[Entry], on_ready: Callable[[], Awaitable[None]]
    ) -> None:
        super().__init__(config)
        self._entries = entries
        self._on_ready = on_ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn raises the signal again when it is done, which would end us before the database is stopped."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])  # the lifespan alone
        if self.should_exit:
            return
        for entry in self._entries:
            await self._open(entry)
        await self._on_ready()

    async def _open(self, entry: Entry) -> None:
        config = entry.config
        if not config.loaded:
            config.load()

        def connected() -> asyncio.Protocol:
            return config.http_protocol_class(  # type: ignore[call-arg]
                config=config, server_state=self.server_state, app_state=self.lifespan.state
            )

        secure = entry.context is not None
        self.servers.append(
            await asyncio.get_running_loop().create_server(
                connected,
                sock=entry.listener,
                ssl=entry.context,
                backlog=config.backlog,
                ssl_handshake_timeout=HANDSHAKE_SECONDS if secure else None,
                ssl_shutdown_timeout=GOODBYE_SECONDS if secure else None,
            )
        )


def serve(config: Config, *, home: Path, environ: Mapping[str, str]) -> int:
    """Runs the gateway until SIGTERM or SIGINT. Raises GatewayFault with the fix when it cannot start."""
    started = time.monotonic()
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    master_key = environ.get("STRATA_MASTER_KEY", "")
    hide = Hiding({*secrets_of(config), *split_keys(master_key)})
    request_log = configure(config.logging.level, config.logging.format, hide=hide)
    context = _context(config)
    listeners = _listen(config)
    embedded = None if config.database.url else EmbeddedPostgres(home)
    try:
        dsn = config.database.url.reveal() if config.database.url else ""
        if embedded is not None:
            dsn = embedded.start()
        revive = embedded.revive if embedded is not None else lambda: False
        gateway = Gateway(config, home, environ, dsn, request_log, revive)

        async def ready() -> None:
            if context is not None and config.server.tls is not None:
                tls = config.server.tls
                gateway.rounds.start("certificate", lambda: keep_certificate(context, tls))
            await greet(gateway, home, embedded=embedded is not None, seconds=time.monotonic() - started)

        server_config = _uvicorn_config(config, gateway)
        entries = [Entry(listener, server_config, context) for listener in listeners.served]
        if listeners.plain is not None:
            entries.append(Entry(listeners.plain, _plain_config(config, gateway), None))
        server = Server(server_config, entries, ready)
        gateway.quit = lambda: setattr(server, "should_exit", True)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(server.serve(sockets=[]))
        if gateway.refused is not None:
            raise gateway.refused
        return 0 if server.started else 1
    finally:
        listeners.close()
        if embedded is not None:
            embedded.stop()


async def keep_certificate(context: ssl.SSLContext, tls: Tls) -> None:
    """Whoever renews a certificate only has to replace its files."""
    seen = await asyncio.to_thread(_stamps, tls)
    while True:
        await asyncio.sleep(CERTIFICATE_SECONDS)
        stamps = await asyncio.to_thread(_stamps, tls)
        if stamps == seen:
            continue
        seen = stamps
        try:
            reload_certificate(context, tls)
        except Wrong as wrong:
            log.warning("the certificate stays as it was: server.tls %s", wrong)
        else:
            log.info("the certificate was loaded anew")


def _stamps(tls: Tls) -> list[tuple[int, int, int]]:
    """What changes when a file does; without those that are not there."""
    found = []
    for path in (tls.certificate, tls.key):
        with contextlib.suppress(OSError):
            about = Path(path).stat()
            found.append((about.st_ino, about.st_mtime_ns, about.st_size))
    return found


def _context(config: Config) -> ssl.SSLContext | None:
    try:
        return tls_context(config.server.tls) if config.server.tls is not None else None
    except Wrong as wrong:
        raise _misconfigured(f"server.tls {wrong}") from None


def _uvicorn_config(config: Config, gateway: Gateway) -> uvicorn.Config:
    return uvicorn.Config(
        gateway.app(),
        http=protocol_class(gateway.door),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=int(config.server.shutdown_grace_seconds),
        backlog=2048,
    )


def _plain_config(config: Config, gateway: Gateway) -> uvicorn.Config:
    """The same guards of the protocol, and nothing behind them. Its connections are the door's, for the deadlines."""
    door = dataclasses.replace(gateway.door, hot={})
    return uvicorn.Config(
        Plain(config.server.port, door.hosts),
        http=protocol_class(door),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        backlog=128,
    )


def _listen(config: Config) -> Listeners:
    server = config.server
    opened: list[socket.socket] = []
    try:
        another = server.port + (1 if server.port < LAST_PORT else -1)
        opened.append(_bind(server.host, server.port, "server.port", f"Start on another: strata --port {another}"))
        if server.admin is not None:
            opened.append(_bind(server.admin.host, server.admin.port, "server.admin.port", "Choose another."))
        plain = None
        if server.redirect_http is not None:
            plain = _bind(server.host, server.redirect_http, "server.redirect_http", "Choose another.")
    except GatewayFault:
        for listener in opened:
            listener.close()
        raise
    return Listeners(opened, plain)


def _bind(host: str, port: int, setting: str, fix: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048, reuse_port=False)
    except OSError as error:
        host_of = "server.admin.host" if setting == "server.admin.port" else "server.host"
        where = f"Port {port} on {host}{'' if setting == 'server.port' else f' ({setting})'}"
        if error.errno == errno.EADDRINUSE:
            raise _misconfigured(f"{where} is in use. {fix}") from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise _misconfigured(
                f"{where} may not be used by this user. Choose one from 1024 on, or give the gateway "
                "CAP_NET_BIND_SERVICE (docs/deploy.md)."
            ) from error
        raise _misconfigured(
            f"{where} cannot be used: this machine has no such address. Set {host_of} to one "
            "that it has, such as 127.0.0.1, or 0.0.0.0 for all."
            if error.errno == errno.EADDRNOTAVAIL or (error.errno or 0) < 0  # a name that does not resolve
            else f"{where} cannot be used ({error.strerror}). Choose another."
        ) from error


def _misconfigured(message: str) -> GatewayFault:
    return GatewayFault(message, code="gateway_config", error_type="gateway_config")
