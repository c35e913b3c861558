"""
A map of the file, read by a table of its keys: each key has the field it fills and how its value is parsed. What is
wrong is reported with its path and place, and reading goes on, so that one run names everything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from proxy.config.problems import Mark, Report, Wrong, looks_like_key, shown, suggestion
from proxy.config.quantities import Parse
from proxy.config.yaml import Entry, MappingNode, Node, ScalarNode, is_null


class Key(NamedTuple):
    """Which field of the struct a key fills, and how."""

    field: str
    parse: Parse


Keys = Mapping[str, Key]


def read_map(node: Node | None, path: str, keys: Keys, report: Report, besides: tuple[str, ...] = ()) -> dict[str, Any]:
    """
    The fields that the map sets; what is null or wrong is left out. `besides` are keys that somebody else reads.
    """
    fields: dict[str, Any] = {}
    for name, entry in entries_of(node, path, report):
        key = keys.get(name)
        if key is None:
            if name not in besides:
                unknown_key(name, entry.key.at, path, [*keys, *besides], report)
            continue
        if is_null(entry.value):
            continue
        value = parsed(entry.value, f"{path}.{name}", key.parse, report)
        if value is not None:
            fields[key.field] = value
    return fields


def entries_of(node: Node | None, path: str, report: Report) -> Iterator[tuple[str, Entry]]:
    """The entries of what should be a map. Null counts as an empty one."""
    if node is None or is_null(node):
        return
    if not isinstance(node, MappingNode):
        report.error(node.at, f"{path} must be a map of key: value, not {node}.")
        return
    yield from node.entries.items()


def child(node: Node | None, name: str) -> Node | None:
    """The value under a key, or None if there is none or it is null."""
    if not isinstance(node, MappingNode) or name not in node.entries:
        return None
    value = node.entries[name].value
    return None if is_null(value) else value


def parsed(node: Node, path: str, parse: Parse, report: Report) -> Any:
    """The value, or None after reporting why there is none."""
    try:
        return parse(node)
    except Wrong as wrong:
        report.error(node.at, f"{path} {wrong}")
        return None


def unknown_key(name: str, at: Mark, path: str, known: list[str], report: Report) -> None:
    where = f" in {path}" if path else ""
    report.error(at, f"unknown key {shown(name)}{where}.{suggestion(name, known)}")


def flag_inline_secret(node: Node | None, path: str, variable: str, report: Report) -> None:
    """Warns of a key that is written in the file itself. The name of a file with one is none."""
    if not isinstance(node, ScalarNode) or node.origin or not (looks_like_key(node.text) or len(node.text) >= 20):
        return
    if node.text.endswith(".json"):
        return
    report.warning(node.at, f"{path}: this looks like a key; use ${{{variable}}}.")
