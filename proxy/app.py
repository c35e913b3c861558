"""
The composition root: a config goes in, a running gateway comes out. With `pages` and `stories`, the only file that
knows every room.

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

from starlette.types import ASGIApp

from proxy.admission.accounts.issuers import believed
from proxy.admission.accounts.passwords import Passwords
from proxy.admission.accounts.people import People
from proxy.admission.accounts.signing_in import SigningIn
from proxy.admission.accounts.tokens import Tokens
from proxy.admission.bindings import Bindings
from proxy.admission.budgets import Budgets
from proxy.admission.counting import turns_by
from proxy.admission.gate import Gate
from proxy.admission.keyring import Keyring
from proxy.admission.limits import Limits
from proxy.admission.sharing import Shared
from proxy.config import Config, Server
from proxy.edge.addresses import TrustedProxies
from proxy.edge.browsers import Origins
from proxy.edge.door import TICK_SECONDS, Door
from proxy.edge.hosts import Hosts
from proxy.edge.site import sites
from proxy.errors import GatewayFault
from proxy.exchange import Attempt, Exchange
from proxy.metering.alerts.watch import Watch
from proxy.metering.history import History
from proxy.metering.journal import Journal
from proxy.metering.meter import Meter
from proxy.metering.prices import PriceBook
from proxy.metering.shipper import Shipper
from proxy.pages import pages
from proxy.rounds import (
    DATABASE_RETRY_SECONDS,
    Rounds,
    find_named,
    forget_people,
    keep_partitions,
    measure_budgets,
    note_uses,
    write_all_uses,
    write_price_lines,
)
from proxy.routing.pace import Pace
from proxy.routing.plan import Router
from proxy.routing.resting import Resting
from proxy.sim.server import SimServer, located
from proxy.storage.budgets import CHANNEL
from proxy.storage.migrations import migrate
from proxy.storage.postgres import Database, Unavailable
from proxy.storage.redis import Redis
from proxy.storage.root import WrongMasterKey, unlock
from proxy.storage.sessions import CHANNEL as PEOPLE
from proxy.storage.vault import Vault
from proxy.stories import HOT_PATHS, stories
from proxy.telemetry.bodies import Bodies
from proxy.telemetry.logs import RequestLog
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.traces import Traces
from proxy.upstream.accounts import Account
from proxy.upstream.elsewhere import Elsewhere
from proxy.upstream.headroom import Headroom
from proxy.upstream.own_keys import OwnKeys
from proxy.upstream.remote_files import RemoteFiles

log = logging.getLogger("strata.app")

DRAIN_SECONDS = 10.0
LIMITS = {"policy_rate_limited": "rpm", "policy_budget_exceeded": "budget"}
"""Which limit refused a request, by the error that it got."""


class Gateway:
    """Every part of one worker, built once. `start` and `stop` run inside uvicorn's lifespan."""

    refused: GatewayFault | None = None
    """Why this gateway must not serve with this database; `quit` ends the server then."""

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
        listen_at = config.database.listen_url
        self.database = Database(dsn, size=config.database.pool, listen_dsn=listen_at.reveal() if listen_at else None)
        self.keyring = Keyring(self.database, vault.pepper, pepper_id=vault.pepper_id, static=config.keys.static)
        self.vault = vault
        self.journal = Journal(home / "journal", config.ledger)
        self.shipper = Shipper(self.journal, self.database, config.ledger)
        worker, heirs = str(self.journal.worker_id), self.shipper.wait_for_heirs
        self.budgets = Budgets(self.database, worker, keep=self.journal.keep, wait_for_heirs=heirs)
        self.bindings = Bindings(self.database, config.budgets, changed=lambda all_: self.gate.bind_everybody(all_))
        limits = Limits(config.limits)
        self.redis = Redis(config.redis) if config.redis.url else None
        self.turns = turns_by(config.redis, limits, self.redis, worker)
        self._admit_people()
        self.gate = Gate(
            self.keyring,
            limits,
            vault.pepper,
            prefix=config.keys.prefix,
            master_key=config.auth.master_key,
            everybody=self.bindings.everybody,
            people=self.people,
        )
        self.prices = PriceBook(config.prices)
        self.history = History(self.database, config.history)
        self.traces = Traces(config.traces, request_log.masked)
        self.bodies = Bodies(config.logging.bodies, request_log)
        self.meter = Meter(
            self.journal,
            self.prices,
            offer=self.shipper.offer,
            on_settled=(self._settled,),
            on_closed=(self._closed, self.history.note, *self.traces.listeners, *self.bodies.listeners),
        )
        self.resting = Resting(config.rest, self._deployment_changed)
        self.pace, self.headroom = Pace(), Headroom()
        self.router = Router(config, self.resting, random.random, self.pace)
        self.sim, self.files = SimServer(), RemoteFiles(config.remote_files)
        self.accounts: dict[str, Account] = {}
        self.own_keys = OwnKeys(self.database, vault, self.accounts, Elsewhere())
        self.door = _door(config.server, self.gate)
        self.rounds = Rounds(self.metrics.count_task_failure)
        self.database_ready = asyncio.Event()
        self.quit: Callable[[], None] = lambda: None

    def _admit_people(self) -> None:
        """What is derived for them follows the vault, to whom the database may say late what from."""
        auth = self.config.auth
        self.tokens = Tokens(lambda: self.vault.derive("people/tokens"))
        verifiers, self.published_keys = believed(auth, self.tokens)
        may_appear = auth.registration != "closed"
        self.people = People(self.database, verifiers, auth.issuer, may_appear=may_appear)
        self.passwords = Passwords()
        self.signing_in = SigningIn(
            self.database,
            self.passwords,
            self.tokens,
            lambda: self.vault.derive("people/log-ins"),
            session_ttl_seconds=auth.session_ttl_seconds,
            registration=auth.registration,
        )

    async def start(self) -> None:
        """Everything that listens, fetches or writes. Returns before Postgres is there if it is away."""
        # What is loaded now stays for good: the collector need not walk it again, nor run every few requests.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
        self.metrics.config_loaded(self.config.hash)
        self.database.observe = self.metrics.observe_query
        port = await self.sim.start()
        for provider in self.config.providers.values():
            self.accounts[provider.name] = Account(located(provider, port))
        self.door.hot.update(stories(self))
        self.traces.start()
        self._start_rounds()
        self.journal.open()
        self.journal.start()
        self.shipper.start()
        for name, work in (
            ("database", self._come_up),
            ("ticker", self._tick),
            ("log", self.request_log.run),
            ("history", self.history.run),
            ("alerts", self._with_database(self._watch)),
            ("partitions", self._with_database(lambda: keep_partitions(self.database))),
            ("budgets", self._with_database(lambda: measure_budgets(self.database, self.metrics))),
            ("sessions", self._with_database(lambda: forget_people(self.database))),
            ("uses of keys", self._with_database(lambda: note_uses(self.database, self.gate))),
            ("price lines", self._with_database(lambda: write_price_lines(self.prices, self.database))),
        ):
            self.rounds.start(name, work)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.database_ready.wait(), DATABASE_RETRY_SECONDS)

    def _start_rounds(self) -> None:
        if self.redis is not None and isinstance(self.turns, Shared):
            self.redis.start()
            self.rounds.start("limits", self.turns.run)
        if self.published_keys is not None:
            self.rounds.start("signing keys", self.published_keys.run)
        if self.turns.limits.named:
            self.rounds.start("limit names", self._with_database(lambda: find_named(self.database, self.gate)))

    async def stop(self) -> None:
        """Ships what is settled, gives back what is leased, closes every connection."""
        await self.shipper.drain(DRAIN_SECONDS)
        await self.budgets.close()
        if isinstance(self.turns, Shared):
            await self.turns.close()
        if self.redis is not None:
            await self.redis.close()
        await self.keyring.close()
        await self.bindings.close()
        await self.own_keys.close()
        for account in self.accounts.values():
            await account.close()
        await self.files.close()
        await self.sim.close()
        await self.rounds.stop()
        if self.published_keys is not None:
            await self.published_keys.close()
        await self.history.close()
        await self.traces.close()
        with contextlib.suppress(GatewayFault):
            await self.prices.write_new_lines(self.database)
            await write_all_uses(self.database, self.gate)
        await self.shipper.close()
        await self.journal.close()
        await self.database.close()
        self.request_log.flush()

    def app(self) -> ASGIApp:
        """The Starlette side: every route but the hot ones."""
        return sites(pages(self), [path.decode() for path in HOT_PATHS], self._lifespan, self.config)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: object) -> AsyncIterator[None]:
        await self.start()
        try:
            yield
        finally:
            await self.stop()

    async def _come_up(self) -> None:
        """Migrates and opens the database as soon as it is there; until then known keys are served without it."""
        while True:
            try:
                if self.config.database.auto_migrate:
                    await migrate(self._dsn)
                await self.database.open()
                await self._unlock()
                await self.own_keys.start()
                await self.bindings.start()
                await self.keyring.start()
                await self.budgets.start()
                await self.database.listen(CHANNEL, self._hear_of_budgets)
                await self.database.listen(PEOPLE, self.people.forget)
            except WrongMasterKey as wrong:
                log.error("%s", wrong.message)
                self.refused = wrong
                self.quit()
                return
            except GatewayFault as fault:
                why = "The database is away." if type(fault) is Unavailable else fault.message
                log.warning("%s Trying again in %s s.", why, DATABASE_RETRY_SECONDS)
                await asyncio.sleep(DATABASE_RETRY_SECONDS)
            else:
                self.database_ready.set()
                return

    async def _unlock(self) -> None:
        """Before anybody's key is looked at: what its digest is made with is the database's to say."""
        await unlock(self.database, self.vault)
        self.gate.use_pepper(self.vault.pepper)
        self.keyring.use_pepper(self.vault.pepper, self.vault.pepper_id)

    def _hear_of_budgets(self, payload: str) -> None:
        self.bindings.on_notice(payload)
        self.budgets.on_notice(payload)

    def _with_database(self, work: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        async def wait_and_work() -> None:
            await self.database_ready.wait()
            await work()

        return wait_and_work

    async def _watch(self) -> None:
        await Watch(self.config.alerts, self.database, sent=self.metrics.count_alert).run()

    async def _tick(self) -> None:
        """What is looked at twice a second: deadlines of connections, how late the loop is."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + TICK_SECONDS
            await asyncio.sleep(TICK_SECONDS)
            now = loop.time()
            self.metrics.observe_loop_lag(max(0.0, now - due))
            self.door.tick(now)
            self._revive()

    def _settled(self, exchange: Exchange, attempt: Attempt) -> None:
        if attempt.hold is not None and not attempt.hold.resolved:
            self.budgets.resolve(attempt.hold, attempt.cost_nano_usd)
        self.metrics.record_attempt(exchange, attempt)
        deployment, usage = attempt.deployment, attempt.usage
        if attempt.status == 200 and attempt.own_key is None:  # errors often say nothing of limits
            self.headroom.note(deployment, attempt.head, attempt.ended_ns)
        if deployment.tpm is not None and usage is not None and attempt.own_key is None:
            self.pace.used(deployment, usage.prompt + usage.completion, time.monotonic())
        if deployment.rpm is not None and attempt.number > 1:  # the first was counted when it was planned
            self.pace.asked(deployment, time.monotonic())

    def _closed(self, exchange: Exchange) -> None:
        self.metrics.request_ended(exchange.endpoint)
        self.metrics.record(exchange)
        if exchange.error is not None:
            limit = LIMITS.get(exchange.error.error_type)
            if limit is not None:
                details = exchange.error.details
                self.metrics.count_rate_limited(str(details.get("scope", "key")), str(details.get("limit", limit)))
        self.request_log.access(exchange)

    def _deployment_changed(self, deployment: str, up: bool, reason: str) -> None:
        provider = deployment.partition("/")[0]
        self.metrics.set_deployment_up(deployment, provider, up)
        if up:
            log.info("deployment %s is asked again", deployment)
        else:
            self.metrics.count_cooldown(deployment, provider, reason)
            log.warning("deployment %s rests: %s", deployment, reason)


def _door(server: Server, gate: Gate) -> Door:
    return Door(
        max_body_bytes=server.max_body_bytes,
        max_bodies_bytes=max(server.max_bodies_bytes, server.max_body_bytes),
        max_in_flight=server.max_in_flight,
        header_timeout_seconds=server.header_timeout_seconds,
        body_timeout_seconds=server.body_timeout_seconds,
        write_timeout_seconds=server.write_timeout_seconds,
        keepalive_seconds=server.keepalive_seconds,
        recognise=gate.recognise,
        proxies=TrustedProxies(server.trusted_proxies) if server.trusted_proxies else None,
        origins=Origins(server.cors) if server.cors.origins else None,
        hosts=Hosts(server.allowed_hosts) if server.allowed_hosts else None,
    )
