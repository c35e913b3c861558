"""`strata ledger`: is the bill right, does the provider's agree, and what becomes of the money of a lost host."""

from __future__ import annotations

import argparse
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from proxy.commands import data
from proxy.commands.flags import Commands, Parser, Shared, config_of, home_of
from proxy.commands.tables import aligned, exact_dollars, plain, to_json
from proxy.config.problems import Wrong
from proxy.errors import CallerError
from proxy.metering.reconciliation import COLUMNS, COST, Export, Mismatch, compare, read_export
from proxy.metering.segments import LOCK
from proxy.metering.verification import check_journals
from proxy.storage.forfeits import forfeit, leases
from proxy.storage.postgres import Database
from proxy.storage.verify import Check, check_sums, sums_by_day

MAX_EXPORT_BYTES = 256_000_000

RECONCILE = f"""The columns of FILE (CSV with a head line, or a JSON array of objects): {", ".join(COLUMNS)}. day and
model are needed, and one number; day is UTC, model the provider's own name. input_tokens has cached and written ones in
it, output_tokens has reasoning in it. Nothing is written: an export names no budget that a correction could go to."""


def add_parser(commands: Commands[Parser], flags: Shared) -> None:
    group = commands.add_parser("ledger", help="check the bill")
    actions = group.add_subparsers(metavar="ACTION", required=True, parser_class=Parser)
    verifying = actions.add_parser("verify", help="journal, rows, sums and prices against each other", parents=[*flags])
    verifying.set_defaults(run=_verify)
    comparing = actions.add_parser(
        "reconcile", help="a provider's usage export against the ledger", parents=[*flags], epilog=RECONCILE
    )
    comparing.add_argument("file", metavar="FILE")
    comparing.add_argument("--provider", metavar="NAME", help="only rows of this provider; default: all")
    comparing.set_defaults(run=_reconcile)
    giving_up = actions.add_parser("forfeit", help="book what a lost host had leased as spent", parents=[*flags])
    giving_up.add_argument("--worker", metavar="ID", help="without it: list who has leased what")
    giving_up.add_argument("--yes", action="store_true", help="do it")
    giving_up.set_defaults(run=_forfeit)


def _verify(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    home = home_of(args, environ)

    async def check(db: Database) -> list[Check]:
        return [*await check_journals(db, home / "journal"), *await check_sums(db)]

    checks = data.run(config_of(args, environ), home, check)
    good = not any(one.differences for one in checks)
    print(to_json({"ok": good, "checks": checks}) if args.json else "\n".join(_told(checks, good)))
    return 0 if good else 1


def _told(checks: Sequence[Check], good: bool) -> Iterable[str]:
    table = [("CHECK", "COUNT", "DIFFERENCES")]
    table += [(one.name, f"{one.compared:,}", f"{one.differences:,}") for one in checks]
    yield aligned(table)
    shown = [
        (one.name, plain(line.subject), plain(line.what), plain(line.expected), plain(line.found))
        for one in checks
        for line in one.shown
    ]
    if shown:
        yield ""
        yield aligned([("CHECK", "WHERE", "WHAT", "EXPECTED", "FOUND"), *shown])
    yield ""
    yield (
        "Everything agrees." if good else "The ledger does not agree with itself. Keep the journal folder, and a copy."
    )


def _reconcile(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    config = config_of(args, environ)
    export = read_export(_read(Path(args.file)))
    first, last = export.days
    rows = data.run(
        config, home_of(args, environ), lambda db: sums_by_day(db, first, last, args.provider, export.by_key)
    )
    found = compare(export, rows)
    estimated = sum(row["estimated_nano_usd"] or 0 for row in rows)
    if args.json:
        said = {"ok": not found, "first_day": first, "last_day": last, "ignored_columns": export.ignored}
        print(to_json({**said, "estimated_nano_usd": estimated, "differences": found}))
    else:
        print("\n".join(_compared(export, found, estimated)))
    return 1 if found else 0


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_EXPORT_BYTES + 1)
        if len(raw) > MAX_EXPORT_BYTES:
            raise CallerError(f"{path} is too large. Compare a month at a time.", code="bad_export")
        return raw.decode("utf-8-sig")
    except OSError as error:
        raise CallerError(f"{path} cannot be read: {error.strerror}. Name the export.", code="bad_export") from None
    except UnicodeDecodeError:
        raise CallerError(f"{path} is not UTF-8. Export it as CSV or JSON in UTF-8.", code="bad_export") from None


def _compared(export: Export, found: Sequence[Mismatch], estimated_nano_usd: int) -> Iterable[str]:
    first, last = export.days
    yield f"{first} to {last} (UTC), by {', '.join(export.numbers)}"
    if export.ignored:
        yield f"not read: {', '.join(map(plain, export.ignored))}"
    if found:
        head = ("DAY", "MODEL", *(("KEY",) if export.by_key else ()), "NUMBER", "PROVIDER", "LEDGER", "DIFFERENCE", "")
        yield ""
        yield aligned([head, *(_mismatch(one, export.by_key) for one in found)])
    yield ""
    if estimated_nano_usd:
        yield f"Of the ledger's sum {exact_dollars(estimated_nano_usd)} is estimated: what no provider had reported."
    count = len(found)
    yield f"{count} difference{'' if count == 1 else 's'}." if found else "The provider and the ledger agree."


def _mismatch(one: Mismatch, by_key: bool) -> tuple[str, ...]:
    numbers = (one.provider, one.ledger, one.difference)
    told = map(exact_dollars if one.of == COST else "{:,}".format, numbers)
    only = "" if one.side == "both" else f"only the {one.side} knows it"
    return (one.day, plain(one.model), *((plain(one.key),) if by_key else ()), one.of, *told, only)


def _forfeit(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    config, home = config_of(args, environ), home_of(args, environ)
    worker = _worker(args.worker) if args.worker else None
    if worker is None or not args.yes:
        found = data.run(config, home, lambda db: leases(db, worker))
    else:
        _refuse_if_here(home, worker)
        found = data.run(config, home, lambda db: forfeit(db, worker, data.operator()))
    done = worker is not None and args.yes
    if args.json:
        print(to_json({"forfeited": done, "leases": found}))
        return 0
    table = [("WORKER", "BUDGET OF", "PERIOD FROM (UTC)", "LEASED")]
    for one in found:
        whose = f"{one['scope']} {plain(one['name'])}".rstrip()
        leased = exact_dollars(one["granted_nano_usd"])
        table.append((one["worker_id"], whose, f"{one['starts_at']:%Y-%m-%d %H:%M}", leased))
    print(aligned(table) if found else "Nothing is leased.")
    if found:
        print(_next_step(worker, done))
    return 0


def _next_step(worker: str | None, done: bool) -> str:
    if done:
        return "Booked as spent. Should its journal be found after all, what is in it is billed on top."
    if worker is None:
        return "Leases of running gateways are here, too. For one that is lost, with its disk: --worker ID"
    return (
        "With --yes this is booked as spent, for good: an adjustment in each budget's period. "
        "Be sure that this gateway has ended and that its data folder is lost."
    )


def _worker(text: str) -> str:
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise Wrong("--worker must be an id as `strata ledger forfeit` lists them.") from None


def _refuse_if_here(home: Path, worker: str) -> None:
    """While there is a journal nothing need be guessed."""
    if any((home / "journal").glob(f"*-{uuid.UUID(worker).hex}{LOCK}")):
        raise CallerError(
            "The journal of this worker is in this data folder, so nothing is lost. Start the gateway here, and it "
            "settles everything exactly.",
            code="journal_found",
        )
