"""`strata check`: everything that is wrong with a configuration, in one go, for people and for machines."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from proxy import providers
from proxy.commands.flags import Commands, Parser, Shared, file_of
from proxy.config import Config
from proxy.config.load import Examined, examine
from proxy.config.presets import PRESETS
from proxy.config.problems import Problem, Severity, suggestion, text_of
from proxy.config.providers import COMPATIBLE
from proxy.metering.prices import PriceBook
from proxy.metering.unpriced import unpriced

Format = Literal["text", "json", "github"]

_GITHUB = {"error": "error", "warning": "warning", "note": "notice"}


def add_parser(commands: Commands[Parser], flags: Shared) -> None:
    checking = commands.add_parser("check", help="find what is wrong with the configuration", parents=[flags.place])
    checking.add_argument("file", metavar="FILE", nargs="?", help="- reads standard input")
    checking.add_argument("--strict", action="store_true", help="warnings fail, too (exit code 2)")
    checking.add_argument("--format", choices=("text", "json", "github"), default="text")
    checking.set_defaults(run=_check)


def _check(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    if args.file == "-":
        path: Path | None = Path("/dev/stdin")
    else:
        path = Path(args.file) if args.file else file_of(args, environ)
    code, text = check(path, environ, strict=args.strict, form=args.format)
    if text:
        print(text)
    return code


def examine_fully(path: Path | None, environ: Mapping[str, str]) -> Examined:
    """Like `examine`, and looks whether each provider's type is one that the gateway speaks."""
    config, problems = examine(path, environ)
    if config is None:
        return Examined(None, problems)
    unspoken = _unspoken(config)
    return Examined(None if unspoken else config, [*problems, *unspoken, *_unpriced(config)])


def check(path: Path | None, environ: Mapping[str, str], *, strict: bool, form: Format) -> tuple[int, str]:
    """The exit code (0 fine, 1 errors, 2 warnings under `strict`) and what to print."""
    config, problems = examine_fully(path, environ)
    counts = Counter(problem.severity for problem in problems)
    code = 1 if config is None else 2 if strict and counts["warning"] else 0
    if form == "json":
        return code, msgspec.json.encode({"ok": code == 0, "problems": [p._asdict() for p in problems]}).decode()
    if form == "github":
        return code, "\n".join(_github(problem) for problem in problems)
    return code, "\n".join([*([text_of(problems)] if problems else []), _summary(path, config, counts)])


def _unspoken(config: Config) -> Sequence[Problem]:
    problems = []
    for provider in config.providers.values():
        try:
            providers.load(provider.api)
        except LookupError:
            hint = suggestion(provider.api, [COMPATIBLE, *PRESETS])
            hint = hint if "Did you" in hint else ""
            message = f'providers.{provider.name}: nothing here speaks the type "{provider.api}".{hint}'
            problems.append(Problem(0, 0, "error", message, config.source or "environment"))
    return problems


def _unpriced(config: Config) -> Sequence[Problem]:
    """Deployments that cost nobody knows what: keys with a budget cannot use them, and the bill lacks them."""
    effect = "nobody can use it (prices.on_missing is block)"
    if config.prices.on_missing == "warn":
        effect = "its calls cost an unknown amount, and keys with a budget cannot use it"
    return [
        Problem(
            0,
            0,
            "warning",
            f"models.{models[0]}: {name} has no price: {effect}. Add it to prices.models; 0 if it is free.",
            config.source or "environment",
        )
        for name, models in unpriced(config, PriceBook(config.prices))
    ]


def _summary(path: Path | None, config: Config | None, counts: Counter[Severity]) -> str:
    kinds: tuple[Severity, ...] = ("error", "warning")
    said = [f"{counts[kind]} {kind}{'s' if counts[kind] > 1 else ''}" for kind in kinds if counts[kind]]
    if config is None:
        return f"{', '.join(said)}. A running gateway keeps its configuration."
    name = path if path is not None else "no file: the environment"
    fine = f"{name} is fine: {_count(len(config.models), 'model')}, {_count(len(config.providers), 'provider')}."
    return f"{', '.join(said)}. {fine}" if said else fine


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _github(problem: Problem) -> str:
    """A workflow command, which GitHub shows at the line."""
    place = f"file={_escaped(problem.file).replace(':', '%3A').replace(',', '%2C')}"
    if problem.line:
        place += f",line={problem.line},col={problem.column}"
    return f"::{_GITHUB[problem.severity]} {place}::{_escaped(problem.message)}"


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
