"""
The SQL of who somebody is, asked with the token that he shows. `sessions.CHANNEL` tells of every change.

People of an issuer outside appear when they first come; what their token says of them is kept up to date.
"""

from __future__ import annotations

from typing import Any, Literal

import asyncpg
import msgspec

from proxy.exchange import Budget
from proxy.storage.audit import note
from proxy.storage.postgres import Connection, Database


class PersonRow(msgspec.Struct, frozen=True):
    """`name` is what to call somebody: his name, else the e-mail address, else the issuer's name for him."""

    id: str
    name: str
    role: Literal["viewer", "member", "admin"]
    team_id: str | None
    budgets: tuple[Budget, ...]


class Said(msgspec.Struct, frozen=True):
    """What a token of an issuer outside says. "" and None: nothing, and what is here stays."""

    issuer: str
    subject: str
    email: str | None = None
    role: str | None = None
    team: str | None = None


FIND_IN_SESSION = """
    SELECT p.id::text, coalesce(nullif(p.name, ''), p.email, p.subject) AS name, p.role, p.team_id::text, p.budgets
    FROM strata.bound_people p JOIN strata.sessions s ON s.user_id = p.id
    WHERE p.id = $1::text::uuid AND p.disabled_at IS NULL AND p.token_version = $3
        AND s.id = $2::text::uuid AND s.ended_at IS NULL AND s.expires_at > now() AND s.token_version = p.token_version
"""


async def find_in_session(db: Database, user_id: str, session_id: str, version: int) -> PersonRow | None:
    """The person of one of our own tokens; None if that session is over."""
    row = await db.fetchrow(FIND_IN_SESSION, user_id, session_id, version)
    return None if row is None else _person(row)


FIND_OUTSIDER = """
    SELECT p.id::text, coalesce(nullif(p.name, ''), p.email, p.subject) AS name, p.role, p.team_id::text, p.budgets,
        p.email, p.disabled_at IS NOT NULL AS disabled, t.name AS team
    FROM strata.bound_people p LEFT JOIN strata.teams t ON t.id = p.team_id
    WHERE p.issuer = $1 AND p.subject = $2
"""
MAKE_TEAM = """
    WITH made AS (INSERT INTO strata.teams (name) VALUES ($1) ON CONFLICT DO NOTHING RETURNING id)
    SELECT id FROM made UNION ALL SELECT id FROM strata.teams WHERE name = $1 LIMIT 1
"""
MAKE_OUTSIDER = """
    INSERT INTO strata.users (issuer, subject, role) VALUES ($1, $2, 'member') ON CONFLICT (issuer, subject) DO NOTHING
    RETURNING id::text
"""
KEEP_UP = """
    UPDATE strata.users SET role = coalesce($3, role), team_id = coalesce($4, team_id)
    WHERE issuer = $1 AND subject = $2
        AND (role, team_id) IS DISTINCT FROM (coalesce($3, role), coalesce($4, team_id))
    RETURNING id::text
"""
# An address that somebody else of this issuer has stays with that one until the issuer's next word about him.
KEEP_ADDRESS = """
    UPDATE strata.users u SET email = $3 WHERE issuer = $1 AND subject = $2 AND email IS DISTINCT FROM $3
        AND NOT EXISTS (SELECT FROM strata.users o WHERE o.issuer = $1 AND lower(o.email) = lower($3) AND o.id <> u.id)
"""


class Disabled(Exception):
    """Somebody whom an admin has shut out."""


async def find_outsider(db: Database, said: Said, *, may_appear: bool) -> PersonRow | None:
    """
    The person whom a token of an issuer outside is about, as it says he is. None: he is not known, and may not appear.
    Raises Disabled.
    """
    row = await db.fetchrow(FIND_OUTSIDER, said.issuer, said.subject)
    if row is None and not may_appear:
        return None
    if row is None or _is_news(row, said):
        async with db.transaction() as connection:
            await _write(connection, said)
            row = await connection.fetchrow(FIND_OUTSIDER, said.issuer, said.subject)
    if row is None:
        return None
    if row["disabled"]:
        raise Disabled
    return _person(row)


def _is_news(row: asyncpg.Record, said: Said) -> bool:
    return (
        said.role not in (None, row["role"])
        or said.team not in (None, row["team"])
        or said.email not in (None, row["email"])
    )


async def _write(connection: Connection, said: Said) -> None:
    who = (said.issuer, said.subject)
    made = await connection.fetchval(MAKE_OUTSIDER, *who)
    team_id = None if said.team is None else await connection.fetchval(MAKE_TEAM, said.team)
    changed = await connection.fetchval(KEEP_UP, *who, said.role, team_id)
    if said.email is not None:
        try:
            async with connection.transaction():
                await connection.execute(KEEP_ADDRESS, *who, said.email)
        except asyncpg.UniqueViolationError:
            pass  # two who come with one address at the same moment
    if made or changed:
        action = "user.appear" if made else "user.change"
        after = {"issuer": said.issuer, "subject": said.subject, "role": said.role, "team": said.team}
        await note(connection, actor=said.issuer, action=action, object=made or changed, after=after)


def _person(row: asyncpg.Record) -> PersonRow:
    fields: dict[str, Any] = {name: row[name] for name in ("id", "name", "role", "team_id")}
    return PersonRow(**fields, budgets=msgspec.json.decode(row["budgets"], type=tuple[Budget, ...]))
