"""
Azure's two ways to authorise: the resource's key in a header, or a short-lived token of Microsoft Entra.

Which one is a matter of what is configured: a key; else a client secret; else a federated token, which Kubernetes puts
into a file (workload identity); else the managed identity of the machine. A token is kept until just before it expires
and renewed in the background, once for all who wait. Secrets are in bodies and headers, never in addresses; of a
refusal only its code is told.
learn.microsoft.com/en-us/entra/identity-platform/v2-oauth2-client-creds-grant-flow
learn.microsoft.com/en-us/entra/identity/managed-identities-azure-resources/how-to-use-vm-token
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import httpx2
import msgspec

from proxy.config import Provider
from proxy.config.providers import is_loopback
from proxy.errors import UpstreamError
from proxy.upstream.credentials import Credential, Outgoing, Surroundings

AUTHORITY = "https://login.microsoftonline.com"
SCOPE = "https://cognitiveservices.azure.com/.default"
IMDS = "http://169.254.169.254"
"""The metadata service of an Azure machine; a link-local address, which nothing outside can answer."""
ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

TOKEN_SECONDS = 10.0
"""How long a token may take to come."""
RENEW_BEFORE_SECONDS = 300.0
MARGIN_SECONDS = 10.0
"""A token is not used in its last seconds: it has to arrive, too."""
PAUSE_SECONDS = 2.0
"""After a refusal nobody asks again for so long, and whoever needs a token hears the same."""

log = logging.getLogger("strata.upstream")


class Question(NamedTuple):
    """How to ask for a token, made anew each time: the file of a federated one changes. `hint` is the operator's."""

    url: str
    headers: Mapping[str, str]
    form: Mapping[str, str] | None
    """None: it is a GET."""
    hint: str


class _Token(NamedTuple):
    value: str
    renew_at: float
    expires_at: float


def credential(provider: Provider, surroundings: Surroundings) -> Mapping[str, str] | Credential:
    if provider.api_key is not None:
        return {"api-key": provider.api_key.reveal()}
    return EntraToken(provider.name, lambda: question(provider, surroundings.environ), surroundings)


def question(provider: Provider, environ: Mapping[str, str]) -> Question:
    """Raises OSError if the federated token's file cannot be read, ValueError if a setting is missing or wrong."""
    options, secret = provider.options, provider.secrets.get("client_secret")
    file = options.get("federated_token_file")
    if secret is None and not file:
        return _managed(options, environ)
    tenant, client = options.get("tenant_id"), options.get("client_id")
    if not tenant or not client:
        raise ValueError("tenant_id and client_id are needed beside the secret or the token's file")
    form = {"grant_type": "client_credentials", "client_id": client, "scope": options.get("scope") or SCOPE}
    if secret is not None:
        form["client_secret"] = secret.reveal()
        hint = "check tenant_id, client_id and client_secret"
    else:
        form |= {"client_assertion_type": ASSERTION_TYPE, "client_assertion": Path(file or "").read_text().strip()}
        hint = "check tenant_id, client_id and the identity's federated credential"
    authority = (options.get("authority") or AUTHORITY).rstrip("/")
    _refuse_plain_http(authority)
    return Question(f"{authority}/{quote(tenant, safe='')}/oauth2/v2.0/token", {}, form, hint)


def _managed(options: Mapping[str, str], environ: Mapping[str, str]) -> Question:
    """App Service, Functions and Container Apps have an endpoint of their own; other machines have IMDS."""
    resource = (options.get("scope") or SCOPE).removesuffix("/.default")
    hint = "give the machine an identity, or the provider an api_key or a client_secret"
    query = f"resource={quote(resource, safe='')}"
    if options.get("client_id"):
        query += f"&client_id={quote(options['client_id'], safe='')}"
    endpoint, proof = environ.get("IDENTITY_ENDPOINT"), environ.get("IDENTITY_HEADER")
    if endpoint and proof:
        return Question(f"{endpoint}?api-version=2019-08-01&{query}", {"x-identity-header": proof}, None, hint)
    host = environ.get("AZURE_POD_IDENTITY_AUTHORITY_HOST", IMDS).rstrip("/")
    url = f"{host}/metadata/identity/oauth2/token?api-version=2018-02-01&{query}"
    return Question(url, {"metadata": "true"}, None, hint)


