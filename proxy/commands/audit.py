"""`strata audit`: who changed what, and whether the log of it is whole."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import msgspec

from proxy.commands import data
from proxy.commands.flags import Commands, Parser, Shared, config_of, home_of
from proxy.commands.tables import aligned, plain, to_json
from proxy.storage.audit import list_audit, verify_chain
from proxy.storage.postgres import Database

MAX_LISTED = 1_000


def add_parser(commands: Commands[Parser], flags: Shared) -> None:
    group = commands.add_parser("audit", help="who changed what, and whether the log of it is whole")
    actions = group.add_subparsers(metavar="ACTION", required=True, parser_class=Parser)
    listing = actions.add_parser("list", help="the last changes", parents=[*flags])
    listing.add_argument("--last", type=int, default=20, metavar="N", help="default: 20")
    listing.add_argument("--object", metavar="ID", help="only of this key, budget …")
    listing.set_defaults(run=_list)
    verifying = actions.add_parser("verify", help="walk the chain of hashes", parents=[*flags])
    verifying.add_argument("--head", metavar="HASH", help="the chain must end in this hash, or have held it on the way")
    verifying.set_defaults(run=_verify)


def _list(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    async def read(database: Database) -> list[dict[str, Any]]:
        async with database.transaction() as connection:
            return await list_audit(connection, limit=min(max(args.last, 1), MAX_LISTED), object=args.object)

    rows = data.run(config_of(args, environ), home_of(args, environ), read)
    if args.json:
        print(to_json(rows))
        return 0
    if not rows:
        print("Nothing has been changed yet.")
        return 0
    table: list[tuple[str, ...]] = [("AT", "WHO", "WHAT", "OBJECT", "CHANGE")]
    table += [(f"{row['at']:%Y-%m-%d %H:%M:%S}", *map(plain, _told(row))) for row in rows]
    print(aligned(table))
    return 0


def _told(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    before, after = row["before"] or {}, row["after"] or {}
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    said = ", ".join(f"{name}={msgspec.json.encode(after.get(name)).decode()}" for name in changed)
    return row["actor"], row["action"], row["object"], said[:100]


def _verify(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    verdict = data.run(config_of(args, environ), home_of(args, environ), lambda db: verify_chain(db, args.head))
    is_right = verdict.broken_at is None and verdict.held is not False
    if args.json:
        print(to_json({**verdict._asdict(), "right": is_right}))
    elif verdict.broken_at is not None:
        print(f"The audit log is not as it was written: row {verdict.broken_at} was changed, or is missing.")
    elif verdict.held is False:
        print(f"The audit log has never held the hash {plain(args.head)}: rows were removed from its end.")
    else:
        print(f"The audit log is whole: {verdict.rows} rows, head {verdict.head or 'none'}")
    return 0 if is_right else 1
