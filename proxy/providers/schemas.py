"""
JSON schemas in the subset that models are held to while they answer, which APIs share: every object is closed, and
there are no bounds; those are told to the model in the description instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from proxy.providers import Json

BOUNDS = frozenset(
    {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "maxItems",
     "uniqueItems", "minProperties", "maxProperties"}
)  # fmt: skip
"""
Keywords that are refused: https://docs.aws.amazon.com/bedrock/latest/userguide/structured-output.html,
https://platform.claude.com/docs/en/build-with-claude/structured-outputs
"""

_NAMED = ("properties", "$defs", "definitions")
_LISTED = ("anyOf", "oneOf", "allOf")


def described(form: Json) -> Json:
    """The schema of a `json_schema` with what the form says of itself, for APIs that take a schema alone."""
    schema: Json = form["schema"]
    told = form.get("description")
    return {"description": told, **schema} if told and "description" not in schema else schema


def closed(schema: Any, told: Callable[[], None]) -> Any:
    """The schema in that subset. `told` is called where bounds were moved into a description."""
    if not isinstance(schema, dict):
        return schema
    kept: Json = {}
    bounds: Json = {}
    for name, value in schema.items():
        if name in BOUNDS or (name == "minItems" and value not in (0, 1)):
            bounds[name] = value
        elif name in _NAMED and isinstance(value, dict):
            kept[name] = {key: closed(inner, told) for key, inner in value.items()}
        elif name in _LISTED and isinstance(value, list):
            kept[name] = [closed(inner, told) for inner in value]
        elif name == "items":
            kept[name] = closed(value, told)
        else:
            kept[name] = value
    if bounds:
        words = msgspec.json.encode(bounds).decode()
        kept["description"] = f"{kept['description']} {words}" if kept.get("description") else words
        told()
    if kept.get("type") == "object" and "properties" in kept:
        kept.setdefault("additionalProperties", False)
    return kept
