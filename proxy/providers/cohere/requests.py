"""
An OpenAI chat request as Cohere's. Every parameter is mapped, refused, or left out with a notice.
"""

from __future__ import annotations

from typing import Any

import msgspec

from proxy.providers import ChatRequest, Json, Notice, Target, UpstreamRequest, quirks
from proxy.providers.cohere.messages import Note, encode_messages, refuse
from proxy.providers.quirks import JSON_HINT, SCHEMA_HINT
from proxy.providers.schemas import described

SAME = frozenset(
    {"temperature", "seed", "logprobs", "documents", "citation_options", "safety_mode", "strict_tools", "thinking", "k",
     "p", "priority"}
)  # fmt: skip
"""Parameters that go through as they are: OpenAI's of the same name, and Cohere's own."""
MEANT = SAME | frozenset(
    {"model", "messages", "stream", "stream_options", "strata", "max_tokens", "max_completion_tokens", "stop", "top_p",
     "top_k", "frequency_penalty", "presence_penalty", "tools", "tool_choice", "response_format", "reasoning_effort",
     "n", "modalities", "audio", "functions", "function_call"}
)  # fmt: skip
"""Parameters that have code here."""
HARMLESS: dict[str, tuple[Any, ...]] = {
    "logit_bias": ({},), "store": (False,), "metadata": ({},), "top_logprobs": (0,), "verbosity": ("medium",),
    "parallel_tool_calls": (True,), "service_tier": ("auto", "default"),
}  # fmt: skip
"""Values of parameters without a counterpart that change nothing, and so need no notice. Null never does."""

P_RANGE = (0.01, 0.99)
PENALTY_RANGE = (0.0, 1.0)
MAX_STOP_SEQUENCES = 5
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
THINKING_TOKENS = {"minimal": 512, "low": 1024, "medium": 4096}
"""How much may be thought at each effort; at a higher one there is no limit but the answer's."""


def encode_chat(chat: ChatRequest, target: Target) -> UpstreamRequest:
    """Raises CallerError, with the path of the parameter, for what Cohere cannot do and no notice could excuse."""
    notices: dict[Notice, None] = {}

    def note(param: str, message: str, *, lost: bool = True) -> None:
        notices[Notice(param, message, lost)] = None

    _refuse_impossible(chat)
    body: Json = {"model": target.model, "messages": encode_messages(chat["messages"], note)}
    body["stream"] = bool(chat.get("stream"))
    body |= {name: value for name, value in chat.items() if name in SAME and value is not None}
    _encode_sampling(body, chat, note)
    _encode_tools(body, chat, note)
    _encode_format(body, chat, note)
    _encode_reasoning(body, chat, note)
    for name, value in chat.items():
        if name not in MEANT and value is not None and value not in HARMLESS.get(name, ()):
            note(name, f"Cohere has no {name}; it was left out.")
    body, more = quirks.apply(body, target.quirks)
    return UpstreamRequest("/v2/chat", body, notices=(*notices, *more))


def _refuse_impossible(chat: ChatRequest) -> None:
    if (chat.get("n") or 1) > 1:
        refuse("n", "Cohere gives one answer to a request: leave it out, or send the request n times")
    if chat.get("audio") or any(kind != "text" for kind in chat.get("modalities") or ()):
        refuse("audio" if chat.get("audio") else "modalities", "Cohere answers in text only; leave it out")
    for name in ("functions", "function_call"):
        if chat.get(name):
            refuse(name, "it is the old form of tools; use tools and tool_choice")


def _encode_sampling(body: Json, chat: ChatRequest, note: Note) -> None:
    limit = chat.get("max_completion_tokens") or chat.get("max_tokens")
    if limit:
        body["max_tokens"] = limit
    if chat.get("top_k") is not None:
        body["k"] = chat["top_k"]
    for name, there, (least, most) in (
        ("top_p", "p", P_RANGE),
        ("frequency_penalty", "frequency_penalty", PENALTY_RANGE),
        ("presence_penalty", "presence_penalty", PENALTY_RANGE),
    ):
        wanted = chat.get(name)
        if wanted is None:
            continue
        body[there] = min(max(wanted, least), most)
        if body[there] != wanted:
            message = f"Cohere's {name} goes from {least:g} to {most:g}; it was set to {body[there]:g}."
            note(name, message, lost=abs(body[there] - wanted) > 0.01)
    stop = chat.get("stop")
    sequences = [stop] if isinstance(stop, str) else list(stop or ())
    if len(sequences) > MAX_STOP_SEQUENCES:
        refuse("stop", f"Cohere takes at most {MAX_STOP_SEQUENCES} sequences")
    if sequences:
        body["stop_sequences"] = sequences


