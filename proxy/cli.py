"""
The command `strata`. Expected errors are one line of cause and one line "Fix:", never a traceback; the exit code is 0,
1 (failed) or 2 (wrong usage; or warnings, for `check --strict`).

Each module in `proxy.commands` adds its own words and flags; here they are only listed.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence

import msgspec

from proxy import __version__
from proxy.commands import (
    alerts,
    audit,
    budgets,
    check,
    demo,
    doctor,
    keys,
    ledger,
    migrate,
    prices,
    request,
    usage,
    users,
    vault,
)
from proxy.commands.check import examine_fully
from proxy.commands.flags import Commands, Parser, Shared, failed, file_of, home_of, shared, with_master_key
from proxy.config.problems import ConfigError, Wrong, suggestion
from proxy.errors import GatewayError

MODULES = (keys, users, budgets, usage, request, ledger, prices, alerts, audit, vault, check, doctor, demo, migrate)


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    environ = os.environ if environ is None else environ
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help", "--version")):
        words.insert(0, "serve")
    parser, commands = _parser()
    if not words[0].startswith("-") and words[0] not in commands.choices:
        return failed(
            f'there is no command "{words[0]}".{suggestion(words[0], list(commands.choices))}', "strata --help", code=2
        )
    try:
        args = parser.parse_args(words)
        code: int = args.run(args, environ)
        sys.stdout.flush()
        return code
    except ConfigError as error:
        return failed(str(error), "correct it and look again with: strata check")
    except Wrong as wrong:
        return failed(str(wrong), f"strata {' '.join(words[:2])} --help", code=2)
    except GatewayError as error:
        return failed(*_cause_and_fix(error.message))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # `strata keys list | head`: whoever read us has enough. Python must not try to flush what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _serve(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    path = file_of(args, environ)
    config, problems = examine_fully(path, environ)
    if config is None:
        raise ConfigError(problems)
    flags = {name: value for name, value in (("host", args.host), ("port", args.port)) if value is not None}
    config = msgspec.structs.replace(config, server=msgspec.structs.replace(config.server, **flags))
    from proxy.serving import serve  # noqa: PLC0415  (the whole gateway; the other commands start without it)

    code: int = serve(config, home=home_of(args, environ), environ=with_master_key(config, environ))
    return code


def _parser() -> tuple[Parser, Commands[Parser]]:
    parser = Parser(
        prog="strata",
        description="A lean, OpenAI-compatible gateway to any model provider. Without a command it serves.",
    )
    parser.add_argument("--version", action="version", version=f"strata {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    flags = shared()
    _add_serve(commands, flags)
    for module in MODULES:
        module.add_parser(commands, flags)
    return parser, commands


def _add_serve(commands: Commands[Parser], flags: Shared) -> None:
    serve = commands.add_parser("serve", help="run the gateway", parents=[flags.place])
    serve.add_argument("--host", help="the address to listen on")
    serve.add_argument("--port", type=_port, help="the port to listen on")
    serve.set_defaults(run=_serve)


def _port(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 65_535:
        raise argparse.ArgumentTypeError(f'"{text}" is not a port from 1 to 65535')
    return int(text)


def _cause_and_fix(message: str) -> tuple[str, str]:
    """Our errors say the cause first and the fix after it."""
    cause, stop, fix = message.partition(". ")
    return cause + stop.strip(), fix
