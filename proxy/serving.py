"""
The process: the database server first, on the main thread (it dies with the thread that starts it), then uvicorn, whose
lifespan starts and stops the gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path

import uvicorn
import uvloop

from proxy.app import Gateway
from proxy.config import Config
from proxy.edge.protocol import protocol_class
from proxy.errors import GatewayFault
from proxy.first_start import greet
from proxy.storage.embedded import EmbeddedPostgres
from proxy.telemetry.logs import configure


class Server(uvicorn.Server):
    """uvicorn's server, with a word when it takes connections."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], Awaitable[None]]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn raises the signal again when it is done, which would end us before the database is stopped."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if not self.should_exit:
            await self._on_ready()


def serve(config: Config, *, home: Path, environ: Mapping[str, str]) -> int:
    """Runs the gateway until SIGTERM or SIGINT. Raises GatewayFault with the fix when it cannot start."""
    started = time.monotonic()
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    request_log = configure(config.logging.level, config.logging.format)
    listener = _listen(config)
    embedded = None if config.database.url else EmbeddedPostgres(home)
    try:
        dsn = config.database.url.reveal() if config.database.url else ""
        if embedded is not None:
            dsn = embedded.start()
        revive = embedded.revive if embedded is not None else lambda: False
        gateway = Gateway(config, home, environ, dsn, request_log, revive)

        async def ready() -> None:
            await greet(gateway, home, embedded=embedded is not None, seconds=time.monotonic() - started)

        server = Server(_uvicorn_config(config, gateway), ready)
        gateway.quit = lambda: setattr(server, "should_exit", True)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(server.serve(sockets=[listener]))
        if gateway.refused is not None:
            raise gateway.refused
        return 0 if server.started else 1
    finally:
        listener.close()
        if embedded is not None:
            embedded.stop()


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


def _listen(config: Config) -> socket.socket:
    """The listening socket, bound before anything else starts, so that a taken port costs nothing."""
    host, port = config.server.host, config.server.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048, reuse_port=False)
    except OSError as error:
        reason = "is in use" if error.errno in {98, 48} else f"cannot be used ({error.strerror})"
        raise GatewayFault(
            f"Port {port} on {host} {reason}. Start on another: strata --port {port + 1}",
            code="gateway_config",
            error_type="gateway_config",
        ) from error
