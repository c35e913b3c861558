"""Envelopes: what is sealed opens where it belongs, under a key that is given, and nowhere else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.storage.sealing import CannotOpen, Place, Sealed, rewrap, seal, unseal
from proxy.storage.vault import Vault

OLD, NEW = b"q8Zr2LxW0vT5nYb7KcJd3MfH6gPs9AeU", b"vB3kT9wXz1QmN6hR4yJc8LdF2sGp7EuA"
SECRET = b"sk-of-a-provider-0123456789"
HERE = Place("provider_keys", "sealed_key", "row-1", "user:u", "openai", "https://api.openai.com")
VAULT = Vault(OLD)


def test_what_is_sealed_opens_again_and_is_not_readable() -> None:
    sealed = seal(VAULT, HERE, SECRET)
    assert unseal(VAULT, HERE, sealed) == SECRET
    assert SECRET not in sealed.value + sealed.dek
    assert sealed.kek_id == VAULT.kek_id


def test_the_same_value_is_never_sealed_alike_twice() -> None:
    one, other = seal(VAULT, HERE, SECRET), seal(VAULT, HERE, SECRET)
    assert one.value != other.value and one.dek != other.dek


@pytest.mark.parametrize("field", Place._fields)
def test_moved_to_another_row_column_owner_provider_or_host_it_does_not_open(field: str) -> None:
    sealed = seal(VAULT, HERE, SECRET)
    elsewhere = HERE._replace(**{field: "another"})
    with pytest.raises(CannotOpen, match="belongs to another row, owner, provider or host"):
        unseal(VAULT, elsewhere, sealed)
    with pytest.raises(CannotOpen):
        unseal(VAULT, elsewhere, Sealed(sealed.value, seal(VAULT, elsewhere, SECRET).dek, sealed.kek_id))


def test_what_stands_between_two_parts_cannot_be_moved_from_one_to_the_other() -> None:
    sealed = seal(VAULT, HERE._replace(row_id="ab", owner="c"), SECRET)
    with pytest.raises(CannotOpen):
        unseal(VAULT, HERE._replace(row_id="a", owner="bc"), sealed)


@given(st.integers(0, 10_000), st.sampled_from(["value", "dek"]), st.integers(1, 255))
def test_one_changed_byte_anywhere_and_it_does_not_open(position: int, part: str, change: int) -> None:
    sealed = seal(VAULT, HERE, SECRET)
    changed = bytearray(getattr(sealed, part))
    changed[position % len(changed)] ^= change
    with pytest.raises(CannotOpen):
        unseal(VAULT, HERE, sealed._replace(**{part: bytes(changed)}))  # type: ignore[arg-type]  # not the id


@pytest.mark.parametrize("sealed", [b"", b"\x01", b"\x01" + b"x" * 12, b"\x02" + b"x" * 40])
def test_what_is_no_envelope_is_refused_alike(sealed: bytes) -> None:
    with pytest.raises(CannotOpen):
        unseal(VAULT, HERE, seal(VAULT, HERE, SECRET)._replace(value=sealed))


def test_a_key_that_is_not_given_is_named_by_its_id() -> None:
    with pytest.raises(CannotOpen, match=VAULT.kek_id):
        unseal(Vault(NEW), HERE, seal(VAULT, HERE, SECRET))
    forged = seal(VAULT, HERE, SECRET)._replace(kek_id=Vault(NEW).kek_id)
    with pytest.raises(CannotOpen):
        unseal(Vault(NEW), HERE, forged)


def test_a_rotation_changes_the_wrapped_dek_alone_and_then_the_new_key_is_enough() -> None:
    sealed = seal(VAULT, HERE, SECRET)
    rewrapped = rewrap(Vault(NEW, OLD), HERE, sealed)
    assert rewrapped.value == sealed.value and rewrapped.dek != sealed.dek
    assert unseal(Vault(NEW), HERE, rewrapped) == SECRET
    with pytest.raises(CannotOpen):
        unseal(VAULT, HERE, rewrapped)


def test_what_does_not_open_is_not_sealed_anew() -> None:
    sealed = seal(VAULT, HERE, SECRET)
    for broken in (sealed._replace(value=sealed.value[:-1]), sealed._replace(dek=sealed.dek[:-1])):
        with pytest.raises(CannotOpen):
            rewrap(Vault(NEW, OLD), HERE, broken)
