"""
What may be tried again, when, and how much of it at once.

Retries of one deployment are capped at a fifth of the live requests, so that an outage is not answered by a storm.
Going on to another deployment is not a retry and is never held back.
"""

from __future__ import annotations

from collections.abc import Callable

FIRST_BACKOFF_SECONDS = 0.25
LONGEST_BACKOFF_SECONDS = 4.0
SHARE = 0.2
FLOOR = 3


class RetryBudget:
    """`live` and `retrying` are counted by the relay; one event loop, so plain integers do."""

    def __init__(self) -> None:
        self.live = 0
        self.retrying = 0

    def allows(self) -> bool:
        return self.retrying < max(FLOOR, self.live * SHARE)


def backoff_seconds(retry: int, dice: Callable[[], float], asked_seconds: float | None) -> float:
    """Full jitter over a doubling span; a provider's own Retry-After is the least to wait, if it is short enough."""
    span = min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * float(1 << (retry - 1)))
    wait = dice() * span
    return max(wait, asked_seconds) if asked_seconds is not None else wait
