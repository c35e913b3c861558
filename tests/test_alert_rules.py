"""The rules for Prometheus: sound, about metrics that there are, tried out, and each with a section of its runbook."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxy.telemetry.families import FAMILIES
from tests.conftest import needs

ROOT = Path(__file__).parent.parent
RULES = ROOT / "grafana" / "rules.yaml"
TRIED = ROOT / "grafana" / "rules_test.yaml"
RUNBOOKS = ROOT / "docs" / "runbooks.md"
SELECTOR = re.compile(r"\b(strata_\w+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r"(\w+)(?:=~|!~|!=|=)")
GROUPING = re.compile(r"\bby \(([\w, ]+)\)")


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


@pytest.mark.needs("promtool")
@pytest.mark.parametrize("command", [("check", "rules", str(RULES)), ("test", "rules", str(TRIED))], ids=" ".join)
def test_prometheus_takes_the_rules_and_they_do_what_they_say(command: tuple[str, ...]) -> None:
    done = subprocess.run([needs("promtool"), *command], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_ask_only_for_metrics_and_labels_that_there_are() -> None:
    labels: dict[str, set[str]] = {}
    for family in FAMILIES:
        suffixes = ("_bucket", "_sum", "_count") if family.kind == "histogram" else ("",)
        for suffix in suffixes:
            own = (*family.labels, "le") if suffix == "_bucket" else family.labels
            labels[family.name + suffix] = {*own, "instance", "job"}
    for rule in rules():
        asked = SELECTOR.findall(rule["expr"])
        assert {name for name, _ in asked} <= labels.keys(), rule
        for name, matchers in asked:
            assert set(MATCHER.findall(matchers)) <= labels[name], rule
        grouped = {name.strip() for found in GROUPING.findall(rule["expr"]) for name in found.split(",")}
        assert grouped <= set().union(*(labels[name] for name, _ in asked)), rule


def test_each_alert_says_how_bad_it_is_and_what_to_do() -> None:
    sections = re.findall(r"^## (\w+)\n\n`(\w+)`\.", RUNBOOKS.read_text(), re.MULTILINE)
    assert sections == [(rule["alert"], rule["labels"]["severity"]) for rule in alerts()]
    for rule in alerts():
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["runbook"] == f"docs/runbooks.md#{rule['alert'].lower()}"
        assert rule["annotations"]["summary"].endswith(".")


def test_each_alert_has_been_set_off_once() -> None:
    cases = [case for test in yaml.safe_load(TRIED.read_text())["tests"] for case in test["alert_rule_test"]]
    set_off = {case["alertname"] for case in cases if case.get("exp_alerts")}
    assert set_off == {rule["alert"] for rule in alerts()}
