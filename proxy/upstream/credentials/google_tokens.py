"""
One access token, from whatever kind of credentials: the exchanges that https://google.aip.dev/auth describes. Nothing
secret is in an address, and no words of a token server but its error code are repeated.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx2
import msgspec
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from proxy.config.providers import is_loopback

SCOPE = "https://www.googleapis.com/auth/cloud-platform"
TOKEN_URI = "https://oauth2.googleapis.com/token"
ASKED_SECONDS = 3600
METADATA_HOST = "metadata.google.internal"
METADATA_PATH = "/computeMetadata/v1/instance/service-accounts/default/token"
GRANT = "urn:ietf:params:oauth:grant-type:"

Clock = Callable[[], float]
Json = dict[str, Any]


class NoToken(Exception):
    """Why, in words for the operator."""


class Token(NamedTuple):
    value: str
    seconds: float
    """How long it lasts from now."""
    quota_project: str = ""
    """Whose quota a user's calls count against."""

    def headers(self) -> dict[str, str]:
        authorised = {"authorization": f"Bearer {self.value}"}
        return authorised | {"x-goog-user-project": self.quota_project} if self.quota_project else authorised


async def fetch(text: str, environ: Mapping[str, str], http: httpx2.AsyncClient, wall_clock: Clock) -> Token:
    """The token for these credentials; without any, the machine's own. Raises NoToken."""
    if not text:
        return await _from_metadata(environ, http)
    try:
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise NoToken("credentials are not JSON") from None
    if not isinstance(found, dict):
        raise NoToken("credentials are not a JSON object")
    try:
        token = await _exchange(found, http, wall_clock)
    except KeyError as missing:
        raise NoToken(f"credentials of type {found.get('type')!r:.40} lack {missing}") from None
    except (TypeError, AttributeError):
        raise NoToken(f"credentials of type {found.get('type')!r:.40} have a field that is not text") from None
    project = found.get("quota_project_id")
    return token._replace(quota_project=project) if isinstance(project, str) else token


async def _exchange(found: Json, http: httpx2.AsyncClient, wall_clock: Clock) -> Token:
    match found.get("type"):
        case "service_account":
            assertion = _signed(found, wall_clock())
            form = {"grant_type": f"{GRANT}jwt-bearer", "assertion": assertion}
            return _token(await _post(http, found.get("token_uri") or TOKEN_URI, data=form))
        case "authorized_user":
            names = ("client_id", "client_secret", "refresh_token")
            form = {"grant_type": "refresh_token"} | {name: found[name] for name in names}
            return _token(await _post(http, found.get("token_uri") or TOKEN_URI, data=form))
        case "external_account":
            return await _federated(found, http, wall_clock)
        case "impersonated_service_account":
            source = await _exchange(found["source_credentials"], http, wall_clock)
            return await _impersonated(source, found["service_account_impersonation_url"], http, wall_clock)
    raise NoToken(f"credentials of type {found.get('type')!r:.40} are not known here")


def _signed(found: Json, now: float) -> str:
    """A JWT by which a service account vouches for itself."""
    try:
        key = load_pem_private_key(found["private_key"].encode(), None)
    except (ValueError, TypeError, AttributeError):
        raise NoToken("the private_key of the service account is no PEM key") from None
    if not isinstance(key, RSAPrivateKey):
        raise NoToken("the private_key of the service account is no RSA key")
    head = {"alg": "RS256", "typ": "JWT", "kid": found.get("private_key_id")}
    audience = found.get("token_uri") or TOKEN_URI
    claims = {"iss": found["client_email"], "scope": SCOPE, "aud": audience}
    claims |= {"iat": int(now), "exp": int(now) + ASKED_SECONDS}
    said = _base64url(msgspec.json.encode(head)) + b"." + _base64url(msgspec.json.encode(claims))
    return (said + b"." + _base64url(key.sign(said, PKCS1v15(), SHA256()))).decode()


