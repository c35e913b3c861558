"""
An OpenAI conversation as Gemini's: instructions apart, turns of user and model in which every function's result comes
first. A result needs the name of its function, which OpenAI says only in the call.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from proxy.errors import CallerError
from proxy.providers import Json, Notice
from proxy.providers.calls import read_arguments, refuse_unsaid
from proxy.providers.gemini.content import content_parts
from proxy.providers.gemini.models import Model
from proxy.providers.gemini.reasoning import UNSIGNED, replayed_thoughts, signature_of, signatures_in

_KNOWN = frozenset(
    {"role", "content", "refusal", "tool_calls", "tool_call_id", "annotations", "images", "reasoning_content",
     "reasoning", "reasoning_details", "thinking_blocks", "function_call", "extra_content"}
)  # fmt: skip


@dataclass(slots=True)
class Conversation:
    """What `messages` amounts to. `system` and the turns' `parts` are lists of parts."""

    model: Model
    system: list[Json] = field(default_factory=list)
    turns: list[Json] = field(default_factory=list)
    notices: dict[Notice, None] = field(default_factory=dict)
    """In order, each once."""
    names: dict[str, str] = field(default_factory=dict)
    """Of the functions that were called, by the id of the call."""

    def add(self, role: str, parts: Iterable[Json]) -> None:
        """To the open turn, if it is this role's: neighbours of one role are one turn."""
        parts = list(parts)
        if not parts:
            return
        if self.turns and self.turns[-1]["role"] == role:
            self.turns[-1]["parts"] += parts
        else:
            self.turns.append({"role": role, "parts": parts})

    def notice(self, param: str, message: str, *, lost: bool = True) -> None:
        """Says it once, however many messages give cause."""
        self.notices[Notice(param, message, lost)] = None


def encode_messages(messages: list[Json], model: Model) -> Conversation:
    """Raises CallerError with the path of what cannot be said to Gemini."""
    talk = Conversation(model)
    for number, message in enumerate(messages):
        param = f"messages[{number}]"
        _notice_strangers(talk, message)
        match message["role"]:
            case "system" | "developer":
                if talk.turns:
                    told = "Gemini takes instructions only at the front; this one was moved there."
                    talk.notice(param, told, lost=False)
                talk.system += content_parts(message, param, model, talk.notice, only_text=True)
            case "user":
                talk.add("user", content_parts(message, param, model, talk.notice))
            case "assistant":
                talk.add("model", _model_parts(message, param, talk))
            case "tool":
                talk.add("user", _result_parts(message, param, talk))
            case role:
                raise CallerError(
                    f'{param} has the role "{role}", which Gemini does not know; use "tool" with a tool_call_id.',
                    param=f"{param}.role",
                )
    if not talk.turns:
        raise CallerError("Gemini needs at least one message that is not an instruction.", param="messages")
    refuse_unsaid(messages, talk.turns[-1]["role"], "Gemini")
    for turn in talk.turns:
        if turn["role"] == "user":
            turn["parts"].sort(key=lambda part: "functionResponse" not in part)
    return talk


def _model_parts(message: Json, param: str, talk: Conversation) -> list[Json]:
    if message.get("function_call"):
        raise CallerError(
            f"{param}.function_call is the old form of tool_calls; use tool_calls.", param=f"{param}.function_call"
        )
    spoken = content_parts(message, param, talk.model, talk.notice)
    if message.get("refusal") and not spoken:
        spoken = [{"text": message["refusal"]}]
    thoughts, signature = replayed_thoughts(message, talk.notice)
    if signature:
        # it belongs to the end of the text, and stands on an empty one where there is none
        spoken = [*spoken[:-1], {**(spoken[-1] if spoken else {"text": ""}), "thoughtSignature": signature}]
    drawn = _drawn(message["images"], talk) if message.get("images") else []
    return [*thoughts, *spoken, *drawn, *_calls(message, param, talk)]


def _drawn(images: Any, talk: Conversation) -> list[Json]:
    """Images of an earlier answer. From Gemini 3 on they would need their signatures, which have no place here."""
    if talk.model.signs_calls:
        talk.notice("messages[].images", "This model's earlier images cannot be sent back to it; they were left out.")
        return []
    urls = [image.get("image_url") for image in images if isinstance(image, dict)] if isinstance(images, list) else []
    urls = [url for url in urls if isinstance(url, dict) and isinstance(url.get("url"), str)]
    parts = [{"type": "image_url", "image_url": url} for url in urls]
    return content_parts({"content": parts}, "messages[].images", talk.model, talk.notice)


def _calls(message: Json, param: str, talk: Conversation) -> list[Json]:
    parts = []
    among_details = signatures_in(message)
    for number, call in enumerate(message.get("tool_calls") or ()):
        path = f"{param}.tool_calls[{number}]"
        function = call.get("function")
        if not function:
            raise CallerError(f"{path} is not a function call; Gemini knows no other kind.", param=f"{path}.type")
        talk.names[call["id"]] = function["name"]
        arguments = read_arguments(function.get("arguments"), f"{path}.function.arguments")
        part: Json = {"functionCall": {"id": call["id"], "name": function["name"], "args": arguments}}
        signature = signature_of(call, among_details)
        if signature:
            part["thoughtSignature"] = signature
        elif number == 0 and talk.model.signs_calls:
            part["thoughtSignature"] = UNSIGNED
            told = "A tool call came back without its extra_content, where Gemini signs it; the check was skipped."
            talk.notice("messages[].tool_calls[].extra_content", told, lost=False)
        parts.append(part)
    return parts


def _result_parts(message: Json, param: str, talk: Conversation) -> list[Json]:
    """The result, and media beside it: within it from Gemini 3 on, after it before."""
    id = message.get("tool_call_id")
    name = talk.names.get(id) if isinstance(id, str) else None
    if name is None:
        raise CallerError(
            f"{param} answers the tool call {id!r:.80}, which no message before it made.", param=f"{param}.tool_call_id"
        )
    parts = content_parts(message, param, talk.model, talk.notice)
    media = [part for part in parts if "text" not in part]
    text = "\n".join(part["text"] for part in parts if "text" in part)
    result: Json = {"id": id, "name": name, "response": _response(text)}
    if media and talk.model.signs_calls:
        return [{"functionResponse": {**result, "parts": media}}]
    return [{"functionResponse": result}, *media]


def _response(text: str) -> Json:
    """A JSON object is the response itself; anything else is its `output`, which is Google's own name for it."""
    if text.lstrip().startswith("{"):
        try:
            response = msgspec.json.decode(text)
        except (msgspec.DecodeError, ValueError, RecursionError):
            response = None
        if isinstance(response, dict):
            return response
    return {"output": text}


def _notice_strangers(talk: Conversation, message: Json) -> None:
    for name, value in message.items():
        sent = name in _KNOWN or (name == "name" and message["role"] == "tool")  # a result has its function's name
        if not sent and value not in (None, "", []):
            talk.notice(f"messages[].{name}", f"Gemini has no {name} in messages; it was left out.")
