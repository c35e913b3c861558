"""
A request's turn at every limit that binds it: all of them or none, and what it did not use is given back.

`Turns` counts in this process alone. What several processes count together is `sharing`, which falls back on this.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from proxy.admission.allowances import Allowance
from proxy.admission.limits import Limits, Standing
from proxy.admission.refusals import too_fast
from proxy.buckets import MINUTE_NS, Bucket
from proxy.errors import PolicyError
from proxy.exchange import Caller, Exchange, Limit
from proxy.providers import ChatRequest

MAX_ALLOWANCES = 100_000
FEW = 64
USUAL_OUTPUT_TOKENS = 1_024
"""Taken for an answer that the client sets no limit to, until it is there and is counted."""
SMALL_BODY_BYTES = 32_768
MEDIA_TOKENS = 1_000


class Turn:
    """What a request has taken. `end` gives back what it did not use, once; a second call changes nothing."""

    __slots__ = ("_clock_ns", "allowances", "ended", "tokens")

    def __init__(self, allowances: Sequence[Allowance], tokens: int, clock_ns: Callable[[], int]) -> None:
        self.allowances = allowances
        self.tokens = tokens
        self.ended = False
        self._clock_ns = clock_ns

    def end(self, exchange: Exchange) -> None:
        """The request is over, however it went."""
        if self.ended:
            return
        self.ended = True
        used = used_tokens(exchange)
        now_ns = self._clock_ns()
        for allowance in self.allowances:
            allowance.end(self.tokens, used, now_ns)

    def standing(self) -> Standing | None:
        """Of the tightest limit on requests and of that on tokens; None if there is neither."""
        allowances = self.allowances
        return standing_of(allowances, self._clock_ns()) if len(allowances) != 1 else _standing_of_one(allowances[0])


class Turns:
    """The allowances of this worker, by limit. At most `max_allowances`: beyond that the oldest makes room."""

    def __init__(
        self,
        limits: Limits,
        *,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        max_allowances: int = MAX_ALLOWANCES,
    ) -> None:
        self.limits = limits
        self._clock_ns = clock_ns
        self._max_allowances = max_allowances
        self._known: dict[str, Allowance] = {}
        self.evicted_total = 0
        """Allowances dropped that still owed something; each let its subject have its whole burst once more."""

    def __len__(self) -> int:
        return len(self._known)

    def binding(self, caller: Caller, name: str, model: str) -> tuple[Limit, ...]:
        """The limits of a request for a model: by the name that was asked for, or the one that the file has for it."""
        by_model = self.limits.by_model
        if not by_model:
            return caller.limits
        return caller.limits + (by_model.get(name) or by_model.get(model) or ())

    def take_now(self, caller: Caller, limits: tuple[Limit, ...], name: str, model: str, tokens: int) -> Turn | None:
        """The request's turn; None if only `take` can tell. Raises PolicyError 429 `rate_limit_exceeded`."""
        now_ns, known = self._clock_ns(), self._known
        allowances: list[Allowance] = []
        for limit in limits:
            if limit.model and limit.model != name and limit.model != model:
                continue
            allowance = known.get(limit.id)
            if allowance is None or allowance.limit is not limit:
                allowance = self._find(limit)
            if not allowance.take(tokens, now_ns):
                raise self._refused(caller, allowances, allowance, tokens, now_ns)
            allowances.append(allowance)
        return Turn(allowances, tokens, self._clock_ns)

    async def take(self, caller: Caller, limits: tuple[Limit, ...], name: str, model: str, tokens: int) -> Turn:
        """Like `take_now`, and waits where it must."""
        turn = self.take_now(caller, limits, name, model, tokens)
        assert turn is not None
        return turn

    def _refused(
        self, caller: Caller, taken: Sequence[Allowance], refusing: Allowance, tokens: int, now_ns: int
    ) -> PolicyError:
        """What the others gave is put back."""
        short = refusing.short(tokens, now_ns)
        for allowance in taken:
            allowance.put_back(tokens, now_ns)
        return too_fast(caller, short, standing_of([*taken, refusing], now_ns))

    def _find(self, limit: Limit) -> Allowance:
        allowance = self._known.get(limit.id)
        if allowance is None:
            return self._learn(limit)
        if allowance.limit != limit:
            self._change(allowance, limit)
        else:
            allowance.limit = limit
        return allowance

    def _learn(self, limit: Limit) -> Allowance:
        self._make_room()
        allowance = self._known[limit.id] = self._make(limit)
        return allowance

    def _make(self, limit: Limit) -> Allowance:
        return Allowance(limit)

    def _change(self, allowance: Allowance, limit: Limit) -> None:
        allowance.set(limit)

    def _make_room(self) -> None:
        """Looks at the two oldest for each new one, so that a sweep never holds the event loop."""
        known, now_ns = self._known, self._clock_ns()
        # A few stay in any case: the request that a new one is for holds some already.
        for _ in range(2 if len(known) >= min(FEW, self._max_allowances) else 0):
            id = next(iter(known))
            allowance = known.pop(id)
            if not allowance.idle(now_ns):
                known[id] = allowance
        if len(known) >= self._max_allowances:
            del known[next(iter(known))]
            self.evicted_total += 1


