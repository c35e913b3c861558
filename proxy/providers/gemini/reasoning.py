"""
Thinking: how much to ask for, and how earlier thoughts go back.

Up to Gemini 2.5 thinking has a budget in tokens; from 3 on it has a level, and cannot be turned off. What goes back is
not the thoughts but their signatures: a call's stands beside it in `extra_content.google.thought_signature`, where
Google's own OpenAI layer puts it; a text's is an encrypted entry of `reasoning_details`.
https://ai.google.dev/gemini-api/docs/thought-signatures, https://ai.google.dev/gemini-api/docs/openai
"""

from __future__ import annotations

from typing import Any

from proxy.errors import CallerError
from proxy.providers import Json
from proxy.providers.gemini.content import Note
from proxy.providers.gemini.models import Model

FORMAT = "google-gemini-v1"
"""Marks signatures that only Gemini can read, in OpenRouter's `reasoning_details`."""

UNSIGNED = "c2tpcF90aG91Z2h0X3NpZ25hdHVyZV92YWxpZGF0b3I="
"""Base64 of `skip_thought_signature_validator`: Google's word for calls whose signature is not at hand."""

BUDGETS = {"minimal": 1024, "low": 1024, "medium": 8192, "high": 24_576, "xhigh": 24_576, "max": 24_576}
"""Tokens of thinking for each `reasoning_effort`, as Google's own OpenAI layer has them."""
LEAST_OF_PRO = 128
"""Gemini 2.5 Pro always thinks."""


def encode_thinking(config: Json, chat: Json, model: Model, note: Note) -> None:
    """Adds `thinkingConfig` to a generation config, unless the caller's own is there."""
    effort, thinking = chat.get("reasoning_effort"), chat.get("thinking")
    if effort is not None and effort not in BUDGETS and effort != "none":
        raise CallerError(
            f"reasoning_effort is {effort!r:.60}; it can be none, {', '.join(BUDGETS)}.", param="reasoning_effort"
        )
    if "thinkingConfig" in config:
        for name in ("reasoning_effort", "thinking"):
            if chat.get(name) is not None:
                note(name, f"thinking_config was sent too, and it is the more precise; {name} was left out.")
        return
    if isinstance(thinking, dict):
        if effort is not None:
            note("reasoning_effort", "thinking was sent too, and it is the more precise; the effort was left out.")
        asked, param = _of_thinking(thinking, model, note), "thinking"
    elif effort is not None:
        asked, param = _of_effort(effort, "reasoning_effort", model, note), "reasoning_effort"
    else:
        return
    if model.version is not None and model.version < (2, 5):
        if effort != "none":
            note(param, "This model does not think; it was left out.")
    elif asked:
        config["thinkingConfig"] = asked


def _of_thinking(thinking: Json, model: Model, note: Note) -> Json:
    """Anthropic's form: enabled with a budget, adaptive, disabled."""
    match thinking:
        case {"type": "disabled"}:
            return _of_effort("none", "thinking", model, note)
        case {"type": "enabled", "budget_tokens": int(budget)}:
            return {"thinkingBudget": budget, "includeThoughts": True}
        case {"type": "enabled" | "adaptive"}:
            return {"includeThoughts": True}
    raise CallerError(
        'thinking is {"type": "enabled", "budget_tokens": …}, {"type": "adaptive"} or {"type": "disabled"}.',
        param="thinking",
    )


def _of_effort(effort: str, param: str, model: Model, note: Note) -> Json:
    if model.levels:
        return _level(effort, param, model.levels, note)
    if effort == "none":
        if "pro" not in model.name:
            return {"thinkingBudget": 0}
        note(param, f"This model cannot stop thinking; it was given {LEAST_OF_PRO} tokens for it.")
        return {"thinkingBudget": LEAST_OF_PRO}
    return {"thinkingBudget": BUDGETS[effort], "includeThoughts": True}


def _level(effort: str, param: str, levels: tuple[str, ...], note: Note) -> Json:
    if effort == "none":
        note(param, f"This model cannot stop thinking; it was asked for its least, {levels[0]}.")
        return {"thinkingLevel": levels[0].upper()}
    level = effort
    if level not in levels:
        # up, as Google's own layer does, but for what lies below the least
        level = levels[0] if effort == "minimal" else "high"
        note(param, f"This model has no effort {effort}; it was asked for {level}.", lost=False)
    return {"thinkingLevel": level.upper(), "includeThoughts": True}


def signatures_in(message: Json) -> Json:
    """The signatures of tool calls that stand among the details, by the call's id (OpenRouter's way)."""
    encrypted = [one for one in _own_details(message) if one.get("type") == "reasoning.encrypted"]
    return {one["id"]: _text(one.get("data")) for one in reversed(encrypted) if isinstance(one.get("id"), str)}


def signature_of(call: Json, among_details: Json) -> str | None:
    """The signature of a tool call: on the call, or among the details."""
    google = (call.get("extra_content") or {}).get("google")
    signature = google.get("thought_signature") if isinstance(google, dict) else None
    if isinstance(signature, str) and signature:
        return signature
    found: str | None = among_details.get(call["id"])
    return found


def replayed_thoughts(message: Json, note: Note) -> tuple[list[Json], str | None]:
    """Signed thoughts as parts, and the signature of the text; from `reasoning_details`, whole or in fragments."""
    thoughts: dict[int | str, Json] = {}
    signature: str | None = None
    ids = {call.get("id") for call in message.get("tool_calls") or ()}
    for place, detail in enumerate(_own_details(message)):
        index = detail.get("index")
        if detail.get("type") == "reasoning.text":
            number = index if isinstance(index, int) else f"at {place}"
            part = thoughts.setdefault(number, {"text": "", "thought": True})
            part["text"] += _text(detail.get("text")) or ""
            if _text(detail.get("signature")):
                part["thoughtSignature"] = detail["signature"]
        elif detail.get("type") == "reasoning.encrypted" and _text(detail.get("id")) not in ids:
            signature = _text(detail.get("data")) or signature
    if not thoughts and not signature and _speaks_of_reasoning(message):
        note("messages[].reasoning_content", "Gemini takes back only what it has signed; other reasoning was left out.")
    return [part for part in thoughts.values() if "thoughtSignature" in part], signature


def _own_details(message: Json) -> list[Json]:
    details = message.get("reasoning_details")
    own: list[Json] = []
    ours: set[object] = set()
    for detail in details if isinstance(details, list) else ():
        if not isinstance(detail, dict):
            continue
        index = detail.get("index")
        number = index if isinstance(index, int) else None
        # of a stream's pieces only the first says whose they are
        if detail.get("format") == FORMAT:
            ours.add(number)
        elif detail.get("format") or number is None or number not in ours:
            continue
        own.append(detail)
    return own


def _speaks_of_reasoning(message: Json) -> bool:
    names = ("reasoning_content", "reasoning", "reasoning_details", "thinking_blocks")
    return any(message.get(name) for name in names) and not _own_details(message)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
