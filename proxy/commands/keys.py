"""
`strata keys`: make, list, rotate and revoke virtual keys. A key is shown whole once, where it is made, and never again.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from proxy.admission.key_rules import grace_period
from proxy.admission.keys import digest, display, new_key
from proxy.commands import data
from proxy.commands.budgets import limit
from proxy.commands.flags import Commands, Parser, Shared, config_of, home_of, with_master_key
from proxy.commands.tables import aligned, plain, to_json
from proxy.config import Config, KeyDefaults, StaticKey
from proxy.config.budgets import amount, parsed
from proxy.config.keys import may_name
from proxy.config.problems import Wrong, shown, suggestion
from proxy.config.quantities import integer, whole_seconds
from proxy.errors import CallerError
from proxy.exchange import Budget
from proxy.storage.key_changes import StoredSecret
from proxy.storage.keys import KeyRow, insert_key, list_keys, replace_secret, revoke_key
from proxy.storage.postgres import Database
from proxy.storage.root import unlock
from proxy.storage.vault import Vault


def add_parser(commands: Commands[Parser], flags: Shared) -> None:
    group = commands.add_parser("keys", help="make, list, rotate and revoke virtual keys")
    actions = group.add_subparsers(metavar="ACTION", required=True, parser_class=Parser)
    making = actions.add_parser("create", help="make a key and show it once", parents=[*flags])
    making.add_argument("name", metavar="NAME")
    making.add_argument("--models", metavar="A,B", help='what it may use, for example fast,sim/*; "*" is all')
    making.add_argument("--budget", metavar="USD[/PERIOD]", help="for example 5/1d, or 100 in all")
    making.add_argument("--rpm", metavar="N", help="requests a minute")
    making.add_argument("--tpm", metavar="N", help="tokens a minute")
    making.add_argument("--max-parallel", metavar="N", help="requests at once")
    making.add_argument("--expires", metavar="PERIOD", help="for example 90d")
    making.set_defaults(run=_create)
    listing = actions.add_parser("list", help="every key", parents=[*flags])
    listing.set_defaults(run=_show_all)
    rotating = actions.add_parser("rotate", help="give a key a new secret, and show it once", parents=[*flags])
    rotating.add_argument("name", metavar="NAME", help="its name or id")
    rotating.add_argument("--grace", metavar="PERIOD", help="how long the old secret goes on, for example 1h")
    rotating.set_defaults(run=_rotate)
    ending = actions.add_parser("revoke", help="end a key, by name or id", parents=[*flags])
    ending.add_argument("name", metavar="NAME")
    ending.set_defaults(run=_revoke)


def _create(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    config = config_of(args, environ)
    wanted = limits(
        config.keys.defaults,
        models=args.models,
        budget=args.budget,
        rpm=args.rpm,
        tpm=args.tpm,
        max_parallel=args.max_parallel,
        expires=args.expires,
    )
    secrets = with_master_key(config, environ)
    print(create(config, home_of(args, environ), secrets, args.name, wanted, as_json=args.json))
    return 0


def _show_all(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    print(show_all(config_of(args, environ), home_of(args, environ), as_json=args.json))
    return 0


def _rotate(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    config = config_of(args, environ)
    grace = None if args.grace is None else parsed("--grace", args.grace, grace_period)
    secrets = with_master_key(config, environ)
    print(rotate(config, home_of(args, environ), secrets, args.name, grace, as_json=args.json))
    return 0


def _revoke(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    print(revoke(config_of(args, environ), home_of(args, environ), args.name, as_json=args.json))
    return 0


def limits(
    defaults: KeyDefaults,
    *,
    models: str | None,
    budget: str | None,
    rpm: str | None,
    expires: str | None,
    tpm: str | None = None,
    max_parallel: str | None = None,
) -> KeyDefaults:
    """What a new key gets: the flags, and the configuration's defaults where there are none. Raises `Wrong`."""
    said: dict[str, Any] = {}
    if models is not None:
        said["models"] = tuple(dict.fromkeys(name.strip() for name in models.split(",") if name.strip()))
        if not said["models"]:
            raise Wrong('--models must name at least one model, or "*" for all.')
    for name, value in (("rpm", rpm), ("tpm", tpm), ("max_parallel", max_parallel)):
        if value is not None:
            said[name] = parsed(f"--{name.replace('_', '-')}", value, integer(1, 1_000_000_000))
    if expires is not None:
        said["expires_seconds"] = parsed("--expires", expires, whole_seconds)
    if budget is not None:
        nano_usd, length = amount("--budget", budget)
        said |= {"budget_nano_usd": nano_usd, "budget_seconds": length.seconds, "budget_calendar": length.calendar}
    return msgspec.structs.replace(defaults, **said)


