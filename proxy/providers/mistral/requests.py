"""
An OpenAI chat request as Mistral's. It answers 422 to a field that it does not know, so what is not its own is left out
with a notice; the ids of tool calls are nine letters and digits, so those of others become such.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any, NoReturn, Protocol

from proxy.errors import CallerError
from proxy.providers import ChatRequest, Json, Notice, Target, UpstreamRequest, quirks
from proxy.providers.mistral.content import REASONING_FORMAT

SAME = frozenset(
    {"stream", "temperature", "top_p", "top_k", "stop", "metadata", "response_format", "presence_penalty",
     "frequency_penalty", "min_tokens", "repetition_penalty", "logprobs", "top_logprobs", "n", "prediction",
     "parallel_tool_calls", "reasoning_effort", "prompt_mode", "guardrails", "prompt_cache_key", "safe_prompt"}
)  # fmt: skip
"""Parameters that go through as they are: OpenAI's of the same name, and Mistral's own."""
RENAMED = {"max_tokens": "max_tokens", "max_completion_tokens": "max_tokens", "seed": "random_seed",
           "random_seed": "random_seed"}  # fmt: skip
"""The later one of two that mean the same counts."""
MEANT = SAME | RENAMED.keys() | {"model", "messages", "tools", "tool_choice", "functions", "function_call",
                                 "modalities", "audio", "service_tier", "stream_options", "strata"}  # fmt: skip
HARMLESS: dict[str, tuple[Any, ...]] = {"logit_bias": ({},), "store": (False,), "verbosity": ("medium",)}
MAX_TEMPERATURE = 1.5
SERVICE_TIERS = {"auto": "auto", "priority": "auto", "default": "standard_only", "standard_only": "standard_only"}
BRIDGE = {"role": "assistant", "content": "OK."}
"""
Stands where a user speaks right after a tool, which Mistral refuses (its code 3230) and others take:
github.com/mistralai/mistral-common, validation of the order of messages.
"""

_KNOWN = frozenset(
    {"role", "content", "refusal", "tool_calls", "tool_call_id", "prefix", "reasoning_content", "reasoning",
     "reasoning_details", "annotations", "citations", "function_call"}
)  # fmt: skip
_ID = re.compile(r"[a-zA-Z0-9]{9}")
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


class Note(Protocol):
    def __call__(self, param: str, message: str, *, lost: bool = True) -> None: ...


def encode_chat(chat: ChatRequest, target: Target) -> UpstreamRequest:
    """Raises CallerError, with the path of the parameter, for what Mistral cannot do and no notice could excuse."""
    notices: dict[Notice, None] = {}

    def note(param: str, message: str, *, lost: bool = True) -> None:
        notices[Notice(param, message, lost)] = None

    _refuse_impossible(chat)
    body: Json = {"model": target.model, "messages": _messages(chat["messages"], note)}
    body |= {name: value for name, value in chat.items() if name in SAME and value is not None}
    for name, there in RENAMED.items():
        if chat.get(name) is not None:
            body[there] = chat[name]
    _encode_tools(body, chat, note)
    if body.get("temperature", 0) > MAX_TEMPERATURE:
        body["temperature"] = MAX_TEMPERATURE
        note("temperature", f"Mistral's temperature ends at {MAX_TEMPERATURE}; it was set to that.")
    tier = chat.get("service_tier")
    if tier in SERVICE_TIERS:
        body["service_tier"] = SERVICE_TIERS[tier]
    elif tier is not None:
        note("service_tier", f"Mistral has no service tier {tier!r:.60}; it was left out.")
    for name, value in chat.items():
        if name not in MEANT and value is not None and value not in HARMLESS.get(name, ()):
            note(name, f"Mistral has no {name}; it was left out.")
    body, more = quirks.apply(body, target.quirks)
    return UpstreamRequest("/chat/completions", body, notices=(*notices, *more))


def _refuse_impossible(chat: ChatRequest) -> None:
    if any(kind != "text" for kind in chat.get("modalities") or ()):
        _refuse("modalities", "Mistral answers in text only; leave modalities out")
    if chat.get("audio"):
        _refuse("audio", "Mistral answers in text only; leave audio out")
    for name in ("functions", "function_call"):
        if chat.get(name):
            _refuse(name, f"{name} is the old form of tools; use tools and tool_choice")


def _messages(messages: list[Json], note: Note) -> list[Json]:
    encoded: list[Json] = []
    for number, message in enumerate(messages):
        one = _message(message, f"messages[{number}]", note)
        if one["role"] == "user" and encoded and encoded[-1]["role"] == "tool":
            encoded.append(dict(BRIDGE))
            told = "Mistral wants a word of the assistant's between a tool's result and a user's; one was added."
            note("messages", told, lost=False)
        encoded.append(one)
    if encoded and encoded[-1]["role"] == "assistant":
        # the last word must not be the assistant's, unless the answer is to go on from it
        encoded[-1].setdefault("prefix", True)
    return encoded


def _message(message: Json, param: str, note: Note) -> Json:
    for name, value in message.items():
        if name not in _KNOWN and value not in (None, "", []):
            note(f"messages[].{name}", f"Mistral has no {name} in messages; it was left out.")
    role = message["role"]
    content = _content(message.get("content"), f"{param}.content", note)
    match role:
        case "system" | "developer":
            return {"role": "system", "content": content}
        case "user":
            return {"role": "user", "content": content}
        case "tool":
            id = message.get("tool_call_id")
            if not isinstance(id, str) or not id:
                _refuse(f"{param}.tool_call_id", "it is missing: it says which call this answers")
            return {"role": "tool", "tool_call_id": call_id(id), "content": content or ""}
        case "assistant":
            return _assistant(message, content, param, note)
    _refuse(f"{param}.role", f'Mistral does not know the role "{role}"; use "tool" with a tool_call_id')


def _assistant(message: Json, content: Any, param: str, note: Note) -> Json:
    if message.get("function_call"):
        _refuse(f"{param}.function_call", "it is the old form of tool_calls; use tool_calls")
    thoughts = _thoughts(message, note)
    content = content or message.get("refusal") or ""
    if thoughts:
        said = content if isinstance(content, list) else [{"type": "text", "text": content}] if content else []
        content = [*thoughts, *said]
    encoded: Json = {"role": "assistant", "content": content}
    if message.get("tool_calls"):
        encoded["tool_calls"] = [
            _call(call, f"{param}.tool_calls[{number}]") for number, call in enumerate(message["tool_calls"])
        ]
    return encoded | ({"prefix": message["prefix"]} if "prefix" in message else {})


def _call(call: Json, param: str) -> Json:
    function = call.get("function")
    if not function:
        _refuse(f"{param}.type", "it is not a function call; Mistral knows no other kind")
    if not isinstance(call.get("id"), str) or not call["id"]:
        _refuse(f"{param}.id", "it is missing: it says which result belongs to this call")
    return {
        "id": call_id(call["id"]),
        "type": "function",
        "function": {"name": function["name"], "arguments": function.get("arguments") or "{}"},
    }


def call_id(id: str) -> str:
    """
    Nine letters and digits, or Mistral refuses the conversation (its code 3280). Its own ids are such and stay; another
    one always becomes the same, so that a call and its result still belong together.
    """
    if _ID.fullmatch(id):
        return id
    number = int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big")
    return "".join(_DIGITS[number // 62**place % 62] for place in range(9))


def _thoughts(message: Json, note: Note) -> list[Json]:
    """Mistral's own thoughts, whole or as the fragments of a stream; those of others would be lies about its mind."""
    whole: dict[object, Json] = {}
    kinds: dict[object, Any] = {}
    details = message.get("reasoning_details")
    for detail in details if isinstance(details, list) else ():
        # only the first fragment of a thought says what it is
        if isinstance(detail, dict) and kinds.setdefault(detail.get("index"), detail.get("format")) == REASONING_FORMAT:
            block = whole.setdefault(detail.get("index"), {"text": ""})
            block["text"] += detail.get("text") or ""
            if detail.get("signature"):
                block["signature"] = detail["signature"]
    if not whole and any(message.get(name) for name in ("reasoning_content", "reasoning", "reasoning_details")):
        note("messages[].reasoning_content", "Reasoning that is not Mistral's is not sent to it; it was left out.")
    blocks: list[Json] = []
    for block in whole.values():
        signed = {"signature": block["signature"]} if "signature" in block else {}
        blocks.append({"type": "thinking", "thinking": [{"type": "text", "text": block["text"]}], **signed})
    return blocks


