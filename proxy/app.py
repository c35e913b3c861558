"""
The composition root: a config goes in, a running gateway comes out. The only file that knows every room.

Uvicorn's lifespan starts and stops a `Gateway`. Nothing here has an `if` about a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

import msgspec
from starlette.routing import Route
from starlette.types import ASGIApp

from proxy.admission.bindings import Bindings
from proxy.admission.budgets import Budgets
from proxy.admission.gate import Gate
from proxy.admission.keyring import Keyring
from proxy.admission.limits import Limits
from proxy.config import Config, Provider
from proxy.config.budgets import shortest
from proxy.config.presets import SIM_API_BASE
from proxy.edge.alerts import AlertsPage
from proxy.edge.callers import Callers
from proxy.edge.chat import Chat
from proxy.edge.models import Models
from proxy.edge.ops import Ops
from proxy.edge.prices import PricesPage
from proxy.edge.protocol import TICK_SECONDS, Door
from proxy.edge.requests import Requests
from proxy.edge.site import site
from proxy.errors import GatewayFault
from proxy.exchange import Attempt, Exchange
from proxy.metering.alerts.watch import Watch
from proxy.metering.history import History
from proxy.metering.journal import Journal
from proxy.metering.meter import Meter
from proxy.metering.price_list import listed
from proxy.metering.prices import PriceBook
from proxy.metering.shipper import Shipper
from proxy.routing.plan import Router
from proxy.routing.resting import Resting
from proxy.sim.server import SimServer
from proxy.storage.alerts import last_alerts
from proxy.storage.budget_settings import list_budgets
from proxy.storage.budgets import CHANNEL
from proxy.storage.ledger import make_partitions
from proxy.storage.migrations import migrate
from proxy.storage.postgres import Database, Unavailable
from proxy.storage.vault import Vault
from proxy.telemetry.logs import RequestLog
from proxy.telemetry.metrics import Metrics
from proxy.upstream.accounts import Account
from proxy.upstream.relay import Relay
from proxy.upstream.remote_files import RemoteFiles
from proxy.upstream.reserve import Reserve

log = logging.getLogger("strata.app")

CHAT_PATHS = (b"/v1/chat/completions", b"/chat/completions")
DRAIN_SECONDS = 10.0
DATABASE_RETRY_SECONDS = 2.0
PARTITION_SECONDS = 86_400.0
PRICE_LINES_SECONDS = 0.5
BUDGET_GAUGE_SECONDS = 10.0
LIMITS = {"policy_rate_limited": "rpm", "policy_budget_exceeded": "budget"}
"""Which limit refused a request, by the error that it got."""


class Gateway:
    """Every part of one worker, built once. `start` and `stop` run inside uvicorn's lifespan."""

    def __init__(
        self,
        config: Config,
        home: Path,
        environ: Mapping[str, str],
        dsn: str,
        request_log: RequestLog,
        revive: Callable[[], bool] = lambda: False,
    ) -> None:
        self.config = config
        self.request_log = request_log
        self._dsn = dsn
        self._revive = revive
        """Starts the database again if it was ours and has died."""
        vault = Vault.open(home, environ)
        self.metrics = Metrics(config)
        self.metrics.config_loaded(config.hash)
        self.database = Database(dsn, size=config.database.pool)
        self.keyring = Keyring(self.database, vault.pepper, pepper_id=vault.pepper_id, static=config.keys.static)
        self.vault = vault
        self.journal = Journal(home / "journal", config.ledger)
        self.shipper = Shipper(self.journal, self.database, config.ledger)
        self.budgets = Budgets(self.database, str(self.journal.worker_id), on_short=self.shipper.adopt_soon)
        self.bindings = Bindings(self.database, config.budgets, changed=lambda all_: self.gate.bind_everybody(all_))
        self.gate = Gate(
            self.keyring,
            Limits(),
            vault.pepper,
            prefix=config.keys.prefix,
            master_key=config.auth.master_key,
            everybody=self.bindings.everybody,
        )
        self.prices = PriceBook(config.prices)
        self.history = History(self.database, config.history)
        self.meter = Meter(
            self.journal,
            self.prices,
            offer=self.shipper.offer,
            on_settled=(self._settled,),
            on_closed=(self._closed, self.history.note),
        )
        self.resting = Resting(config.rest, self._deployment_changed)
        self.router = Router(config, self.resting, random.random)
        self.sim = SimServer()
        self.files = RemoteFiles(config.remote_files)
        self.accounts: dict[str, Account] = {}
        self.door = Door(
            max_body_bytes=config.server.max_body_bytes,
            max_in_flight=config.server.max_in_flight,
            header_timeout_seconds=config.server.header_timeout_seconds,
            body_timeout_seconds=config.server.body_timeout_seconds,
            write_timeout_seconds=config.server.write_timeout_seconds,
            keepalive_seconds=config.server.keepalive_seconds,
        )
        self._tasks: list[asyncio.Task[None]] = []
        self.database_ready = asyncio.Event()

    async def start(self) -> None:
        """Everything that listens, fetches or writes. Returns before Postgres is there if it is away."""
        # What is loaded now stays for good: the collector need not walk it again, nor run every few requests.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
        port = await self.sim.start()
        for provider in self.config.providers.values():
            self.accounts[provider.name] = Account(_reachable(provider, port))
        relay = Relay(
            self.accounts,
            self.meter,
            self.prices,
            self.resting,
            Reserve(
                self.prices,
                self.budgets.hold,
                self.bindings.providers,
                block_unpriced=self.config.prices.on_missing == "block",
            ),
            self.metrics,
            dice=random.random,
            files=self.files,
        )
        chat = Chat(
            self.gate,
            self.router,
            relay,
            self.meter,
            started=self.metrics.request_started,
            full_headers=self.config.server.response_headers == "full",
        )
        self.door.hot.update(dict.fromkeys(CHAT_PATHS, chat.serve))
        self.journal.open()
        self.journal.start()
        self.shipper.start()
        for name, work in (
            ("database", self._come_up),
            ("partitions", self._make_partitions),
            ("ticker", self._tick),
            ("log", self.request_log.run),
            ("alerts", self._watch),
            ("budgets", self._measure_budgets),
            ("history", self.history.run),
            ("price lines", self._write_price_lines),
        ):
            self._hold_task(name, work)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.database_ready.wait(), DATABASE_RETRY_SECONDS)

    async def stop(self) -> None:
        """Ships what is settled, gives back what is leased, closes every connection."""
        await self.shipper.drain(DRAIN_SECONDS)
        await self.budgets.close()
        await self.keyring.close()
        await self.bindings.close()
        for account in self.accounts.values():
            await account.close()
        await self.files.close()
        await self.sim.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.history.close()
        with contextlib.suppress(GatewayFault):
            await self.prices.write_new_lines(self.database)
        await self.shipper.close()
        await self.journal.close()
        await self.database.close()
        self.request_log.flush()

    def app(self) -> ASGIApp:
        """The Starlette side: every route but the hot ones."""
        models = Models(
            self.gate,
            self.router,
            started_at=int(time.time()),
            served_by=self._served_by,
            context_window=self.prices.context_window,
            max_output_tokens=self.prices.max_output_tokens,
        )
        ops = Ops(
            ready=lambda: self.database.up or not self.keyring.stale,
            degraded=self._degraded,
            render=self.metrics.render,
            token=self.config.metrics.token,
        )
        alerts = AlertsPage(Callers(self.gate), self.config.alerts, lambda: last_alerts(self.database))
        prices = PricesPage(Callers(self.gate), lambda: listed(self.config, self.prices), self.prices.date)
        requests = Requests(Callers(self.gate), self.database)
        routes = [
            Route("/api/alerts", alerts.show),
            Route("/api/prices", prices.show),
            Route("/api/requests", requests.list),
            Route("/api/requests/{id:path}", requests.show),
            Route("/healthz", ops.healthz),
            Route("/readyz", ops.readyz),
            Route("/v1/models", models.list),
            Route("/models", models.list),
            Route("/v1/models/{id:path}", models.retrieve),
            Route("/models/{id:path}", models.retrieve),
        ]
        if self.config.metrics.enabled:
            routes.append(Route(self.config.metrics.path, ops.metrics))
        return site(routes, [path.decode() for path in CHAT_PATHS], self._lifespan)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: object) -> AsyncIterator[None]:
        await self.start()
        try:
            yield
        finally:
            await self.stop()

    def _hold_task(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        async def run() -> None:
            while True:
                try:
                    await work()
                except Exception:
                    self.metrics.count_task_failure(name)
                    log.exception("the background task %s failed; it starts again in a second", name)
                    await asyncio.sleep(1.0)
                else:
                    return

        self._tasks.append(asyncio.create_task(run(), name=name))

    async def _come_up(self) -> None:
        """Migrates and opens the database as soon as it is there; until then known keys are served without it."""
        while True:
            try:
                if self.config.database.auto_migrate:
                    await migrate(self._dsn)
                await self.database.open()
                await self.bindings.start()
                await self.keyring.start()
                await self.budgets.start()
                await self.database.listen(CHANNEL, self._hear_of_budgets)
            except Unavailable:
                log.warning("the database is away; trying again in %s s", DATABASE_RETRY_SECONDS)
                await asyncio.sleep(DATABASE_RETRY_SECONDS)
            else:
                self.database_ready.set()
                return

    def _hear_of_budgets(self, payload: str) -> None:
        self.bindings.on_notice(payload)
        self.budgets.on_notice(payload)

    async def _make_partitions(self) -> None:
        """A month of the ledger ahead of time, every day. A missing one loses nothing: a default partition takes it."""
        await self.database_ready.wait()
        while True:
            try:
                await make_partitions(self.database)
            except Unavailable:
                await asyncio.sleep(DATABASE_RETRY_SECONDS)
            else:
                await asyncio.sleep(PARTITION_SECONDS)

    async def _write_price_lines(self) -> None:
        """Soon after a price is used for the first time, so that every row of the ledger can be calculated again."""
        await self.database_ready.wait()
        while True:
            with contextlib.suppress(GatewayFault):
                await self.prices.write_new_lines(self.database)
            await asyncio.sleep(PRICE_LINES_SECONDS)

    async def _watch(self) -> None:
        await self.database_ready.wait()
        await Watch(self.config.alerts, self.database, sent=self.metrics.count_alert).run()

    async def _measure_budgets(self) -> None:
        """Where the budgets stand, for the metrics: as Postgres has it, for all replicas together."""
        await self.database_ready.wait()
        while True:
            with contextlib.suppress(Unavailable):
                rows = await list_budgets(self.database)
                self.metrics.forget_budgets()
                for row in rows:
                    self.metrics.set_budget(
                        row.scope,
                        row.name,
                        shortest(row.window_seconds, row.calendar),
                        limit_nano_usd=row.limit_nano_usd,
                        spent_nano_usd=row.spent_nano_usd,
                        resets_at_seconds=row.resets_at,
                    )
            await asyncio.sleep(BUDGET_GAUGE_SECONDS)

    async def _tick(self) -> None:
        """What is looked at twice a second: deadlines of connections, gauges, how late the loop is."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + TICK_SECONDS
            await asyncio.sleep(TICK_SECONDS)
            now = loop.time()
            self.metrics.observe_loop_lag(max(0.0, now - due))
            self.door.tick(now)
            self.metrics.set_ledger(self.shipper.queue_depth, self.shipper.lag_seconds, self.shipper.dropped_total)
            self._tell_totals()
            self.metrics.set_dependency("database", self.database.up)
            self.metrics.set_log_dropped(self.request_log.dropped)
            self._revive()

    def _tell_totals(self) -> None:
        meter, shipper, budgets, history = self.meter, self.shipper, self.budgets, self.history
        self.metrics.set_attempts(
            dispatched=meter.dispatched_total,
            settled=meter.settled_total,
            open_now=len(self.journal.open_dispatches),
            shipped=shipper.shipped_total,
            orphans=shipper.orphans_total,
        )
        self.metrics.set_leases(
            overrun_nano_usd=budgets.overrun_nano_usd_total,
            stranded_nano_usd=budgets.stranded_nano_usd_total,
            failures=budgets.failures_total,
        )
        self.metrics.set_history(history.queue_depth, history.written_total, history.dropped_total)

    def _settled(self, exchange: Exchange, attempt: Attempt) -> None:
        if attempt.hold is not None and not attempt.hold.resolved:
            self.budgets.resolve(attempt.hold, attempt.cost_nano_usd)
        self.metrics.record_attempt(exchange, attempt)

    def _closed(self, exchange: Exchange) -> None:
        self.metrics.request_ended(exchange.endpoint)
        self.metrics.record(exchange)
        if exchange.error is not None:
            limit = LIMITS.get(exchange.error.error_type)
            if limit is not None:
                self.metrics.count_rate_limited(str(exchange.error.details.get("scope", "key")), limit)
        self.request_log.access(exchange)

    def _deployment_changed(self, deployment: str, up: bool, reason: str) -> None:
        provider = deployment.partition("/")[0]
        self.metrics.set_deployment_up(deployment, provider, up)
        if up:
            log.info("deployment %s is asked again", deployment)
        else:
            self.metrics.count_cooldown(deployment, provider, reason)
            log.warning("deployment %s rests: %s", deployment, reason)

    def _degraded(self) -> list[str]:
        return [name for name, away in (("database", not self.database.up), ("journal", self.journal.failing)) if away]

    def _served_by(self, name: str) -> tuple[str, ...]:
        provider = self.config.providers.get(name)
        if provider is None:
            return ()
        return self.prices.models(provider)


def is_simulated(provider: Provider) -> bool:
    return provider.api_base == SIM_API_BASE


def _reachable(provider: Provider, sim_port: int) -> Provider:
    """The simulated provider lives in this process, at an address known only now."""
    if is_simulated(provider):
        return msgspec.structs.replace(provider, api_base=f"http://127.0.0.1:{sim_port}/v1")
    return provider
