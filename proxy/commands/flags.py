"""What the commands share on the command line: the flags that say which configuration and which data folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from proxy.config import Config
from proxy.config.load import find, load


class Parser(argparse.ArgumentParser):
    """argparse, with our form of an error: the cause, then the fix. `args.help_at` is where the command's help is."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.set_defaults(help_at=f"{self.prog} --help")

    def error(self, message: str) -> NoReturn:
        sys.exit(failed(f"{message}.", f"{self.prog} --help", code=2))


class Shared(NamedTuple):
    """Parent parsers, for `parents=[…]`."""

    place: Parser
    """--config and --home."""
    as_json: Parser
    """--json."""


Commands = argparse._SubParsersAction  # what add_subparsers returns; argparse gives it no public name


def shared() -> Shared:
    place = Parser(add_help=False)
    place.add_argument("--config", metavar="FILE", help="default: STRATA_CONFIG, then ./config.yaml")
    place.add_argument("--home", metavar="DIR", help="the data folder; default: STRATA_HOME, then ./.strata")
    as_json = Parser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="print JSON")
    return Shared(place, as_json)


def file_of(args: argparse.Namespace, environ: Mapping[str, str]) -> Path | None:
    return Path(args.config) if args.config else find(environ, Path())


def config_of(args: argparse.Namespace, environ: Mapping[str, str]) -> Config:
    """The configuration that the flags and the environment name. Raises ConfigError."""
    return load(file_of(args, environ), environ)


def home_of(args: argparse.Namespace, environ: Mapping[str, str]) -> Path:
    return Path(args.home or environ.get("STRATA_HOME") or ".strata")


def with_master_key(config: Config, environ: Mapping[str, str]) -> Mapping[str, str]:
    """The vault reads the environment alone; a master key of the file must reach it all the same."""
    if config.auth.master_key is None:
        return environ
    return {**environ, "STRATA_MASTER_KEY": config.auth.master_key.reveal()}


def port(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 5 or not 1 <= int(text) <= 65_535:
        raise argparse.ArgumentTypeError(f'"{text}" is not a port from 1 to 65535')
    return int(text)


def failed(cause: str, fix: str, *, code: int = 1) -> int:
    print(cause, file=sys.stderr)
    if fix:
        print(f"Fix: {fix}", file=sys.stderr)
    return code