def _content(content: Any, param: str, note: Note) -> Any:
    if not isinstance(content, list):
        return content or ""
    return [_part(part, f"{param}[{number}]", note) for number, part in enumerate(content)]


def _part(part: Json, param: str, note: Note) -> Json:
    if part.get("cache_control"):
        note("cache_control", "Mistral caches by itself; the mark was left out.")
    match part["type"]:
        case "text" | "refusal" as kind:
            return {"type": "text", "text": part.get(kind) or ""}
        case "image_url":
            return {"type": "image_url", "image_url": part.get("image_url") or {}}
        case "input_audio":
            audio = part.get("input_audio")
            return {"type": "input_audio", "input_audio": audio.get("data") if isinstance(audio, dict) else audio}
        case "file":
            return _document(part.get("file") or {}, f"{param}.file")
        case "document_url" | "reference" | "thinking":
            return part  # Mistral's own
        case kind:
            _refuse(param, f"Mistral takes no content of type {kind!r:.60}: text, image_url, input_audio and file do")


def _document(file: Json, param: str) -> Json:
    data = file.get("file_data")
    if not data:
        _refuse(param, "files are sent to Mistral as file_data, for ids of uploaded files are not shared")
    url = data if data.startswith(("data:", "https://")) else f"data:application/pdf;base64,{data}"
    named = {"document_name": file["filename"]} if file.get("filename") else {}
    return {"type": "document_url", "document_url": url, **named}


def _encode_tools(body: Json, chat: ChatRequest, note: Note) -> None:
    tools = [_tool(tool, f"tools[{number}]", note) for number, tool in enumerate(chat.get("tools") or ())]
    choice = chat.get("tool_choice")
    if not tools:
        if choice not in (None, "none", "auto"):
            _refuse("tool_choice", "it is only allowed when tools are sent")
        return
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        allowed = choice.get("allowed_tools") or {}
        names = {(tool.get("function") or tool).get("name") for tool in allowed.get("tools") or ()}
        tools = [tool for tool in tools if tool["function"]["name"] in names]
        if not tools:
            _refuse("tool_choice.allowed_tools.tools", "it names none of the tools")
        choice = allowed.get("mode") or "auto"
    body["tools"] = tools
    if choice is not None:
        body["tool_choice"] = "any" if choice == "required" else choice


def _tool(tool: Json, param: str, note: Note) -> Json:
    function = tool.get("function")
    if tool.get("cache_control"):
        note("cache_control", "Mistral caches by itself; the mark was left out.")
    if not function:
        _refuse(f"{param}.type", "it is not a function; Mistral's own tools and custom tools are not offered here")
    known = {name: function[name] for name in ("name", "description", "strict") if function.get(name) is not None}
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    return {"type": "function", "function": {**known, "parameters": parameters}}


def _refuse(param: str, reason: str) -> NoReturn:
    raise CallerError(f"{param}: {reason}.", param=param)
