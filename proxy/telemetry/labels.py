"""
Which label values metrics may have: names from the configuration, closed lists, or a bounded number of others.

Whatever else comes is `_other`, and counted, so that no client can make series.
"""

from __future__ import annotations

from proxy.config import Config
from proxy.errors import ERROR_TYPES
from proxy.exchange import Exchange
from proxy.telemetry.cells import Cell, Scalars

OTHER = "_other"
NO_PROVIDER = "none"
OUTCOMES = ERROR_TYPES | {"", "ok"}
SCOPES = frozenset({"key", "user", "team", "model", "provider", "global"})
LIMITS = frozenset({"rpm", "tpm", "concurrency", "budget"})
LIMITED = tuple(
    sorted(
        {(scope, limit) for scope in SCOPES - {"provider"} for limit in LIMITS - {"budget"}}
        | {(scope, "budget") for scope in SCOPES - {"model"}}
    )
)
"""Which limits there are for whom."""
CODES = {status: str(status) for status in range(100, 600)}

_SEATS = 64


class Seats:
    """The first `limit` values of a label get a series of their own; who comes later is folded."""

    __slots__ = ("limit", "overflow", "taken")

    def __init__(self, limit: int, overflow: Cell) -> None:
        self.limit = limit
        self.overflow = overflow
        self.taken: set[str] = set()

    def take(self, value: str) -> str:
        if value in self.taken:
            return value
        if len(self.taken) < self.limit:
            self.taken.add(value)
            return value
        self.overflow.value += 1
        return OTHER


class Labels:
    """Folds label values. `overflow` is the family that counts the folding, by label."""

    def __init__(self, overflow: Scalars) -> None:
        self._overflow = overflow
        self.models: frozenset[str] = frozenset()
        self.providers: frozenset[str] = frozenset({NO_PROVIDER})
        self.deployments: dict[tuple[str, str], str] = {}
        self._patterns: list[tuple[str, str, str]] = []
        self._model_patterns: list[tuple[str, str]] = []
        self.endpoints = self._seats("endpoint")
        self.keys = self._seats("key")
        self.budgets = self._seats("name")
        self.windows = self._seats("window")
        self.operations = self._seats("op")
        self.channels = self._seats("channel")
        self.tasks = self._seats("task")
        self.provider_limits = self._seats("limit")
        for label in ("model", "provider", "deployment", "reason", "error_type", "scope"):
            overflow.cell(label)

    def _seats(self, label: str) -> Seats:
        return Seats(_SEATS, self._overflow.cell(label))

    def learn(self, config: Config) -> None:
        """Adds the names of a configuration; those of an earlier one stay, for requests that are still on the way."""
        self.keys.limit = self.budgets.limit = config.metrics.max_keys
        self.models |= {model.name for model in config.models.values()}
        self.providers |= config.providers.keys()
        for model in config.models.values():
            for deployment in model.deployments:
                self.providers |= {deployment.provider.name}
                self.deployments[deployment.provider.name, deployment.model] = deployment.name
        self._model_patterns = [(name[:-1], name) for name in self.models if name.endswith("*")]
        self._patterns = [
            (provider, model[:-1], label)
            for (provider, model), label in self.deployments.items()
            if model.endswith("*")
        ]

    def closed(self, label: str, value: str, known: frozenset[str]) -> str:
        if value in known:
            return value
        self._overflow.cell(label).value += 1
        return OTHER

    def model(self, exchange: Exchange) -> str:
        """The configured name that a request asked for; of a pattern (`openai/*`) the pattern, not the tail."""
        if exchange.model in self.models:
            return exchange.model
        resolved = exchange.resolved
        if resolved is not None and resolved.name in self.models:
            return resolved.name
        return self.known_model(exchange.model) if exchange.model else OTHER

    def known_model(self, name: str) -> str:
        if name in self.models:
            return name
        for head, pattern in self._model_patterns:
            if name.startswith(head):
                return pattern
        return self.closed("model", name, self.models)

    def provider(self, name: str) -> str:
        return self.closed("provider", name, self.providers)

    def deployment(self, provider: str, model: str) -> str:
        known = self.deployments.get((provider, model))
        if known is not None:
            return known
        for name, head, label in self._patterns:
            if name == provider and model.startswith(head):
                return label
        return self.closed("deployment", model, frozenset())
