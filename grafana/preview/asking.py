"""Asks a panel's queries of Prometheus, or of the ledger, and gives back what is to be drawn."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlencode
from urllib.request import urlopen

import asyncpg

from grafana.panels import Json

TIMEOUT_SECONDS = 30.0
POINTS = 180


class Series(NamedTuple):
    letter: str
    """Of the query it comes from."""
    name: str
    labels: Mapping[str, str]
    points: list[tuple[float, float]]
    """Unix time and value; of an instant query one."""


class Sources(NamedTuple):
    prometheus: str
    """As in `http://127.0.0.1:9090`."""
    ledger: str
    """A DSN that may SET ROLE strata_grafana; empty: panels of the ledger stay empty."""
    from_seconds: float
    to_seconds: float
    values: Mapping[str, str]
    """Of variables."""


def panels_of(board: Json) -> list[Json]:
    """All but the heads of rows, those of collapsed rows too."""
    found: list[Json] = []
    for panel in board["panels"]:
        found += panel["panels"] if panel["type"] == "row" else [panel]
    return found


def filled(text: str, values: Mapping[str, str]) -> str:
    """The text with its variables replaced, as Grafana would: `$name`, `${name}`, `${name:format}`."""
    pattern = re.compile(r"\$(?:\{(?P<braced>\w+)(?::\w+)?\}|(?P<plain>[A-Za-z_]\w*))")

    def value(match: re.Match[str]) -> str:
        return values.get(match["braced"] or match["plain"], match[0])

    return pattern.sub(value, text)


def ask(panel: Json, sources: Sources) -> list[Series]:
    """Of a panel that asks Prometheus. What is no number is left out."""
    found = []
    for target in panel["targets"]:
        query = filled(target["expr"], sources.values)
        if target["instant"]:
            answers = _api(sources, "query", query=query, time=f"{sources.to_seconds}")
        else:
            step = (sources.to_seconds - sources.from_seconds) / POINTS
            span = {"start": f"{sources.from_seconds}", "end": f"{sources.to_seconds}", "step": f"{step:.3f}"}
            answers = _api(sources, "query_range", query=query, **span)
        for answer in answers:
            points = [(float(at), float(text)) for at, text in answer.get("values") or [answer["value"]]]
            numbers = [(at, value) for at, value in points if math.isfinite(value)]
            if numbers:
                labels = answer["metric"]
                found.append(Series(target["refId"], _name(target["legendFormat"], labels), labels, numbers))
    return found


async def ask_ledger(panel: Json, sources: Sources) -> list[dict[str, Any]]:
    """Rows, by column name."""
    if not sources.ledger:
        return []
    sql = filled(panel["targets"][0]["rawSql"], sources.values)
    # From the beginning of the hour: the buckets of the ledger are hours.
    span = f"date_trunc('hour', to_timestamp({sources.from_seconds})) AND to_timestamp({sources.to_seconds})"
    sql = re.sub(r"\$__timeFilter\((\w+)\)", rf"\1 BETWEEN {span}", sql)
    connection = await asyncpg.connect(sources.ledger, timeout=TIMEOUT_SECONDS)
    try:
        await connection.execute("SET ROLE strata_grafana")
        return [dict(row) for row in await connection.fetch(sql, timeout=TIMEOUT_SECONDS)]
    finally:
        await connection.close(timeout=5)


def _name(legend: str, labels: Mapping[str, str]) -> str:
    if legend == "__auto":
        return ", ".join(f"{name}={value}" for name, value in labels.items()) or "value"
    return re.sub(r"{{(\w+)}}", lambda match: labels.get(match[1], ""), legend)


def _api(sources: Sources, path: str, **parameters: str) -> list[Json]:
    with urlopen(f"{sources.prometheus}/api/v1/{path}?{urlencode(parameters)}", timeout=TIMEOUT_SECONDS) as answer:
        found: list[Json] = json.load(answer)["data"]["result"]
        return found
