"""Rows of measurements as a table: medians of interleaved rounds, with the least and the most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

import msgspec


class Row(msgspec.Struct, frozen=True):
    """One scenario against one target in one round. CPU is microseconds a request, or a chunk for streams."""

    scenario: str
    target: str
    round: int
    units: int
    errors: int
    first_error: str
    per_second: float
    cpu_us: float
    postgres_us: float
    p50_us: float
    p99_us: float
    calibration_ms: float


class Scenario(msgspec.Struct, frozen=True):
    """`dialect`: what the upstream speaks. A `rate` makes it an open loop; a stream is counted by its chunks."""

    name: str
    title: str
    dialect: str = "openai"
    stream: bool = False
    connections: int = 64
    rate: float = 0.0


SCENARIOS = (
    Scenario("ns64", "whole answers, 64 connections"),
    Scenario("s64", "64 streams passed through, a chunk", stream=True),
    Scenario("t64", "64 streams translated, a chunk", dialect="anthropic", stream=True),
    Scenario("ns1", "whole answers, one connection", connections=1),
    Scenario("r100", "whole answers, 100 a second", connections=32, rate=100.0),
)


def lines(rows: Sequence[Row], scenarios: Sequence[Scenario]) -> Iterator[str]:
    for scenario in scenarios:
        yield ""
        yield f"{scenario.name}: {scenario.title}"
        yield (
            f"  {'':8} {'CPU µs: median (min…max)':>28} {'Postgres':>9} {'× nginx':>8} {'per s':>8} "
            f"{'p50 µs':>9} {'added':>8} {'p99 µs':>9} {'added':>8} {'errors':>7}"
        )
        found = {row.target: [r for r in rows if (r.scenario, r.target) == (scenario.name, row.target)] for row in rows}
        direct, nginx = found.get("direct", []), found.get("nginx", [])
        for target, mine in found.items():
            if mine:
                yield _line(target, mine, direct, nginx)
        for row in rows:
            if row.scenario == scenario.name and row.first_error:
                yield f"  {row.target}: {row.first_error}"
                break


def _line(target: str, rows: list[Row], direct: list[Row], nginx: list[Row]) -> str:
    cpu = [row.cpu_us for row in rows]
    spread = f"{median(cpu):.1f} ({min(cpu):.1f}…{max(cpu):.1f})" if any(cpu) else "-"
    postgres = median(row.postgres_us for row in rows)
    ratio = f"{median(cpu) / median(row.cpu_us for row in nginx):.2f}" if any(cpu) and nginx else "-"
    p50, p99 = median(row.p50_us for row in rows), median(row.p99_us for row in rows)
    added50 = f"{p50 - median(row.p50_us for row in direct):+.0f}" if direct and target != "direct" else "-"
    added99 = f"{p99 - median(row.p99_us for row in direct):+.0f}" if direct and target != "direct" else "-"
    return (
        f"  {target:8} {spread:>28} {postgres:>9.1f} {ratio:>8} {median(row.per_second for row in rows):>8.0f} "
        f"{p50:>9.0f} {added50:>8} {p99:>9.0f} {added99:>8} {sum(row.errors for row in rows):>7}"
    )
