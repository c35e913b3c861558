"""
Something that expires, such as a token: kept, and renewed before it does.

It is fetched by one task at a time, which belongs to nobody's request. While what is held is still good nobody waits
for the next one; when it no longer is, all wait for the same fetch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from proxy.errors import GatewayError, UpstreamError

FETCH_SECONDS = 10.0
EARLY_SECONDS = 300.0
"""How long before its end the next one is fetched, unless it lives so briefly that half its life is less."""
LATE_SECONDS = 30.0
"""Nothing is used that ends so soon: it would end on its way."""
PAUSE_SECONDS = 10.0
"""Between two fetches in the background, when the first has failed."""

T = TypeVar("T")


class Renewal(Generic[T]):
    def __init__(self, fetch: Callable[[], Awaitable[tuple[T, float | None]]], wall_clock: Callable[[], float]) -> None:
        """`fetch` gives the thing and the moment of its end (Unix seconds), or None; it raises UpstreamError."""
        self._fetch = fetch
        self._wall_clock = wall_clock
        self._held: tuple[T] | None = None
        self._ends = self._renew_from = 0.0
        self._failure: GatewayError | None = None
        self._task: asyncio.Task[None] | None = None

    async def current(self) -> T:
        """Raises UpstreamError where there is none and none can be fetched."""
        now = self._wall_clock()
        if self._held is not None and now < min(self._renew_from, self._ends - LATE_SECONDS):
            return self._held[0]
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._renew())
        if self._held is not None and now < self._ends - LATE_SECONDS:
            return self._held[0]
        await asyncio.shield(self._task)
        if self._failure is not None:
            raise self._failure
        assert self._held is not None
        return self._held[0]

    async def close(self) -> None:
        """Waits for a fetch that is under way; it is bounded by itself."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _renew(self) -> None:
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                value, ends = await self._fetch()
        except GatewayError as error:
            self._failure = error
        except TimeoutError:
            self._failure = unauthorised(f"The credentials did not come within {FETCH_SECONDS:.0f} seconds.")
        except Exception as error:
            self._failure = unauthorised(f"The credentials could not be fetched ({type(error).__name__}).")
        else:
            now = self._wall_clock()
            self._failure, self._held = None, (value,)
            self._ends = float("inf") if ends is None else ends
            self._renew_from = self._ends - min(EARLY_SECONDS, (self._ends - now) / 2)
            return
        self._renew_from = self._wall_clock() + PAUSE_SECONDS


def unauthorised(message: str) -> UpstreamError:
    """Nothing was sent: there is nothing to authorise it with. The message names the fix, and never a secret."""
    return UpstreamError(message, code="provider_auth", error_type="provider_auth", sent=False)
