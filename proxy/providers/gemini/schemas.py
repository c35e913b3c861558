"""
JSON schemas as Gemini takes them. Current models take JSON Schema itself, but a `$ref` must stand alone, so references
are put in place; what refers to itself stays a reference. Older ones take the subset of OpenAPI's schemas that
https://ai.google.dev/api/caching#Schema lists, and refuse a request with anything else in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from proxy.providers import Json

Lost = Callable[[str], None]
"""Takes a keyword that the subset does not have."""

KEPT = frozenset(
    {"title", "description", "maxItems", "minItems", "minProperties", "maxProperties", "minLength", "maxLength",
     "pattern", "example", "propertyOrdering", "default", "minimum", "maximum", "required", "nullable"}
)  # fmt: skip
"""Keywords of the subset whose value stays as it is."""
FORMATS = {"string": ("enum", "date-time"), "number": ("float", "double"), "integer": ("int32", "int64")}
GROUPS = ("$defs", "definitions")
MAX_NODES = 20_000
MAX_DEPTH = 128
SILENT = frozenset({"$schema", "$id", "$defs", "definitions", "$comment", "additionalProperties", "strict"})
"""What may go without a word: none of it changes what the model is to write."""


def is_googles(schema: Json) -> bool:
    """Whether it is in OpenAPI's words already: a client that came from Google's own SDK."""
    kind = schema.get("type")
    return isinstance(kind, int) or (isinstance(kind, str) and kind.isupper())


def inlined(schema: Json) -> Json:
    """
    The schema with its local references put in place, but for those that lead back to themselves. One that would grow
    out of all proportion stays as it is.
    """
    definitions = {
        f"#/{group}/{name}": definition
        for group in GROUPS
        if isinstance(schema.get(group), dict)
        for name, definition in schema[group].items()
        if isinstance(definition, dict)
    }
    if not definitions:
        return schema
    try:
        whole: Json = _Inlining(definitions).put(schema, (), 0)
    except _Grown:
        return schema
    if not _references(whole):
        return {name: value for name, value in whole.items() if name not in GROUPS}
    # what refers to itself is still looked up in the definitions; so they stay, in their own words
    alone: Json = _alone(whole | {group: schema[group] for group in GROUPS if group in schema})
    return alone


class _Grown(Exception):
    """References to references multiply: a few lines can stand for millions."""


class _Inlining:
    def __init__(self, definitions: Mapping[str, Json]) -> None:
        self._definitions = definitions
        self._left = MAX_NODES

    def put(self, node: Any, inside: tuple[str, ...], depth: int) -> Any:
        """The node with what it refers to in place. `inside`: the references that led here."""
        self._left -= 1
        if self._left < 0 or depth > MAX_DEPTH:
            raise _Grown
        if isinstance(node, list):
            return [self.put(item, inside, depth + 1) for item in node]
        if not isinstance(node, dict):
            return node
        target = node.get("$ref")
        if isinstance(target, str) and target in self._definitions:
            if target in inside:
                return {"$ref": target}
            beside = {name: value for name, value in node.items() if name != "$ref"}
            return self.put({**self._definitions[target], **beside}, (*inside, target), depth + 1)
        return {name: value if name in GROUPS else self.put(value, inside, depth + 1) for name, value in node.items()}


def _alone(node: Any) -> Any:
    """The node with nothing beside its references, or Google refuses it: https://ai.google.dev/api/generate-content."""
    if isinstance(node, list):
        return [_alone(item) for item in node]
    if not isinstance(node, dict):
        return node
    refers = isinstance(node.get("$ref"), str)
    return {name: _alone(value) for name, value in node.items() if not refers or name[:1] == "$"}


def _references(node: Any) -> bool:
    if isinstance(node, list):
        return any(_references(item) for item in node)
    if not isinstance(node, dict):
        return False
    return "$ref" in node or any(_references(value) for name, value in node.items() if name not in GROUPS)


def subset(schema: Any, lost: Lost) -> Json:
    """A schema without references in OpenAPI's words. Says each keyword that has no counterpart."""
    return _completed(_subset(schema, lost), lost)


def _subset(schema: Any, lost: Lost) -> Json:
    if not isinstance(schema, dict):
        return {}
    cut: Json = {}
    for name, value in schema.items():
        match name:
            case "type":
                _put_type(cut, value, lost)
            case "properties" if isinstance(value, dict):
                cut[name] = {key: subset(inner, lost) for key, inner in value.items()}
            case "items" if isinstance(value, dict):
                cut[name] = subset(value, lost)
            case "anyOf" | "oneOf" if isinstance(value, list):
                _put_choices(cut, value, lost)
            case "allOf" if isinstance(value, list) and len(value) == 1:
                cut |= _subset(value[0], lost)
            case "enum" | "const":
                _put_values(cut, value if name == "enum" else [value], schema.get("type"), lost)
            case "format":
                if value in FORMATS.get(str(schema.get("type")).lower(), ()):
                    cut[name] = value
                else:
                    lost(name)
            case "$ref":
                cut["type"] = "OBJECT"
                lost(name)
            case _ if name in KEPT:
                cut[name] = value
            case _ if name not in SILENT or (name == "additionalProperties" and isinstance(value, dict)):
                lost(name)
    return cut


def _completed(cut: Json, lost: Lost) -> Json:
    """With what Google wants to be told, where JSON Schema leaves it open. Anything at all is asked for as text."""
    if "type" not in cut and "anyOf" not in cut:
        cut["type"] = "OBJECT" if "properties" in cut else "ARRAY" if "items" in cut else "STRING"
        if cut["type"] == "STRING" and "nullable" not in cut:
            lost("values of any type")
    if cut.get("type") == "ARRAY" and "items" not in cut:
        cut["items"] = subset({}, lost)
    required = cut.pop("required", None)
    properties = cut.get("properties", {})
    described = [name for name in properties if name in required] if isinstance(required, list) else []
    if described:
        cut["required"] = described
    return cut


def _put_type(cut: Json, value: Any, lost: Lost) -> None:
    listed = value if isinstance(value, list) else [value]
    kinds = [kind for kind in listed if isinstance(kind, str)]
    if "null" in kinds and len(kinds) > 1:
        cut["nullable"] = True
        kinds.remove("null")
    if len(kinds) > 1:
        cut["anyOf"] = [_completed({"type": kind.upper()}, lost) for kind in kinds]
    elif kinds:
        cut["type"] = kinds[0].upper()
    else:
        lost("type")


def _put_choices(cut: Json, choices: list[Any], lost: Lost) -> None:
    kept = [choice for choice in choices if choice != {"type": "null"}]
    if len(kept) < len(choices):
        cut["nullable"] = True
    if len(kept) == 1:
        cut |= _subset(kept[0], lost)
    else:
        cut["anyOf"] = [subset(choice, lost) for choice in kept]


def _put_values(cut: Json, values: Any, kind: Any, lost: Lost) -> None:
    """Only text can be listed, and none that is empty; null is `nullable`."""
    listed = values if isinstance(values, list) else []
    texts = [value for value in listed if isinstance(value, str) and value]
    if None in listed:
        cut["nullable"] = True
    kinds = kind if isinstance(kind, list) else [kind]
    only_text = all(str(one).lower() in ("none", "string", "null") for one in kinds)
    if texts and len(texts) == sum(value is not None for value in listed) and only_text:
        cut["type"], cut["enum"] = "STRING", texts
    else:
        lost("enum")
