"""
Why a request cost what it cost: its row of the history beside its rows of the ledger, calculated again. Pure.

The ledger says what was billed; the price lines it names say why. Where one of them is missing, that is said: nothing
is made up, and a sum that does not agree is shown as one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from proxy.exchange import Budget
from proxy.metering.history import AttemptDetail, Detail, ErrorDetail, RateDetail, StepDetail
from proxy.metering.meter import MAX_COST_NANO_USD
from proxy.metering.price_lines import COLUMNS, PICO_PER_NANO, REQUEST
from proxy.storage.prices import STRIDE

SOURCES = {
    "provider": "as the provider reported it",
    "drained": "as the provider reported it, after the client had left",
    "counted": "counted here, for the provider reported nothing",
    "ambiguous": "assumed: it was sent, and no answer came",
    "orphan": "an upper bound: the gateway died before it was settled",
    "none": "refused before any work, so not billed",
    "adjustment": "a correction, entered later",
}
NOT_BY_PRICE = frozenset({"orphan", "adjustment"})
"""Sources whose cost is not tokens times price: what was set aside, what somebody decided."""


class Line(msgspec.Struct, frozen=True):
    """One product of the bill. `pico_usd_each` None: this bucket has no price, and is not in the sum."""

    bucket: str
    count: int
    pico_usd_each: int | None
    pico_usd: int


class Bill(msgspec.Struct, frozen=True):
    """One ledger row."""

    source: str
    source_says: str
    usage: dict[str, int]
    usage_raw: str
    usage_suspect: bool
    price_state: str
    price_source: str
    service_tier: str
    lines: tuple[Line, ...] | None
    """None: its price lines are not stored, or its cost is not made of them."""
    calculated_nano_usd: int | None
    cost_nano_usd: int
    agrees: bool | None
    """Whether the lines come to the cost; None: nothing to compare."""


class Tried(msgspec.Struct, frozen=True):
    """One attempt, or a correction (numbers below 1). Times are milliseconds since the request began."""

    number: int
    deployment: str
    provider: str
    status: int
    outcome: str
    error: str
    dispatched: bool
    started_ms: int | None
    first_event_ms: int | None
    ended_ms: int | None
    duration_ms: int | None
    held_nano_usd: int | None
    bill: Bill | None
    """None: nothing was sent, or the row is on its way."""
    own_key: str = ""
    """The provider key that paid, if that was not the operator's: its name, or its id if only the ledger knows it."""


class Explanation(msgspec.Struct, frozen=True):
    id: str
    request_id: str
    started_at: datetime
    endpoint: str
    model: str
    stream: bool
    key_id: str | None
    key_name: str
    user_id: str | None
    team_id: str | None
    recorded: bool
    """Whether the history has it; else only what the ledger knows is said."""
    status: int | None
    duration_ms: int | None
    wait_ms: int | None
    first_token_ms: int | None
    client_left: bool
    finish_reason: str
    rate: RateDetail | None
    budgets: tuple[Budget, ...]
    plan: tuple[StepDetail, ...]
    max_attempts: int
    attempts: tuple[Tried, ...]
    notices: list[dict[str, Any]]
    error: ErrorDetail | None
    cost_nano_usd: int
    """The sum of the ledger's rows."""
    unpriced: bool
    """Some part has no known price, and none has been entered since: the cost is a lower bound."""
    complete: bool
    """Whether every attempt that was sent has its row by now."""
    agrees: bool | None
    """Whether every row agrees with its price lines and the sum with what was said at the time; None: not all known."""


Row = Mapping[str, Any]


