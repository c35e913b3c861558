"""Sessions and failed log-ins in Postgres: what holds however many ask at once."""

from __future__ import annotations

import asyncio
import hashlib
import uuid

import pytest

from proxy.storage.login_attempts import Subject, forget_attempts, forgive, give_back, take_attempt
from proxy.storage.postgres import Database
from proxy.storage.sessions import CHANNEL, end_all_sessions, forget_sessions, open_session, rotate, sign_out


def digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


async def new_user(db: Database) -> str:
    row = await db.fetchrow("INSERT INTO strata.users (email) VALUES ('ann@example.com') RETURNING id::text")
    assert row is not None
    return str(row["id"])


async def begin(db: Database, user_id: str, first: str = "1", ttl_seconds: float = 60.0) -> str:
    session_id = str(uuid.uuid4())
    async with db.transaction() as connection:
        version = await open_session(
            connection, session_id=session_id, user_id=user_id, digest=digest(first), ttl_seconds=ttl_seconds
        )
    assert version == 0
    return session_id


async def test_a_refresh_token_is_good_once_and_leads_to_the_next(db: Database) -> None:
    user_id = await new_user(db)
    session_id = await begin(db, user_id)
    for number in range(1, 4):
        assert await rotate(db, digest(str(number)), digest(str(number + 1))) == ("ok", user_id, session_id, 0)
    assert (await rotate(db, digest("unknown"), digest("x"))).outcome == "refused"


@pytest.mark.parametrize("stolen", ["1", "2"])
async def test_a_used_token_seen_again_ends_the_whole_session_and_no_other(db: Database, stolen: str) -> None:
    user_id = await new_user(db)
    await begin(db, user_id)
    await begin(db, user_id, "other")
    await rotate(db, digest("1"), digest("2"))
    await rotate(db, digest("2"), digest("3"))
    assert (await rotate(db, digest(stolen), digest("thief"))).outcome == "reused"
    for token in ("1", "2", "3", "thief"):
        assert (await rotate(db, digest(token), digest("4"))).outcome == "refused"
    assert (await rotate(db, digest("other"), digest("next"))).outcome == "ok"


async def test_of_twenty_who_show_one_token_at_once_nobody_keeps_the_session(db: Database) -> None:
    await begin(db, await new_user(db))
    found = await asyncio.gather(*(rotate(db, digest("1"), digest(f"next {number}")) for number in range(20)))
    assert sorted(one.outcome for one in found).count("ok") == 1
    assert "reused" in {one.outcome for one in found}
    winner = next(number for number, one in enumerate(found) if one.outcome == "ok")
    assert (await rotate(db, digest(f"next {winner}"), digest("later"))).outcome == "refused"


async def test_logging_out_ends_one_session_and_everywhere_ends_all(db: Database) -> None:
    user_id = await new_user(db)
    for name in ("a", "b", "c"):
        session_id = await begin(db, user_id, name)
    await sign_out(db, session_id, None, everywhere=False)
    assert (await rotate(db, digest("c"), digest("c2"))).outcome == "refused"
    assert (await rotate(db, digest("a"), digest("a2"))).outcome == "ok"
    async with db.transaction() as connection:
        await end_all_sessions(connection, user_id)
    for name in ("a2", "b"):
        assert (await rotate(db, digest(name), digest("x"))).outcome == "refused"
    row = await db.fetchrow("SELECT token_version FROM strata.users")
    assert row is not None and row["token_version"] == 1


async def test_a_token_of_a_session_that_is_over_signs_nobody_out(db: Database) -> None:
    user_id = await new_user(db)
    left, short = await begin(db, user_id, "left"), await begin(db, user_id, "short", ttl_seconds=-1.0)
    await sign_out(db, left, digest("left"), everywhere=False)
    await begin(db, user_id, "new")
    await sign_out(db, left, digest("left"), everywhere=True)
    await sign_out(db, short, digest("short"), everywhere=True)
    assert (await rotate(db, digest("new"), digest("newer"))).outcome == "ok"


