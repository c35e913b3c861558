"""
What an answer costs, in integers. A price is known, or free, or unknown; unknown is never zero in disguise.

Inside, prices are pico-dollars per token; a cost is summed exactly and rounded half up to nano-dollars once. What a
deployment costs is looked up once and remembered: by the operator's override, else in the table of the provider that
its name, its address or its API points to.
"""

from __future__ import annotations

import gzip
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from proxy.config import Deployment, PriceOverride, Prices, Provider
from proxy.exchange import PriceState, Usage

TABLE = Path(__file__).with_name("prices.json.gz")
FREE_APIS = frozenset({"sim"})
"""Simulated answers cost nobody anything."""
NATIVE_APIS = {"anthropic": "anthropic", "gemini": "google", "vertex": "google", "bedrock": "aws"}
"""APIs that only their owner bills for. Everybody speaks OpenAI's, so that one says nothing about the price."""
OTHER_NAMES = {
    "xai": "x-ai",
    "x_ai": "x-ai",
    "bedrock": "aws",
    "gemini": "google",
    "vertex": "google",
    "together-ai": "together",
    "together_ai": "together",
    "fireworks-ai": "fireworks",
    "moonshot": "moonshotai",
}
MAX_REMEMBERED = 4096
PICO_PER_NANO = 1000
DAY_MS = 86_400_000

_COMPACT_DATE = re.compile(r"-(20\d\d)(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(?=-|:|$)")

Rates = tuple[int | None, ...]
"""Pico-dollars per token for each bucket, in the order of `Usage`."""


class Price(NamedTuple):
    """Where the state is `unknown`, `nano_usd` is the part that could be priced: a lower bound."""

    state: PriceState
    nano_usd: int
    source: str


class Tier(msgspec.Struct, frozen=True, array_like=True):
    """Holds for the whole request when it has more prompt tokens than `above`."""

    above: int
    rates: Rates
    request: int = 0


class Condition(msgspec.Struct, frozen=True, array_like=True):
    """`from`: since that millisecond of time. `daily`: between those milliseconds of the UTC day."""

    kind: str
    start: int
    end: int = 0

    def holds(self, at_ms: int) -> bool:
        if self.kind == "from":
            return at_ms >= self.start
        now = at_ms % DAY_MS
        if self.end < self.start:
            return now >= self.start or now < self.end
        return self.start <= now < self.end


class Entry(msgspec.Struct, frozen=True, array_like=True):
    condition: Condition | None
    tiers: tuple[Tier, ...]


class ListedModel(msgspec.Struct, frozen=True):
    id: str
    match: list[Any]
    prices: tuple[Entry, ...]
    context_window: int | None = None
    max_output_tokens: int | None = None


class ListedProvider(msgspec.Struct, frozen=True):
    api_pattern: str
    fallbacks: tuple[str, ...]
    models: msgspec.Raw
    """Decoded when somebody uses the provider: there are thousands of models, and a gateway routes to a few."""


class Table(msgspec.Struct, frozen=True):
    source: str
    date: str
    providers: dict[str, ListedProvider]


class Known(NamedTuple):
    """What is known of one deployment. It holds the deployment, so that its id() stays its own."""

    deployment: Deployment
    entries: tuple[Entry, ...]
    source: str
    context_window: int | None
    max_output_tokens: int | None
    dearest: Dearest | None = None
    """The worst rates, where they depend on neither time nor length."""


class Dearest(NamedTuple):
    """Pico-dollars: of an input token, an output token, a request."""

    input: int
    output: int
    request: int
    state: PriceState


