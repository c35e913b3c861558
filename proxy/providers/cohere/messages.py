"""
An OpenAI conversation as Cohere's: results of tools as documents, so that the answer can cite them, and thoughts where
they came from, a tool plan or a block of content.
"""

from __future__ import annotations

from typing import Any, NoReturn, Protocol

import msgspec

from proxy.errors import CallerError
from proxy.providers import Json
from proxy.providers.cohere.answers import PLAN, THINKING

_KNOWN = frozenset(
    {"role", "content", "refusal", "tool_calls", "tool_call_id", "annotations", "citations", "reasoning_content",
     "reasoning", "reasoning_details", "function_call"}
)  # fmt: skip


class Note(Protocol):
    """Takes the parameter and what became of it; `lost` as in `Notice`."""

    def __call__(self, param: str, message: str, *, lost: bool = True) -> None: ...


def encode_messages(messages: list[Json], note: Note) -> list[Json]:
    """Raises CallerError with the path of what cannot be said to Cohere."""
    return [_message(message, f"messages[{number}]", note) for number, message in enumerate(messages)]


def _message(message: Json, param: str, note: Note) -> Json:
    for name, value in message.items():
        if name not in _KNOWN and value not in (None, "", []):
            note(f"messages[].{name}", f"Cohere has no {name} in messages; it was left out.")
    match message["role"]:
        case "system" | "developer":
            return {
                "role": "system",
                "content": _content(message.get("content"), f"{param}.content", note, images=False),
            }
        case "user":
            return {"role": "user", "content": _content(message.get("content"), f"{param}.content", note)}
        case "assistant":
            return _assistant(message, param, note)
        case "tool":
            id = message.get("tool_call_id")
            if not isinstance(id, str) or not id:
                refuse(f"{param}.tool_call_id", "it is missing: it says which call this answers")
            content = _content(message.get("content"), f"{param}.content", note, images=False)
            text = content if isinstance(content, str) else "".join(part["text"] for part in content)
            return {"role": "tool", "tool_call_id": id, "content": _documents(text)}
        case role:
            refuse(f"{param}.role", f'Cohere does not know the role "{role}"; use "tool" with a tool_call_id')


def _assistant(message: Json, param: str, note: Note) -> Json:
    if message.get("function_call"):
        refuse(f"{param}.function_call", "it is the old form of tool_calls; use tool_calls")
    plan, thinking = _thoughts(message, note)
    said = _content(message.get("content") or message.get("refusal"), f"{param}.content", note, images=False)
    content: list[Json] = [{"type": "thinking", "thinking": thinking}] if thinking else []
    content += said if isinstance(said, list) else [{"type": "text", "text": said}] if said else []
    calls = [
        _call(call, f"{param}.tool_calls[{number}]") for number, call in enumerate(message.get("tool_calls") or ())
    ]
    encoded: Json = {"role": "assistant"}
    if calls:
        encoded |= {"tool_calls": calls} | ({"tool_plan": plan} if plan else {})
    if content:
        encoded["content"] = said if not thinking and isinstance(said, str) else content
    elif not calls:
        encoded["content"] = ""
    return encoded


def _thoughts(message: Json, note: Note) -> tuple[str, str]:
    """Cohere's own thoughts, whole or as the fragments of a stream: the plan of its calls, and the rest."""
    found = {PLAN: "", THINKING: ""}
    kinds: dict[object, Any] = {}
    details = message.get("reasoning_details")
    for detail in details if isinstance(details, list) else ():
        if isinstance(detail, dict):
            # only the first fragment of a thought says what it is
            kind = kinds.setdefault(detail.get("index"), detail.get("format"))
            if kind in found:
                found[kind] += detail.get("text") or ""
    if not any(found.values()) and any(
        message.get(name) for name in ("reasoning_content", "reasoning", "reasoning_details")
    ):
        note("messages[].reasoning_content", "Reasoning that is not Cohere's is not sent to it; it was left out.")
    return found[PLAN], found[THINKING]


def _call(call: Json, param: str) -> Json:
    function = call.get("function")
    if not function:
        refuse(f"{param}.type", "it is not a function call; Cohere knows no other kind")
    if not isinstance(call.get("id"), str) or not call["id"]:
        refuse(f"{param}.id", "it is missing: it says which result belongs to this call")
    arguments = function.get("arguments") or "{}"
    return {"id": call["id"], "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _documents(text: str) -> list[Json]:
    """One for an object, one for each object of a list; anything else is the content of one."""
    try:
        said = msgspec.json.decode(text)
    except (msgspec.DecodeError, ValueError, RecursionError):
        said = None
    listed = said if isinstance(said, list) and said else [said]
    if not all(isinstance(one, dict) and one for one in listed):
        listed = [{"content": text}]
    return [{"type": "document", "document": {"data": one}} for one in listed]


def _content(content: Any, param: str, note: Note, *, images: bool = True) -> Any:
    if not isinstance(content, list):
        return content or ""
    return [_part(part, f"{param}[{number}]", note, images) for number, part in enumerate(content)]


def _part(part: Json, param: str, note: Note, images: bool) -> Json:
    if part.get("cache_control"):
        note("cache_control", "Cohere caches by itself; the mark was left out.")
    match part["type"]:
        case "text" | "refusal" as kind:
            return {"type": "text", "text": part.get(kind) or ""}
        case "image_url" if images:
            return {"type": "image_url", "image_url": part.get("image_url") or {}}
        case kind:
            takes = "text and image_url do" if images else "only text does"
            refuse(param, f"Cohere takes no content of type {kind!r:.60} here: {takes}")


def refuse(param: str, reason: str) -> NoReturn:
    raise CallerError(f"{param}: {reason}.", param=param)
