"""The dashboards: as they were built, complete, and about metrics that exist."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from grafana.build import BOARDS, FOLDER, written
from grafana.preview.units import shown
from proxy.telemetry.families import FAMILIES
from tests.boards import FILES, filled, panels_of, queries, read, variables_in
from tests.conftest import needs
from tests.gateway import ROOT

LABELS = {family.name: {*family.labels, "job", "instance"} for family in FAMILIES}
for histogram in [family for family in FAMILIES if family.kind == "histogram"]:
    for part in ("_bucket", "_sum", "_count"):
        LABELS[histogram.name + part] = LABELS[histogram.name] | {"le"}
OF_OTHERS = {"process_cpu_seconds_total", "process_resident_memory_bytes", "scrape_samples_scraped"}
"""What the standard client and Prometheus itself bring."""
VALUES = {
    "interval": "5m",
    "__range": "1h",
    "job": ".*",
    "instance": ".*",
    "model": ".*",
    "provider": ".*",
    "key": ".*",
}
NAME = re.compile(r"\b(?:strata|process|scrape)_\w+\b")
BRACES = re.compile(r"\b(strata_\w+)\{([^}]*)\}")
GROUPED = re.compile(r"\bby \(([^)]*)\)")

PROMQL = [query for query in queries() if not query.ledger]


def names_in(text: str) -> set[str]:
    return set(NAME.findall(re.sub(r'"[^"]*"', "", re.sub(r"\bby \([^)]*\)", "", text))))


def strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for child in children for text in strings(child)]


def test_the_files_are_what_the_boards_say() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(BOARDS)
    stale = [name for name, board in BOARDS.items() if FILES[name].read_text(encoding="utf-8") != written(board)]
    assert stale == [], "python -m grafana.build writes them anew"


def test_boards_and_panels_can_be_told_apart() -> None:
    boards = [read(name) for name in FILES]
    assert len({board["uid"] for board in boards}) == len({board["title"] for board in boards}) == len(FILES) == 5
    for board in boards:
        heads = [panel for panel in board["panels"] if panel["type"] == "row"]
        ids = [panel["id"] for panel in (*heads, *panels_of(board))]
        titles = [panel["title"] for panel in panels_of(board)]
        assert len(ids) == len(set(ids)) and len(titles) == len(set(titles)), board["title"]


@pytest.mark.parametrize("name", FILES)
def test_no_panel_covers_another(name: str) -> None:
    board = read(name)
    shown = board["panels"]
    folded = [panel["panels"] for panel in shown if panel["type"] == "row" and panel["panels"]]
    for together in (shown, *folded):
        taken: dict[tuple[int, int], str] = {}
        for panel in together:
            place = panel["gridPos"]
            assert place["x"] + place["w"] <= 24
            for cell in itertools.product(
                range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
            ):
                assert cell not in taken, f"{panel['title']} lies on {taken.get(cell)}"
                taken[cell] = panel["title"]


@pytest.mark.parametrize("name", FILES)
def test_every_panel_says_what_it_shows_in_which_unit_and_from_where(name: str) -> None:
    for panel in panels_of(read(name)):
        assert len(panel["description"]) > 20 and panel["description"].rstrip()[-1] != ",", panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"]["uid"] in ("${datasource}", "${ledger}"), panel["title"]
        assert panel["targets"] and all(target["datasource"] == panel["datasource"] for target in panel["targets"])
        letters = [target["refId"] for target in panel["targets"]]
        assert letters == sorted(set(letters))
        for override in panel["fieldConfig"]["overrides"]:
            assert any(one["id"] == "unit" and one["value"] for one in override["properties"]), panel["title"]


@pytest.mark.parametrize("name", FILES)
def test_variables_are_there_and_used(name: str) -> None:
    board = read(name)
    there = {variable["name"] for variable in board["templating"]["list"]}
    assert len(there) == len(board["templating"]["list"])
    assert all(len(variable["description"]) > 10 for variable in board["templating"]["list"])
    used = set().union(*(variables_in(text) for text in strings(board)))
    assert used == there


@pytest.mark.parametrize("name", FILES)
def test_boards_lead_to_the_console_to_runbooks_and_to_each_other(name: str) -> None:
    board = read(name)
    links = {link["title"]: link for link in board["links"]}
    assert links["Strata"]["tags"] == board["tags"] == ["strata"]
    assert links["Console"]["url"] == "${console}/console"
    assert [text for text in strings(board) if text.startswith("${docs}/runbooks.md#")]
    to_console = [text for text in strings(board) if text.startswith("${console}/console/")]
    assert all(text.startswith("${console}/console/logs?") and "${__from}" in text for text in to_console)


def test_every_runbook_is_led_to_and_there() -> None:
    text = (ROOT / "docs" / "runbooks.md").read_text(encoding="utf-8")
    headings = {heading.lower() for heading in re.findall(r"^## (\w+)$", text, re.MULTILINE)}
    ways = {way for name in FILES for one in strings(read(name)) for way in re.findall(r"runbooks\.md#(\w+)", one)}
    assert ways == headings


def test_boards_ask_only_for_metrics_and_labels_that_there_are() -> None:
    wrong = []
    for query in PROMQL:
        names = names_in(query.text)
        wrong += [f"{query.panel}: {name}" for name in names - LABELS.keys() - OF_OTHERS]
        for name, inside in BRACES.findall(query.text):
            labels = set(re.findall(r"(\w+)(?:=~|!~|!=|=)\"", inside))
            wrong += [f"{query.panel}: {name}{{{label}}}" for label in labels - LABELS.get(name, set())]
        known = set().union(*(LABELS.get(name, {"instance"}) for name in names)) | {"domain"}
        for inside in GROUPED.findall(query.text):
            wrong += [f"{query.panel}: by {label}" for label in set(inside.replace(" ", "").split(",")) - known]
    assert wrong == []


@pytest.mark.parametrize("name", FILES)
def test_the_names_of_series_are_of_labels_that_they_have(name: str) -> None:
    for panel in panels_of(read(name)):
        for target in panel["targets"]:
            text = target.get("expr", "")
            named = set(re.findall(r"{{(\w+)}}", target.get("legendFormat", "")))
            grouped = GROUPED.search(text)
            there = set(re.findall(r"\w+", grouped[1])) if grouped else {"instance"}
            assert named <= there, f"{panel['title']}: {named - there}"


def test_every_metric_is_on_a_board() -> None:
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for query in PROMQL for name in names_in(query.text)}
    assert [family.name for family in FAMILIES if family.name not in shown] == []


def test_a_counter_is_only_asked_how_much_it_grew() -> None:
    counters = {family.name for family in FAMILIES if family.kind == "counter"}
    counters |= {name for name in LABELS if name.endswith(("_bucket", "_sum", "_count"))}
    bare = []
    for query in PROMQL:
        if "dispatched_total" in query.text and "open_attempts" in query.text:
            continue  # a balance of totals, which is right at every moment
        for match in re.finditer(r"(\w+\()?\b(strata_\w+)\{[^}]*\}(\[)?", query.text):
            if match[2] in counters and (match[1] not in ("rate(", "increase(") or not match[3]):
                bare.append(f"{query.panel}: {match[2]}")
    assert bare == []


@pytest.mark.needs("promtool")
def test_every_query_is_promql(tmp_path: Path) -> None:
    rules = [{"record": f"query:{number}", "expr": filled(query.text, VALUES)} for number, query in enumerate(PROMQL)]
    file = tmp_path / "rules.yaml"
    file.write_text(json.dumps({"groups": [{"name": "boards", "rules": rules}]}))  # JSON is YAML
    done = subprocess.run(
        [needs("promtool"), "check", "rules", file], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout
    assert not [rule for rule in rules if "$" in re.sub(r'"[^"]*"', "", rule["expr"])]


@pytest.mark.parametrize(
    ("value", "unit", "words"),
    [
        (0.9991, "percentunit", "99.91 %"),
        (1_234.5, "currencyUSD", "$1.23 k"),
        (0.25, "s", "250 ms"),
        (90, "s", "1.5 min"),
        (0, "s", "0 s"),
        (36, "h", "1.5 d"),
        (450, "ms", "450 ms"),
        (3, "reqps", "3 req/s"),
        (2**20, "bytes", "1 MiB"),
        (None, "short", "–"),
        ("fast", "short", "fast"),
    ],
)
def test_a_preview_writes_numbers_as_people_do(value: object, unit: str, words: str) -> None:
    assert shown(value, unit) == words
