"""
What an answer costs. A price is known, or free, or unknown; unknown is never zero in disguise.

What a deployment costs is looked up once and remembered: by the operator's override, else in the table of the provider
that its name, its address or its API points to. `price_lines` has the arithmetic.
"""

from __future__ import annotations

import gzip
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from proxy.config import Deployment, PriceOverride, Prices, Provider
from proxy.exchange import Usage
from proxy.metering.price_lines import (
    BUCKETS,
    Condition,
    Entries,
    Entry,
    Line,
    Price,
    Rates,
    ceiling_of,
    described,
    entry_at,
    line_for,
    make_line,
    price_of,
    source_of,
)
from proxy.metering.price_overrides import overridden
from proxy.metering.usage import STANDARD_TIERS
from proxy.storage.postgres import Database
from proxy.storage.prices import write_lines

TABLE = Path(__file__).with_name("prices.json.gz")
FREE_APIS = frozenset({"sim"})
"""Simulated answers cost nobody anything."""
NATIVE_APIS = {
    "anthropic": "anthropic", "azure": "azure", "bedrock": "aws", "cohere": "cohere", "gemini": "google",
    "mistral": "mistral", "vertex": "google",
}  # fmt: skip
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
AUTO_TIERS = ("", "priority")
"""What may be served where `auto` is asked for, as far as it costs more than the standard tier."""
CHEAP_TIERS = frozenset({"flex", "batch"})
"""These never cost more than the standard tier, so that its price is a ceiling where they have none of their own."""
MAX_REMEMBERED = 4096

_COMPACT_DATE = re.compile(r"-(20\d\d)(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])(?=-|:|$)")


class ListedLine(msgspec.Struct, frozen=True, array_like=True):
    above: int
    rates: Rates
    request: int


class ListedEntry(msgspec.Struct, frozen=True, array_like=True):
    condition: Condition | None
    lines: tuple[ListedLine, ...]


class ListedModel(msgspec.Struct, frozen=True):
    id: str
    match: list[Any]
    prices: tuple[ListedEntry, ...]
    service_tiers: dict[str, tuple[ListedEntry, ...]] = {}
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


class Known(msgspec.Struct, frozen=True):
    """What is known of one deployment. It holds the deployment, so that its id() stays its own."""

    deployment: Deployment
    tiers: dict[str, Entries]
    """By service tier; "" is the standard one. Without that one nothing is known."""
    standard: tuple[Line, ...] = ()
    """The standard tier's lines, where they do not depend on the time."""
    context_window: int | None = None
    max_output_tokens: int | None = None


