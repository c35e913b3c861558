"""The `auth` section: the master key, and who says who people are."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from proxy.config import Auth, Issuer
from proxy.config.problems import Report, Wrong
from proxy.config.quantities import choice, duration, secret, text
from proxy.config.reading import Key, Keys, child, flag_inline_secret, read_map
from proxy.config.yaml import Node

MIN_MASTER_KEY = 32
MIN_JWT_SECRET = 32
DAY_SECONDS = 86_400
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def issuer_url(node: Node) -> str:
    """Without TLS anybody on the way could publish keys of his own; on loopback nobody is on the way."""
    url = text(node)
    place = urlsplit(url)
    if place.scheme not in ("https", "http") or not place.hostname or place.username or place.query or place.fragment:
        raise Wrong(f"must be a URL like https://id.example.com, not {node}.")
    if place.scheme == "http" and place.hostname not in LOOPBACK:
        raise Wrong("must begin with https://, or anybody on the way could sign people in.")
    return url


def _claim(node: Node) -> str:
    path = text(node)
    if not re.fullmatch(r"[\w:/-]{1,100}(\.[\w:/-]{1,100}){0,4}", path):
        raise Wrong(f"must be the name of a claim, like email or app_metadata.role, not {node}.")
    return path


_AUTH: Keys = {
    "mode": Key("mode", choice("local", "supabase", "jwt")),
    "master_key": Key("master_key", secret),
    "registration": Key("registration", choice("first", "invite", "open", "closed")),
    "session_ttl": Key("session_ttl_seconds", duration(300, 366 * DAY_SECONDS)),
}
_SUPABASE: Keys = {"url": Key("url", issuer_url), "jwt_secret": Key("jwt_secret", secret)}
_JWT: Keys = {
    "issuer": Key("issuer", issuer_url),
    "audience": Key("audience", text),
    "jwks_url": Key("jwks_url", issuer_url),
}
_CLAIMS: Keys = {
    "email": Key("email_claim", _claim),
    "role": Key("role_claim", _claim),
    "team": Key("team_claim", _claim),
}


def read_auth(node: Node | None, report: Report, new_secret: Callable[[], str]) -> Auth:
    fields = read_map(node, "auth", _AUTH, report, besides=("supabase", "jwt"))
    _check_master_key(fields, child(node, "master_key"), report, new_secret)
    mode = fields.get("mode", "local")
    issuers = {name: child(node, name) for name in ("supabase", "jwt")}
    for name, section in issuers.items():
        if section is not None and name != mode:
            report.error(section.at, f"auth.{name} is not used: say auth.mode: {name}, or take it out.")
    issuer = None
    if mode == "supabase":
        issuer = _supabase(node, issuers["supabase"], report)
    elif mode == "jwt":
        issuer = _openid(node, issuers["jwt"], report)
    return Auth(**fields, issuer=issuer)


def _supabase(auth: Node | None, node: Node | None, report: Report) -> Issuer | None:
    """https://supabase.com/docs/guides/auth/jwts: the issuer and the keys of a project follow from its URL."""
    fields = read_map(node, "auth.supabase", _SUPABASE, report, besides=("claims",))
    claims = _claims(node, "auth.supabase", report)
    key = child(node, "jwt_secret")
    if "jwt_secret" in fields and len(fields["jwt_secret"].reveal()) < MIN_JWT_SECRET:
        assert key is not None
        report.error(key.at, "auth.supabase.jwt_secret is too short: copy it from the project's settings, API, JWT.")
    flag_inline_secret(key, "auth.supabase.jwt_secret", "SUPABASE_JWT_SECRET", report)
    if "url" not in fields:
        if auth is not None and child(node, "url") is None:
            report.error(auth.at, "auth.mode supabase needs auth.supabase.url: https://<project>.supabase.co.")
        return None
    issuer = f"{fields['url'].rstrip('/')}/auth/v1"
    return Issuer(
        issuer=issuer,
        audience="authenticated",
        jwks_url=f"{issuer}/.well-known/jwks.json",
        jwt_secret=fields.get("jwt_secret"),
        supabase=True,
        **claims,
    )


def _openid(auth: Node | None, node: Node | None, report: Report) -> Issuer | None:
    fields = read_map(node, "auth.jwt", _JWT, report, besides=("claims",))
    claims = _claims(node, "auth.jwt", report)
    missing = [name for name in _JWT if child(node, name) is None]
    if missing and auth is not None:
        report.error((node or auth).at, f"auth.mode jwt needs auth.jwt.{missing[0]}.")
    return None if fields.keys() != _JWT.keys() else Issuer(**fields, **claims)


def _claims(node: Node | None, path: str, report: Report) -> dict[str, Any]:
    fields = read_map(child(node, "claims"), f"{path}.claims", _CLAIMS, report)
    for name, claim in fields.items():
        # https://supabase.com/docs/guides/auth/users: users write their own user_metadata
        if name != "email_claim" and claim.split(".")[0] == "user_metadata":
            where = child(child(node, "claims"), name.removesuffix("_claim"))
            assert where is not None
            report.error(where.at, f"{path}.claims: people write user_metadata themselves; use app_metadata.")
    return fields


def _check_master_key(
    auth: Mapping[str, Any], node: Node | None, report: Report, new_secret: Callable[[], str]
) -> None:
    if "master_key" not in auth or node is None:
        return
    key = auth["master_key"].reveal()
    if len(key) < MIN_MASTER_KEY or len(set(key)) < 10:
        why = f"has {len(key)} characters" if len(key) < MIN_MASTER_KEY else "repeats itself"
        better = f"STRATA_MASTER_KEY=sk-strata-admin-{new_secret()}"
        report.error(node.at, f"auth.master_key is too weak: it {why}. Use this one: {better}")
        return
    flag_inline_secret(node, "auth.master_key", "STRATA_MASTER_KEY", report)
