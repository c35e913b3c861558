"""
From the name a client asks for to the deployments to try, in order.

A name is looked up whole, then against the patterns (`openai/*`). Lower `order` comes first; within one order the
load is shared by weight; who rests, or is asked as often as it may be, goes to the end, so that a request still has
somewhere to go when everybody rests.
"""

from __future__ import annotations

import difflib
from collections import OrderedDict
from collections.abc import Callable, Iterable

import msgspec

from proxy.config import Config, Deployment, Model
from proxy.errors import CallerError, GatewayFault
from proxy.routing.pace import Pace
from proxy.routing.resting import Resting

MAX_CACHED_NAMES = 1_000


# Structs: to make a NamedTuple costs four times as much, to read one of its fields ten times.
class Step(msgspec.Struct, frozen=True):
    """One deployment to try, for which model; `fallback` if that is not the model that was asked for."""

    model: Model
    deployment: Deployment
    fallback: bool


class Plan(msgspec.Struct, frozen=True):
    steps: tuple[Step, ...]
    attempts: int
    """How many attempts at the most, over all steps."""
    asleep: int = 0
    """So many of the last steps are of deployments that rest."""


class Router:
    """`pace`: how fast deployments are asked that say what they are good for."""

    def __init__(self, config: Config, resting: Resting, dice: Callable[[], float], pace: Pace | None = None) -> None:
        self._models = {name: model for name, model in config.models.items() if not name.endswith("*")}
        self._patterns = sorted(
            ((name[:-1], model) for name, model in config.models.items() if name.endswith("*")),
            key=lambda pattern: -len(pattern[0]),
        )
        self._resting = resting
        self._dice = dice
        self._pace = pace or Pace()
        self._resolved: OrderedDict[str, Model] = OrderedDict()

    def names(self) -> list[str]:
        """Every configured name, patterns included, in the order of the file."""
        return [*self._models, *(f"{prefix}*" for prefix, _ in self._patterns)]

    def find(self, name: str) -> Model:
        """The model behind a name; a pattern's is made for it. Raises CallerError 404 with a suggestion."""
        model = self._models.get(name) or self._resolved.get(name)
        if model is None:
            model = self._match(name)
            self._resolved[name] = model
            if len(self._resolved) > MAX_CACHED_NAMES:
                self._resolved.popitem(last=False)
        return model

    def plan(self, model: Model, now: float) -> Plan:
        """The deployments of `model`, then of its fallbacks, each at most once; those that rest come last."""
        if len(model.deployments) == 1 and not model.fallbacks:
            step = Step(model, model.deployments[0], False)
            resting = self._resting.rests(step.deployment.name, now)
            return Plan((step,), 1 if resting else 1 + model.num_retries, int(resting))
        steps = [Step(model, deployment, False) for deployment in self._ordered(model.deployments)]
        for name in model.fallbacks:
            fallback = self.find(name)
            steps += (Step(fallback, deployment, True) for deployment in self._ordered(fallback.deployments))
        if not steps:
            raise GatewayFault(
                f'Nobody can serve "{model.name}": its providers are off. The operator sees why with: strata check',
                code="no_deployment",
                error_type="gateway_no_deployment",
            )
        awake: list[Step] = []
        asleep: list[Step] = []
        for step in steps:
            (awake if self._may_be_asked(step.deployment, now) else asleep).append(step)
        # When all rest, one of them is asked all the same, once: better than a sure refusal, and no storm.
        self._pace.asked((awake or asleep)[0].deployment, now)
        return Plan((*awake, *asleep), max(1 + model.num_retries, len(awake)) if awake else 1, len(asleep))

    def _may_be_asked(self, deployment: Deployment, now: float) -> bool:
        limited = deployment.rpm is not None or deployment.tpm is not None
        return not (self._resting.rests(deployment.name, now) or (limited and self._pace.full(deployment, now)))

    def _ordered(self, deployments: Iterable[Deployment]) -> list[Deployment]:
        """By order; within one order a weighted shuffle (Efraimidis and Spirakis: sort by dice ** (1 / weight))."""
        return sorted(deployments, key=lambda one: (one.order, -(self._dice() ** (1 / max(one.weight, 1e-9)))))

    def _match(self, name: str) -> Model:
        for prefix, model in self._patterns:
            tail = name[len(prefix) :]
            if name.startswith(prefix) and tail and tail.isprintable() and len(tail) <= 256:
                concrete = tuple(
                    msgspec.structs.replace(one, model=one.model.replace("*", tail)) for one in model.deployments
                )
                return msgspec.structs.replace(model, deployments=concrete)
        raise unknown_model(name, self.names())


def unknown_model(name: str, known: Iterable[str]) -> CallerError:
    shown = name.encode("unicode_escape").decode()[:64]
    near = difflib.get_close_matches(name[:64], list(known), n=1, cutoff=0.6)
    hint = f' Did you mean "{near[0]}"?' if near else ""
    return CallerError(
        f'No model is called "{shown}".{hint} See GET /v1/models for what this key may use.',
        status=404,
        code="model_not_found",
        param="model",
        error_type="caller_model_not_found",
    )
