"""OpenAI chat completions: answers, streams and errors in its words. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from tests.oracle import mind
from tests.oracle.bill import Item
from tests.oracle.script import Wanted

PATH = re.compile(r"/chat/completions$")
asked = mind.from_openai
REASONS_APART = True
"""Its usage says which of the output was thought."""

CREATED = 1_790_000_000
TYPES = {400: "invalid_request_error", 401: "invalid_request_error", 404: "invalid_request_error", 429: "requests"}
CODES = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}
LIMITS = {
    "x-ratelimit-limit-requests": "4000",
    "x-ratelimit-remaining-requests": "3999",
    "x-ratelimit-reset-requests": "0s",
    "x-ratelimit-remaining-tokens": "479000",
}
"""What every answer says of the account's limits."""
END = b"data: [DONE]\n\n"


def refuse(body: dict[str, Any], headers: dict[str, str]) -> tuple[int, str] | None:
    """What OpenAI itself would refuse: status and message."""
    if not headers.get("authorization", "").startswith("Bearer "):
        return 401, "You didn't provide an API key."
    if not isinstance(body.get("messages"), list) or not body["messages"]:
        return 400, "Invalid 'messages': empty array."
    return None


def error(status: int, message: str | None, code: str | None) -> bytes:
    text = message or f"The oracle was told to answer {status}."
    kind = TYPES.get(status, "server_error")
    return msgspec.json.encode(
        {"error": {"message": text, "type": kind, "param": None, "code": code or CODES.get(status)}}
    )


def error_event(message: str | None, code: str | None) -> bytes:
    return b"data: " + error(500, message or "The oracle failed in the middle.", code) + b"\n\n"


def usage(item: Item) -> dict[str, Any]:
    cached = item.cache_read_tokens
    prompt = item.input_tokens + cached + item.cache_write_5m_tokens + item.cache_write_1h_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": item.output_tokens,
        "total_tokens": prompt + item.output_tokens,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": item.reasoning_tokens, "audio_tokens": 0},
    }


def whole(wanted: Wanted, item: Item) -> bytes:
    calls = _calls(wanted)
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if calls else "".join(wanted.words()),
        "refusal": None,
    }
    if wanted.script.thinking:
        message["reasoning_content"] = "".join(wanted.thoughts())
    if calls:
        message["tool_calls"] = calls
    finish_reason = "tool_calls" if calls else "stop"
    body = {
        "id": f"chatcmpl-{item.nonce or 'oracle'}-{item.ordinal}",
        "object": "chat.completion",
        "created": CREATED,
        "model": wanted.model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}],
        "system_fingerprint": "fp_oracle",
    }
    if wanted.script.usage != "none":
        body["usage"] = usage(item)
    return msgspec.json.encode(body)


def events(wanted: Wanted, item: Item) -> Iterator[tuple[int, bytes]]:
    """Each event, with how many billed output tokens it brings; the stream's end is `END`."""
    deltas: list[tuple[int, dict[str, Any]]] = []
    deltas += [(1, {"reasoning_content": thought}) for thought in wanted.thoughts()]
    calls = _calls(wanted)
    if not calls:
        deltas += [(1, {"content": word}) for word in wanted.words()]
    for index, call in enumerate(calls):
        function = call["function"]
        deltas.append((0, {"tool_calls": [{"index": index, **call, "function": {**function, "arguments": ""}}]}))
        deltas.append((1, {"tool_calls": [{"index": index, "function": {"arguments": function["arguments"]}}]}))
    yield 0, _event(wanted, item, [_part({"role": "assistant", "content": None if calls else "", "refusal": None})])
    for weight, delta in deltas:
        yield weight, _event(wanted, item, [_part(delta)])
    yield 0, _event(wanted, item, [_part({}, "tool_calls" if calls else "stop")])
    if wanted.include_usage and wanted.script.usage != "none":
        for _ in range(2 if wanted.script.usage == "twice" else 1):
            yield 0, _event(wanted, item, [], usage(item))


def _event(wanted: Wanted, item: Item, choices: list[dict[str, Any]], used: dict[str, Any] | None = None) -> bytes:
    body: dict[str, Any] = {
        "id": f"chatcmpl-{item.nonce or 'oracle'}-{item.ordinal}",
        "object": "chat.completion.chunk",
        "created": CREATED,
        "model": wanted.model,
        "system_fingerprint": "fp_oracle",
        "choices": choices,
    }
    if wanted.include_usage:
        body["usage"] = used
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


def _part(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _calls(wanted: Wanted) -> list[dict[str, Any]]:
    return [
        {
            "id": f"call_{number}",
            "type": "function",
            "function": {"name": name, "arguments": msgspec.json.encode(arguments).decode()},
        }
        for number, (name, arguments) in enumerate(wanted.calls())
    ]
