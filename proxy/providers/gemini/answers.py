"""
What an answer's parts mean in OpenAI's words: finish reasons, usage, log probabilities; and a whole answer, put
together from the chunks of the one event that it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from proxy.providers import Chunk, Completion, Json
from proxy.providers.faults import bad_response

FINISH_REASONS = {
    "STOP": "stop", "MAX_TOKENS": "length", "CONTINUATION": "length", "SAFETY": "content_filter",
    "RECITATION": "content_filter", "LANGUAGE": "content_filter", "BLOCKLIST": "content_filter",
    "PROHIBITED_CONTENT": "content_filter", "SPII": "content_filter", "MODEL_ARMOR": "content_filter",
    "IMAGE_SAFETY": "content_filter", "IMAGE_PROHIBITED_CONTENT": "content_filter",
    "IMAGE_RECITATION": "content_filter", "ESCALATION": "content_filter", "PUP_LIMITED_DISABLED": "content_filter",
}  # fmt: skip
"""What is not here (MALFORMED_FUNCTION_CALL, OTHER …) is `stop`; Google's own word always goes beside it."""

NOT_FINISHED = (None, "", "FINISH_REASON_UNSPECIFIED")

TRAFFIC = {"ON_DEMAND_PRIORITY": "priority", "ON_DEMAND_FLEX": "flex"}
"""How Google Cloud says the service tier; what is not here is the standard one, or is not billed by token."""


def finish_of(native: Mapping[str, Any]) -> Json:
    """`finish_reason`, `native_finish_reason` and, where it did not end well, what Google says of it."""
    reason = native["finishReason"]
    known = FINISH_REASONS.get(reason) if isinstance(reason, str) else None
    finish: Json = {"finish_reason": known or "stop", "native_finish_reason": str(reason)}
    if reason != "STOP" and native.get("finishMessage"):
        finish["native_finish_message"] = native["finishMessage"]
    return finish


def refused_prompt(feedback: Mapping[str, Any]) -> Json:
    """The finish of an answer that never began."""
    finish: Json = {"finish_reason": "content_filter", "native_finish_reason": str(feedback["blockReason"])}
    said = feedback.get("blockReasonMessage")
    return finish | {"native_finish_message": said} if said else finish


def usage_of(native: Mapping[str, Any]) -> Json | None:
    """
    Google's counters in OpenAI's arithmetic; None if they count nothing. Thoughts stand beside the candidates' tokens,
    results of Google's own tools beside the prompt's; cached tokens are inside the prompt's.
    """
    if all(native.get(name) is None for name in ("promptTokenCount", "candidatesTokenCount", "totalTokenCount")):
        return None
    prompt = _count(native, "promptTokenCount") + _count(native, "toolUsePromptTokenCount")
    thoughts = _count(native, "thoughtsTokenCount")
    completion = _count(native, "candidatesTokenCount") + thoughts
    inside: Json = {"cached_tokens": _count(native, "cachedContentTokenCount")}
    outside: Json = {"reasoning_tokens": thoughts}
    for modality, name in (("AUDIO", "audio_tokens"), ("IMAGE", "image_tokens")):
        heard = _modality(native, "promptTokensDetails", modality)
        heard += _modality(native, "toolUsePromptTokensDetails", modality)
        said = _modality(native, "candidatesTokensDetails", modality)
        inside |= {name: heard} if heard else {}
        outside |= {name: said} if said else {}
    usage: Json = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": inside,
        "completion_tokens_details": outside,
    }
    tier = native.get("serviceTier") or TRAFFIC.get(str(native.get("trafficType")))
    if isinstance(tier, str) and tier not in ("standard", "unspecified"):
        usage["service_tier"] = tier
    return usage


def _count(native: Mapping[str, Any], name: str) -> int:
    value = native.get(name)
    return value if isinstance(value, int) else 0


def _modality(native: Mapping[str, Any], name: str, modality: str) -> int:
    return sum(_count(detail, "tokenCount") for detail in native.get(name) or () if detail.get("modality") == modality)


def logprobs_of(native: Mapping[str, Any]) -> Json | None:
    """Google's two parallel lists as OpenAI's one."""
    chosen, tops = native.get("chosenCandidates") or (), native.get("topCandidates") or ()
    content = []
    for place, candidate in enumerate(chosen):
        alternatives = tops[place].get("candidates") or () if place < len(tops) else ()
        content.append({**_token(candidate), "top_logprobs": [_token(alternative) for alternative in alternatives]})
    return {"content": content, "refusal": None} if content else None


def _token(candidate: Mapping[str, Any]) -> Json:
    token = candidate.get("token") or ""
    return {"token": token, "logprob": candidate.get("logProbability") or 0.0, "bytes": list(token.encode())}


def completion_of(chunks: Iterable[Chunk], model: Any) -> Completion:
    """The completion that these chunks amount to."""
    choices: dict[int, Json] = {}
    completion: Completion = {"choices": []}
    for chunk in chunks:
        if "usage" in chunk:
            completion["usage"] = chunk["usage"]
        for choice in chunk["choices"]:
            index = choice["index"]
            message = {"role": "assistant", "content": None, "refusal": None}
            whole = choices.setdefault(index, {"index": index, "message": message})
            _add(whole["message"], choice["delta"])
            logprobs = choice.get("logprobs")
            if logprobs:
                known = whole.setdefault("logprobs", {"content": [], "refusal": None})
                known["content"] += logprobs["content"]
            if choice["finish_reason"]:
                fields = ("index", "delta", "logprobs")
                whole |= {name: value for name, value in choice.items() if name not in fields}
    if not choices:
        raise bad_response("The provider sent an answer without candidates.")
    completion["choices"] = [choices[index] for index in sorted(choices)]
    return completion | {"model": model} if isinstance(model, str) else completion


def _add(message: Json, delta: Json) -> None:
    for name, value in delta.items():
        if name == "tool_calls":
            _add_calls(message.setdefault(name, []), value)
        elif name == "reasoning_details":
            _add_details(message.setdefault(name, []), value)
        elif isinstance(value, list):
            message.setdefault(name, []).extend(_without_place(piece) for piece in value)
        elif name != "role" and value:
            message[name] = (message.get(name) or "") + value


def _without_place(piece: Json) -> Json:
    """An entry comes whole, and its `index` means something in a stream only."""
    return {name: value for name, value in piece.items() if name != "index"}


def _add_calls(calls: list[Json], pieces: list[Json]) -> None:
    for piece in pieces:
        if piece["index"] < len(calls):
            calls[piece["index"]]["function"]["arguments"] += piece["function"]["arguments"]
        else:
            calls.append(_without_place(piece))


def _add_details(details: list[Json], pieces: list[Json]) -> None:
    """Fragments of one thought share its number."""
    for piece in pieces:
        if details and details[-1]["index"] == piece["index"]:
            details[-1] = {**details[-1], **piece, "text": details[-1].get("text", "") + piece.get("text", "")}
        else:
            details.append(piece)
