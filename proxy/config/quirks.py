"""`providers.NAME.quirks`: the words that `proxy.providers.quirks` and a few translators know, and what each takes."""

from __future__ import annotations

from typing import Any

from proxy.config.problems import Wrong
from proxy.config.quantities import boolean, json_map, text, text_map, texts
from proxy.config.reading import Key, Keys
from proxy.config.yaml import Node


def _words(node: Node) -> list[str]:
    return list(texts(node))


def _lists(node: Node) -> dict[str, list[Any]]:
    named = json_map(node)
    for name, values in named.items():
        if not isinstance(values, list):
            raise Wrong(f'must have a list under each name, and has none under "{name}".')
    return named


def _maps(node: Node) -> dict[str, dict[str, Any]]:
    named = json_map(node)
    for name, values in named.items():
        if not isinstance(values, dict):
            raise Wrong(f'must have a map of value: value there under each name, and has none under "{name}".')
    return named


_PARSERS = {
    "rename": text_map,
    "drop": _words,
    "set": json_map,
    "only": _lists,
    "values": _maps,
    "roles": text_map,
    "thoughts": text,
    "response_format": _words,
    "stream_options": boolean,
    "normalise": boolean,
    "forward": _words,
    "key_check": text,
    "s3": _words,
    "models": text_map,
}
QUIRKS: Keys = {name: Key(name, parse) for name, parse in _PARSERS.items()}
