"""
From a token to a person, remembered for some seconds: what a request waits for is one look into a dictionary.

Whoever is shut out, signs out or gets another role is heard of at once (`sessions.CHANNEL`), and looked for anew after
RECHECK_SECONDS in case that was missed. While Postgres is away those who were known go on for STALE_SECONDS.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple

from proxy.admission.accounts.verifiers import Claims, Verifiers
from proxy.config import Issuer
from proxy.errors import Unauthenticated
from proxy.storage.people import Disabled, PersonRow, Said, find_in_session, find_outsider
from proxy.storage.postgres import Database, Unavailable

RECHECK_SECONDS = 5.0
STALE_SECONDS = 900.0
MAX_KNOWN = 50_000
MAX_CHANGED = 10_000
MAX_CLAIM_CHARS = 320
MAX_TEAM_CHARS = 64
ROLES = ("admin", "member", "viewer")


class _Known(NamedTuple):
    person: PersonRow
    expires_at: float
    """Unix seconds, as its verifier says."""
    checked_at: float
    """By our clock, which only goes forward."""
    epoch: int


class People:
    """`issuer`: whose people they are, if not ours; `may_appear`: whether one who is not known yet is let in."""

    def __init__(
        self,
        database: Database,
        verifiers: Verifiers,
        issuer: Issuer | None = None,
        *,
        may_appear: bool = True,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._verifiers = verifiers
        self._issuer = issuer
        self._may_appear = may_appear
        self._clock = clock
        self._wall_clock = wall_clock
        self._known: dict[bytes, _Known] = {}
        self._asking: dict[bytes, asyncio.Task[_Known]] = {}
        self._epoch = 0
        self._changed: set[str] = set()
        """People of whom only Postgres knows who they are now."""

    async def find(self, token: bytes) -> PersonRow:
        """
        Unauthenticated if the token is not good or its person is not let in; Unavailable if only Postgres could tell.
        The same object for as long as nothing was changed.
        """
        # The whole token: whoever keeps less of it lets one person in as another
        digest = hashlib.sha256(token).digest()
        known = self._known.get(digest)
        if known is not None:
            if known.expires_at <= self._wall_clock():
                del self._known[digest]
                raise Unauthenticated("This session has expired. Sign in again.", code="token_expired")
            if known.epoch == self._epoch and self._clock() - known.checked_at < RECHECK_SECONDS:
                return known.person
        try:
            found = await self._ask(digest, token)
        except Unavailable:
            if known is None or known.person.id in self._changed or self._stale(known):
                raise
            return known.person
        return found.person

    def forget(self, person_id: str) -> None:
        """This person was changed, or a session of his has ended; "" if nobody knows what was missed."""
        self._epoch += 1
        if len(self._changed) >= MAX_CHANGED:
            self._known.clear()
            self._changed.clear()
        if person_id:
            self._changed.add(person_id)

    def _stale(self, known: _Known) -> bool:
        return self._clock() - known.checked_at >= STALE_SECONDS

    async def _ask(self, digest: bytes, token: bytes) -> _Known:
        """One question at a time for each token, however many requests wait for it."""
        asking = self._asking.get(digest)
        if asking is None:
            asking = self._asking[digest] = asyncio.create_task(self._look(digest, token), name="person")
            asking.add_done_callback(lambda _: self._asking.pop(digest, None))
        return await asyncio.shield(asking)

    async def _look(self, digest: bytes, token: bytes) -> _Known:
        epoch, before = self._epoch, self._known.get(digest)
        try:
            claims = await self._verifiers.verify(token)
            person = await self._person(claims)
        except Unauthenticated:
            self._known.pop(digest, None)
            raise
        if before is not None and before.person == person:
            person = before.person
        found = _Known(person, claims.expires_at, self._clock(), epoch)
        if epoch == self._epoch:
            self._changed.discard(person.id)
            while len(self._known) >= MAX_KNOWN:
                del self._known[next(iter(self._known))]
            self._known[digest] = found
        return found

    async def _person(self, claims: Claims) -> PersonRow:
        issuer = self._issuer
        if issuer is None:
            return await self._of_session(claims)
        try:
            person = await find_outsider(self._database, _said(claims, issuer), may_appear=self._may_appear)
        except Disabled:
            raise Unauthenticated("An admin has disabled this account.", code="account_disabled") from None
        if person is None:
            raise Unauthenticated("You are not known here yet. Ask an admin.", code="account_unknown")
        return person

    async def _of_session(self, claims: Claims) -> PersonRow:
        session, version = claims.all.get("sid"), claims.all.get("ver")
        person = None
        if _is_id(claims.subject) and _is_id(session) and isinstance(version, int):
            person = await find_in_session(self._database, claims.subject, str(session), version)
        if person is None:
            raise Unauthenticated("This session has ended. Sign in again.", code="session_ended")
        return person


def _said(claims: Claims, issuer: Issuer) -> Said:
    """Unauthenticated if the token says something of its person that cannot be."""
    role = _claim(claims, issuer.role_claim)
    if role is not None and role not in ROLES:
        raise Unauthenticated(
            f"The claim {issuer.role_claim} of this token must be one of {', '.join(ROLES)}. Its issuer sets it.",
            code="invalid_token",
        )
    team = _claim(claims, issuer.team_claim)
    if team is not None and len(team) > MAX_TEAM_CHARS:
        raise Unauthenticated(
            f"The claim {issuer.team_claim} of this token has more than {MAX_TEAM_CHARS} characters.",
            code="invalid_token",
        )
    return Said(claims.issuer, claims.subject, _claim(claims, issuer.email_claim), role, team)


def _claim(claims: Claims, path: str) -> str | None:
    """
    The text at a path such as `app_metadata.role`, or of a claim called so, dots and all, as those are that Auth0 adds
    (`https://example.com/role`); None if there is none that could be meant.
    """
    found: Any = claims.all.get(path)
    if found is None:
        found = claims.all
        for name in path.split("."):
            found = found.get(name) if isinstance(found, dict) else None
    if not isinstance(found, str) or not 0 < len(found) <= MAX_CLAIM_CHARS or not found.isprintable():
        return None
    return found


def _is_id(text: object) -> bool:
    try:
        return isinstance(text, str) and str(uuid.UUID(text)) == text
    except ValueError:
        return False
