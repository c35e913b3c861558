"""
The command `strata`. Expected errors are one line of cause and one line "Fix:", never a traceback; the exit code is 0,
1 (failed) or 2 (wrong usage; or warnings, for `check --strict`).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import msgspec

from proxy import __version__
from proxy.commands import data, keys
from proxy.commands.check import check, examine_fully
from proxy.config import Config
from proxy.config.load import find, load
from proxy.config.problems import ConfigError, Wrong, suggestion
from proxy.errors import GatewayError

COMMANDS = ("serve", "keys", "check", "migrate")


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    environ = os.environ if environ is None else environ
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help", "--version")):
        words.insert(0, "serve")
    if not words[0].startswith("-") and words[0] not in COMMANDS:
        return _failed(f'there is no command "{words[0]}".{suggestion(words[0], COMMANDS)}', "strata --help", code=2)
    try:
        args = _parser().parse_args(words)
        code: int = args.run(args, environ)
        sys.stdout.flush()
        return code
    except ConfigError as error:
        return _failed(str(error), "correct it and look again with: strata check")
    except Wrong as wrong:
        return _failed(str(wrong), f"strata {' '.join(words[:2])} --help", code=2)
    except GatewayError as error:
        return _failed(*_cause_and_fix(error.message))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # `strata keys list | head`: whoever read us has enough. Python must not try to flush what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _serve(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    path = _file(args, environ)
    config, problems = examine_fully(path, environ)
    if config is None:
        raise ConfigError(problems)
    flags = {name: value for name, value in (("host", args.host), ("port", args.port)) if value is not None}
    config = msgspec.structs.replace(config, server=msgspec.structs.replace(config.server, **flags))
    from proxy.app import serve  # noqa: PLC0415  (the whole gateway; the other commands start without it)

    code: int = serve(config, home=_home(args, environ), environ=_with_master_key(config, environ))
    return code


def _keys_create(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    config = _config(args, environ)
    wanted = keys.limits(
        config.keys.defaults, models=args.models, budget=args.budget, rpm=args.rpm, expires=args.expires
    )
    secrets = _with_master_key(config, environ)
    print(keys.create(config, _home(args, environ), secrets, args.name, wanted, as_json=args.json))
    return 0


def _keys_list(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    print(keys.show_all(_config(args, environ), _home(args, environ), as_json=args.json))
    return 0


def _keys_revoke(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    print(keys.revoke(_config(args, environ), _home(args, environ), args.name, as_json=args.json))
    return 0


def _check(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    if args.file == "-":
        path: Path | None = Path("/dev/stdin")
    else:
        path = Path(args.file) if args.file else _file(args, environ)
    code, text = check(path, environ, strict=args.strict, form=args.format)
    if text:
        print(text)
    return code


def _migrate(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    applied = data.apply_migrations(_config(args, environ), _home(args, environ))
    if args.json:
        print(msgspec.json.encode({"applied": applied}).decode())
    else:
        print("\n".join(f"applied {name}" for name in applied) or "The database is up to date.")
    return 0


def _file(args: argparse.Namespace, environ: Mapping[str, str]) -> Path | None:
    return Path(args.config) if args.config else find(environ, Path())


def _config(args: argparse.Namespace, environ: Mapping[str, str]) -> Config:
    return load(_file(args, environ), environ)


def _home(args: argparse.Namespace, environ: Mapping[str, str]) -> Path:
    return Path(args.home or environ.get("STRATA_HOME") or ".strata")


def _with_master_key(config: Config, environ: Mapping[str, str]) -> Mapping[str, str]:
    """The vault reads the environment alone; a master key of the file must reach it all the same."""
    if config.auth.master_key is None:
        return environ
    return {**environ, "STRATA_MASTER_KEY": config.auth.master_key.reveal()}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        sys.exit(_failed(f"{message}.", f"{self.prog} --help", code=2))


def _parser() -> _Parser:
    parser = _Parser(
        prog="strata",
        description="A lean, OpenAI-compatible gateway to any model provider. Without a command it serves.",
    )
    parser.add_argument("--version", action="version", version=f"strata {__version__}")
    common = _Parser(add_help=False)
    common.add_argument("--config", metavar="FILE", help="default: STRATA_CONFIG, then ./config.yaml")
    common.add_argument("--home", metavar="DIR", help="the data folder; default: STRATA_HOME, then ./.strata")
    as_json = _Parser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="print JSON")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    serve = commands.add_parser("serve", help="run the gateway", parents=[common])
    serve.add_argument("--host", help="the address to listen on")
    serve.add_argument("--port", type=_port, help="the port to listen on")
    serve.set_defaults(run=_serve)

    group = commands.add_parser("keys", help="make, list and revoke virtual keys")
    actions = group.add_subparsers(metavar="ACTION", required=True, parser_class=_Parser)
    create = actions.add_parser("create", help="make a key and show it once", parents=[common, as_json])
    create.add_argument("name", metavar="NAME")
    create.add_argument("--models", metavar="A,B", help='what it may use, for example fast,sim/*; "*" is all')
    create.add_argument("--budget", metavar="USD[/PERIOD]", help="for example 5/1d, or 100 in all")
    create.add_argument("--rpm", metavar="N", help="requests a minute")
    create.add_argument("--expires", metavar="PERIOD", help="for example 90d")
    create.set_defaults(run=_keys_create)
    listing = actions.add_parser("list", help="every key", parents=[common, as_json])
    listing.set_defaults(run=_keys_list)
    revoke = actions.add_parser("revoke", help="end a key, by name or id", parents=[common, as_json])
    revoke.add_argument("name", metavar="NAME")
    revoke.set_defaults(run=_keys_revoke)

    checking = commands.add_parser("check", help="find what is wrong with the configuration", parents=[common])
    checking.add_argument("file", metavar="FILE", nargs="?", help="- reads standard input")
    checking.add_argument("--strict", action="store_true", help="warnings fail, too (exit code 2)")
    checking.add_argument("--format", choices=("text", "json", "github"), default="text")
    checking.set_defaults(run=_check)

    migrate = commands.add_parser("migrate", help="bring the database up to date", parents=[common, as_json])
    migrate.set_defaults(run=_migrate)
    return parser


def _port(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 65_535:
        raise argparse.ArgumentTypeError(f'"{text}" is not a port from 1 to 65535')
    return int(text)


def _cause_and_fix(message: str) -> tuple[str, str]:
    """Our errors say the cause first and the fix after it."""
    cause, stop, fix = message.partition(". ")
    return cause + stop.strip(), fix


def _failed(cause: str, fix: str, *, code: int = 1) -> int:
    print(cause, file=sys.stderr)
    if fix:
        print(f"Fix: {fix}", file=sys.stderr)
    return code
