"""`strata budgets`: limits on money for everybody, a provider, a team, a user or a key, and where they stand."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec

from proxy.commands import data
from proxy.commands.flags import Commands, Parser, Shared, config_of, home_of
from proxy.commands.tables import aligned, exact_dollars, plain, to_json
from proxy.config import Config
from proxy.config.budgets import SCOPES, amount
from proxy.config.problems import Wrong, shown, suggestion
from proxy.errors import CallerError
from proxy.storage.budget_settings import BudgetRow, end_budgets, list_budgets, set_budget

_LENGTHS = {60: "a minute", 3_600: "an hour", 86_400: "a day", 604_800: "a week"}


def add_parser(commands: Commands[Parser], flags: Shared) -> None:
    group = commands.add_parser("budgets", help="set, list and end limits on money")
    actions = group.add_subparsers(metavar="ACTION", required=True, parser_class=Parser)
    setting = actions.add_parser("set", help="set a budget, or raise or lower it", parents=[*flags])
    setting.add_argument("scope", metavar="SCOPE", help="global, provider, team, user or key")
    setting.add_argument("name", metavar="NAME", nargs="?", default="", help="whose; none for global")
    setting.add_argument("amount", metavar="USD[/PERIOD]", help="for example 5/1d, 100/30d, 500/month, or 100 in all")
    setting.set_defaults(run=_set)
    listing = actions.add_parser("list", help="every budget, with what is spent", parents=[*flags])
    listing.set_defaults(run=_list)
    ending = actions.add_parser("end", help="end all budgets of somebody", parents=[*flags])
    ending.add_argument("scope", metavar="SCOPE")
    ending.add_argument("name", metavar="NAME", nargs="?", default="")
    ending.set_defaults(run=_end)


def _set(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    config = config_of(args, environ)
    _check_whose(config, args.scope, args.name)
    nano_usd, length = amount("USD[/PERIOD]", args.amount)
    budget_id = data.run(
        config,
        home_of(args, environ),
        lambda db: set_budget(db, args.scope, args.name, nano_usd, length.seconds, length.calendar, data.operator()),
    )
    said = limit(nano_usd, length.seconds, length.calendar)
    if args.json:
        print(to_json({"id": budget_id, "limit_nano_usd": nano_usd, **length._asdict()}))
    else:
        print(f"{_whose(args.scope, args.name)} may spend {said}. Running gateways know it already.")
    return 0


def _list(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    rows = data.run(config_of(args, environ), home_of(args, environ), list_budgets)
    if args.json:
        print(to_json([msgspec.structs.asdict(row) for row in rows]))
    elif not rows:
        print("There are no budgets. Set one with: strata budgets set global 500/month")
    else:
        table = [("SCOPE", "NAME", "LIMIT", "SPENT", "USED", "RESETS (UTC)", "SET IN")]
        print(aligned([*table, *(_line(row) for row in rows)]))
    return 0


def _end(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    config = config_of(args, environ)
    _check_whose(config, args.scope, args.name)
    ended = data.run(config, home_of(args, environ), lambda db: end_budgets(db, args.scope, args.name, data.operator()))
    if not ended:
        raise CallerError(f"{_whose(args.scope, args.name)} has no budget set here. See: strata budgets list")
    print(to_json({"ended": ended}) if args.json else f"{_whose(args.scope, args.name)}: {ended} ended.")
    return 0


def limit(nano_usd: int, seconds: int | None, calendar: str | None) -> str:
    """`$5.00 a day`, `$100.00 in 30 days`, `$500.00 a calendar month`, `$100.00 in all`."""
    return f"{exact_dollars(nano_usd)} {_period(seconds, calendar)}"


def _period(seconds: int | None, calendar: str | None) -> str:
    if calendar is not None:
        return f"a calendar {calendar}"
    if seconds is None:
        return "in all"
    if seconds in _LENGTHS:
        return _LENGTHS[seconds]
    for length, word in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds % length == 0:
            return f"in {seconds // length} {word}"
    return f"in {seconds} seconds"


def _check_whose(config: Config, scope: str, name: str) -> None:
    scopes = (*SCOPES, "key")
    if scope not in scopes:
        raise Wrong(f"there are budgets for {', '.join(scopes)}, not for {shown(scope)}.{suggestion(scope, scopes)}")
    if (scope == "global") == bool(name):
        raise Wrong("a global budget is for everybody and has no name." if name else f"which {scope}? Give its name.")
    if scope == "provider" and name not in config.providers:
        raise Wrong(f"no provider is called {shown(name)}.{suggestion(name, list(config.providers))}")


def _whose(scope: str, name: str) -> str:
    return "This gateway" if scope == "global" else f'The {scope} "{name}"'


def _line(row: BudgetRow) -> tuple[str, ...]:
    used = f"{row.spent_nano_usd * 100 // row.limit_nano_usd} %" if row.limit_nano_usd else "-"
    resets = "-" if row.resets_at is None else f"{datetime.fromtimestamp(row.resets_at, UTC):%Y-%m-%d %H:%M}"
    said = limit(row.limit_nano_usd, row.window_seconds, row.calendar)
    owner = "the file" if row.source == "config" else "the database"
    return row.scope, plain(row.name) or "-", said, exact_dollars(row.spent_nano_usd), used, resets, owner
