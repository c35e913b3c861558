"""
The `models` section: a name, and who can serve it. Three forms mean the same thing: a string is one deployment, a list
is tried in order, a map says everything.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from proxy.config import Deployment, Model, Timeouts
from proxy.config.presets import SIM, SIM_MODELS
from proxy.config.problems import Mark, Report, Wrong, shown, suggestion
from proxy.config.providers import Providers
from proxy.config.quantities import boolean, duration, integer, json_map, text, texts
from proxy.config.reading import Key, child, entries_of, read_map
from proxy.config.yaml import MappingNode, Node, ScalarNode, SequenceNode, is_null

TIMEOUTS = {
    "connect_timeout": Key("connect_seconds", duration(0.01, 600)),
    "timeout": Key("total_seconds", duration(0.01, 86_400)),
    "stream_timeout": Key("first_byte_seconds", duration(0.01, 86_400)),
    "idle_timeout": Key("idle_seconds", duration(0.01, 86_400)),
}
NUM_RETRIES = Key("num_retries", integer(0, 20))

_KEYS = {
    **TIMEOUTS,
    "num_retries": NUM_RETRIES,
    "fallbacks": Key("fallbacks", texts),
    "params": Key("params", json_map),
    "strict": Key("strict", boolean),
}
_DEPLOYMENT_KEYS = {
    "model": Key("model", text),
    "base_model": Key("base_model", text),
    "weight": Key("weight", integer(1, 1_000_000)),
    "order": Key("order", integer(1, 1_000)),
    "rpm": Key("rpm", integer(1, 1_000_000_000)),
    "tpm": Key("tpm", integer(1, 1_000_000_000)),
}


class _Wanted(NamedTuple):
    """A deployment as the file names it; its provider may be off."""

    provider: str
    model: str
    weight: int | None
    order: int | None
    base_model: str
    rpm: int | None
    tpm: int | None
    at: Mark


class Models:
    """Reads every model, then says what the providers that are off cost each of them."""

    def __init__(self, providers: Providers, timeouts: Timeouts, num_retries: int, report: Report) -> None:
        self._providers = providers
        self._timeouts = timeouts
        self._num_retries = num_retries
        self._report = report
        self._models: dict[str, Model] = {}
        self._wanted: dict[str, list[_Wanted]] = {}
        self._at: dict[str, Mark] = {}

    def read(self, node: Node | None) -> dict[str, Model]:
        """By name. A model whose providers are all off stays, without deployments: its fallbacks may still answer."""
        if node is None:
            for name in self._providers.on:
                if name != SIM:
                    self._serve_whole(name)
        for name, entry in entries_of(node, "models", self._report):
            self._read_one(name, entry.key.at, entry.value)
        for sim_model in SIM_MODELS:
            self._serve(SIM, sim_model)
        self._check_fallbacks(node)
        self._tell_what_is_off()
        return self._models

    def _serve_whole(self, provider: str) -> None:
        """Everything that a provider has, under its own names."""
        self._serve(provider, "*")

    def _serve(self, provider: str, name: str) -> None:
        deployment = Deployment(provider=self._providers.on[provider], model=name)
        model = Model(
            name=deployment.name, deployments=(deployment,), timeouts=self._timeouts, num_retries=self._num_retries
        )
        self._models.setdefault(model.name, model)

    def _read_one(self, name: str, at: Mark, node: Node) -> None:
        path = f"models.{name}"
        if not name or not name.isprintable() or len(name) > 256 or name != name.strip() or "*" in name[:-1]:
            self._report.error(
                at, f"{shown(name)} cannot name a model: printable, at most 256 characters, * at its end."
            )
            return
        fields: dict[str, Any] = {}
        listed: Node | None = node
        if isinstance(node, MappingNode):
            fields = read_map(node, path, _KEYS, self._report, besides=("deployments",))
            listed = child(node, "deployments")
        items = (
            listed.items if isinstance(listed, SequenceNode) else [] if listed is None or is_null(listed) else [listed]
        )
        read = [self._deployment(item, path, name.endswith("*")) for item in items]
        wanted = [one for one in read if one is not None]
        if not items:
            self._report.error(
                at, f"{path} has no deployments. Write provider/model, for example {path}: openai/gpt-5."
            )
        if not any(one.weight is not None or one.order is not None for one in wanted):
            wanted = [one._replace(order=place) for place, one in enumerate(wanted, 1)]
        timeouts = {key.field: fields.pop(key.field) for key in TIMEOUTS.values() if key.field in fields}
        self._wanted[name], self._at[name] = wanted, at
        self._models[name] = Model(
            name=name,
            deployments=tuple(self._on(wanted)),
            timeouts=msgspec.structs.replace(self._timeouts, **timeouts),
            **{"num_retries": self._num_retries, **fields},
        )

    def _on(self, wanted: list[_Wanted]) -> list[Deployment]:
        return [
            Deployment(
                provider=provider,
                model=one.model,
                base_model=one.base_model,
                weight=one.weight or 1,
                order=one.order or 1,
                rpm=one.rpm,
                tpm=one.tpm,
            )
            for one in wanted
            if (provider := self._providers.find(one.provider, one.at)) is not None
        ]

    def _deployment(self, node: Node, path: str, is_pattern: bool) -> _Wanted | None:
        fields: dict[str, Any] = {}
        target: Node | None = node
        if isinstance(node, MappingNode):
            fields = read_map(node, f"{path}.deployments", _DEPLOYMENT_KEYS, self._report)
            target = child(node, "model")
            if target is None:
                self._report.error(node.at, f"{path}: a deployment needs a model, for example {{model: openai/gpt-5}}.")
        if not isinstance(target, ScalarNode):
            if target is not None:
                self._report.error(target.at, f"{path} must be provider/model or a list of those, not {target}.")
            return None
        try:
            provider, model = self._split(target, is_pattern)
        except Wrong as wrong:
            self._report.error(target.at, f"{path}: {wrong}")
            return None
        base_model = fields.get("base_model", "")
        weight, order, rpm, tpm = (fields.get(name) for name in ("weight", "order", "rpm", "tpm"))
        return _Wanted(provider, model, weight, order, base_model, rpm, tpm, target.at)

    def _split(self, node: ScalarNode, is_pattern: bool) -> tuple[str, str]:
        try:
            provider, slash, model = text(node).partition("/")
        except Wrong as wrong:
            raise Wrong(f"a deployment {wrong}") from None
        known = self._providers.known()
        if not slash or not model:
            raise Wrong(f"{node} names no provider. Write provider/model, for example openai/gpt-5.")
        if provider not in known:
            called = "the one in " + str(node) if node.origin else shown(provider)
            raise Wrong(f"no provider is called {called}.{suggestion(provider, known)}")
        if "*" in model and (not is_pattern or model.count("*") > 1):
            raise Wrong(f'{node} has a *, which needs a name that ends in one: "{provider}/*": {provider}/*.')
        return provider, model

    def _check_fallbacks(self, node: Node | None) -> None:
        next_of: dict[str, list[str]] = {}
        places: dict[str, Mark] = {}
        for name, model in self._models.items():
            listed = child(child(node, name), "fallbacks")
            places[name] = listed.at if listed is not None else self._at.get(name, Mark("environment"))
            for fallback in model.fallbacks:
                found = self._match(fallback)
                if found is None:
                    hint = suggestion(fallback, self._models)
                    message = f"models.{name}.fallbacks: no model is called {shown(fallback)}.{hint}"
                    self._report.error(places[name], message)
                elif found == fallback or found != name:  # a pattern may fall back on one of its own models
                    next_of.setdefault(name, []).append(found)
        for loop in _loops(next_of):
            self._report.error(places[loop[0]], f"fallback loop: {' → '.join(loop)}.")

    def _match(self, name: str) -> str | None:
        if name in self._models:
            return name if not name.endswith("*") else None
        patterns = [known for known in self._models if known.endswith("*") and name.startswith(known[:-1])]
        return max(patterns, key=len, default=None)

    def _tell_what_is_off(self) -> None:
        kept = {name: len(self._models[name].deployments) for name in self._wanted}
        for provider, (at, reason) in self._providers.off.items():
            losers = [name for name, wanted in self._wanted.items() if any(one.provider == provider for one in wanted)]
            effects = "".join(
                f" models.{name} keeps {kept[name]} of {len(self._wanted[name])} deployments."
                for name in losers
                if kept[name]
            )
            self._report.warning(at, f"providers.{provider} is off: {reason}.{effects}")
        for name, wanted in self._wanted.items():
            lost = list(dict.fromkeys(one.provider for one in wanted if one.provider in self._providers.off))
            if lost and not kept[name]:
                verb = "is" if len(lost) == 1 else "are"
                self._report.warning(self._at[name], f"models.{name} is off: {' and '.join(lost)} {verb} off.")


def _loops(next_of: dict[str, list[str]]) -> list[list[str]]:
    """Each loop once, from the first of its names in the file back to it."""
    loops: list[list[str]] = []
    seen: set[frozenset[str]] = set()
    done: set[str] = set()
    for start in next_of:
        stack = [(start, iter(next_of.get(start, ())))]
        path = [start]
        while stack:
            name = next(stack[-1][1], None)
            if name is None:
                stack.pop()
                done.add(path.pop())
            elif name in path:
                loop = path[path.index(name) :]
                if frozenset(loop) not in seen:
                    seen.add(frozenset(loop))
                    loops.append([*loop, name])
            elif name not in done:
                path.append(name)
                stack.append((name, iter(next_of.get(name, ()))))
    return loops
