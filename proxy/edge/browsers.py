"""
What browsers are told: which other sites' pages may call us (CORS), and how to treat what they get.

A browser refuses by itself; we only answer its questions. An origin is named back to it only if it is one of the
configured ones, and `*` never goes with credentials.
"""

from __future__ import annotations

import re

from proxy.config.listeners import Cors
from proxy.errors import PolicyError

Header = tuple[bytes, bytes]

METHODS = b"GET, POST, PUT, PATCH, DELETE"
REQUEST_HEADERS = b"authorization, content-type"
EXPOSED = ", ".join(
    [
        "x-request-id",
        "x-strata-provider",
        "x-strata-attempts",
        "x-strata-cost-usd",
        "x-strata-warning",
        "x-strata-next-cursor",
        *(f"x-ratelimit-{what}-{of}" for of in ("requests", "tokens") for what in ("limit", "remaining", "reset")),
        "retry-after",
        "retry-after-ms",
        "openai-processing-ms",
        "server-timing",
    ]
).encode()
"""A page sees no other header of an answer than these and a few harmless ones."""

_NAMES = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]+(?:[ \t]*,[ \t]*[A-Za-z0-9!#$%&'*+.^_`|~-]+){0,99}")


class Origins:
    """The origins of the configuration, and what to say to a page of one."""

    def __init__(self, cors: Cors) -> None:
        self._origins = frozenset(origin.encode() for origin in cors.origins)
        self._any = b"*" in self._origins and not cors.credentials
        self._credentials = [(b"access-control-allow-credentials", b"true")] if cors.credentials else []
        self._max_age = b"%d" % cors.max_age_seconds
        self._lines = {origin: _lines(self.headers(origin)) for origin in (*self._origins, b"")}
        self._stranger = self._lines[b"*" if self._any else b""]

    def headers(self, origin: bytes) -> list[Header]:
        """For an answer. Without any for a stranger, its browser keeps the answer from the page."""
        allowed = b"*" if self._any else origin if origin in self._origins else b""
        # Whatever is said here depends on who asks: a cache must not hand it to somebody else.
        vary = [(b"vary", b"Origin")]
        if not allowed or not origin:
            return vary
        allow = [(b"access-control-allow-origin", allowed), (b"access-control-expose-headers", EXPOSED)]
        return [*vary, *allow, *self._credentials]

    def lines(self, origin: bytes) -> bytes:
        """The same as header lines, each with its CRLF."""
        return self._lines.get(origin, self._stranger)

    def preflight(self, origin: bytes, wanted_headers: bytes) -> list[Header]:
        """What a browser that asks before it sends is told besides. PolicyError for a page of a stranger."""
        if len(self.headers(origin)) == 1:
            raise PolicyError(
                "Pages of this origin may not call this gateway. Its operator allows one in server.cors.origins.",
                status=403,
                code="origin_not_allowed",
                error_type="policy_forbidden",
            )
        names = wanted_headers if _NAMES.fullmatch(wanted_headers) else REQUEST_HEADERS
        return [
            (b"access-control-allow-methods", METHODS),
            (b"access-control-allow-headers", names),
            (b"access-control-max-age", self._max_age),
        ]


def _lines(headers: list[Header]) -> bytes:
    return b"".join([b"%b: %b\r\n" % header for header in headers])
