"""
Who is at the other end: the peer of the connection, or the one whom a trusted proxy names.

The protocol settles it once for each request, and puts it into the ASGI scope; nobody else reads `x-forwarded-for`.
`Forwarded` is not read at all: a proxy that writes one of the two hands on the other as the client sent it, so whoever
believes both believes the client.
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

Header = tuple[bytes, bytes]
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_HOPS = 32
MAX_KNOWN = 1_024

_WITH_PORT = re.compile(r"\[(?P<six>[^\]]*)\](?::[0-9]+)?|(?P<four>[0-9.]+):[0-9]+")


def client_address(scope: Mapping[str, Any]) -> str:
    """Of a request on its way through ASGI: `client_address(request.scope)`. "" where a socket has no address."""
    client = scope.get("client")
    return str(client[0]) if client else ""


class TrustedProxies:
    """Networks whose word counts. What they pass on that makes no sense is passed over."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = [ipaddress.ip_network(network) for network in networks]
        self.trust = functools.lru_cache(maxsize=MAX_KNOWN)(self._trust)

    def client_behind(self, peer: str, forwarded_for: bytes) -> str:
        """
        The nearest address that is not a trusted proxy's. `forwarded_for` is read from its end, where the nearest
        proxy writes; what stands before the first stranger, that stranger may have made up.
        """
        client = peer
        hops = forwarded_for.decode("latin-1").rsplit(",", MAX_HOPS)[-MAX_HOPS:]
        while self.trust(client) and hops:
            address = read_address(hops.pop())
            if address is None:
                break
            client = str(address)
        return client

    def correct(self, scope: MutableMapping[str, Any]) -> None:
        """Puts the client and the scheme that a trusted peer tells of into an ASGI scope."""
        peer = client_address(scope)
        if not self.trust(peer):
            return
        headers: list[Header] = scope["headers"]
        hops = b",".join([value for name, value in headers if name == b"x-forwarded-for"])
        if hops:
            client = self.client_behind(peer, hops)
            if client != peer:
                scope["client"] = (client, 0)
        schemes = [value.lower() for name, value in headers if name == b"x-forwarded-proto"]
        if schemes in ([b"http"], [b"https"]):
            scope["scheme"] = schemes[0].decode()

    def _trust(self, peer: str) -> bool:
        address = read_address(peer)
        return address is not None and any(address in network for network in self._networks)


def read_address(text: str) -> Address | None:
    """An address, perhaps with a port, as proxies write them; None if it is none."""
    text = text.strip()
    with_port = _WITH_PORT.fullmatch(text)
    if with_port is not None:
        text = with_port["six"] or with_port["four"] or ""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    # What listens on both families sees an IPv4 client by its IPv6 name
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
