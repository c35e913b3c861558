"""Virtual keys as text: nothing but a key of ours looks like one, and nothing stored can be turned back into one."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.admission import keys

PEPPER = b"p" * 32


@given(st.binary(min_size=32, max_size=32))
def test_every_new_key_is_well_formed_and_has_one_length(entropy: bytes) -> None:
    key = keys.new_key(entropy=lambda _: entropy)
    assert keys.well_formed(key.encode())
    assert len(key) == len("sk-strata-") + 43 + 6
    assert key.isascii()


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_different_entropy_makes_different_keys(one: bytes, other: bytes) -> None:
    made = [keys.new_key(entropy=lambda _, e=e: e) for e in (one, other)]  # type: ignore[misc]
    assert (made[0] == made[1]) == (one == other)


def test_a_key_comes_from_256_bits_of_the_system_s_entropy_unless_told_otherwise() -> None:
    asked: list[int] = []

    def entropy(count: int) -> bytes:
        asked.append(count)
        return bytes(count)

    assert keys.new_key(entropy=entropy).startswith("sk-strata-" + "0" * 43)
    assert asked == [32]
    assert keys.new_key() != keys.new_key()


@given(st.integers(0, 58), st.sampled_from(keys.ALPHABET))
def test_one_wrong_character_anywhere_is_noticed(position: int, character: str) -> None:
    key = keys.new_key(entropy=lambda n: bytes(range(n)))
    wrong = key[:position] + character + key[position + 1 :]
    assert keys.well_formed(wrong.encode()) == (wrong == key)


@given(st.binary(max_size=100))
def test_no_bytes_at_all_upset_the_check_and_junk_is_junk(junk: bytes) -> None:
    assert not keys.well_formed(junk)
    assert not keys.well_formed(b"sk-strata-" + junk.ljust(49, b"\xff")[:49])


def test_a_key_of_another_prefix_is_not_ours_until_the_prefix_says_so() -> None:
    key = keys.new_key("acme_").encode()
    assert keys.well_formed(key, b"acme_")
    assert not keys.well_formed(key)


@given(st.binary(max_size=200), st.binary(min_size=1, max_size=200))
def test_the_digest_is_hmac_sha256(key: bytes, pepper: bytes) -> None:
    assert keys.digest(key, pepper) == hmac.new(pepper, key, hashlib.sha256).digest()


def test_text_and_bytes_of_one_key_have_one_digest_and_another_pepper_another() -> None:
    key = keys.new_key()
    assert keys.digest(key, PEPPER) == keys.digest(key.encode(), PEPPER)
    assert keys.digest(key, PEPPER) != keys.digest(key, b"q" * 32)


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("sk-strata-Jm3v" + "x" * 41 + "f9Tc", "sk-strata-Jm3v…f9Tc"),
        ("acme_" + "x" * 20, "acme…xxxx"),
        ("short", "…"),
        ("sk-strata-short", "…"),
    ],
)
def test_what_is_shown_of_a_key_is_too_little_to_use(key: str, shown: str) -> None:
    assert keys.display(key) == shown
