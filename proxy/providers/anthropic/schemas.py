"""
JSON schemas as Anthropic takes them: for tools nearly any, for an answer the closed subset.
"""

from __future__ import annotations

from typing import Any

from proxy.providers import Json
from proxy.providers.anthropic.content import Note
from proxy.providers.schemas import closed


def tool_schema(parameters: Any) -> Json:
    """A tool without parameters still has a schema, and every schema is an object's."""
    if not parameters:
        return {"type": "object"}
    return parameters if parameters.get("type") else {"type": "object", **parameters}


def answer_schema(schema: Json, note: Note) -> Json:
    """The schema of an answer in Anthropic's subset."""
    message = "Anthropic's schemas know no bounds; the model was told them in the descriptions."
    found: Json = closed(schema, lambda: note("response_format", message))
    return found
