"""Cohere's chat, version 2: answers, streams and the refusals that gateways run into. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from tests.oracle.bill import Item
from tests.oracle.mind import Asked
from tests.oracle.script import Wanted

PATH = re.compile(r"/v2/chat$")
REASONS_APART = False
END = b"data: [DONE]\n\n"

FIELDS = frozenset(
    (
        *("model", "messages", "stream", "tools", "tool_choice", "strict_tools", "documents", "citation_options"),
        *("response_format", "safety_mode", "max_tokens", "stop_sequences", "temperature", "seed", "k", "p"),
        *("frequency_penalty", "presence_penalty", "logprobs", "thinking", "priority"),
    )
)
ADDED = 480
"""Tokens that Cohere puts before every prompt of its own accord, counts, and does not charge."""
CHOICES = {"REQUIRED": "any", "NONE": "none", None: "auto"}


def asked(body: dict[str, Any]) -> Asked:
    form = body.get("response_format") or {}
    return Asked(
        [(tool["function"]["name"], tool["function"]["parameters"]) for tool in body.get("tools") or ()],
        CHOICES[body.get("tool_choice")],
        form.get("json_schema", {}) if form.get("type") == "json_object" else None,
        body["messages"][-1]["role"] == "tool",
    )


def said(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Cohere's words are OpenAI's, but that a tool answers in documents."""
    return {**body, "messages": [_message(message) for message in body.get("messages") or ()]}


def _message(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    return {**message, "content": [_part(part) for part in content]} if isinstance(content, list) else message


def _part(part: dict[str, Any]) -> dict[str, Any]:
    if part.get("type") != "document":
        return part
    return {"type": "text", "text": msgspec.json.encode(part["document"].get("data")).decode()}


def refuse(body: dict[str, Any], headers: dict[str, str]) -> tuple[int, str] | None:
    """What Cohere itself would refuse: status and message."""
    if not headers.get("authorization", "").startswith("Bearer "):
        return 401, "no api key supplied"
    if unknown := sorted(body.keys() - FIELDS):
        return 422, f"unknown field: parameter '{unknown[0]}' is not a valid field"
    if body.get("tool_choice") not in CHOICES:
        return 400, "invalid type: parameter 'tool_choice' must be one of REQUIRED, NONE"
    if "response_format" in body and (body.get("tools") or body.get("documents")):
        return 400, "invalid request: response_format cannot be used with tools or documents"
    if body.get("tool_choice") and not body.get("tools"):
        return 400, "invalid request: tool_choice needs tools"
    messages = body.get("messages") or []
    if not messages:
        return 400, "invalid request: messages must not be empty"
    for number, message in enumerate(messages):
        if wrong := _refuse_message(message):
            return 400, f"invalid request: message at position {number} {wrong}"
    wrong = _unanswered(messages)
    return (400, wrong) if wrong else None


def _refuse_message(message: dict[str, Any]) -> str | None:
    role, content = message.get("role"), message.get("content")
    if role not in ("system", "user", "assistant", "tool"):
        return "has an invalid role"
    if not content and not message.get("tool_calls"):
        return "must have content or tool calls"
    if role == "tool" and not message.get("tool_call_id"):
        return "must have a tool_call_id"
    kinds = {part["type"] for part in content} if isinstance(content, list) else set()
    known = {"user": {"text", "image_url"}, "tool": {"text", "document"}, "assistant": {"text", "thinking"}}
    strange = kinds - known.get(role, {"text"})
    return f"has content of the invalid type {sorted(strange)[0]}" if strange else None


def _unanswered(messages: list[dict[str, Any]]) -> str | None:
    waiting: set[str] = set()
    for message in messages:
        if message["role"] == "tool":
            if message["tool_call_id"] not in waiting:
                return "invalid request: tool call id not found in the previous tool calls"
            waiting.discard(message["tool_call_id"])
        elif waiting:
            return "invalid request: every tool call must be followed by its result"
        waiting |= {call["id"] for call in message.get("tool_calls") or ()}
    return "invalid request: every tool call must be followed by its result" if waiting else None


def error(status: int, message: str | None, code: str | None) -> bytes:
    return msgspec.json.encode({"id": "oracle", "message": message or f"The oracle was told to answer {status}."})


def error_event(message: str | None, code: str | None) -> bytes:
    return b"data: " + error(500, message or "The oracle failed in the middle.", code) + b"\n\n"


def usage(item: Item) -> dict[str, Any]:
    """The billed units are the bill; the tokens are more than that."""
    cached = item.cache_read_tokens + item.cache_write_5m_tokens + item.cache_write_1h_tokens
    billed = item.input_tokens + cached
    counted: dict[str, Any] = {
        "billed_units": {"input_tokens": billed, "output_tokens": item.output_tokens},
        "tokens": {"input_tokens": billed + ADDED, "output_tokens": item.output_tokens + 2},
    }
    return counted | ({"cached_tokens": item.cache_read_tokens} if item.cache_read_tokens else {})


def _end(wanted: Wanted, item: Item) -> dict[str, Any]:
    finish_reason = "TOOL_CALL" if wanted.script.tools else "COMPLETE"
    return {"finish_reason": finish_reason} | ({} if wanted.script.usage == "none" else {"usage": usage(item)})


def whole(wanted: Wanted, item: Item) -> bytes:
    message: dict[str, Any] = {"role": "assistant"}
    content: list[dict[str, Any]] = []
    if wanted.script.thinking:
        content.append({"type": "thinking", "thinking": "".join(wanted.thoughts())})
    if not wanted.script.tools:
        content.append({"type": "text", "text": "".join(wanted.words())})
    if content:
        message["content"] = content
    if calls := _calls(wanted):
        message["tool_calls"] = calls
    return msgspec.json.encode({"id": _id(item), "message": message, **_end(wanted, item)})


def events(wanted: Wanted, item: Item) -> Iterator[tuple[int, bytes]]:
    """Each event, with how many billed output tokens it brings; the stream's end is `END`."""
    empty = {"role": "assistant", "content": [], "tool_plan": "", "tool_calls": [], "citations": []}
    yield 0, _event("message-start", id=_id(item), delta={"message": empty})
    blocks = [("thinking", wanted.thoughts())] if wanted.script.thinking else []
    blocks += [] if wanted.script.tools else [("text", wanted.words())]
    for index, (kind, pieces) in enumerate(blocks):
        yield 0, _said("content-start", index, content={"type": kind, kind: ""})
        for piece in pieces:
            yield 1, _said("content-delta", index, content={kind: piece})
        yield 0, _event("content-end", index=index)
    for index, call in enumerate(_calls(wanted)):
        function = call["function"]
        yield 0, _said("tool-call-start", index, tool_calls={**call, "function": {**function, "arguments": ""}})
        yield 1, _said("tool-call-delta", index, tool_calls={"function": {"arguments": function["arguments"]}})
        yield 0, _event("tool-call-end", index=index)
    for _ in range(2 if wanted.script.usage == "twice" else 1):
        yield 0, _event("message-end", delta=_end(wanted, item))


def _calls(wanted: Wanted) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{name}_{number}",
            "type": "function",
            "function": {"name": name, "arguments": msgspec.json.encode(arguments).decode()},
        }
        for number, (name, arguments) in enumerate(wanted.calls())
    ]


def _id(item: Item) -> str:
    return f"chat-{item.nonce or 'oracle'}-{item.ordinal}"


def _said(kind: str, index: int, **message: Any) -> bytes:
    return _event(kind, index=index, delta={"message": message})


def _event(kind: str, **members: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), msgspec.json.encode({"type": kind, **members}))