async def test_an_expired_session_and_a_disabled_user_get_nothing(db: Database) -> None:
    user_id = await new_user(db)
    await begin(db, user_id, "short", ttl_seconds=-90_000.0)
    await begin(db, user_id, "long")
    assert (await rotate(db, digest("short"), digest("x"))).outcome == "refused"
    await forget_sessions(db)
    assert len(await db.fetch("SELECT 1 FROM strata.refresh_tokens")) == 1
    await db.execute("UPDATE strata.users SET disabled_at = now()")
    assert (await rotate(db, digest("long"), digest("x"))).outcome == "refused"
    async with db.transaction() as connection:
        assert not await open_session(
            connection, session_id=str(uuid.uuid4()), user_id=user_id, digest=digest("y"), ttl_seconds=60.0
        )


async def test_what_changes_who_somebody_is_is_announced(db: Database) -> None:
    user_id = await new_user(db)
    session_id = await begin(db, user_id)
    heard: asyncio.Queue[str] = asyncio.Queue()
    await db.listen(CHANNEL, heard.put_nowait)
    assert await asyncio.wait_for(heard.get(), 10) == ""
    await db.execute("UPDATE strata.users SET name = 'Ann'")
    await sign_out(db, session_id, None, everywhere=False)
    assert await asyncio.wait_for(heard.get(), 10) == user_id
    await db.execute("UPDATE strata.users SET role = 'viewer'")
    assert await asyncio.wait_for(heard.get(), 10) == user_id
    assert heard.empty()


async def test_a_thousand_guesses_at_once_get_no_further_than_what_is_free(db: Database) -> None:
    account = [Subject(digest("ann"), 5, 900.0)]
    found = await asyncio.gather(*(take_attempt(db, account) for _ in range(100)))
    assert 6 <= sum(seconds == 0 for seconds in found) <= 8  # six at once; waits of 1 and 2 s may pass meanwhile
    assert await take_attempt(db, account) > 0
    assert await take_attempt(db, [Subject(digest("bob"), 5, 900.0)]) == 0


async def test_the_wait_doubles_up_to_its_longest_and_a_right_password_ends_it(db: Database) -> None:
    one, waits = [Subject(digest("ann"), 2, 5.0)], []
    for _ in range(7):
        assert await take_attempt(db, one) == 0
        row = await db.fetchrow("SELECT round(extract(epoch FROM blocked_until - last_at))::int AS w "
                                "FROM strata.login_attempts")  # fmt: skip
        assert row is not None
        waits.append(row["w"])
        await db.execute("UPDATE strata.login_attempts SET blocked_until = now() WHERE blocked_until IS NOT NULL")
    assert waits == [None, None, 1, 2, 4, 5, 5]
    await forgive(db, one[0], one[1:])
    assert await take_attempt(db, one) == 0
    await db.execute("UPDATE strata.login_attempts SET last_at = now() - interval '2 days'")
    await forget_attempts(db)
    assert await db.fetch("SELECT 1 FROM strata.login_attempts") == []


async def test_right_passwords_at_once_wait_for_each_other_and_never_in_a_circle(db: Database) -> None:
    async def log_in(number: int) -> None:
        # The digests are such that the pair is now the first to be taken, now the last
        names = (f"{number % 4} both", f"{number % 4} account", "address")
        pair, *others = (Subject(digest(name), 1_000_000, 60.0) for name in names)
        for _ in range(25):
            assert await take_attempt(db, [pair, *others]) == 0
            await forgive(db, pair, others)

    await asyncio.gather(*(log_in(number) for number in range(16)))
    rows = await db.fetch("SELECT failures FROM strata.login_attempts")
    assert {row["failures"] for row in rows} == {0}


async def test_what_a_right_password_or_nobody_used_leaves_no_wait_behind(db: Database) -> None:
    pair, address = Subject(digest("both"), 5, 900.0), Subject(digest("address"), 3, 60.0)
    for _ in range(3):
        assert await take_attempt(db, [address]) == 0
    for _ in range(2):
        assert await take_attempt(db, [pair, address]) == 0
        await forgive(db, pair, [address])
        assert await take_attempt(db, [pair, address]) == 0
        await give_back(db, [pair, address])
    assert await take_attempt(db, [address]) == 0
    assert await take_attempt(db, [address]) > 0