def explain(row: Row | None, bill: Sequence[Row]) -> Explanation:
    """`row`: of the history, None if it has none; `bill`: of the ledger. One of them must be there."""
    known = row if row is not None else bill[0]
    detail = msgspec.json.decode(row["detail"], type=Detail) if row is not None else Detail()
    attempts = tuple(_attempts(detail, bill))
    complete = all(one.bill is not None for one in attempts if one.dispatched)
    cost = sum(line["cost_nano_usd"] for line in bill)
    corrected = {-line["attempt"] % STRIDE for line in bill if line["attempt"] < 0}
    return Explanation(
        id=known["id"] if row is not None else known["request_id"],
        request_id=known["public_id"],
        started_at=known["started_at"],
        endpoint=known["endpoint"],
        model=known["model"],
        stream=known["stream"],
        key_id=known["key_id"],
        key_name=known["key_name"],
        user_id=known["user_id"],
        team_id=known["team_id"],
        recorded=row is not None,
        status=row["status"] if row is not None else None,
        duration_ms=row["duration_ms"] if row is not None else None,
        wait_ms=detail.wait_ms if row is not None else None,
        first_token_ms=row["first_token_ms"] if row is not None else None,
        client_left=detail.client_left,
        finish_reason=detail.finish_reason,
        rate=detail.rate,
        budgets=detail.budgets,
        plan=detail.plan,
        max_attempts=detail.max_attempts,
        attempts=attempts,
        notices=msgspec.json.decode(row["notices"]) if row is not None else [],
        error=detail.error,
        cost_nano_usd=cost,
        unpriced=any(line["price_state"] == "unknown" and line["attempt"] not in corrected for line in bill),
        complete=complete,
        agrees=_agree(row, attempts, complete),
    )


def price_again(row: Row) -> tuple[tuple[Line, ...] | None, int | None]:
    """
    The lines of a ledger row and what they come to, rounded half up once, and bounded as the meter does. None: they are
    not stored.
    """
    if row["lines"] is None or row["source"] in NOT_BY_PRICE:
        return None, None
    rates: Mapping[str, int | None] = msgspec.json.decode(row["lines"])
    if row["source"] == "none":
        return (), 0
    lines = [_line(bucket, row[column], rates.get(bucket)) for bucket, column in COLUMNS.items() if row[column]]
    if rates.get(REQUEST):
        lines.append(_line(REQUEST, 1, rates[REQUEST]))
    pico = sum(line.pico_usd for line in lines)
    return tuple(lines), min((pico + PICO_PER_NANO // 2) // PICO_PER_NANO, MAX_COST_NANO_USD)


def _line(bucket: str, count: int, each: int | None) -> Line:
    return Line(bucket, count, each, count * each if each is not None else 0)


def _attempts(detail: Detail, bill: Sequence[Row]) -> Iterable[Tried]:
    rows = {row["attempt"]: row for row in bill}
    for one in detail.attempts:
        row = rows.pop(one.number, None)
        duration = one.ended_ms - one.started_ms if one.ended_ms is not None else None
        yield _tried(one, row, one.started_ms, duration)
    for number, row in rows.items():
        said = AttemptDetail(
            number,
            row["deployment"],
            row["provider"],
            row["status"],
            row["outcome"],
            dispatched=number > 0,
            own_key=row.get("provider_key_id") or "",
        )
        yield _tried(said, row, None, row["duration_ms"])


def _tried(one: AttemptDetail, row: Row | None, started_ms: int | None, duration_ms: int | None) -> Tried:
    return Tried(
        number=one.number,
        deployment=one.deployment,
        provider=one.provider,
        status=one.status,
        outcome=one.outcome,
        error=one.error,
        dispatched=one.dispatched,
        started_ms=started_ms,
        first_event_ms=one.first_event_ms,
        ended_ms=one.ended_ms,
        duration_ms=duration_ms,
        held_nano_usd=one.held_nano_usd,
        bill=_bill(row) if row is not None else None,
        own_key=one.own_key,
    )


def _bill(row: Row) -> Bill:
    lines, calculated = price_again(row)
    return Bill(
        source=row["source"],
        source_says=SOURCES[row["source"]],
        usage={bucket: row[column] for bucket, column in COLUMNS.items() if row[column]},
        usage_raw=row["usage_raw"],
        usage_suspect=row["usage_suspect"],
        price_state=row["price_state"],
        price_source=row["price_source"],
        service_tier=row["service_tier"],
        lines=lines,
        calculated_nano_usd=calculated,
        cost_nano_usd=row["cost_nano_usd"],
        agrees=None if calculated is None else calculated == row["cost_nano_usd"],
    )


def _agree(row: Row | None, attempts: Sequence[Tried], complete: bool) -> bool | None:
    bills = [one.bill for one in attempts if one.bill is not None]
    verdicts = [bill.agrees for bill in bills if bill.source not in NOT_BY_PRICE]
    if row is not None and complete and row["cost_nano_usd"] is not None:
        priced = [one.bill for one in attempts if one.number > 0 and one.bill is not None]
        verdicts.append(
            row["cost_nano_usd"] == sum(bill.cost_nano_usd for bill in priced if bill.price_state != "unknown")
        )
    if False in verdicts:
        return False
    return True if verdicts and complete and None not in verdicts else None
