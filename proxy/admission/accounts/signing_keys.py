"""
The public keys of an issuer (https://www.rfc-editor.org/rfc/rfc7517), fetched and kept.

A key says by its own kind which one algorithm it verifies; the header of a token never does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import httpx2
import jwt
import msgspec

from proxy.errors import GatewayFault, Unauthenticated

REFRESH_SECONDS = 300.0
BELIEVED_SECONDS = 3_600.0
UNKNOWN_SECONDS = 10.0
"""Between two fetches that tokens with unknown keys bring about."""
FETCH_SECONDS = 5.0
MAX_BYTES = 262_144
MAX_KEYS = 100
MIN_RSA_BITS = 2048

ALGORITHMS = {
    ("RSA", ""): ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
"""By kind and curve of a key; the first unless the key itself names another of them. Never an HMAC."""

log = logging.getLogger("strata.admission")


class SigningKey(NamedTuple):
    key: Any
    algorithm: str


class SharedSecret:
    """One secret that signs and verifies (HS256)."""

    def __init__(self, secret: bytes) -> None:
        self._key = SigningKey(secret, "HS256")

    async def find(self, kid: str | None) -> SigningKey:
        return self._key


def new_client() -> httpx2.AsyncClient:
    return httpx2.AsyncClient(timeout=FETCH_SECONDS, follow_redirects=False, trust_env=False)


class PublishedKeys:
    """The keys at an address. `run` keeps them fresh; `find` fetches once if it does not know one."""

    def __init__(
        self,
        url: str,
        new_client: Callable[[], httpx2.AsyncClient] = new_client,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url
        self._new_client = new_client
        self._client: httpx2.AsyncClient | None = None
        self._clock = clock
        self._keys: dict[str | None, SigningKey] = {}
        self._fetched_at = float("-inf")
        self._tried_at = float("-inf")
        self._fetching: asyncio.Task[None] | None = None
        self.fetches_total = 0
        self.failures_total = 0

    async def close(self) -> None:
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.gather(self._fetching, return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def run(self) -> None:
        while True:
            await self.refresh()
            await asyncio.sleep(REFRESH_SECONDS)

    async def find(self, kid: str | None) -> SigningKey:
        """Unauthenticated if the issuer has no such key; GatewayFault 503 if nobody can say."""
        key = self._known(kid)
        if key is None and (self._fetching is not None or self._clock() - self._tried_at >= UNKNOWN_SECONDS):
            await self.refresh()
            key = self._known(kid)
        if key is not None:
            return key
        if not self._believed:
            raise GatewayFault(
                "The keys that tokens are verified with cannot be fetched at the moment; try again in a few seconds.",
                code="issuer_unavailable",
                headers={"retry-after": "10"},
            )
        raise Unauthenticated("This token is signed with a key that its issuer does not have. Sign in again.",
                              code="invalid_token")  # fmt: skip

    async def refresh(self) -> None:
        """One fetch, shared by all who wait for it. What was good stays when it fails."""
        if self._fetching is None:
            self._tried_at = self._clock()
            self._fetching = asyncio.create_task(self._fetch(), name="signing keys")
            self._fetching.add_done_callback(self._done)
        await asyncio.shield(self._fetching)

    @property
    def _believed(self) -> bool:
        return self._clock() - self._fetched_at <= BELIEVED_SECONDS

    def _known(self, kid: str | None) -> SigningKey | None:
        if not self._believed:
            return None
        if kid is None:
            return next(iter(self._keys.values())) if len(self._keys) == 1 else None
        return self._keys.get(kid)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._fetching = None

    async def _fetch(self) -> None:
        self.fetches_total += 1
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                self._keys = read_keys(await self._download())
            self._fetched_at = self._clock()
        except (httpx2.HTTPError, OSError, ValueError) as error:
            self.failures_total += 1
            log.warning("the keys at %s cannot be fetched (%s); the last ones stay", self._url, type(error).__name__)

    async def _download(self) -> bytes:
        body = b""
        if self._client is None:
            self._client = self._new_client()
        async with self._client.stream("GET", self._url, follow_redirects=False) as answer:
            if answer.status_code != 200:
                raise ValueError(f"status {answer.status_code}")
            async for part in answer.aiter_bytes():
                body += part
                if len(body) > MAX_BYTES:
                    raise ValueError("too large")
        return body


def read_keys(document: bytes) -> dict[str | None, SigningKey]:
    """The usable keys of a key set, by their ids. ValueError if it holds none, or is no key set at all."""
    try:
        listed = msgspec.json.decode(document)["keys"]
    except (msgspec.DecodeError, KeyError, TypeError, RecursionError):
        raise ValueError("no key set") from None
    if not isinstance(listed, list) or len(listed) > MAX_KEYS:
        raise ValueError("no list of keys, or too long a one")
    found: dict[str | None, SigningKey] = {}
    for item in listed:
        key = _read_key(item) if isinstance(item, dict) else None
        if key is not None:
            kid = item.get("kid")
            found[kid if isinstance(kid, str) else None] = key
    if not found:
        raise ValueError("no usable key")
    return found


def _read_key(item: dict[str, Any]) -> SigningKey | None:
    kind, curve = item.get("kty"), item.get("crv", "")
    if item.get("use", "sig") != "sig" or not isinstance(kind, str) or not isinstance(curve, str):
        return None
    usual = ALGORITHMS.get((kind, curve), ())
    algorithm = item.get("alg", usual[0] if usual else None)
    if algorithm not in usual:
        return None
    try:
        key = jwt.PyJWK({**item, "alg": algorithm}).key
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    if kind == "RSA" and key.key_size < MIN_RSA_BITS:
        return None
    return SigningKey(key, algorithm)
