"""Passwords: kept as Argon2id, checked a few at a time, and nobody learns from the work who exists."""

from __future__ import annotations

import asyncio
import threading

import pytest

from proxy.admission.accounts.passwords import AT_ONCE, MAX_WAITING, Passwords, check_new
from proxy.errors import CallerError, GatewayFault

GOOD = "correct horse battery"


async def test_a_hash_is_argon2id_salted_and_verified_by_its_password_only() -> None:
    passwords = Passwords()
    first, second = await passwords.hash(GOOD), await passwords.hash(GOOD)
    assert first.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert first != second
    assert await passwords.verify(GOOD, first)
    assert not await passwords.verify(GOOD + " ", first)
    assert not await passwords.verify("", first)
    assert not await passwords.verify(first, first)


async def test_the_same_text_typed_on_another_keyboard_is_the_same_password() -> None:
    passwords = Passwords()
    assert await passwords.verify("Ame\u0301lie-in-Paris", await passwords.hash("Am\u00e9lie-in-Paris"))


async def test_who_does_not_exist_costs_the_same_work() -> None:
    passwords = Passwords()
    known = await passwords.hash(GOOD)
    assert not await passwords.verify(GOOD, None)
    before = passwords.hashed_total
    assert not await passwords.verify(GOOD, None)
    assert not await passwords.verify("wrong", known)
    assert await passwords.verify(GOOD, known)
    assert passwords.hashed_total - before == 3


async def test_nobodys_password_cannot_be_guessed_in() -> None:
    passwords = Passwords(entropy=lambda count: b"guess" * 10)  # even who knows it
    assert not await passwords.verify(("guess" * 10), None)


async def test_a_flood_is_refused_and_the_rest_gets_its_turn() -> None:
    passwords = Passwords()
    asked = [passwords.hash(GOOD) for _ in range(MAX_WAITING + 3)]
    results = await asyncio.gather(*asked, return_exceptions=True)
    refused = [result for result in results if isinstance(result, GatewayFault)]
    assert len(refused) == 3
    assert {(fault.status, fault.code) for fault in refused} == {(503, "gateway_overloaded")}
    assert await passwords.hash(GOOD)


async def test_who_leaves_takes_no_place_from_the_bound_on_threads() -> None:
    """A thread cannot be stopped: while it works, its place is taken."""
    running, most = 0, 0
    release = threading.Event()

    def work() -> bool:
        nonlocal running, most
        running = running + 1
        most = max(most, running)
        release.wait(20)
        running = running - 1
        return True

    passwords = Passwords()
    asked = [asyncio.create_task(passwords._take_turn(work)) for _ in range(6)]
    await asyncio.sleep(0.1)
    for one in asked:
        one.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    last = asyncio.create_task(passwords._take_turn(work))
    await asyncio.sleep(0.1)
    release.set()
    assert await last
    assert most == AT_ONCE


@pytest.mark.parametrize(
    "password",
    ["", "short", "a" * 40, "abab" * 10, "x" * 500 + "abcde" * 200, "ann.of.example", "Ann.Of.Example@x.org"],
)
def test_a_password_that_is_easily_guessed_is_refused(password: str) -> None:
    with pytest.raises(CallerError) as caught:
        check_new(password, "ann.of.example@x.org")
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "weak_password", "password")
    assert password == "" or password not in caught.value.message


def test_a_long_phrase_is_accepted() -> None:
    check_new(GOOD, "ann@example.com")
    assert len(GOOD) > 10
