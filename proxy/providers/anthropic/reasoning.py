"""
Thinking: how much to ask for, what it excludes, and how earlier thoughts go back.

Up to Claude 4.5 thinking has a budget in tokens; from 4.6 on it is adaptive and has an effort. A signed thought must
come back unchanged and before all else in its turn.
"""

from __future__ import annotations

import re
from typing import Any

from proxy.errors import CallerError
from proxy.providers import Json
from proxy.providers.anthropic.answers import REASONING_FORMAT
from proxy.providers.anthropic.content import Note

BUDGETS = {"minimal": 1024, "low": 1024, "medium": 2048, "high": 4096, "xhigh": 8192, "max": 16_384}
"""Tokens of thinking for each `reasoning_effort`, where thinking has a budget."""
EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh", "max": "max"}
MIN_BUDGET = 1024

Version = tuple[int, int]

_VERSION = re.compile(r"claude-(?:[a-z]+-)*(\d)(?:[-.](\d{1,2}))?(?!\d)")


def version_of(model: str) -> Version | None:
    """(4, 5) for claude-haiku-4-5-20251001; None for names that do not tell, which get what all models take."""
    found = _VERSION.search(model)
    return (int(found[1]), int(found[2] or 0)) if found else None


def encode_reasoning(body: Json, chat: Json, version: Version | None, note: Note) -> None:
    """Adds `thinking` and `output_config.effort` to a body that has its max_tokens, tool_choice and messages."""
    effort = chat.get("reasoning_effort")
    if isinstance(chat.get("thinking"), dict):
        body["thinking"] = chat["thinking"]
        if effort is not None:
            note("reasoning_effort", "thinking was sent too, and it is the more precise; the effort was left out.")
    elif effort is not None:
        if effort not in EFFORTS and effort != "none":
            raise CallerError(
                f"reasoning_effort is {effort!r:.60}; it can be none, {', '.join(EFFORTS)}.", param="reasoning_effort"
            )
        _ask(body, effort, version, note)
    if body.get("thinking", {}).get("type") in ("enabled", "adaptive"):
        _reconcile(body, note)


def _ask(body: Json, effort: str, version: Version | None, note: Note) -> None:
    if version is not None and version >= (4, 6):
        if effort == "none":
            body["thinking"] = {"type": "disabled"}
            return
        level = EFFORTS[effort]
        if level == "xhigh" and version < (4, 7):
            level = "high"
            note("reasoning_effort", "This model has no effort xhigh; it was asked for high.")
        body["thinking"] = {"type": "adaptive"}
        if version >= (4, 7):
            body["thinking"]["display"] = "summarized"  # newer models keep their thoughts to themselves by default
        body.setdefault("output_config", {})["effort"] = level
        return
    if effort == "none":
        return
    if version is not None and version < (3, 7):
        note("reasoning_effort", "This model does not think; it was left out.")
        return
    budget = min(BUDGETS[effort], max(MIN_BUDGET, body["max_tokens"] // 2))
    if body["max_tokens"] <= MIN_BUDGET:
        note("reasoning_effort", f"Thinking needs a limit above {MIN_BUDGET} tokens; the model was not asked to think.")
        return
    if budget < BUDGETS[effort]:
        note("reasoning_effort", f"The token limit leaves {budget} tokens for thinking.")
    body["thinking"] = {"type": "enabled", "budget_tokens": budget}


def _reconcile(body: Json, note: Note) -> None:
    """What cannot stand beside thinking yields to it, but for a forced tool and for history that forbids it."""
    if body.get("tool_choice", {}).get("type") in ("any", "tool"):
        _give_up(body, note, "Claude cannot think when a tool is forced; it was not asked to think.")
        return
    if body["thinking"]["type"] == "enabled" and _loops_without_thought(body["messages"]):
        _give_up(
            body, note, "The last tool call came back without its signed reasoning_details, so Claude cannot think on."
        )
        return
    for name in ("temperature", "top_k"):
        if name in body and not (name == "temperature" and body[name] == 1):
            del body[name]
            note(name, f"Claude takes no {name} while it thinks; it was left out.")
    if body.get("top_p", 1) < 0.95:
        del body["top_p"]
        note("top_p", "Claude takes a top_p from 0.95 to 1 while it thinks; it was left out.")


def _give_up(body: Json, note: Note, why: str) -> None:
    body.pop("thinking")
    if body.get("output_config", {}).pop("effort", None) and not body["output_config"]:
        del body["output_config"]
    note("reasoning_effort", why)


def _loops_without_thought(turns: list[Json]) -> bool:
    """In a tool loop the last assistant turn must begin with thinking, or the request is refused."""
    if len(turns) < 2 or turns[-1]["content"][0]["type"] != "tool_result":
        return False
    return turns[-2]["content"][0]["type"] not in ("thinking", "redacted_thinking")


def replayed_thoughts(message: Json, note: Note) -> list[Json]:
    """
    The signed thoughts of an assistant message, from `reasoning_details` (whole or as the fragments of a stream), from
    `thinking_blocks`, or from content parts; whichever a client kept.
    """
    blocks = _from_details(message.get("reasoning_details"))
    blocks = blocks or _native(message.get("thinking_blocks")) or _native(message.get("content"))
    if not blocks and (
        message.get("reasoning_content") or message.get("reasoning_details") or message.get("reasoning")
    ):
        note(
            "messages[].reasoning_content", "Reasoning that Claude did not sign cannot be sent to it; it was left out."
        )
    return blocks


def _from_details(details: Any) -> list[Json]:
    whole: dict[object, Json] = {}
    formats: dict[object, Any] = {}
    for place, detail in enumerate(details if isinstance(details, list) else ()):
        if not isinstance(detail, dict):
            continue
        kind, index = detail.get("type"), detail.get("index")
        # of a stream's pieces only the first says whose they are
        if detail.get("format") or index not in formats:
            formats[index] = detail.get("format")
        if formats[index] not in (None, "unknown", REASONING_FORMAT):
            continue
        if kind == "reasoning.encrypted" and detail.get("data"):
            whole["encrypted", place] = {"type": "redacted_thinking", "data": detail["data"]}
        elif kind == "reasoning.text":
            block = whole.setdefault(("text", place if index is None else index), {"type": "thinking", "thinking": ""})
            block["thinking"] += detail.get("text") or ""
            if detail.get("signature"):
                block["signature"] = detail["signature"]
    return [block for block in whole.values() if block["type"] == "redacted_thinking" or block.get("signature")]


def _native(blocks: Any) -> list[Json]:
    kept = []
    for block in blocks if isinstance(blocks, list) else ():
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "thinking" and block.get("signature"):
            kept.append({"type": kind, "thinking": block.get("thinking") or "", "signature": block["signature"]})
        elif kind == "redacted_thinking" and block.get("data"):
            kept.append({"type": kind, "data": block["data"]})
    return kept
