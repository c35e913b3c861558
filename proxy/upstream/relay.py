"""
One exchange with whoever can serve it: try, go on to the next, retry, until the first content event or the last
failure.

Every try is an `Attempt` with its own hold and its own ledger row: the dispatch record is in the journal before a
byte leaves. After the first content event nothing is tried again. The call belongs to the worker: a client that
leaves is a flag (`AnswerStream.client_left`), never a cancellation.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Protocol

import msgspec

from proxy.config import Deployment
from proxy.dialects.openai import Envelope, name_calls, wants_usage
from proxy.errors import GatewayError, UpstreamError
from proxy.exchange import Attempt, Exchange, OwnKey
from proxy.metering.meter import Meter
from proxy.metering.prices import PriceBook
from proxy.metering.usage import NOTHING_USED
from proxy.providers import ChatRequest, Completion, Json, Target, UpstreamRequest
from proxy.routing.plan import Plan, Step
from proxy.routing.resting import Resting
from proxy.routing.retries import RetryBudget, backoff_seconds
from proxy.telemetry.traceparent import header_line
from proxy.upstream.accounts import Account
from proxy.upstream.answers import AnswerStream, WholeAnswer, believe_usage, read_fields
from proxy.upstream.connections import Response
from proxy.upstream.notices import take_notices
from proxy.upstream.own_keys import OwnKeys, blame
from proxy.upstream.readers import PassReader, Reader, TranslatedReader, keep_text, thoughts_in
from proxy.upstream.remote_files import RemoteFiles
from proxy.upstream.reserve import Reserve, limit_notice, output_bound
from proxy.upstream.thoughts import Thoughts

NEVER_AGAIN_HERE = frozenset({"provider_auth", "provider_quota", "provider_content_filter", "policy_budget_exceeded"})
"""Failures that the same deployment will repeat; another one may not."""
LONGEST_ASKED_WAIT_SECONDS = 1.0
"""A Retry-After beyond this is the client's to wait out: its SDK does, and we hold no request for it."""
MAX_ERROR_BODY_SECONDS = 10.0
MAX_ROADS = 4_096

_encode = msgspec.json.Encoder().encode


class Events(Protocol):
    """What telemetry hears of (its metrics object); the relay knows nothing of metrics."""

    def count_retry(self, model: str, reason: str) -> None: ...
    def count_fallback(self, model: str, to: str) -> None: ...


class _Road(msgspec.Struct, frozen=True):
    """The way to one deployment, looked up once. It holds the deployment, so that its id() stays its own."""

    deployment: Deployment
    account: Account
    target: Target


