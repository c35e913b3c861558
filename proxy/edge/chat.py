"""
POST /v1/chat/completions: the whole story of a request, in order.

key -> limits -> plan -> translate -> upstream -> translate back -> settle. `serve` is the story; its lines are the
stages. What happens after the first byte of an answer is `_whole` and `_stream`: both settle before the last byte
leaves.
"""

from __future__ import annotations

import asyncio
import time

from proxy.admission.gate import Gate
from proxy.admission.limits import Limits
from proxy.admission.turns import wanted_tokens
from proxy.dialects import openai as dialect
from proxy.edge.access import require
from proxy.edge.desk import Desk, cost_usd, json_body, leave, stopping, take_wishes
from proxy.edge.lane import LaneRequest
from proxy.edge.replies import answer_head, stream_head
from proxy.errors import GatewayError
from proxy.exchange import Attempt, Exchange, Trace
from proxy.metering.meter import Meter
from proxy.providers import ChatRequest
from proxy.routing.plan import Router
from proxy.upstream.answers import AnswerStream, WholeAnswer
from proxy.upstream.relay import Relay

PATH = "/v1/chat/completions"


class Chat:
    def __init__(
        self,
        gate: Gate,
        desk: Desk,
        limits: Limits,
        router: Router,
        relay: Relay,
        meter: Meter,
        *,
        keep_bodies: bool = False,
        full_headers: bool = True,
    ) -> None:
        self._gate = gate
        self._desk = desk
        self._limits = limits
        self._router = router
        self._relay = relay
        self._meter = meter
        self._keep_bodies = keep_bodies
        """Whether the log wants them."""
        self._full_headers = full_headers

    async def serve(self, lane: LaneRequest) -> None:
        """One request, from its bytes to its ledger rows."""
        exchange = self._desk.open(lane)
        try:
            caller = exchange.caller = await self._gate.admit(lane.head.credentials, lane.head.digest)
            if caller.role != "key":
                require(caller, "POST", PATH)
            chat = dialect.decode(json_body(lane))
            if self._keep_bodies:
                exchange.asked = chat
            exchange.stream = bool(chat.get("stream"))
            take_wishes(exchange, chat)
            model = exchange.resolved = self._router.find(chat["model"])
            exchange.model = chat["model"]
            self._gate.allow(caller, exchange.model)
            if exchange.trace is not None:
                _note_admitted(exchange, exchange.trace, chat)
            limits = b""
            if caller.limits or self._limits.by_model:
                limits = await self._desk.take_turn(exchange, caller, model, wanted_tokens(chat, len(lane.body)))
            plan = exchange.plan = self._router.plan(model, time.monotonic())
            if exchange.stream:
                lane.keepalive_head = lambda: stream_head(exchange, None, limits, full=False)
            lane.on_gone = lambda: leave(exchange)
            exchange.client_left = lane.gone
            answer = await self._relay.answer(plan, chat, exchange)
            if isinstance(answer, WholeAnswer):
                await self._whole(lane, exchange, answer, limits)
            else:
                await self._stream(lane, exchange, answer, limits)
        except asyncio.CancelledError:
            self._desk.refuse(lane, exchange, stopping())
            raise
        except Exception as error:
            self._desk.refuse(lane, exchange, error)
        finally:
            self._desk.close(exchange)

    async def _whole(self, lane: LaneRequest, exchange: Exchange, answer: WholeAnswer, limits: bytes) -> None:
        attempt = answer.attempt
        exchange.status = 200
        exchange.client_left = lane.gone
        if attempt.source == "counted":
            await self._meter.count(attempt)
        if exchange.asked is not None:
            exchange.answered = answer.messages()
        self._meter.settle(exchange, attempt)
        cost = cost_usd(attempt)
        if answer.completion is None:
            body = answer.with_cost(cost, exchange.notices if exchange.wants_notices else ())
        else:
            body = dialect.stamp_completion(
                answer.completion,
                id=f"chatcmpl-{exchange.id.hex()}",
                created=exchange.started_at_ms // 1000,
                model=exchange.model,
                cost=cost,
                notices=exchange.notices if exchange.wants_notices else (),
            )
        lane.respond(200, answer_head(exchange, attempt, limits, full=self._full_headers), body)

    async def _stream(self, lane: LaneRequest, exchange: Exchange, answer: AnswerStream, limits: bytes) -> None:
        exchange.status = 200
        lane.on_gone = answer.client_left
        if lane.gone:
            answer.client_left()
        lane.start(stream_head(exchange, answer.attempt, limits, full=self._full_headers))
        try:
            while data := await answer.read():
                lane.write(data)
                if lane.paused:
                    await lane.drained()
        except BaseException as error:
            answer.abandon(error)
            _keep_answer(exchange, answer.attempt)
            if answer.attempt.source == "counted" and isinstance(error, GatewayError):
                await self._meter.count(answer.attempt)
            raise
        _keep_answer(exchange, answer.attempt)
        if answer.attempt.source == "counted":
            await self._meter.count(answer.attempt)
        self._meter.settle(exchange, answer.attempt)
        lane.finish(_told(exchange) + answer.ending(cost_usd(answer.attempt)))


def _note_admitted(exchange: Exchange, trace: Trace, chat: ChatRequest) -> None:
    trace.admitted_ns = time.monotonic_ns()
    if trace.content:
        exchange.asked = chat


def _keep_answer(exchange: Exchange, attempt: Attempt) -> None:
    """Before the text of a stream is counted, and forgotten."""
    if exchange.asked is not None and attempt.delivered_text:
        exchange.answered = [{"role": "assistant", "content": "".join(attempt.delivered_text)}]


def _told(exchange: Exchange) -> bytes:
    """The notices as an event of a stream, if the client asked for them."""
    if not (exchange.wants_notices and exchange.notices):
        return b""
    envelope = dialect.Envelope(
        id=f"chatcmpl-{exchange.id.hex()}", created=exchange.started_at_ms // 1000, model=exchange.model
    )
    return envelope.notices(exchange.notices)
