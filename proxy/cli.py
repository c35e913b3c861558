"""
The command `strata`. Expected errors are one line of cause and one line "Fix:", never a traceback; the exit code is 0,
1 (failed) or 2 (wrong usage; or warnings, for `check --strict`).

Each module in `proxy.commands` adds its own words and flags; here they are only listed.
"""

from __future__ import annotations

import argparse
import errno
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
from proxy.commands.flags import Commands, Parser, Shared, failed, file_of, home_of, port, shared, with_master_key
from proxy.config.problems import ConfigError, Mark, Wrong, suggestion
from proxy.config.server import listening
from proxy.config.yaml import ScalarNode
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
        args, left = parser.parse_known_args(words)
        if left:
            return failed(f"unrecognized arguments: {' '.join(left)}.", args.help_at, code=2)
        code: int = args.run(args, environ)
        if sys.stdout is not None:  # `>&-`
            sys.stdout.flush()
        return code
    except ConfigError as error:
        return failed(str(error), "correct it and look again with: strata check")
    except Wrong as wrong:
        return failed(str(wrong), args.help_at, code=2)
    except GatewayError as error:
        return failed(*_cause_and_fix(error.message))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # `strata keys list | head`: whoever read us has enough. Python must not try to flush what is left.
        _give_up_output()
        return 1
    except OSError as error:
        if error.errno == errno.ENOSPC and error.filename is None:
            _give_up_output()
            return failed("There is no room for what was to be printed.", "make room, or print it elsewhere")
        if error.filename is None:  # no place of the operator's: a fault of ours, with its trace
            raise
        return failed(
            f"{_place_of(error)} cannot be used ({error.strerror}).",
            "check its owner and permissions, or name another place with --home or --config",
        )


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


def _give_up_output() -> None:
    """What is still to be flushed goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _place_of(error: OSError) -> str:
    return os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(error.filename)


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
    serve.add_argument("--host", type=_host, help="the address to listen on")
    serve.add_argument("--port", type=port, help="the port to listen on")
    serve.set_defaults(run=_serve)


def _host(text: str) -> str:
    """Never nothing, which would be every address of this machine: `--host "$UNSET"`."""
    try:
        return listening(ScalarNode(Mark("--host"), text, "any"))
    except Wrong as wrong:
        raise argparse.ArgumentTypeError(str(wrong).rstrip(".")) from None


def _cause_and_fix(message: str) -> tuple[str, str]:
    """Our errors say the cause first and the fix after it."""
    cause, stop, fix = message.partition(". ")
    return cause + stop.strip(), fix
