"""
Host names to addresses: a small cache in front of the loop's resolver, and one lookup at a time for each name.

A lookup belongs to the resolver, not to the request that started it, so a request that gives up harms no other.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import NamedTuple

FRESH_SECONDS = 30.0
LOOKUP_SECONDS = 10.0
PATIENCE_SECONDS = 1.0
"""How long a request waits for a new answer while there is an old one to fall back on."""
MAX_NAMES = 256
MAX_ADDRESSES = 4


class _Known(NamedTuple):
    addresses: tuple[str, ...]
    fresh_until: float


async def system_lookup(host: str) -> list[str]:
    """What the operating system says. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(sockaddr[0]) for *_, sockaddr in found]


class Resolver:
    def __init__(
        self, clock: Callable[[], float], lookup: Callable[[str], Awaitable[list[str]]] = system_lookup
    ) -> None:
        self._clock = clock
        self._lookup = lookup
        self._known: dict[str, _Known] = {}
        self._lookups: dict[str, asyncio.Task[tuple[str, ...]]] = {}

    async def resolve(self, host: str) -> tuple[str, ...]:
        """
        Up to MAX_ADDRESSES addresses, the one that last worked first. The last good answer serves for as long as there
        is no new one. Raises OSError. The caller bounds the wait.
        """
        known = self._known.get(host)
        if known is not None and self._clock() < known.fresh_until:
            return known.addresses
        lookup = self._lookups.get(host)
        if lookup is None:
            lookup = self._lookups[host] = asyncio.create_task(self._look_up(host))
            lookup.add_done_callback(lambda done: self._looked_up(host, done))
        await asyncio.wait({lookup}, timeout=PATIENCE_SECONDS if known is not None else None)
        if lookup.done() and not lookup.cancelled() and lookup.exception() is None:
            return lookup.result()
        if known is not None:
            return known.addresses
        if lookup.cancelled():
            raise OSError("the lookup was called off")
        return lookup.result()

    def prefer(self, host: str, address: str) -> None:
        """This address answered where one before it did not."""
        known = self._known.get(host)
        if known is not None and address in known.addresses:
            others = tuple(other for other in known.addresses if other != address)
            self._known[host] = known._replace(addresses=(address, *others))

    async def close(self) -> None:
        """Ends the lookups under way; the system's own may go on in its thread."""
        lookups = list(self._lookups.values())
        for lookup in lookups:
            lookup.cancel()
        if lookups:
            await asyncio.wait(lookups)

    async def _look_up(self, host: str) -> tuple[str, ...]:
        async with asyncio.timeout(LOOKUP_SECONDS):
            found = await self._lookup(host)
        addresses = tuple(dict.fromkeys(found))[:MAX_ADDRESSES]
        if not addresses:
            raise OSError(f"{host} has no address")
        return addresses

    def _looked_up(self, host: str, lookup: asyncio.Task[tuple[str, ...]]) -> None:
        del self._lookups[host]
        if lookup.cancelled() or lookup.exception() is not None:
            return
        self._known.pop(host, None)
        if len(self._known) >= MAX_NAMES:
            del self._known[next(iter(self._known))]
        self._known[host] = _Known(lookup.result(), self._clock() + FRESH_SECONDS)
