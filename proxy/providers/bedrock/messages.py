"""
An OpenAI conversation as Converse's: instructions apart, turns of user and assistant in which every tool's result comes
first, and nothing blank, because the API refuses blank text.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

from proxy.errors import CallerError
from proxy.providers import Json, Notice
from proxy.providers.bedrock.content import FILLER, Parts, Piece
from proxy.providers.bedrock.models import Model
from proxy.providers.bedrock.reasoning import replayed_thoughts
from proxy.providers.calls import read_arguments, refuse_unsaid

MAX_ID_CHARACTERS = 64
EMPTY_RESULT = {"text": "(no output)"}
"""What a tool said that said nothing: the API refuses blank text here too."""

_KNOWN = frozenset(
    {"role", "content", "refusal", "tool_calls", "tool_call_id", "cache_control", "annotations", "citations",
     "is_error", "reasoning_content", "reasoning", "reasoning_details", "thinking_blocks", "function_call"}
)  # fmt: skip


@dataclass(slots=True)
class Conversation:
    """What `messages` amounts to. `system` and the turns are lists of pieces until `native` flattens them."""

    system: list[Piece] = field(default_factory=list)
    turns: list[tuple[str, list[Piece]]] = field(default_factory=list)
    notices: dict[Notice, None] = field(default_factory=dict)
    """In order, each once."""
    called: dict[str, str] = field(default_factory=dict)
    """The names of the tools that were called, by the id of the call."""

    def add(self, role: str, pieces: Iterable[Piece]) -> None:
        """To the open turn, if it is this role's: neighbours of one role are one turn."""
        pieces = list(pieces)
        if not pieces:
            return
        if self.turns and self.turns[-1][0] == role:
            self.turns[-1][1].extend(pieces)
        else:
            self.turns.append((role, pieces))

    def notice(self, param: str, message: str, *, lost: bool = True) -> None:
        """Says it once, however many messages give cause."""
        self.notices[Notice(param, message, lost)] = None

    def native(self) -> list[Json]:
        return [{"role": role, "content": [block for piece in turn for block in piece]} for role, turn in self.turns]


def encode_messages(messages: list[Json], model: Model, buckets: Collection[str] = ()) -> Conversation:
    """Raises CallerError with the path of what cannot be said to Bedrock."""
    talk = Conversation()
    parts = Parts(talk.notice, caches=model.caches, buckets=buckets)
    for number, message in enumerate(messages):
        param = f"messages[{number}]"
        _notice_strangers(talk, message)
        match message["role"]:
            case "system" | "developer":
                if talk.turns:
                    talk.notice(
                        param, "Bedrock takes instructions only at the front; this one was moved there.", lost=False
                    )
                talk.system += parts.pieces(message, param, only_text=True)
            case "user":
                talk.add("user", parts.pieces(message, param))
            case "assistant":
                talk.add("assistant", _assistant_pieces(message, param, parts, talk, model))
            case "tool":
                talk.add("user", [_tool_result(message, param, parts, talk)])
            case role:
                raise CallerError(
                    f'{param} has the role "{role}", which Bedrock does not know; use "tool" with a tool_call_id.',
                    param=f"{param}.role",
                )
    if not talk.turns:
        raise CallerError("Bedrock needs at least one message that is not an instruction.", param="messages")
    refuse_unsaid(messages, talk.turns[-1][0], "Bedrock")
    for role, turn in talk.turns:
        turn.sort(key=_place)
        if role == "user" and _lacks_text(turn):
            turn.append([FILLER])
            talk.notice("messages", "Bedrock wants text beside a document; a full stop was added.", lost=False)
    _trim_prefill(talk.turns[-1])
    return talk


def _place(piece: Piece) -> int:
    """Results before everything else in a user's turn, thoughts before everything else in an assistant's."""
    return 0 if "toolResult" in piece[0] or "reasoningContent" in piece[0] else 1


