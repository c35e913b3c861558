"""
An OpenAI chat request as a Messages request. Every parameter is mapped, refused, or left out with a notice; a parameter
that nobody here knows is left out with a notice too, because Anthropic refuses what it does not know.
"""

from __future__ import annotations

from typing import Any

import msgspec

from proxy.errors import CallerError
from proxy.providers import ChatRequest, Json, Target, UpstreamRequest, quirks
from proxy.providers.anthropic.content import Note
from proxy.providers.anthropic.messages import Conversation, encode_messages
from proxy.providers.anthropic.reasoning import Version, encode_reasoning, version_of
from proxy.providers.anthropic.schemas import answer_schema, tool_schema

API_VERSION = "2023-06-01"
MAX_CACHE_MARKS = 4
MAX_USER_ID_CHARACTERS = 256

MEANT = frozenset(
    {"model", "messages", "stream", "stream_options", "strata", "max_tokens", "max_completion_tokens", "temperature",
     "top_p", "top_k", "stop", "n", "tools", "tool_choice", "parallel_tool_calls", "response_format",
     "reasoning_effort", "thinking", "user", "safety_identifier", "service_tier", "modalities", "cache_control",
     "functions", "function_call"}
)  # fmt: skip
"""Parameters that have code here."""

HARMLESS: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,), "presence_penalty": (0,), "logprobs": (False,), "logit_bias": ({},), "store": (False,),
    "metadata": ({},), "top_logprobs": (0,), "verbosity": ("medium",),
}  # fmt: skip
"""Values of parameters without a counterpart that change nothing, and so need no notice. Null never does."""

SERVICE_TIERS = {"auto": "auto", "priority": "auto", "default": "standard_only", "standard_only": "standard_only"}

JSON_HINT = "Answer with one JSON object and nothing else: no prose around it, no code fence."
SCHEMA_HINT = "Answer with one JSON value and nothing else, without a code fence. It must fit this JSON schema: "


def encode_chat(chat: ChatRequest, target: Target) -> UpstreamRequest:
    """Raises CallerError, with the path of the parameter, for what Anthropic cannot do and no notice could excuse."""
    _refuse_impossible(chat)
    talk = encode_messages(chat["messages"])
    note = talk.notice
    version = version_of(target.model)
    body: Json = {"model": target.model, "max_tokens": _max_tokens(chat, target, version, note)}
    if chat.get("stream"):
        body["stream"] = True
    _encode_format(body, chat, version, talk)
    if talk.system:
        marked = any("cache_control" in block for block in talk.system)
        body["system"] = talk.system if marked else "\n".join(block["text"] for block in talk.system)
    body["messages"] = talk.turns
    _encode_tools(body, chat, version, note)
    _encode_sampling(body, chat, version, note)
    _encode_account(body, chat, note)
    encode_reasoning(body, chat, version, note)
    if isinstance(chat.get("cache_control"), dict):
        body["cache_control"] = chat["cache_control"]
    _limit_marks(body, talk)
    for name, value in chat.items():
        if name not in MEANT and value is not None and value not in HARMLESS.get(name, ()):
            note(name, f"Anthropic has no {name}; it was left out.")
    body, more = quirks.apply(body, target.quirks)
    headers = {"anthropic-version": API_VERSION}
    return UpstreamRequest("/v1/messages", body, headers, (*talk.notices, *more))


def _refuse_impossible(chat: ChatRequest) -> None:
    if (chat.get("n") or 1) > 1:
        raise CallerError("Anthropic gives one answer to a request: leave n out, or send it n times.", param="n")
    if any(kind != "text" for kind in chat.get("modalities") or ()):
        raise CallerError("Anthropic answers in text only; leave modalities out.", param="modalities")
    for name in ("functions", "function_call"):
        if chat.get(name):
            raise CallerError(f"{name} is the old form of tools; use tools and tool_choice.", param=name)


def _max_tokens(chat: ChatRequest, target: Target, version: Version | None, note: Note) -> int:
    """Anthropic demands a limit. Without one from the caller it is the model's own maximum, so that nothing is cut."""
    sent = chat.get("max_completion_tokens") or chat.get("max_tokens")
    if sent:
        return int(sent)
    if target.max_output_tokens:
        return target.max_output_tokens
    limit = default_max_tokens(version)
    note("max_tokens", f"Anthropic demands a limit and none was sent; {limit} was used.", lost=False)
    return limit