def create(
    config: Config,
    home: Path,
    environ: Mapping[str, str],
    name: str,
    wanted: KeyDefaults,
    *,
    as_json: bool,
    clock: Callable[[], float] = time.time,
) -> str:
    """Makes a key. Raises GatewayError."""
    if not re.fullmatch(r"\S(.{0,62}\S)?", name) or not name.isprintable():
        raise CallerError("A key's name has 1 to 64 printable characters. Choose another name.", code="bad_name")
    if any(key.name == name for key in config.keys.static):
        raise CallerError(f'The name "{name}" belongs to a key of {config.source}. Choose another.', code="name_taken")
    vault = Vault.open(home, environ)
    key = new_key(config.keys.prefix)
    expires_at = clock() + wanted.expires_seconds if wanted.expires_seconds else None

    async def insert(database: Database) -> KeyRow:
        await unlock(database, vault)
        return await insert_key(
            database,
            name=name,
            digest=digest(key, vault.pepper),
            pepper_id=vault.pepper_id,
            display=display(key),
            models=wanted.models,
            rpm=wanted.rpm,
            tpm=wanted.tpm,
            max_parallel=wanted.max_parallel,
            expires_at=expires_at,
            budget_limit_nano_usd=wanted.budget_nano_usd,
            budget_window_seconds=wanted.budget_seconds,
            budget_calendar=wanted.budget_calendar,
            actor=data.operator(),
        )

    row = data.run(config, home, insert)
    if as_json:
        return to_json({**_described(row), "key": key})
    address = f"http{'s' if config.server.tls else ''}://{_host(config.server.host)}:{config.server.port}"
    facts = [f"Name {row.name}", f"models {_models(row)}", _budget(row) or "no budget"]
    facts += [f"{row.rpm} requests/min"] if row.rpm is not None else []
    facts += [f"{row.tpm} tokens/min"] if row.tpm is not None else []
    facts += [f"{row.max_parallel} at once"] if row.max_parallel is not None else []
    facts += [f"expires {_day(row.expires_at)}"] if row.expires_at else []
    lines = [
        f"  Key       {key}        copy it now: it is stored only as a hash",
        f"  {' · '.join(facts)}",
        f'  Test it   curl -s {address}/v1/models -H "Authorization: Bearer {display(key)}"',
    ]
    lines += [f"  Note      {note}" for note in unknown_models(config, wanted.models)]
    return "\n".join(lines)


def unknown_models(config: Config, names: Sequence[str]) -> list[str]:
    """A word on each name that no model of this configuration has. The gateway may run with another."""
    return [
        f"no model is called {shown(name)} in {config.source or 'the configuration'}.{suggestion(name, config.models)}"
        for name in names
        if not may_name(name, config.models)
    ]


def show_all(config: Config, home: Path, *, as_json: bool, clock: Callable[[], float] = time.time) -> str:
    """Every key, newest first, then those of the file. Raises GatewayError."""
    rows = data.run(config, home, list_keys)
    if as_json:
        return to_json([*(_described(row) for row in rows), *(_described_static(key) for key in config.keys.static)])
    if not rows and not config.keys.static:
        return "There are no keys. Make one with: strata keys create NAME"
    now = clock()
    table = [("NAME", "KEY", "MODELS", "BUDGET", "RPM", "CREATED", "EXPIRES", "LAST USED", "STATE")]
    for row in rows:
        rpm, state = "-" if row.rpm is None else str(row.rpm), _state(row, now)
        dates = (_day(row.created_at), _day(row.expires_at), _day(row.last_used_at))
        table.append((plain(row.name), row.display, plain(_models(row)), _budget(row) or "-", rpm, *dates, state))
    for key in config.keys.static:
        rpm = "-" if key.rpm is None else str(key.rpm)
        nano_usd = key.budget_nano_usd
        budget = "-" if nano_usd is None else limit(nano_usd, key.budget_seconds, key.budget_calendar)
        shown_key = display(key.key.reveal())
        table.append(
            (plain(key.name), shown_key, plain(",".join(key.models)), budget, rpm, "-", "-", "-", "in the file")
        )
    return aligned(table)