def _lacks_text(turn: list[Piece]) -> bool:
    return any("document" in piece[0] for piece in turn) and not any("text" in piece[0] for piece in turn)


def _assistant_pieces(message: Json, param: str, parts: Parts, talk: Conversation, model: Model) -> list[Piece]:
    spoken = parts.pieces(message, param)
    if message.get("refusal") and not spoken:
        spoken = [[{"text": message["refusal"]}]]
    if message.get("function_call"):
        raise CallerError(
            f"{param}.function_call is the old form of tool_calls; use tool_calls.", param=f"{param}.function_call"
        )
    calls = [[call] for call in _tool_uses(message, param, talk)]
    mark = parts.mark(message.get("cache_control")) if calls else []
    if mark:  # a message's mark stands on its last block, and calls come after the text that got it
        spoken = [piece[:1] if piece[1:] == mark else piece for piece in spoken]
        calls[-1] += mark
    thoughts = [[thought] for thought in replayed_thoughts(message, model, talk.notice)]
    if thoughts and not spoken and not calls:
        # newer Claudes take a turn of thoughts alone for an answer to be continued, and refuse it
        talk.notice(param, "Claude takes no turn that is nothing but thoughts; it was left out.", lost=False)
        return []
    return [*thoughts, *spoken, *calls]


def _tool_uses(message: Json, param: str, talk: Conversation) -> list[Json]:
    blocks = []
    for number, call in enumerate(message.get("tool_calls") or ()):
        path = f"{param}.tool_calls[{number}]"
        function = call.get("function")
        if not function:
            raise CallerError(f"{path} is not a function call; Bedrock knows no other kind.", param=f"{path}.type")
        id = _tool_id(call.get("id"), f"{path}.id")
        talk.called[id] = function["name"]
        arguments = read_arguments(function.get("arguments"), f"{path}.function.arguments")
        blocks.append({"toolUse": {"toolUseId": id, "name": function["name"], "input": arguments}})
    return blocks


def _tool_result(message: Json, param: str, parts: Parts, talk: Conversation) -> Piece:
    id = _tool_id(message.get("tool_call_id"), f"{param}.tool_call_id")
    if id not in talk.called:
        raise CallerError(
            f"{param} answers the tool call {message.get('tool_call_id')!r:.80}, which no message before it made.",
            param=f"{param}.tool_call_id",
        )
    inner = parts.pieces(message, param)
    result: Json = {"toolUseId": id, "content": [piece[0] for piece in inner] or [EMPTY_RESULT]}
    if message.get("is_error") is True:
        result["status"] = "error"
    # a cache point stands behind the result as a whole: inside there is no place for one
    marks = [mark for piece in inner for mark in piece[1:]]
    return [{"toolResult": result}, *marks[-1:]]


def _tool_id(id: Any, param: str) -> str:
    """Bedrock allows fewer and shorter ids than others have; the same id always becomes the same."""
    if not isinstance(id, str) or not id:
        raise CallerError(f"{param} is missing: it says which call and which result belong together.", param=param)
    plain = re.sub(r"[^a-zA-Z0-9_.:-]", lambda found: f"_{ord(found[0]):x}", id)
    if len(plain) > MAX_ID_CHARACTERS:
        digest = hashlib.sha256(plain.encode()).hexdigest()[:24]
        plain = f"{plain[: MAX_ID_CHARACTERS - len(digest) - 1]}-{digest}"
    return plain


def _notice_strangers(talk: Conversation, message: Json) -> None:
    for name, value in message.items():
        if name not in _KNOWN and value not in (None, "", []):
            talk.notice(f"messages[].{name}", f"Bedrock has no {name} in messages; it was left out.")


def _trim_prefill(turn: tuple[str, list[Piece]]) -> None:
    """A last turn of the assistant's is continued, and must not end in white space."""
    role, pieces = turn
    last = pieces[-1][0]
    if role == "assistant" and "text" in last:
        pieces[-1][0] = {"text": last["text"].rstrip()}
