"""The `prices` section: dollars per million tokens, over the table that comes with the package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from proxy.config import PriceOverride, Prices
from proxy.config.presets import SIM
from proxy.config.problems import Report, shown, suggestion
from proxy.config.quantities import choice, dollars, dollars_per_million
from proxy.config.reading import Key, child, entries_of, read_map
from proxy.config.yaml import Node

_KEYS = {
    "input": Key("input_pico_usd", dollars_per_million),
    "output": Key("output_pico_usd", dollars_per_million),
    "cached_input": Key("cached_input_pico_usd", dollars_per_million),
    "cache_write": Key("cache_write_pico_usd", dollars_per_million),
    "request": Key("request_nano_usd", dollars),
}
FREE = PriceOverride(input_pico_usd=0, output_pico_usd=0, cached_input_pico_usd=0, cache_write_pico_usd=0)


def read_prices(node: Node | None, providers: Sequence[str], report: Report) -> Prices:
    """The simulated provider is free unless the file prices it."""
    fields: dict[str, Any] = read_map(
        node, "prices", {"on_missing": Key("on_missing", choice("warn", "block"))}, report, besides=("models",)
    )
    models: dict[str, PriceOverride] = {}
    for name, entry in entries_of(child(node, "models"), "prices.models", report):
        provider, slash, model = name.partition("/")
        if not slash or not model:
            report.error(
                entry.key.at, f"prices.models: {shown(name)} is no deployment. Write provider/model or provider/*."
            )
        elif provider not in providers:
            hint = suggestion(provider, providers)
            report.error(entry.key.at, f"prices.models: no provider is called {shown(provider)}.{hint}")
        models[name] = PriceOverride(**read_map(entry.value, f"prices.models.{name}", _KEYS, report))
    models.setdefault(f"{SIM}/*", FREE)
    return Prices(models=models, **fields)
