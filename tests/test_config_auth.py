"""The `auth` section: whose people they are, and every way to say it wrongly."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.config import Auth
from proxy.config.load import examine, load
from proxy.config.problems import ConfigError

SECRET = "super-secret-jwt-token-with-at-least-32-characters"


def read(tmp_path: Path, text: str) -> Auth:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return load(path, {}).auth


def test_without_a_word_people_have_passwords_and_are_invited(tmp_path: Path) -> None:
    auth = read(tmp_path, "server: {port: 4001}")
    assert (auth.mode, auth.registration, auth.session_ttl_seconds, auth.issuer) == ("local", "invite", 43_200.0, None)


def test_a_supabase_project_says_where_its_keys_are(tmp_path: Path) -> None:
    auth = read(tmp_path, "auth: {mode: supabase, supabase: {url: 'https://abc.supabase.co/'}}")
    assert auth.issuer is not None
    assert auth.issuer.supabase
    assert auth.issuer.issuer == "https://abc.supabase.co/auth/v1"
    assert auth.issuer.jwks_url == "https://abc.supabase.co/auth/v1/.well-known/jwks.json"
    assert auth.issuer.audience == "authenticated"


def test_any_issuer_is_named_with_its_audience_and_keys(tmp_path: Path) -> None:
    text = """
auth:
  mode: jwt
  session_ttl: 1h
  jwt:
    issuer: https://id.example.com
    audience: strata
    jwks_url: https://id.example.com/jwks
    claims: {role: app.role, team: groups.strata}
"""
    auth = read(tmp_path, text)
    assert auth.issuer is not None
    assert (auth.issuer.role_claim, auth.issuer.team_claim, auth.issuer.email_claim) == (
        "app.role",
        "groups.strata",
        "email",
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{mode: ldap}", "must be local or supabase or jwt"),
        ("{registration: anybody}", "must be first or invite or open or closed"),
        ("{session_ttl: 1s}", "auth.session_ttl"),
        ("{mode: supabase}", "needs auth.supabase.url"),
        ("{mode: supabase, supabase: {url: 'http://abc.supabase.co'}}", "must begin with https://"),
        ("{mode: supabase, supabase: {url: 'https://u:p@abc.supabase.co'}}", "must be a URL"),
        ("{mode: supabase, supabase: {url: 'https://a.co', jwt_secret: short}}", "jwt_secret is too short"),
        ("{mode: supabase, supabase: {url: 'https://a.co', claims: {role: user_metadata.role}}}", "use app_metadata"),
        ("{mode: supabase, supabase: {url: 'https://a.co', claims: {role: 'a..b'}}}", "must be the name of a claim"),
        ("{mode: jwt}", "needs auth.jwt.issuer"),
        ("{mode: jwt, jwt: {issuer: 'https://a.co', audience: s}}", "needs auth.jwt.jwks_url"),
        ("{jwt: {issuer: 'https://a.co'}}", "auth.jwt is not used"),
        ("{mode: jwt, jwt: {issuer: 'https://a.co', audience: s, jwks_url: 'https://a.co/k', jwk: x}}", "unknown key"),
        ("{master_key: weak}", "auth.master_key is too weak"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, f"auth: {text}")
    assert said in str(caught.value)


def test_a_project_s_secret_in_the_file_is_flagged(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"auth: {{mode: supabase, supabase: {{url: 'https://a.co', jwt_secret: {SECRET}}}}}")
    config, problems = examine(path, {})
    assert config is not None
    assert any("SUPABASE_JWT_SECRET" in problem.message for problem in problems)
    assert SECRET not in repr(config)
