"""
What the operator wrote under `server:`. A part of `config`, in a file of its own for room alone.
"""

from __future__ import annotations

from typing import Literal

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


class Server(msgspec.Struct, frozen=True, kw_only=True):
    host: str = "127.0.0.1"
    port: int = 4000
    max_body_bytes: int = 20_000_000
    max_bodies_bytes: int = 500_000_000
    """Of all bodies in memory together, those up to 64 KiB left out."""
    max_in_flight: int = 1000
    keepalive_seconds: float = 15.0
    """SSE comment while a stream is silent; 0 turns it off."""
    header_timeout_seconds: float = 10.0
    body_timeout_seconds: float = 30.0
    write_timeout_seconds: float = 30.0
    """A client that does not read for this long counts as gone."""
    shutdown_grace_seconds: float = 30.0
    response_headers: Literal["full", "minimal"] = "full"
    trusted_proxies: tuple[str, ...] = ()
    """Networks whose X-Forwarded-For and -Proto are believed."""
    tls: Tls | None = None
    hsts_seconds: int = 0
    """0: browsers are not told to use TLS only."""
    redirect_http: int | None = None
    """A port without TLS that leads to the one with it."""
    cors: Cors = Cors()
    admin: Admin | None = None
    """None: everything is served on one port."""
    allowed_hosts: tuple[str, ...] = ()
