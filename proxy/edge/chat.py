"""
POST /v1/chat/completions: the whole story of a request, in order.

key -> limits -> plan -> translate -> upstream -> translate back -> settle. `serve` is the story; its lines are the
stages. What happens after the first byte of an answer is `_whole` and `_stream`: both settle before the last byte
leaves.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from proxy.admission.gate import Gate
from proxy.admission.turns import Turns, wanted_tokens
from proxy.config import Model
from proxy.dialects import openai as dialect
from proxy.edge.access import require
from proxy.edge.lane import LaneRequest
from proxy.edge.replies import answer_head, limit_lines, new_id, request_id, stream_head
from proxy.errors import CallerError, GatewayError, GatewayFault
from proxy.exchange import Attempt, Caller, Exchange, Trace
from proxy.metering.meter import Meter
from proxy.providers import ChatRequest
from proxy.routing.plan import Router
from proxy.upstream.accounts import HOPS
from proxy.upstream.answers import AnswerStream, WholeAnswer
from proxy.upstream.relay import Relay

log = logging.getLogger("strata.edge")

PATH = "/v1/chat/completions"
MAX_HOPS = 3
"""More gateways than stand one behind the other on purpose."""
JSON_TYPE = b"application/json"
"""What a body calls itself. curl without -H says application/x-www-form-urlencoded, and is told."""


class Chat:
    def __init__(
        self,
        gate: Gate,
        turns: Turns,
        router: Router,
        relay: Relay,
        meter: Meter,
        *,
        started: Callable[[str], None],
        begin_trace: Callable[[bytes], Trace | None] | None = None,
        keep_bodies: bool = False,
        full_headers: bool = True,
        endpoint: str = "chat",
    ) -> None:
        self._gate = gate
        self._turns = turns
        self._limits = turns.limits
        self._router = router
        self._relay = relay
        self._meter = meter
        self._started = started
        self._begin_trace = begin_trace
        self._keep_bodies = keep_bodies
        """Whether the log wants them."""
        self._full_headers = full_headers
        self._endpoint = endpoint

    async def serve(self, lane: LaneRequest) -> None:
        """One request, from its bytes to its ledger rows."""
        exchange = self._open(lane)
        try:
            caller = exchange.caller = await self._gate.admit(lane.head.credentials, lane.head.digest)
            if caller.role != "key":
                require(caller, "POST", PATH)
            chat = dialect.decode(_json_body(lane))
            if self._keep_bodies:
                exchange.asked = chat
            exchange.stream = bool(chat.get("stream"))
            _take_wishes(exchange, chat)
            model = exchange.resolved = self._router.find(chat["model"])
            exchange.model = chat["model"]
            self._gate.allow(caller, exchange.model)
            if exchange.trace is not None:
                _note_admitted(exchange, exchange.trace, chat)
            limits = b""
            if caller.limits or self._limits.by_model:
                limits = await self._take_turn(exchange, caller, model, wanted_tokens(chat, len(lane.body)))
            plan = exchange.plan = self._router.plan(model, time.monotonic())
            if exchange.stream:
                lane.keepalive_head = lambda: stream_head(exchange, None, limits, full=False)
            lane.on_gone = lambda: _leave(exchange)
            exchange.client_left = lane.gone
            answer = await self._relay.answer(plan, chat, exchange)
            if isinstance(answer, WholeAnswer):
                await self._whole(lane, exchange, answer, limits)
            else:
                await self._stream(lane, exchange, answer, limits)
        except GatewayError as error:
            self._fail(lane, exchange, error)
        except Exception:
            log.exception("request %s failed inside the gateway", exchange.request_id)
            self._fail(lane, exchange, _internal(exchange))
        finally:
            self._meter.close(exchange)
            if exchange.turn is not None:
                exchange.turn.end(exchange)

    def _open(self, lane: LaneRequest) -> Exchange:
        head = lane.head
        now_ms = time.time_ns() // 1_000_000
        id = new_id(now_ms)
        lane.request_id = request_id(id, head.request_id)
        self._started(self._endpoint)
        exchange = Exchange(
            id, lane.request_id, self._endpoint, now_ms, time.monotonic_ns(), lane.client, hints=head.hints
        )
        if self._begin_trace is not None:
            exchange.trace = self._begin_trace(head.traceparent)
        return exchange

    async def _take_turn(self, exchange: Exchange, caller: Caller, model: Model, tokens: int) -> bytes:
        """The header lines that say how the caller's limits stand. Raises PolicyError 429."""
        bound = self._turns.binding(caller, exchange.model, model.name)
        if not bound:
            return b""
        names = exchange.model, model.name
        turn = self._turns.take_now(caller, bound, *names, tokens) or await self._turns.take(
            caller, bound, *names, tokens
        )
        exchange.turn = turn
        if exchange.trace is not None:
            exchange.trace.limited_ns = time.monotonic_ns()
        rate = exchange.rate = turn.standing()
        return limit_lines(rate) if rate is not None else b""

    def _fail(self, lane: LaneRequest, exchange: Exchange, error: GatewayError) -> None:
        """The record first, then the last bytes: what a client was told is never unknown to the ledger."""
        exchange.error = error
        exchange.status = exchange.status or error.status
        exchange.client_left = lane.gone
        self._meter.close(exchange)
        lane.refuse(error)

    async def _whole(self, lane: LaneRequest, exchange: Exchange, answer: WholeAnswer, limits: bytes) -> None:
        attempt = answer.attempt
        exchange.status = 200
        exchange.client_left = lane.gone
        if attempt.source == "counted":
            await self._meter.count(attempt)
        if exchange.asked is not None:
            exchange.answered = answer.messages()
        self._meter.settle(exchange, attempt)
        cost = _cost_usd(attempt)
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
        lane.finish(_told(exchange) + answer.ending(_cost_usd(answer.attempt)))


