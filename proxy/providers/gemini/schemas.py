"""
JSON schemas as Gemini takes them. Current models take JSON Schema itself, but a `$ref` must stand alone, so references
are put in place; what refers to itself stays a reference. Older ones take the subset of OpenAPI's schemas that
https://ai.google.dev/api/caching#Schema lists, and refuse a request with anything else in it.
"""

from __future__ import annotations

from collections.abc import Callable
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
SILENT = frozenset({"$schema", "$id", "$defs", "definitions", "$comment", "additionalProperties", "strict"})
"""What may go without a word: none of it changes what the model is to write."""


def is_googles(schema: Json) -> bool:
    """Whether it is in OpenAPI's words already: a client that came from Google's own SDK."""
    kind = schema.get("type")
    return isinstance(kind, int) or (isinstance(kind, str) and kind.isupper())


def inlined(schema: Json) -> Json:
    """The schema with its local references put in place, but for those that lead back to themselves."""
    definitions = {
        f"#/{group}/{name}": found
        for group in ("$defs", "definitions")
        for name, found in (schema.get(group) or {}).items()
        if isinstance(schema.get(group), dict)
    }
    if not definitions:
        return schema
    whole: Json = _inlined(schema, definitions, ())
    kept = _references(whole)
    if not kept:
        return {name: value for name, value in whole.items() if name not in ("$defs", "definitions")}
    # what refers to itself is still looked up in the definitions; so they stay, in their own words
    return whole | {group: schema[group] for group in ("$defs", "definitions") if group in schema}


def _inlined(node: Any, definitions: Json, inside: tuple[str, ...]) -> Any:
    if isinstance(node, list):
        return [_inlined(item, definitions, inside) for item in node]
    if not isinstance(node, dict):
        return node
    target = node.get("$ref")
    if isinstance(target, str) and target in definitions:
        if target in inside:
            return {"$ref": target}
        beside = {name: value for name, value in node.items() if name != "$ref"}
        return _inlined({**definitions[target], **beside}, definitions, (*inside, target))
    return {
        name: value if name in ("$defs", "definitions") else _inlined(value, definitions, inside)
        for name, value in node.items()
    }


def _references(node: Any) -> bool:
    if isinstance(node, list):
        return any(_references(item) for item in node)
    if not isinstance(node, dict):
        return False
    return "$ref" in node or any(
        _references(value) for name, value in node.items() if name not in ("$defs", "definitions")
    )


def subset(schema: Any, lost: Lost) -> Json:
    """A schema without references in OpenAPI's words. Says each keyword that has no counterpart."""
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
                cut |= subset(value[0], lost)
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
            case _ if name not in SILENT:
                lost(name)
    return cut


def _put_type(cut: Json, value: Any, lost: Lost) -> None:
    kinds = [value] if isinstance(value, str) else [kind for kind in value or () if isinstance(kind, str)]
    if "null" in kinds and len(kinds) > 1:
        cut["nullable"] = True
        kinds.remove("null")
    if len(kinds) > 1:
        cut["anyOf"] = [{"type": kind.upper()} for kind in kinds]
    elif kinds:
        cut["type"] = kinds[0].upper()
    else:
        lost("type")


def _put_choices(cut: Json, choices: list[Any], lost: Lost) -> None:
    kept = [choice for choice in choices if choice != {"type": "null"}]
    if len(kept) < len(choices):
        cut["nullable"] = True
    if len(kept) == 1:
        cut |= subset(kept[0], lost)
    else:
        cut["anyOf"] = [subset(choice, lost) for choice in kept]


def _put_values(cut: Json, values: Any, kind: Any, lost: Lost) -> None:
    """Only text can be listed."""
    listed = values if isinstance(values, list) else []
    texts = [value for value in listed if isinstance(value, str)]
    if len(texts) == len(listed) and (kind is None or str(kind).lower() == "string"):
        cut["type"], cut["enum"] = "STRING", texts
    else:
        lost("enum")
