"""What is due, from what has been spent: pure. Of thresholds that were passed together only the highest is said."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from proxy.config import AlertRule

FORECAST_AFTER_PART = 20
"""A forecast needs a twentieth of the period behind it …"""
FORECAST_AFTER = timedelta(minutes=10)
FORECAST_SPENT_PART = 10
"""… and a tenth of the budget: before, one request more or less turns it over."""

_SCOPES = {"global": "all", "key": "the key", "user": "the user", "team": "the team", "provider": "the provider"}


class Spent(msgspec.Struct, frozen=True):
    """One budget in its current period."""

    budget_id: str
    scope: str
    name: str
    limit_nano_usd: int
    spent_nano_usd: int
    starts_at: datetime
    ends_at: datetime | None


class Sum(msgspec.Struct, frozen=True):
    """What one subject came to today: nano-dollars, or requests."""

    subject: str
    name: str
    amount: int


class Alert(msgspec.Struct, frozen=True):
    rule: str
    subject: str
    period: str
    threshold: int
    title: str
    detail: dict[str, Any]
    silent: bool = False
    """Written down as said, since a higher threshold is said in its place."""


def budget_used(rule: AlertRule, budgets: Iterable[Spent]) -> Iterator[Alert]:
    for budget in budgets:
        passed = [part for part in rule.above if budget.spent_nano_usd * 1000 >= budget.limit_nano_usd * part]
        for part in passed:
            gone = f"{dollars(budget.spent_nano_usd)} of {dollars(budget.limit_nano_usd)}"
            title = f"{_budget_of(budget)} has passed {part / 10:g} %: {gone} spent{_until(budget)}."
            yield _of_budget(rule, budget, part, title, silent=part != passed[-1])


def budget_forecast(rule: AlertRule, budgets: Iterable[Spent], now: datetime) -> Iterator[Alert]:
    """At the pace of the period so far, a budget will be spent before the period ends."""
    for budget in budgets:
        ends_at = will_be_spent(budget, now)
        if ends_at is None:
            continue
        gone = f"{dollars(budget.spent_nano_usd)} of {dollars(budget.limit_nano_usd)}"
        title = f"{_budget_of(budget)} will be spent on {_moment(ends_at)}: {gone} gone{_until(budget)}."
        yield _of_budget(rule, budget, 0, title)


def will_be_spent(budget: Spent, now: datetime) -> datetime | None:
    """When the limit is reached if spending goes on like this; None: not in this period, or too early."""
    if budget.ends_at is None or not 0 < budget.spent_nano_usd < budget.limit_nano_usd:
        return None
    elapsed, length = now - budget.starts_at, budget.ends_at - budget.starts_at
    if elapsed < max(FORECAST_AFTER, length / FORECAST_AFTER_PART):
        return None
    if budget.spent_nano_usd * FORECAST_SPENT_PART < budget.limit_nano_usd:
        return None
    reached = budget.starts_at + timedelta(
        seconds=elapsed.total_seconds() * budget.limit_nano_usd // budget.spent_nano_usd
    )
    return reached if reached < budget.ends_at else None


def spend(rule: AlertRule, sums: Iterable[Sum], day: str) -> Iterator[Alert]:
    for one in sums:
        passed = [amount for amount in rule.above if one.amount >= amount]
        for amount in passed:
            who = "Everybody together" if rule.per == "all" else f"The {rule.per} {one.name}"
            title = f"{who} has spent {dollars(one.amount)} today ({day}, UTC), more than {dollars(amount)}."
            detail = {"per": rule.per, "name": one.name, "spent_nano_usd": one.amount}
            yield Alert(rule.name, f"{rule.per}:{one.subject}", day, amount, title, detail, amount != passed[-1])


def unpriced_requests(rule: AlertRule, sums: Iterable[Sum], day: str) -> Iterator[Alert]:
    for one in sums:
        passed = [number for number in rule.above if one.amount > number]
        for number in passed:
            times = "one request" if one.amount == 1 else f"{one.amount} requests"
            title = (
                f"{one.name} has no price: {times} today ({day}, UTC) cost an unknown amount. Add it to prices.models."
            )
            detail = {"deployment": one.name, "requests": one.amount}
            yield Alert(rule.name, one.subject, day, number, title, detail, number != passed[-1])


def dollars(nano_usd: int) -> str:
    """`$4.02`; four decimals where two would hide it."""
    if 0 < nano_usd < 10_000_000:
        return f"${nano_usd // 100_000 / 10_000:.4f}"
    cents = nano_usd // 10_000_000
    return f"${cents // 100}.{cents % 100:02d}"


def _of_budget(rule: AlertRule, budget: Spent, threshold: int, title: str, *, silent: bool = False) -> Alert:
    detail = {
        "scope": budget.scope,
        "name": budget.name,
        "limit_nano_usd": budget.limit_nano_usd,
        "spent_nano_usd": budget.spent_nano_usd,
        "resets_at": budget.ends_at.isoformat() if budget.ends_at else None,
    }
    return Alert(rule.name, budget.budget_id, budget.starts_at.isoformat(), threshold, title, detail, silent)


def _budget_of(budget: Spent) -> str:
    who = _SCOPES.get(budget.scope, budget.scope)
    return f"The budget of {who}" + (f' "{budget.name}"' if budget.name else "")


def _until(budget: Spent) -> str:
    return f", and it must last until {_moment(budget.ends_at)}" if budget.ends_at else ""


def _moment(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%A, %-d %B %H:%M UTC")
