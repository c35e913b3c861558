"""
Signed reasoning, kept for clients that drop it.

Claude and Gemini want their own signed thoughts back beside the tool calls that followed from them, DeepSeek its
unsigned ones; a stock OpenAI client sends back the calls alone, for it knows neither. So they are kept here by owner
and first tool call for a while, and put back where they are missing. In this process only: another replica's are gone,
and then the provider's own rules hold (its translator leaves thinking out, with a notice, rather than have the request
refused).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from proxy.config import Deployment
from proxy.providers import ChatRequest, Json, Notice
from proxy.providers.quirks import UNSIGNED

KEPT_SECONDS = 3_600.0
MAX_BYTES = 64_000_000
SIGNATURES = ("extra_content",)
"""Fields of a tool call that hold a signature of its own, as Google's have."""

_encode = msgspec.json.Encoder().encode


class _Kept(msgspec.Struct):
    api: str
    details: Sequence[Json]
    extras: Mapping[str, Json]
    """By tool call id: what stood beside its function."""
    until: float
    size: int


class Thoughts:
    """The most recent ones of all callers, by bytes and by time."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, max_bytes: int = MAX_BYTES) -> None:
        self._clock = clock
        self._max_bytes = max_bytes
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, owner: str, deployment: Deployment, details: Sequence[Json], calls: Sequence[Json]) -> None:
        """The `reasoning_details` of an answer (whole, or the fragments of a stream) and its tool calls."""
        details = _wanted(deployment, details)
        named = [call for call in calls if call.get("id")]
        extras = {call["id"]: _signed(call) for call in named if _signed(call)}
        if not named or not (details or extras):
            return
        size = len(_encode([details, extras]))
        if size > self._max_bytes:
            return
        key = (owner, named[0]["id"])
        self._drop(key)
        until = self._clock() + KEPT_SECONDS
        self._kept[key] = _Kept(deployment.provider.api, details, extras, until, size)
        self._bytes += size
        while self._bytes > self._max_bytes or self._kept[next(iter(self._kept))].until <= self._clock():
            self._drop(next(iter(self._kept)))

    def restore(self, owner: str, deployment: Deployment, chat: ChatRequest) -> tuple[ChatRequest, list[Notice]]:
        """The request with what its client dropped. Thoughts of another API stay away, and that is said."""
        messages: list[Json] = chat["messages"]
        changed: list[Json] = []
        notices: list[Notice] = []
        for message in messages:
            kept = self._of(owner, message)
            if kept is not None and kept.api != deployment.provider.api:
                told = f"The reasoning of an earlier answer came from another API ({kept.api}) and was left out."
                notices = [Notice("messages[].reasoning_details", told, False)]
                kept = None
            changed.append(message if kept is None else _whole(message, kept, _wanted(deployment, kept.details)))
        return ({**chat, "messages": changed} if changed != messages else chat), notices

    def _of(self, owner: str, message: Json) -> _Kept | None:
        calls = message.get("tool_calls")
        if not calls or message.get("reasoning_details") or message.get("thinking_blocks"):
            return None
        kept = self._kept.get((owner, calls[0].get("id", "")))
        return kept if kept is not None and kept.until > self._clock() else None

    def _drop(self, key: tuple[str, str]) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._bytes -= kept.size


def _wanted(deployment: Deployment, details: Sequence[Json]) -> Sequence[Json]:
    """Unsigned thoughts only where the provider says that it wants them back."""
    if deployment.provider.quirks.get("thoughts"):
        return details
    return [detail for detail in details if detail.get("format") != UNSIGNED]


def _whole(message: Json, kept: _Kept, details: Sequence[Json]) -> Json:
    calls = [{**kept.extras.get(call.get("id", ""), {}), **call} for call in message["tool_calls"]]
    whole = {**message, "tool_calls": calls}
    return {**whole, "reasoning_details": list(details)} if details else whole


def _signed(call: Json) -> dict[str, Any]:
    return {name: call[name] for name in SIGNATURES if call.get(name)}
