"""`strata migrate`: brings the database up to date by hand, where `database.auto_migrate` is off."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import msgspec

from proxy.commands import data
from proxy.commands.flags import Commands, Parser, Shared, config_of, home_of


def add_parser(commands: Commands[Parser], flags: Shared) -> None:
    migrating = commands.add_parser("migrate", help="bring the database up to date", parents=[*flags])
    migrating.set_defaults(run=_migrate)


def _migrate(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    applied = data.apply_migrations(config_of(args, environ), home_of(args, environ))
    if args.json:
        print(msgspec.json.encode({"applied": applied}).decode())
    else:
        print("\n".join(f"applied {name}" for name in applied) or "The database is up to date.")
    return 0
