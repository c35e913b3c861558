"""The SQL of people who have a password here. Others are known by what their issuer says of them."""

from __future__ import annotations

import asyncpg
import msgspec

from proxy.storage.postgres import Connection, Database


class Account(msgspec.Struct, frozen=True):
    id: str
    email: str
    name: str
    role: str
    team_id: str | None
    password_hash: str | None
    disabled: bool


FIND_ACCOUNT = """
    SELECT id::text, email, name, role, team_id::text, password_hash, disabled_at IS NOT NULL AS disabled
    FROM strata.users WHERE issuer = 'strata' AND lower(email) = lower($1)
"""
ONE_BY_ONE = "SELECT pg_advisory_xact_lock(hashtextextended('strata.first_account', 0))"
ANY_ACCOUNT = "SELECT EXISTS (SELECT FROM strata.users WHERE issuer = 'strata')"
INSERT_ACCOUNT = """
    INSERT INTO strata.users (email, name, role, password_hash, subject)
    SELECT $1, $2, $3, $4, id::text FROM (SELECT gen_random_uuid() AS id) AS made
    ON CONFLICT DO NOTHING
    RETURNING id::text, email, name, role, team_id::text, password_hash, false AS disabled
"""


async def find_account(db: Database, email: str) -> Account | None:
    return _account(await db.fetchrow(FIND_ACCOUNT, email))


async def insert_first(connection: Connection, *, email: str, name: str, password_hash: str) -> Account | None:
    """The admin; None if there is an account already. Those who ask at once take turns."""
    await connection.execute(ONE_BY_ONE)
    if await connection.fetchval(ANY_ACCOUNT):
        return None
    return _account(await connection.fetchrow(INSERT_ACCOUNT, email, name, "admin", password_hash))


def _account(row: asyncpg.Record | None) -> Account | None:
    return None if row is None else Account(**dict(row))
