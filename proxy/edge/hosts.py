"""
Which host names a request may be for.

A page of anybody's can have its own name lead to 127.0.0.1, and then its browser lets it talk to what listens there.
So where only this machine can reach the gateway, its own pages answer to this machine's names alone.
"""

from __future__ import annotations

from collections.abc import Iterable

from proxy.config.providers import is_loopback
from proxy.errors import CallerError


class Hosts:
    """`names`: `llm.example.com`, `*.example.com`; none at all: what means this machine itself."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        names = tuple(names)
        self._names = frozenset(name for name in names if not name.startswith("*."))
        self._tails = tuple(name[1:] for name in names if name.startswith("*."))
        self._only_this_machine = not names

    def check(self, host: bytes) -> None:
        """Of the Host header, with or without a port. CallerError 421 if it is none of ours."""
        name = bare_name(host)
        if self._only_this_machine:
            known = is_loopback(name)
        else:
            known = name in self._names or (bool(self._tails) and name.endswith(self._tails))
        if not known:
            raise CallerError(
                f'This gateway does not go by the name "{name[:100]}" here. Its operator may add that name to '
                "server.allowed_hosts.",
                status=421,
                code="unknown_host",
                error_type="caller_unknown_route",
            )


def bare_name(host: bytes) -> str:
    """Without the port and the brackets of an IPv6 address, in lower case; no dot at its end."""
    text = host.decode("latin-1").lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0].removesuffix(".")
