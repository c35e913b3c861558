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
MAX_KNOWN = 4_096
"""Of a pattern (`openai/*`), clients make the names."""


class Resting:
    """
    State of every deployment that failed lately, at most MAX_KNOWN; one that is well again is forgotten.
    `on_change(deployment, up, reason)` hears of every rest and every recovery, and of rests that are over by themselves
    when somebody asks (`wake`).
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
        self._end(deployment)
        return False

    def wake(self, now: float) -> None:
        """Ends the rests that are over, also of those whom nobody has asked for since."""
        for deployment in list(self._until):
            self.rests(deployment, now)

    def succeeded(self, deployment: str) -> None:
        if self._failures:
            self._failures.pop(deployment, None)
        if self._until and deployment in self._until:
            self._end(deployment)

    def failed(self, deployment: str, now: float, reason: str, *, at_once: bool, seconds: float | None = None) -> None:
        """`at_once`: do not wait for a third failure. `seconds`: what the provider asked for."""
        failures = self._failures.get(deployment)
        if failures is None:
            if len(self._failures) >= MAX_KNOWN:
                del self._failures[next(iter(self._failures))]
            failures = self._failures[deployment] = deque(maxlen=max(self._rest.allowed_fails, 1))
        failures.append(now)
        many = len(failures) == failures.maxlen and now - failures[0] <= WINDOW_SECONDS
        if not (at_once or many or seconds) or self._rest.cooldown_seconds <= 0:
            return
        length = min(seconds, LONGEST_REST_SECONDS) if seconds else self._rest.cooldown_seconds
        if len(self._until) >= MAX_KNOWN and deployment not in self._until:
            self._end(next(iter(self._until)))
        known = self._until.get(deployment, 0.0)
        self._until[deployment] = max(known, now + length)
        if known <= now:
            self._on_change(deployment, False, reason)

    def _end(self, deployment: str) -> None:
        del self._until[deployment]
        self._on_change(deployment, True, "")
