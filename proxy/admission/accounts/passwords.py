"""
Passwords: Argon2id, a few at a time, in threads.

Whoever does not exist costs as much as whoever does: `verify` without a hash works on one that nobody has.
"""

from __future__ import annotations

import asyncio
import secrets
import unicodedata
from collections.abc import Callable
from typing import Any, TypeVar

from cryptography.exceptions import InvalidKey
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from proxy.errors import CallerError, GatewayFault

# The first choice of https://cheatsheetseries.owasp.org/cheatsheets/Password_Storage_Cheat_Sheet.html
MEMORY_KIB = 19_456
PASSES = 2
LANES = 1

AT_ONCE = 2
"""Each takes 19 MiB and most of a core for some 50 ms."""
MAX_WAITING = 32
MIN_CHARACTERS = 10
MIN_DISTINCT = 5
MAX_BYTES = 1024

T = TypeVar("T")


class Passwords:
    """Makes and checks hashes in PHC form. `hashed_total` counts both kinds of work."""

    def __init__(self, entropy: Callable[[int], bytes] = secrets.token_bytes) -> None:
        self._entropy = entropy
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._hashing: set[asyncio.Task[Any]] = set()
        """Those that run and those that wait."""
        self._nobodys = ""
        self.hashed_total = 0

    @property
    def waiting(self) -> int:
        """How many are being hashed, or wait for their turn."""
        return len(self._hashing)

    async def hash(self, password: str) -> str:
        """GatewayFault if too many wait already."""
        return await self._take_turn(lambda: self._derive(_bytes(password)))

    async def verify(self, password: str, phc: str | None) -> bool:
        """Whether this is the password. None for who has none: False, after the same work."""
        if not self._nobodys:
            self._nobodys = await self._take_turn(lambda: self._derive(self._entropy(32)))
        known, against = phc is not None, phc or self._nobodys
        return await self._take_turn(lambda: _matches(_bytes(password), against)) and known

    def _derive(self, password: bytes) -> str:
        kdf = Argon2id(salt=self._entropy(16), length=32, iterations=PASSES, lanes=LANES, memory_cost=MEMORY_KIB)
        return kdf.derive_phc_encoded(password)

    async def _take_turn(self, work: Callable[[], T]) -> T:
        if len(self._hashing) >= MAX_WAITING:
            raise GatewayFault(
                "Too many people are signing in at this moment; try again in a second.",
                code="gateway_overloaded",
                error_type="gateway_overloaded",
                headers={"retry-after": "1"},
            )
        # A task of its own: a thread goes on when its client has left, and must keep its place among the few
        hashing = asyncio.create_task(self._hash_in_turn(work), name="password")
        self._hashing.add(hashing)
        hashing.add_done_callback(self._hashing.discard)
        return await asyncio.shield(hashing)

    async def _hash_in_turn(self, work: Callable[[], T]) -> T:
        async with self._turns:
            self.hashed_total += 1
            return await asyncio.to_thread(work)


def check_new(password: str, email: str = "") -> None:
    """CallerError 400 with the reason if it is too easy to guess, or too long to hash."""
    text = unicodedata.normalize("NFKC", password)
    if len(text) < MIN_CHARACTERS:
        raise _weak(f"has fewer than {MIN_CHARACTERS} characters")
    if len(_bytes(password)) > MAX_BYTES:
        raise _weak(f"has more than {MAX_BYTES} bytes")
    if len(set(text)) < MIN_DISTINCT:
        raise _weak("repeats itself")
    if text.lower() in (email.lower(), email.partition("@")[0].lower()):
        raise _weak("is the e-mail address")


def _weak(why: str) -> CallerError:
    return CallerError(f"This password {why}. Choose a longer one.", code="weak_password", param="password")


def _bytes(password: str) -> bytes:
    """The same bytes on every keyboard."""
    return unicodedata.normalize("NFKC", password).encode("utf-8", "surrogatepass")


def _matches(password: bytes, phc: str) -> bool:
    try:
        Argon2id.verify_phc_encoded(password, phc)
    except InvalidKey:
        return False
    return True