def _encode_tools(body: Json, chat: ChatRequest, note: Note) -> None:
    tools = [_tool(tool, f"tools[{number}]", note) for number, tool in enumerate(chat.get("tools") or ())]
    choice = chat.get("tool_choice")
    if not tools:
        if choice not in (None, "none", "auto"):
            refuse("tool_choice", "it is only allowed when tools are sent")
        return
    strict = [bool(tool["function"].get("strict")) for tool in chat["tools"]]
    if all(strict):
        body["strict_tools"] = True
    elif any(strict):
        note("tools[].function.strict", "Cohere is strict with all tools or none; strict was left out.")
    match choice:
        case "required":
            body["tool_choice"] = "REQUIRED"
        case "none":
            body["tool_choice"] = "NONE"
        case {"type": "allowed_tools", "allowed_tools": {"tools": list(listed), **rest}}:
            tools = _only({(tool.get("function") or tool).get("name") for tool in listed}, tools)
            body |= {"tool_choice": "REQUIRED"} if rest.get("mode") == "required" else {}
        case {"function": {"name": name}}:
            tools = _only({name}, tools)
            body["tool_choice"] = "REQUIRED"
            note("tool_choice", "Cohere cannot be told which tool to call; only this one was offered.", lost=False)
        case None | "auto":
            pass
        case _:
            refuse("tool_choice", 'it is "auto", "none", "required" or {"type": "function", "function": {"name": …}}')
    body["tools"] = tools


def _tool(tool: Json, param: str, note: Note) -> Json:
    function = tool.get("function")
    if tool.get("cache_control"):
        note("cache_control", "Cohere caches by itself; the mark was left out.")
    if not function:
        refuse(f"{param}.type", "it is not a function; Cohere knows no other kind of tool")
    described = {"description": function["description"]} if function.get("description") else {}
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    return {"type": "function", "function": {"name": function["name"], **described, "parameters": parameters}}


def _only(names: set[Any], tools: list[Json]) -> list[Json]:
    kept = [tool for tool in tools if tool["function"]["name"] in names]
    if not kept:
        refuse("tool_choice", "it names none of the tools")
    return kept


def _encode_format(body: Json, chat: ChatRequest, note: Note) -> None:
    wanted = chat.get("response_format") or {}
    schema = None
    match wanted.get("type", "text"):
        case "text":
            return
        case "json_object":
            pass
        case "json_schema":
            form = wanted.get("json_schema") or {}
            if not isinstance(form.get("schema"), dict):
                refuse("response_format.json_schema.schema", "it is missing")
            schema = described(form)
        case kind:
            refuse("response_format.type", f"it is {kind!r:.60}; it can be text, json_object or json_schema")
    if not body.get("tools") and not body.get("documents"):
        body["response_format"] = {"type": "json_object"} | ({"json_schema": schema} if schema else {})
        return
    hint = SCHEMA_HINT + msgspec.json.encode(schema).decode() if schema else JSON_HINT
    body["messages"] = [{"role": "system", "content": hint}, *body["messages"]]
    message = "Cohere cannot be held to a format beside tools or documents; the model was told what to write."
    note("response_format", message, lost=schema is not None)


def _encode_reasoning(body: Json, chat: ChatRequest, note: Note) -> None:
    effort = chat.get("reasoning_effort")
    if effort is None:
        return
    if effort not in EFFORTS:
        refuse("reasoning_effort", f"it is {effort!r:.60}; it can be {', '.join(EFFORTS)}")
    if "thinking" in body:
        note("reasoning_effort", "thinking was sent too, and it is the more precise; the effort was left out.")
        return
    if effort == "none":
        body["thinking"] = {"type": "disabled"}
        return
    body["thinking"] = {"type": "enabled"}
    if effort in THINKING_TOKENS:
        most = body.get("max_tokens")
        budget = THINKING_TOKENS[effort]
        body["thinking"]["token_budget"] = min(budget, max(most // 2, 1)) if most else budget
