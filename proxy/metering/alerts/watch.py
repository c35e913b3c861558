"""The task of alerts: looks at the ledger's sums now and then, enters what is due, and delivers what is entered."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import httpx2
import msgspec

from proxy.config import AlertRule, Alerts, Channel
from proxy.errors import GatewayFault
from proxy.metering.alerts import rules
from proxy.metering.alerts.channels import SEND_SECONDS, Message, NotSent, send
from proxy.metering.alerts.rules import Alert, Spent, Sum
from proxy.storage import alerts as sql
from proxy.storage.alerts import MAX_TRIES, NewAlert
from proxy.storage.postgres import Database

log = logging.getLogger("strata.alerts")

LOOK_SECONDS = 10.0
MAX_REMEMBERED = 10_000


class Watch:
    """`sent(channel, ok)` is told of each try."""

    def __init__(
        self,
        config: Alerts,
        db: Database,
        *,
        sent: Callable[[str, bool], None],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._config = config
        self._db = db
        self._sent = sent
        self._clock = clock
        self._sleep = sleep
        self._channels: Mapping[str, Channel] = {channel.name: channel for channel in config.channels}
        self._entered: set[tuple[str, str, str, int]] = set()
        """What is in the database for sure, so that it is not sent there every few seconds."""

    async def run(self) -> None:
        """Until cancelled. Postgres may be away: nothing is due that it does not know."""
        if not self._config.rules:
            return
        async with client() as http:
            while True:
                with contextlib.suppress(GatewayFault):
                    await self.look()
                    await self.deliver(http)
                await self._sleep(LOOK_SECONDS)

    async def look(self) -> int:
        """Enters what is due and new; returns how many alerts that were. Raises Unavailable."""
        due = [alert for alert in await self._due() if _key(alert) not in self._entered]
        if not due:
            return 0
        new = await sql.raise_alerts(self._db, [self._addressed(alert) for alert in due])
        if len(self._entered) + len(due) > MAX_REMEMBERED:
            self._entered.clear()
        self._entered.update(map(_key, due))
        return new

    async def deliver(self, http: httpx2.AsyncClient) -> int:
        """Tries what is waiting, each once; returns how many were sent. Raises Unavailable."""
        done = 0
        for row in await sql.claim_deliveries(self._db, list(self._channels)):
            error = ""
            try:
                await send(self._channels[row["channel"]], self._config.smtp, message_of(dict(row)), http)
            except NotSent as reason:
                error = str(reason)
                final = " It is not tried again." if row["tries"] >= MAX_TRIES else ""
                log.warning("an alert could not be sent to the channel %s: %s.%s", row["channel"], error, final)
            self._sent(row["channel"], not error)
            done += not error
            await sql.note_delivery(self._db, row["id"], row["channel"], error)
        return done

    async def _due(self) -> list[Alert]:
        wanted = {rule.when for rule in self._config.rules}
        now = self._clock()
        day = now.astimezone(UTC).date().isoformat()
        budgets: list[Spent] = []
        if wanted & {"budget_used", "budget_forecast"}:
            budgets = [msgspec.convert(dict(row), Spent) for row in await sql.budgets_now(self._db)]
        sums = [dict(row) for row in await sql.spend_today(self._db)] if "spend" in wanted else []
        unpriced = await sql.unpriced_today(self._db) if "unpriced_requests" in wanted else []
        found: list[Alert] = []
        for rule in self._config.rules:
            if rule.when == "budget_used":
                found += rules.budget_used(rule, budgets)
            elif rule.when == "budget_forecast":
                found += rules.budget_forecast(rule, budgets, now)
            elif rule.when == "spend":
                found += rules.spend(rule, [_sum(row) for row in sums if row["per"] == rule.per], day)
            else:
                found += rules.unpriced_requests(rule, [_sum(dict(row)) for row in unpriced], day)
        return found

    def _addressed(self, alert: Alert) -> NewAlert:
        rule = next(rule for rule in self._config.rules if rule.name == alert.rule)
        channels = () if alert.silent else _addressees(rule, self._channels)
        return NewAlert(
            alert.rule, alert.subject, alert.period, alert.threshold, alert.title, alert.detail, tuple(channels)
        )


def client() -> httpx2.AsyncClient:
    """For channels: no redirects, no proxy of the environment, a bound on each wait."""
    return httpx2.AsyncClient(timeout=SEND_SECONDS, follow_redirects=False, trust_env=False)


def message_of(row: Mapping[str, Any]) -> Message:
    return Message(
        id=row["id"],
        rule=row["rule"],
        title=row["title"],
        subject=row["subject"],
        period=row["period"],
        threshold=row["threshold"],
        at=row["at"].isoformat(),
        detail=msgspec.json.decode(row["detail"]),
    )


def _addressees(rule: AlertRule, channels: Mapping[str, Channel]) -> list[str]:
    return [name for name in (rule.notify or channels) if name in channels]


def _key(alert: Alert) -> tuple[str, str, str, int]:
    return alert.rule, alert.subject, alert.period, alert.threshold


def _sum(row: Mapping[str, Any]) -> Sum:
    return Sum(row["subject"], row["name"], row["amount"])
