"""
Tools: functions of the caller's, and tools that Anthropic itself runs (web search, code execution …), which are sent
as it has them: `{"type": "web_search_20250305", "name": "web_search"}`.
"""

from __future__ import annotations

import re
from typing import Any

from proxy.errors import CallerError
from proxy.providers import ChatRequest, Json
from proxy.providers.anthropic.content import Note
from proxy.providers.anthropic.reasoning import Version
from proxy.providers.anthropic.schemas import tool_schema

WEB_SEARCH = "web_search_20250305"
"""The version that every model since Claude 3.5 has."""

_NATIVE = re.compile(r"[a-z_]+_20\d{6}|mcp_toolset")
_UNACCOUNTED = "advisor"
"""A tool whose tokens are another model's, at another price, and in no total of the answer's usage."""


def encode_tools(body: Json, chat: ChatRequest, version: Version | None, note: Note) -> None:
    tools = [_tool(tool, f"tools[{number}]", version, note) for number, tool in enumerate(chat.get("tools") or ())]
    if chat.get("web_search_options") is not None:
        tools.append(_web_search(chat["web_search_options"], note))
    choice = chat.get("tool_choice")
    if not tools:
        if choice not in (None, "none", "auto"):
            raise CallerError("tool_choice is only allowed when tools are sent.", param="tool_choice")
        return
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        choice, tools = _allowed(choice.get("allowed_tools"), tools)
    body["tools"] = tools
    native = _tool_choice(choice)
    if chat.get("parallel_tool_calls") is False and (native or {}).get("type") != "none":
        native = {**(native or {"type": "auto"}), "disable_parallel_tool_use": True}
    if native:
        body["tool_choice"] = native


def _tool(tool: Json, param: str, version: Version | None, note: Note) -> Json:
    function = tool.get("function")
    if not function:
        return _native_tool(tool, param)
    native: Json = {"name": function["name"]}
    if function.get("description"):
        native["description"] = function["description"]
    native["input_schema"] = tool_schema(function.get("parameters"))
    if function.get("strict"):
        if version is None or version >= (4, 5):
            native["strict"] = True
        else:
            note("tools[].function.strict", "This model does not hold arguments to a schema; strict was left out.")
    mark = tool.get("cache_control") or function.get("cache_control")
    return native | {"cache_control": mark} if isinstance(mark, dict) else native


def _native_tool(tool: Json, param: str) -> Json:
    kind = tool["type"]
    if not _NATIVE.fullmatch(kind):
        raise CallerError(
            f"{param} is of type {kind!r:.60}; Anthropic takes functions, and tools of its own such as {WEB_SEARCH}.",
            param=f"{param}.type",
        )
    if kind.startswith(_UNACCOUNTED):
        raise CallerError(
            f"{param}: {kind} runs another model, whose tokens the answer's usage leaves out, so that its price cannot "
            "be known.",
            param=f"{param}.type",
        )
    return tool


def _web_search(options: Json, note: Note) -> Json:
    """OpenAI's search models take these; here they are the search tool."""
    tool: Json = {"type": WEB_SEARCH, "name": "web_search"}
    where = options.get("user_location") or {}
    if where:
        tool["user_location"] = {"type": "approximate", **(where.get("approximate") or {})}
    note("web_search_options", "Claude was given its own search tool, which has no context size.", lost=False)
    return tool


def _tool_choice(choice: Any) -> Json | None:
    match choice:
        case None:
            return None
        case "auto" | "none":
            return {"type": choice}
        case "required" | "any":
            return {"type": "any"}
        case {"function": {"name": str(name)}} | {"type": "function", "name": str(name)}:
            return {"type": "tool", "name": name}
    raise CallerError(
        'tool_choice is "auto", "none", "required" or {"type": "function", "function": {"name": …}}.',
        param="tool_choice",
    )


def _allowed(allowed: Any, tools: list[Json]) -> tuple[str, list[Json]]:
    """OpenAI's subset of tools: only those are offered."""
    if not isinstance(allowed, dict) or not isinstance(allowed.get("tools"), list):
        raise CallerError("tool_choice.allowed_tools needs its list of tools.", param="tool_choice.allowed_tools.tools")
    names = {(tool.get("function") or tool).get("name") for tool in allowed["tools"] if isinstance(tool, dict)}
    kept = [tool for tool in tools if tool.get("name") in names]
    if not kept:
        raise CallerError("tool_choice.allowed_tools names none of the tools.", param="tool_choice.allowed_tools.tools")
    return "required" if allowed.get("mode") == "required" else "auto", kept