def rotate(
    config: Config,
    home: Path,
    environ: Mapping[str, str],
    name: str,
    grace_seconds: int | None,
    *,
    as_json: bool,
) -> str:
    """Gives a key a new secret. Raises GatewayError."""
    if any(key.name == name for key in config.keys.static):
        raise CallerError(f'The key "{name}" belongs to {config.source}. Change it there.', code="key_of_file")
    vault = Vault.open(home, environ)
    key = new_key(config.keys.prefix)

    async def replace(database: Database) -> KeyRow | None:
        await unlock(database, vault)
        secret = StoredSecret(digest(key, vault.pepper), vault.pepper_id, display(key))
        return await replace_secret(database, name, secret, grace_seconds, data.operator())

    row = data.run(config, home, replace)
    if row is None:
        raise CallerError(f"No key in force is called {shown(name)}. See: strata keys list", code="key_not_found")
    if as_json:
        return to_json({**_described(row), "key": key})
    old = f"works until {_moment(row.previous_until)}" if row.previous_until is not None else "has ended"
    return (
        f"  Key       {key}        copy it now: it is stored only as a hash\n"
        f"  Name {row.name} · the same key, its budgets and what it has spent · the old secret {old}"
    )


def revoke(config: Config, home: Path, name: str, *, as_json: bool) -> str:
    """Ends a key by its name or id. Raises GatewayError."""
    if any(key.name == name for key in config.keys.static):
        raise CallerError(f'The key "{name}" belongs to {config.source}. Take it out there.', code="key_of_file")
    row = data.run(config, home, lambda database: revoke_key(database, name, data.operator()))
    if row is None:
        raise CallerError(f"No key in force is called {shown(name)}. See: strata keys list", code="key_not_found")
    if as_json:
        return to_json(_described(row))
    return f'The key "{row.name}" ({row.display}) is revoked. Running gateways refuse it from now on.'


def _described(row: KeyRow) -> dict[str, Any]:
    budget = _own_budget(row)
    return {
        "id": row.id,
        "name": row.name,
        "display": row.display,
        "models": row.models,
        "rpm": row.rpm,
        "tpm": row.tpm,
        "max_parallel": row.max_parallel,
        "budget_nano_usd": budget.limit_nano_usd if budget else None,
        "budget_seconds": budget.window_seconds if budget else None,
        "budget_calendar": budget.calendar if budget else None,
        "created_at": _moment(row.created_at),
        "expires_at": _moment(row.expires_at),
        "revoked_at": _moment(row.revoked_at),
        "last_used_at": _moment(row.last_used_at),
        "rotated_at": _moment(row.rotated_at),
        "old_secret_until": _moment(row.previous_until),
        "source": "database",
    }


def _described_static(key: StaticKey) -> dict[str, Any]:
    return {
        "name": key.name,
        "display": display(key.key.reveal()),
        "models": key.models,
        "rpm": key.rpm,
        "tpm": key.tpm,
        "max_parallel": key.max_parallel,
        "budget_nano_usd": key.budget_nano_usd,
        "budget_seconds": key.budget_seconds,
        "budget_calendar": key.budget_calendar,
        "source": "file",
    }


def _state(row: KeyRow, now: float) -> str:
    if row.revoked_at is not None:
        return "revoked"
    if row.owner_disabled:
        return "disabled"
    return "expired" if row.expires_at is not None and row.expires_at <= now else "active"


def _models(row: KeyRow) -> str:
    return "all" if "*" in row.models else ",".join(row.models)


def _own_budget(row: KeyRow) -> Budget | None:
    """The first of its own; what binds its team or everybody is listed by `strata budgets list`."""
    return next((budget for budget in row.budgets if budget.scope == "key"), None)


def _budget(row: KeyRow) -> str:
    own = _own_budget(row)
    return limit(own.limit_nano_usd, own.window_seconds, own.calendar) if own else ""


def _day(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    moment = datetime.fromtimestamp(seconds, UTC)
    return f"{moment.day} {moment:%b %Y}"


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _host(host: str) -> str:
    """Where a client on this machine reaches a server that listens on `host`."""
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
