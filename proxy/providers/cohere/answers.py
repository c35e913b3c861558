"""
Whole answers of Cohere's as OpenAI completions, and what streams share with them: finish reasons, usage, citations.

Its usage counts twice: `billed_units` are what is charged, `tokens` what was processed, with all that Cohere adds of
its own accord and does not charge. Prompt and completion are the billed ones; the others stand beside them.
docs.cohere.com/v2/docs/how-does-cohere-pricing-work
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from proxy.providers import Completion, Json
from proxy.providers.chunks import settled_finish
from proxy.providers.faults import bad_response, stream_error

FINISH_REASONS = {
    "COMPLETE": "stop",
    "STOP_SEQUENCE": "stop",
    "MAX_TOKENS": "length",
    "ERROR_LIMIT": "length",
    "TOOL_CALL": "tool_calls",
    "ERROR_TOXIC": "content_filter",
}
"""What is not here is `stop`; Cohere's own word always goes beside it."""
BROKEN = {"ERROR": 500, "TIMEOUT": 504}
"""What is no end of an answer, and the status that it would have had as an error."""

PLAN = "cohere-tool-plan-v2"
THINKING = "cohere-thinking-v2"
"""Two kinds of thought, which go back to Cohere in different places; in OpenRouter's `reasoning_details`."""


def decode_answer(body: bytes) -> Completion:
    """A chat response. Raises UpstreamError if it is an error, or not one."""
    native = decode_object(body)
    if "finish_reason" not in native and isinstance(native.get("message"), str):
        raise stream_error(native)
    try:
        return _completion(native)
    except (KeyError, TypeError, AttributeError) as error:
        raise bad_response("The provider sent an answer that is not a chat response.") from error


def decode_object(body: bytes) -> Json:
    try:
        native = msgspec.json.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise bad_response("The provider sent something that is not JSON.") from error
    if not isinstance(native, dict):
        raise bad_response("The provider sent JSON that is not an object.")
    return native


def _completion(native: Json) -> Completion:
    message = _message(native["message"])
    finish = finish_of(native["finish_reason"])
    finish["finish_reason"] = settled_finish(finish["finish_reason"], has_calls="tool_calls" in message)
    choice: Json = {"index": 0, "message": message, **finish}
    items = [found for item in native.get("logprobs") or () if (found := logprob_of(item))]
    if items:
        choice["logprobs"] = {"content": items, "refusal": None}
    completion: Completion = {"choices": [choice]}
    usage = usage_of(native.get("usage") or {})
    return completion | {"usage": usage} if usage else completion


def _message(native: Json) -> Json:
    text, details, starts = "", [], {}
    if native.get("tool_plan"):
        details.append(thought(PLAN, native["tool_plan"], 0))
    for number, block in enumerate(native.get("content") or ()):
        if block.get("type") == "thinking":
            details.append(thought(THINKING, block.get("thinking") or "", len(details)))
        elif block.get("type") == "text":
            starts[number] = len(text)
            text += block.get("text") or ""
    calls = [
        {"id": call.get("id"), "type": "function", "function": _function(call["function"])}
        for call in native.get("tool_calls") or ()
    ]
    cited: dict[str, list[Json]] = {}
    for citation in native.get("citations") or ():
        for name, found in annotations_of(citation, starts).items():
            cited.setdefault(name, []).extend(found)
    thoughts = "".join(detail["text"] for detail in details)
    message: Json = {"role": "assistant", "content": text or None, "refusal": None}
    extras = {"reasoning_content": thoughts, "reasoning_details": details, "tool_calls": calls, **cited}
    return message | {name: value for name, value in extras.items() if value}


def _function(native: Json) -> Json:
    return {"name": native["name"], "arguments": native.get("arguments") or "{}"}


def finish_of(reason: Any, error: Any = None) -> Json:
    """`finish_reason` and `native_finish_reason`. Raises UpstreamError for an end that is none."""
    if reason in BROKEN or error:
        raise stream_error({"code": BROKEN.get(reason, 500), "message": error or "it broke off its answer"})
    return {"finish_reason": FINISH_REASONS.get(reason, "stop"), "native_finish_reason": reason}


def usage_of(native: Mapping[str, Any]) -> Json | None:
    """Cohere's usage in OpenAI's shape; None if it counts nothing."""
    billed, counted = native.get("billed_units") or {}, native.get("tokens") or {}
    said = {**counted, **{name: value for name, value in billed.items() if value is not None}}
    if "input_tokens" not in said and "output_tokens" not in said:
        return None
    prompt, completion = _whole(said.get("input_tokens")), _whole(said.get("output_tokens"))
    usage: Json = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    if billed.get("search_units"):
        usage["searches"] = _whole(billed["search_units"])
    # what was read from a cache is a part of all tokens, not of the billed ones, and has no price of its own
    processed = {**counted, **({"cached_tokens": native["cached_tokens"]} if native.get("cached_tokens") else {})}
    return usage | ({"tokens": processed} if processed else {})


def _whole(number: Any) -> int:
    """Cohere's types call its counts floats."""
    return int(number) if isinstance(number, (int, float)) else 0


def annotations_of(citation: Json, starts: Mapping[int, int]) -> Json:
    """
    The fields of a message or delta that carry a citation: `annotations` for its sources with a URL, `citations` for
    the whole, as it came. `starts` says where in the content each block of text begins. What cites a thought or a plan
    has its place there, which no annotation can say.
    """
    if citation.get("type") not in (None, "TEXT_CONTENT"):
        return {"citations": [citation]}
    start = starts.get(citation.get("content_index") or 0, 0)
    annotations = []
    for source in citation.get("sources") or ():
        said = source.get("document") or source.get("tool_output") or {}
        if isinstance(said.get("url"), str):
            cited = {"url": said["url"], "title": said.get("title") or ""}
            span = {
                "start_index": start + (citation.get("start") or 0),
                "end_index": start + (citation.get("end") or 0),
            }
            annotations.append({"type": "url_citation", "url_citation": {**cited, **span}})
    fields = {"annotations": annotations, "citations": [citation]}
    return {name: value for name, value in fields.items() if value}


def thought(kind: str, text: str, number: int) -> Json:
    """One `reasoning_details` entry, or a fragment of one; fragments of one share its number."""
    return {"type": "reasoning.text", "text": text, "format": kind, "index": number}


def logprob_of(item: Json) -> Json | None:
    """A piece of text with the probability of all its tokens: Cohere does not say which token is which part."""
    logprobs = item.get("logprobs")
    if not logprobs:
        return None
    text = item.get("text") or ""
    return {"token": text, "logprob": sum(logprobs), "bytes": list(text.encode()), "top_logprobs": []}
