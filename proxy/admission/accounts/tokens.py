"""
Our own tokens: an access token (a JWT, a quarter of an hour), a refresh token (random, known by its hash, used once),
and the console's token against requests that other sites forge.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import uuid
from collections.abc import Callable
from typing import NamedTuple

import jwt

from proxy.admission.accounts.signing_keys import SigningKey
from proxy.admission.accounts.verifiers import Verifier

ISSUER = "strata"
AUDIENCE = "strata"
ACCESS_SECONDS = 900

_REFRESH = re.compile(r"strata-refresh-(?P<session>[0-9a-f]{32})-[A-Za-z0-9_-]{43}")


class Refresh(NamedTuple):
    """`session_id` is part of the text, so that a forged request is known before anything is looked up."""

    text: str
    session_id: str
    digest: bytes


class Tokens:
    """`key` gives 32 bytes that nothing else uses: the database may say late what they are derived from."""

    def __init__(self, key: Callable[[], bytes]) -> None:
        self._key = key

    def verifier(self) -> Verifier:
        return Verifier(ISSUER, AUDIENCE, self)

    async def find(self, kid: str | None) -> SigningKey:
        """What our own access tokens are verified with."""
        return SigningKey(self._for("access"), "HS256")

    def access(self, user_id: str, session_id: str, version: int, now: float) -> str:
        claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": user_id, "sid": session_id, "ver": version}
        times = {"iat": int(now), "exp": int(now) + ACCESS_SECONDS}
        return jwt.encode({**claims, **times}, self._for("access"), algorithm="HS256")

    def forgery(self, session_id: str) -> str:
        """What a page of ours sends beside its cookie, and another site cannot know."""
        return hmac.digest(self._for("forgery"), session_id.encode(), "sha256").hex()

    def same_forgery(self, session_id: str, sent: str) -> bool:
        return hmac.compare_digest(self.forgery(session_id).encode(), sent.encode("utf-8", "surrogatepass"))

    def _for(self, purpose: str) -> bytes:
        return hmac.digest(self._key(), purpose.encode(), "sha256")


def session_of(token: str) -> str:
    """The session that a token of ours, which somebody has verified, belongs to; "" for what is none."""
    try:
        said = jwt.decode(token, options={"verify_signature": False})
    except jwt.PyJWTError:
        return ""
    return str(said.get("sid", "")) if said.get("iss") == ISSUER else ""


def new_refresh(session_id: str) -> Refresh:
    text = f"strata-refresh-{uuid.UUID(session_id).hex}-{secrets.token_urlsafe(32)}"
    return Refresh(text, session_id, hashlib.sha256(text.encode()).digest())


def read_refresh(text: str) -> Refresh | None:
    """None for what cannot be one of ours."""
    match = _REFRESH.fullmatch(text)
    if match is None:
        return None
    return Refresh(text, str(uuid.UUID(match["session"])), hashlib.sha256(text.encode()).digest())
