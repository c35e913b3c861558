"""
JSON schemas as Anthropic takes them. Tools take nearly any; the schema of an answer must close every object, and knows
no bounds: those are told to the model in the description instead.
"""

from __future__ import annotations

from typing import Any

import msgspec

from proxy.providers import Json
from proxy.providers.anthropic.content import Note

BOUNDS = frozenset(
    {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "maxItems",
     "uniqueItems", "minProperties", "maxProperties"}
)  # fmt: skip
"""Keywords refused in the schema of an answer."""

_NAMED = ("properties", "$defs", "definitions")
_LISTED = ("anyOf", "oneOf", "allOf")


def tool_schema(parameters: Any) -> Json:
    """A tool without parameters still has a schema, and every schema is an object's."""
    if not parameters:
        return {"type": "object"}
    return parameters if parameters.get("type") else {"type": "object", **parameters}


def answer_schema(schema: Json, note: Note) -> Json:
    """The schema of an answer in Anthropic's subset."""
    closed: Json = _closed(schema, note)
    return closed


def _closed(schema: Any, note: Note) -> Any:
    if not isinstance(schema, dict):
        return schema
    closed: Json = {}
    bounds: Json = {}
    for name, value in schema.items():
        if name in BOUNDS or (name == "minItems" and value not in (0, 1)):
            bounds[name] = value
        elif name in _NAMED and isinstance(value, dict):
            closed[name] = {key: _closed(inner, note) for key, inner in value.items()}
        elif name in _LISTED and isinstance(value, list):
            closed[name] = [_closed(inner, note) for inner in value]
        elif name == "items":
            closed[name] = _closed(value, note)
        else:
            closed[name] = value
    if bounds:
        told = msgspec.json.encode(bounds).decode()
        closed["description"] = f"{closed['description']} {told}" if closed.get("description") else told
        note("response_format", "Anthropic's schemas know no bounds; the model was told them in the descriptions.")
    if closed.get("type") == "object" and "properties" in closed:
        closed.setdefault("additionalProperties", False)
    return closed
