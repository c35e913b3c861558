"""
What the operator wrote of the gateway's edges: TLS, browsers of other sites, the admin's own port. Parts of
`config.Server`, in a file of their own for room alone.
"""

from __future__ import annotations

import msgspec


class Tls(msgspec.Struct, frozen=True, kw_only=True):
    """Paths of two PEM files; the certificate's also holds the chain above it."""

    certificate: str
    key: str


class Cors(msgspec.Struct, frozen=True, kw_only=True):
    """Web pages of which other origins may call us. None: no browser lets them."""

    origins: tuple[str, ...] = ()
    """`https://app.example.com`; `*` is any, and then never with credentials."""
    credentials: bool = False
    """Whether a browser may send its cookies along. Keys in a header need no such leave."""
    max_age_seconds: float = 600.0
    """How long a browser may remember the answer to its preflight."""


class Admin(msgspec.Struct, frozen=True, kw_only=True):
    """Where /api, /auth and /console are served instead of the public port."""

    host: str = "127.0.0.1"
    port: int
    metrics: bool = False
    """The metrics too."""
