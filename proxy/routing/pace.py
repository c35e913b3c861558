"""
How fast each deployment is asked, where the configuration says what it is good for: beyond that it is passed over, like
one that rests. Pure: time is an argument, in seconds.
"""

from __future__ import annotations

from proxy.buckets import Bucket
from proxy.config import Deployment

MAX_KNOWN = 4_096


class Pace:
    """Counts in this process alone. A request counts when it is planned, its tokens when they are known."""

    def __init__(self) -> None:
        self._buckets: dict[tuple[str, str, int], Bucket] = {}

    def full(self, deployment: Deployment, now: float) -> bool:
        return any(not bucket.remaining(int(now * 1e9)) for bucket in self._of(deployment))

    def asked(self, deployment: Deployment, now: float) -> None:
        if deployment.rpm is not None:
            self._charge(deployment, "requests", deployment.rpm, 1, now)

    def used(self, deployment: Deployment, tokens: int, now: float) -> None:
        if deployment.tpm is not None:
            self._charge(deployment, "tokens", deployment.tpm, tokens, now)

    def _of(self, deployment: Deployment) -> list[Bucket]:
        wanted = (("requests", deployment.rpm), ("tokens", deployment.tpm))
        keys = [(deployment.name, kind, number) for kind, number in wanted if number is not None]
        return [self._buckets[key] for key in keys if key in self._buckets]

    def _charge(self, deployment: Deployment, kind: str, per_minute: int, count: int, now: float) -> None:
        key = (deployment.name, kind, per_minute)
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= MAX_KNOWN:
                self._buckets.clear()
            bucket = self._buckets[key] = Bucket(per_minute, per_minute)
        bucket.charge(count, int(now * 1e9))
        bucket.owed = min(bucket.owed, bucket.full)  # asked more often for want of another: soon forgiven
