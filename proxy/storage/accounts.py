"""The SQL of people who have a password here. Others are known by what their issuer says of them."""

from __future__ import annotations

import unicodedata
from typing import Any

import asyncpg
import msgspec

from proxy.errors import CallerError
from proxy.storage.audit import note
from proxy.storage.postgres import Connection, Database
from proxy.storage.sessions import end_all_sessions

MAX_EMAIL_CHARS = 320


def one_form(email: str) -> str:
    """An e-mail address as it is kept: keyboards write one letter in several ways. CallerError if it is too long."""
    composed = unicodedata.normalize("NFC", email)
    if len(composed) > MAX_EMAIL_CHARS:
        raise CallerError(
            f"This e-mail address has more than {MAX_EMAIL_CHARS} characters.", code="invalid_value", param="email"
        )
    return composed


class Account(msgspec.Struct, frozen=True):
    id: str
    email: str
    name: str
    role: str
    team_id: str | None
    password_hash: str | None
    disabled: bool
    token_version: int


FIND_ACCOUNT = """
    SELECT id::text, email, name, role, team_id::text, password_hash, disabled_at IS NOT NULL AS disabled,
        token_version
    FROM strata.users WHERE issuer = 'strata' AND lower(email) = lower($1)
"""
READ_ACCOUNT = """
    SELECT id::text, email, name, role, team_id::text, password_hash, disabled_at IS NOT NULL AS disabled,
        token_version
    FROM strata.users WHERE issuer = 'strata' AND id = $1::text::uuid AND email IS NOT NULL
"""
ONE_BY_ONE = "SELECT pg_advisory_xact_lock(hashtextextended('strata.first_account', 0))"
ANY_ACCOUNT = "SELECT EXISTS (SELECT FROM strata.users WHERE issuer = 'strata')"
INSERT_ACCOUNT = """
    INSERT INTO strata.users (email, name, role, password_hash, team_id, subject)
    SELECT $1, $2, $3, $4, $5::text::uuid, id::text FROM (SELECT gen_random_uuid() AS id) AS made
    ON CONFLICT DO NOTHING
    RETURNING id::text, email, name, role, team_id::text, password_hash, false AS disabled,
        token_version
"""


async def find_account(db: Database, email: str) -> Account | None:
    return _account(await db.fetchrow(FIND_ACCOUNT, one_form(email)))


async def read_account(db: Database, user_id: str) -> Account | None:
    """None for who has no password here, or is no person."""
    return _account(await db.fetchrow(READ_ACCOUNT, user_id))


async def any_account(connection: Connection) -> bool:
    """Those who ask at once take turns, until their transactions end."""
    await connection.execute(ONE_BY_ONE)
    return bool(await connection.fetchval(ANY_ACCOUNT))


async def insert_first(connection: Connection, *, email: str, name: str, password_hash: str) -> Account | None:
    """The admin; None if there is an account already."""
    if await any_account(connection):
        return None
    return await insert_account(connection, email=email, name=name, role="admin", password_hash=password_hash)


async def insert_account(
    connection: Connection,
    *,
    email: str,
    name: str,
    role: str,
    password_hash: str,
    team_id: str | None = None,
    actor: str | None = None,
) -> Account | None:
    """None if somebody has this address already. `actor`: who made it, if not its owner."""
    email = one_form(email)
    row = await connection.fetchrow(INSERT_ACCOUNT, email, name, role, password_hash, team_id)
    if row is not None:
        after = {"email": email, "name": name, "role": role, "team_id": team_id}
        await note(connection, actor=actor or row["id"], action="user.create", object=row["id"], after=after)
    return _account(row)


SET_PASSWORD = "UPDATE strata.users SET password_hash = $2 WHERE id = $1::text::uuid AND issuer = 'strata'"


async def set_password(connection: Connection, user_id: str, password_hash: str, *, actor: str) -> None:
    """Whoever was signed in with the old one is not any more."""
    await connection.execute(SET_PASSWORD, user_id, password_hash)
    await end_all_sessions(connection, user_id)
    await note(connection, actor=actor, action="user.password", object=user_id)


def _account(row: asyncpg.Record | None) -> Account | None:
    fields: dict[str, Any] | None = None if row is None else dict(row)
    return None if fields is None else Account(**fields)
