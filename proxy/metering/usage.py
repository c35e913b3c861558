"""
A provider's own usage numbers as disjoint buckets of tokens.

Numbers that cannot be right are read as something safe and reported as suspect; the raw object stays in the ledger.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from proxy.exchange import Usage

MAX_TOKENS = 10**15
"""Beyond this a number is a mistake; below it, every sum and every price fits the database's 64 bits."""

STANDARD_TIERS = frozenset({"", "default", "standard", "standard_only", "auto", "on_demand"})
"""What providers call the tier that needs no name: OpenAI, Anthropic, Groq. In an answer, `auto` says no more."""
MAX_TIER_CHARS = 32
NOTHING_USED = Usage()

_NOTHING: Mapping[str, Any] = {}

_Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]


class _Inside(msgspec.Struct):
    cached_tokens: _Count | None = None
    cache_write_tokens: _Count | None = None
    cache_write_1h_tokens: _Count | None = None
    audio_tokens: _Count | None = None
    image_tokens: _Count | None = None


class _Outside(msgspec.Struct):
    reasoning_tokens: _Count | None = None
    audio_tokens: _Count | None = None
    image_tokens: _Count | None = None


class _Plain(msgspec.Struct):
    """What almost every usage looks like."""

    prompt_tokens: _Count
    completion_tokens: _Count
    total_tokens: _Count
    prompt_tokens_details: _Inside | None = None
    completion_tokens_details: _Outside | None = None
    prompt_cache_hit_tokens: None = None
    server_tool_use: None = None
    num_search_queries: None = None
    searches: None = None


class _Untouched(_Plain):
    """… with nothing that would have to be moved or replaced on its way to the client."""

    cached_tokens: msgspec.UnsetType = msgspec.UNSET
    service_tier: msgspec.UnsetType = msgspec.UNSET
    cost: msgspec.UnsetType = msgspec.UNSET


_decode_untouched = msgspec.json.Decoder(_Untouched).decode
_INSIDE = _Inside()
_OUTSIDE = _Outside()


def from_openai(usage: Mapping[str, Any]) -> tuple[Usage, bool]:
    """
    OpenAI-shaped usage, chat's names or Responses', as disjoint buckets; and whether the numbers are suspect.

    The buckets always add up to what the provider called prompt and completion: a part that claims more than its whole
    gets what is left of it, and makes the answer suspect.
    """
    plain = _read_plain(usage)
    return (plain, False) if plain is not None else _read_any(usage)


def read_untouched(usage: bytes) -> Usage | None:
    """A usage as it came, if it is plain and in OpenAI's own arithmetic; else None, and it has to be looked into."""
    try:
        return _buckets(_decode_untouched(usage))
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None


def _read_plain(usage: Mapping[str, Any]) -> Usage | None:
    """A usage in which every number is what it should be, at a fifth of the price of looking at each; else None."""
    try:
        return _buckets(msgspec.convert(usage, _Plain))
    except msgspec.ValidationError:
        return None


def _buckets(plain: _Plain) -> Usage | None:
    inside, outside = plain.prompt_tokens_details or _INSIDE, plain.completion_tokens_details or _OUTSIDE
    prompt, completion = plain.prompt_tokens, plain.completion_tokens
    cached, written, audio_in = inside.cached_tokens or 0, inside.cache_write_tokens or 0, inside.audio_tokens or 0
    reasoning, audio_out = outside.reasoning_tokens or 0, outside.audio_tokens or 0
    image_in, image_out = inside.image_tokens or 0, outside.image_tokens or 0
    left, said = prompt - cached - written - audio_in - image_in, completion - reasoning - audio_out - image_out
    if plain.total_tokens != prompt + completion or left < 0 or said < 0 or inside.cache_write_1h_tokens:
        return None
    return Usage(left, cached, written, 0, audio_in, said, reasoning, audio_out, image_in, image_out)