class Relay:
    def __init__(
        self,
        accounts: Mapping[str, Account],
        meter: Meter,
        prices: PriceBook,
        resting: Resting,
        reserve: Reserve,
        events: Events,
        *,
        clock: Callable[[], float] = time.monotonic,
        dice: Callable[[], float],
        files: RemoteFiles | None = None,
        own_keys: OwnKeys | None = None,
    ) -> None:
        self._accounts = accounts
        self._meter = meter
        self._prices = prices
        self._resting = resting
        self._reserve = reserve
        self._events = events
        self._clock = clock
        self._dice = dice
        self._files = files
        self._own_keys = own_keys
        self._own_keys_held = own_keys.held if own_keys is not None else {}
        self._retries = RetryBudget()
        self._thoughts = Thoughts()
        self._roads: dict[int, _Road] = {}

    async def answer(self, plan: Plan, chat: ChatRequest, exchange: Exchange) -> WholeAnswer | AnswerStream:
        """The first answer that anybody gives. Raises the failure that tells the client most."""
        self._retries.live += 1
        try:
            first = plan.steps[0]
            try:
                return await self._attempt(first, chat, exchange)
            except UpstreamError as error:
                self._note_failure(first.deployment, error)
                return await self._recover(plan, chat, exchange, [(first, error)])
        finally:
            self._retries.live -= 1

    async def _recover(
        self, plan: Plan, chat: ChatRequest, exchange: Exchange, failures: list[tuple[Step, UpstreamError]]
    ) -> WholeAnswer | AnswerStream:
        """The first try has failed: goes on while there is somebody to ask and a reason to."""
        for step in self._further(plan, failures):
            if not failures[-1][1].retryable or not await self._may_go_on(step, failures, exchange):
                break
            if exchange.client_left:  # what is under way is finished; nothing more is begun that nobody waits for
                break
            try:
                return await self._attempt(step, chat, exchange)
            except UpstreamError as error:
                failures.append((step, error))
                self._note_failure(step.deployment, error)
        raise _verdict(exchange, failures)

    def _further(self, plan: Plan, failures: Sequence[tuple[Step, UpstreamError]]) -> Iterator[Step]:
        """The steps after the first; then the round again, without those that would only repeat themselves."""
        round_of: Sequence[Step] = plan.steps[1:]
        made = 1
        while made < plan.attempts:
            for step in round_of[: plan.attempts - made]:
                made += 1
                yield step
            hopeless = {step.deployment.name for step, error in failures if not _may_pass_here(error)}
            round_of = [step for step in plan.steps if step.deployment.name not in hopeless]
            if not round_of:
                return

    async def _may_go_on(self, step: Step, failures: Sequence[tuple[Step, UpstreamError]], exchange: Exchange) -> bool:
        """Whether to try `step` after what has failed; waits first where the same deployment is asked again."""
        _, error = failures[-1]
        earlier = [failed for tried, failed in failures if tried.deployment.name == step.deployment.name]
        if not earlier:
            if step.fallback:
                self._events.count_fallback(exchange.model, step.model.name)
            return True
        asked = earlier[-1].retry_after_seconds
        if (asked or 0) > LONGEST_ASKED_WAIT_SECONDS or not self._retries.allows():
            return False
        self._events.count_retry(exchange.model, error.error_type)
        self._retries.retrying += 1
        try:
            await asyncio.sleep(backoff_seconds(len(earlier), self._dice, asked))
        finally:
            self._retries.retrying -= 1
        return True

    async def _attempt(self, step: Step, chat: ChatRequest, exchange: Exchange) -> WholeAnswer | AnswerStream:
        road = self._roads.get(id(step.deployment)) or self._road(step.deployment)
        account = road.account if not self._own_keys_held else self._account(road, exchange)
        asked = {**step.model.params, **chat} if step.model.params else chat
        exchange.notices.clear()  # of the try before, whose answer is not the one that they would be told of
        if self._thoughts and not road.account.passes_through:
            asked, told = self._thoughts.restore(_owner(exchange), step.deployment, asked)
            take_notices(exchange, step.model, told)
        takes_url = road.account.takes_url
        if self._files is not None and takes_url is not None:
            follows = partial(_follows, takes_url, road.target.model)
            asked = await self._files.inline(asked, step.deployment.provider.api, exchange.files, follows)
        request = road.account.translator.encode_request(asked, road.target)
        if request.notices:
            take_notices(exchange, step.model, request.notices)
        body = _encode(request.body)
        attempt = Attempt(
            number=len(exchange.attempts) + 1,
            deployment=step.deployment,
            started_ns=time.monotonic_ns(),
            # A token is at least one byte, so the body's length bounds the input without a tokenizer.
            input_tokens_bound=len(body),
            output_tokens_bound=output_bound(asked, road.target),
            asked_service_tier=request.service_tier or str(request.body.get("service_tier") or ""),
            own_key=account.own_key,
        )
        caller, limit = exchange.caller, None
        reserve = self._reserve
        if caller is not None and (
            caller.budgets or reserve.block_unpriced or step.deployment.provider.name in reserve.providers
        ):
            for budget in reserve.providers.get(step.deployment.provider.name, ()):
                if budget not in exchange.provider_budgets:
                    exchange.provider_budgets += (budget,)
            strict = step.model.strict if exchange.strict is None else exchange.strict
            limit = await reserve.set_aside(caller, attempt, asked, road.target, strict=strict)
        exchange.attempts.append(attempt)
        try:
            # From here on whatever fails is settled, and what was set aside is free again.
            if limit is not None:
                take_notices(exchange, step.model, (limit_notice(limit),))
                limited = {**asked, "max_completion_tokens": limit}
                request = road.account.translator.encode_request(limited, road.target)
                body = _encode(request.body)
            self._meter.dispatch(exchange, attempt)
            return await self._exchange(account, step, request, body, chat, exchange, attempt)
        except GatewayError as error:
            if isinstance(error, UpstreamError):
                account.censor(error)
            self._fail(exchange, attempt, error)
            raise
        except BaseException:
            attempt.outcome = "gateway_internal"
            if not attempt.status:  # cut off while we waited: somebody may be at work on it
                attempt.source = "ambiguous"
            self._meter.settle(exchange, attempt)
            raise

    async def _exchange(
        self,
        account: Account,
        step: Step,
        request: UpstreamRequest,
        body: bytes,
        chat: ChatRequest,
        exchange: Exchange,
        attempt: Attempt,
    ) -> WholeAnswer | AnswerStream:
        timeouts = step.model.timeouts
        now = self._clock()
        deadline = now + timeouts.total_seconds
        first_byte = min(deadline, now + timeouts.first_byte_seconds) if exchange.stream else deadline
        trace = exchange.trace
        response = await account.send(
            request,
            body,
            exchange.hints,
            connect_seconds=timeouts.connect_seconds,
            deadline=first_byte,
            trace=header_line(trace, attempt.number) if trace is not None else b"",
        )
        attempt.status, attempt.head = response.status, response.fields
        waited_until = time.monotonic_ns()
        exchange.upstream_wait_ns += waited_until - attempt.started_ns
        if not 200 <= response.status < 300:
            raise await self._refusal(account, response)
        if not exchange.stream:
            return await self._whole(account, response, exchange, attempt, deadline)
        reader = self._reader(account, chat, exchange, attempt)
        stream = AnswerStream(
            step.deployment,
            exchange,
            attempt,
            response,
            account.translator,
            reader,
            timeouts,
            clock=self._clock,
            deadline=deadline,
            failed=self._note_failure if account.own_key is None else partial(self._note_own_failure, account.own_key),
            progress=self._meter.progress,
            censor=account.censor,
        )
        try:
            await stream.open()
        except BaseException as error:
            stream.abandon(error)
            raise
        if account.own_key is None:
            self._resting.succeeded(step.deployment.name)
        return stream

    def _account(self, road: _Road, exchange: Exchange) -> Account:
        """With the caller's own key, if there is one for this provider."""
        assert self._own_keys is not None
        return self._own_keys.account_for(exchange.caller, road.account)

    def _reader(self, account: Account, chat: ChatRequest, exchange: Exchange, attempt: Attempt) -> Reader:
        envelope = Envelope(
            id=f"chatcmpl-{exchange.id.hex()}", created=exchange.started_at_ms // 1000, model=exchange.model
        )
        if account.passes_through:
            return PassReader(attempt, envelope, wants_usage(chat))

        def keep(details: list[Json], calls: list[Json]) -> None:
            self._thoughts.keep(_owner(exchange), attempt.deployment, details, calls)

        return TranslatedReader(account.translator.stream_decoder(), attempt, envelope, wants_usage(chat), keep)

    async def _whole(
        self, account: Account, response: Response, exchange: Exchange, attempt: Attempt, deadline: float
    ) -> WholeAnswer:
        waited_from = time.monotonic_ns()
        body = await response.read_all(deadline)
        attempt.first_event_ns = time.monotonic_ns()
        exchange.upstream_wait_ns += attempt.first_event_ns - waited_from
        whole = WholeAnswer(attempt, read_fields(body), None) if account.passes_through else None
        if whole is None or not whole.is_regular():
            whole = WholeAnswer(attempt, None, account.translator.decode_response(body))
            self._keep_thoughts(exchange, attempt, whole.completion or {})
        attempt.service_tier = whole.read_service_tier()
        whole.take_usage(exchange)
        _keep_whole(exchange, attempt, whole)
        if account.own_key is None:  # that somebody else's key is good says nothing of the operator's
            self._resting.succeeded(attempt.deployment.name)
        return whole

    def _keep_thoughts(self, exchange: Exchange, attempt: Attempt, completion: Completion) -> None:
        for choice in completion.get("choices", ()):
            message = choice.get("message", {})
            calls = message.get("tool_calls")
            if calls:
                name_calls(calls, f"chatcmpl-{exchange.id.hex()}")
                self._thoughts.keep(_owner(exchange), attempt.deployment, thoughts_in(message), calls)

    async def _refusal(self, account: Account, response: Response) -> UpstreamError:
        body = await response.read_all(self._clock() + MAX_ERROR_BODY_SECONDS)
        error = account.translator.decode_error(response.status, response.headers, account.hide.in_bytes(body))
        error.upstream_status = response.status
        return error

    def _road(self, deployment: Deployment) -> _Road:
        provider = deployment.provider
        target = Target(deployment.model, provider.quirks, provider.options, self._prices.max_output_tokens(deployment))
        if len(self._roads) >= MAX_ROADS:
            self._roads.clear()
        road = self._roads[id(deployment)] = _Road(deployment, self._accounts[provider.name], target)
        return road

    def _fail(self, exchange: Exchange, attempt: Attempt, error: GatewayError) -> None:
        if attempt.own_key is not None and isinstance(error, UpstreamError):
            blame(error, attempt.own_key)
        attempt.outcome = attempt.outcome or error.error_type
        attempt.error = attempt.error or error.message
        if isinstance(error, UpstreamError) and attempt.usage is None:
            if error.sent and not attempt.status:
                attempt.source = "ambiguous"
            elif attempt.status and attempt.status < 300:
                attempt.source = "counted"
        self._meter.settle(exchange, attempt)

    def _note_own_failure(self, own: OwnKey, deployment: Deployment, error: UpstreamError) -> None:
        blame(error, own)
        self._note_failure(deployment, error)

    def _note_failure(self, deployment: Deployment, error: UpstreamError) -> None:
        if error.rest:
            self._resting.failed(
                deployment.name,
                self._clock(),
                error.error_type,
                at_once=error.error_type in NEVER_AGAIN_HERE,
                seconds=error.retry_after_seconds,
            )


