"""
POST /v1/embeddings: the story of a request for vectors.

key -> limits -> plan -> translate -> upstream -> settle -> pack. It is `chat`'s without streams. One thing differs: a
request never goes on to the model's `fallbacks`, for vectors of two models do not compare, and nobody would notice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Container
from functools import partial

import msgspec

from proxy.admission.gate import Gate
from proxy.dialects import embeddings as dialect
from proxy.edge.access import require
from proxy.edge.desk import Desk, cost_usd, json_body, leave, stopping, take_wishes
from proxy.edge.lane import LaneRequest
from proxy.edge.replies import answer_head
from proxy.errors import CallerError, UpstreamError
from proxy.exchange import Exchange
from proxy.metering.meter import Meter
from proxy.metering.usage import NOTHING_USED
from proxy.providers import Json, Notice
from proxy.providers.faults import bad_response
from proxy.routing.plan import Plan, Router
from proxy.upstream.answers import WholeAnswer
from proxy.upstream.relay import Relay

PATH = "/v1/embeddings"
BYTES_PER_TOKEN = 4
"""For the limits on tokens, until it is known."""
MAX_BYTES_ON_LOOP = 200_000
"""Of vectors, which are packed in a thread beyond it: a thousand take 100 ms."""
COUNTED = Notice("usage", "Counted by the gateway, for the provider did not say.", lost=False)


class Embeddings:
    """`embeds`: the providers that make embeddings, by name."""

    def __init__(
        self,
        gate: Gate,
        desk: Desk,
        router: Router,
        relay: Relay,
        meter: Meter,
        embeds: Container[str],
        *,
        full_headers: bool = True,
    ) -> None:
        self._gate = gate
        self._desk = desk
        self._router = router
        self._relay = relay
        self._meter = meter
        self._embeds = embeds
        self._full_headers = full_headers

    async def serve(self, lane: LaneRequest) -> None:
        """One request, from its bytes to its ledger rows."""
        exchange = self._desk.open(lane)
        try:
            caller = exchange.caller = await self._gate.admit(lane.head.credentials, lane.head.digest)
            if caller.role != "key":
                require(caller, "POST", PATH)
            asked = dialect.decode(json_body(lane))
            take_wishes(exchange, asked)
            model = exchange.resolved = self._router.find(asked["model"])
            exchange.model = asked["model"]
            self._gate.allow(caller, exchange.model)
            if exchange.trace is not None:
                exchange.trace.admitted_ns = time.monotonic_ns()
            limits = await self._desk.take_turn(exchange, caller, model, len(lane.body) // BYTES_PER_TOKEN)
            plan = exchange.plan = self._narrow(self._router.plan(model, time.monotonic()), exchange.model)
            lane.on_gone = lambda: leave(exchange)
            exchange.client_left = lane.gone
            answer = await self._relay.answer(plan, asked, exchange)
            assert isinstance(answer, WholeAnswer)
            await self._finish(lane, exchange, answer, asked, limits)
        except asyncio.CancelledError:
            self._desk.refuse(lane, exchange, stopping())
            raise
        except Exception as error:
            self._desk.refuse(lane, exchange, error)
        finally:
            self._desk.close(exchange)

    def _narrow(self, plan: Plan, name: str) -> Plan:
        """Without the model's fallbacks, and without those who make none. Raises CallerError if nothing is left."""
        steps = tuple(
            step for step in plan.steps if not step.fallback and step.deployment.provider.name in self._embeds
        )
        if steps == plan.steps:
            return plan
        if not steps:
            raise CallerError(
                f'"{name}" makes no embeddings: its providers have none. Ask for a model that does; the operator adds '
                "one under models in config.yaml.",
                code="unsupported_endpoint",
                param="model",
            )
        return msgspec.structs.replace(plan, steps=steps, asleep=min(plan.asleep, len(steps)))

    async def _finish(
        self, lane: LaneRequest, exchange: Exchange, answer: WholeAnswer, asked: Json, limits: bytes
    ) -> None:
        attempt = answer.attempt
        exchange.status = 200
        exchange.client_left = lane.gone
        made = answer.completion or {}
        if attempt.source == "counted" or attempt.usage == NOTHING_USED:
            await self._meter.count_input(attempt, *dialect.countable(asked))
            exchange.notices.append(COUNTED)
            made.pop("usage", None)
        try:
            made["data"] = await self._pack(made["data"], asked)
        except UpstreamError as error:
            attempt.outcome, attempt.error = error.error_type, error.message
            raise
        self._meter.settle(exchange, attempt)
        if "usage" not in made and attempt.usage is not None:
            tokens = attempt.usage.prompt
            made["usage"] = {"prompt_tokens": tokens, "total_tokens": tokens}
        notices = exchange.notices if exchange.wants_notices else ()
        body = dialect.encode(made, model=exchange.model, cost=cost_usd(attempt), notices=notices)
        lane.respond(200, answer_head(exchange, attempt, limits, full=self._full_headers), body)

    async def _pack(self, data: list[Json], asked: Json) -> list[Json]:
        """Raises UpstreamError for what is no vector, or not one for each text: which is whose could not be told."""
        wanted = dialect.how_many(asked)
        if len(data) != wanted:
            raise bad_response(f"The provider sent {len(data)} embeddings for {wanted} texts.")
        pack = partial(dialect.pack, data, asked)
        try:
            return await asyncio.to_thread(pack) if dialect.size_of(data) > MAX_BYTES_ON_LOOP else pack()
        except ValueError:
            raise bad_response("The provider sent an embedding that is not a list of numbers.") from None
