"""
The SQL of log-ins that fail: each costs its account and its address time, on every replica alike.

An attempt is counted before the password is looked at, and given back when it was right: a thousand at once get no
further than one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from proxy.storage.postgres import Database


class Subject(NamedTuple):
    """Who tries, as a hash of 32 bytes; how many failures are free, and how long the longest wait is."""

    digest: bytes
    free: int
    longest_seconds: float


TAKE_ATTEMPT = """
    INSERT INTO strata.login_attempts AS a (subject, failures, last_at)
    SELECT subject, 1, now() FROM unnest($1::bytea[]) AS one(subject) ORDER BY subject
    ON CONFLICT (subject) DO UPDATE SET last_at = now(),
        failures = CASE WHEN a.last_at < now() - interval '1 hour' THEN 1 ELSE least(a.failures + 1, 1000) END
    WHERE a.blocked_until IS NULL OR a.blocked_until <= now()
    RETURNING subject
"""
BLOCK = """
    UPDATE strata.login_attempts a
    SET blocked_until = now()
        + make_interval(secs => least(power(2, least(a.failures - one.free - 1, 30)), one.longest))
    FROM unnest($1::bytea[], $2::integer[], $3::float8[]) AS one(subject, free, longest)
    WHERE a.subject = one.subject AND a.failures > one.free AND (a.blocked_until IS NULL OR a.blocked_until <= now())
"""
BLOCKED = """
    SELECT coalesce(max(extract(epoch FROM blocked_until - now())), 0)::float8
    FROM strata.login_attempts WHERE subject = ANY($1) AND blocked_until > now()
"""


async def take_attempt(db: Database, subjects: Sequence[Subject]) -> float:
    """0: go on, and the attempt is counted. Otherwise for how many seconds nobody of these may try."""
    digests = [subject.digest for subject in subjects]
    async with db.transaction() as connection:
        seconds: float = await connection.fetchval(BLOCKED, digests)
        if seconds > 0:
            return seconds
        taken = await connection.fetch(TAKE_ATTEMPT, digests)
        if len(taken) < len(digests):
            # Blocked by somebody who was just before us, while we waited for the row
            seconds = await connection.fetchval(BLOCKED, digests)
            return max(1.0, seconds)
        # Who has used up what is free waits before the next one, which is so blocked while this one is looked at.
        free, longest = [one.free for one in subjects], [one.longest_seconds for one in subjects]
        await connection.execute(BLOCK, digests, free, longest)
        return 0.0


# In the order in which attempts take them: whoever takes turns in another waits for somebody who waits for him. For the
# same reason no row goes before its day is over: one that came back meanwhile would not be among those that are locked.
LOCK = "SELECT FROM strata.login_attempts WHERE subject = ANY($1) ORDER BY subject FOR UPDATE"
# To its own pair of account and address all is forgiven; to the account and to the address this one attempt: what an
# attacker has failed there is not the owner's to wipe out.
FORGIVE = "UPDATE strata.login_attempts SET failures = 0, blocked_until = NULL WHERE subject = $1"
# Nobody was blocked before this attempt, or it would not have been let through.
GIVE_BACK = """
    UPDATE strata.login_attempts SET failures = greatest(failures - 1, 0), blocked_until = NULL WHERE subject = ANY($1)
"""
FORGET_ATTEMPTS = "DELETE FROM strata.login_attempts WHERE last_at < now() - interval '1 day'"


async def forgive(db: Database, pair: Subject, others: Sequence[Subject]) -> None:
    """The password was right: the attempt was none. `pair`: the account from this address."""
    async with db.transaction() as connection:
        await connection.execute(LOCK, [pair.digest, *(other.digest for other in others)])
        await connection.execute(FORGIVE, pair.digest)
        await connection.execute(GIVE_BACK, [other.digest for other in others])


async def give_back(db: Database, subjects: Sequence[Subject]) -> None:
    """The attempt was none: nobody came to look at the password."""
    digests = [subject.digest for subject in subjects]
    async with db.transaction() as connection:
        await connection.execute(LOCK, digests)
        await connection.execute(GIVE_BACK, digests)


async def forget_attempts(db: Database) -> None:
    """Those of yesterday."""
    await db.execute(FORGET_ATTEMPTS, timeout_seconds=10.0)
