"""
From an e-mail address and a password to a session, and on from there.

Whatever is wrong, the answer and the work are the same: nobody learns here who has an account.
"""

from __future__ import annotations

import hmac
import ipaddress
import math
import time
import uuid
from collections.abc import Callable

import msgspec

from proxy.admission.accounts.passwords import Passwords, check_new
from proxy.admission.accounts.tokens import ACCESS_SECONDS, Tokens, new_refresh, read_refresh
from proxy.errors import PolicyError, Unauthenticated
from proxy.storage.accounts import Account, find_account, insert_first
from proxy.storage.login_attempts import Subject, forgive, take_attempt
from proxy.storage.postgres import Database
from proxy.storage.sessions import open_session, rotate


class Opened(msgspec.Struct, frozen=True):
    """What a client gets. `user_id`, since a refresh knows no more of its user."""

    access_token: str
    refresh_token: str
    user_id: str
    session_id: str
    expires_in: int = ACCESS_SECONDS


class SigningIn:
    def __init__(
        self,
        database: Database,
        passwords: Passwords,
        tokens: Tokens,
        attempts_key: bytes,
        *,
        session_ttl_seconds: float,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._passwords = passwords
        self._tokens = tokens
        self._attempts_key = attempts_key
        self._session_ttl_seconds = session_ttl_seconds
        self._wall_clock = wall_clock

    async def log_in(self, email: str, password: str, address: str) -> Opened:
        """Unauthenticated, the same for every reason; PolicyError 429 after too many of them."""
        subjects = self._subjects(email, address)
        wait_seconds = await take_attempt(self._database, subjects)
        if wait_seconds > 0:
            raise _too_often(wait_seconds)
        account = await find_account(self._database, email)
        right = await self._passwords.verify(password, account.password_hash if account else None)
        if account is None or not right or account.disabled:
            raise Unauthenticated("The e-mail address or the password is wrong.", code="wrong_credentials")
        await forgive(self._database, subjects[0], subjects[1:])
        return await self._open(account.id)

    async def register_first(self, email: str, password: str, name: str, address: str) -> Account:
        """The first account, which is the admin's. PolicyError 403 if there is one."""
        check_new(password, email)
        wait_seconds = await take_attempt(self._database, self._subjects(email, address)[1:])
        if wait_seconds > 0:
            raise _too_often(wait_seconds)
        password_hash = await self._passwords.hash(password)
        async with self._database.transaction() as connection:
            made = await insert_first(connection, email=email, name=name, password_hash=password_hash)
        if made is None:
            raise PolicyError(
                "Nobody can register here by themselves. Ask an admin for an invitation.",
                status=403,
                code="registration_closed",
                error_type="policy_forbidden",
            )
        return made

    async def refresh(self, text: str) -> Opened:
        """A new pair for a refresh token that was never used; a used one ends its session."""
        shown = read_refresh(text)
        if shown is None:
            raise _ended()
        following = new_refresh(shown.session_id)
        turn = await rotate(self._database, shown.digest, following.digest)
        if turn.outcome != "ok":
            raise _ended()
        access = self._tokens.access(turn.user_id, turn.session_id, turn.token_version, self._wall_clock())
        return Opened(access, following.text, turn.user_id, turn.session_id)

    async def _open(self, user_id: str) -> Opened:
        session_id = str(uuid.uuid4())
        refresh = new_refresh(session_id)
        async with self._database.transaction() as connection:
            version = await open_session(
                connection,
                session_id=session_id,
                user_id=user_id,
                digest=refresh.digest,
                ttl_seconds=self._session_ttl_seconds,
            )
        if version is None:
            raise _ended()
        access = self._tokens.access(user_id, session_id, version, self._wall_clock())
        return Opened(access, refresh.text, user_id, session_id)

    def _subjects(self, email: str, address: str) -> list[Subject]:
        """Both together soon, an account from everywhere late: nobody may lock another out easily."""
        account, place = email.lower(), _network(address)
        return [
            Subject(self._digest(f"both:{account}:{place}"), 5, 900.0),
            Subject(self._digest(f"account:{account}"), 50, 900.0),
            Subject(self._digest(f"address:{place}"), 100, 60.0),
        ]

    def _digest(self, text: str) -> bytes:
        return hmac.digest(self._attempts_key, text.encode("utf-8", "surrogatepass"), "sha256")


def _network(address: str) -> str:
    """An IPv6 caller owns at least 64 bits of addresses."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(found) if found.version == 4 else str(ipaddress.ip_network((found, 64), strict=False))


def _ended() -> Unauthenticated:
    return Unauthenticated("This session has ended. Sign in again.", code="session_ended")


def _too_often(seconds: float) -> PolicyError:
    whole = max(1, math.ceil(seconds))
    return PolicyError(
        f"Too many attempts. Try again in {whole} s.",
        status=429,
        code="too_many_attempts",
        error_type="policy_rate_limited",
        headers={"retry-after": str(whole)},
    )
