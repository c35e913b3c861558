"""Whose tokens are believed, as the configuration says: ours, or those of one issuer outside."""

from __future__ import annotations

from proxy.admission.accounts.signing_keys import PublishedKeys, SharedSecret
from proxy.admission.accounts.tokens import Tokens
from proxy.admission.accounts.verifiers import Keys, Verifier, Verifiers
from proxy.config import Auth, Issuer


def believed(auth: Auth, tokens: Tokens) -> tuple[Verifiers, PublishedKeys | None]:
    """The verifiers, and the keys that somebody must keep fresh and close, if there are some."""
    issuer = auth.issuer
    if issuer is None:
        return Verifiers([tokens.verifier()]), None
    if issuer.jwt_secret is not None:
        return _of(issuer, SharedSecret(issuer.jwt_secret.reveal().encode())), None
    published = PublishedKeys(issuer.jwks_url)
    return _of(issuer, published), published


def _of(issuer: Issuer, keys: Keys) -> Verifiers:
    return Verifiers([Verifier(issuer.issuer, issuer.audience, keys, supabase=issuer.supabase)])
