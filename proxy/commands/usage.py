"""`strata usage`: what was used and what it cost, of the roll-ups, as a table, as CSV or as JSON."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from proxy.admission.keyring import static_names
from proxy.commands import data
from proxy.commands.flags import Commands, Parser, Shared, config_of, home_of
from proxy.commands.tables import aligned, exact_dollars, plain, to_json
from proxy.config.problems import Wrong
from proxy.metering.usage_questions import DIMENSIONS, MAX_LIMIT, Question, Unanswerable, read_question
from proxy.metering.usage_report import CUT_HOURS, WITH_IDS, Report, answer, to_csv, to_object
from proxy.storage.postgres import Database
from proxy.storage.verify import SNAPSHOT

DEFAULT_LIMIT = 50
SECONDS = 60.0

EPILOG = """Without --granularity the dearest come first; with it, in the order of time. Roll-ups are by the hour: an
hour counts if it begins in the time that is asked for. The same is on GET /api/usage."""


def add_parser(commands: Commands[Parser], flags: Shared) -> None:
    usage = commands.add_parser("usage", help="what was used and what it cost", parents=[*flags], epilog=EPILOG)
    usage.add_argument("--by", metavar="WORDS", help=f"one or more of {','.join(DIMENSIONS)}")
    usage.add_argument("--granularity", metavar="WORD", help="hour, day, week or month: a line for each")
    usage.add_argument("--since", metavar="TIME", help="24h, 30d, 12w, or a day or time; default: 30d")
    usage.add_argument("--until", metavar="TIME", help="not in it any more; default: now")
    usage.add_argument("--tz", metavar="ZONE", help="of days, weeks and months: Europe/Berlin; default: UTC")
    for name in DIMENSIONS:
        usage.add_argument(f"--{name}", metavar="NAME", help=f"only of this {name}")
    usage.add_argument("--limit", metavar="N", help=f"lines shown; default: {DEFAULT_LIMIT}, and all of CSV and JSON")
    usage.add_argument("--csv", action="store_true", help="print CSV")
    usage.set_defaults(run=_usage)


def _usage(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    if args.csv and args.json:
        raise Wrong("--csv and --json exclude each other.")
    whole = args.csv or args.json
    try:
        question = read_question(
            lambda word: getattr(args, word, None), datetime.now(UTC), MAX_LIMIT if whole else DEFAULT_LIMIT
        )
    except Unanswerable as error:
        raise Wrong(f"--{error.word} {error.why}.") from None
    config = config_of(args, environ)
    static = static_names(config.keys.static)
    report = data.run(
        config,
        home_of(args, environ),
        lambda db: _read(db, question, static, to_the_end=whole and args.limit is None),
    )
    if args.csv:
        sys.stdout.write(to_csv(report).replace("\r\n", "\n"))
    elif args.json:
        print(to_json(to_object(report)))
    else:
        print("\n".join(_told(report)))
    return 0


async def _read(db: Database, question: Question, static: Mapping[str, str], *, to_the_end: bool) -> Report:
    """All pages as one if `to_the_end`, of one moment."""
    async with db.transaction(timeout_seconds=SECONDS) as connection:
        await connection.execute(SNAPSHOT)
        first = report = await answer(connection, question, static)
        lines = list(report.lines)
        while to_the_end and report.after is not None:
            report = await answer(connection, msgspec.structs.replace(question, after=report.after), static)
            lines += report.lines
    return msgspec.structs.replace(first, lines=lines, after=report.after)


def _told(report: Report) -> Iterator[str]:
    question, totals = report.question, report.totals
    since, until = (moment.astimezone(question.where) for moment in (question.since, question.until))
    yield f"{since:%Y-%m-%d %H:%M} to {until:%Y-%m-%d %H:%M} ({question.tz})"
    if report.lines and (question.by or question.granularity):
        yield ""
        yield aligned([_head(question), *(_row(question, line) for line in report.lines)])
        if report.after is not None:
            yield f"… and more: --limit up to {MAX_LIMIT}, or --csv for all of it"
    yield ""
    yield _sum(totals)
    if totals["unpriced"]:
        yield f"{totals['unpriced']:,} had no price, so this is the least that it can be. See: strata prices"
    if totals["estimated"]:
        yield f"{totals['estimated']:,} are estimated, in whole or in part: their provider reported no usage."
    if report.cut_hours:
        yield CUT_HOURS


def _head(question: Question) -> tuple[str, ...]:
    when = (question.granularity.upper(),) if question.granularity else ()
    return (*when, *map(str.upper, question.by), "ATTEMPTS", "ERRORS", "INPUT", "CACHED", "OUTPUT", "COST")


def _row(question: Question, line: Mapping[str, Any]) -> tuple[str, ...]:
    cells = []
    if question.granularity:
        start = datetime.fromisoformat(line["start"])
        cells.append(f"{start:%Y-%m-%d %H:%M}" if question.granularity == "hour" else f"{start:%Y-%m-%d}")
    for name in question.by:
        shown = line[name] or (line[f"{name}_id"] if name in WITH_IDS else None)
        cells.append(plain(shown or "-"))
    counts = ("attempts", "errors", "input_tokens", "cached_tokens", "output_tokens")
    return (*cells, *(f"{line[name]:,}" for name in counts), exact_dollars(line["cost_nano_usd"]))


def _sum(totals: Mapping[str, Any]) -> str:
    return (
        f"{exact_dollars(totals['cost_nano_usd'])} for {totals['attempts']:,} attempts, {totals['errors']:,} in error; "
        f"{totals['input_tokens']:,} tokens in ({totals['cached_tokens']:,} from a cache), "
        f"{totals['output_tokens']:,} out ({totals['reasoning_tokens']:,} of them reasoning)"
    )