def used_tokens(exchange: Exchange) -> int:
    """Of all attempts that have used some."""
    used = 0
    for attempt in exchange.attempts:
        usage = attempt.usage
        if usage is not None:
            used += usage.prompt + usage.completion
    return used


def wanted_tokens(chat: ChatRequest, body_bytes: int) -> int:
    """What a request may use: an estimate, put right once its answer is there."""
    output = chat.get("max_completion_tokens") or chat.get("max_tokens") or USUAL_OUTPUT_TOKENS
    input_tokens = body_bytes // 4 if body_bytes <= SMALL_BODY_BYTES else _input_tokens(chat, body_bytes)
    return input_tokens + output * max(chat.get("n") or 1, chat.get("best_of") or 1)


def _input_tokens(chat: ChatRequest, body_bytes: int) -> int:
    """The bytes of pictures and files say little of their tokens."""
    media, media_characters = 0, 0
    for message in chat["messages"]:
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and part.get("type") not in ("text", "refusal"):
                media += 1
                media_characters += len(str(part))
    return max(0, body_bytes - media_characters) // 4 + media * MEDIA_TOKENS


def _standing_of_one(allowance: Allowance) -> Standing | None:
    """`standing_of` for the usual case, right after the turn was taken."""
    requests, tokens = allowance.requests, allowance.tokens
    if requests is None:
        return standing_of((allowance,), tokens.at_ns) if tokens is not None else None
    left, reset = (requests.full - requests.owed) // MINUTE_NS, requests.owed / requests.per_minute / 1e9
    if tokens is None:
        return Standing(requests.per_minute, left, reset)
    tokens_left = (tokens.full - tokens.owed) // MINUTE_NS
    return Standing(
        requests.per_minute, left, reset, tokens.per_minute, tokens_left, tokens.owed / tokens.per_minute / 1e9
    )


def standing_of(allowances: Sequence[Allowance], now_ns: int) -> Standing | None:
    requests: Bucket | None = None
    tokens: Bucket | None = None
    requests_left = tokens_left = 0
    for allowance in allowances:
        bucket = allowance.requests
        if bucket is not None:
            left = bucket.remaining(now_ns)
            if requests is None or left < requests_left:
                requests, requests_left = bucket, left
        bucket = allowance.tokens
        if bucket is not None:
            left = bucket.remaining(now_ns)
            if tokens is None or left < tokens_left:
                tokens, tokens_left = bucket, left
    if requests is None and tokens is None:
        return None
    return Standing(
        requests.per_minute if requests is not None else None,
        requests_left,
        requests.reset_seconds(now_ns) if requests is not None else 0.0,
        tokens.per_minute if tokens is not None else None,
        tokens_left,
        tokens.reset_seconds(now_ns) if tokens is not None else 0.0,
    )
