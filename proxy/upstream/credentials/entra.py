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
from proxy.upstream.credentials import Credential, Outgoing, Surroundings
from proxy.upstream.credentials.renewal import FETCH_SECONDS, Renewal, unauthorised

AUTHORITY = "https://login.microsoftonline.com"
SCOPE = "https://cognitiveservices.azure.com/.default"
IMDS = "http://169.254.169.254"
"""The metadata service of an Azure machine; a link-local address, which nothing outside can answer."""
ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

log = logging.getLogger("strata.upstream")


class Question(NamedTuple):
    """How to ask for a token, made anew each time: the file of a federated one changes. `hint` is the operator's."""

    url: str
    headers: Mapping[str, str]
    form: Mapping[str, str] | None
    """None: it is a GET."""
    hint: str


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
        self._wall_clock = surroundings.wall_clock
        self._http: httpx2.AsyncClient | None = None
        self._token = Renewal(self._fetch, surroundings.wall_clock)

    async def headers(self, request: Outgoing) -> Mapping[str, str]:
        return {"authorization": f"Bearer {await self._token.current()}"}

    async def close(self) -> None:
        await self._token.close()
        if self._http is not None:
            await self._http.aclose()

    async def _fetch(self) -> tuple[str, float]:
        try:
            return await self._asked(self._ask())
        except ValueError as error:
            told = str(error)
        except (OSError, httpx2.HTTPError) as error:
            told = type(error).__name__  # its message may hold an address or a path
        log.warning("provider %s: no token of Microsoft Entra: %s", self._name, told)
        raise unauthorised("This gateway got no token for the provider. The operator finds the cause in the log.")

    async def _asked(self, asked: Question) -> tuple[str, float]:
        if self._http is None:
            self._http = httpx2.AsyncClient(timeout=FETCH_SECONDS, follow_redirects=False, trust_env=False)
        if asked.form is None:
            answer = await self._http.get(asked.url, headers=dict(asked.headers))
        else:
            answer = await self._http.post(asked.url, headers=dict(asked.headers), data=dict(asked.form))
        said = _object(answer.content)
        value, ends = said.get("access_token"), self._end(said)
        if answer.status_code != 200 or not isinstance(value, str) or not value.isascii() or ends is None:
            raise ValueError(f"{urlsplit(asked.url).hostname} answered {answer.status_code}{_code(said)}; {asked.hint}")
        return value, ends

    def _end(self, said: Mapping[str, Any]) -> float | None:
        """Entra and IMDS say how long, App Service until when; as a number or as text."""
        try:
            seconds = said.get("expires_in")
            return float(said["expires_on"]) if seconds is None else self._wall_clock() + float(seconds)
        except (KeyError, TypeError, ValueError):
            return None


def _refuse_plain_http(authority: str) -> None:
    parts = urlsplit(authority)
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname or "")):
        raise ValueError("authority must begin with https://")


def _object(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, ValueError, RecursionError):
        return {}


def _code(said: Mapping[str, Any]) -> str:
    """`invalid_client, AADSTS7000215`: codes alone, for descriptions quote what was sent."""
    error, numbers = said.get("error"), said.get("error_codes")
    found = [error] if isinstance(error, str) and re.fullmatch(r"[a-z_]{1,64}", error) else []
    found += [f"AADSTS{number}" for number in numbers if type(number) is int] if isinstance(numbers, list) else []
    return f" ({', '.join(found)})" if found else ""
