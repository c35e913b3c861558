"""
Google Cloud's access tokens: fetched from what the operator has, kept, and renewed in the background before they end.

What the operator has, the first of: `access_token`, which is used as it is; `credentials`, the path of a file or its
JSON (a service account, a user who ran `gcloud auth application-default login`, a federated workload identity, an
impersonated service account); gcloud's own file; the metadata server of the machine on Google Cloud.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import httpx2

from proxy.config import Provider
from proxy.errors import UpstreamError
from proxy.upstream.credentials import Credential, Outgoing, Surroundings
from proxy.upstream.credentials.google_tokens import NoToken, Token, fetch

RENEW_BEFORE_SECONDS = 300.0
"""A token with less time than this is used while its successor is fetched."""
USABLE_SECONDS = 10.0
"""One with less than this might end on the way."""
FETCH_SECONDS = 15.0
"""All of a fetch; several requests may be in it."""
REQUEST_SECONDS = 10.0
RETRY_SECONDS = 5.0
"""How long a failure stands before the next fetch, so that a dead token server is not stormed."""
CLOSE_SECONDS = 1.0


def credential(provider: Provider, surroundings: Surroundings) -> Mapping[str, str] | Credential:
    """A fixed header for a token that the operator brings; else one that fetches."""
    given = provider.secrets.get("access_token")
    if given:
        return {"authorization": f"Bearer {given.reveal()}"}
    written = provider.secrets.get("credentials")
    return AccessTokens(provider.name, Found(written.reveal() if written else "", surroundings.environ), surroundings)


class Found(NamedTuple):
    """Where the operator's credentials are: in `written`, or where Google's own tools look."""

    written: str
    environ: Mapping[str, str]

    def read(self) -> str:
        """Their JSON; "" means the metadata server. Blocks. Raises NoToken."""
        if self.written.lstrip().startswith("{"):
            return self.written
        path = Path(self.written).expanduser() if self.written else self._gclouds()
        try:
            return path.read_text()
        except FileNotFoundError:
            if not self.written:
                return ""
            raise NoToken("the file named under credentials does not exist") from None
        except (OSError, UnicodeDecodeError) as error:
            raise NoToken(f"the file named under credentials cannot be read ({type(error).__name__})") from None

    def _gclouds(self) -> Path:
        folder = self.environ.get("CLOUDSDK_CONFIG")
        home = Path(self.environ.get("HOME", "/nonexistent"))
        return (Path(folder) if folder else home / ".config" / "gcloud") / "application_default_credentials.json"


class AccessTokens:
    """One token for all requests of a provider; at most one fetch at a time."""

    def __init__(self, provider: str, found: Found, surroundings: Surroundings) -> None:
        self._provider = provider
        self._found = found
        self._surroundings = surroundings
        self._token: Token | None = None
        self._ends = 0.0
        self._fetching: asyncio.Task[None] | None = None
        self._failure: NoToken | None = None
        self._failed_at = 0.0

    async def headers(self, request: Outgoing) -> Mapping[str, str]:
        """Waits only where there is no token that still serves. Raises UpstreamError (`provider_auth`)."""
        now = self._surroundings.clock()
        left = self._ends - now
        if self._token is None or left < RENEW_BEFORE_SECONDS:
            self._renew(now)
        if self._token is None or left < USABLE_SECONDS:
            await self._wait()
        if self._token is None or self._ends - self._surroundings.clock() < USABLE_SECONDS:
            raise self._refusal()
        return self._token.headers()

    async def close(self) -> None:
        """A fetch that is on its way ends by its own time limit; nobody waits that long for it."""
        if self._fetching is not None:
            await asyncio.wait({self._fetching}, timeout=CLOSE_SECONDS)

    def _renew(self, now: float) -> None:
        """Begins a fetch, unless one is on its way or has just failed."""
        if self._fetching is not None or (self._failure is not None and now - self._failed_at < RETRY_SECONDS):
            return
        self._fetching = asyncio.get_running_loop().create_task(self._fetch())

    async def _wait(self) -> None:
        """The fetch belongs to all who wait: one who leaves does not end it."""
        if self._fetching is not None:
            await asyncio.wait({self._fetching}, timeout=FETCH_SECONDS + CLOSE_SECONDS)

    async def _fetch(self) -> None:
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                text = await asyncio.to_thread(self._found.read)
                async with httpx2.AsyncClient(timeout=REQUEST_SECONDS, trust_env=False) as http:
                    token = await fetch(text, self._found.environ, http, self._surroundings.wall_clock)
            self._token, self._failure = token, None
            self._ends = self._surroundings.clock() + token.seconds
        except NoToken as failure:
            self._failure = failure
        except TimeoutError:
            self._failure = NoToken(f"there was no answer within {FETCH_SECONDS:g} s")
        finally:
            self._failed_at = self._surroundings.clock()
            self._fetching = None

    def _refusal(self) -> UpstreamError:
        """The client learns that it is the operator's matter, the log learns what."""
        error = UpstreamError(
            "This gateway has no access token of Google's for this provider. The operator can see why in the log.",
            code="provider_auth",
            error_type="provider_auth",
            sent=False,
        )
        why = self._failure or NoToken("the token that came has already ended")
        error.add_note(f"providers.{self._provider} got no access token: {why}.")
        return error