class PriceBook:
    """Prices for the life of one configuration."""

    def __init__(self, overrides: Prices | None = None, *, clock: Callable[[], float] = time.time) -> None:
        self._overrides: Mapping[str, PriceOverride] = (overrides or Prices()).models
        self._clock = clock
        self._table = msgspec.json.decode(gzip.decompress(TABLE.read_bytes()), type=Table)
        self._listings: dict[str, tuple[ListedModel, ...]] = {}
        self._known: dict[int, Known] = {}

    def cost(self, deployment: Deployment, usage: Usage, at_ms: int) -> Price:
        """What this usage costs at that time (Unix milliseconds)."""
        known = self._known.get(id(deployment)) or self._look_up(deployment)
        entries = known.entries
        if not entries:
            return Price("unknown", 0, known.source)
        tiers = (entries[0] if len(entries) == 1 else _entry_at(entries, at_ms)).tiers
        tier = tiers[0] if len(tiers) == 1 else _tier_for(tiers, usage.prompt)
        return _price(tier, usage, known.source)

    def ceiling(self, deployment: Deployment, input_tokens: int, output_tokens: int) -> Price:
        """
        The most that an answer with so many tokens could cost now, however its prompt is cached and whatever its
        tokens are. `unknown`: nothing can be promised.
        """
        known = self._known.get(id(deployment)) or self._look_up(deployment)
        if known.dearest is not None:
            into, out, request, state = known.dearest
            most = input_tokens * into + output_tokens * out + request
            return Price(state, -(-most // PICO_PER_NANO), known.source)
        if not known.entries:
            return Price("unknown", 0, known.source)
        entries = [_entry_at(known.entries, int(self._clock() * 1000))]
        entries += [entry for entry in known.entries if entry.condition and entry.condition.kind == "daily"]
        most = 0
        for entry in entries:
            for tier in entry.tiers:
                if tier.above and tier.above >= input_tokens:
                    continue
                if tier.rates[0] is None or (tier.rates[5] is None and output_tokens):
                    return Price("unknown", 0, known.source)
                dearest_input = max(rate or 0 for rate in tier.rates[:5])
                dearest_output = max(rate or 0 for rate in tier.rates[5:])
                most = max(most, input_tokens * dearest_input + output_tokens * dearest_output + tier.request)
        free = all(_is_free(tier) for entry in entries for tier in entry.tiers)
        return Price("free" if free else "priced", -(-most // PICO_PER_NANO), known.source)

    def max_output_tokens(self, deployment: Deployment) -> int | None:
        """The model's own maximum, if the table knows it."""
        return (self._known.get(id(deployment)) or self._look_up(deployment)).max_output_tokens

    def context_window(self, deployment: Deployment) -> int | None:
        """In tokens, if the table knows it."""
        return (self._known.get(id(deployment)) or self._look_up(deployment)).context_window

    def models(self, provider: Provider) -> tuple[str, ...]:
        """The names under which the table knows this provider's models."""
        name = self._provider_name(provider)
        return tuple(model.id for model in self._listing(name)) if name is not None else ()

    def _look_up(self, deployment: Deployment) -> Known:
        listed = self._listed(deployment)
        known = Known(
            deployment,
            listed.prices if listed and _has_price(listed.prices) else (),
            f"{self._table.source} ({self._table.date})" if listed else "",
            listed.context_window if listed else None,
            listed.max_output_tokens if listed else None,
        )
        override = self._overrides.get(deployment.name) or self._overrides.get(f"{deployment.provider.name}/*")
        if override is not None:
            known = known._replace(entries=_override_entries(override), source="config.yaml")
        elif deployment.provider.api in FREE_APIS or deployment.provider.name in FREE_APIS:
            known = known._replace(entries=FREE, source="simulated")
        known = known._replace(dearest=_dearest(known.entries))
        if len(self._known) >= MAX_REMEMBERED:
            self._known.clear()
        self._known[id(deployment)] = known
        return known

    def _listed(self, deployment: Deployment) -> ListedModel | None:
        name = self._provider_name(deployment.provider)
        if name is None:
            return None
        wanted = deployment.model.lower()
        places = (name, *self._table.providers[name].fallbacks)
        for spelling in dict.fromkeys((wanted, _COMPACT_DATE.sub(r"-\1-\2-\3", wanted))):
            for place in places:
                for model in self._listing(place):
                    if matches(model.match, spelling):
                        return model
        return None

    def _listing(self, name: str) -> tuple[ListedModel, ...]:
        if name not in self._listings:
            raw = self._table.providers[name].models
            self._listings[name] = msgspec.json.decode(raw, type=tuple[ListedModel, ...])
        return self._listings[name]

    def _provider_name(self, provider: Provider) -> str | None:
        """By the operator's name for it, else by its address, else by an API that has only one owner."""
        listed = self._table.providers
        own = OTHER_NAMES.get(provider.name.lower(), provider.name.lower())
        if own in listed:
            return own
        for name, entry in listed.items():
            if re.match(entry.api_pattern, provider.api_base):
                return name
        return NATIVE_APIS.get(provider.api)


def matches(clause: list[Any], text: str) -> bool:
    """Whether a lower-case model name satisfies a clause of the table."""
    kind, value = clause
    if kind == "or":
        return any(matches(part, text) for part in value)
    if kind == "and":
        return all(matches(part, text) for part in value)
    if kind == "regex":
        return re.search(value, text) is not None
    if kind == "equals":
        return bool(text == value.lower())
    if kind == "contains":
        return value.lower() in text
    return text.startswith(value.lower()) if kind == "starts_with" else text.endswith(value.lower())


FREE = (Entry(None, (Tier(0, (0,) * 8),)),)


def _entry_at(entries: tuple[Entry, ...], at_ms: int) -> Entry:
    """The last one whose condition holds; the first, if none does."""
    for entry in reversed(entries):
        if entry.condition is None or entry.condition.holds(at_ms):
            return entry
    return entries[0]


def _tier_for(tiers: tuple[Tier, ...], prompt_tokens: int) -> Tier:
    for tier in reversed(tiers):
        if prompt_tokens > tier.above:
            return tier
    return tiers[0]


def _price(tier: Tier, usage: Usage, source: str) -> Price:
    into, read, write_5m, write_1h, audio_in, out, reasoning, audio_out = tier.rates
    state: PriceState = "priced"
    try:
        # Almost every tier prices every bucket, and written out this takes half a microsecond. A None raises.
        pico = (
            usage.input * into  # type: ignore[operator]
            + usage.cache_read * read  # type: ignore[operator]
            + usage.cache_write_5m * write_5m  # type: ignore[operator]
            + usage.cache_write_1h * write_1h  # type: ignore[operator]
            + usage.audio_input * audio_in  # type: ignore[operator]
            + usage.output * out  # type: ignore[operator]
            + usage.reasoning * reasoning  # type: ignore[operator]
            + usage.audio_output * audio_out  # type: ignore[operator]
        )
    except TypeError:
        billed = [
            (count, rate) for count, rate in zip(msgspec.structs.astuple(usage), tier.rates, strict=False) if count
        ]
        pico = sum(count * rate for count, rate in billed if rate is not None)
        if any(rate is None for _, rate in billed):
            state = "unknown"
    pico += tier.request
    if pico == 0 and state == "priced" and _is_free(tier):
        state = "free"
    return Price(state, (pico + PICO_PER_NANO // 2) // PICO_PER_NANO, source)


def _dearest(entries: tuple[Entry, ...]) -> Dearest | None:
    if len(entries) != 1 or entries[0].condition is not None or len(entries[0].tiers) != 1:
        return None
    tier = entries[0].tiers[0]
    if tier.above or tier.rates[0] is None or tier.rates[5] is None:
        return None
    state: PriceState = "free" if _is_free(tier) else "priced"
    into = max(rate or 0 for rate in tier.rates[:5])
    return Dearest(into, max(rate or 0 for rate in tier.rates[5:]), tier.request, state)


def _is_free(tier: Tier) -> bool:
    return tier.request == 0 and not any(tier.rates) and tier.rates[0] == 0


def _has_price(entries: tuple[Entry, ...]) -> bool:
    """Some models are listed without a price for tokens: those of audio hours, pages, characters."""
    return any(rate is not None for entry in entries for tier in entry.tiers for rate in tier.rates)


def _override_entries(override: PriceOverride) -> tuple[Entry, ...]:
    read, written, into = override.cached_input_pico_usd, override.cache_write_pico_usd, override.input_pico_usd
    read = into if read is None else read
    written = into if written is None else written
    out = override.output_pico_usd
    rates = (into, read, written, written, into, out, out, out)
    if all(rate is None for rate in rates) and not override.request_nano_usd:
        return ()
    return (Entry(None, (Tier(0, rates, override.request_nano_usd * PICO_PER_NANO),)),)
