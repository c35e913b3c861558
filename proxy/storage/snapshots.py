"""How what a worker has read of the database stays fresh: by notices, and by looking in case one was missed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable


async def keep_fresh(
    refresh: Callable[[], Awaitable[None]],
    heard: asyncio.Event,
    poll_seconds: float,
    failed: Callable[[Exception], None],
    *,
    settle_seconds: float = 0.0,
) -> None:
    """
    Refreshes whenever something was heard, and every few seconds, until it is cancelled. `settle_seconds`: what is
    heard so close together is read once. `failed` hears what goes wrong; the next turn tries again.
    """
    while True:
        # Not wait_for: before Python 3.12 it loses a cancellation that comes with the timeout, and `close` hangs.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(poll_seconds):
                await heard.wait()
                await asyncio.sleep(settle_seconds)
        try:
            await refresh()
        except Exception as error:
            failed(error)
