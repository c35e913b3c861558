"""
Who a token is about. One verifier an issuer, chosen by the issuer that the token names and believed only after the
signature; which algorithm counts says the verifier's key, never the token.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, NoReturn, Protocol

import jwt

from proxy.admission.accounts.signing_keys import SigningKey
from proxy.errors import Unauthenticated

MAX_TOKEN_BYTES = 8192
MAX_SECONDS = 86_400
LEEWAY_SECONDS = 30
MAX_SUBJECT_CHARS = 255
REQUIRED = ("exp", "iat", "aud", "iss", "sub")


class Keys(Protocol):
    async def find(self, kid: str | None) -> SigningKey: ...


class Claims(NamedTuple):
    """What a verified token says. Times are unix seconds."""

    issuer: str
    subject: str
    expires_at: float
    """With the leeway: whoever remembers a token lets it in for as long as whoever verifies it."""
    all: Mapping[str, Any]


class Verifier:
    """`supabase`: only people who have signed in; its `anon` and `service_role` keys are tokens of nobody."""

    def __init__(self, issuer: str, audience: str, keys: Keys, *, supabase: bool = False) -> None:
        self.issuer = issuer
        self._audience = audience
        self._keys = keys
        self._supabase = supabase

    async def verify(self, token: str, header: Mapping[str, Any]) -> Claims:
        kid = header.get("kid")
        if "crit" in header or not isinstance(kid, str | None):
            _refuse("its header is not one that is understood here")
        key = await self._keys.find(kid)
        try:
            said = jwt.decode(
                token,
                key.key,
                algorithms=[key.algorithm],
                audience=self._audience,
                issuer=self.issuer,
                leeway=LEEWAY_SECONDS,
                options={"require": list(REQUIRED)},
            )
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("This session has expired. Sign in again.", code="token_expired") from None
        except jwt.PyJWTError as error:
            _refuse(_REASONS.get(type(error), "it is not well formed"))
        except (ValueError, TypeError, OverflowError, RecursionError):
            _refuse("it is not well formed")
        self._check(said)
        return Claims(self.issuer, said["sub"], float(said["exp"]) + LEEWAY_SECONDS, said)

    def _check(self, said: Mapping[str, Any]) -> None:
        subject = said["sub"]
        if not isinstance(subject, str) or not 0 < len(subject) <= MAX_SUBJECT_CHARS or not subject.isprintable():
            _refuse("it names no person")
        times = (said["iat"], said["exp"])
        if not all(isinstance(moment, int | float) and not isinstance(moment, bool) for moment in times):
            _refuse("its times are no numbers")
        if not 0 < said["exp"] - said["iat"] <= MAX_SECONDS:
            _refuse("it is good for more than a day")
        if self._supabase:
            role = said.get("role")
            if role != "authenticated" or said.get("is_anonymous"):
                _refuse("it is no person's: sign in, and send the access token of that session")
            if not _is_uuid(subject):
                _refuse("it names no person")


class Verifiers:
    """All issuers that are believed here."""

    def __init__(self, verifiers: Iterable[Verifier]) -> None:
        self._by_issuer = {verifier.issuer: verifier for verifier in verifiers}

    async def verify(self, token: bytes) -> Claims:
        """Unauthenticated (401) with the reason; GatewayFault 503 if the issuer's keys are out of reach."""
        if len(token) > MAX_TOKEN_BYTES:
            _refuse(f"it is longer than {MAX_TOKEN_BYTES} bytes")
        try:
            text = token.decode("ascii")
            header = jwt.get_unverified_header(text)
            issuer = jwt.decode(text, options={"verify_signature": False}).get("iss")
        except (jwt.PyJWTError, ValueError, TypeError, AttributeError, RecursionError):
            _refuse("it is not well formed")
        verifier = self._by_issuer.get(issuer) if isinstance(issuer, str) else None
        if verifier is None:
            _refuse("its issuer is not known here")
        return await verifier.verify(text, header)


_REASONS: Mapping[type[Exception], str] = {
    jwt.InvalidSignatureError: "its signature is wrong",
    jwt.InvalidAlgorithmError: "it is signed in another way than its issuer's key allows",
    jwt.InvalidAudienceError: "it was made for somebody else (its audience)",
    jwt.InvalidIssuerError: "its issuer is not known here",
    jwt.ImmatureSignatureError: "it is not valid yet",
    jwt.MissingRequiredClaimError: f"it must say {', '.join(REQUIRED)}",
}


def _refuse(why: str) -> NoReturn:
    raise Unauthenticated(f"This token is not accepted: {why}.", code="invalid_token")


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False
