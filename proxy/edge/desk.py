"""
What hot requests have in common, whatever is asked: how one is opened, takes its turn and is refused.

The stories (`chat`, `embeddings`) say in which order; here is how.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from proxy.admission.turns import Turns
from proxy.config import Model
from proxy.edge.lane import LaneRequest
from proxy.edge.replies import limit_lines, new_id, request_id
from proxy.errors import CallerError, GatewayError, GatewayFault
from proxy.exchange import Attempt, Caller, Exchange, Trace
from proxy.metering.meter import Meter
from proxy.providers import Json
from proxy.upstream.accounts import HOPS

log = logging.getLogger("strata.edge")

MAX_HOPS = 3
"""More gateways than stand one behind the other on purpose."""
JSON_TYPE = b"application/json"
"""What a body calls itself. curl without -H says application/x-www-form-urlencoded, and is told."""


class Desk:
    """`endpoint`: what is asked for here, as metrics, spans and the ledger call it."""

    def __init__(
        self,
        turns: Turns,
        meter: Meter,
        endpoint: str,
        *,
        started: Callable[[str], None],
        begin_trace: Callable[[bytes], Trace | None] | None = None,
    ) -> None:
        self._turns = turns
        self._meter = meter
        self._endpoint = endpoint
        self._started = started
        self._begin_trace = begin_trace

    def open(self, lane: LaneRequest) -> Exchange:
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

    async def take_turn(self, exchange: Exchange, caller: Caller, model: Model, tokens: int) -> bytes:
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

    def refuse(self, lane: LaneRequest, exchange: Exchange, error: Exception) -> None:
        """The record first, then the last bytes: what a client was told is never unknown to the ledger."""
        if not isinstance(error, GatewayError):
            log.error("request %s failed inside the gateway", exchange.request_id, exc_info=error)
            error = _internal(exchange)
        exchange.error = error
        exchange.status = exchange.status or error.status
        exchange.client_left = lane.gone
        self._meter.close(exchange)
        lane.refuse(error)

    def close(self, exchange: Exchange) -> None:
        self._meter.close(exchange)
        if exchange.turn is not None:
            exchange.turn.end(exchange)


def leave(exchange: Exchange) -> None:
    exchange.client_left = True


def json_body(lane: LaneRequest) -> bytes:
    content_type = lane.head.content_type
    if content_type and not content_type.lower().startswith(JSON_TYPE):
        raise CallerError(
            "Send the body as JSON, with Content-Type: application/json.", status=415, code="unsupported_media_type"
        )
    return bytes(lane.body)


def take_wishes(exchange: Exchange, asked: Json) -> None:
    """What the client says to the gateway: in the body under `strata`, or in headers of the same names."""
    hints, said = exchange.hints, asked.get("strata")
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


def cost_usd(attempt: Attempt) -> float | None:
    """Dollars for `usage.cost`, the one place where money becomes a float: JSON has no other number."""
    return attempt.cost_nano_usd / 1_000_000_000 if attempt.price_state != "unknown" else None


def stopping() -> GatewayFault:
    """Nothing else cancels a story."""
    return GatewayFault(
        "The gateway was stopped, and this request took longer than server.shutdown_grace: ask again.",
        code="gateway_stopping",
        headers={"retry-after": "1"},
    )


def _internal(exchange: Exchange) -> GatewayFault:
    return GatewayFault(
        f"The gateway failed on this request; its operator finds the cause in the log under {exchange.request_id}.",
        status=500,
        code="internal_error",
        error_type="gateway_internal",
    )
