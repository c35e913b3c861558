"""
Thinking: how much to ask for in each family's own words, what it excludes, and how earlier thoughts go back.

Converse has no word of its own for it, so what a family understands travels in `additionalModelRequestFields`. Only
Claude signs its thoughts; a signed thought must come back unchanged and before all else in its turn.
"""

from __future__ import annotations

from typing import Any

from proxy.errors import CallerError
from proxy.providers import Json
from proxy.providers.bedrock.answers import CLAUDE_FORMAT, REDACTED_FORMAT
from proxy.providers.bedrock.content import Note
from proxy.providers.bedrock.models import Model

BUDGETS = {"minimal": 1024, "low": 1024, "medium": 2048, "high": 4096, "xhigh": 8192, "max": 16_384}
"""Tokens of thinking for each `reasoning_effort`, where thinking has a budget."""
EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh", "max": "max"}
MIN_BUDGET = 1024
DEFAULT_LIMIT = 32_000
"""Tokens of answer and thinking together, where a budget needs a limit and nobody named one."""


def encode_reasoning(body: Json, more: Json, chat: Json, model: Model, limit: int | None, note: Note) -> None:
    """Adds to `more`, the body's additional fields. The body has its sampling, its tools and its messages already."""
    effort = chat.get("reasoning_effort")
    if isinstance(chat.get("thinking"), dict):
        if model.claude:
            more["thinking"] = chat["thinking"]
        else:
            note("thinking", "Only Claude takes thinking; it was left out.")
        if effort is not None and model.claude:
            note("reasoning_effort", "thinking was sent too, and it is the more precise; the effort was left out.")
            effort = None
    if effort is not None:
        if effort not in EFFORTS and effort != "none":
            raise CallerError(
                f"reasoning_effort is {effort!r:.60}; it can be none, {', '.join(EFFORTS)}.", param="reasoning_effort"
            )
        _ask(body, more, effort, model, limit, note)
    if more.get("thinking", {}).get("type") in ("enabled", "adaptive"):
        _reconcile(body, more, model, note)


def _ask(body: Json, more: Json, effort: str, model: Model, limit: int | None, note: Note) -> None:
    if model.claude:
        if model.version is not None and model.since(4, 6):
            _adapt(more, effort, model, note)
        else:
            _budget(body, more, effort, model, limit, note)
    elif model.nova_2:
        _nova(body, more, effort, note)
    elif model.gpt and effort == "none":
        note("reasoning_effort", "This model always reasons; it was asked to do so as little as it can.")
        more["reasoning_effort"] = "low"
    elif model.gpt:
        level = EFFORTS[effort]
        if level in ("xhigh", "max"):
            level = "high"
            note("reasoning_effort", f"This model has no effort {effort}; it was asked for high.")
        more["reasoning_effort"] = level
    else:
        note("reasoning_effort", "How much this model reasons cannot be set; it was left out.")


def _adapt(more: Json, effort: str, model: Model, note: Note) -> None:
    """Claude from 4.6 on."""
    assert model.version is not None
    if effort == "none":
        if model.always_thinks:
            note("reasoning_effort", "This model always thinks; it was left out.")
        else:
            more["thinking"] = {"type": "disabled"}
        return
    level = EFFORTS[effort]
    if level == "xhigh" and model.version < (4, 7):
        level = "high"
        note("reasoning_effort", "This model has no effort xhigh; it was asked for high.")
    more["thinking"] = {"type": "adaptive"}
    if model.version >= (4, 7):
        more["thinking"]["display"] = "summarized"  # newer models keep their thoughts to themselves by default
    more["output_config"] = {"effort": level}


