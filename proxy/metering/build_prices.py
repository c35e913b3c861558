"""
Writes prices.json.gz: `python -m proxy.metering.build_prices`, with the dev extra installed.

The prices are genai-prices' (Pydantic, MIT), flattened: each set of prices becomes, per length of the prompt, one price
for each bucket of `Usage`, or null; each service tier with prices of its own becomes a set of its own. Prices are
pico-dollars per token: a dollar per million tokens is 1,000,000 of them, and no price in the table is lost to rounding.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import re
import sys
from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
from genai_prices import types
from genai_prices.data import providers

TARGET = Path(__file__).with_name("prices.json.gz")
PICO_PER_USD_PER_MILLION = 1_000_000
PICO_PER_USD_PER_THOUSAND = 1_000_000_000

# For each bucket, in the order of `Usage`: its own price. What is billed as something else is proxy.metering's affair.
BUCKETS = (
    "input_mtok",
    "cache_read_mtok",
    "cache_write_mtok",
    "cache_write_1h_mtok",
    "input_audio_mtok",
    "output_mtok",
    "output_reasoning_mtok",
    "output_audio_mtok",
    "input_image_mtok",
    "output_image_mtok",
    "web_searches_kcount",
)
# The contexts of variants that an answer tells us of, by our name for them. `default` is the standard price again;
# routes and kinds of search are nothing that an answer's service_tier says.
SERVICE_TIERS = {
    ("service_tier", "priority"),
    ("service_tier", "flex"),
    ("service_tier", "fast"),
    ("processing", "batch"),
    ("speed", "fast"),
}
LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)

# What the models' own pages call their maximum output, which genai-prices does not know:
# docs.claude.com/en/docs/about-claude/models/overview, platform.openai.com/docs/models,
# ai.google.dev/gemini-api/docs/models. A model that is not here has no known maximum.
MAX_OUTPUT_TOKENS = tuple(
    (re.compile(rf"(^|[/.]){pattern}"), tokens)
    for pattern, tokens in (
        (r"claude-(opus-4[-.][678]|sonnet-4[-.]6)\b", 128_000),
        (r"claude-(opus-4[-.]5|(sonnet|haiku)-4[-.]5|sonnet-4([-.]0)?|4-sonnet|3[-.]7-sonnet)\b", 64_000),
        (r"claude-(opus-4([-.][01])?|4-opus)\b", 32_000),
        (r"claude-3[-.]5-(sonnet|haiku)\b", 8_192),
        (r"claude-3-(opus|sonnet|haiku)\b", 4_096),
        (r"gpt-5([.][12])?(-mini|-nano|-codex|-codex-mini)?$", 128_000),
        (r"(o1|o3|o3-mini|o4-mini|o1-pro|o3-pro)$", 100_000),
        (r"gpt-4[.]1(-mini|-nano)?$", 32_768),
        (r"(gpt-4o(-mini|-audio-preview)?|chatgpt-4o-latest)$", 16_384),
        (r"(gpt-4-turbo|gpt-3[.]5-turbo)$", 4_096),
        (r"gpt-4$", 8_192),
        (r"gemini-2[.]5-(pro|flash|flash-lite)$", 65_536),
        (r"gemini-(2[.]0-flash(-lite)?|1[.]5-(pro|flash))$", 8_192),
    )
)


def flatten_clause(clause: Any) -> list[Any]:
    """`["equals", text]`, `["or", [clause, …]]` and so on."""
    ((name, value),) = vars(clause).items()
    name = name.rstrip("_")
    return [name, [flatten_clause(part) for part in value] if name in ("or", "and") else value]


def flatten_prices(price: types.ModelPrice) -> list[list[Any]]:
    """`[[above, [price per bucket or None, …], price per request], …]`; the first holds from zero tokens up."""
    known: Mapping[str, Decimal | types.TieredPrices] = {
        key: value for key, value in vars(price).items() if value is not None
    }
    starts = {tier.start for value in known.values() if isinstance(value, types.TieredPrices) for tier in value.tiers}
    request = known.get("requests_kcount", Decimal(0))
    per_request = round(_at(request, 0) * PICO_PER_USD_PER_THOUSAND)
    tiers = []
    for start in (-1, *sorted(starts)):
        rates = [round(_at(known[key], start + 1) * _unit(key)) if key in known else None for key in BUCKETS]
        tiers.append([max(start, 0), rates, per_request])
    return tiers


def _unit(key: str) -> int:
    return PICO_PER_USD_PER_THOUSAND if key.endswith("_kcount") else PICO_PER_USD_PER_MILLION


def _at(value: Decimal | types.TieredPrices, tokens: int) -> Decimal:
    if isinstance(value, Decimal):
        return value
    return next((tier.price for tier in reversed(value.tiers) if tokens > tier.start), value.base)


def flatten_condition(constraint: object) -> list[Any] | None:
    """`["from", unix ms]`, or `["daily", start, end]` in milliseconds of the UTC day; None: always."""
    if isinstance(constraint, types.StartDateConstraint):
        day = constraint.start_date
        return ["from", int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000), 0]
    if isinstance(constraint, types.TimeOfDateConstraint):
        bounds = (constraint.start_time, constraint.end_time)
        return ["daily", *((at.hour * 3600 + at.minute * 60 + at.second) * 1000 for at in bounds)]
    return None


def flatten_model(model: types.ModelInfo) -> dict[str, Any]:
    # Listed without a price, and free by its name: elsewhere no price means that nobody knows.
    free = model.id.endswith(":free")
    prices = [[None, [[0, [0] * (len(BUCKETS) - 1) + [None], 0]]]]
    if not free:
        prices = [[flatten_condition(entry.constraint), flatten_prices(entry.prices)] for entry in _listed(model)]
    return {
        "id": model.id,
        "match": flatten_clause(model.match),
        "context_window": model.context_window,
        "max_output_tokens": next((n for pattern, n in MAX_OUTPUT_TOKENS if pattern.search(model.id)), None),
        "prices": prices,
        "service_tiers": {} if free else flatten_service_tiers(model),
    }


def flatten_service_tiers(model: types.ModelInfo) -> dict[str, Any]:
    """
    The prices of each service tier over the whole of time. Where a variant says nothing, or not yet, the standard price
    counts; so it changes with that one, too.
    """
    wanted = sorted({pair for variant in model.price_variants or () for pair in variant.when.items()} & SERVICE_TIERS)
    tiers = {}
    for name, value in wanted:
        when = {name: value}
        variants = [variant for variant in model.price_variants or () if variant.when == when]
        days: set[date] = set()
        constraints = [one.constraint for one in _listed(model)] + [one.constraint for one in variants]
        for constraint in constraints:
            if isinstance(constraint, types.TimeOfDateConstraint):
                raise ValueError(f"{model.id}: prices by the hour and by the service tier at once")
            if constraint is not None:
                days.add(constraint.start_date)
        entries: list[list[Any]] = [[None, flatten_prices(model.get_prices(LONG_AGO, when))]]
        for day in sorted(days):
            moment = datetime(day.year, day.month, day.day, tzinfo=UTC)
            prices = flatten_prices(model.get_prices(moment, when))
            if prices != entries[-1][1]:
                entries.append([["from", int(moment.timestamp() * 1000), 0], prices])
        tiers[value] = entries
    return tiers


def _listed(model: types.ModelInfo) -> list[types.ConditionalPrice]:
    return model.prices if isinstance(model.prices, list) else [types.ConditionalPrice(prices=model.prices)]


def build(day: str) -> bytes:
    """The table as gzipped JSON; the same input gives the same bytes."""
    table = {
        "source": f"genai-prices {importlib.metadata.version('genai-prices')}",
        "date": day,
        "providers": {
            provider.id: {
                "api_pattern": provider.api_pattern,
                "fallbacks": provider.fallback_model_providers or [],
                "models": [flatten_model(model) for model in provider.models],
            }
            for provider in providers
        },
    }
    return gzip.compress(msgspec.json.encode(table), mtime=0)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET
    target.write_bytes(build(datetime.now(UTC).date().isoformat()))
    sys.stdout.write(f"{target}: {target.stat().st_size:,} bytes\n")
