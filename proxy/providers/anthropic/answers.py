"""
Whole answers of the Messages API as OpenAI completions, and the arithmetic that streams share with them: stop reasons,
usage, citations.

`usage` counts cached tokens apart from `input_tokens`; OpenAI's `prompt_tokens` holds them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from proxy.providers import Completion, Json
from proxy.providers.chunks import settled_finish
from proxy.providers.faults import bad_response, stream_error

STOP_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "content_filter",
    "pause_turn": "stop",
}
"""What is not here is `stop`; Anthropic's own word always goes beside it."""

TOLD_LAST = ("container", "context_management")
"""Which container ran code, and can be used again; what was cleared from the conversation."""

REASONING_FORMAT = "anthropic-claude-v1"
"""Marks signatures that only Claude can read, in OpenRouter's `reasoning_details`."""

ANSWER_TOOL = "strata_answer"
"""The tool that older models call to answer by a schema: its input is the text of the answer."""

SHOWN = frozenset({"text", "thinking", "redacted_thinking", "tool_use"})
"""Blocks with a place in OpenAI's message. All others (a search and its results, a compaction) go beside it whole, as
`native_blocks`, and may come back the same way."""


def decode_answer(body: bytes) -> Completion:
    """A `message` object. Raises UpstreamError if it is an error, or not a message."""
    try:
        native = msgspec.json.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise bad_response("The provider sent something that is not JSON.") from error
    if not isinstance(native, dict):
        raise bad_response("The provider sent JSON that is not an object.")
    if native.get("type") == "error":
        raise stream_error(native)
    try:
        return _completion(native)
    except (KeyError, TypeError, AttributeError) as error:
        raise bad_response("The provider sent an answer that is not a message.") from error


def _completion(native: Json) -> Completion:
    message = _message(native["content"])
    refusal = refusal_of(native)
    if refusal:
        message["refusal"] = refusal
    finish = finish_of(native)
    finish["finish_reason"] = settled_finish(finish["finish_reason"], has_calls="tool_calls" in message)
    completion: Completion = {"choices": [{"index": 0, "message": message, **finish}]}
    usage = usage_of(native.get("usage") or {})
    if usage:
        completion["usage"] = usage
    if isinstance(native.get("model"), str):
        completion["model"] = native["model"]
    return completion


def finish_of(native: Mapping[str, Any]) -> Json:
    """
    `finish_reason`, `native_finish_reason`, the matched `stop_sequence` and what Anthropic alone tells at the end, from
    a message or a message_delta.
    """
    reason = native.get("stop_reason")
    finish = {"finish_reason": STOP_REASONS.get(reason or "", "stop"), "native_finish_reason": reason}
    return finish | {name: native[name] for name in ("stop_sequence", *TOLD_LAST) if native.get(name)}


def refusal_of(native: Mapping[str, Any]) -> str | None:
    """Why the model refused, where it says so."""
    details = native.get("stop_details")
    explanation = details.get("explanation") if isinstance(details, dict) else None
    return explanation if native.get("stop_reason") == "refusal" and isinstance(explanation, str) else None


def usage_of(native: Mapping[str, Any]) -> Json | None:
    """Anthropic's usage in OpenAI's shape; None if it counts nothing."""
    if native.get("input_tokens") is None and native.get("output_tokens") is None:
        return None
    native = _with_compactions(native)
    lifetimes = native.get("cache_creation") or {}
    written_1h = lifetimes.get("ephemeral_1h_input_tokens") or 0
    written = native.get("cache_creation_input_tokens")
    if written is None:
        written = written_1h + (lifetimes.get("ephemeral_5m_input_tokens") or 0)
    read = native.get("cache_read_input_tokens") or 0
    prompt = (native.get("input_tokens") or 0) + read + written
    completion = native.get("output_tokens") or 0
    details: Json = {"cached_tokens": read, "cache_write_tokens": written}
    if written_1h:
        details["cache_write_1h_tokens"] = min(written_1h, written)
    usage: Json = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": details,
    }
    thinking = (native.get("output_tokens_details") or {}).get("thinking_tokens")
    if thinking is not None:
        usage["completion_tokens_details"] = {"reasoning_tokens": min(thinking, completion)}
    return usage | _billed_apart(native)