def _budget(body: Json, more: Json, effort: str, model: Model, limit: int | None, note: Note) -> None:
    """Claude from 3.7 to 4.5, and one that does not say its version."""
    if effort == "none":
        return
    if not model.since(3, 7):
        note("reasoning_effort", "This model does not think; it was left out.")
        return
    most = body.get("inferenceConfig", {}).get("maxTokens") or limit or DEFAULT_LIMIT
    if most <= MIN_BUDGET:
        note("reasoning_effort", f"Thinking needs a limit above {MIN_BUDGET} tokens; the model was not asked to think.")
        return
    budget = min(BUDGETS[effort], max(MIN_BUDGET, most // 2))
    if budget < BUDGETS[effort]:
        note("reasoning_effort", f"The token limit leaves {budget} tokens for thinking.")
    body.setdefault("inferenceConfig", {})["maxTokens"] = most
    more["thinking"] = {"type": "enabled", "budget_tokens": budget}


def _nova(body: Json, more: Json, effort: str, note: Note) -> None:
    """https://docs.aws.amazon.com/nova/latest/nova2-userguide/extended-thinking.html"""
    if effort == "none":
        return
    level = EFFORTS[effort]
    if level in ("xhigh", "max"):
        level = "high"
        note("reasoning_effort", f"This model has no effort {effort}; it was asked for high.")
    config = body.get("inferenceConfig", {})
    if level == "high" and "maxTokens" in config:  # a limit is a promise about money, so it is the effort that yields
        level = "medium"
        note("reasoning_effort", "Nova takes no limit of tokens beside a high effort; it was asked for medium.")
    more["reasoningConfig"] = {"type": "enabled", "maxReasoningEffort": level}
    if level == "high":
        for name, ours in (("temperature", "temperature"), ("topP", "top_p")):
            if config.pop(name, None) is not None:
                note(ours, f"Nova takes no {ours} while it reasons with a high effort; it was left out.")


def _reconcile(body: Json, more: Json, model: Model, note: Note) -> None:
    """What cannot stand beside thinking yields to it, but for a forced tool and for history that forbids it."""
    forced = body.get("toolConfig", {}).get("toolChoice", {}).keys() & {"any", "tool"}
    if forced and not (model.version is not None and model.since(4, 8)):
        _give_up(more, note, "Claude cannot think when a tool is forced; it was not asked to think.")
        return
    if more["thinking"]["type"] == "enabled" and _loops_without_thought(body["messages"]):
        why = "The last tool call came back without its signed reasoning_details, so Claude cannot think on."
        _give_up(more, note, why)
        return
    config = body.get("inferenceConfig", {})
    if config.get("temperature", 1) != 1:
        del config["temperature"]
        note("temperature", "Claude takes no temperature while it thinks; it was left out.")
    if more.pop("top_k", None) is not None:
        note("top_k", "Claude takes no top_k while it thinks; it was left out.")
    if config.get("topP", 1) < 0.95:
        del config["topP"]
        note("top_p", "Claude takes a top_p from 0.95 to 1 while it thinks; it was left out.")


def _give_up(more: Json, note: Note, why: str) -> None:
    more.pop("thinking")
    more.pop("output_config", None)
    note("reasoning_effort", why)


def _loops_without_thought(turns: list[Json]) -> bool:
    """In a tool loop the last assistant turn must begin with thinking, or the request is refused."""
    if len(turns) < 2 or "toolResult" not in turns[-1]["content"][0]:
        return False
    return "reasoningContent" not in turns[-2]["content"][0]


def replayed_thoughts(message: Json, model: Model, note: Note) -> list[Json]:
    """
    The signed thoughts of an assistant message, from `reasoning_details` (whole or as the fragments of a stream), from
    `thinking_blocks`, or from content parts; whichever a client kept.
    """
    thought = any(message.get(name) for name in ("reasoning_content", "reasoning", "reasoning_details"))
    if not model.claude:
        if thought:
            told = "Only Claude takes its earlier reasoning back on Bedrock; it was left out."
            note("messages[].reasoning_content", told, lost=False)
        return []
    blocks = _from_details(message.get("reasoning_details"))
    blocks = blocks or _native(message.get("thinking_blocks")) or _native(message.get("content"))
    if not blocks and thought:
        told = "Reasoning that Claude did not sign cannot be sent to it; it was left out."
        note("messages[].reasoning_content", told)
    return blocks


def _from_details(details: Any) -> list[Json]:
    whole: dict[object, Json] = {}
    foreign: set[object] = set()
    for place, detail in enumerate(details if isinstance(details, list) else ()):
        if not isinstance(detail, dict):
            continue
        form, kind, index = detail.get("format"), detail.get("type"), detail.get("index")
        # of a stream's pieces only one says whose they are: the first, or Bedrock's own that holds the signature
        if form not in (None, "unknown", CLAUDE_FORMAT, REDACTED_FORMAT):
            foreign.add(index)
        if index is not None and index in foreign:
            continue
        if kind == "reasoning.encrypted" and detail.get("data") and form in (None, "unknown", REDACTED_FORMAT):
            whole["encrypted", place] = {"redactedContent": detail["data"]}
        elif kind == "reasoning.text" and form in (None, "unknown", CLAUDE_FORMAT):
            text = whole.setdefault(("text", place if index is None else index), {"reasoningText": {"text": ""}})
            text["reasoningText"]["text"] += detail.get("text") or ""
            if detail.get("signature"):
                text["reasoningText"]["signature"] = detail["signature"]
    signed = (one for one in whole.values() if "redactedContent" in one or "signature" in one["reasoningText"])
    return [{"reasoningContent": one} for one in signed]


def _native(blocks: Any) -> list[Json]:
    """Anthropic's own form, as clients of its API keep it."""
    kept = []
    for block in blocks if isinstance(blocks, list) else ():
        if isinstance(block, dict) and block.get("type") == "thinking" and block.get("signature"):
            text = {"text": block.get("thinking") or "", "signature": block["signature"]}
            kept.append({"reasoningContent": {"reasoningText": text}})
    return kept
