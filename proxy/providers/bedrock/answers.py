"""
Whole answers of Converse as OpenAI completions, and the arithmetic that streams share with them: stop reasons, usage,
citations.

`usage` counts cached tokens apart from `inputTokens`; OpenAI's `prompt_tokens` holds them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from proxy.providers import Completion, Json
from proxy.providers.chunks import settled_finish
from proxy.providers.faults import bad_response

STOP_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_calls",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "guardrail_intervened": "content_filter",
    "content_filtered": "content_filter",
}
"""What is not here (malformed_tool_use …) is `stop`; Bedrock's own word always goes beside it."""

CLAUDE_FORMAT = "anthropic-claude-v1"
"""
Marks signatures in OpenRouter's `reasoning_details`. Nobody but Claude signs on Bedrock, and what it signed there it
also takes back elsewhere: https://platform.claude.com/docs/en/build-with-claude/extended-thinking
"""
REDACTED_FORMAT = "amazon-bedrock-v1"
"""Redacted thoughts are wrapped by Converse, so they go back to it alone."""

ANSWER_TOOL = "strata_answer"
"""The tool whose input is the answer, where a model is held to a schema by being forced to call it."""

SERVER_TOOL = "server_tool_use"
"""The type of a call that has already been answered where the model runs; no client is to answer it again."""

BESIDE = ("trace", "additionalModelResponseFields")
"""What a caller has asked for by Bedrock's own names, and gets by them, beside the finish reason."""


def decode_answer(body: bytes) -> Completion:
    """A Converse response. Raises UpstreamError if it is none."""
    try:
        native = msgspec.json.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise bad_response("The provider sent something that is not JSON.") from error
    if not isinstance(native, dict):
        raise bad_response("The provider sent JSON that is not an object.")
    try:
        return _completion(native)
    except (KeyError, TypeError, AttributeError) as error:
        raise bad_response("The provider sent an answer that is not a message.") from error


def _completion(native: Json) -> Completion:
    message = _message(native["output"]["message"]["content"])
    finish = finish_of(native["stopReason"], native)
    finish["finish_reason"] = settled_finish(finish["finish_reason"], has_calls="tool_calls" in message)
    completion: Completion = {"choices": [{"index": 0, "message": message, **finish}]}
    usage = usage_of(native)
    return completion | {"usage": usage} if usage else completion


def finish_of(reason: Any, beside: Mapping[str, Any]) -> Json:
    """`finish_reason`, `native_finish_reason`, and what the caller asked to see of guardrails and the model."""
    finish = STOP_REASONS.get(reason or "", "stop")
    extra = {name: beside[name] for name in BESIDE if beside.get(name)}
    return {"finish_reason": finish, "native_finish_reason": reason, **extra}


def usage_of(native: Mapping[str, Any]) -> Json | None:
    """The `usage` of a response or a metadata event in OpenAI's shape; None if it counts nothing."""
    counts = native.get("usage") or {}
    if counts.get("inputTokens") is None and counts.get("outputTokens") is None:
        return None
    read, written = counts.get("cacheReadInputTokens") or 0, counts.get("cacheWriteInputTokens") or 0
    prompt = (counts.get("inputTokens") or 0) + read + written
    completion = counts.get("outputTokens") or 0
    details: Json = {"cached_tokens": read, "cache_write_tokens": written}
    lasting = [one.get("inputTokens") or 0 for one in counts.get("cacheDetails") or () if one.get("ttl") == "1h"]
    if sum(lasting):
        details["cache_write_1h_tokens"] = min(sum(lasting), written)
    usage: Json = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": details,
    }
    tier = (native.get("serviceTier") or {}).get("type")
    return usage | {"service_tier": tier} if tier not in (None, "default") else usage


def annotations_of(citations: list[Any], start: int, end: int) -> Json:
    """
    The fields of a message or delta that carry a block's citations: `annotations` for those with a URL, `citations`, as
    they came, for those into the caller's own documents. `start` and `end` are the block's place in the content.
    """
    cited = [citation for citation in citations if isinstance(citation, dict)]
    urls = [(citation, ((citation.get("location") or {}).get("web") or {}).get("url")) for citation in cited]
    annotations = [
        {
            "type": "url_citation",
            "url_citation": {"url": url, "title": cite.get("title") or "", "start_index": start, "end_index": end},
        }
        for cite, url in urls
        if url
    ]
    others = [citation for citation, url in urls if not url]
    return {name: value for name, value in (("annotations", annotations), ("citations", others)) if value}


def _message(blocks: list[Json]) -> Json:
    text, thoughts = "", ""
    details: list[Json] = []
    calls: list[Json] = []
    cited: dict[str, list[Json]] = {}
    images: list[Json] = []
    for block in blocks:
        if block.get("text"):
            text += block["text"]
        elif "citationsContent" in block:
            content = block["citationsContent"]
            start, text = len(text), text + "".join(part.get("text") or "" for part in content.get("content") or ())
            for name, found in annotations_of(content.get("citations") or [], start, len(text)).items():
                cited.setdefault(name, []).extend(found)
        elif "reasoningContent" in block:
            said = block["reasoningContent"].get("reasoningText") or {}
            thoughts += said.get("text") or ""
            place = len(details)
            details += [{**UNSIGNED, **detail} for detail in thought(place, said.get("text"), said.get("signature"))]
            details += redacted_thought(place, block["reasoningContent"].get("redactedContent"))
        elif "image" in block:
            source = block["image"].get("source") or {}
            images += [image_of(block["image"]["format"], source["bytes"])] if source.get("bytes") else []
        elif "toolUse" in block and block["toolUse"].get("type") != SERVER_TOOL:
            call = block["toolUse"]
            arguments = msgspec.json.encode(call.get("input") or {}).decode()
            if call["name"] == ANSWER_TOOL:
                text += arguments
            else:
                function = {"name": call["name"], "arguments": arguments}
                calls.append({"id": call["toolUseId"], "type": "function", "function": function})
    message: Json = {"role": "assistant", "content": text or None, "refusal": None}
    extras = {
        "reasoning_content": thoughts,
        "reasoning_details": details,
        "tool_calls": calls,
        "images": images,
        **cited,
    }
    return message | {name: value for name, value in extras.items() if value}


def image_of(form: str, data: str) -> Json:
    """An image that a model made, as OpenRouter's `images` have it."""
    return {"type": "image_url", "image_url": {"url": f"data:image/{form};base64,{data}"}}


UNSIGNED = {"type": "reasoning.text", "format": "unknown"}
"""What completes an entry that no signature came for: nobody knows whose thoughts these are."""


def thought(number: int, text: str | None, signature: str | None) -> list[Json]:
    """One `reasoning_details` entry, or a fragment of one; fragments of one block share its number."""
    if not text and not signature:
        return []
    detail: Json = {"type": "reasoning.text"} | ({"text": text} if text else {})
    detail |= {"signature": signature, "format": CLAUDE_FORMAT} if signature else {}
    return [{**detail, "index": number}]


def redacted_thought(number: int, data: Any) -> list[Json]:
    """Thinking that only the model can read; it must come back as it is."""
    if not data:
        return []
    return [{"type": "reasoning.encrypted", "data": data, "format": REDACTED_FORMAT, "index": number}]
