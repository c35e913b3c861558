"""The operator's own prices, as lines in place of those that are listed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import msgspec

from proxy.config import PriceList, PriceOverride, PriceRates
from proxy.metering.price_lines import PICO_PER_NANO, Condition, Entries, Entry, Line, Rates, make_line, source_of

BOOK = "config.yaml"
_RATES = (
    "input_pico_usd",
    "cached_input_pico_usd",
    "cache_write_pico_usd",
    "cache_write_1h_pico_usd",
    "audio_input_pico_usd",
    "output_pico_usd",
    "reasoning_pico_usd",
    "audio_output_pico_usd",
    "image_input_pico_usd",
    "image_output_pico_usd",
    "search_pico_usd",
)
"""The fields of an override, in the order of the buckets."""


def overridden(listed: Mapping[str, Entries], override: PriceOverride, pattern: str) -> dict[str, Entries]:
    """The operator's prices, from their day on in place of what is listed."""
    condition = None if override.from_ms is None else Condition("from", override.from_ms)
    own = {"": override, **override.service_tiers}
    found = {tier: _override_lines(prices, pattern, tier, condition) for tier, prices in own.items()}
    if condition is None:
        return {tier: (Entry(None, lines),) for tier, lines in found.items() if lines}
    # A tier that the operator does not price is unknown from then on, and one that the table does not price before it.
    return {
        tier: (*listed.get(tier, (Entry(None, ()),)), Entry(condition, found.get(tier, ())))
        for tier in {**listed, **found}
    }


def _override_lines(prices: PriceList, pattern: str, tier: str, condition: Condition | None) -> tuple[Line, ...]:
    base = _rates_of(prices)
    request = prices.request_nano_usd * PICO_PER_NANO
    if all(rate is None for rate in base) and not request:
        return ()
    lists = [(0, base)]
    for step in prices.tiers:
        lists.append(
            (step.above_tokens, tuple(b if own is None else own for own, b in zip(_rates_of(step), base, strict=True)))
        )
    lines = []
    for above, rates in lists:
        # The same name with other prices would be another line: a configuration changes.
        digest = hashlib.sha256(msgspec.json.encode((rates, request))).hexdigest()[:12]
        source = source_of(BOOK, pattern, above, tier, condition)
        lines.append(make_line(f"{source} #{digest}", above, rates, request))
    return tuple(lines)


def _rates_of(prices: PriceRates) -> Rates:
    return tuple(getattr(prices, name) for name in _RATES)
