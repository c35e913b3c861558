"""
Anthropic messages: answers, streams, errors and the refusals that gateways run into; the same at Vertex, where the
model stands in the path and the version in the body. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from tests.oracle import mind
from tests.oracle.bill import Item
from tests.oracle.script import Wanted

PATH = re.compile(r"/messages$|/publishers/anthropic/models/(?P<model>[^/:]+):(?:rawPredict|streamRawPredict)$")
asked = mind.from_anthropic
REASONS_APART = False

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}

LIMITS = {
    "anthropic-ratelimit-requests-limit": "4000",
    "anthropic-ratelimit-requests-remaining": "3999",
    "anthropic-ratelimit-requests-reset": "2026-01-01T00:00:00Z",
    "anthropic-ratelimit-tokens-remaining": "479000",
}
"""What every answer says of the account's limits."""

FIELDS = frozenset(
    (
        *("model", "messages", "max_tokens", "system", "stream", "metadata", "service_tier", "container"),
        *("temperature", "top_p", "top_k", "stop_sequences", "tools", "tool_choice", "thinking"),
        *("output_config", "output_format", "cache_control", "context_management", "mcp_servers"),
    )
)


PREVIEWS = frozenset(("container", "context_management", "mcp_servers"))
"""Fields that do not exist for those who send no beta header."""