class PriceBook:
    """Prices for the life of one configuration."""

    def __init__(self, overrides: Prices | None = None, *, clock: Callable[[], float] = time.time) -> None:
        self._overrides: Mapping[str, PriceOverride] = (overrides or Prices()).models
        self._clock = clock
        self._table = msgspec.json.decode(gzip.decompress(TABLE.read_bytes()), type=Table)
        self._book = f"{self._table.source} ({self._table.date})"
        self._listings: dict[str, tuple[ListedModel, ...]] = {}
        self._known: dict[int, Known] = {}
        self._lines: dict[str, Line] = {}
        self._unwritten: dict[str, Line] = {}
        """Lines that may be in the ledger by now, and not yet in the database."""

    @property
    def date(self) -> str:
        """The day of the table that comes with the package."""
        return self._table.date

    def cost(self, deployment: Deployment, usage: Usage, at_ms: int, service_tier: str = "") -> Price:
        """What this usage costs at that time (Unix milliseconds), served at that tier."""
        known = self._known.get(id(deployment)) or self._look_up(deployment)
        lines = known.standard
        if service_tier or not lines:
            return _cost_of_any(known.tiers, usage, at_ms, service_tier)
        line = lines[0]
        if len(lines) > 1:
            prompt_tokens = usage.prompt
            for longer in lines:
                if prompt_tokens > longer.above:
                    line = longer
        return price_of(line, usage)

    def ceiling(self, deployment: Deployment, input_tokens: int, output_tokens: int, service_tier: str = "") -> Price:
        """
        The most that an answer with so many tokens could cost now, however its prompt is cached and whatever its tokens
        are, where that tier was asked for. `unknown`: nothing can be promised.
        """
        known = self._known.get(id(deployment)) or self._look_up(deployment)
        lines: Sequence[Line] = known.standard
        if service_tier or not lines:
            lines = list(self._current(known, _possible_tiers(known.tiers, service_tier)))
        return ceiling_of(lines, input_tokens, output_tokens)

    def current_lines(self, deployment: Deployment) -> dict[str, list[Line]]:
        """What counts now, by service tier; for every hour of the day. Nothing: the price is unknown."""
        known = self._known.get(id(deployment)) or self._look_up(deployment)
        found = {tier: list(self._current(known, [tier])) for tier in known.tiers}
        return {tier: lines for tier, lines in found.items() if lines}

    def lines(self, source: str) -> dict[str, int] | None:
        """The pico-dollars of a line by bucket, and of a request; None: no deployment seen by now uses such a line."""
        line = self._lines.get(source)
        return described(line) if line is not None else None

    async def write_new_lines(self, db: Database) -> None:
        """
        Writes the lines that this book may have used since it was last asked. Raises GatewayFault; they are then
        written the next time.
        """
        lines, self._unwritten = self._unwritten, {}
        try:
            await write_lines(db, {source: described(line) for source, line in lines.items()})
        except BaseException:
            self._unwritten |= lines
            raise

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

    def _current(self, known: Known, tiers: list[str]) -> Iterator[Line]:
        now_ms = int(self._clock() * 1000)
        for tier in tiers:
            entries = known.tiers.get(tier, ())
            if entries:
                yield from entry_at(entries, now_ms).lines
            for entry in entries:
                if entry.condition and entry.condition.kind == "daily" and not entry.condition.holds(now_ms):
                    yield from entry.lines

    def _look_up(self, deployment: Deployment) -> Known:
        place, listed = self._listed(deployment)
        tiers = self._table_tiers(place, listed) if listed is not None else {}
        pattern = next((p for p in (deployment.name, f"{deployment.provider.name}/*") if p in self._overrides), None)
        if pattern is not None:
            tiers = overridden(tiers, self._overrides[pattern], pattern)
        elif deployment.provider.api in FREE_APIS or deployment.provider.name in FREE_APIS:
            tiers = {"": FREE}
        standard = tiers.get("", ())
        known = Known(
            deployment,
            tiers,
            standard[0].lines if len(standard) == 1 and standard[0].condition is None else (),
            listed.context_window if listed else None,
            listed.max_output_tokens if listed else None,
        )
        if len(self._known) >= MAX_REMEMBERED:
            self._known.clear()
            self._lines = dict(self._unwritten)
        self._known[id(deployment)] = known
        for entries in tiers.values():
            for line in (line for entry in entries for line in entry.lines if line.source not in self._lines):
                self._lines[line.source] = self._unwritten[line.source] = line
        return known

    def _table_tiers(self, place: str, model: ListedModel) -> dict[str, Entries]:
        """Nothing, where a model is listed without a price for tokens: those of audio hours, pages, characters."""
        token_rates = (rate for entry in model.prices for line in entry.lines for rate in line.rates[:-1])
        if all(rate is None for rate in token_rates):
            return {}
        name = f"{place}/{model.id}"
        return {
            tier: tuple(
                Entry(
                    entry.condition,
                    tuple(
                        make_line(source_of(self._book, name, line.above, tier, entry.condition), *_args(line))
                        for line in entry.lines
                    ),
                )
                for entry in entries
            )
            for tier, entries in {"": model.prices, **model.service_tiers}.items()
        }

    def _listed(self, deployment: Deployment) -> tuple[str, ListedModel | None]:
        """The model, and under which provider it was found."""
        name = self._provider_name(deployment.provider)
        if name is None:
            return "", None
        wanted = (deployment.base_model or deployment.model).lower()
        places = (name, *self._table.providers[name].fallbacks)
        for spelling in dict.fromkeys((wanted, _COMPACT_DATE.sub(r"-\1-\2-\3", wanted))):
            for place in places:
                for model in self._listing(place):
                    if matches(model.match, spelling):
                        return place, model
        return "", None

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


FREE: Entries = (Entry(None, (make_line("simulated", 0, (0,) * len(BUCKETS)),)),)


def _cost_of_any(tiers: Mapping[str, Entries], usage: Usage, at_ms: int, service_tier: str) -> Price:
    tier = "" if service_tier in STANDARD_TIERS else service_tier
    line = _line_at(tiers.get(tier, ()), usage.prompt, at_ms)
    if line is not None:
        return price_of(line, usage)
    line = _line_at(tiers.get("", ()), usage.prompt, at_ms)
    if line is None:
        return Price("unknown", 0, "")
    price = price_of(line, usage)
    # Nobody knows what that tier costs. The standard price is a guess, for budgets; what is free is so at any tier.
    return price if line.state == "free" else price._replace(state="unknown")


def _line_at(entries: Entries, prompt_tokens: int, at_ms: int) -> Line | None:
    return line_for(entry_at(entries, at_ms), prompt_tokens) if entries else None


def _possible_tiers(tiers: Mapping[str, Entries], asked: str) -> list[str]:
    """What may be served where that tier was asked for; a provider may always fall back on the standard one."""
    if asked == "auto":
        return [tier for tier in AUTO_TIERS if tier in tiers]
    if asked in STANDARD_TIERS or (asked not in tiers and asked in CHEAP_TIERS):
        return [""]
    if asked in tiers:
        return ["", asked]
    free = all(line.state == "free" for entry in tiers.get("", ()) for line in entry.lines)
    return [""] if free else []


def _args(line: ListedLine) -> tuple[int, Rates, int]:
    return line.above, line.rates, line.request