def _note_admitted(exchange: Exchange, trace: Trace, chat: ChatRequest) -> None:
    trace.admitted_ns = time.monotonic_ns()
    if trace.content:
        exchange.asked = chat


def _keep_answer(exchange: Exchange, attempt: Attempt) -> None:
    """Before the text of a stream is counted, and forgotten."""
    if exchange.asked is not None and attempt.delivered_text:
        exchange.answered = [{"role": "assistant", "content": "".join(attempt.delivered_text)}]


def _leave(exchange: Exchange) -> None:
    exchange.client_left = True


def _json_body(lane: LaneRequest) -> bytes:
    content_type = lane.head.content_type
    if content_type and not content_type.lower().startswith(JSON_TYPE):
        raise CallerError(
            "Send the body as JSON, with Content-Type: application/json.", status=415, code="unsupported_media_type"
        )
    return bytes(lane.body)


def _take_wishes(exchange: Exchange, chat: ChatRequest) -> None:
    """What the client says to the gateway: in the body under `strata`, or in headers of the same names."""
    hints, said = exchange.hints, chat.get("strata")
    if hints:
        _refuse_circles(hints)
        strict = _wish(hints, "x-strata-strict")
        exchange.strict = exchange.strict if strict is None else strict
        exchange.wants_notices = bool(_wish(hints, "x-strata-notices"))
    if said:
        exchange.strict = exchange.strict if said.get("strict") is None else said["strict"]
        exchange.wants_notices = said.get("notices") or exchange.wants_notices


def _wish(hints: Mapping[str, str], name: str) -> bool | None:
    said = hints.get(name, "").lower()
    if said not in ("", "true", "false"):
        raise CallerError(f"The header {name} must be true or false.", code="invalid_value", param=name)
    return said == "true" if said else None


def _refuse_circles(hints: Mapping[str, str]) -> None:
    """A gateway may stand before another. One whose provider is itself, or leads back to it, would ask without end."""
    hops = hints.get(HOPS, "0")
    if not (hops.isascii() and hops.isdigit() and len(hops) == 1):
        raise CallerError(f"{HOPS} is for gateways to set, and is one digit.", code="invalid_value", param=HOPS)
    if int(hops) > MAX_HOPS:
        raise GatewayFault(
            f"This request has been through {hops} gateways, so a provider's api_base leads back to a gateway that it "
            "came from. Its operator mends that in config.yaml.",
            status=508,
            code="loop_detected",
            error_type="gateway_config",
        )


def _told(exchange: Exchange) -> bytes:
    """The notices as an event of a stream, if the client asked for them."""
    if not (exchange.wants_notices and exchange.notices):
        return b""
    envelope = dialect.Envelope(
        id=f"chatcmpl-{exchange.id.hex()}", created=exchange.started_at_ms // 1000, model=exchange.model
    )
    return envelope.notices(exchange.notices)


def _cost_usd(attempt: Attempt) -> float | None:
    """Dollars for `usage.cost`, the one place where money becomes a float: JSON has no other number."""
    return attempt.cost_nano_usd / 1_000_000_000 if attempt.price_state != "unknown" else None


def _internal(exchange: Exchange) -> GatewayFault:
    return GatewayFault(
        f"The gateway failed on this request; its operator finds the cause in the log under {exchange.request_id}.",
        status=500,
        code="internal_error",
        error_type="gateway_internal",
    )