def said(path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The request with its model in it, which Vertex has in the path."""
    found = PATH.search(path)
    return body if found is None or found["model"] is None else {**body, "model": found["model"]}


def refuse(body: dict[str, Any], headers: dict[str, str]) -> tuple[int, str] | None:
    """What Anthropic itself would refuse: status and message."""
    if headers.get(":path", "").endswith("Predict"):
        return _refuse_at_vertex(body, headers)
    if not headers.get("x-api-key"):
        return 401, "x-api-key header is required"
    if not headers.get("anthropic-version"):
        return 400, "anthropic-version: header is required"
    return _refuse_body(body, headers)


def _refuse_at_vertex(body: dict[str, Any], headers: dict[str, str]) -> tuple[int, str] | None:
    if not headers.get("authorization", "").startswith("Bearer "):
        return 401, "Request is missing required authentication credential. Expected OAuth 2 access token."
    if body.get("anthropic_version") != "vertex-2023-10-16":
        return 400, "anthropic_version: Field required"
    if "model" in body:
        return 400, "model: Extra inputs are not permitted"
    if (body.get("stream") is True) != headers.get(":path", "").endswith(":streamRawPredict"):
        return 400, "stream: the method and the body say different things"
    return _refuse_body({name: value for name, value in body.items() if name != "anthropic_version"}, headers)


def _refuse_body(body: dict[str, Any], headers: dict[str, str]) -> tuple[int, str] | None:
    unknown = sorted(
        body.keys() - FIELDS if headers.get("anthropic-beta") else body.keys() - FIELDS | body.keys() & PREVIEWS
    )
    if unknown:
        return 400, f"{unknown[0]}: Extra inputs are not permitted"
    if not isinstance(body.get("max_tokens"), int) or body["max_tokens"] < 1:
        return 400, "max_tokens: Field required"
    messages = body.get("messages") or []
    if not messages:
        return 400, "messages: at least one message is required"
    for number, message in enumerate(messages):
        if message.get("role") not in ("user", "assistant"):
            return 400, f"messages.{number}.role: Input should be 'user' or 'assistant'"
        if wrong := _refuse_content(message.get("content")):
            return 400, f"messages.{number}: {wrong}"
    for tool in body.get("tools") or []:
        if tool.get("input_schema", {}).get("type") != "object":
            return 400, "tools.0.custom.input_schema.type: Field required"
    return _unanswered(messages)


def _refuse_content(content: object) -> str | None:
    for block in content if isinstance(content, list) else []:
        if block.get("type") == "text" and not block.get("text"):
            return "text content blocks must be non-empty"
        source = block.get("source", {})
        if block.get("type") == "image" and not (
            (source.get("type") == "base64" and source.get("data") and source.get("media_type"))
            or (source.get("type") == "url" and source.get("url"))
        ):
            return "image.source: Field required"
    return "text content blocks must be non-empty" if content == "" else None


def _unanswered(messages: list[dict[str, Any]]) -> tuple[int, str] | None:
    for number, message in enumerate(messages):
        used = {block["id"] for block in _blocks(message) if block.get("type") == "tool_use"}
        following = _blocks(messages[number + 1]) if number + 1 < len(messages) else []
        given = {block.get("tool_use_id") for block in following if block.get("type") == "tool_result"}
        if used - given:
            return 400, f"messages.{number}: `tool_use` ids were found without `tool_result` blocks immediately after"
    return None


def _blocks(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content")
    return content if isinstance(content, list) else []


def error(status: int, message: str | None, code: str | None) -> bytes:
    kind = code or TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    text = message or ("Overloaded" if status == 529 else f"The oracle was told to answer {status}.")
    return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": text}, "request_id": "req_oracle"})


def error_event(message: str | None, code: str | None) -> bytes:
    return b"event: error\ndata: " + error(529, message, code) + b"\n\n"


END = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'


def usage(item: Item, output_tokens: int) -> dict[str, Any]:
    return {
        "input_tokens": item.input_tokens,
        "cache_creation_input_tokens": item.cache_write_5m_tokens + item.cache_write_1h_tokens,
        "cache_read_input_tokens": item.cache_read_tokens,
        "cache_creation": {
            "ephemeral_5m_input_tokens": item.cache_write_5m_tokens,
            "ephemeral_1h_input_tokens": item.cache_write_1h_tokens,
        },
        "output_tokens": output_tokens,
        "service_tier": "standard",
    }


def whole(wanted: Wanted, item: Item) -> bytes:
    content: list[dict[str, Any]] = []
    if wanted.script.thinking:
        content.append({"type": "thinking", "thinking": "".join(wanted.thoughts()), "signature": "c2lnbmVk"})
    if not wanted.script.tools:
        content.append({"type": "text", "text": "".join(wanted.words())})
    for number, (name, arguments) in enumerate(wanted.calls()):
        content.append({"type": "tool_use", "id": f"toolu_{number}", "name": name, "input": arguments})
    return msgspec.json.encode(
        {
            **_message(wanted, item),
            "content": content,
            "stop_reason": "tool_use" if wanted.script.tools else "end_turn",
            "usage": usage(item, item.output_tokens),
        }
    )


def events(wanted: Wanted, item: Item) -> Iterator[tuple[int, bytes]]:
    """Each event, with how many billed output tokens it brings; the stream's end is `END`."""
    yield 0, _event("message_start", message={**_message(wanted, item), "content": [], "usage": usage(item, 1)})
    index = 0
    if wanted.script.thinking:
        yield (
            0,
            _event(
                "content_block_start", index=index, content_block={"type": "thinking", "thinking": "", "signature": ""}
            ),
        )
        for thought in wanted.thoughts():
            yield 1, _delta(index, type="thinking_delta", thinking=thought)
        yield 0, _delta(index, type="signature_delta", signature="c2lnbmVk")
        yield 0, _event("content_block_stop", index=index)
        index += 1
    yield 0, _event("ping")
    if not wanted.script.tools:
        yield 0, _event("content_block_start", index=index, content_block={"type": "text", "text": ""})
        for word in wanted.words():
            yield 1, _delta(index, type="text_delta", text=word)
        yield 0, _event("content_block_stop", index=index)
        index += 1
    for number, (name, arguments) in enumerate(wanted.calls()):
        block = {"type": "tool_use", "id": f"toolu_{number}", "name": name, "input": {}}
        yield 0, _event("content_block_start", index=index, content_block=block)
        yield 0, _delta(index, type="input_json_delta", partial_json="")
        yield 1, _delta(index, type="input_json_delta", partial_json=msgspec.json.encode(arguments).decode())
        yield 0, _event("content_block_stop", index=index)
        index += 1
    stop_reason = "tool_use" if wanted.script.tools else "end_turn"
    for _ in range(2 if wanted.script.usage == "twice" else 1):
        delta = {"stop_reason": stop_reason, "stop_sequence": None}
        used = {"output_tokens": item.output_tokens}
        yield 0, _event("message_delta", delta=delta, usage=used)


def _message(wanted: Wanted, item: Item) -> dict[str, Any]:
    return {
        "id": f"msg_{item.nonce or 'oracle'}_{item.ordinal}",
        "type": "message",
        "role": "assistant",
        "model": wanted.model,
        "stop_reason": None,
        "stop_sequence": None,
    }


def _delta(index: int, **delta: Any) -> bytes:
    return _event("content_block_delta", index=index, delta=delta)


def _event(kind: str, **members: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), msgspec.json.encode({"type": kind, **members}))
