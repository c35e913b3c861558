"""
The request history: one row for each request of a known caller, refused ones too, with what explains it later.

It is a log, not money. On the path it is encoded, which is cheaper than to keep the request alive; a task ships what
has gathered. While Postgres is away rows wait, and those that find no room are dropped and counted. What it cost is not
asked here but of the ledger, which drops nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from proxy.config import History as Settings
from proxy.errors import GatewayError, GatewayFault
from proxy.exchange import Attempt, Budget, Exchange
from proxy.storage.ledger import RowsRefused
from proxy.storage.postgres import Database
from proxy.storage.requests import forget_requests, insert_requests
from proxy.telemetry.logs import mask

log = logging.getLogger("strata.metering")

MAX_WAITING_ROWS = 20_000
MAX_WAITING_BYTES = 32_000_000
BATCH_ROWS = 200
INTERVAL_SECONDS = 0.5
FORGET_SECONDS = 3_600.0
MAX_ERROR_CHARS = 300
NS_PER_MS = 1_000_000


class RateDetail(msgspec.Struct, frozen=True, omit_defaults=True):
    limit: int
    remaining: int | None = None
    """None: it did not let the request pass."""
    refused: bool = False
    """If not this and not passed, something else refused the request before."""


class StepDetail(msgspec.Struct, frozen=True, omit_defaults=True):
    """One deployment of the plan, in the order in which they were to be asked."""

    deployment: str
    model: str = ""
    fallback: bool = False
    resting: bool = False


class AttemptDetail(msgspec.Struct, frozen=True, omit_defaults=True):
    """Times are milliseconds since the request began."""

    number: int
    deployment: str
    provider: str
    status: int = 0
    outcome: str = ""
    error: str = ""
    started_ms: int = 0
    first_event_ms: int | None = None
    ended_ms: int | None = None
    dispatched: bool = False
    held_nano_usd: int | None = None
    cost_nano_usd: int = 0
    price_state: str = ""
    own_key: str = ""
    """The name and last four of the provider key it was sent with, if that was not the operator's."""


