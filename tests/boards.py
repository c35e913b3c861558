"""What tests ask of the dashboards: their panels and queries, as they stand in the JSON that Grafana reads."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from grafana.build import BOARDS, FOLDER
from grafana.preview.asking import filled, panels_of

__all__ = ["FILES", "Query", "filled", "panels_of", "queries", "read", "variables_in"]

FILES = {name: FOLDER / f"{name}.json" for name in BOARDS}


class Query(NamedTuple):
    board: str
    panel: str
    text: str
    instant: bool
    ledger: bool


def read(name: str) -> dict[str, Any]:
    board: dict[str, Any] = json.loads(FILES[name].read_text(encoding="utf-8"))
    return board


def queries() -> Iterator[Query]:
    """Those of every panel, and of annotations."""
    for name in FILES:
        board = read(name)
        for panel in panels_of(board):
            for target in panel["targets"]:
                ledger = "rawSql" in target
                text = target["rawSql" if ledger else "expr"]
                yield Query(name, panel["title"], text, target.get("instant", False), ledger)
        for annotation in board["annotations"]["list"]:
            yield Query(name, annotation["name"], annotation["expr"], False, False)


def variables_in(text: str) -> set[str]:
    """The names of variables that a text uses; those that Grafana brings begin with two underscores."""
    return {
        name
        for match in re.finditer(r"\$(?:\{(\w+)(?:[.:\[][^}]*)?\}|([A-Za-z_]\w*))", text)
        if not (name := match[1] or match[2]).startswith("__")
    }
