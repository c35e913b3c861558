"""
OpenAI's usage object, and what those who speak its API make of it: one arithmetic for every way an answer can take,
so that a stream, a whole answer, a translated one and one that passes through cost the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from proxy.providers import Json

_NOTHING: Json = {}


def openai_usage(native: Json) -> Json:
    """
    A provider's usage in OpenAI's arithmetic: completion_tokens includes reasoning, total is their sum, cached tokens
    are in `prompt_tokens_details`. What is in order is given back as it is, and what nobody can explain stays as it
    came, so that metering finds it suspect.
    """
    prompt, completion, total = (native.get(name) for name in ("prompt_tokens", "completion_tokens", "total_tokens"))
    cached = _elsewhere(native)
    if type(prompt) is int and type(completion) is int and total == prompt + completion and cached is None:
        return native
    usage = {name: value for name, value in native.items() if value is not None}
    if cached is not None:
        usage["prompt_tokens_details"] = {**_of(usage, "prompt_tokens_details"), "cached_tokens": cached}
    if {type(prompt), type(completion)} - {int, type(None)} or (prompt is None and completion is None):
        return usage
    prompt, completion = usage.setdefault("prompt_tokens", 0), usage.setdefault("completion_tokens", 0)
    reasoning = _of(usage, "completion_tokens_details").get("reasoning_tokens")
    # xAI leaves reasoning out of completion_tokens, and only its total tells
    if type(reasoning) is int and total == prompt + completion + reasoning:
        usage["completion_tokens"] = completion + reasoning
    return usage if total is not None else {**usage, "total_tokens": prompt + completion}


def _elsewhere(usage: Mapping[str, Any]) -> Any:
    """Cached tokens that are not where OpenAI has them: under DeepSeek's name, in Moonshot's place."""
    if "prompt_cache_hit_tokens" not in usage and "cached_tokens" not in usage:
        return None
    if _of(usage, "prompt_tokens_details").get("cached_tokens") is not None:
        return None
    return usage.get("prompt_cache_hit_tokens") or usage.get("cached_tokens")


def _of(usage: Mapping[str, Any], name: str) -> Json:
    value = usage.get(name)
    return value if isinstance(value, dict) else _NOTHING
