"""
`strata doctor`: whether a set-up, running or not, is fit to serve; with `--production`, to serve others.

It changes nothing, calls no provider unless told to, and shows no secret. What it finds comes from `checkup`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from proxy.commands import data
from proxy.commands.check import examine_fully
from proxy.commands.checkup.edges import look_at_edges
from proxy.commands.checkup.finding import Finding, Level, count, fail, ok, warn
from proxy.commands.checkup.machine import look_at_machine
from proxy.commands.checkup.stores import look_at_database, look_at_redis
from proxy.commands.checkup.suppliers import look_at_providers
from proxy.commands.flags import Commands, Parser, Shared, file_of, home_of, with_master_key
from proxy.commands.tables import plain, to_json
from proxy.config import Config
from proxy.config.problems import Severity
from proxy.errors import GatewayError, GatewayFault
from proxy.storage.vault import FILE_NAME, VARIABLE, Vault

SILENCE = logging.NullHandler()
"""What the parts log on the way is said in the findings."""
LEVELS: dict[Severity, Level] = {"error": "fail", "warning": "warn", "note": "ok"}


def add_parser(commands: Commands[Parser], flags: Shared) -> None:
    looking = commands.add_parser("doctor", help="find what is wrong with this set-up", parents=[*flags])
    looking.add_argument("--production", action="store_true", help="warnings are failures")
    looking.add_argument("--providers", action="store_true", help="ask each provider whether it takes its key")
    looking.set_defaults(run=_run)


def _run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    logging.getLogger("strata").addHandler(SILENCE)
    findings = examine_all(file_of(args, environ), home_of(args, environ), environ, ask=args.providers)
    if args.production:
        findings = [
            msgspec.structs.replace(finding, level="fail") if finding.level == "warn" else finding
            for finding in findings
        ]
    failed = any(finding.level == "fail" for finding in findings)
    print(to_json({"ok": not failed, "findings": findings}) if args.json else _text(findings))
    return int(failed)


def examine_all(path: Path | None, home: Path, environ: Mapping[str, str], *, ask: bool) -> list[Finding]:
    """Everything there is to say. `ask`: the providers too."""
    config, problems = examine_fully(path, environ)
    findings = [
        Finding(LEVELS[problem.severity], "configuration", f"{problem.at}: {problem.message}") for problem in problems
    ]
    if config is None:
        return findings
    models, providers = count(len(config.models), "model"), count(len(config.providers), "provider")
    if not any(finding.level != "ok" for finding in findings):
        findings.append(ok("configuration", f"{path or 'no file: the environment'}: {models}, {providers}."))
    environ = with_master_key(config, environ)
    findings += look_at_edges(config)
    findings += look_at_machine(config, home, environ)
    findings += _stored(config, home, environ)
    findings += asyncio.run(_others(config, ask=ask))
    return findings


def _stored(config: Config, home: Path, environ: Mapping[str, str]) -> list[Finding]:
    if config.database.url is None and not (home / "postgres" / "data").is_dir():
        return [
            warn("database", f"none yet: the first start makes one in {home}. For your own Postgres, set DATABASE_URL.")
        ]

    async def look(dsn: str) -> list[Finding]:
        return [finding async for finding in look_at_database(config, dsn, _vault(home, environ))]

    try:
        with data.owner_dsn(config, home) as dsn:
            return asyncio.run(look(dsn))
    except GatewayError as error:
        return [fail("database", error.message)]


def _vault(home: Path, environ: Mapping[str, str]) -> Vault | None:
    """None where there is no master key, and opening it would make one; or a wrong one, which has been said."""
    if not environ.get(VARIABLE, "").strip() and not (home / FILE_NAME).exists():
        return None
    try:
        return Vault.open(home, environ)
    except GatewayFault:
        return None


async def _others(config: Config, *, ask: bool) -> list[Finding]:
    return [*await look_at_redis(config), *await look_at_providers(config, ask=ask)]


def _text(findings: Sequence[Finding]) -> str:
    width = max(len(finding.about) for finding in findings)
    lines = [
        f"  {finding.level if finding.level != 'fail' else 'FAIL':<5} {plain(finding.about):<{width}}  "
        f"{plain(finding.message)}"
        for finding in findings
    ]
    counts = [
        count(number, word)
        for word, level in (("failure", "fail"), ("warning", "warn"))
        if (number := sum(finding.level == level for finding in findings))
    ]
    return "\n".join([*lines, f"  {', '.join(counts) or 'All is well'}."])
