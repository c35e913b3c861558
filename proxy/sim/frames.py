"""
An answer in OpenAI's words: the whole object, or the stream's events exactly as OpenAI sends them: role first, one
finish chunk with an empty delta, usage last in a chunk of its own and `null` on all others. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from proxy.sim.answers import Answer, Choice, pieces, tokens

FINGERPRINT = "fp_sim"

ERROR_TYPES = {
    400: ("invalid_request_error", None),
    401: ("invalid_request_error", "invalid_api_key"),
    403: ("invalid_request_error", "permission_denied"),
    404: ("invalid_request_error", "not_found"),
    413: ("invalid_request_error", "request_too_large"),
    429: ("requests", "rate_limit_exceeded"),
}

MESSAGES = {
    "context_length_exceeded": "This model's maximum context length is 8192 tokens. "
    "However, your messages resulted in more. Please reduce the length of the messages.",
    "rate_limit_exceeded": "Rate limit reached for this simulated model. Please try again later.",
}


def error(status: int, *, code: str = "", message: str = "", param: str | None = None) -> dict[str, Any]:
    """OpenAI's error object for a status."""
    kind, usual = ERROR_TYPES.get(status, ("server_error" if status >= 500 else "invalid_request_error", None))
    code = code or usual or ""
    text = message or MESSAGES.get(code) or f"The simulated provider was told to fail with {status}."
    if code == "context_length_exceeded":
        param = "messages"
    return {"error": {"message": text, "type": kind, "param": param, "code": code or None}}


def completion(answer: Answer, model: str, created: int, *, usage: bool) -> dict[str, Any]:
    """A `chat.completion`."""
    body: dict[str, Any] = {
        "id": answer.id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [_whole(index, choice) for index, choice in enumerate(answer.choices)],
        "service_tier": "default",
        "system_fingerprint": FINGERPRINT,
    }
    if usage:
        body["usage"] = answer.usage()
    return body


def _whole(index: int, choice: Choice) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if choice.tool_calls else choice.text,
        "refusal": None,
        "annotations": [],
    }
    if choice.reasoning:
        message["reasoning_content"] = choice.reasoning
    if choice.tool_calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in choice.tool_calls
        ]
    return {"index": index, "message": message, "logprobs": None, "finish_reason": choice.finish_reason}


def chunks(answer: Answer, model: str, created: int, *, include_usage: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each `chat.completion.chunk` with how many tokens it brings: 0 for those without content. Usage comes apart."""
    for index, choice in enumerate(answer.choices):
        for weight, delta in _deltas(choice):
            yield weight, chunk(answer, model, created, include_usage, [_part(index, delta, None)])
        yield 0, chunk(answer, model, created, include_usage, [_part(index, {}, choice.finish_reason)])


def chunk(
    answer: Answer, model: str, created: int, include_usage: bool, choices: list[dict[str, Any]]
) -> dict[str, Any]:
    body: dict[str, Any] = {
        "id": answer.id,
        "object": "chat.completion.chunk",
        "created": created,
        "model": model,
        "service_tier": "default",
        "system_fingerprint": FINGERPRINT,
        "choices": choices,
    }
    if include_usage:
        body["usage"] = None
    return body


def usage_chunk(answer: Answer, model: str, created: int) -> dict[str, Any]:
    return {**chunk(answer, model, created, True, []), "usage": answer.usage()}


def _part(index: int, delta: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def _deltas(choice: Choice) -> Iterator[tuple[int, dict[str, Any]]]:
    role: dict[str, Any] = {"role": "assistant", "content": None if choice.tool_calls else "", "refusal": None}
    yield 0, role
    for piece in pieces(choice.reasoning):
        yield tokens(piece), {"reasoning_content": piece}
    for piece in pieces(choice.text):
        yield tokens(piece), {"content": piece}
    for index, call in enumerate(choice.tool_calls):
        head = {"index": index, "id": call.id, "type": "function", "function": {"name": call.name, "arguments": ""}}
        yield tokens(call.name), {"tool_calls": [head]}
        for start in range(0, len(call.arguments), 12):
            fragment = call.arguments[start : start + 12]
            yield tokens(fragment), {"tool_calls": [{"index": index, "function": {"arguments": fragment}}]}
