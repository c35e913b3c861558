"""The `prices` section: dollars per million tokens, over the table that comes with the package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from proxy.config import PriceList, PriceOverride, Prices, PriceTier
from proxy.config.problems import Report, shown, suggestion
from proxy.config.quantities import choice, day, dollars, dollars_per_million, dollars_per_thousand, integer
from proxy.config.reading import Key, child, entries_of, read_map
from proxy.config.yaml import MappingNode, Node, SequenceNode

_RATES = {
    "input": Key("input_pico_usd", dollars_per_million),
    "output": Key("output_pico_usd", dollars_per_million),
    "cached_input": Key("cached_input_pico_usd", dollars_per_million),
    "cache_write": Key("cache_write_pico_usd", dollars_per_million),
    "cache_write_1h": Key("cache_write_1h_pico_usd", dollars_per_million),
    "reasoning": Key("reasoning_pico_usd", dollars_per_million),
    "audio_input": Key("audio_input_pico_usd", dollars_per_million),
    "audio_output": Key("audio_output_pico_usd", dollars_per_million),
    "image_input": Key("image_input_pico_usd", dollars_per_million),
    "image_output": Key("image_output_pico_usd", dollars_per_million),
    "search": Key("search_pico_usd", dollars_per_thousand),
}
_TIER = {"above": Key("above_tokens", integer(1, 1_000_000_000)), **_RATES}
_LIST = {**_RATES, "request": Key("request_nano_usd", dollars)}
_OVERRIDE = {**_LIST, "from": Key("from_ms", day)}
_STANDARD = ("standard", "default", "auto")


def read_prices(node: Node | None, providers: Sequence[str], report: Report) -> Prices:
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
        models[name] = _override(entry.value, f"prices.models.{name}", report)
    return Prices(models=models, **fields)


def _override(node: Node, path: str, report: Report) -> PriceOverride:
    fields = read_map(node, path, _OVERRIDE, report, besides=("tiers", "service_tiers"))
    service_tiers = {}
    for name, entry in entries_of(child(node, "service_tiers"), f"{path}.service_tiers", report):
        if name in _STANDARD or not name.isprintable() or len(name) > 32:
            said = f"{shown(name)} is the price without a service tier, or no name of one."
            report.error(entry.key.at, f"{path}.service_tiers: {said} Write priority, flex or batch, for example.")
        inside = f"{path}.service_tiers.{name}"
        listed = read_map(entry.value, inside, _LIST, report, besides=("tiers",))
        service_tiers[name] = PriceList(**listed, tiers=_tiers(entry.value, inside, report))
    return PriceOverride(**fields, tiers=_tiers(node, path, report), service_tiers=service_tiers)


def _tiers(node: Node, path: str, report: Report) -> tuple[PriceTier, ...]:
    """Lower ones first, whatever their order in the file."""
    listed = child(node, "tiers")
    path = f"{path}.tiers"
    if listed is None:
        return ()
    if not isinstance(listed, SequenceNode):
        report.error(listed.at, f"{path} must be a list like [{{above: 200000, input: 2.50}}], not {listed}.")
        return ()
    tiers: dict[int, PriceTier] = {}
    for item in listed.items:
        fields = read_map(item, path, _TIER, report)
        above = fields.get("above_tokens")
        if above is None:
            if not isinstance(item, MappingNode) or "above" not in item.entries:
                report.error(item.at, f"{path}: a tier needs above, the prompt's tokens from which it holds.")
        elif above in tiers:
            report.error(item.at, f"{path}: two tiers begin above {above} tokens.")
        else:
            tiers[above] = PriceTier(**fields)
    return tuple(tiers[above] for above in sorted(tiers))
