"""
The SQL of invitations: a text, known here by its hash, with which one person makes himself an account.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from typing import Any, NamedTuple

import asyncpg

from proxy.errors import CallerError
from proxy.storage.accounts import one_form
from proxy.storage.audit import note
from proxy.storage.postgres import Connection

MAX_LISTED = 1_000

_TEXT = re.compile(r"strata-invite-[A-Za-z0-9_-]{43}")


class Taken(NamedTuple):
    """What an invitation says of its holder. `email` None: whatever he says."""

    id: str
    email: str | None
    role: str
    team_id: str | None


def new_invitation() -> tuple[str, bytes]:
    """The text, shown once, and what is kept of it."""
    text = f"strata-invite-{secrets.token_urlsafe(32)}"
    return text, hashlib.sha256(text.encode()).digest()


def digest_of(text: str) -> bytes | None:
    """None for what cannot be one of ours."""
    return hashlib.sha256(text.encode()).digest() if _TEXT.fullmatch(text) else None


INSERT = """
    INSERT INTO strata.invitations (digest, email, role, team_id, created_by, expires_at)
    VALUES ($1, $2, $3, $4::text::uuid, $5::text::uuid, now() + make_interval(secs => $6::float8))
    RETURNING id::text
"""


async def insert_invitation(
    connection: Connection,
    *,
    digest: bytes,
    email: str | None,
    role: str,
    team_id: str | None,
    created_by: str | None,
    actor: str,
    ttl_seconds: float,
    request_id: str = "",
) -> str:
    """Its id. CallerError if there is no such team, or the address is too long."""
    email = None if email is None else one_form(email)
    try:
        id: str = await connection.fetchval(INSERT, digest, email, role, team_id, created_by, ttl_seconds)
    except (asyncpg.ForeignKeyViolationError, asyncpg.DataError):
        raise CallerError("There is no such team.", code="invalid_value", param="team_id") from None
    after = {"email": email, "role": role, "team_id": team_id}
    await note(connection, actor=actor, action="invitation.create", object=id, after=after, request_id=request_id)
    return id


TAKE = """
    UPDATE strata.invitations SET accepted_at = now()
    WHERE digest = $1 AND accepted_at IS NULL AND revoked_at IS NULL AND expires_at > now()
    RETURNING id::text, email, role, team_id::text
"""
SAY_BY_WHOM = "UPDATE strata.invitations SET accepted_by = $2::text::uuid WHERE id = $1::text::uuid"


async def take_invitation(connection: Connection, digest: bytes) -> Taken | None:
    """Good for one, in this transaction; None if it is not good any more, or never was."""
    row = await connection.fetchrow(TAKE, digest)
    return None if row is None else Taken(**dict(row))


async def say_by_whom(connection: Connection, id: str, user_id: str) -> None:
    await connection.execute(SAY_BY_WHOM, id, user_id)


LIST = """
    SELECT id::text, email, role, team_id::text, created_by::text, created_at, expires_at, accepted_at,
        accepted_by::text, revoked_at
    FROM strata.invitations WHERE $1::text IS NULL OR id = $1::text::uuid ORDER BY created_at DESC, id LIMIT 1000
"""


async def list_invitations(connection: Connection, id: str | None = None) -> list[dict[str, Any]]:
    """Newest first, at most MAX_LISTED, of those that the connection's role may see; or the one with this id."""
    return [dict(row) for row in await connection.fetch(LIST, id)]


REVOKE = """
    UPDATE strata.invitations SET revoked_at = now()
    WHERE id = $1::text::uuid AND accepted_at IS NULL AND revoked_at IS NULL RETURNING id::text
"""


async def revoke_invitation(connection: Connection, id: str, *, actor: str, request_id: str) -> bool:
    """Whether there was one that nobody had used."""
    if await connection.fetchval(REVOKE, id) is None:
        return False
    await note(connection, actor=actor, action="invitation.revoke", object=id, request_id=request_id)
    return True
