"""
`strata users`: people, on the machine itself. A password is asked for on the terminal or read from standard input; on a
command line every other program of the machine could read it.
"""

from __future__ import annotations

import argparse
import getpass
import re
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from proxy.admission.accounts.passwords import Passwords, check_new
from proxy.commands import data
from proxy.commands.flags import Commands, Parser, Shared, config_of, home_of
from proxy.commands.tables import aligned, plain, to_json
from proxy.config.problems import Wrong
from proxy.errors import CallerError
from proxy.storage import users
from proxy.storage.accounts import find_account, insert_account, set_password
from proxy.storage.invitations import insert_invitation, new_invitation
from proxy.storage.postgres import Database

MAX_LISTED = 10_000
DAY_SECONDS = 86_400
ROLES = ("admin", "member", "viewer")

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

Work = Callable[[Database], Awaitable[Any]]


def add_parser(commands: Commands[Parser], flags: Shared) -> None:
    group = commands.add_parser("users", help="people: who there is, and what they may do")
    actions = group.add_subparsers(metavar="ACTION", required=True, parser_class=Parser)
    listing = actions.add_parser("list", help="everybody", parents=[*flags])
    listing.set_defaults(run=_list)
    creating = actions.add_parser("create", help="an account, with a password", parents=[*flags])
    creating.add_argument("email")
    creating.add_argument("--name", default="")
    creating.add_argument("--role", choices=ROLES, default="member")
    creating.set_defaults(run=_create)
    inviting = actions.add_parser(
        "invite", help="a text with which somebody makes himself an account", parents=[*flags]
    )
    inviting.add_argument("email", nargs="?", help="left out: whoever holds it")
    inviting.add_argument("--role", choices=ROLES, default="member")
    inviting.add_argument("--days", type=_days, default=7, metavar="1-90", help="default: 7")
    inviting.set_defaults(run=_invite)
    changing = actions.add_parser("change", help="somebody's name or role; or shut him out", parents=[*flags])
    changing.add_argument("user", help="an e-mail address or id")
    changing.add_argument("--name")
    changing.add_argument("--role", choices=ROLES)
    shut = changing.add_mutually_exclusive_group()
    shut.add_argument("--disable", dest="disabled", action="store_true", default=None)
    shut.add_argument("--enable", dest="disabled", action="store_false")
    changing.set_defaults(run=_change)
    renewing = actions.add_parser("password", help="a new password, for who has forgotten his", parents=[*flags])
    renewing.add_argument("email")
    renewing.set_defaults(run=_password)
    ending = actions.add_parser("sign-out", help="end all sessions of somebody", parents=[*flags])
    ending.add_argument("user", help="an e-mail address or id")
    ending.set_defaults(run=_sign_out)


def _days(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text[:9]) <= 90:
        raise argparse.ArgumentTypeError(f'"{text}" is not a number of days from 1 to 90')
    return int(text)


def _list(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    async def read(database: Database) -> list[dict[str, Any]]:
        async with database.transaction() as connection:
            return await users.list_users(connection, limit=MAX_LISTED)

    rows = data.run(config_of(args, environ), home_of(args, environ), read)
    if args.json:
        print(to_json(rows))
    elif not rows:
        print("Nobody is here yet. Make the admin with: strata users create EMAIL --role admin")
    else:
        table: list[tuple[str, ...]] = [("ID", "E-MAIL", "NAME", "ROLE", "FROM", "")]
        table += [tuple(map(plain, _told(row))) for row in rows]
        print(aligned(table))
    return 0


def _told(row: Mapping[str, Any]) -> tuple[str, ...]:
    state = "disabled" if row["disabled"] else ""
    return row["id"], row["email"] or row["subject"], row["name"], row["role"], row["issuer"], state


def _create(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    _check_email(args.email)
    password = _new_password(args.email)

    async def create(database: Database) -> str:
        password_hash = await Passwords().hash(password)
        async with database.transaction() as connection:
            given = {"email": args.email, "name": args.name, "role": args.role, "password_hash": password_hash}
            made = await insert_account(connection, **given, actor=data.operator())
        if made is None:
            raise CallerError("There is an account with this address already. See: strata users list")
        return made.id

    return _done(args, environ, create, f"{plain(args.email)} can sign in now, as {args.role}.")


def _invite(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    if args.email is not None:
        _check_email(args.email)
    text, digest = new_invitation()

    async def invite(database: Database) -> str:
        async with database.transaction() as connection:
            return await insert_invitation(
                connection,
                digest=digest,
                email=args.email,
                role=args.role,
                team_id=None,
                created_by=None,
                actor=data.operator(),
                ttl_seconds=args.days * DAY_SECONDS,
            )

    id = data.run(config_of(args, environ), home_of(args, environ), invite)
    if args.json:
        print(to_json({"id": id, "invitation": text, "role": args.role, "email": args.email}))
    else:
        print(
            f"{text}\nGood once, for {args.days} days: POST /auth/register with it, an e-mail address and a password."
        )
    return 0


def _change(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    wanted = {name: value for name in ("name", "role", "disabled") if (value := getattr(args, name)) is not None}
    if not wanted:
        raise Wrong("there is nothing to change: give --name, --role, --disable or --enable.")

    async def change(database: Database) -> str:
        id = await _find(database, args.user)
        async with database.transaction() as connection:
            await users.change_user(connection, id, wanted, actor=data.operator())
        return id

    return _done(args, environ, change, f"{plain(args.user)} is changed.")


def _password(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    password = _new_password(args.email)

    async def renew(database: Database) -> str:
        account = await find_account(database, args.email)
        if account is None:
            raise _unknown()
        password_hash = await Passwords().hash(password)
        async with database.transaction() as connection:
            await set_password(connection, account.id, password_hash, actor=data.operator())
        return account.id

    return _done(args, environ, renew, f"{plain(args.email)} has a new password, and is signed out everywhere.")


def _sign_out(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    async def sign_out(database: Database) -> str:
        id = await _find(database, args.user)
        async with database.transaction() as connection:
            await users.sign_out(connection, id, actor=data.operator(), request_id="")
        return id

    return _done(args, environ, sign_out, f"{plain(args.user)} is signed out everywhere.")


def _done(args: argparse.Namespace, environ: Mapping[str, str], work: Work, said: str) -> int:
    id = data.run(config_of(args, environ), home_of(args, environ), work)
    print(to_json({"id": id}) if args.json else said)
    return 0


async def _find(database: Database, user: str) -> str:
    async with database.transaction() as connection:
        if _ID.fullmatch(user) and await users.read_user(connection, user) is not None:
            return user
        found = await users.find_by_email(connection, user)
    if len(found) > 1:
        raise CallerError("Several people have this address, of several issuers. Name one by his id: strata users list")
    if not found:
        raise _unknown()
    return found[0]


def _check_email(email: str) -> None:
    if not re.fullmatch(r"[^\s@]+@[^\s@]+", email) or len(email) > 320 or not email.isprintable():
        raise CallerError("This is no e-mail address. Write it like ann@example.com.")


def _new_password(email: str) -> str:
    """Raises CallerError if it is too weak."""
    if sys.stdin.isatty():
        password = getpass.getpass("Password: ")
        if getpass.getpass("Once more: ") != password:
            raise CallerError("The two are not the same. Try again.")
    else:
        password = sys.stdin.readline(4096).rstrip("\r\n")
    check_new(password, email)
    return password


def _unknown() -> CallerError:
    return CallerError("There is nobody with this address or id. See: strata users list")
