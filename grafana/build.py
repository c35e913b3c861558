"""
Writes the dashboards: `python -m grafana.build` turns the boards beside this file into `grafana/dashboards/*.json`.

Change a board here and build, never in Grafana: a test compares the files with what this would write.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from grafana import cost, internals, keys, overview, providers
from grafana.panels import CONSOLE, LEDGER, PROMETHEUS, Board, Json, Row, full, panel_json

FOLDER = Path(__file__).parent / "dashboards"
WIDTH = 24
SCHEMA_VERSION = 39
"""Newer versions of Grafana bring it up to date as they load it."""

BOARDS: dict[str, Board] = {
    "overview": overview.BOARD,
    "cost": cost.BOARD,
    "providers": providers.BOARD,
    "keys": keys.BOARD,
    "internals": internals.BOARD,
}

CONFIG_APPLIED = "changes(strata_config_last_reload_success_timestamp_seconds{$S}[1m]) > 0"
COOLDOWNS = "sum by (deployment, reason) (increase(strata_deployment_cooldowns_total{$S}[1m])) > 0"


def _chosen(name: str, label: str, query: str, says: str) -> Json:
    """A variable with the values of a label: any number of them, and at first all."""
    return {
        "type": "query",
        "name": name,
        "label": label,
        "description": says,
        "datasource": PROMETHEUS,
        "query": {"query": full(query), "refId": name},
        "definition": full(query),
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def _source(name: str, label: str, kind: str, says: str) -> Json:
    return {
        "type": "datasource",
        "name": name,
        "label": label,
        "description": says,
        "query": kind,
        "current": {},
        "refresh": 1,
    }


def _text(name: str, label: str, value: str, says: str) -> Json:
    current = {"text": value, "value": value}
    return {"type": "textbox", "name": name, "label": label, "description": says, "query": value, "current": current}


def _interval() -> Json:
    windows = ("1m", "5m", "15m", "1h", "6h", "1d")
    return {
        "type": "interval",
        "name": "interval",
        "label": "Averaged over",
        "description": "The window of every rate. By itself it follows the range of time, and is never under a minute.",
        "query": ",".join(windows),
        "auto": True,
        "auto_min": "1m",
        "auto_count": 100,
        "refresh": 2,
        "options": [
            {"text": "auto", "value": "$__auto_interval_interval", "selected": True},
            *({"text": window, "value": window, "selected": False} for window in windows),
        ],
        "current": {"text": "auto", "value": "$__auto_interval_interval"},
    }


VARIABLES: dict[str, Json] = {
    "datasource": _source("datasource", "Prometheus", "prometheus", "Where the metrics are."),
    "ledger": _source("ledger", "Ledger", LEDGER["type"], "Postgres, read as strata_grafana: exact amounts."),
    "job": _chosen("job", "Job", "label_values(strata_build_info, job)", "Prometheus' job that scrapes the gateway."),
    "instance": _chosen(
        "instance", "Instance", 'label_values(strata_build_info{job=~"$job"}, instance)', "Processes of the gateway."
    ),
    "provider": _chosen(
        "provider", "Provider", "label_values(strata_requests_total{$S}, provider)", "Who answers: as in the config."
    ),
    "model": _chosen(
        "model", "Model", "label_values(strata_requests_total{$S}, model)", "The names that clients send."
    ),
    "key": _chosen("key", "Key", "label_values(strata_key_requests_total{$S}, key)", "Virtual keys by name."),
    "interval": _interval(),
    "console": _text("console", "Console at", "http://127.0.0.1:4000", "The gateway as browsers reach it, for links."),
    "docs": _text("docs", "Docs at", "https://docs.example.com/strata", "Where people read docs/, for runbooks."),
}
EVERYWHERE = ("datasource", "job", "instance", "interval", "console", "docs")


def _annotation(name: str, colour: str, query: str, title: str) -> Json:
    return {
        "name": name,
        "datasource": PROMETHEUS,
        "enable": True,
        "iconColor": colour,
        "expr": full(query),
        "titleFormat": title,
        "step": "60s",
    }


def _row_json(row: Row, numbers: Iterator[int], y: int) -> tuple[list[Json], int]:
    """The row's head and its panels, from left to right, line by line; and where the next row begins."""
    head: Json = {"id": next(numbers), "type": "row", "title": row.title, "collapsed": row.collapsed, "panels": []}
    head["gridPos"] = {"x": 0, "y": y, "w": WIDTH, "h": 1}
    placed: list[Json] = []
    x, y, tallest = 0, y + 1, 0
    for panel in row.panels:
        if x + panel.width > WIDTH:
            x, y, tallest = 0, y + tallest, 0
        placed.append(panel_json(panel, next(numbers), x, y))
        x, tallest = x + panel.width, max(tallest, panel.height)
    if row.collapsed:
        head["panels"] = placed
        return [head], head["gridPos"]["y"] + 1
    return [head, *placed], y + tallest


def board_json(board: Board) -> Json:
    numbers = iter(range(1, 10_000))
    panels: list[Json] = []
    y = 0
    for row in board.rows:
        made, y = _row_json(row, numbers, y)
        panels += made
    names = {*EVERYWHERE, *board.variables}
    linked = {"type": "dashboards", "tags": ["strata"], "asDropdown": True, "includeVars": True, "keepTime": True}
    console = {"type": "link", "title": "Console", "url": CONSOLE, "icon": "external link", "targetBlank": True}
    runbooks = {"type": "link", "title": "Runbooks", "url": "${docs}/runbooks.md", "icon": "doc", "targetBlank": True}
    return {
        "uid": board.uid,
        "title": board.title,
        "description": board.says,
        "tags": ["strata"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": False,
        "graphTooltip": 1,
        "timezone": "browser",
        "time": {"from": "now-6h", "to": "now"},
        "refresh": "1m",
        "links": [{**linked, "title": "Strata"}, console, runbooks],
        "templating": {"list": [variable for name, variable in VARIABLES.items() if name in names]},
        "annotations": {
            "list": [
                _annotation("Configuration applied", "blue", CONFIG_APPLIED, "configuration applied"),
                _annotation("Deployment rests", "orange", COOLDOWNS, "{{deployment}} rests: {{reason}}"),
            ]
        },
        "panels": panels,
    }


def written(board: Board) -> str:
    """The file's text."""
    return json.dumps(board_json(board), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, board in BOARDS.items():
        (FOLDER / f"{name}.json").write_text(written(board), encoding="utf-8")