def _base64url(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


async def _federated(found: Json, http: httpx2.AsyncClient, wall_clock: Clock) -> Token:
    """A token of somebody else's (a cluster's, a CI's) for one of Google's."""
    subject = await _subject(found["credential_source"], http)
    form = {
        "grant_type": f"{GRANT}token-exchange",
        "audience": found["audience"],
        "scope": SCOPE,
        "requested_token_type": "urn:ietf:params:oauth:token-type:access_token",
        "subject_token_type": found["subject_token_type"],
        "subject_token": subject,
    }
    token = _token(await _post(http, found["token_url"], data=form))
    url = found.get("service_account_impersonation_url")
    return await _impersonated(token, url, http, wall_clock) if url else token


async def _subject(source: Json, http: httpx2.AsyncClient) -> str:
    if source.get("file"):
        try:
            text = await asyncio.to_thread(Path(source["file"]).read_text)
        except (OSError, UnicodeDecodeError) as error:
            raise NoToken(f"credential_source.file cannot be read ({type(error).__name__})") from None
    elif source.get("url"):
        text = (await _send(http, "GET", source["url"], headers=source.get("headers") or {})).text
    else:
        raise NoToken("credential_source is read from a file or a url; other kinds are not offered here")
    told = source.get("format") or {}
    if told.get("type") != "json":
        return text.strip()
    try:
        subject = msgspec.json.decode(text)[told["subject_token_field_name"]]
    except (msgspec.DecodeError, ValueError, TypeError, LookupError):
        raise NoToken("credential_source does not hold the field that subject_token_field_name says") from None
    return str(subject)


async def _impersonated(source: Token, url: str, http: httpx2.AsyncClient, wall_clock: Clock) -> Token:
    body = {"scope": [SCOPE], "lifetime": f"{ASKED_SECONDS}s"}
    answer = await _post(http, url, json=body, headers={"authorization": f"Bearer {source.value}"})
    try:
        ends = datetime.fromisoformat(answer["expireTime"]).timestamp()
        return Token(str(answer["accessToken"]), ends - wall_clock())
    except (KeyError, TypeError, ValueError):
        raise NoToken("the answer to the impersonation holds no token") from None


async def _from_metadata(environ: Mapping[str, str], http: httpx2.AsyncClient) -> Token:
    """On Google Cloud a machine is somebody. This address is inside it, and plain http."""
    host = environ.get("GCE_METADATA_HOST") or METADATA_HOST
    try:
        answer = await http.get(f"http://{host}{METADATA_PATH}", headers={"metadata-flavor": "Google"})
    except (httpx2.HTTPError, httpx2.InvalidURL):
        raise NoToken(
            "there are no credentials, and this machine is not on Google Cloud: set credentials to the path of a "
            "service account's JSON file"
        ) from None
    return _token(_object(answer, host))


async def _post(http: httpx2.AsyncClient, url: Any, **content: Any) -> Json:
    return _object(await _send(http, "POST", url, **content), _host(url))


async def _send(http: httpx2.AsyncClient, method: str, url: Any, **content: Any) -> httpx2.Response:
    host = _host(url)
    try:
        return await http.request(method, url, **content)
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, TypeError) as error:
        raise NoToken(f"{host} could not be reached ({type(error).__name__})") from None


def _host(url: Any) -> str:
    """Secrets go to https, or stay on this machine."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except (ValueError, AttributeError, TypeError):
        raise NoToken("an address in the credentials is none") from None
    if not host or not (parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))):
        raise NoToken(f"the address of {host or 'a token server'} in the credentials is not https")
    return host


def _object(answer: httpx2.Response, host: str) -> Json:
    try:
        said = msgspec.json.decode(answer.content)
    except (msgspec.DecodeError, ValueError, RecursionError):
        said = None
    if answer.is_success and isinstance(said, dict):
        return said
    code = said.get("error") if isinstance(said, dict) else None
    code = code.get("status") if isinstance(code, dict) else code
    named = f" {code}" if isinstance(code, str) and re.fullmatch(r"[A-Za-z_]{1,40}", code) else ""
    raise NoToken(f"{host} answered with HTTP {answer.status_code}{named}")


def _token(answer: Json) -> Token:
    value, seconds = answer.get("access_token"), answer.get("expires_in")
    if not isinstance(value, str) or not value:
        raise NoToken("the token server's answer holds no access_token")
    try:
        return Token(value, float(seconds or ASKED_SECONDS))
    except (TypeError, ValueError):
        return Token(value, ASKED_SECONDS)
