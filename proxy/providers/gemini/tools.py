"""
Tools and the choice among them: functions of the caller's, and Google's own by their names, as `{"type":
"google_search"}` or with their settings under the same name.
"""

from __future__ import annotations

import re
from typing import Any

from proxy.errors import CallerError
from proxy.providers import Json
from proxy.providers.gemini.content import Note
from proxy.providers.gemini.models import Model
from proxy.providers.gemini.schemas import inlined, is_googles, subset

OWN = {
    "google_search": "googleSearch",
    "google_search_retrieval": "googleSearchRetrieval",
    "google_maps": "googleMaps",
    "code_execution": "codeExecution",
    "url_context": "urlContext",
    "file_search": "fileSearch",
    "computer_use": "computerUse",
    "enterprise_web_search": "enterpriseWebSearch",
}
"""Tools that Google runs itself."""
_OWN = OWN | {native: native for native in OWN.values()}

_FUNCTION_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.:-]{0,127}")


def encode_tools(body: Json, chat: Json, model: Model, note: Note) -> None:
    """Adds `tools` and `toolConfig`."""
    functions: list[Json] = []
    own: list[Json] = []
    for number, tool in enumerate(chat.get("tools") or ()):
        path = f"tools[{number}]"
        native = _OWN.get(tool["type"])
        if native:
            own.append({native: tool.get(tool["type"]) or {}})
        else:
            functions.append(_function(tool, path, model, note))
    if chat.get("web_search_options") is not None:
        if not any("googleSearch" in tool for tool in own):
            own.append({"googleSearch": {}})
        if chat["web_search_options"]:
            note("web_search_options", "Google searches without options; the model was given its search.", lost=False)
    own = _own_wanted(chat.get("tool_choice"), own, note)
    config = _calling(chat, functions, note)
    if own or functions:
        body["tools"] = [*own, *([{"functionDeclarations": functions}] if functions else [])]
    if config:
        body["toolConfig"] = {"functionCallingConfig": config}
    if own and functions and model.signs_calls and not model.cloud:
        # without it the two kinds exclude each other
        body["toolConfig"] = {**body.get("toolConfig", {}), "includeServerSideToolInvocations": True}
    if chat.get("parallel_tool_calls") is False and functions:
        note("parallel_tool_calls", "Gemini cannot be kept from calling several tools at once; it was left out.")


def _function(tool: Json, param: str, model: Model, note: Note) -> Json:
    function = tool.get("function")
    if not function:
        raise CallerError(
            f"{param}.type is {tool['type']!r:.60}; Gemini takes function, and Google's own {', '.join(OWN)}.",
            param=f"{param}.type",
        )
    if not _FUNCTION_NAME.fullmatch(function["name"]):
        raise CallerError(
            f"{param}.function.name must begin with a letter or _ at Gemini, and hold at most 128 letters, digits, "
            "underscores, dots, colons and dashes.",
            param=f"{param}.function.name",
        )
    if function.get("strict"):
        note("tools[].function.strict", "Gemini does not hold arguments to a schema strictly; strict was left out.")
    for holder in (tool, function):
        if holder.get("cache_control"):
            note("cache_control", "Gemini caches by itself, or by cached_content; the mark was left out.")
    native: Json = {"name": function["name"]}
    if function.get("description"):
        native["description"] = function["description"]
    parameters = function.get("parameters")
    if not parameters:
        return native
    if is_googles(parameters):
        return {**native, "parameters": parameters}
    schema = inlined(parameters if parameters.get("type") else {"type": "object", **parameters})
    if model.takes_json_schema:
        return {**native, "parametersJsonSchema": schema}

    def lost(keyword: str) -> None:
        note("tools[].function.parameters", f"This model's schemas have no {keyword}; it was left out.")

    cut = subset(schema, lost)
    # such a model refuses an object without properties
    return {**native, "parameters": cut} if cut.get("properties") or "anyOf" in cut else native


def _own_wanted(choice: Any, own: list[Json], note: Note) -> list[Json]:
    """Google's own tools run without being called, so where the choice has no place for them they are not offered."""
    if choice == "none":
        if own:
            note("tool_choice", "Google's own tools are not called but run; with none they were not sent.", lost=False)
        return []
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        listed = (choice.get("allowed_tools") or {}).get("tools") or ()
        allowed = {_OWN.get(tool.get("type") or "") for tool in listed if isinstance(tool, dict)}
        return [tool for tool in own if not allowed.isdisjoint(tool)]
    return own


def _calling(chat: Json, functions: list[Json], note: Note) -> Json:
    """The choice as Gemini's mode; narrows `functions` where the caller allows only some of them."""
    choice = chat.get("tool_choice")
    if not functions:
        if choice not in (None, "none", "auto"):
            raise CallerError("tool_choice is only allowed when functions are sent as tools.", param="tool_choice")
        return {}
    match choice:
        case None:
            return {}
        case "auto" | "none":
            return {"mode": choice.upper()}
        case "required" | "any":
            return {"mode": "ANY"}
        case {"type": "allowed_tools"}:
            return _allowed(choice.get("allowed_tools"), functions)
        case {"function": {"name": str(name)}} | {"type": "function", "name": str(name)}:
            return {"mode": "ANY", "allowedFunctionNames": [name]}
    raise CallerError(
        'tool_choice is "auto", "none", "required" or {"type": "function", "function": {"name": …}}.',
        param="tool_choice",
    )


def _allowed(allowed: Any, functions: list[Json]) -> Json:
    """OpenAI's subset of tools: only those are offered."""
    if not isinstance(allowed, dict) or not isinstance(allowed.get("tools"), list):
        raise CallerError("tool_choice.allowed_tools needs its list of tools.", param="tool_choice.allowed_tools.tools")
    names = [(tool.get("function") or tool).get("name") for tool in allowed["tools"] if isinstance(tool, dict)]
    functions[:] = [function for function in functions if function["name"] in names]
    if not functions:
        raise CallerError("tool_choice.allowed_tools names none of the tools.", param="tool_choice.allowed_tools.tools")
    return {"mode": "ANY" if allowed.get("mode") == "required" else "AUTO"}
