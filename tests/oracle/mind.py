"""
What the oracle says when its script is `clever`: what the request asks for, as far as a test of a client needs it. It
calls the tool that is forced, or named in the prompt, with arguments out of the prompt; it fills in a schema; and it
has had enough of tools once one has answered. Pure.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

Json = dict[str, Any]

_QUOTED = re.compile(r"['\"]([^'\"]{1,80})['\"]")
_NUMBER = re.compile(r"-?\d+")


class Asked(NamedTuple):
    """A request as every API means it."""

    tools: list[tuple[str, Json]]
    choice: str
    """auto, none, any, or a tool's name."""
    schema: Json | None
    """Of the answer; an empty one asks for JSON with whatever members the prompt names."""
    answered: bool
    """The last word is a tool's."""


class Thought(NamedTuple):
    tool: str
    arguments: Json
    text: str | None = None
    """None: there is nothing in particular to say."""


def think(asked: Asked, prompt: str) -> Thought | Json | None:
    """A tool to call, or the value that fits the schema; None: plain words will do."""
    schemas = dict(asked.tools)
    if schemas and asked.choice != "none" and (asked.choice != "auto" or not asked.answered):
        named = [name for name in schemas if name in prompt]
        tool = asked.choice if asked.choice in schemas else (named or list(schemas))[0]
        return Thought(tool, _Filler(schemas[tool], prompt).fill(schemas[tool]))
    if asked.schema == {}:
        return dict.fromkeys(_QUOTED.findall(prompt), "granite")
    return _Filler(asked.schema, prompt).fill(asked.schema) if asked.schema else None


class _Filler:
    """Required members and optional ones alike; quotations and numbers of the prompt in their order."""

    def __init__(self, root: Json, prompt: str) -> None:
        self.root = root
        self.quoted = _QUOTED.findall(prompt)
        self.numbers = [int(found) for found in _NUMBER.findall(prompt)]

    def fill(self, schema: Json) -> Any:
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            return self.fill({**self.root.get("$defs", {}), **self.root.get("definitions", {})}[name])
        for several in ("anyOf", "oneOf", "allOf"):
            if several in schema:
                return self.fill(schema[several][0])
        if "enum" in schema:
            return schema["enum"][0]
        if "const" in schema:
            return schema["const"]
        match schema.get("type", "object"):
            case "object":
                return {name: self.fill(inner) for name, inner in schema.get("properties", {}).items()}
            case "array":
                return [self.fill(schema.get("items", {"type": "string"}))]
            case "integer" | "number":
                return self.numbers.pop(0) if self.numbers else 7
            case "boolean":
                return True
            case "null":
                return None
        return self.quoted.pop(0) if self.quoted else "granite"


def from_openai(body: Json) -> Asked:
    choice = body.get("tool_choice") or "auto"
    if isinstance(choice, dict):
        choice = choice["function"]["name"]
    tools = [tool["function"] for tool in body.get("tools") or [] if "function" in tool]
    form = body.get("response_format") or {}
    return Asked(
        [(tool["name"], tool.get("parameters") or {}) for tool in tools],
        "any" if choice == "required" else choice,
        form.get("json_schema", {}).get("schema") or ({} if form.get("type") == "json_object" else None),
        body["messages"][-1]["role"] == "tool",
    )


def from_anthropic(body: Json) -> Asked:
    choice = body.get("tool_choice") or {"type": "auto"}
    last = body["messages"][-1]["content"]
    told: Json | None = {} if "JSON object" in str(body.get("system")) else None
    return Asked(
        [(tool["name"], tool.get("input_schema", {})) for tool in body.get("tools") or []],
        choice["name"] if choice["type"] == "tool" else choice["type"],
        body.get("output_config", {}).get("format", {}).get("schema", told),
        isinstance(last, list) and any(block["type"] == "tool_result" for block in last),
    )
