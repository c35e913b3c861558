"""
The SQL of sessions: a log-in, and the chain of refresh tokens that came of it.

A refresh token is good once. Whoever shows a used one has stolen it, or the one who used it had: the session ends.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from proxy.storage.postgres import Connection, Database

CHANNEL = "strata_people"


class Rotation(NamedTuple):
    """`ok`: the new token is in force. `reused`: the session has just ended. `refused`: unknown, ended or expired."""

    outcome: Literal["ok", "reused", "refused"]
    user_id: str = ""
    session_id: str = ""
    token_version: int = 0


OPEN_SESSION = """
    INSERT INTO strata.sessions (id, user_id, token_version, expires_at)
    SELECT $1::text::uuid, u.id, u.token_version, now() + make_interval(secs => $3::float8)
    FROM strata.users u WHERE u.id = $2::text::uuid AND u.disabled_at IS NULL
        AND u.token_version = coalesce($4::integer, u.token_version)
    RETURNING token_version
"""
INSERT_REFRESH = "INSERT INTO strata.refresh_tokens (digest, session_id) VALUES ($1, $2::text::uuid)"


async def open_session(
    connection: Connection,
    *,
    session_id: str,
    user_id: str,
    digest: bytes,
    ttl_seconds: float,
    known_version: int | None = None,
) -> int | None:
    """
    The version of the user's tokens; None if there is no such user any more, or his password is another, or he was
    signed out everywhere, since his tokens had the version that is known.
    """
    version: int | None = await connection.fetchval(OPEN_SESSION, session_id, user_id, ttl_seconds, known_version)
    if version is not None:
        await connection.execute(INSERT_REFRESH, digest, session_id)
    return version


FIND_REFRESH = """
    SELECT r.used_at IS NOT NULL AS used, s.user_id::text, s.id::text AS session_id, s.token_version,
        s.ended_at IS NULL AND s.expires_at > now() AND u.disabled_at IS NULL AND u.token_version = s.token_version
            AS good
    FROM strata.refresh_tokens r
    JOIN strata.sessions s ON s.id = r.session_id
    JOIN strata.users u ON u.id = s.user_id
    WHERE r.digest = $1
    FOR UPDATE OF r, s
"""
USE_REFRESH = "UPDATE strata.refresh_tokens SET used_at = now() WHERE digest = $1"
END_SESSION = """
    UPDATE strata.sessions SET ended_at = now(), end_reason = $2 WHERE id = $1::text::uuid AND ended_at IS NULL
"""


async def rotate(db: Database, digest: bytes, next_digest: bytes) -> Rotation:
    """Of several that show the same token at once, one gets the next; the others end the session for all."""
    async with db.transaction() as connection:
        row = await connection.fetchrow(FIND_REFRESH, digest)
        if row is None or not row["good"]:
            return Rotation("refused")
        if row["used"]:
            await connection.execute(END_SESSION, row["session_id"], "reuse")
            return Rotation("reused", row["user_id"], row["session_id"])
        await connection.execute(USE_REFRESH, digest)
        await connection.execute(INSERT_REFRESH, next_digest, row["session_id"])
        return Rotation("ok", row["user_id"], row["session_id"], row["token_version"])


RAISE_VERSION = "UPDATE strata.users SET token_version = token_version + 1 WHERE id = $1::text::uuid"
END_SESSIONS = """
    UPDATE strata.sessions SET ended_at = now(), end_reason = 'everywhere'
    WHERE user_id = $1::text::uuid AND ended_at IS NULL
"""


async def end_all_sessions(connection: Connection, user_id: str) -> None:
    """Every access token of before is out of date, too."""
    await connection.execute(RAISE_VERSION, user_id)
    await connection.execute(END_SESSIONS, user_id)


OWNER = """
    SELECT s.user_id::text FROM strata.sessions s JOIN strata.users u ON u.id = s.user_id
    WHERE s.id = $1::text::uuid AND s.ended_at IS NULL AND s.expires_at > now() AND s.token_version = u.token_version
        AND ($2::bytea IS NULL OR EXISTS (SELECT FROM strata.refresh_tokens r
            WHERE r.digest = $2 AND r.session_id = s.id))
"""


async def sign_out(db: Database, session_id: str, refresh_digest: bytes | None, *, everywhere: bool) -> None:
    """
    `refresh_digest`: of the token that was shown, if nobody has verified yet that it is one of this session. A session
    that is over ends nothing more: its tokens may lie about for years.
    """
    async with db.transaction() as connection:
        user_id = await connection.fetchval(OWNER, session_id, refresh_digest)
        if user_id is None:
            return
        if everywhere:
            await end_all_sessions(connection, user_id)
        else:
            await connection.execute(END_SESSION, session_id, "logout")


FORGET_SESSIONS = "DELETE FROM strata.sessions WHERE expires_at < now() - interval '1 day'"


async def forget_sessions(db: Database) -> None:
    """Those that ended by themselves a day ago, with their tokens."""
    await db.execute(FORGET_SESSIONS, timeout_seconds=10.0)
