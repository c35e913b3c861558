"""
Envelopes: a value is sealed under a key of its own (the DEK), and that under the newest master key's KEK. AES-256-GCM.

What is authenticated with both says where they belong: table, column, row, owner, provider and host; with the DEK also
which KEK. A ciphertext that was moved to another row, owner or host does not open. A rotation seals the DEK anew and
touches nothing else.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from proxy.storage.vault import Vault

VERSION = b"\x01"
NONCE_BYTES = 12
DEK_BITS = 256


class CannotOpen(Exception):
    """Its text says why, and names no secret."""


class Place(NamedTuple):
    """Where a sealed value belongs. Nowhere else does it open."""

    table: str
    column: str
    row_id: str
    owner: str = ""
    """The scope and, unless it is everybody's, the id of the user or team: `user:…`, `team:…`, `global:`."""
    provider: str = ""
    host: str = ""

    def bound_to(self, kek_id: str) -> bytes:
        """As authenticated data: each part after its length, so that no two places read alike."""
        parts = [part.encode() for part in (*self, kek_id)]
        return VERSION + b"".join(len(part).to_bytes(4, "big") + part for part in parts)


class Sealed(NamedTuple):
    value: bytes
    dek: bytes
    kek_id: str


def seal(vault: Vault, place: Place, value: bytes) -> Sealed:
    """Under a fresh DEK, which never seals another value."""
    dek = AESGCM.generate_key(DEK_BITS)
    return Sealed(_seal(dek, value, place.bound_to("")), _wrap(vault, place, dek), vault.kek_id)


def unseal(vault: Vault, place: Place, sealed: Sealed) -> bytes:
    """The value. Raises CannotOpen."""
    return _open(_unwrap(vault, place, sealed), sealed.value, place.bound_to(""))


def rewrap(vault: Vault, place: Place, sealed: Sealed) -> Sealed:
    """The same value and DEK, the latter under the newest KEK. Raises CannotOpen, also if the value does not open."""
    dek = _unwrap(vault, place, sealed)
    _open(dek, sealed.value, place.bound_to(""))
    return Sealed(sealed.value, _wrap(vault, place, dek), vault.kek_id)


def _wrap(vault: Vault, place: Place, dek: bytes) -> bytes:
    return _seal(vault.keks[vault.kek_id], dek, place.bound_to(vault.kek_id))


def _unwrap(vault: Vault, place: Place, sealed: Sealed) -> bytes:
    kek = vault.keks.get(sealed.kek_id)
    if kek is None:
        raise CannotOpen(f"it was sealed under the master key {sealed.kek_id[:16]}, which is not among those given")
    return _open(kek, sealed.dek, place.bound_to(sealed.kek_id))


def _seal(key: bytes, value: bytes, bound_to: bytes) -> bytes:
    nonce = os.urandom(NONCE_BYTES)
    return VERSION + nonce + AESGCM(key).encrypt(nonce, value, bound_to)


def _open(key: bytes, sealed: bytes, bound_to: bytes) -> bytes:
    nonce, value = sealed[1 : NONCE_BYTES + 1], sealed[NONCE_BYTES + 1 :]
    try:
        if sealed[:1] != VERSION:
            raise CannotOpen("it is in a form that this release does not know")
        return AESGCM(key).decrypt(nonce, value, bound_to)
    except (InvalidTag, ValueError):
        raise CannotOpen("it was changed, or belongs to another row, owner, provider or host") from None
