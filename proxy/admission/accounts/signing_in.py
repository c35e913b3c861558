"""
From an e-mail address and a password to a session, and on from there.

Whatever is wrong, the answer and the work are the same: nobody learns here who has an account.
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import math
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Literal

import msgspec

from proxy.admission.accounts.passwords import Passwords, check_new
from proxy.admission.accounts.tokens import ACCESS_SECONDS, Tokens, new_refresh, read_refresh, session_of
from proxy.errors import CallerError, GatewayFault, PolicyError, Unauthenticated
from proxy.storage.accounts import (
    Account,
    any_account,
    find_account,
    insert_account,
    insert_first,
    one_form,
    read_account,
    set_password,
)
from proxy.storage.invitations import digest_of, say_by_whom, take_invitation
from proxy.storage.login_attempts import Subject, forgive, give_back, take_attempt
from proxy.storage.postgres import Database
from proxy.storage.sessions import open_session, rotate, sign_out

Registration = Literal["first", "invite", "open", "closed"]
"""`first`: the admin alone; `invite`: whoever an admin has invited, too; `open`: everybody; `closed`: nobody."""

Outcome = Literal["ok", "refused", "too_often"]


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
        attempts_key: Callable[[], bytes],
        *,
        session_ttl_seconds: float,
        registration: Registration = "invite",
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._passwords = passwords
        self._tokens = tokens
        self._attempts_key = attempts_key
        self._session_ttl_seconds = session_ttl_seconds
        self._registration = registration
        self._wall_clock = wall_clock
        self.outcomes: dict[Outcome, int] = {"ok": 0, "refused": 0, "too_often": 0}
        """Passwords given since the start, by what came of it."""

    async def log_in(self, email: str, password: str, address: str) -> Opened:
        """Unauthenticated, the same for every reason; PolicyError 429 after too many of them."""
        account = await self._prove(email, password, address)
        # Whoever knew the old password while it was changed stays outside
        return await self._open(account.id, account.token_version)

    async def register_first(self, email: str, password: str, name: str, address: str) -> Opened:
        """The first account, which is the admin's. PolicyError 403 if there is one, or nobody may register."""
        if self._registration == "closed":
            raise _closed()
        password_hash = await self._hash_new(email, password, address)
        async with self._database.transaction() as connection:
            made = await insert_first(connection, email=email, name=name, password_hash=password_hash)
        if made is None:
            raise _closed()
        return await self._open(made.id)

    async def register_invited(self, invitation: str, email: str, password: str, name: str, address: str) -> Opened:
        """PolicyError 403 if the invitation is not good; CallerError 409 if the address has an account."""
        digest = digest_of(invitation)
        if digest is None or self._registration not in ("invite", "open"):
            raise _not_invited()
        password_hash = await self._hash_new(email, password, address)
        async with self._database.transaction() as connection:
            taken = await take_invitation(connection, digest)
            if taken is None or (taken.email is not None and taken.email.lower() != one_form(email).lower()):
                raise _not_invited()
            made = await insert_account(
                connection,
                email=email,
                name=name,
                role=taken.role,
                password_hash=password_hash,
                team_id=taken.team_id,
            )
            if made is None:
                raise CallerError(
                    "There is an account with this e-mail address already. Sign in instead.",
                    status=409,
                    code="account_exists",
                    param="email",
                )
            await say_by_whom(connection, taken.id, made.id)
        return await self._open(made.id)

    async def register_open(self, email: str, password: str, name: str, address: str) -> None:
        """A member, unless the address has an account: whoever asks is not told which. PolicyError 403 if not open."""
        if self._registration != "open":
            raise _closed()
        password_hash = await self._hash_new(email, password, address)
        async with self._database.transaction() as connection:
            if not await any_account(connection):
                raise _closed()  # the first is the admin's, and not anybody's
            given = {"email": email, "name": name, "password_hash": password_hash}
            await insert_account(connection, role="member", **given)

    async def change_password(self, user_id: str, current: str, new: str, address: str) -> Opened:
        """A new session; all others of this person end. Unauthenticated if `current` is wrong."""
        account = await read_account(self._database, user_id)
        if account is None:
            raise CallerError("You have no password here.", code="no_password")
        check_new(new, account.email)
        await self._prove(account.email, current, address)
        password_hash = await self._passwords.hash(new)
        async with self._database.transaction() as connection:
            await set_password(connection, user_id, password_hash, actor=user_id)
        return await self._open(user_id)

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

    async def end(self, token: str, *, everywhere: bool) -> None:
        """The session of one of our tokens, of either kind. Nothing, if it is over already."""
        shown = read_refresh(token)
        session_id = shown.session_id if shown is not None else session_of(token)
        if not session_id:
            return  # another issuer's, who ends it himself
        await sign_out(self._database, session_id, shown.digest if shown is not None else None, everywhere=everywhere)

    async def _prove(self, email: str, password: str, address: str) -> Account:
        """Whose address and password these are."""
        subjects = self._subjects(email, address)
        wait_seconds = await take_attempt(self._database, subjects)
        if wait_seconds > 0:
            self.outcomes["too_often"] += 1
            raise _too_often(wait_seconds)
        async with self._counted_if_looked_at(subjects):
            account = await find_account(self._database, email)
            right = await self._passwords.verify(password, account.password_hash if account else None)
        if account is None or not right or account.disabled:
            self.outcomes["refused"] += 1
            raise Unauthenticated("The e-mail address or the password is wrong.", code="wrong_credentials")
        self.outcomes["ok"] += 1
        await forgive(self._database, subjects[0], subjects[1:])
        return account

    async def _hash_new(self, email: str, password: str, address: str) -> str:
        """Counts against the address alone: who registers guesses nothing, and must not shut an owner out."""
        check_new(password, email)
        subjects = self._subjects(email, address)[2:]
        wait_seconds = await take_attempt(self._database, subjects)
        if wait_seconds > 0:
            raise _too_often(wait_seconds)
        async with self._counted_if_looked_at(subjects):
            return await self._passwords.hash(password)

    @contextlib.asynccontextmanager
    async def _counted_if_looked_at(self, subjects: list[Subject]) -> AsyncIterator[None]:
        """Gives an attempt back that ends with a fault of ours: too many are hashing, or Postgres has gone."""
        try:
            yield
        except GatewayFault:
            with contextlib.suppress(GatewayFault):
                await give_back(self._database, subjects)
            raise

    async def _open(self, user_id: str, known_version: int | None = None) -> Opened:
        session_id = str(uuid.uuid4())
        refresh = new_refresh(session_id)
        async with self._database.transaction() as connection:
            version = await open_session(
                connection,
                session_id=session_id,
                user_id=user_id,
                digest=refresh.digest,
                ttl_seconds=self._session_ttl_seconds,
                known_version=known_version,
            )
        if version is None:
            raise _ended()
        access = self._tokens.access(user_id, session_id, version, self._wall_clock())
        return Opened(access, refresh.text, user_id, session_id)

    def _subjects(self, email: str, address: str) -> list[Subject]:
        """Both together soon, an account from everywhere late: nobody may lock another out easily."""
        account, place = one_form(email).lower(), _network(address)
        return [
            Subject(self._digest(f"both:{account}:{place}"), 5, 900.0),
            Subject(self._digest(f"account:{account}"), 50, 900.0),
            Subject(self._digest(f"address:{place}"), 100, 60.0),
        ]

    def _digest(self, text: str) -> bytes:
        return hmac.digest(self._attempts_key(), text.encode("utf-8", "surrogatepass"), "sha256")


def _network(address: str) -> str:
    """An IPv6 caller owns at least 64 bits of addresses."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(found) if found.version == 4 else str(ipaddress.ip_network((found, 64), strict=False))


def _closed() -> PolicyError:
    return PolicyError(
        "Nobody can register here by themselves. Ask an admin for an invitation. (The first account is made with the "
        "master key, or on the gateway's machine with: strata users create EMAIL --role admin)",
        status=403,
        code="registration_closed",
        error_type="policy_forbidden",
    )


def _not_invited() -> PolicyError:
    return PolicyError(
        "This invitation is not good any more, or not for this e-mail address. Ask an admin for another.",
        status=403,
        code="invitation_refused",
        error_type="policy_forbidden",
    )


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
