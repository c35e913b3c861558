"""The keys a worker knows: fresh within moments, good for a while without Postgres, and never a wrong refusal."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from proxy.admission import keyring as keyrings
from proxy.admission.keyring import Keyring
from proxy.config import Secret, StaticKey
from proxy.storage.key_changes import StoredSecret
from proxy.storage.keys import KeyRow, insert_key, replace_secret, revoke_key
from proxy.storage.postgres import Database, Operation, Unavailable

PEPPER = b"p" * 32


def digest(number: int) -> bytes:
    return number.to_bytes(32, "big")


async def add(db: Database, number: int, pepper_id: str = "12345678") -> KeyRow:
    return await insert_key(
        db,
        name=f"key {number}",
        digest=digest(number),
        pepper_id=pepper_id,
        display=f"sk-strata-{number}",
        models=["*"],
        rpm=None,
        expires_at=None,
        budget_limit_nano_usd=None,
        budget_window_seconds=None,
    )


class Line(Database):
    """A connection to the real Postgres that can be cut, held up, and deprived of its notifications."""

    def __init__(self, dsn: str) -> None:
        super().__init__(dsn)
        self.cut = False
        self.deaf = False
        self.bug: Exception | None = None
        self.held: asyncio.Event | None = None
        self.asked = 0
        self.on_notice: Callable[[str], None] = lambda _: None

    async def fetch(
        self, sql: str, *args: Any, timeout_seconds: float = 2.0, op: Operation = "read"
    ) -> list[asyncpg.Record]:
        if self.cut:
            raise Unavailable
        if self.bug is not None:
            raise self.bug
        return await super().fetch(sql, *args, timeout_seconds=timeout_seconds, op=op)

    async def fetchrow(
        self, sql: str, *args: Any, timeout_seconds: float = 2.0, op: Operation = "read"
    ) -> asyncpg.Record | None:
        self.asked += 1
        if self.cut:
            raise Unavailable
        row = await super().fetchrow(sql, *args, timeout_seconds=timeout_seconds, op=op)
        if self.held is not None:
            await self.held.wait()
        return row

    async def listen(self, channel: str, on_notice: Callable[[str], None]) -> None:
        self.on_notice = on_notice
        if not self.deaf:
            await super().listen(channel, on_notice)


@pytest.fixture
async def line(database_dsn: str) -> AsyncIterator[Line]:
    line = Line(database_dsn)
    await line.open()
    yield line
    await line.close()


@asynccontextmanager
async def started(line: Line, **options: Any) -> AsyncIterator[Keyring]:
    keyring = Keyring(line, PEPPER, **options)
    await keyring.start()
    try:
        yield keyring
    finally:
        await keyring.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(15):
        while not condition():
            await asyncio.sleep(0.005)


async def test_the_snapshot_holds_all_keys_from_the_start(line: Line) -> None:
    rows = [await add(line, number) for number in range(3)]
    async with started(line) as keyring:
        assert [keyring.known(row.digest) for row in rows] == rows
        assert len(keyring) == 3
        assert not keyring.stale


async def test_a_new_key_and_a_revoked_one_are_known_at_once(line: Line) -> None:
    async with started(line, poll_seconds=60) as keyring:
        row = await add(line, 1)
        await until(lambda: keyring.known(row.digest) == row)
        await revoke_key(line, row.id)
        await until(lambda: (keyring.known(row.digest) or row).revoked_at is not None)
        assert len(keyring) == 0


async def test_a_missed_notification_is_made_up_for_by_the_poll(line: Line) -> None:
    line.deaf = True
    async with started(line, poll_seconds=0.01) as keyring:
        row = await add(line, 1)
        await until(lambda: keyring.known(row.digest) == row)
        assert len(keyring) == 1


async def test_after_a_reconnect_everything_is_read_anew(line: Line) -> None:
    line.deaf = True
    async with started(line, poll_seconds=60) as keyring:
        await add(line, 1)
        keyring._version = 10**6
        line.on_notice("some key")
        await asyncio.sleep(0.05)
        assert keyring.known(digest(1)) is None
        line.on_notice("")
        await until(lambda: keyring.known(digest(1)) is not None)


async def test_an_unknown_key_is_looked_up_once_for_all_who_ask_and_then_not_for_a_while(line: Line) -> None:
    now = 0.0
    keyring = Keyring(line, PEPPER, clock=lambda: now)
    assert await asyncio.gather(*(keyring.find(digest(1)) for _ in range(50))) == [None] * 50
    assert await keyring.find(digest(1)) is None
    assert line.asked == 1
    now = 5.0
    assert await keyring.find(digest(1)) is None
    assert line.asked == keyring.lookups_total == 2


async def test_a_key_made_a_moment_ago_elsewhere_is_found_in_postgres(line: Line) -> None:
    keyring = Keyring(line, PEPPER)
    row = await add(line, 1)
    assert await keyring.find(row.digest) == row


async def test_a_key_that_becomes_known_is_no_longer_unknown(line: Line) -> None:
    async with started(line, poll_seconds=60) as keyring:
        assert await keyring.find(digest(1)) is None
        row = await add(line, 1)
        await until(lambda: keyring.known(row.digest) is not None)
        assert await keyring.find(row.digest) == row


async def test_a_look_up_that_is_overtaken_by_a_revocation_does_not_bring_the_key_back(line: Line) -> None:
    row = await add(line, 1)
    line.deaf = True
    keyring = Keyring(line, PEPPER, poll_seconds=60)
    line.held = asyncio.Event()
    looking = asyncio.create_task(keyring.find(row.digest))
    await until(lambda: line.asked == 1)
    await asyncio.sleep(0.05)
    other = Database(line._dsn)
    await other.open()
    await revoke_key(other, row.id)
    await other.close()
    await keyring.start()
    line.held.set()
    found = await looking
    assert found is not None
    assert found.revoked_at is not None
    await keyring.close()


async def test_without_postgres_known_keys_go_on_for_a_while_and_unknown_ones_are_no_401(line: Line) -> None:
    now = 0.0
    row = await add(line, 1)
    static = StaticKey(name="file", key=Secret("any text"))
    async with started(line, clock=lambda: now, poll_seconds=0.01, static=(static,)) as keyring:
        line.cut = True
        await until(lambda: keyring.failures_total > 0)
        now = 900.0
        assert await keyring.find(row.digest) == row
        with pytest.raises(Unavailable):
            await keyring.find(digest(2))
        now = 901.0
        assert keyring.stale
        with pytest.raises(Unavailable):
            await keyring.find(row.digest)
        (owned,) = keyring.static_rows()
        assert await keyring.find(owned.digest) is owned
        line.cut = False
        await until(lambda: not keyring.stale)
        assert await keyring.find(row.digest) == row


async def test_a_postgres_that_is_away_at_the_start_is_waited_for(line: Line) -> None:
    row = await add(line, 1)
    line.cut = True
    async with started(line, poll_seconds=0.01) as keyring:
        assert keyring.known(row.digest) is None
        line.cut = False
        await until(lambda: keyring.known(row.digest) == row)
        assert keyring.failures_total > 0


async def test_a_refresh_that_fails_is_counted_logged_and_tried_again(
    line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    line.bug = ZeroDivisionError("a bug")
    row = await add(line, 1)
    with caplog.at_level(logging.ERROR, "strata.admission"):
        async with started(line, poll_seconds=0.01) as keyring:
            await until(lambda: keyring.failures_total > 1)
            line.bug = None
            await until(lambda: keyring.known(row.digest) == row)
    assert "next poll tries again" in caplog.text


async def test_a_flood_of_unknown_keys_reaches_postgres_only_so_far(line: Line) -> None:
    line.held = asyncio.Event()
    keyring = Keyring(line, PEPPER)
    flood = [asyncio.create_task(keyring.find(digest(number))) for number in range(keyrings.MAX_LOOKUPS)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="Too many unknown keys"):
        await keyring.find(digest(10**6))
    line.held.set()
    assert set(await asyncio.gather(*flood)) == {None}


async def test_closing_ends_a_look_up_under_way(line: Line) -> None:
    line.held = asyncio.Event()
    keyring = Keyring(line, PEPPER)
    request = asyncio.create_task(keyring.find(digest(1)))
    await until(lambda: line.asked == 1)
    await keyring.close()
    with pytest.raises(asyncio.CancelledError):
        await request


async def test_unknown_keys_are_remembered_up_to_a_bound(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyrings, "MAX_REMEMBERED", 2)
    keyring = Keyring(line, PEPPER)
    for number in (1, 2, 3, 1):
        assert await keyring.find(digest(number)) is None
    assert line.asked == 4
    assert len(keyring._unknown_until) == 2


async def rotate(db: Database, row: KeyRow, number: int, grace_seconds: int | None = None) -> KeyRow:
    changed = await replace_secret(db, row.id, StoredSecret(digest(number), "12345678", ""), grace_seconds)
    assert changed is not None
    return changed


async def test_a_rotated_key_is_known_by_its_old_digest_as_ended_and_during_a_grace_as_good(line: Line) -> None:
    rows = [await add(line, number) for number in (1, 2)]
    async with started(line, poll_seconds=60) as keyring:
        ended, graced = [
            await rotate(line, row, number, grace) for row, number, grace in zip(rows, (3, 4), (None, 60), strict=True)
        ]
        await until(lambda: keyring.known(ended.digest) == ended and keyring.known(graced.digest) == graced)
        old = [keyring.known(digest(number)) for number in (1, 2)]
        assert [(row.id, row.replaced, row.expires_at) for row in old if row is not None] == [
            (ended.id, True, 0.0),
            (graced.id, True, graced.previous_until),
        ]
        assert len(keyring) == 2
        assert line.asked == 0


async def test_a_worker_that_missed_a_rotation_forgets_the_secret_before_it(line: Line) -> None:
    row = await add(line, 1)
    line.deaf = True
    async with started(line, poll_seconds=60) as keyring:
        assert keyring.known(digest(1)) == row
        await rotate(line, row, 2, 3600)
        last = await rotate(line, row, 3, 3600)
        line.on_notice("some key")
        await until(lambda: keyring.known(digest(3)) == last)
        assert keyring.known(digest(1)) is None
        assert await keyring.find(digest(1)) is None
        assert (keyring.known(digest(2)) or last).replaced


async def test_an_old_digest_is_found_in_postgres_by_a_worker_that_knows_nothing(line: Line) -> None:
    row = await rotate(line, await add(line, 1), 2, 3600)
    keyring = Keyring(line, PEPPER)
    found = await keyring.find(digest(1))
    assert found is not None
    assert (found.id, found.replaced, found.expires_at) == (row.id, True, row.previous_until)
    assert await keyring.find(digest(2)) == row


async def test_a_revoked_key_is_revoked_by_both_of_its_digests(line: Line) -> None:
    row = await rotate(line, await add(line, 1), 2, 3600)
    async with started(line, poll_seconds=60) as keyring:
        await revoke_key(line, row.id)
        await until(lambda: len(keyring) == 0)
        known = [keyring.known(digest(number)) for number in (1, 2)]
        assert [one is not None and one.revoked_at is not None for one in known] == [True, True]


async def test_a_key_that_makes_room_goes_with_both_of_its_digests(line: Line) -> None:
    row = await rotate(line, await add(line, 1), 2, 3600)
    async with started(line, max_keys=1, poll_seconds=60) as keyring:
        await add(line, 3)
        await until(lambda: keyring.known(digest(3)) is not None)
        assert [keyring.known(digest(number)) for number in (1, 2)] == [None, None]
        assert await keyring.find(digest(2)) == row


async def test_keys_beyond_the_bound_are_looked_up_one_by_one(line: Line, caplog: pytest.LogCaptureFixture) -> None:
    rows = [await add(line, number) for number in range(4)]
    with caplog.at_level(logging.WARNING, "strata.admission"):
        async with started(line, max_keys=2, poll_seconds=60) as keyring:
            assert len(keyring) == 2
            assert [await keyring.find(row.digest) for row in rows] == rows
            assert len(keyring) == 2
    assert caplog.text.count("more than 2 keys") == 1


async def test_keys_of_another_master_key_are_reported_once_with_the_fix(
    line: Line, caplog: pytest.LogCaptureFixture
) -> None:
    await add(line, 1, "aaaaaaaa")
    await add(line, 2, "aaaaaaaa")
    await add(line, 3, "bbbbbbbb")
    with caplog.at_level(logging.ERROR, "strata.admission"):
        async with started(line, pepper_id="bbbbbbbb"):
            pass
    assert caplog.text.count("Restore the master key") == 1