def default_max_tokens(version: Version | None) -> int:
    """The limit when neither the caller nor the price table knows one: what every model of that age can write."""
    if version is not None and version < (3, 7):
        return 8192 if version == (3, 5) else 4096
    return 32_000


def _encode_sampling(body: Json, chat: ChatRequest, version: Version | None, note: Note) -> None:
    sampling = {name: chat[name] for name in ("temperature", "top_p", "top_k") if chat.get(name) is not None}
    if version is not None and version >= (4, 7):
        for name in sampling:
            note(name, f"This model takes no {name}; it was left out.")
        sampling = {}
    elif version is not None and version >= (4, 1) and {"temperature", "top_p"} <= sampling.keys():
        del sampling["top_p"]
        note("top_p", "This model takes temperature or top_p, not both; top_p was left out.")
    if sampling.get("temperature", 0) > 1:
        sampling["temperature"] = 1
        note("temperature", "Anthropic's temperature ends at 1; it was set to 1.")
    body |= sampling
    stop = chat.get("stop")
    sequences = [stop] if isinstance(stop, str) else list(stop or ())
    for number, sequence in enumerate(sequences):
        if not sequence.strip():
            raise CallerError(
                "Anthropic takes no stop sequence of white space alone; leave it out.",
                param="stop" if isinstance(stop, str) else f"stop[{number}]",
            )
    if sequences:
        body["stop_sequences"] = sequences


def _encode_account(body: Json, chat: ChatRequest, note: Note) -> None:
    user = chat.get("user") or chat.get("safety_identifier")
    if user and len(user) <= MAX_USER_ID_CHARACTERS:
        body["metadata"] = {"user_id": user}
    elif user:
        note("user", f"Anthropic takes at most {MAX_USER_ID_CHARACTERS} characters; it was left out.")
    tier = chat.get("service_tier")
    if tier in SERVICE_TIERS:
        body["service_tier"] = SERVICE_TIERS[tier]
    elif tier is not None:
        note("service_tier", f"Anthropic has no service tier {tier!r:.60}; it was left out.")


def _encode_tools(body: Json, chat: ChatRequest, version: Version | None, note: Note) -> None:
    tools = [_tool(tool, f"tools[{number}]", version, note) for number, tool in enumerate(chat.get("tools") or ())]
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
        raise CallerError(
            f"{param} is not a function; Anthropic's own tools and custom tools are not offered here.",
            param=f"{param}.type",
        )
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
    kept = [tool for tool in tools if tool["name"] in names]
    if not kept:
        raise CallerError("tool_choice.allowed_tools names none of the tools.", param="tool_choice.allowed_tools.tools")
    return "required" if allowed.get("mode") == "required" else "auto", kept


def _encode_format(body: Json, chat: ChatRequest, version: Version | None, talk: Conversation) -> None:
    wanted = chat.get("response_format") or {}
    match wanted.get("type", "text"):
        case "text":
            return
        case "json_object":
            talk.system.append({"type": "text", "text": JSON_HINT})
            message = "Anthropic has no json_object; the model was told to answer in JSON."
            talk.notice("response_format", message, lost=False)
        case "json_schema":
            schema = (wanted.get("json_schema") or {}).get("schema")
            if not isinstance(schema, dict):
                raise CallerError("json_schema has no schema.", param="response_format.json_schema.schema")
            if version is not None and version < (4, 1):
                hint = SCHEMA_HINT + msgspec.json.encode(schema).decode()
                talk.system.append({"type": "text", "text": hint})
                talk.notice("response_format", "This model cannot be held to a schema; it was told to follow it.")
                return
            output = {"type": "json_schema", "schema": answer_schema(schema, talk.notice)}
            body["output_config"] = {"format": output}
        case kind:
            raise CallerError(
                f"response_format.type is {kind!r:.60}; it can be text, json_object or json_schema.",
                param="response_format.type",
            )


def _limit_marks(body: Json, talk: Conversation) -> None:
    """At most four cache marks: the last ones stay, for each covers all that stands before it."""
    blocks = [*body.get("tools", ()), *talk.system, *(block for turn in talk.turns for block in turn["content"])]
    marked = [block for block in blocks if "cache_control" in block]
    room = MAX_CACHE_MARKS - ("cache_control" in body)
    if len(marked) > room:
        for block in marked[: len(marked) - room]:
            del block["cache_control"]
        message = f"Anthropic takes {MAX_CACHE_MARKS} cache marks; the last {room} were kept."
        talk.notice("cache_control", message, lost=False)
