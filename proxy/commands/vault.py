"""
`strata vault`: where the sealed values stand, and the rotation from one master key to the next, while gateways serve.

A rotation may be killed at any moment and run again, on several machines at once if need be.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from proxy.commands import data
from proxy.commands.flags import Commands, Parser, Shared, config_of, home_of, with_master_key
from proxy.commands.tables import aligned, to_json
from proxy.config import Config
from proxy.errors import CallerError
from proxy.storage.postgres import Database
from proxy.storage.root import Lost, WrongMasterKey, begin_anew, unlock
from proxy.storage.rotation import COLUMNS, count_by_kek, rewrap_batch, unopened_provider_keys
from proxy.storage.vault import VARIABLE, Vault

PATIENCE_SECONDS = 30.0
"""How long rows that somebody else holds are waited for."""
PAUSE_SECONDS = 0.2
SHOWN_IDS = 10


class Standing(NamedTuple):
    """Rows by table and KEK, and provider keys that do not open."""

    counts: dict[str, dict[str, int]]
    unopened: list[str]
    rewrapped: int = 0


def add_parser(commands: Commands[Parser], flags: Shared) -> None:
    group = commands.add_parser("vault", help="the master key: what it seals, and how it is replaced")
    actions = group.add_subparsers(metavar="ACTION", required=True, parser_class=Parser)
    status = actions.add_parser("status", help="what is sealed under which master key", parents=[*flags])
    status.set_defaults(run=_status)
    rotate = actions.add_parser("rotate", help="seal everything under the newest master key", parents=[*flags])
    rotate.set_defaults(run=_rotate)
    reset = actions.add_parser("reset", help="give up what a lost master key sealed", parents=[flags.place])
    reset.add_argument("--lost", action="store_true", required=True, help="the master key is lost for good")
    reset.set_defaults(run=_reset)


def _status(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    text, code = status(*_place(args, environ), as_json=args.json)
    print(text)
    return code


def _rotate(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    text, code = rotate(*_place(args, environ), as_json=args.json)
    print(text)
    return code


def _reset(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    print(reset(*_place(args, environ)))
    return 0


def _place(args: argparse.Namespace, environ: Mapping[str, str]) -> tuple[Config, Path, Mapping[str, str]]:
    config = config_of(args, environ)
    return config, home_of(args, environ), with_master_key(config, environ)


def status(config: Config, home: Path, environ: Mapping[str, str], *, as_json: bool) -> tuple[str, int]:
    """What to print, and the exit code: 1 if something does not open. Raises GatewayError."""
    vault = Vault.open(home, environ)

    async def look(database: Database) -> Standing:
        await unlock(database, vault)
        return Standing(await count_by_kek(database), await unopened_provider_keys(database, vault))

    standing = data.run(config, home, look)
    if as_json:
        return _json(vault, standing), int(bool(standing.unopened))
    table = [("SEALED", "MASTER KEY", "ROWS", "")]
    for name, counts in standing.counts.items():
        for kek_id, rows in (counts or {vault.kek_id: 0}).items():
            note = "newest" if kek_id == vault.kek_id else "older" if kek_id in vault.keks else "not given"
            table.append((name, kek_id, str(rows), note))
    lines = [aligned(table), "", *_unopened(standing)]
    if _left(vault, standing):
        lines.append("Seal all of it under the newest with: strata vault rotate")
    elif len(vault.keks) > 1 and not standing.unopened:
        lines.append(_older_may_go())
    else:
        lines.append("Everything is sealed under the newest master key.")
    return "\n".join(lines), int(bool(standing.unopened))


def rotate(config: Config, home: Path, environ: Mapping[str, str], *, as_json: bool) -> tuple[str, int]:
    """What to print, and the exit code: 0 once nothing is under another KEK. Raises GatewayError."""
    vault = Vault.open(home, environ)

    async def work(database: Database) -> Standing:
        await unlock(database, vault)
        rewrapped = await _rewrap_all(database, vault)
        counts = await count_by_kek(database)
        unopened = await unopened_provider_keys(database, vault)
        return Standing(counts, unopened, rewrapped)

    standing = data.run(config, home, work)
    left = _left(vault, standing)
    if as_json:
        return _json(vault, standing), int(bool(left))
    lines = [
        f"Sealed anew under {vault.kek_id}: {standing.rewrapped} rows. Under another key: {left}.",
        *_unopened(standing),
    ]
    if left:
        lines.append("Do not take the older master key away yet. Run it again with: strata vault rotate")
    elif len(vault.keks) > 1:
        lines.append(_older_may_go())
    lines.append(
        "If a master key has leaked, this is not enough: whoever has it and a copy of the database has every provider "
        "key. Replace these at the providers, and the virtual keys here."
    )
    return "\n".join(lines), int(bool(left))


def reset(config: Config, home: Path, environ: Mapping[str, str]) -> str:
    """What to print. CallerError if the master key is not lost at all."""
    vault = Vault.open(home, environ)

    async def work(database: Database) -> Lost:
        try:
            await unlock(database, vault)
        except WrongMasterKey:
            return await begin_anew(database, vault, data.operator())
        raise CallerError("The master key opens this database's vault. There is nothing to reset.", code="not_lost")

    lost = data.run(config, home, work)
    return (
        f"The vault is this master key's now ({vault.kek_id}). {lost.virtual_keys} virtual keys were revoked and "
        f"{lost.provider_keys} provider keys removed, since nobody can read them any more. Make new ones, and keep a "
        "copy of the master key."
    )


async def _rewrap_all(database: Database, vault: Vault) -> int:
    """Until nothing more can be claimed; rows that another rotation holds at the moment are waited for."""
    loop = asyncio.get_running_loop()
    rewrapped, patient_until = 0, loop.time() + PATIENCE_SECONDS
    for column in COLUMNS:
        while True:
            unopened, after, done = 0, None, 0
            while True:
                batch = await rewrap_batch(database, vault, column, after)
                done += batch.rewrapped
                unopened += len(batch.unopened)
                if batch.last_id is None:
                    break
                after = batch.last_id
            rewrapped += done
            if done:
                patient_until = loop.time() + PATIENCE_SECONDS
            counts = (await count_by_kek(database))[column.table]
            left = sum(rows for kek_id, rows in counts.items() if kek_id != vault.kek_id)
            if left <= unopened or loop.time() > patient_until:
                break
            await asyncio.sleep(PAUSE_SECONDS)
    return rewrapped


def _left(vault: Vault, standing: Standing) -> int:
    return sum(rows for counts in standing.counts.values() for kek_id, rows in counts.items() if kek_id != vault.kek_id)


def _unopened(standing: Standing) -> list[str]:
    if not standing.unopened:
        return []
    shown = ", ".join(standing.unopened[:SHOWN_IDS]) + (" …" if len(standing.unopened) > SHOWN_IDS else "")
    return [
        f"Needs attention: {len(standing.unopened)} provider keys do not open under any master key given, or were "
        f"changed: {shown}. Replace or delete them, or name the master key that they had."
    ]


def _older_may_go() -> str:
    return (
        "Everything is sealed under the newest master key. Once every gateway has been started with it, the older may "
        f"be taken out of {VARIABLE}."
    )


def _json(vault: Vault, standing: Standing) -> str:
    return to_json(
        {
            "newest": vault.kek_id,
            "given": list(vault.keks),
            "rows": standing.counts,
            "rewrapped": standing.rewrapped,
            "left": _left(vault, standing),
            "unopened_provider_keys": standing.unopened,
        }
    )
