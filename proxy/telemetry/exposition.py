"""
The page that Prometheus reads, in its text format or as OpenMetrics with exemplars, a slice at a time.

In slices, and not in a thread: a thread that computes keeps the interpreter for 5 ms (`sys.getswitchinterval`) every
time the event loop wants it back, which is more than a whole slice costs. Whoever reads them gives way between two. One
series is always in one slice, so a histogram's buckets, sum and count belong together; two series may be a request
apart. What must fit together across series is set in one step before (see `proxy.scrape`).
"""

from __future__ import annotations

from collections.abc import Iterator

from proxy.telemetry.cells import Cell, Distribution, Distributions, Exemplar, Scalars, Store
from proxy.telemetry.families import Family

SLICE_LINES = 500
"""Well under a millisecond."""


def slices(store: Store, *, openmetrics: bool) -> Iterator[str]:
    """The samples of every family; the end mark of OpenMetrics is the caller's."""
    text: list[str] = []
    for lines in _blocks(store, openmetrics):
        text += lines
        if len(text) >= SLICE_LINES:
            text.append("")
            yield "\n".join(text)
            text = []
    text.append("")
    yield "\n".join(text)


def _blocks(store: Store, openmetrics: bool) -> Iterator[list[str]]:
    """The lines of one series after another; of scalars some more at once."""
    for scalars in store.scalars.values():
        yield _head(scalars.family, openmetrics)
        # list(): between two slices a request may add a series
        cells = list(scalars.cells.items())
        for at in range(0, len(cells), SLICE_LINES):
            yield _scalar_lines(scalars, cells[at : at + SLICE_LINES])
    for distributions in store.distributions.values():
        yield _head(distributions.family, openmetrics)
        for values, cell in list(distributions.cells.items()):
            yield _bucket_lines(distributions, values, cell, openmetrics)


def _head(family: Family, openmetrics: bool) -> list[str]:
    name = family.name.removesuffix("_total") if openmetrics and family.kind == "counter" else family.name
    text = family.help.replace("\\", r"\\").replace("\n", r"\n")
    if openmetrics:
        text = text.replace('"', r"\"")
    return [f"# HELP {name} {text}", f"# TYPE {name} {family.kind}"]


def _scalar_lines(scalars: Scalars, cells: list[tuple[tuple[str, ...], Cell]]) -> list[str]:
    family, divisor = scalars.family, scalars.family.divisor
    lines = []
    for values, cell in cells:
        line = cell.line
        if not line:
            line = cell.line = family.name + _labels(family.labels, values) + " "
        lines.append(f"{line}{cell.value if divisor == 1 else cell.value / divisor}")
    return lines


def _bucket_lines(
    distributions: Distributions, values: tuple[str, ...], cell: Distribution, openmetrics: bool
) -> list[str]:
    begins = cell.lines
    if not begins:
        begins = cell.lines = _beginnings(distributions.family, values)
    running, lines = 0, []
    for at, count in enumerate(cell.counts):
        running += count
        lines.append(f"{begins[at]}{running}")
    divisor = distributions.family.divisor
    if openmetrics:
        for at, exemplar in enumerate(cell.exemplars):
            if exemplar is not None:
                lines[at] += _shown(exemplar, divisor)
    lines.append(f"{begins[-2]}{cell.total / divisor}")
    lines.append(f"{begins[-1]}{running}")
    return lines


def _beginnings(family: Family, values: tuple[str, ...]) -> tuple[str, ...]:
    names = (*family.labels, "le")
    bounds = (*(str(float(bound)) for bound in family.buckets), "+Inf")
    buckets = [f"{family.name}_bucket{_labels(names, (*values, bound))} " for bound in bounds]
    labels = _labels(family.labels, values)
    return (*buckets, f"{family.name}_sum{labels} ", f"{family.name}_count{labels} ")


def _shown(exemplar: Exemplar, divisor: int) -> str:
    request_id, value, at_ms = exemplar
    seconds = value / divisor
    return f' # {{trace_id="{_escaped(request_id)}"}} {seconds} {at_ms / 1000 + seconds:.3f}'


def _labels(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    if not names:
        return ""
    pairs = sorted(zip(names, values, strict=True))
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