def _follows(takes_url: Callable[[str, str], bool], model: str, url: str) -> bool:
    return takes_url(url, model)


def _owner(exchange: Exchange) -> str:
    return exchange.caller.key_id if exchange.caller is not None else ""


def _keep_whole(exchange: Exchange, attempt: Attempt, whole: WholeAnswer) -> None:
    counting = attempt.usage in (None, NOTHING_USED)
    for choice in whole.choices():
        exchange.finish_reason = choice.finish_reason or exchange.finish_reason
        message = choice.message
        if counting and message is not None:
            for text in msgspec.structs.astuple(message):
                if text:
                    keep_text(attempt, text)
    believe_usage(attempt)


def _may_pass_here(error: UpstreamError) -> bool:
    return error.retryable and error.error_type not in NEVER_AGAIN_HERE and error.code != "upstream_model_not_found"


def _verdict(exchange: Exchange, failures: Sequence[tuple[Step, UpstreamError]]) -> UpstreamError:
    """What the client is told: the last failure as it is, or all of them in one sentence."""
    if not failures:
        raise AssertionError("a plan without steps")
    last = failures[-1][1]
    names = list(dict.fromkeys(step.deployment.name for step, _ in failures))
    if len(names) == 1 or not last.retryable:
        return last
    told = "; ".join(f"{step.deployment.name} {error.message.rstrip('.')}" for step, error in failures[-4:])
    verdict = UpstreamError(
        f'All {len(names)} deployments of "{exchange.model}" failed: {told}. Request {exchange.request_id}.'[:1000],
        status=last.status,
        code=last.code,
        type=last.type,
        error_type=last.error_type,
        retry_after_seconds=last.retry_after_seconds,
    )
    verdict.headers.update(last.headers)
    verdict.details.update(last.details)
    return verdict
