"""
Answers in a form. From Claude 4.1 on the model is held to a schema (`output_config.format`); older ones are made to
call a tool whose input is the answer, and `answers` and `streams` show that input as the answer's text.

https://platform.claude.com/docs/en/build-with-claude/structured-outputs
"""

from __future__ import annotations

from typing import Any

import msgspec

from proxy.errors import CallerError
from proxy.providers import Json
from proxy.providers.anthropic.answers import ANSWER_TOOL
from proxy.providers.anthropic.messages import Conversation
from proxy.providers.anthropic.reasoning import Version
from proxy.providers.anthropic.schemas import answer_schema
from proxy.providers.schemas import described

FIRST_WITH_SCHEMAS: Version = (4, 1)

JSON_HINT = "Answer with one JSON object and nothing else: no prose around it, no code fence."
SCHEMA_HINT = "Answer with one JSON value and nothing else, without a code fence. It must fit this JSON schema: "


def encode_format(body: Json, chat: Json, version: Version | None, talk: Conversation) -> Json | None:
    """Says what the API has words for. Gives the schema that `force_answer` has to see to, if it has none."""
    wanted = chat.get("response_format") or {}
    match wanted.get("type", "text"):
        case "text":
            return None
        case "json_object":
            talk.system.append({"type": "text", "text": JSON_HINT})
            message = "Anthropic has no json_object; the model was told to answer in JSON."
            talk.notice("response_format", message, lost=False)
            return None
        case "json_schema":
            return _encode_schema(body, wanted.get("json_schema") or {}, version, talk)
        case kind:
            raise CallerError(
                f"response_format.type is {kind!r:.60}; it can be text, json_object or json_schema.",
                param="response_format.type",
            )


def _encode_schema(body: Json, wanted: Json, version: Version | None, talk: Conversation) -> Json | None:
    schema = wanted.get("schema")
    if not isinstance(schema, dict):
        raise CallerError("json_schema has no schema.", param="response_format.json_schema.schema")
    if version is None or version >= FIRST_WITH_SCHEMAS:
        native = answer_schema(described(wanted), talk.notice)
        body["output_config"] = {"format": {"type": "json_schema", "schema": native}}
        return None
    if schema.get("type", "object") != "object":
        talk.system.append({"type": "text", "text": SCHEMA_HINT + msgspec.json.encode(described(wanted)).decode()})
        talk.notice("response_format", "This model cannot be held to this schema; it was told to follow it.")
        return None
    message = "This model has no schemas for answers; it was made to call a tool whose input is the answer."
    talk.notice("response_format", message, lost=False)
    return {"type": "object", **schema}


def force_answer(body: Json, chat: Json, schema: Json) -> None:
    """
    The answer as a tool that must be called. Beside tools of the caller's own it is one of those the model may choose
    from; where the caller forces a tool, there is no answer to give a form to.
    """
    choice = body.get("tool_choice", {}).get("type", "auto")
    if body.get("tools") and choice in ("any", "tool"):
        return
    alone = choice == "none" or not body.get("tools")
    named: Json = {"type": "tool", "name": ANSWER_TOOL, "disable_parallel_tool_use": True}
    body["tools"] = [*body.get("tools", ()), _answer_tool(chat["response_format"]["json_schema"], schema)]
    body["tool_choice"] = named if alone else {**body.get("tool_choice", {}), "type": "any"}


def _answer_tool(wanted: Json, schema: Json) -> Json:
    told: Any = wanted.get("description") or f"Give the answer ({wanted.get('name', 'json')}) in this form."
    return {"name": ANSWER_TOOL, "description": told, "input_schema": schema}