COUNTED = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


def _with_compactions(native: Mapping[str, Any]) -> Mapping[str, Any]:
    """
    Making room in a conversation is billed, and is in no total: its tokens stand in `iterations` alone.
    https://platform.claude.com/docs/en/build-with-claude/compaction
    """
    made = [one for one in native.get("iterations") or () if one.get("type") == "compaction"]
    if not made:
        return native
    summed: Json = dict(native)
    for name in COUNTED:
        summed[name] = sum(one.get(name) or 0 for one in (native, *made))
    lifetimes = [one["cache_creation"] for one in (native, *made) if one.get("cache_creation")]
    summed["cache_creation"] = {
        name: sum(each.get(name) or 0 for each in lifetimes) for name in {name for each in lifetimes for name in each}
    }
    return summed


def _billed_apart(native: Mapping[str, Any]) -> Json:
    """What has a price of its own: searches, and a tier other than the standard one. Fast mode is called `speed`."""
    searches = (native.get("server_tool_use") or {}).get("web_search_requests")
    tier = "fast" if native.get("speed") == "fast" else native.get("service_tier")
    found: Json = {"server_tool_use": {"web_search_requests": searches}} if searches else {}
    return found | {"service_tier": tier} if tier not in (None, "standard") else found


def annotations_of(citations: list[Any], start: int, end: int) -> Json:
    """
    The fields of a message or delta that carry a text block's citations: `annotations` for those with a URL, and
    `citations`, as they came, for those into the caller's own documents. `start` and `end` are the block's place in the
    content.
    """
    cited = [citation for citation in citations if isinstance(citation, dict)]
    annotations = [
        {
            "type": "url_citation",
            "url_citation": {
                "url": citation["url"],
                "title": citation.get("title") or "",
                "start_index": start,
                "end_index": end,
            },
        }
        for citation in cited
        if citation.get("url")
    ]
    others = [citation for citation in cited if not citation.get("url")]
    return {name: value for name, value in (("annotations", annotations), ("citations", others)) if value}


def _message(blocks: list[Json]) -> Json:
    text, thoughts = "", ""
    details: list[Json] = []
    calls: list[Json] = []
    others: list[Json] = []
    cited: dict[str, list[Json]] = {}
    for block in blocks:
        match block.get("type"):
            case "text":
                start, text = len(text), text + (block.get("text") or "")
                for name, found in annotations_of(block.get("citations") or [], start, len(text)).items():
                    cited.setdefault(name, []).extend(found)
            case "thinking":
                thoughts += block.get("thinking") or ""
                details.append(thought(len(details), block.get("thinking") or None, block.get("signature")))
            case "redacted_thinking":
                details.append(redacted_thought(len(details), block.get("data")))
            case "tool_use" if block.get("name") == ANSWER_TOOL:
                text += msgspec.json.encode(block.get("input") or {}).decode()
            case "tool_use":
                arguments = msgspec.json.encode(block.get("input") or {}).decode()
                function = {"name": block.get("name") or "", "arguments": arguments}
                calls.append({"id": block.get("id"), "type": "function", "function": function})
            case _:
                others.append(block)
    message: Json = {"role": "assistant", "content": text or None, "refusal": None}
    extras = {"reasoning_content": thoughts, "reasoning_details": details, "tool_calls": calls, **cited}
    extras["native_blocks"] = others
    return message | {name: value for name, value in extras.items() if value}


def thought(number: int, text: str | None, signature: str | None) -> Json:
    """One `reasoning_details` entry, or a fragment of one; fragments of one block share its number."""
    detail: Json = {"type": "reasoning.text"}
    if text is not None:
        detail["text"] = text
    if signature:
        detail["signature"] = signature
    return {**detail, "format": REASONING_FORMAT, "index": number}


def redacted_thought(number: int, data: Any) -> Json:
    """Thinking that only Claude can read; it must come back as it is."""
    return {"type": "reasoning.encrypted", "data": data, "format": REASONING_FORMAT, "index": number}
