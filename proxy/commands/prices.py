"""`strata prices`: what everything costs and who says so; and pricing the past again by the prices of today."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from proxy.commands import data
from proxy.commands.flags import Commands, Parser, Shared, config_of, home_of
from proxy.commands.tables import aligned, exact_dollars, plain, to_json
from proxy.config import Config
from proxy.config.problems import Mark, Wrong, shown
from proxy.config.quantities import day
from proxy.config.yaml import ScalarNode
from proxy.metering.price_list import listed
from proxy.metering.prices import PriceBook
from proxy.metering.rerating import Change, Rerating
from proxy.metering.unpriced import routed

RERATE = "rerate"
COLUMNS = ("input", "cache_read", "cache_write_5m", "output")
"""Every list has these; what else a line prices is said behind them."""


def add_parser(commands: Commands[Parser], flags: Shared) -> None:
    parser = commands.add_parser(
        "prices",
        help="what everything costs; price the past again",
        parents=[*flags],
        usage="strata prices [MODEL ...] [--json]\n       strata prices rerate --since DAY [--until DAY] "
        "[--model NAME] [--dry-run] [--json]",
        description="Dollars per million tokens (searches: per thousand) of each deployment that is routed to, and "
        "where the price is from. `rerate` prices the rows of the past by the prices of today: what differs becomes "
        "adjustment rows, and the rows stay as they are. Running it again changes nothing.",
    )
    parser.add_argument("words", metavar="MODEL", nargs="*", help="a model, or provider/model; default: all")
    again = parser.add_argument_group("rerate")
    again.add_argument("--since", metavar="DAY", help="from the beginning of that day on, UTC")
    again.add_argument("--until", metavar="DAY", help="up to the beginning of that day; default: now")
    again.add_argument("--model", metavar="NAME", action="append", help="a model or a deployment; may be repeated")
    again.add_argument("--dry-run", action="store_true", help="say what would change, and change nothing")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    config = config_of(args, environ)
    if args.words[:1] == [RERATE]:
        return _rerate(config, args, environ)
    for flag in ("since", "until", "model", "dry_run"):
        if getattr(args, flag):
            raise Wrong(f"--{flag.replace('_', '-')} belongs to: strata prices rerate")
    found = listed(config, PriceBook(config.prices), args.words)
    print(to_json(found) if args.json else _table(found))
    return 0


def _table(found: Sequence[Mapping[str, Any]]) -> str:
    if not found:
        return "No deployment is routed to."
    rows: list[Sequence[str]] = [("DEPLOYMENT", "INPUT", "CACHED", "WRITTEN", "OUTPUT", "BESIDES", "SOURCE")]
    missing = 0
    for one in found:
        name = plain(one["deployment"])
        if not one["lines"]:
            missing += one["state"] == "unknown"
            said = "unknown" if one["state"] == "unknown" else "by model"
            rows.append((name, said, "", "", "", "", "NO PRICE" if said == "unknown" else f"strata prices {name}"))
        for number, line in enumerate(one["lines"]):
            rates = line["usd_per_million_tokens"]
            rows.append(
                (
                    name if number == 0 else "",
                    *(rates.get(bucket, "-") for bucket in COLUMNS),
                    _besides(line),
                    plain(line["source"]),
                )
            )
    lines = [aligned(rows)]
    if missing:
        what = "1 deployment has" if missing == 1 else f"{missing} deployments have"
        lines.append(f"{what} no price: what it costs is unknown. Add it to prices.models in config.yaml.")
    return "\n".join(lines)


def _besides(line: Mapping[str, Any]) -> str:
    rates = line["usd_per_million_tokens"]
    # What costs as much as something that is shown already would only fill the screen.
    same = {"audio_input": "input", "image_input": "input", "cache_write_1h": "input"}
    parts = [
        f"{bucket} {rate}"
        for bucket, rate in rates.items()
        if bucket not in COLUMNS and rate != rates.get(same.get(bucket, "output"))
    ]
    if line["usd_per_thousand_searches"] not in (None, "0"):
        parts.append(f"1000 searches {line['usd_per_thousand_searches']}")
    if line["usd_per_request"] != "0":
        parts.append(f"request {line['usd_per_request']}")
    return ", ".join(parts) or "-"


def _rerate(config: Config, args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    if len(args.words) > 1:
        raise Wrong(f"{shown(args.words[1])}: name a model with --model.")
    if args.since is None:
        raise Wrong("--since is missing: the day to begin with, for example --since 2026-11-01.")
    since = _moment("--since", args.since)
    until = _moment("--until", args.until) if args.until else datetime.now(UTC)
    if until <= since:
        raise Wrong("--until must be after --since.")
    known = {name: deployment for name, (deployment, _) in routed(config).items()}
    rerating = Rerating(PriceBook(config.prices), config.providers, known)
    changes = data.run(
        config,
        home_of(args, environ),
        lambda db: rerating.run(db, since, until, args.model or (), dry_run=args.dry_run, actor=data.operator()),
    )
    print(to_json({"dry_run": args.dry_run, "changes": changes}) if args.json else _told(changes, dry_run=args.dry_run))
    return 0


def _told(changes: Sequence[Change], *, dry_run: bool) -> str:
    if not changes:
        return "There are no rows to price in that time."
    rows: list[Sequence[str]] = [("DAY", "MODEL", "ROWS", "CHANGED", "UNPRICED", "BEFORE", "AFTER", "DIFFERENCE")]
    for one in changes:
        money = (exact_dollars(one.before_nano_usd), exact_dollars(one.after_nano_usd))
        counts = (str(one.rows), str(one.changed), str(one.unpriced))
        difference = _signed(one.after_nano_usd - one.before_nano_usd)
        rows.append((one.day, plain(one.model), *counts, *money, difference))
    changed = sum(one.changed for one in changes)
    total = _signed(sum(one.after_nano_usd - one.before_nano_usd for one in changes))
    verb = "would be adjusted" if dry_run else "adjusted"
    return f"{aligned(rows)}\n{changed} of {sum(one.rows for one in changes)} rows {verb}, {total} in all."


def _moment(flag: str, text: str) -> datetime:
    try:
        return datetime.fromtimestamp(day(ScalarNode(Mark(flag), text, "any")) / 1000, UTC)
    except Wrong as wrong:
        raise Wrong(f"{flag} {wrong}") from None


def _signed(nano_usd: int) -> str:
    return f"{'+' if nano_usd > 0 else ''}{exact_dollars(nano_usd)}"
