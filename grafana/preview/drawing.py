"""Draws one panel as HTML or SVG, from its JSON and what its queries brought."""

from __future__ import annotations

import html
import itertools
import time
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any, NamedTuple

from grafana.panels import Json
from grafana.preview.asking import Series
from grafana.preview.units import shown

PALETTE = ("#73bf69", "#f2cc0c", "#5794f2", "#ff780a", "#f2495c", "#b877d9", "#37872d", "#e0b400", "#8ab8ff", "#ffa6b0")
COLOURS = {"green": "#56a64b", "orange": "#ff780a", "red": "#e02f44", "blue": "#5794f2", "text": "#ccccdc"}
LEFT, BOTTOM, LEGEND_CHARACTERS = 84, 20, 200
TICKS = 4
NAMES = 130
"""Pixels for the names of states."""

Size = tuple[float, float]
Span = tuple[float, float]


class Frame(NamedTuple):
    """The size of a drawing, and what its axes span."""

    width: float
    height: float
    begin: float
    end: float
    top: float
    bottom: float = 0.0

    def x(self, at: float) -> float:
        return LEFT + (at - self.begin) / (self.end - self.begin) * (self.width - LEFT - 6)

    def y(self, value: float) -> float:
        return 6 + (1 - (value - self.bottom) / ((self.top - self.bottom) or 1)) * (self.height - BOTTOM - 6)


def draw(panel: Json, found: list[Series], rows: list[dict[str, Any]], size: Size, span: Span) -> str:
    """`found` is of Prometheus, `rows` of the ledger; one of them is empty. `span`: the range of time."""
    kind, unit = panel["type"], panel["fieldConfig"]["defaults"]["unit"]
    if kind == "table":
        return _table(panel, rows or _merged(found, several=len(panel["targets"]) > 1))
    if rows:
        found = _of_rows(rows)
        span = min(span[0], *(s.points[0][0] for s in found)), span[1]
    if not found:
        return '<p class="none">No data</p>'
    if kind == "stat":
        value = found[0].points[-1][1]
        return f'<p class="stat" style="color:{_colour(panel, value)}">{_whole(panel, value)}</p>'
    if kind == "bargauge":
        return _bars(panel, found)
    if kind == "state-timeline":
        return _states(found, size, span)
    if kind == "heatmap":
        return _heat(found, unit, size, span)
    return _lines(panel, found, size, span)


def _of_rows(rows: list[dict[str, Any]]) -> list[Series]:
    if "time" not in rows[0]:
        return [Series("A", "", {}, [(0.0, float(next(iter(rows[0].values()))))])]
    names = dict.fromkeys(row["metric"] for row in rows)
    points = {name: [(r["time"].timestamp(), float(r["value"])) for r in rows if r["metric"] == name] for name in names}
    return [Series("A", name, {}, points[name]) for name in names]


def _colour(panel: Json, value: float) -> str:
    found = "text"
    for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]:
        if step["value"] is None or value >= step["value"]:
            found = step["color"]
    return COLOURS[found]


def _whole(panel: Json, value: float) -> str:
    defaults = panel["fieldConfig"]["defaults"]
    return shown(round(value) if defaults.get("decimals") == 0 else value, defaults["unit"])


def _axes(frame: Frame, unit: str) -> Iterator[str]:
    for tick in range(TICKS + 1):
        value = frame.bottom + (frame.top - frame.bottom) * tick / TICKS
        y = frame.y(value)
        yield f'<line class="grid" x1="{LEFT}" x2="{frame.width - 6}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{shown(value, unit)}</text>'
    for tick in range(1, TICKS):
        at = frame.begin + (frame.end - frame.begin) * tick / TICKS
        words = time.strftime("%H:%M:%S", time.gmtime(at))
        yield f'<text x="{frame.x(at):.1f}" y="{frame.height - 4:.1f}" text-anchor="middle">{words}</text>'


