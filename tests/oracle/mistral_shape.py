"""
Mistral's chat completions: OpenAI's answers with thoughts as chunks of content, calls that come whole and a usage
nobody has to ask for; and a validation of its own that refuses every field it does not know. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from tests.oracle import mind, openai_shape
from tests.oracle.bill import Item
from tests.oracle.script import Wanted

PATH = re.compile(r"^/mistral/v1/chat/completions$")
"""Under a folder of its own, for the rest of it is OpenAI's."""
REASONS_APART = False
END = openai_shape.END
LIMITS = {
    "x-ratelimit-limit-req-minute": "4000",
    "x-ratelimit-remaining-req-minute": "3999",
    "x-ratelimit-remaining-tokens-minute": "479000",
}
"""What every answer says of the account's limits; it does not say when they are whole again."""

FIELDS = frozenset(
    (
        *("model", "messages", "stream", "temperature", "top_p", "max_tokens", "stop", "random_seed", "metadata"),
        *("response_format", "tools", "tool_choice", "presence_penalty", "frequency_penalty", "n", "prediction"),
        *("parallel_tool_calls", "prompt_mode", "reasoning_effort", "guardrails", "safe_prompt", "prompt_cache_key"),
    )
)
MEMBERS = {
    "system": {"role", "content"},
    "user": {"role", "content"},
    "assistant": {"role", "content", "tool_calls", "prefix"},
    "tool": {"role", "content", "tool_call_id", "name"},
}
CHOICES = ("auto", "none", "any", "required")
_ID = re.compile(r"[a-zA-Z0-9]{9}")


def asked(body: dict[str, Any]) -> mind.Asked:
    return mind.from_openai(body)


def said(path: str, body: dict[str, Any]) -> dict[str, Any]:
    return {**body, "stream_options": {"include_usage": True}}


def refuse(body: dict[str, Any], headers: dict[str, str]) -> tuple[int, str] | None:
    """What Mistral itself would refuse: status and message."""
    if not headers.get("authorization", "").startswith("Bearer "):
        return 401, "Unauthorized"
    if unknown := sorted(body.keys() - FIELDS):
        return 422, f"{unknown[0]}: Extra inputs are not permitted"
    choice = body.get("tool_choice", "auto")
    if isinstance(choice, str) and choice not in CHOICES:
        return 422, "tool_choice: Input should be 'auto', 'none', 'any' or 'required'"
    messages = body.get("messages") or []
    if not messages:
        return 422, "messages: List should have at least 1 item"
    for number, message in enumerate(messages):
        known = MEMBERS.get(message["role"], set())
        if strange := sorted(message.keys() - known):
            return 422, f"messages.{number}.{strange[0]}: Extra inputs are not permitted"
        ids = [call["id"] for call in message.get("tool_calls") or ()]
        ids += [message["tool_call_id"]] if message["role"] == "tool" else []
        if wrong := [id for id in ids if not _ID.fullmatch(id)]:
            return 400, f"Tool call id was {wrong[0]} but must be a-z, A-Z, 0-9, with a length of 9."
    wrong_order = _refuse_order(messages)
    return (400, wrong_order) if wrong_order else None


def _refuse_order(messages: list[dict[str, Any]]) -> str | None:
    """github.com/mistralai/mistral-common validates the same way before it makes tokens of a conversation."""
    calls = 0
    for number, message in enumerate(messages):
        if message["role"] == "user" and number and messages[number - 1]["role"] == "tool":
            return "Unexpected role 'user' after role 'tool'"
        if message["role"] == "tool":
            calls -= 1
        elif calls > 0:
            return "Not the same number of function calls and responses"
        else:
            calls = len(message.get("tool_calls") or ())
        if calls < 0:
            return f"Unexpected role 'tool' after role '{messages[number - 1]['role']}'"
    last = messages[-1]
    if last["role"] == "assistant" and not last.get("prefix"):
        return "Expected last role User or Tool (or Assistant with prefix True) for serving but got assistant"
    return None


def error(status: int, message: str | None, code: str | None) -> bytes:
    text = message or f"The oracle was told to answer {status}."
    if status == 401:
        return msgspec.json.encode({"detail": "Unauthorized"})
    told: Any = text
    if status == 422:
        place, _, wrong = text.rpartition(": ")
        told = {"detail": [{"type": "extra_forbidden", "loc": ["body", *place.split(".")], "msg": wrong}]}
    kind = "rate_limited" if status == 429 else "invalid_request_error" if status < 500 else "internal_server_error"
    return msgspec.json.encode({"object": "error", "message": told, "type": kind, "param": None, "code": code})


def error_event(message: str | None, code: str | None) -> bytes:
    return b"data: " + error(500, message or "The oracle failed in the middle.", code) + b"\n\n"


def usage(item: Item) -> dict[str, Any]:
    return {name: value for name, value in openai_shape.usage(item).items() if name != "completion_tokens_details"}


def _answer(wanted: Wanted, item: Item, kind: str, choice: dict[str, Any], *, ends: bool) -> dict[str, Any]:
    finish = ("tool_calls" if wanted.script.tools else "stop") if ends else None
    answer = {
        "id": f"{item.nonce or 'oracle'}{item.ordinal}",
        "object": kind,
        "created": openai_shape.CREATED,
        "model": wanted.model,
        "choices": [{"index": 0, **choice, "finish_reason": finish}],
    }
    return answer | ({"usage": usage(item)} if ends and wanted.script.usage != "none" else {})


def whole(wanted: Wanted, item: Item) -> bytes:
    calls = _calls(wanted)
    content: Any = "" if calls else "".join(wanted.words())
    if wanted.script.thinking:
        content = [_thought("".join(wanted.thoughts())), *([{"type": "text", "text": content}] if content else [])]
    message = {"role": "assistant", "content": content, "tool_calls": calls or None}
    return msgspec.json.encode(_answer(wanted, item, "chat.completion", {"message": message}, ends=True))


def events(wanted: Wanted, item: Item) -> Iterator[tuple[int, bytes]]:
    """Each event, with how many billed output tokens it brings; the stream's end is `END`."""
    yield 0, _event(wanted, item, {"role": "assistant", "content": ""})
    for thought in wanted.thoughts():
        yield 1, _event(wanted, item, {"content": [_thought(thought)]})
    calls = _calls(wanted)
    for word in () if calls else wanted.words():
        yield 1, _event(wanted, item, {"content": word})
    last = {"content": "", **({"tool_calls": calls} if calls else {})}
    yield len(calls), _event(wanted, item, last, ends=True)


def _event(wanted: Wanted, item: Item, delta: dict[str, Any], *, ends: bool = False) -> bytes:
    answer = _answer(wanted, item, "chat.completion.chunk", {"delta": delta}, ends=ends)
    return b"data: " + msgspec.json.encode(answer) + b"\n\n"


def _thought(text: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": [{"type": "text", "text": text}]}


def _calls(wanted: Wanted) -> list[dict[str, Any]]:
    return [
        {
            "id": f"call{number:05d}",
            "function": {"name": name, "arguments": msgspec.json.encode(arguments).decode()},
            "index": number,
        }
        for number, (name, arguments) in enumerate(wanted.calls())
    ]
