"""
Settles attempts: what was used, what it costs, one row for each, in the journal before the client has its last byte.

Everything here is synchronous and may be called again: an attempt is settled once. A row says where its numbers come
from; what the provider did not say is counted or bounded, never left out.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import msgspec

from proxy.exchange import Attempt, Exchange, Usage
from proxy.metering.journal import Journal
from proxy.metering.price_lines import Price
from proxy.metering.prices import PriceBook
from proxy.metering.segments import SETTLE, Position
from proxy.metering.tokens import TOKENIZER, Tokenizer
from proxy.metering.usage import NOTHING_USED
from proxy.storage.ledger import Charge

log = logging.getLogger("strata.metering")

MAX_COST_NANO_USD = 10**15
"""A million dollars for one answer is a mistake in somebody's numbers; the database sums what is below it safely."""
MAX_RAW_CHARS = 8192
NS_PER_MS = 1_000_000

_NO_CHARGE: Charge = ((), ())

_encode = msgspec.json.Encoder().encode


class Meter:
    """
    `offer` takes each settled row, encoded, on its way to Postgres. `on_settled` and `on_closed` may be appended to;
    what they raise is logged, and keeps nobody else from being told.
    """

    def __init__(
        self,
        journal: Journal,
        prices: PriceBook,
        *,
        offer: Callable[[bytes, Position | None, Charge], None],
        on_settled: Sequence[Callable[[Exchange, Attempt], None]] = (),
        on_closed: Sequence[Callable[[Exchange], None]] = (),
        tokenizer: Tokenizer = TOKENIZER,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.on_settled = list(on_settled)
        self.on_closed = list(on_closed)
        self.prices = prices
        """Replaced when a new configuration takes over."""
        self.dispatched_total = 0
        self.settled_total = 0
        """Of those dispatched: the difference is what is open in the journal."""
        self._journal = journal
        self._worker_id = msgspec.Raw(_encode(journal.worker_id.bytes))
        self._offer = offer
        self._tokenizer = tokenizer
        self._clock_ns = clock_ns

    def dispatch(self, exchange: Exchange, attempt: Attempt) -> None:
        """
        Writes down that a request is about to go out, and the most that it can cost: the row, should we die before it
        is settled. MeteringUnavailable: do not send it.
        """
        if attempt.dispatched or attempt.settled:
            return
        price = attempt.ceiling or self.prices.ceiling(
            attempt.deployment, attempt.input_tokens_bound, attempt.output_tokens_bound, attempt.asked_service_tier
        )
        if attempt.hold is not None and attempt.hold.nano_usd != price.nano_usd:
            price = price._replace(nano_usd=attempt.hold.nano_usd)
        usage = Usage(attempt.input_tokens_bound, output=attempt.output_tokens_bound)
        row = self._encode_row(exchange, attempt, usage, price, source="orphan", outcome="gateway_internal")
        self._journal.append_dispatch((exchange.id, attempt.number), row)
        attempt.dispatched = True
        self.dispatched_total += 1

    def progress(self, exchange: Exchange, attempt: Attempt, said: Usage | None) -> None:
        """
        Writes down how far a stream has come, so that the bill is close should we die in it. `said`: what the provider
        has said of usage by now.
        """
        if attempt.settled or not attempt.dispatched:
            return
        new = attempt.delivered_text[attempt.noted_parts :]
        attempt.noted_parts += len(new)
        attempt.noted_tokens += self._tokenizer.count("".join(new))
        usage = _at_least(attempt, said, attempt.noted_tokens)
        price = self.prices.cost(attempt.deployment, usage, exchange.started_at_ms, attempt.service_tier)
        row = self._encode_row(exchange, attempt, usage, price, source="orphan", outcome="gateway_internal")
        self._journal.append_progress(row)

    async def count(self, attempt: Attempt) -> None:
        """
        Counts, in a thread, an answer for which no usage came. `settle` alone does not wait: of a long text it takes
        the number of bytes.
        """
        if attempt.settled or not attempt.delivered_text or not (attempt.usage is None or attempt.source == "counted"):
            return
        text = "".join(attempt.delivered_text)
        tokens = await self._tokenizer.count_exactly(text)
        if not attempt.settled:
            attempt.usage = _with_counted(attempt, tokens)
            attempt.source = "counted"
            attempt.delivered_text.clear()

    async def count_input(self, attempt: Attempt, text: str, tokens: int) -> None:
        """Of an answer without a text of its own, and without a usage: what was sent, on top of `tokens` known."""
        counted = tokens + (await self._tokenizer.count_exactly(text) if text else 0)
        if not attempt.settled:
            attempt.usage, attempt.source = Usage(counted), "counted"

    def settle(self, exchange: Exchange, attempt: Attempt) -> None:
        """Prices the attempt, writes its row, and tells budgets and telemetry. One never dispatched costs nothing."""
        if attempt.settled:
            return
        attempt.settled = True
        attempt.ended_ns = attempt.ended_ns or self._clock_ns()
        attempt.outcome = attempt.outcome or "ok"
        if attempt.dispatched:
            self._write_down(exchange, attempt)
        for tell in self.on_settled:
            try:
                tell(exchange, attempt)
            except Exception:
                log.exception("a settled attempt could not be told")

    def close(self, exchange: Exchange) -> None:
        """The exchange is over: settles what is open, then tells those who wait for it."""
        if exchange.closed:
            return
        exchange.closed = True
        for attempt in exchange.attempts:
            self.settle(exchange, attempt)
        for tell in self.on_closed:
            try:
                tell(exchange)
            except Exception:
                log.exception("a closed exchange could not be told")

    def _write_down(self, exchange: Exchange, attempt: Attempt) -> None:
        usage = self._usage(attempt)
        price = self.prices.cost(attempt.deployment, usage, exchange.started_at_ms, attempt.service_tier)
        if attempt.source == "none":
            # a refusal before any work is not billed, not even where a request has a price of its own
            price = price._replace(nano_usd=0)
        if price.nano_usd > MAX_COST_NANO_USD:
            price = price._replace(nano_usd=MAX_COST_NANO_USD)
            attempt.usage_suspect = True
        attempt.usage = usage
        attempt.price_state, attempt.cost_nano_usd, attempt.price_source = price
        row = self._encode_row(exchange, attempt, usage, price, source=attempt.source, outcome=attempt.outcome)
        position = self._journal.append(SETTLE, row)
        self._journal.close_dispatch((exchange.id, attempt.number))
        self.settled_total += 1
        hold = attempt.hold
        self._offer(row, position, (hold.budget_ids, hold.period_starts_ms) if hold is not None else _NO_CHARGE)

    def _usage(self, attempt: Attempt) -> Usage:
        """What to bill; sets the source where the provider's numbers are missing."""
        usage = attempt.usage
        if usage is not None and not (attempt.usage_suspect and usage == NOTHING_USED):
            if attempt.source == "none":
                attempt.source = "provider"
            return usage if attempt.source != "counted" else _with_counted(attempt, self._count_now(attempt))
        accepted = 200 <= attempt.status < 300 or attempt.delivered_events or attempt.delivered_text
        if accepted or attempt.source not in ("none", "ambiguous"):
            attempt.source = "counted"
            attempt.usage = None
            return _with_counted(attempt, self._count_now(attempt))
        if attempt.source == "ambiguous":
            return Usage(input=attempt.input_tokens_bound)
        return NOTHING_USED

    def _count_now(self, attempt: Attempt) -> int:
        return self._tokenizer.count("".join(attempt.delivered_text))

    def _encode_row(
        self, exchange: Exchange, attempt: Attempt, usage: Usage, price: Price, *, source: str, outcome: str
    ) -> bytes:
        """
        A `LedgerRow`, column by column and without the object in between. How it begins is the same in all rows of the
        attempt.
        """
        begins = attempt.row_begins
        if not begins:
            caller, deployment = exchange.caller, attempt.deployment
            first_columns = (
                exchange.id,
                attempt.number,
                exchange.started_at_ms,
                self._worker_id,
                exchange.request_id,
                (caller.key_id or None) if caller is not None else None,
                caller.name if caller is not None else "",
                caller.user_id if caller is not None else None,
                caller.team_id if caller is not None else None,
                exchange.endpoint,
                exchange.model,
                deployment.name,
                deployment.provider.name,
                exchange.stream,
            )
            begins = attempt.row_begins = _encode(first_columns)[:-1]
        price_state, nano_usd, price_source = price
        hold, started, first, ended = attempt.hold, attempt.started_ns, attempt.first_event_ns, attempt.ended_ns
        other_columns = (
            attempt.status,
            outcome,
            source,
            usage.input,
            usage.cache_read,
            usage.cache_write_5m,
            usage.cache_write_1h,
            usage.audio_input,
            usage.output,
            usage.reasoning,
            usage.audio_output,
            nano_usd,
            price_state,
            price_source,
            attempt.usage_raw.decode("utf-8", "replace")[:MAX_RAW_CHARS] if attempt.usage_raw else "",
            attempt.usage_suspect,
            (ended - started) // NS_PER_MS if ended > started else 0,
            (first - started) // NS_PER_MS if first > started else 0 if first else None,
            hold.budget_ids if hold is not None else (),
            hold.period_starts_ms if hold is not None else (),
            usage.image_input,
            usage.image_output,
            usage.searches,
            attempt.service_tier,
            attempt.own_key.id if attempt.own_key is not None else None,
        )
        return begins + b"," + _encode(other_columns)[1:]


def _with_counted(attempt: Attempt, tokens: int) -> Usage:
    """
    Counted output on top of what the provider said before it was cut off, if it said anything: its input is exact, its
    output a beginning. An event carries a token at least, so the count is never below the number of events.
    """
    return _at_least(attempt, attempt.usage, tokens)


def _at_least(attempt: Attempt, said: Usage | None, tokens: int) -> Usage:
    if said is None or said == NOTHING_USED:
        said = Usage(input=attempt.input_tokens_bound)
    counted = max(tokens, attempt.delivered_events)
    return msgspec.structs.replace(said, output=said.output + max(counted - said.completion, 0))
