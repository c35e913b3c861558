"""The `keys` section: what a new key gets, and the keys that the file owns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from proxy.config import KeyDefaults, Keys, Model, StaticKey
from proxy.config.budgets import window
from proxy.config.problems import Report, Wrong, shown
from proxy.config.quantities import dollars, integer, secret, text, texts, whole_seconds
from proxy.config.reading import Key, child, flag_inline_secret, read_map
from proxy.config.reading import Keys as Table
from proxy.config.yaml import Node, SequenceNode

MIN_STATIC_KEY = 32
RATES: Table = {
    "rpm": Key("rpm", integer(1, 1_000_000_000)),
    "tpm": Key("tpm", integer(1, 1_000_000_000)),
    "max_parallel_requests": Key("max_parallel", integer(1, 1_000_000)),
}


def prefix(node: Node) -> str:
    value = text(node)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,30}[-_]", value):
        raise Wrong(f"must be letters and digits that end in - or _, like sk-strata-, not {node}.")
    return value


_LIMITS: Table = {
    "models": Key("models", texts),
    **RATES,
    "max_budget": Key("budget_nano_usd", dollars),
    "budget_duration": Key("budget_window", window),
}
_DEFAULTS: Table = {**_LIMITS, "expires": Key("expires_seconds", whole_seconds)}
_INHERITED = ("models", "rpm", "tpm", "max_parallel")
_STATIC: Table = {"name": Key("name", text), "key": Key("key", secret), **_LIMITS}


def read_keys(node: Node | None, models: Mapping[str, Model], report: Report) -> Keys:
    """Static keys get what `defaults` say, except where they say otherwise themselves."""
    fields = read_map(node, "keys", {"prefix": Key("prefix", prefix)}, report, besides=("defaults", "static"))
    defaults = _limits(child(node, "defaults"), "keys.defaults", _DEFAULTS, models, report)
    static: list[StaticKey] = []
    listed = child(node, "static")
    if listed is not None and not isinstance(listed, SequenceNode):
        report.error(listed.at, f"keys.static must be a list of {{name, key, …}}, not {listed}.")
    for place, item in enumerate(listed.items if isinstance(listed, SequenceNode) else []):
        key = _static(item, f"keys.static[{place}]", defaults, models, report)
        if key is None:
            continue
        if any(other.name == key.name or other.key == key.key for other in static):
            report.error(item.at, f"keys.static[{place}]: another key of this file has the same name or value.")
        static.append(key)
    return Keys(defaults=KeyDefaults(**defaults), static=tuple(static), **fields)


def _static(
    node: Node, path: str, defaults: Mapping[str, Any], models: Mapping[str, Model], report: Report
) -> StaticKey | None:
    fields = _limits(node, path, _STATIC, models, report)
    for name in ("name", "key"):
        if child(node, name) is None:
            report.error(node.at, f"{path} needs a {name}.")
    if "name" not in fields or "key" not in fields:
        return None
    value = child(node, "key")
    flag_inline_secret(value, f"{path}.key", f"{re.sub('[^A-Z0-9]', '_', fields['name'].upper())}_KEY", report)
    if value is not None and len(fields["key"].reveal()) < MIN_STATIC_KEY:
        report.warning(
            value.at, f"{path}.key is short and can be guessed: use {MIN_STATIC_KEY} random characters or more."
        )
    inherited = {name: value for name, value in defaults.items() if name in _INHERITED}
    if "budget_nano_usd" not in fields:
        inherited |= {name: value for name, value in defaults.items() if name.startswith("budget_")}
    return StaticKey(**{**inherited, **fields})


def _limits(node: Node | None, path: str, table: Table, models: Mapping[str, Model], report: Report) -> dict[str, Any]:
    fields = read_map(node, path, table, report)
    length = fields.pop("budget_window", None)
    if length is not None:
        fields |= {"budget_seconds": length.seconds, "budget_calendar": length.calendar}
    if node is not None and length is not None and child(node, "max_budget") is None:
        report.error(node.at, f"{path}.budget_duration says how often max_budget starts again; there is no max_budget.")
    listed = child(node, "models")
    for name in fields.get("models", ()):
        if listed is not None and not may_name(name, models):
            report.warning(listed.at, f"{path}.models: no model is called {shown(name)}.")
    return fields


def may_name(name: str, models: Mapping[str, Model]) -> bool:
    """Whether a key's list may hold this: a model, a pattern, or a name that a model's pattern covers."""
    if name in models or name == "*":
        return True
    if name.endswith("*"):
        stem = name[:-1]
        return any(known.startswith(stem) or (known.endswith("*") and stem.startswith(known[:-1])) for known in models)
    return any(known.endswith("*") and name.startswith(known[:-1]) for known in models)
