"""
Addresses that users name for keys of their own: where they may lead, and the connections there.

Only by https, and only to public addresses (`addresses`), checked when the key is saved and again whenever a connection
is made, to the very address that was checked: a name that changes its mind gains nothing. The operator's own address of
the same provider is no such address; he has vouched for it.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from proxy.errors import CallerError
from proxy.upstream.addresses import is_public
from proxy.upstream.connections import Pool
from proxy.upstream.resolver import Resolver, system_lookup

MAX_CONNECTIONS = 256
MAX_RESPONSE_BYTES = 64_000_000
MAX_URL_CHARACTERS = 500
LOOKUP_SECONDS = 3.0
HTTPS_PORT = 443
LOWEST_OTHER_PORT = 1024

_PLAIN = re.compile(r"[A-Za-z0-9._~:/\[\]-]+")

Lookup = Callable[[str], Awaitable[list[str]]]


class Forbidden(OSError):
    """The name leads to an address where no user's key may lead."""


class Elsewhere:
    """`lookup` and `public` are arguments for tests, which have names and servers of their own."""

    def __init__(
        self,
        *,
        lookup: Lookup = system_lookup,
        public: Callable[[str], bool] = is_public,
        ssl_context: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lookup = lookup
        self._public = public
        self.pool = Pool(
            max_connections=MAX_CONNECTIONS,
            max_response_bytes=MAX_RESPONSE_BYTES,
            ssl_context=ssl_context,
            clock=clock,
            resolver=Resolver(clock, self._resolve),
        )

    async def admit(self, api_base: str, operators: str) -> str:
        """
        The address as it is kept: "" if it is the operator's own, else without its last slash. Raises CallerError.
        """
        api_base = api_base.strip().rstrip("/")
        if api_base in ("", operators.rstrip("/")):
            return ""
        host = _host_in(api_base)
        try:
            async with asyncio.timeout(LOOKUP_SECONDS):
                await self._resolve(host)
        except Forbidden:
            raise _refusal(f"leads to {host}, which is no public address", "api_base_forbidden") from None
        except (OSError, UnicodeError):
            raise _refusal(f"names {host}, which could not be found", "invalid_value") from None
        return api_base

    async def close(self) -> None:
        await self.pool.close()

    async def _resolve(self, host: str) -> list[str]:
        """All its addresses, if all are public: one that is not is no accident."""
        addresses = await self._lookup(host)
        if not all(self._public(address) for address in addresses):
            raise Forbidden(f"{host} is not public")
        return addresses


def _host_in(api_base: str) -> str:
    try:
        url = urlsplit(api_base)
        host, port = url.hostname or "", url.port or HTTPS_PORT
    except ValueError:
        raise _refusal("is no address", "invalid_value") from None
    if len(api_base) > MAX_URL_CHARACTERS or not _PLAIN.fullmatch(api_base) or not host:
        raise _refusal("must be an address like https://api.example.com/v1: no user, no ?, no #", "invalid_value")
    if url.scheme != "https":
        raise _refusal("must begin with https://, or the key would travel unencrypted", "api_base_forbidden")
    if port != HTTPS_PORT and port < LOWEST_OTHER_PORT:
        raise _refusal(f"names port {port}: only 443 and those from 1024 on", "api_base_forbidden")
    return host


def _refusal(why: str, code: str) -> CallerError:
    return CallerError(
        f"api_base {why}. A key of one's own goes to public https addresses only, or to the operator's own address of "
        "the same provider: leave api_base out for that.",
        code=code,
        param="api_base",
    )
