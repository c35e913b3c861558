"""What a worker knows of one budget, and what it has of the current period. Plain arithmetic; nobody waits here."""

from __future__ import annotations

import asyncio

from proxy.exchange import Budget


class Share:
    """What this worker has of one period. Leased, less given back, is always `free + held + what it has cost`."""

    __slots__ = ("ends_ms", "free", "held", "holds", "idle_sweeps", "returning", "starts_ms")

    def __init__(self, starts_ms: int) -> None:
        self.starts_ms = starts_ms
        self.ends_ms = 0
        self.free = 0
        """What the next hold may take; below zero after an answer cost more than was leased."""
        self.held = 0
        self.holds = 0
        self.idle_sweeps = 0
        self.returning = 0
        """Attempts to give back what is free, under way: it may come back here."""

    @property
    def over(self) -> bool:
        """Nothing of it is left, nor can any more come back."""
        return not (self.holds or self.free or self.returning)

    def set_aside(self, nano_usd: int) -> None:
        self.free -= nano_usd
        self.held += nano_usd
        self.holds += 1
        self.idle_sweeps = 0

    def resolve(self, held_nano_usd: int, cost_nano_usd: int) -> None:
        self.free += held_nano_usd - cost_nano_usd
        self.held -= held_nano_usd
        self.holds -= 1
        self.idle_sweeps = 0


class Account:
    """One budget as this worker sees it."""

    __slots__ = (
        "asked_until",
        "asking",
        "budget",
        "busy",
        "free_there",
        "refused",
        "refused_until",
        "settled",
        "share",
        "waiting",
    )

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.share: Share | None = None
        self.asking: asyncio.Task[int] | None = None
        self.waiting: list[int] = []
        """What each request that waits for a lease needs."""
        self.busy = 0
        """Requests between their first look and their hold; the account stays while there are any."""
        self.free_there = budget.limit_nano_usd
        """Not leased by anybody, when Postgres was last asked."""
        self.settled = 0
        self.refused = 0
        self.refused_until = float("-inf")
        self.asked_until = float("-inf")
        """The other workers have just been asked for what they do not use."""