def _svg(size: Size, parts: Iterable[str]) -> str:
    return f'<svg width="{size[0]:.0f}" height="{size[1]:.0f}">{"".join(parts)}</svg>'


def _legend(names: Iterable[tuple[str, str]]) -> str:
    made, length = [], 0
    for name, colour in names:
        length += len(name) + 4
        if length > LEGEND_CHARACTERS:
            made.append("<span>…</span>")
            break
        made.append(f'<span><i style="background:{colour}"></i>{html.escape(name)}</span>')
    return f'<div class="legend">{"".join(made)}</div>'


def _stacked(found: list[Series]) -> list[Series]:
    """Each series on top of those before it; at a time when one says nothing it adds nothing."""
    below: dict[float, float] = {}
    made = []
    for series in found:
        points = []
        for at, value in series.points:
            below[at] = below.get(at, 0.0) + value
            points.append((at, below[at]))
        made.append(series._replace(points=points))
    return made


def _lines(panel: Json, found: list[Series], size: Size, span: Span) -> str:
    defaults = panel["fieldConfig"]["defaults"]
    stacked = defaults["custom"]["stacking"]["mode"] == "normal"
    drawn = _stacked(found) if stacked else found
    values = [value for series in drawn for _, value in series.points]
    top = defaults.get("max") or max(values) * 1.08 or 1.0
    size = size[0], size[1] - 34
    frame = Frame(*size, *span, top, min(0.0, *values))
    parts = list(_axes(frame, defaults["unit"]))
    for step in defaults["thresholds"]["steps"][1:]:
        if step["value"] <= top:
            y = frame.y(step["value"])
            colour = COLOURS[step["color"]]
            parts.append(f'<line class="limit" stroke="{colour}" x1="{LEFT}" x2="{size[0] - 6}" y1="{y}" y2="{y}"/>')
    for series, colour in reversed(list(zip(drawn, itertools.cycle(PALETTE), strict=False))):
        if defaults["custom"]["drawStyle"] == "bars":
            parts += _columns(frame, series, colour)
            continue
        for run in _runs(series.points):
            parts.append(_area(frame, run, colour, 0.3 if stacked else 0.08))
    return _svg(size, parts) + _legend((s.name, c) for s, c in zip(found, itertools.cycle(PALETTE), strict=False))


