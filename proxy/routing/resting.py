"""
Who is resting: a deployment that keeps failing is left alone for a while, and others are asked first.

Three failures within a minute, or one that will not mend itself (a refused key), and it rests for the cool-down; a
provider that says when to come back is taken at its word, up to a minute.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from proxy.config import Rest

WINDOW_SECONDS = 60.0
LONGEST_REST_SECONDS = 60.0


class Resting:
    """
    State of every deployment that failed lately. Bounded by the number of deployments that were tried; one that is
    well again is forgotten. `on_change(deployment, up, reason)` hears of every rest and every recovery.
    """

    def __init__(self, rest: Rest, on_change: Callable[[str, bool, str], None] = lambda *_: None) -> None:
        self._rest = rest
        self._on_change = on_change
        self._failures: dict[str, deque[float]] = {}
        self._until: dict[str, float] = {}

    def rests(self, deployment: str, now: float) -> bool:
        until = self._until.get(deployment)
        if until is None:
            return False
        if now < until:
            return True
        del self._until[deployment]
        self._on_change(deployment, True, "")
        return False

    def succeeded(self, deployment: str) -> None:
        if self._failures:
            self._failures.pop(deployment, None)
        if self._until and self._until.pop(deployment, None) is not None:
            self._on_change(deployment, True, "")

    def failed(self, deployment: str, now: float, reason: str, *, at_once: bool, seconds: float | None = None) -> None:
        """`at_once`: do not wait for a third failure. `seconds`: what the provider asked for."""
        failures = self._failures.setdefault(deployment, deque(maxlen=max(self._rest.allowed_fails, 1)))
        failures.append(now)
        many = len(failures) == failures.maxlen and now - failures[0] <= WINDOW_SECONDS
        if not (at_once or many or seconds) or self._rest.cooldown_seconds <= 0:
            return
        length = min(seconds, LONGEST_REST_SECONDS) if seconds else self._rest.cooldown_seconds
        known = self._until.get(deployment, 0.0)
        self._until[deployment] = max(known, now + length)
        if known <= now:
            self._on_change(deployment, False, reason)
