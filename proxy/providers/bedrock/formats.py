"""
The form of an answer: held to a schema by the model itself where it can, by a tool that it is forced to call and whose
input is the answer where it can be forced, and by asking for it where it can neither.
"""

from __future__ import annotations

from typing import Any

import msgspec

from proxy.errors import CallerError
from proxy.providers import ChatRequest, Json
from proxy.providers.bedrock.answers import ANSWER_TOOL
from proxy.providers.bedrock.content import Note
from proxy.providers.bedrock.messages import Conversation
from proxy.providers.bedrock.models import Model
from proxy.providers.bedrock.tools import forbid_parallel_calls
from proxy.providers.schemas import closed, described

JSON_HINT = "Answer with one JSON object and nothing else: no prose around it, no code fence."
SCHEMA_HINT = "Answer with one JSON value and nothing else, without a code fence. It must fit this JSON schema: "


def encode_format(body: Json, more: Json, chat: ChatRequest, model: Model, talk: Conversation) -> None:
    """After the tools, for they may be joined by one more; before `system`, for it may grow."""
    wanted = chat.get("response_format") or {}
    match wanted.get("type", "text"):
        case "text":
            return
        case "json_object":
            talk.system.append([{"text": JSON_HINT}])
            message = "Bedrock has no json_object; the model was told to answer in JSON."
            talk.notice("response_format", message, lost=False)
        case "json_schema":
            form = wanted.get("json_schema") or {}
            if not isinstance(form.get("schema"), dict):
                raise CallerError("json_schema has no schema.", param="response_format.json_schema.schema")
            _hold(body, more, form, model, talk)
        case kind:
            raise CallerError(
                f"response_format.type is {kind!r:.60}; it can be text, json_object or json_schema.",
                param="response_format.type",
            )


def _hold(body: Json, more: Json, form: Json, model: Model, talk: Conversation) -> None:
    config = body.get("toolConfig", {})
    if model.holds_to_schemas:
        schema = msgspec.json.encode(_closed(form["schema"], talk.notice)).decode()
        told = {name: form[name] for name in ("name", "description") if form.get(name)}
        structure = {"jsonSchema": {"schema": schema, **told}}
        body["outputConfig"] = {"textFormat": {"type": "json_schema", "structure": structure}}
    elif "toolChoice" in config:
        message = "A tool is forced, and this model cannot be held to a schema beside it; the schema was left out."
        talk.notice("response_format", message)
    elif model.can_be_forced and form["schema"].get("type") == "object":
        _hold_by_tool(body, more, form, model, talk)
    else:
        hint = SCHEMA_HINT + msgspec.json.encode(described(form)).decode()
        talk.system.append([{"text": hint}])
        talk.notice("response_format", "This model cannot be held to a schema; it was told to follow it.")


def _hold_by_tool(body: Json, more: Json, form: Json, model: Model, talk: Conversation) -> None:
    told = "This model is held to the schema by a tool that it has to call; its input is the answer."
    talk.notice("response_format", told, lost=False)
    description = form.get("description") or "Gives the answer. Call it once, with the whole answer."
    spec = {"name": ANSWER_TOOL, "description": description, "inputSchema": {"json": form["schema"]}}
    config = body.setdefault("toolConfig", {"tools": []})
    offered = bool(config["tools"])
    config["tools"] = [*config["tools"], {"toolSpec": spec}]
    config["toolChoice"] = {"any": {}} if offered else {"tool": {"name": ANSWER_TOOL}}
    if not offered and model.since(4, 0):
        forbid_parallel_calls(body, more, model, talk)


def _closed(schema: Any, note: Note) -> Any:
    message = "Structured output knows no bounds; the model was told them in the descriptions."
    return closed(schema, lambda: note("response_format", message, lost=False))