def _runs(points: list[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """Points between which nothing is missing."""
    step = min((after[0] - at[0] for at, after in itertools.pairwise(points)), default=0.0)
    runs = [points[:1]]
    for before, point in itertools.pairwise(points):
        if point[0] - before[0] > step * 1.5:
            runs.append([])
        runs[-1].append(point)
    return runs


def _area(frame: Frame, points: list[tuple[float, float]], colour: str, opacity: float) -> str:
    dots = " ".join(f"{frame.x(at):.1f},{frame.y(value):.1f}" for at, value in points)
    first, last, ground = frame.x(points[0][0]), frame.x(points[-1][0]), frame.y(frame.bottom)
    below = f"{first:.1f},{ground:.1f} {dots} {last:.1f},{ground:.1f}"
    return (
        f'<polygon fill="{colour}" opacity="{opacity}" points="{below}"/><polyline stroke="{colour}" points="{dots}"/>'
    )


def _columns(frame: Frame, series: Series, colour: str) -> Iterator[str]:
    for at, value in series.points:
        y, ground = frame.y(value), frame.y(frame.bottom)
        yield f'<rect x="{frame.x(at):.1f}" y="{y:.1f}" width="60" height="{ground - y:.1f}" fill="{colour}"/>'


def _bars(panel: Json, found: list[Series]) -> str:
    defaults = panel["fieldConfig"]["defaults"]
    top = defaults.get("max") or max(series.points[-1][1] for series in found) or 1
    made = []
    for series in found[:8]:
        value = series.points[-1][1]
        share = max(0.0, min(1.0, value / top)) * 100
        style = f"width:{share:.1f}%;background:{_colour(panel, value)}"
        made.append(
            f'<div class="bar"><span>{html.escape(series.name)}</span><b><i style="{style}"></i></b>'
            f"<em>{shown(value, defaults['unit'])}</em></div>"
        )
    return "".join(made)


def _states(found: list[Series], size: Size, span: Span) -> str:
    tall = min(30.0, (size[1] - BOTTOM) / len(found))
    frame = Frame(*size, *span, 1)
    narrower = (size[0] - NAMES) / (size[0] - LEFT)
    parts = []
    for place, series in enumerate(found):
        y = place * tall
        parts.append(f'<text x="4" y="{y + tall * 0.65:.1f}">{html.escape(series.name)}</text>')
        ends = [at for at, _ in series.points[1:]] + [span[1]]
        for (at, value), until in zip(series.points, ends, strict=True):
            x, colour = NAMES + (frame.x(at) - LEFT) * narrower, COLOURS["green" if value >= 1 else "red"]
            wide = (frame.x(until) - frame.x(at)) * narrower + 0.5
            parts.append(
                f'<rect x="{x:.1f}" y="{y + 2:.1f}" width="{wide:.1f}" height="{tall - 4:.1f}" fill="{colour}"/>'
            )
    return _svg(size, parts)


def _heat(found: list[Series], unit: str, size: Size, span: Span) -> str:
    bands = sorted(found, key=lambda series: float(series.labels["le"]))
    cells: dict[tuple[float, int], float] = {}
    below: dict[float, float] = {}
    for place, band in enumerate(bands):
        for at, value in band.points:
            cells[at, place] = max(0.0, value - below.get(at, 0.0))
            below[at] = value
    times = sorted({at for at, _ in cells})
    most = max(cells.values()) or 1
    frame = Frame(*size, *span, len(bands))
    parts = []
    for place, band in enumerate(bands):
        words = "more" if band.labels["le"] == "+Inf" else shown(float(band.labels["le"]), unit)
        parts.append(f'<text x="{LEFT - 6}" y="{frame.y(place + 0.3):.1f}" text-anchor="end">{words}</text>')
    wide = (size[0] - LEFT) / len(times)
    tall = frame.y(0) - frame.y(1)
    for (at, place), count in cells.items():
        if count:
            parts.append(
                f'<rect x="{frame.x(at) - wide:.1f}" y="{frame.y(place + 1):.1f}" width="{wide:.1f}" '
                f'height="{tall - 1:.1f}" fill="#5794f2" opacity="{0.15 + 0.85 * count / most:.2f}"/>'
            )
    return _svg(size, parts)


def _merged(found: list[Series], *, several: bool) -> list[dict[str, Any]]:
    """One row for each set of labels that the queries share."""
    rows: dict[tuple[tuple[str, str], ...], dict[str, Any]] = {}
    for series in found:
        shared = dict(series.labels)
        key = tuple(sorted(shared.items()))
        if several:
            key = tuple(item for item in key if item[0] in set.intersection(*(set(s.labels) for s in found)))
        row = rows.setdefault(key, {})
        row |= {**shared, f"Value #{series.letter}" if several else "Value": series.points[-1][1]}
    return list(rows.values())


def _table(panel: Json, rows: list[dict[str, Any]]) -> str:
    titles = panel["transformations"][-1]["options"]["renameByName"]
    overrides = panel["fieldConfig"]["overrides"]
    units = {one["matcher"]["options"]: one["properties"][0]["value"] for one in overrides}
    if not rows:
        return '<p class="none">No data</p>'
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles.values())
    body = "".join(
        "<tr>"
        + "".join(f"<td>{html.escape(_cell(row.get(name), units[title]))}</td>" for name, title in titles.items())
        + "</tr>"
        for row in rows[:40]
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _cell(value: object, unit: str) -> str:
    return f"{round(value):,}" if unit == "short" and isinstance(value, (int, float, Decimal)) else shown(value, unit)
