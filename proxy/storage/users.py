"""The SQL of people and teams as they are looked at and changed: by row-level security one's own, or everybody."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import asyncpg

from proxy.errors import CallerError
from proxy.storage.accounts import ONE_BY_ONE, one_form
from proxy.storage.audit import note
from proxy.storage.postgres import Connection
from proxy.storage.sessions import RAISE_VERSION

NOBODY = "00000000-0000-0000-0000-000000000000"
OURS = "strata"
AUDITED = ("email", "name", "role", "team_id", "disabled")

LIST_USERS = """
    SELECT id::text, email, name, role, team_id::text, issuer, subject, disabled_at IS NOT NULL AS disabled, created_at
    FROM strata.users WHERE id > $1::text::uuid AND ($3::text IS NULL OR team_id = $3::text::uuid) ORDER BY id LIMIT $2
"""
READ_USER = """
    SELECT id::text, email, name, role, team_id::text, issuer, subject, disabled_at IS NOT NULL AS disabled, created_at
    FROM strata.users WHERE id = $1::text::uuid
"""
CHANGE_USER = """
    UPDATE strata.users SET name = $2, role = $3, team_id = $4::text::uuid,
        disabled_at = CASE WHEN $5 THEN coalesce(disabled_at, now()) END
    WHERE id = $1::text::uuid
"""
OTHER_ADMIN = """
    SELECT EXISTS (SELECT FROM strata.users WHERE role = 'admin' AND disabled_at IS NULL AND id <> $1::text::uuid)
"""


async def list_users(
    connection: Connection, *, limit: int, after: str = NOBODY, team_id: str | None = None
) -> list[dict[str, Any]]:
    """By their ids, of those that the connection's role may see."""
    return [dict(row) for row in await connection.fetch(LIST_USERS, after, limit, team_id)]


async def read_user(connection: Connection, id: str) -> dict[str, Any] | None:
    row = await connection.fetchrow(READ_USER, id)
    return None if row is None else dict(row)


FIND_BY_EMAIL = "SELECT id::text FROM strata.users WHERE lower(email) IN (lower($1), lower($2)) LIMIT 10"


async def find_by_email(connection: Connection, email: str) -> list[str]:
    """The ids: of one person, or of several whom several issuers know by this address."""
    return [row["id"] for row in await connection.fetch(FIND_BY_EMAIL, email, one_form(email))]


async def change_user(
    connection: Connection, id: str, wanted: Mapping[str, Any], *, actor: str, request_id: str = ""
) -> dict[str, Any] | None:
    """
    The person as he is now; None if there is no such one that the connection's role sees. `wanted`: some of name, role,
    team_id and disabled. CallerError if no admin would be left, or there is no such team.
    """
    # Two admins who shut out each other at once would leave none
    await connection.execute(ONE_BY_ONE)
    before = await read_user(connection, id)
    if before is None:
        return None
    after = {**before, **wanted}
    was_admin, is_admin = (one["role"] == "admin" and not one["disabled"] for one in (before, after))
    if was_admin and not is_admin and not await connection.fetchval(OTHER_ADMIN, id):
        raise CallerError(
            "This is the last admin. Make somebody else an admin first.", status=409, code="last_admin", param="role"
        )
    fields = (after["name"], after["role"], after["team_id"], after["disabled"])
    try:
        await connection.execute(CHANGE_USER, id, *fields)
    except (asyncpg.ForeignKeyViolationError, asyncpg.DataError):
        raise CallerError("There is no such team.", code="invalid_value", param="team_id") from None
    if after["disabled"] and not before["disabled"]:
        # Who comes back signs in anew
        await connection.execute(RAISE_VERSION, id)
    said = [{name: one[name] for name in AUDITED} for one in (before, after)]
    await note(
        connection, actor=actor, action="user.change", object=id, before=said[0], after=said[1], request_id=request_id
    )
    return after


async def sign_out(connection: Connection, id: str, *, actor: str, request_id: str) -> bool:
    """From everywhere; whether there is such a person. CallerError if it is another issuer who signs him in and out."""
    user = await read_user(connection, id)
    if user is None:
        return False
    if user["issuer"] != OURS:
        raise CallerError(
            f"This person signs in at {user['issuer']}, and out there. To shut him out here, disable him.",
            status=409,
            code="signed_in_elsewhere",
        )
    await connection.execute(RAISE_VERSION, id)
    await note(connection, actor=actor, action="user.sign_out", object=id, request_id=request_id)
    return True


LIST_TEAMS = """
    SELECT t.id::text, t.name, t.created_at, (SELECT count(*) FROM strata.users u WHERE u.team_id = t.id) AS members
    FROM strata.teams t WHERE $1::text IS NULL OR t.id = $1::text::uuid ORDER BY t.name LIMIT 1000
"""
INSERT_TEAM = "INSERT INTO strata.teams (name) VALUES ($1) RETURNING id::text"
RENAME_TEAM = "UPDATE strata.teams SET name = $2 WHERE id = $1::text::uuid RETURNING id::text"


async def list_teams(connection: Connection, id: str | None = None) -> list[dict[str, Any]]:
    """At most 1,000 of those that the connection's role may see, with how many of their people it sees."""
    return [dict(row) for row in await connection.fetch(LIST_TEAMS, id)]


async def save_team(connection: Connection, name: str, id: str | None, *, actor: str, request_id: str) -> str | None:
    """A new team if `id` is None, else another name for one; its id, None if there is none. CallerError: name taken."""
    before = await list_teams(connection, id) if id is not None else []
    try:
        if id is None:
            saved: str | None = await connection.fetchval(INSERT_TEAM, name)
        else:
            saved = await connection.fetchval(RENAME_TEAM, id, name)
    except asyncpg.UniqueViolationError:
        raise CallerError(f'There is a team "{name}" already.', status=409, code="name_taken", param="name") from None
    if saved is not None:
        was = {"name": before[0]["name"]} if before else None
        action = "team.create" if id is None else "team.rename"
        await note(
            connection,
            actor=actor,
            action=action,
            object=saved,
            before=was,
            after={"name": name},
            request_id=request_id,
        )
    return saved