def _read_any(usage: Mapping[str, Any]) -> tuple[Usage, bool]:
    reader = _Reader(usage)
    prompt = reader.whole("prompt_tokens", "input_tokens")
    completion = reader.whole("completion_tokens", "output_tokens")
    inside = reader.details("prompt_tokens_details", "input_tokens_details")
    outside = reader.details("completion_tokens_details", "output_tokens_details")

    cached = reader.count(inside, "cached_tokens")
    if cached == 0:
        cached = reader.count(usage, "prompt_cache_hit_tokens")
    written = reader.count(inside, "cache_write_tokens")
    written_1h = reader.count(inside, "cache_write_1h_tokens")
    audio_in, image_in = reader.count(inside, "audio_tokens"), reader.count(inside, "image_tokens")
    reasoning = reader.count(outside, "reasoning_tokens")
    audio_out, image_out = reader.count(outside, "audio_tokens"), reader.count(outside, "image_tokens")

    total = reader.count(usage, "total_tokens") if usage.get("total_tokens") is not None else prompt + completion
    if reasoning and total == prompt + completion + reasoning:
        # xAI leaves reasoning out of the completion; its total gives it away
        completion += reasoning
    elif total != prompt + completion:
        reader.suspect = True
    if cached + written > prompt or written_1h > written or audio_in + image_in > prompt:
        reader.suspect = True
    if reasoning + audio_out + image_out > completion:
        reader.suspect = True
    if not reader.found:
        reader.suspect = True

    left = prompt
    cached = min(cached, left)
    left -= cached
    written = min(written, left)
    written_1h = min(written_1h, written)
    left -= written
    # Cached audio is in both of its details, so audio may claim more than is left without being wrong; images, too.
    audio_in = min(audio_in, left)
    image_in = min(image_in, left - audio_in)
    reasoning = min(reasoning, completion)
    audio_out = min(audio_out, completion - reasoning)
    image_out = min(image_out, completion - reasoning - audio_out)
    return (
        Usage(
            input=left - audio_in - image_in,
            cache_read=cached,
            cache_write_5m=written - written_1h,
            cache_write_1h=written_1h,
            audio_input=audio_in,
            output=completion - reasoning - audio_out - image_out,
            reasoning=reasoning,
            audio_output=audio_out,
            image_input=image_in,
            image_output=image_out,
            searches=_searches(reader),
        ),
        reader.suspect,
    )


def _searches(reader: _Reader) -> int:
    """The first place that counts any: Anthropic's (OpenRouter has it too), Perplexity's, a plain one."""
    tools = reader.details("server_tool_use")
    return (
        reader.count(tools, "web_search_requests")
        or reader.count(reader.usage, "num_search_queries")
        or reader.count(reader.usage, "searches")
    )


def read_service_tier(said: object) -> str:
    """What a provider says it served at; "" for the standard tier, and for what is no name of one."""
    if not isinstance(said, str) or said in STANDARD_TIERS or len(said) > MAX_TIER_CHARS or not said.isprintable():
        return ""
    return said


class _Reader:
    """Reads numbers out of an object that may hold anything, and remembers whether all of them were numbers."""

    __slots__ = ("found", "suspect", "usage")

    def __init__(self, usage: Mapping[str, Any]) -> None:
        self.usage = usage
        self.suspect = False
        self.found = False

    def whole(self, *names: str) -> int:
        """The first of these that is there; a usage in which none is found says nothing."""
        for name in names:
            if self.usage.get(name) is not None:
                self.found = True
                return self.count(self.usage, name)
        return 0

    def details(self, *names: str) -> Mapping[str, Any]:
        for name in names:
            value = self.usage.get(name)
            if isinstance(value, Mapping):
                return value
            if value is not None:
                self.suspect = True
        return _NOTHING

    def count(self, where: Mapping[str, Any], name: str) -> int:
        value = where.get(name)
        if value is None:
            return 0
        if type(value) is int and 0 <= value <= MAX_TOKENS:
            return value
        self.suspect = True
        if isinstance(value, float) and 0 <= value <= MAX_TOKENS:
            return math.ceil(value)
        return 0