class ErrorDetail(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the client was told."""

    status: int
    error_type: str
    message: str
    code: str | None = None
    param: str | None = None
    details: dict[str, Any] = {}


class Detail(msgspec.Struct, frozen=True, omit_defaults=True):
    """The column `detail`. New fields go to the end and have a default: rows live as long as the retention says."""

    rate: RateDetail | None = None
    budgets: tuple[Budget, ...] = ()
    """All that bind the caller; how much each held is said by the attempts."""
    plan: tuple[StepDetail, ...] = ()
    attempts: tuple[AttemptDetail, ...] = ()
    max_attempts: int = 0
    finish_reason: str = ""
    client_left: bool = False
    wait_ms: int = 0
    """Of the duration, spent waiting for providers."""
    error: ErrorDetail | None = None


_encode = msgspec.json.Encoder().encode


class History:
    """`note` belongs to `Meter.on_closed`; `run` ships until it is cancelled."""

    def __init__(
        self,
        database: Database,
        settings: Settings | None = None,
        *,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], Awaitable[None]] | None = None,
        max_waiting_rows: int = MAX_WAITING_ROWS,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
    ) -> None:
        self.written_total = 0
        self.dropped_total = 0
        """Requests without a row: there was no room, or Postgres will never take it."""
        self.enabled = (settings or Settings()).enabled
        self._retention_seconds = (settings or Settings()).retention_seconds
        self._database = database
        self._clock_ns = clock_ns
        self._sleep = sleep or self._until_full
        self._max_waiting_rows = max_waiting_rows
        self._max_waiting_bytes = max_waiting_bytes
        self._full = asyncio.Event()
        self._waiting: deque[bytes] = deque()
        """Encoded: as objects they would be five times as large."""
        self._waiting_bytes = 0
        self._forget_at_ns = 0

    @property
    def queue_depth(self) -> int:
        return len(self._waiting)

    def note(self, exchange: Exchange) -> None:
        """A request is over. Without a known caller it is counted elsewhere, and leaves no row."""
        if exchange.caller is None or not self.enabled:
            return
        try:
            row = encode_row(exchange, self._clock_ns())
        except Exception:
            log.exception("request %s cannot be put into the history", exchange.request_id)
            self.dropped_total += 1
            return
        waiting = self._waiting
        if len(waiting) >= self._max_waiting_rows or self._waiting_bytes + len(row) > self._max_waiting_bytes:
            self.dropped_total += 1
            return
        waiting.append(row)
        self._waiting_bytes += len(row)
        if len(waiting) == BATCH_ROWS:
            self._full.set()

    async def run(self) -> None:
        """Twice a second, or when a batch has gathered; once an hour what is too old. Goes on when Postgres is away."""
        while True:
            try:
                await self.ship()
                await self._forget()
            except GatewayFault as error:
                log.debug("the request history waits: %s", error)
            await self._sleep(INTERVAL_SECONDS)

    async def ship(self) -> None:
        """Everything that is closed by now. Raises Unavailable; nothing that had room is lost."""
        self._full.clear()
        while self._waiting:
            batch = list(itertools.islice(self._waiting, BATCH_ROWS))
            written = await self._insert(batch)
            for row in batch:
                self._waiting.popleft()
                self._waiting_bytes -= len(row)
            self.written_total += written
            self.dropped_total += len(batch) - written

    async def close(self, timeout_seconds: float = 2.0) -> None:
        """After `run` has ended: one more try for what is left."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self.ship()
        except (TimeoutError, GatewayFault):
            self.dropped_total += self.queue_depth
            log.warning("%d requests are left out of the history: the database is away", self.queue_depth)

    async def _until_full(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._full.wait()

    async def _insert(self, batch: Sequence[bytes]) -> int:
        """How many Postgres took: one bad row must not hold up the others."""
        try:
            await insert_requests(self._database, batch)
        except RowsRefused as refused:
            if len(batch) == 1:
                log.error("%s", refused)
                return 0
            return sum([await self._insert([row]) for row in batch])
        return len(batch)

    async def _forget(self) -> None:
        now_ns = self._clock_ns()
        if now_ns >= self._forget_at_ns and not await forget_requests(self._database, self._retention_seconds):
            self._forget_at_ns = now_ns + int(FORGET_SECONDS * 1e9)


def encode_row(exchange: Exchange, ended_ns: int) -> bytes:
    """One row, in the order of `requests.INSERT_REQUESTS`."""
    caller, error, attempts = exchange.caller, exchange.error, exchange.attempts
    assert caller is not None
    last = attempts[-1] if attempts else None
    first_ns = last.first_event_ns if last is not None else 0
    row = (
        exchange.id,
        exchange.started_at_ms,
        exchange.request_id,
        caller.key_id or None,
        caller.name,
        caller.user_id,
        caller.team_id,
        exchange.endpoint,
        exchange.model,
        last.deployment.name if last is not None else "",
        last.deployment.provider.name if last is not None else "",
        exchange.stream,
        exchange.status,
        error.error_type if error is not None else "caller_cancelled" if exchange.client_left else "",
        len(attempts),
        (ended_ns - exchange.started_ns) // NS_PER_MS,
        (first_ns - exchange.started_ns) // NS_PER_MS if first_ns else None,
        _cost(attempts),
        exchange.notices,
        _detail(exchange),
    )
    # Postgres stores no NUL
    return _encode(row).replace(b"\\u0000", b"\\ufffd")


def _cost(attempts: Sequence[Attempt]) -> int | None:
    """As far as prices are known; None if none was dispatched with a price."""
    known = [one.cost_nano_usd for one in attempts if one.dispatched and one.price_state != "unknown"]
    return sum(known) if known else None


def _detail(exchange: Exchange) -> Detail:
    caller, plan, error = exchange.caller, exchange.plan, exchange.error
    steps: tuple[StepDetail, ...] = ()
    if plan is not None:
        awake = len(plan.steps) - plan.asleep
        steps = tuple(
            [
                StepDetail(step.deployment.name, step.model.name, step.fallback, at >= awake)
                for at, step in enumerate(plan.steps)
            ]
        )
    return Detail(
        _rate(exchange),
        (*caller.budgets, *exchange.provider_budgets) if caller is not None else (),
        steps,
        tuple([_attempt(exchange, one) for one in exchange.attempts]),
        plan.attempts if plan is not None else 0,
        exchange.finish_reason,
        exchange.client_left,
        exchange.upstream_wait_ns // NS_PER_MS,
        _error(error) if error is not None else None,
    )


def _rate(exchange: Exchange) -> RateDetail | None:
    caller, rate, error = exchange.caller, exchange.rate, exchange.error
    if rate is not None and rate.limit is not None:
        return RateDetail(rate.limit, rate.remaining)
    rpm = min([limit.rpm for limit in caller.limits if limit.rpm is not None], default=None) if caller else None
    if rpm is None:
        return None
    return RateDetail(rpm, None, error is not None and error.error_type == "policy_rate_limited")


def _attempt(exchange: Exchange, attempt: Attempt) -> AttemptDetail:
    began, first, ended = exchange.started_ns, attempt.first_event_ns, attempt.ended_ns
    return AttemptDetail(
        attempt.number,
        attempt.deployment.name,
        attempt.deployment.provider.name,
        attempt.status,
        attempt.outcome,
        _short(attempt.error) if attempt.error else "",
        (attempt.started_ns - began) // NS_PER_MS,
        (first - began) // NS_PER_MS if first else None,
        (ended - began) // NS_PER_MS if ended else None,
        attempt.dispatched,
        attempt.hold.nano_usd if attempt.hold is not None else None,
        attempt.cost_nano_usd,
        attempt.price_state,
        f"{attempt.own_key.name} (…{attempt.own_key.last_four})" if attempt.own_key is not None else "",
    )


def _error(error: GatewayError) -> ErrorDetail:
    return ErrorDetail(
        error.status, error.error_type, _short(error.message), error.code, error.param, dict(error.details)
    )


def _short(message: str) -> str:
    """Providers quote in their errors what they were sent."""
    plain = mask(message[: 4 * MAX_ERROR_CHARS]).encode("utf-8", "replace").decode()
    return plain if len(plain) <= MAX_ERROR_CHARS else plain[: MAX_ERROR_CHARS - 1] + "…"
