"""Signing in: the first is the admin, nobody learns who exists, and guessing costs time."""

from __future__ import annotations

import asyncio

import pytest

from proxy.admission.accounts.passwords import Passwords
from proxy.admission.accounts.signing_in import SigningIn
from proxy.admission.accounts.tokens import Tokens
from proxy.admission.accounts.verifiers import Verifiers
from proxy.errors import GatewayError, GatewayFault, PolicyError, Unauthenticated
from proxy.storage.postgres import Database

GOOD = "correct horse battery"


def signing_in(db: Database, passwords: Passwords | None = None) -> SigningIn:
    return SigningIn(
        db, passwords or Passwords(), Tokens(lambda: bytes(32)), lambda: bytes(32), session_ttl_seconds=3600.0
    )


async def test_of_twenty_who_register_at_once_one_is_the_admin(db: Database) -> None:
    door = signing_in(db)
    asked = (door.register_first(f"p{number}@example.com", GOOD, "", "127.0.0.1") for number in range(20))
    found = await asyncio.gather(*asked, return_exceptions=True)
    refused = [one for one in found if isinstance(one, PolicyError)]
    assert [one.code for one in refused] == ["registration_closed"] * 19
    rows = await db.fetch("SELECT role FROM strata.users")
    assert [row["role"] for row in rows] == ["admin"]


async def test_a_session_goes_on_by_its_refresh_tokens_and_ends_when_one_is_used_twice(db: Database) -> None:
    door = signing_in(db)
    admin = await door.register_first("Ann@example.com", GOOD, "Ann", "127.0.0.1")
    first = await door.log_in("ann@EXAMPLE.com", GOOD, "127.0.0.1")
    said = await Verifiers([Tokens(lambda: bytes(32)).verifier()]).verify(first.access_token.encode())
    assert (said.subject, said.all["sid"]) == (admin.user_id, first.session_id)
    second = await door.refresh(first.refresh_token)
    for token in (first.refresh_token, second.refresh_token, first.access_token, ""):
        with pytest.raises(Unauthenticated) as caught:
            await door.refresh(token)
        assert caught.value.code == "session_ended"


async def test_every_reason_reads_the_same_and_costs_the_same_hashing(db: Database) -> None:
    passwords = Passwords()
    door = signing_in(db, passwords)
    await door.register_first("ann@example.com", GOOD, "", "127.0.0.1")
    await passwords.verify("", None)  # nobody's hash is made once
    told, work = set(), []

    async def attempt(email: str, password: str) -> None:
        before = passwords.hashed_total
        with pytest.raises(Unauthenticated) as caught:
            await door.log_in(email, password, "127.0.0.1")
        told.add((caught.value.status, caught.value.code, caught.value.message))
        work.append(passwords.hashed_total - before)

    await attempt("nobody@example.com", GOOD)
    await attempt("ann@example.com", "wrong")
    await db.execute("INSERT INTO strata.users (email, issuer, subject) VALUES ('o@example.com', 'https://x', 's')")
    await attempt("o@example.com", GOOD)
    await db.execute("UPDATE strata.users SET disabled_at = now()")
    await attempt("ann@example.com", GOOD)
    assert len(told) == 1
    assert work == [1, 1, 1, 1]


async def test_the_right_password_never_counts_as_a_guess_and_wipes_out_nobodys_guesses(db: Database) -> None:
    door = signing_in(db)
    await door.register_first("ann@example.com", GOOD, "", "127.0.0.1")
    for _ in range(4):
        with pytest.raises(Unauthenticated):
            await door.log_in("ann@example.com", "wrong", "203.0.113.9")
    for _ in range(60):
        assert await door.log_in("ann@example.com", GOOD, "198.51.100.7")
    rows = await db.fetch("SELECT failures FROM strata.login_attempts ORDER BY failures DESC")
    # four guesses at the account, from that address, and of both together; register_first's own attempt
    assert [row["failures"] for row in rows if row["failures"]] == [4, 4, 4, 1]


async def test_guessing_is_slowed_down_for_those_who_exist_and_those_who_do_not(db: Database) -> None:
    door = signing_in(db)
    await door.register_first("ann@example.com", GOOD, "", "127.0.0.1")
    told = []
    for email in ("ann@example.com", "nobody@example.com"):
        codes = []
        for _ in range(7):
            with pytest.raises(GatewayError) as caught:
                await door.log_in(email, "wrong", "2001:db8::1")
            codes.append(caught.value.code)
        told.append(codes[:6])
    assert told[0] == told[1] == ["wrong_credentials"] * 6
    assert await door.log_in("ann@example.com", GOOD, "198.51.100.7")  # from elsewhere she still gets in
    assert (door.outcomes["ok"], door.outcomes["refused"] + door.outcomes["too_often"]) == (1, 14)
    assert door.outcomes["too_often"] > 0


async def test_nobody_is_shut_out_by_a_stranger_who_registers_with_that_address(db: Database) -> None:
    door = signing_in(db)
    await door.register_first("ann@example.com", GOOD, "", "127.0.0.1")
    codes = []
    for _ in range(60):
        with pytest.raises(GatewayError) as caught:
            await door.register_invited(f"strata-invite-{'A' * 43}", "ann@example.com", GOOD, "", "203.0.113.9")
        codes.append(caught.value.code)
    assert set(codes) == {"invitation_refused"}
    assert await door.log_in("ann@example.com", GOOD, "198.51.100.7")


async def test_a_password_that_nobody_looked_at_is_no_guess(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    door = signing_in(db)
    await door.register_first("ann@example.com", GOOD, "", "127.0.0.1")
    with monkeypatch.context() as crowded:
        crowded.setattr("proxy.admission.accounts.passwords.MAX_WAITING", 0)
        for _ in range(10):
            with pytest.raises(GatewayFault):
                await door.log_in("ann@example.com", GOOD, "127.0.0.1")
            with pytest.raises(GatewayFault):
                await door.register_invited(f"strata-invite-{'A' * 43}", "bob@example.com", GOOD, "", "127.0.0.1")
    assert await door.log_in("ann@example.com", GOOD, "127.0.0.1")
    rows = await db.fetch("SELECT failures FROM strata.login_attempts WHERE failures > 0")
    assert [row["failures"] for row in rows] == [1]  # register_first's own


async def test_who_signs_in_with_the_old_password_while_it_is_changed_stays_outside(db: Database) -> None:
    passwords = Passwords()
    door = signing_in(db, passwords)
    ann = await door.register_first("ann@example.com", GOOD, "", "127.0.0.1")
    verified, changed = asyncio.Event(), asyncio.Event()

    class Slow(Passwords):
        async def verify(self, password: str, phc: str | None) -> bool:
            right = await super().verify(password, phc)
            verified.set()
            await changed.wait()
            return right

    thief = asyncio.create_task(signing_in(db, Slow()).log_in("ann@example.com", GOOD, "203.0.113.9"))
    await verified.wait()
    await door.change_password(ann.user_id, GOOD, f"another {GOOD}", "127.0.0.1")
    changed.set()
    with pytest.raises(Unauthenticated):
        await thief
