"""Every deployment that is routed to, with what it costs now and who says so: for the command line and the console."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from proxy.config import Config, Deployment
from proxy.config.problems import Wrong, shown, suggestion
from proxy.metering.price_lines import BUCKETS, Line, described
from proxy.metering.prices import PriceBook
from proxy.metering.unpriced import has_price, is_pattern, routed

_DATE = re.compile(r"\((\d{4}-\d\d-\d\d)\)")


def listed(config: Config, book: PriceBook, names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Each deployment with its price lines of now, by service tier. Raises `Wrong` for a name that nothing serves."""
    return [_described(book, deployment, models) for deployment, models in _chosen(config, names)]


def _chosen(config: Config, names: Sequence[str]) -> list[tuple[Deployment, list[str]]]:
    everything = routed(config)
    if not names:
        return list(everything.values())
    chosen: dict[str, tuple[Deployment, list[str]]] = {}
    for name in names:
        own = [(d, models) for d, models in everything.values() if name == d.name or name in models]
        if not own:
            provider = config.providers.get(name.partition("/")[0])
            if provider is None or "/" not in name:
                known = [*config.models, *everything]
                raise Wrong(f"no model or deployment is called {shown(name)}.{suggestion(name, known)}")
            own = [(Deployment(provider=provider, model=name.partition("/")[2]), [])]
        chosen |= {deployment.name: (deployment, models) for deployment, models in own}
    return list(chosen.values())


def _described(book: PriceBook, deployment: Deployment, models: Sequence[str]) -> dict[str, Any]:
    tiers = book.current_lines(deployment)
    state: str = tiers[""][0].state if tiers.get("") else "unknown"
    if state == "unknown" and is_pattern(deployment) and has_price(book, deployment):
        state = "by_model"
    return {
        "deployment": deployment.name,
        "models": list(models),
        "state": state,
        "lines": [_line(tier, line) for tier, lines in tiers.items() for line in lines],
    }


def _line(tier: str, line: Line) -> dict[str, Any]:
    found = _DATE.search(line.source)
    rates = described(line)
    return {
        "service_tier": tier,
        "above_tokens": line.above,
        "usd_per_million_tokens": {
            bucket: _decimal(rates[bucket], 6) for bucket in BUCKETS[:-1] if rates.get(bucket) is not None
        },
        "usd_per_thousand_searches": _decimal(rates["searches"], 9) if "searches" in rates else None,
        "usd_per_request": _decimal(rates["request"], 12),
        "source": line.source,
        "date": found[1] if found else None,
    }


def _decimal(number: int, places: int) -> str:
    """A whole number of the smallest unit, exactly: 2500000 and 6 are "2.5"."""
    whole, rest = divmod(number, 10**places)
    return f"{whole}.{rest:0{places}d}".rstrip("0").rstrip(".")
