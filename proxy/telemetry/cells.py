"""
The plain integers behind the metrics: the path adds to a slot, and nobody formats anything before somebody scrapes.

A request binds its cells once (see `metrics`), so counting costs additions. A histogram keeps, for each of its buckets,
the last request that fell into it, for OpenMetrics' exemplars.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

from proxy.telemetry.families import FAMILIES, Family

Exemplar = tuple[str, int, int]
"""Which request, what was observed (in the stored unit), and when it began (Unix milliseconds)."""


class Cell:
    """The value of one counter or gauge. `line` is what its sample begins with, once it has been rendered."""

    __slots__ = ("line", "value")

    def __init__(self) -> None:
        self.value: int | float = 0
        self.line = ""


class Distribution:
    """The value of one histogram: observations by bucket (the last one has no upper bound), and their sum."""

    __slots__ = ("bounds", "counts", "exemplars", "lines", "total")

    def __init__(self, bounds: tuple[int, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.exemplars: list[Exemplar | None] = [None] * (len(bounds) + 1)
        self.total = 0
        self.lines: tuple[str, ...] = ()
        """What its samples begin with, once they have been rendered: the buckets, the sum, the count."""

    def observe(self, value: int) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def observe_of(self, value: int, request_id: str, at_ms: int) -> None:
        """`observe`, and remembers whose it was."""
        bucket = bisect_left(self.bounds, value)
        self.counts[bucket] += 1
        self.total += value
        self.exemplars[bucket] = (request_id, value, at_ms)


class Scalars:
    """All values of one counter or gauge, by label values."""

    __slots__ = ("cells", "family")

    def __init__(self, family: Family) -> None:
        self.family = family
        self.cells: dict[tuple[str, ...], Cell] = {}

    def cell(self, *values: str) -> Cell:
        found = self.cells.get(values)
        if found is None:
            found = self.cells[values] = Cell()
        return found


class Distributions:
    """All values of one histogram, by label values."""

    __slots__ = ("bounds", "cells", "family")

    def __init__(self, family: Family) -> None:
        self.family = family
        self.bounds = tuple(round(bound * family.divisor) for bound in family.buckets)
        self.cells: dict[tuple[str, ...], Distribution] = {}

    def cell(self, *values: str) -> Distribution:
        found = self.cells.get(values)
        if found is None:
            found = self.cells[values] = Distribution(self.bounds)
        return found


class Store:
    """Every family with its values."""

    def __init__(self, families: Iterable[Family] = FAMILIES) -> None:
        self.scalars: dict[str, Scalars] = {}
        self.distributions: dict[str, Distributions] = {}
        for family in families:
            if family.kind == "histogram":
                self.distributions[family.name] = Distributions(family)
            else:
                self.scalars[family.name] = Scalars(family)
