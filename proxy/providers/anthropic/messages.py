"""
An OpenAI conversation as Anthropic's: instructions apart, turns of user and assistant in which every tool's result
comes first, and nothing empty, because the API refuses empty text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from proxy.errors import CallerError
from proxy.providers import Json, Notice
from proxy.providers.anthropic.content import content_blocks
from proxy.providers.anthropic.reasoning import replayed_thoughts
from proxy.providers.calls import read_arguments, refuse_unsaid

_KNOWN = frozenset(
    {"role", "content", "refusal", "tool_calls", "tool_call_id", "cache_control", "annotations", "citations",
     "reasoning_content", "reasoning", "reasoning_details", "thinking_blocks", "native_blocks", "is_error",
     "function_call"}
)  # fmt: skip


@dataclass(slots=True)
class Conversation:
    """What `messages` amounts to. `system` and the turns' `content` are lists of blocks."""

    system: list[Json] = field(default_factory=list)
    turns: list[Json] = field(default_factory=list)
    notices: dict[Notice, None] = field(default_factory=dict)
    """In order, each once."""

    def add(self, role: str, blocks: Iterable[Json]) -> None:
        """To the open turn, if it is this role's: neighbours of one role are one turn."""
        blocks = list(blocks)
        if not blocks:
            return
        if self.turns and self.turns[-1]["role"] == role:
            self.turns[-1]["content"] += blocks
        else:
            self.turns.append({"role": role, "content": blocks})

    def notice(self, param: str, message: str, *, lost: bool = True) -> None:
        """Says it once, however many messages give cause."""
        self.notices[Notice(param, message, lost)] = None


def encode_messages(messages: list[Json]) -> Conversation:
    """Raises CallerError with the path of what cannot be said to Anthropic."""
    talk = Conversation()
    asked: set[str] = set()
    for number, message in enumerate(messages):
        param = f"messages[{number}]"
        _notice_strangers(talk, message)
        match message["role"]:
            case "system" | "developer":
                if talk.turns:
                    talk.notice(
                        param, "Anthropic takes instructions only at the front; this one was moved there.", lost=False
                    )
                talk.system += content_blocks(message, param, talk.notice, only_text=True)
            case "user":
                talk.add("user", content_blocks(message, param, talk.notice))
            case "assistant":
                calls = _tool_uses(message, param)
                asked |= {call["id"] for call in calls}
                talk.add("assistant", _assistant_blocks(message, calls, param, talk))
            case "tool":
                talk.add("user", [_tool_result(message, param, asked, talk)])
            case role:
                raise CallerError(
                    f'{param} has the role "{role}", which Anthropic does not know; use "tool" with a tool_call_id.',
                    param=f"{param}.role",
                )
    if not talk.turns:
        raise CallerError("Anthropic needs at least one message that is not an instruction.", param="messages")
    refuse_unsaid(messages, talk.turns[-1]["role"], "Anthropic")
    for turn in talk.turns:
        turn["content"].sort(key=_place)
    _trim_prefill(talk.turns[-1])
    return talk


def _place(block: Json) -> int:
    """Results before everything else in a user's turn, thinking before everything else in an assistant's."""
    return 0 if block["type"] in ("tool_result", "thinking", "redacted_thinking") else 1


def _assistant_blocks(message: Json, calls: list[Json], param: str, talk: Conversation) -> list[Json]:
    spoken = content_blocks(message, param, talk.notice)
    if message.get("refusal") and not spoken:
        spoken = [{"type": "text", "text": message["refusal"]}]
    if message.get("function_call"):
        raise CallerError(
            f"{param}.function_call is the old form of tool_calls; use tool_calls.", param=f"{param}.function_call"
        )
    done, begun = _native_blocks(message.get("native_blocks"))
    blocks = [*replayed_thoughts(message, talk.notice), *done, *spoken, *begun, *calls]
    if calls and isinstance(message.get("cache_control"), dict):
        _move_mark(blocks, message["cache_control"])
    return blocks


def _native_blocks(blocks: Any) -> tuple[list[Json], list[Json]]:
    """What Anthropic ran itself, and what it had only begun when it paused; the latter must come last."""
    kept = [block for block in blocks if isinstance(block, dict)] if isinstance(blocks, list) else []
    kept = [{name: value for name, value in block.items() if name != "index"} for block in kept]
    answered = {block.get("tool_use_id") for block in kept}
    done, begun = list[Json](), list[Json]()
    for block in kept:
        waits = str(block.get("type")).endswith("_tool_use") and block.get("id") not in answered
        (begun if waits else done).append(block)
    return done, begun


def _move_mark(blocks: list[Json], mark: Json) -> None:
    """A message's mark stands on its last block, and calls come after the text that got it."""
    for block in blocks:
        if block.get("cache_control") is mark:
            del block["cache_control"]
    blocks[-1]["cache_control"] = mark


def _tool_uses(message: Json, param: str) -> list[Json]:
    blocks = []
    for number, call in enumerate(message.get("tool_calls") or ()):
        path = f"{param}.tool_calls[{number}]"
        function = call.get("function")
        if not function:
            raise CallerError(f"{path} is not a function call; Anthropic knows no other kind.", param=f"{path}.type")
        blocks.append(
            {
                "type": "tool_use",
                "id": _tool_id(call.get("id"), f"{path}.id"),
                "name": function["name"],
                "input": read_arguments(function.get("arguments"), f"{path}.function.arguments"),
            }
        )
    return blocks


def _tool_result(message: Json, param: str, asked: set[str], talk: Conversation) -> Json:
    id = _tool_id(message.get("tool_call_id"), f"{param}.tool_call_id")
    if id not in asked:
        raise CallerError(
            f"{param} answers the tool call {message.get('tool_call_id')!r:.80}, which no message before it made.",
            param=f"{param}.tool_call_id",
        )
    # the mark belongs to the result as a whole: marks inside a result are not allowed
    inner = [dict(block) for block in content_blocks(message, param, talk.notice)]
    marks = [mark for block in inner if (mark := block.pop("cache_control", None))]
    result: Json = {"type": "tool_result", "tool_use_id": id}
    if len(inner) == 1 and inner[0]["type"] == "text":
        result["content"] = inner[0]["text"]
    elif inner:
        result["content"] = inner
    if message.get("is_error") is True:
        result["is_error"] = True
    return result | {"cache_control": marks[-1]} if marks else result


def _tool_id(id: Any, param: str) -> str:
    """Anthropic allows fewer characters than the ids of others have; the same id always becomes the same."""
    if not isinstance(id, str) or not id:
        raise CallerError(f"{param} is missing: it says which call and which result belong together.", param=param)
    return re.sub(r"[^a-zA-Z0-9_-]", lambda found: f"_{ord(found[0]):x}", id)


def _notice_strangers(talk: Conversation, message: Json) -> None:
    for name, value in message.items():
        if name not in _KNOWN and value not in (None, "", []):
            talk.notice(f"messages[].{name}", f"Anthropic has no {name} in messages; it was left out.")


def _trim_prefill(turn: Json) -> None:
    """A last turn of the assistant's is continued, and must not end in white space."""
    last = turn["content"][-1]
    if turn["role"] == "assistant" and last["type"] == "text":
        last["text"] = last["text"].rstrip()