class EntraToken:
    """One provider's token."""

    def __init__(self, name: str, ask: Callable[[], Question], surroundings: Surroundings) -> None:
        self._name = name
        self._ask = ask
        self._clock = surroundings.clock
        self._wall_clock = surroundings.wall_clock
        self._http: httpx2.AsyncClient | None = None
        self._token: _Token | None = None
        self._renewal: asyncio.Task[_Token] | None = None
        self._refused: UpstreamError | None = None
        self._refused_until = 0.0

    async def headers(self, request: Outgoing) -> Mapping[str, str]:
        token, now = self._token, self._clock()
        if token is None or now >= token.expires_at:
            token = await asyncio.shield(self._renew())
        elif now >= token.renew_at and now >= self._refused_until:
            self._renew()
        return {"authorization": f"Bearer {token.value}"}

    async def close(self) -> None:
        if self._renewal is not None:
            await asyncio.wait([self._renewal], timeout=TOKEN_SECONDS)
        if self._http is not None:
            await self._http.aclose()

    def _renew(self) -> asyncio.Task[_Token]:
        """The one renewal that is under way."""
        if self._renewal is None:
            self._renewal = asyncio.get_running_loop().create_task(self._fetch())
            self._renewal.add_done_callback(self._renewed)
        return self._renewal

    def _renewed(self, renewal: asyncio.Task[_Token]) -> None:
        self._renewal = None
        if not renewal.cancelled() and renewal.exception() is None:
            self._token = renewal.result()

    async def _fetch(self) -> _Token:
        if self._refused is not None and self._clock() < self._refused_until:
            raise self._refused.with_traceback(None)
        try:
            async with asyncio.timeout(TOKEN_SECONDS):
                token = await self._asked(self._ask())
        except (OSError, ValueError, TimeoutError, httpx2.HTTPError) as error:
            # TimeoutError is an OSError too; what httpx says may hold an address, so only its kind is told
            told = str(error) if type(error) is ValueError else type(error).__name__
            self._refused, self._refused_until = self._no_token(told), self._clock() + PAUSE_SECONDS
            raise self._refused from None
        self._refused = None
        return token

    async def _asked(self, asked: Question) -> _Token:
        if self._http is None:
            self._http = httpx2.AsyncClient(timeout=TOKEN_SECONDS, follow_redirects=False, trust_env=False)
        if asked.form is None:
            answer = await self._http.get(asked.url, headers=dict(asked.headers))
        else:
            answer = await self._http.post(asked.url, headers=dict(asked.headers), data=dict(asked.form))
        said = _object(answer.content)
        value, seconds = said.get("access_token"), self._lifetime(said)
        if answer.status_code != 200 or not isinstance(value, str) or not value.isascii() or seconds is None:
            raise ValueError(f"{urlsplit(asked.url).hostname} answered {answer.status_code}{_code(said)}; {asked.hint}")
        now = self._clock()
        renew_before = min(RENEW_BEFORE_SECONDS, seconds / 2)
        return _Token(value, now + seconds - renew_before, now + seconds - min(MARGIN_SECONDS, seconds / 4))

    def _lifetime(self, said: Mapping[str, Any]) -> float | None:
        """Seconds; App Service says the moment instead, and both say it as text."""
        try:
            if said.get("expires_in") is not None:
                return max(float(said["expires_in"]), 0.0)
            return max(float(said["expires_on"]) - self._wall_clock(), 0.0)
        except (KeyError, TypeError, ValueError):
            return None

    def _no_token(self, why: str) -> UpstreamError:
        log.warning("provider %s: no token of Microsoft Entra: %s", self._name, why)
        return UpstreamError(
            "This gateway got no token for the provider. The operator finds the cause in the log.",
            code="provider_auth",
            error_type="provider_auth",
            sent=False,
        )


def _refuse_plain_http(authority: str) -> None:
    parts = urlsplit(authority)
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname or "")):
        raise ValueError("authority must begin with https://")


def _object(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}


def _code(said: Mapping[str, Any]) -> str:
    """`invalid_client, AADSTS7000215`: codes alone, for descriptions quote what was sent."""
    error, numbers = said.get("error"), said.get("error_codes")
    found = [error] if isinstance(error, str) and re.fullmatch(r"[a-z_]{1,64}", error) else []
    found += [f"AADSTS{number}" for number in numbers if type(number) is int] if isinstance(numbers, list) else []
    return f" ({', '.join(found)})" if found else ""
