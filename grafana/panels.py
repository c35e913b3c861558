"""
What a dashboard is made of, as data: a board has rows, a row has panels, a panel asks queries. And the JSON of each.

Grafana's "classic" JSON, since old and new versions load it; 11 and later know the ledger's data source by this name.
In a query `$S` stands for the scope (the job and the instances chosen), `$SM` for that and the models, `$SP` the
providers, `$SMP` both; `$W` is the window of a rate. In SQL `$CHOSEN` is the range of time, the models, the providers.
"""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple

Json = dict[str, Any]

PROMETHEUS: Json = {"type": "prometheus", "uid": "${datasource}"}
LEDGER: Json = {"type": "grafana-postgresql-datasource", "uid": "${ledger}"}
CONSOLE = "${console}/console"
TIME = "from=${__from}&to=${__to}"

_SCOPE = 'job=~"$job",instance=~"$instance"'
_MODEL, _PROVIDER = 'model=~"$model"', 'provider=~"$provider"'
SHORTHANDS = {
    "S": _SCOPE,
    "SM": f"{_SCOPE},{_MODEL}",
    "SP": f"{_SCOPE},{_PROVIDER}",
    "SMP": f"{_SCOPE},{_MODEL},{_PROVIDER}",
    "W": "$interval",
    "CHOSEN": "$__timeFilter(bucket) AND model ~ '^${model:regex}$' AND provider ~ '^${provider:regex}$'",
}


class Ask(NamedTuple):
    """One query. `legend` names its series, as in `{{model}}`."""

    query: str
    legend: str = ""


class Column(NamedTuple):
    """One column of a table: the field it comes from, its title, its unit, and where a click on a cell leads."""

    field: str
    title: str
    unit: str = "short"
    link: str = ""


class Panel(NamedTuple):
    """`says` is the description: what one sees, and what to do about it. `steps` are (from this value on, colour)."""

    kind: Literal["stat", "timeseries", "bargauge", "table", "state-timeline", "heatmap"]
    title: str
    says: str
    unit: str
    asks: tuple[Ask, ...]
    width: int
    height: int
    steps: tuple[tuple[float | None, str], ...] = ()
    columns: tuple[Column, ...] = ()
    stacked: bool = False
    instant: bool = False
    source: Literal["prometheus", "ledger"] = "prometheus"
    top: float | None = None
    """The upper end of the axis, where there is one."""
    runbook: str = ""
    """The alert whose section in docs/runbooks.md says what to do."""
    link: str = ""
    """Where a click on a series leads."""


class Row(NamedTuple):
    title: str
    panels: tuple[Panel, ...]
    collapsed: bool = False


class Board(NamedTuple):
    uid: str
    title: str
    says: str
    rows: tuple[Row, ...]
    variables: tuple[str, ...] = ()
    """Beyond those that every board has."""


Steps = tuple[tuple[float | None, str], ...]

_PLAIN: tuple[Steps, Steps] = ((None, "text"),), ((None, "blue"),)
BAD_ABOVE_ZERO: Steps = ((None, "green"), (0.000001, "red"))
ODD_ABOVE_ZERO: Steps = ((None, "green"), (0.000001, "orange"))


def good_above(orange: float, green: float) -> Steps:
    return ((None, "red"), (orange, "orange"), (green, "green"))


def bad_above(orange: float, red: float) -> Steps:
    return ((None, "green"), (orange, "orange"), (red, "red"))


def _asks(queries: tuple[str | Ask, ...]) -> tuple[Ask, ...]:
    return tuple(query if isinstance(query, Ask) else Ask(query) for query in queries)


def stat(
    title: str, says: str, unit: str, query: str, *, steps: Steps = (), width: int = 4, height: int = 4, **more: Any
) -> Panel:
    """One number, of the whole range of time unless the query says otherwise."""
    return Panel("stat", title, says, unit, (Ask(query),), width, height, steps=steps, instant=True, **more)


def lines(title: str, says: str, unit: str, *queries: str | Ask, width: int = 12, **more: Any) -> Panel:
    """Values over time."""
    return Panel("timeseries", title, says, unit, _asks(queries), width, 8, **more)


def bars(title: str, says: str, unit: str, query: Ask, *, width: int = 12, **more: Any) -> Panel:
    """One bar for each series, now."""
    return Panel("bargauge", title, says, unit, (query,), width, 8, instant=True, **more)


def table(
    title: str, says: str, *queries: str, columns: tuple[Column, ...], width: int = 12, height: int = 8, **more: Any
) -> Panel:
    """Several queries become several columns of the same rows: `Value #A`, `Value #B`."""
    return Panel("table", title, says, "short", _asks(queries), width, height, columns=columns, instant=True, **more)


def states(title: str, says: str, query: Ask, *, width: int = 12, **more: Any) -> Panel:
    """1 is up and 0 is down, over time."""
    steps = ((None, "red"), (1, "green"))
    return Panel("state-timeline", title, says, "short", (query,), width, 8, steps=steps, **more)


def heat(title: str, says: str, unit: str, query: str, *, width: int = 12, **more: Any) -> Panel:
    """A histogram over time; the query is by `le`."""
    return Panel("heatmap", title, says, unit, (Ask(query, "{{le}}"),), width, 8, **more)


def logs_link(**filters: str) -> str:
    """The console's log of requests with these filters, in the time that the board shows."""
    return f"{CONSOLE}/logs?" + "".join(f"{name}={value}&" for name, value in filters.items()) + TIME


