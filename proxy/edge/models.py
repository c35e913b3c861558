"""GET /v1/models and /v1/models/{id}: what this key may use, in OpenAI's four fields and a few of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from proxy.admission.gate import Gate
from proxy.config import Deployment, Model
from proxy.edge.callers import Callers, json_answer
from proxy.errors import PolicyError
from proxy.exchange import Caller
from proxy.routing.plan import Router, unknown_model


class Models:
    """`served_by(provider)` names the models that a pattern like `openai/*` is known to cover."""

    def __init__(
        self,
        callers: Callers,
        gate: Gate,
        router: Router,
        *,
        started_at: int,
        served_by: Callable[[str], Iterable[str]],
        context_window: Callable[[Deployment], int | None],
        max_output_tokens: Callable[[Deployment], int | None],
    ) -> None:
        self._gate = gate
        self._callers = callers
        self._router = router
        self._started_at = started_at
        self._served_by = served_by
        self._context_window = context_window
        self._max_output_tokens = max_output_tokens

    async def list(self, request: Request) -> Response:
        caller = await self._callers.admit(request)
        data = [self._describe(name, self._router.find(name)) for name in self._allowed(caller)]
        return json_answer({"object": "list", "data": data})

    async def retrieve(self, request: Request) -> Response:
        caller = await self._callers.admit(request)
        name = request.path_params["id"]
        if "\0" in name:
            raise unknown_model(name, ())
        model = self._router.find(name)
        self._gate.allow(caller, name)
        return json_answer(self._describe(name, model))

    def _allowed(self, caller: Caller) -> Iterable[str]:
        for name in self._router.names():
            for concrete in self._concrete(name):
                try:
                    self._gate.allow(caller, concrete)
                except PolicyError:
                    continue
                yield concrete

    def _concrete(self, name: str) -> Iterable[str]:
        if not name.endswith("*"):
            model = self._router.find(name)
            return (name,) if model.deployments or model.fallbacks else ()
        prefix = name[:-1]
        return (prefix + model for model in self._served_by(prefix.rstrip("/")))

    def _describe(self, name: str, model: Model) -> dict[str, Any]:
        first = model.deployments[0] if model.deployments else None
        return {
            "id": name,
            "object": "model",
            "created": self._started_at,
            "owned_by": first.provider.name if first else "",
            "context_window": self._context_window(first) if first else None,
            "max_output_tokens": self._max_output_tokens(first) if first else None,
        }
