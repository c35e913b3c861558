"""`strata request show`: what happened to one request, and why it cost what it cost."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from proxy.commands import data
from proxy.commands.flags import Commands, Parser, Shared, config_of, home_of
from proxy.commands.tables import exact_dollars, plain, to_json
from proxy.config.problems import shown
from proxy.errors import CallerError
from proxy.exchange import Budget
from proxy.metering.explanation import Bill, Explanation, Tried, explain
from proxy.storage.postgres import Database
from proxy.storage.requests import find_request

WIDTH = 10
ATTEMPT_INDENT = " " * (WIDTH + 3)


def add_parser(commands: Commands[Parser], flags: Shared) -> None:
    group = commands.add_parser("request", help="what happened to one request, and why it cost what it cost")
    actions = group.add_subparsers(metavar="ACTION", required=True, parser_class=Parser)
    showing = actions.add_parser("show", help="limits, attempts, tokens times prices", parents=[*flags])
    showing.add_argument("id", metavar="ID", help="the x-request-id of its answer")
    showing.set_defaults(run=_show)


def _show(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    wanted = args.id.strip()
    row: dict[str, Any] | None = None
    bill: list[dict[str, Any]] = []
    if "\0" not in wanted:
        row, bill = data.run(config_of(args, environ), home_of(args, environ), lambda db: _find(db, wanted))
    if row is None and not bill:
        raise CallerError(
            f"No request is known as {shown(wanted)}. Its x-request-id is on its answer; rows arrive within a second.",
            status=404,
            code="request_not_found",
        )
    said = explain(row, bill)
    print(to_json({"object": "request", **msgspec.to_builtins(said)}) if args.json else "\n".join(told(said)))
    return 0


async def _find(db: Database, name: str) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    async with db.transaction() as connection:
        return await find_request(connection, name)


def told(said: Explanation) -> Iterator[str]:
    """The explanation as lines."""
    yield _line("Request", f"{said.request_id}  {said.started_at:%Y-%m-%d %H:%M:%S} UTC  {said.id}")
    kind = "streamed" if said.stream else "whole"
    yield _line("Who", f"key {plain(said.key_name)!r}, {said.endpoint}, {plain(said.model) or 'no model'}, {kind}")
    yield _line("Answer", _answer(said))
    if said.error is not None:
        yield _line("", plain(said.error.message))
    if said.recorded:
        yield from _labelled("Limits", _limits(said))
        yield from _labelled("Plan", _plan(said))
    yield from _labelled("Changed", [f"{plain(one['param'])}: {plain(one['message'])}" for one in said.notices])
    for number, one in enumerate(said.attempts):
        yield from _attempt(one, "Attempts" if number == 0 else "")
    yield _line("Cost", _cost(said))


def _line(label: str, text: str) -> str:
    return f"{label:<{WIDTH}}{text}".rstrip()


def _labelled(label: str, lines: list[str]) -> Iterator[str]:
    for number, line in enumerate(lines):
        yield _line(label if number == 0 else "", line)


def _answer(said: Explanation) -> str:
    if not said.recorded:
        return "not in the history; what follows is what the ledger knows"
    parts = [f"{said.status}", *([said.error.error_type] if said.error else [])]
    parts.append(f"{_seconds(said.duration_ms)}, {_seconds(said.wait_ms)} of it waiting for providers")
    if said.stream and said.first_token_ms is not None:
        parts.append(f"first token after {_seconds(said.first_token_ms)}")
    if said.finish_reason:
        parts.append(f"finish_reason {plain(said.finish_reason)}")
    if said.client_left:
        parts.append("the client left before the end")
    return " · ".join(parts)


def _limits(said: Explanation) -> list[str]:
    lines = []
    if said.rate is not None:
        left = f"{said.rate.remaining} left after this one"
        if said.rate.remaining is None:
            left = "and they were used up" if said.rate.refused else "not asked: it was refused before"
        lines.append(f"{said.rate.limit} requests a minute, {left}")
    held = [one.held_nano_usd for one in said.attempts if one.held_nano_usd is not None]
    for budget in said.budgets:
        set_aside = f"{exact_dollars(max(held))} set aside for it" if held else "nothing set aside"
        lines.append(
            f"budget of {_whose(budget)}: {exact_dollars(budget.limit_nano_usd)}{_window(budget)}, {set_aside}"
        )
    return lines or ["none: the key has neither a limit nor a budget"]


def _whose(budget: Budget) -> str:
    if budget.scope == "global":
        return "everybody"
    return f"the {budget.scope} {plain(budget.subject)}" if budget.scope == "provider" else f"the {budget.scope}"


def _window(budget: Budget) -> str:
    if budget.calendar is not None:
        return f" a {budget.calendar}"
    return " in all" if budget.window_seconds is None else f" every {budget.window_seconds:,} s"


def _plan(said: Explanation) -> list[str]:
    lines = []
    for number, step in enumerate(said.plan, 1):
        notes = [f"fallback to {plain(step.model)}"] if step.fallback else []
        notes += ["resting"] if step.resting else []
        said_of_it = f" ({', '.join(notes)})" if notes else ""
        lines.append(f"{number}  {plain(step.deployment)}{said_of_it}")
    if lines:
        lines.append(f"at most {said.max_attempts} attempt{'s' if said.max_attempts > 1 else ''} in all")
    return lines


def _attempt(one: Tried, label: str) -> Iterator[str]:
    status = f"{one.status} " if one.status else ""
    took = f"  {_seconds(one.duration_ms)}" if one.duration_ms is not None else ""
    yield _line(label, f"{one.number:<3}{plain(one.deployment)}  {status}{one.outcome}{took}")
    if one.own_key:
        yield f"{ATTEMPT_INDENT}paid by the provider key {plain(one.own_key)}, not by the operator's"
    if one.error:
        yield ATTEMPT_INDENT + plain(one.error)
    if one.bill is not None:
        yield from (ATTEMPT_INDENT + line for line in _bill(one.bill))
    elif one.dispatched:
        yield ATTEMPT_INDENT + "its ledger row is on its way: look again in a second"
    else:
        yield ATTEMPT_INDENT + "nothing was sent, so nothing is billed"


def _bill(bill: Bill) -> Iterator[str]:
    suspect = "; its numbers do not add up" if bill.usage_suspect else ""
    yield f"usage: {bill.source}, {bill.source_says}{suspect}"
    tier = f", {plain(bill.service_tier)}" if bill.service_tier else ""
    yield f"price: {plain(bill.price_source) or 'none'} ({bill.price_state}{tier})"
    cost = exact_dollars(bill.cost_nano_usd)
    if bill.lines is None:
        for bucket, count in bill.usage.items():
            yield f"  {bucket:<15}{count:>12,}"
        yield f"  {'billed':<15}{cost:>12}   line not stored: it cannot be calculated again"
        return
    for line in bill.lines:
        each = "has no price" if line.pico_usd_each is None else f"x ${_per_million(line.pico_usd_each)}/M"
        yield f"  {line.bucket:<15}{line.count:>12,} {each:<18} = ${_pico(line.pico_usd)}"
    verdict = "as in the ledger" if bill.agrees else f"BUT THE LEDGER SAYS {cost}"
    yield f"  {'sum':<15}{exact_dollars(bill.calculated_nano_usd or 0):>12}   {verdict}"


def _cost(said: Explanation) -> str:
    parts = [exact_dollars(said.cost_nano_usd)]
    if said.unpriced:
        parts.append("at least: a part has no known price")
    if not said.complete:
        parts.append("so far: a row is on its way")
    if said.agrees is not None:
        parts.append("every row agrees with its price lines" if said.agrees else "THE NUMBERS DO NOT AGREE")
    return ", ".join(parts)


def _seconds(milliseconds: int | None) -> str:
    milliseconds = milliseconds or 0
    return f"{milliseconds} ms" if milliseconds < 1_000 else f"{milliseconds / 1_000:.2f} s"


def _per_million(pico_usd: int) -> str:
    """Dollars a million, of pico-dollars each."""
    whole, rest = divmod(pico_usd, 10**6)
    return f"{whole}.{f'{rest:06d}'.rstrip('0').ljust(2, '0')}"


def _pico(pico_usd: int) -> str:
    whole, rest = divmod(pico_usd, 10**12)
    return f"{whole}.{f'{rest:012d}'.rstrip('0').ljust(2, '0')}"