def full(query: str) -> str:
    """The query as Grafana gets it."""
    return re.sub(r"\$(SMP|SM|SP|S|W|CHOSEN)\b", lambda match: SHORTHANDS[match[1]], " ".join(query.split()))


def panel_json(panel: Panel, number: int, x: int, y: int) -> Json:
    source = PROMETHEUS if panel.source == "prometheus" else LEDGER
    made: Json = {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": _description(panel),
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        "datasource": source,
        "targets": [_target(panel, ask, chr(ord("A") + place)) for place, ask in enumerate(panel.asks)],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": _overrides(panel)},
        "options": _options(panel),
    }
    if panel.runbook:
        made["links"] = [_link("Runbook", f"${{docs}}/{_anchor(panel.runbook)}")]
    if panel.kind == "table":
        made["transformations"] = _transformations(panel)
    return made


def _description(panel: Panel) -> str:
    if not panel.runbook:
        return panel.says
    return f"{panel.says} What to do: docs/{_anchor(panel.runbook)}"


def _anchor(runbook: str) -> str:
    return f"runbooks.md#{runbook.lower()}"


def _link(title: str, url: str) -> Json:
    return {"title": title, "url": url, "targetBlank": True}


def _target(panel: Panel, ask: Ask, letter: str) -> Json:
    if panel.source == "ledger":
        return {
            "refId": letter,
            "datasource": LEDGER,
            "rawQuery": True,
            "editorMode": "code",
            "format": "table" if panel.kind in ("table", "stat") else "time_series",
            "rawSql": full(ask.query),
        }
    return {
        "refId": letter,
        "datasource": PROMETHEUS,
        "editorMode": "code",
        "expr": full(ask.query),
        "legendFormat": ask.legend or "__auto",
        "format": {"table": "table", "heatmap": "heatmap"}.get(panel.kind, "time_series"),
        "instant": panel.instant,
        "range": not panel.instant,
        "exemplar": panel.unit == "s" and panel.kind == "timeseries",
    }


def _defaults(panel: Panel) -> Json:
    steps = [{"value": value, "color": colour} for value, colour in panel.steps or _PLAIN[panel.kind == "bargauge"]]
    made: Json = {
        "unit": panel.unit,
        "thresholds": {"mode": "absolute", "steps": steps},
        "color": {"mode": "thresholds" if panel.kind != "timeseries" else "palette-classic"},
        "custom": {},
    }
    if panel.kind == "stat" and panel.unit == "short":
        made["decimals"] = 0  # counts: what increase() makes up between two scrapes is no part of one
    if panel.unit not in ("dateTimeAsIso", "string"):
        made["min"] = 0
    if panel.top is not None:
        made["max"] = panel.top
    if panel.link:
        made["links"] = [_link("Requests in the console", panel.link)]
    if panel.kind == "timeseries":
        made["custom"] = {
            "drawStyle": "line" if panel.source == "prometheus" else "bars",
            "lineWidth": 1,
            "fillOpacity": 70 if panel.source == "ledger" else 25 if panel.stacked else 8,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "dashed" if panel.steps else "off"},
        }
    if panel.kind == "state-timeline":
        made["custom"] = {"fillOpacity": 80, "lineWidth": 0}
        up_and_down = {"0": {"text": "down", "color": "red"}, "1": {"text": "up", "color": "green"}}
        made["mappings"] = [{"type": "value", "options": up_and_down}]
    if panel.kind == "stat":
        made["noValue"] = "–"
    return made


def _overrides(panel: Panel) -> list[Json]:
    overrides = []
    for column in panel.columns:
        properties: list[Json] = [{"id": "unit", "value": column.unit}]
        if column.unit == "short":
            properties.append({"id": "decimals", "value": 0})
        if column.link:
            properties.append({"id": "links", "value": [_link("Requests in the console", column.link)]})
        overrides.append({"matcher": {"id": "byName", "options": column.title}, "properties": properties})
    return overrides


def _options(panel: Panel) -> Json:
    reduce: Json = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    match panel.kind:
        case "stat":
            return {"reduceOptions": reduce, "colorMode": "value", "graphMode": "none", "textMode": "value"}
        case "timeseries":
            return {
                "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }
        case "bargauge":
            return {"reduceOptions": reduce, "orientation": "horizontal", "displayMode": "basic"}
        case "table":
            return {"showHeader": True, "cellHeight": "sm"}
        case "state-timeline":
            return {"showValue": "never", "mergeValues": True, "rowHeight": 0.8, "legend": {"showLegend": False}}
        case "heatmap":
            return {
                "calculate": False,
                "yAxis": {"unit": panel.unit},
                "color": {"mode": "scheme", "scheme": "Blues", "steps": 32},
                "cellGap": 1,
                "tooltip": {"mode": "single", "yHistogram": False},
            }


def _transformations(panel: Panel) -> list[Json]:
    """Merges the queries, and shows the columns in their order under their titles; what is no column is hidden."""
    titles = {column.field: column.title for column in panel.columns}
    order = {field: place for place, field in enumerate(titles)}
    keep = {"id": "filterFieldsByName", "options": {"include": {"names": list(titles)}}}
    organize = {"id": "organize", "options": {"indexByName": order, "renameByName": titles, "excludeByName": {}}}
    if len(panel.asks) > 1:
        return [{"id": "merge", "options": {}}, keep, organize]
    return [keep, organize]
