"""
What is left of the providers' own limits, as they say with each answer: the only warning before a 429.

The path keeps the last head of each deployment, and nothing more; it is read when somebody asks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from proxy.config import Deployment
from proxy.upstream.ratelimits import shares_left

FORGET_SECONDS = 300.0
"""What was said longer ago says nothing: most limits are for a minute."""
MAX_DEPLOYMENTS = 1_024


class Left(NamedTuple):
    deployment: str
    provider: str
    limit: str
    ratio: float


class Headroom:
    """`note` for each answer of a provider to the operator's own key."""

    def __init__(self, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock_ns = clock_ns
        self._heads: dict[str, tuple[Deployment, Mapping[bytes, bytes], int]] = {}

    def note(self, deployment: Deployment, head: Mapping[bytes, bytes], at_ns: int) -> None:
        heads = self._heads
        if len(heads) >= MAX_DEPLOYMENTS and deployment.name not in heads:
            heads.clear()
        heads[deployment.name] = (deployment, head, at_ns)

    def left(self) -> Iterator[Left]:
        oldest_ns = self._clock_ns() - int(FORGET_SECONDS * 1e9)
        for name, (deployment, head, at_ns) in list(self._heads.items()):
            if at_ns < oldest_ns:
                del self._heads[name]
                continue
            for limit, ratio in shares_left(head).items():
                yield Left(name, deployment.provider.name, limit, ratio)
