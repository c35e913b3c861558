"""Which of the deployments that a configuration routes to have no price: better said at the start than by the bill."""

from __future__ import annotations

from collections.abc import Iterator

from proxy.config import Config, Deployment
from proxy.metering.prices import PriceBook


def routed(config: Config) -> dict[str, tuple[Deployment, list[str]]]:
    """Every deployment by name, once, with the models that it serves. `openai/*` stands for whatever is asked for."""
    found: dict[str, tuple[Deployment, list[str]]] = {}
    for name, model in config.models.items():
        for deployment in model.deployments:
            found.setdefault(deployment.name, (deployment, []))[1].append(name)
    return found


def is_pattern(deployment: Deployment) -> bool:
    return "*" in deployment.model


def has_price(book: PriceBook, deployment: Deployment) -> bool:
    """Of a whole provider: whether any of its models can have one."""
    return bool(book.current_lines(deployment)) or (is_pattern(deployment) and bool(book.models(deployment.provider)))


def unpriced(config: Config, book: PriceBook) -> Iterator[tuple[str, list[str]]]:
    for name, (deployment, models) in routed(config).items():
        if not has_price(book, deployment):
            yield name, models
