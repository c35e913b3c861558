"""
Tools: what may be called, and what must be.

`toolConfig` has to be there as soon as the history holds a call, and `toolChoice` has no `none`; both are met here.
"""

from __future__ import annotations

import re
from typing import Any

from proxy.errors import CallerError
from proxy.providers import ChatRequest, Json
from proxy.providers.bedrock.answers import ANSWER_TOOL
from proxy.providers.bedrock.content import Parts
from proxy.providers.bedrock.messages import Conversation
from proxy.providers.bedrock.models import Model

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def encode_tools(body: Json, more: Json, chat: ChatRequest, model: Model, talk: Conversation) -> None:
    """Adds `toolConfig`; to `more`, the body's additional fields, what only Claude understands."""
    parts = Parts(talk.notice, caches=model.caches)
    tools = [_tool(tool, f"tools[{number}]", model, parts) for number, tool in enumerate(chat.get("tools") or ())]
    choice = chat.get("tool_choice")
    if not tools and choice not in (None, "none", "auto"):
        raise CallerError("tool_choice is only allowed when tools are sent.", param="tool_choice")
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        choice, tools = _allowed(choice.get("allowed_tools"), tools)
    native = _tool_choice(choice)
    if choice == "none":
        tools = _none(tools, talk)
    elif not tools and talk.called:
        tools = _remembered(talk)
    if not tools:
        return
    config: Json = {"tools": [block for piece in tools for block in piece]}
    if native and not model.can_be_forced and model.always_thinks:
        told = "This model cannot be made to call a tool; it may answer without one."
        talk.notice("tool_choice", told)
        native = None
    if native:
        config["toolChoice"] = native
    body["toolConfig"] = config
    if chat.get("parallel_tool_calls") is False:
        forbid_parallel_calls(body, more, model, talk)


def forbid_parallel_calls(body: Json, more: Json, model: Model, talk: Conversation) -> None:
    """In Claude's own words. With a `toolChoice` they are merged, and then a type there would contradict it."""
    if not model.since(4, 0):
        talk.notice("parallel_tool_calls", "This model may call several tools at once; it was left out.")
    elif "toolChoice" in body["toolConfig"]:
        more["tool_choice"] = {"disable_parallel_tool_use": True}
    else:
        more["tool_choice"] = {"type": "auto", "disable_parallel_tool_use": True}


def _tool(tool: Json, param: str, model: Model, parts: Parts) -> list[Json]:
    function = tool.get("function")
    if not function:
        raise CallerError(
            f"{param} is not a function; system tools and custom tools are not offered here.", param=f"{param}.type"
        )
    name = function["name"]
    if not _NAME.fullmatch(name) or name == ANSWER_TOOL:
        raise CallerError(
            f"{param}.function.name: Bedrock takes names of 1 to 64 letters, digits, _ and -, and {ANSWER_TOOL} is "
            "taken.",
            param=f"{param}.function.name",
        )
    spec: Json = {"name": name}
    if (function.get("description") or "").strip():
        spec["description"] = function["description"]
    spec["inputSchema"] = {"json": tool_schema(function.get("parameters"))}
    if function.get("strict"):
        if model.holds_to_schemas:
            spec["strict"] = True
        else:
            told = "This model does not hold arguments to a schema; strict was left out."
            parts.note("tools[].function.strict", told)
    control = tool.get("cache_control") or function.get("cache_control")
    if control and model.nova:
        parts.note("cache_control", "Nova caches no tools; the mark on a tool was left out.", lost=False)
        control = None
    return [{"toolSpec": spec}, *parts.mark(control)]


def tool_schema(parameters: Any) -> Json:
    """A tool without parameters still has a schema, and every schema is an object's."""
    if not parameters:
        return {"type": "object"}
    return parameters if parameters.get("type") else {"type": "object", **parameters}


def _tool_choice(choice: Any) -> Json | None:
    """None where the model decides: that is what it does unasked, and not every model lets itself be asked."""
    match choice:
        case None | "auto" | "none":
            return None
        case "required" | "any":
            return {"any": {}}
        case {"function": {"name": str(name)}} | {"type": "function", "name": str(name)}:
            return {"tool": {"name": name}}
    raise CallerError(
        'tool_choice is "auto", "none", "required" or {"type": "function", "function": {"name": …}}.',
        param="tool_choice",
    )


def _none(tools: list[list[Json]], talk: Conversation) -> list[list[Json]]:
    """No tools, no calls; but a history of calls needs its tools, and then the model can only be asked."""
    if not talk.called:
        if tools:
            talk.notice("tool_choice", "Bedrock has no tool_choice none; the tools were not sent.", lost=False)
        return []
    talk.notice("tool_choice", "Bedrock wants the tools of earlier calls, so the model may call one in spite of none.")
    return tools or _remembered(talk)


def _remembered(talk: Conversation) -> list[list[Json]]:
    told = "Bedrock wants the tools of earlier calls; they were sent by name, without their parameters."
    talk.notice("tools", told, lost=False)
    return [
        [{"toolSpec": {"name": name, "inputSchema": {"json": {"type": "object"}}}}]
        for name in dict.fromkeys(talk.called.values())
    ]


def _allowed(allowed: Any, tools: list[list[Json]]) -> tuple[str, list[list[Json]]]:
    """OpenAI's subset of tools: only those are offered."""
    if not isinstance(allowed, dict) or not isinstance(allowed.get("tools"), list):
        raise CallerError("tool_choice.allowed_tools needs its list of tools.", param="tool_choice.allowed_tools.tools")
    names = {(tool.get("function") or tool).get("name") for tool in allowed["tools"] if isinstance(tool, dict)}
    kept = [piece for piece in tools if piece[0]["toolSpec"]["name"] in names]
    if not kept:
        raise CallerError("tool_choice.allowed_tools names none of the tools.", param="tool_choice.allowed_tools.tools")
    return "required" if allowed.get("mode") == "required" else "auto", kept
