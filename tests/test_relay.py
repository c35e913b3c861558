"""The relay over real sockets: who is asked, how often, what the client is told, and that every try is written down."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from proxy.admission.refusals import budget_exceeded
from proxy.config import Deployment, Model, PriceOverride, Prices, Provider, Rest
from proxy.errors import CallerError, GatewayError, PolicyError, UpstreamError
from proxy.exchange import Budget, Caller, Exchange, Hold
from proxy.metering.journal import Journal, MeteringUnavailable
from proxy.metering.meter import Meter
from proxy.metering.prices import PriceBook
from proxy.providers import ChatRequest, Target, UpstreamRequest
from proxy.routing.plan import Plan, Step
from proxy.routing.resting import Resting
from proxy.storage.ledger import LedgerRow
from proxy.telemetry.metrics import Metrics
from proxy.upstream.accounts import Account
from proxy.upstream.answers import AnswerStream, WholeAnswer
from proxy.upstream.relay import Relay
from proxy.upstream.reserve import Reserve

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
ANSWER = {"choices": [{"index": 0, "message": {"content": "hi"}, "finish_reason": "stop"}], "usage": USAGE}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
BUDGET = Budget(id=str(uuid.UUID(int=1)), scope="key", subject="k", limit_nano_usd=10**12)


def reply(status: int, body: Any, *headers: str) -> bytes:
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    lines = "".join(f"{header}\r\n" for header in headers)
    return f"HTTP/1.1 {status} X\r\ncontent-length: {len(data)}\r\n{lines}\r\n".encode() + data


class House:
    """A relay, its meter, and a provider that answers from a list."""

    def __init__(self, folder: Path) -> None:
        self.replies: dict[str, list[bytes]] = {}
        self.asked: list[str] = []
        self.journal = Journal(folder)
        self.journal.open()
        self.rows: list[bytes] = []
        self.prices = PriceBook(Prices(models={"one/*": PriceOverride(input_pico_usd=1000, output_pico_usd=1000)}))
        self.meter = Meter(self.journal, self.prices, offer=lambda record, *_: self.rows.append(record))
        self.resting = Resting(Rest())
        self.holds: list[int] = []
        self.bound: dict[str, tuple[Budget, ...]] = {}
        self.hold: Callable[[Caller, int], Any] = self._hold
        self.metrics = Metrics()
        self.server: asyncio.Server | None = None

    async def start(self) -> None:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self.server.sockets[0].getsockname()[1]
        self.providers = {
            name: Provider(name=name, api_base=f"http://127.0.0.1:{port}/{name}/v1") for name in ("one", "two")
        }
        self.accounts = {name: Account(provider) for name, provider in self.providers.items()}
        self.relay = Relay(
            self.accounts,
            self.meter,
            self.prices,
            self.resting,
            Reserve(
                self.prices, lambda caller, nano_usd, _: self.hold(caller, nano_usd), self.bound, block_unpriced=False
            ),
            self.metrics,
            dice=lambda: 0.0,
        )

    async def stop(self) -> None:
        for account in self.accounts.values():
            await account.close()
        assert self.server is not None
        self.server.close()
        await self.journal.close()

    async def _hold(self, caller: Caller, nano_usd: int) -> Hold:
        self.holds.append(nano_usd)
        return Hold(nano_usd)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                provider = head.split(b"/")[1].decode()
                self.asked.append(provider)
                left = self.replies[provider]
                writer.write(left.pop(0) if len(left) > 1 else left[0])
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    def plan(self, *names: str, attempts: int = 3) -> Plan:
        deployments = tuple(Deployment(provider=self.providers[name], model="m") for name in names)
        model = Model(name="m", deployments=deployments)
        return Plan(tuple(Step(model, one, at > 0) for at, one in enumerate(deployments)), attempts)

    def exchange(self, *, stream: bool = False, budgets: tuple[Budget, ...] = ()) -> Exchange:
        caller = Caller(key_id=str(uuid.UUID(int=2)), name="ci", display="sk-strata-a…b", budgets=budgets)
        made = Exchange(uuid.uuid4().bytes, "req_1", "chat", 1_700_000_000_000, 0, stream=stream, model="m")
        made.caller = caller
        return made

    async def ask(self, plan: Plan, exchange: Exchange, **more: Any) -> WholeAnswer | AnswerStream:
        return await self.relay.answer(plan, {**CHAT, **more}, exchange)

    def outcomes(self) -> list[tuple[str, str]]:
        rows = [msgspec.json.decode(row) for row in self.rows]
        return [(row[15], row[16]) for row in rows]


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    made = House(tmp_path)
    await made.start()
    yield made
    await made.stop()


async def test_the_next_deployment_is_asked_when_one_fails_and_each_try_has_its_row(house: House) -> None:
    house.replies = {"one": [reply(503, {"error": {"message": "busy"}})], "two": [reply(200, ANSWER)]}
    exchange = house.exchange()
    answer = await house.ask(house.plan("one", "two"), exchange)
    assert isinstance(answer, WholeAnswer)
    assert house.asked == ["one", "two"]
    house.meter.settle(exchange, answer.attempt)
    assert house.outcomes() == [("provider_overloaded", "none"), ("ok", "provider")]


async def test_one_deployment_is_asked_again_and_its_last_failure_is_told_as_it_is(house: House) -> None:
    house.replies = {"one": [reply(500, {"error": {"message": "boom"}})]}
    with pytest.raises(UpstreamError, match="boom") as failed:
        await house.ask(house.plan("one"), house.exchange())
    assert house.asked == ["one"] * 3
    assert failed.value.status == 502
    assert [outcome for outcome, _ in house.outcomes()] == ["provider_error"] * 3


async def test_when_all_fail_the_client_hears_of_each(house: House) -> None:
    house.replies = {"one": [reply(500, b"x")], "two": [reply(529, b"x")]}
    with pytest.raises(UpstreamError) as failed:
        await house.ask(house.plan("one", "two", attempts=2), house.exchange())
    assert 'All 2 deployments of "m" failed: one/m' in failed.value.message
    assert "two/m" in failed.value.message
    assert "req_1" in failed.value.message


async def test_a_request_that_is_wrong_is_asked_once(house: House) -> None:
    house.replies = {"one": [reply(400, {"error": {"message": "bad tool"}})], "two": [reply(200, ANSWER)]}
    with pytest.raises(GatewayError, match="bad tool"):
        await house.ask(house.plan("one", "two"), house.exchange())
    assert house.asked == ["one"]


async def test_a_refused_key_is_not_tried_again_but_somebody_else_is(house: House) -> None:
    house.replies = {"one": [reply(401, {"error": {"message": "no"}})], "two": [reply(503, b"x")]}
    with pytest.raises(UpstreamError):
        await house.ask(house.plan("one", "two", attempts=4), house.exchange())
    assert house.asked == ["one", "two", "two", "two"]
    assert house.resting.rests("one/m", asyncio.get_running_loop().time())


async def test_a_long_retry_after_is_the_clients_to_wait_out(house: House) -> None:
    house.replies = {"one": [reply(429, {"error": {"message": "slow down"}}, "retry-after: 7")]}
    with pytest.raises(UpstreamError) as failed:
        await house.ask(house.plan("one"), house.exchange())
    assert house.asked == ["one"]
    assert (failed.value.status, failed.value.headers["retry-after"]) == (429, "7")


async def test_retries_stop_when_too_many_are_under_way(house: House) -> None:
    house.replies = {"one": [reply(500, b"x")]}
    house.relay._retries.retrying = 1_000
    with pytest.raises(UpstreamError):
        await house.ask(house.plan("one"), house.exchange())
    assert house.asked == ["one"]


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"choices":5}', b'{"usage":{}}', b"{", b"\xff"])
async def test_a_whole_answer_that_is_none_is_a_bad_gateway_and_is_billed_as_counted(house: House, body: bytes) -> None:
    house.replies = {"one": [reply(200, body)]}
    with pytest.raises(UpstreamError) as failed:
        await house.ask(house.plan("one", attempts=1), house.exchange())
    assert failed.value.error_type == "provider_bad_response"
    assert house.outcomes() == [("provider_bad_response", "counted")]


@pytest.mark.parametrize("body", [{**ANSWER, "usage": "many"}, {**ANSWER, "choices": [5]}])
async def test_an_answer_with_parts_of_the_wrong_kind_is_a_bad_gateway(house: House, body: dict[str, Any]) -> None:
    house.replies = {"one": [reply(200, body)]}
    with pytest.raises(UpstreamError) as failed:
        await house.ask(house.plan("one", attempts=1), house.exchange())
    assert failed.value.code == "bad_response"


async def test_a_request_that_is_cut_off_while_its_provider_is_silent_may_have_been_billed(house: House) -> None:
    house.replies["one"] = [b""]
    asking = asyncio.create_task(house.ask(house.plan("one"), house.exchange()))
    async with asyncio.timeout(5):
        while not house.asked:
            await asyncio.sleep(0.01)
    asking.cancel()
    await asyncio.wait({asking})
    assert house.outcomes() == [("gateway_internal", "ambiguous")]


async def test_an_answer_without_usage_is_counted(house: House) -> None:
    house.replies = {"one": [reply(200, {"choices": ANSWER["choices"]})]}
    exchange = house.exchange()
    answer = await house.ask(house.plan("one"), exchange)
    assert answer.attempt.source == "counted"
    assert answer.attempt.delivered_text == ["hi"]
    called = {"message": {"content": None, "function_call": {"name": "f", "arguments": "{}"}}}
    house.replies = {"one": [reply(200, {"choices": [called]})]}
    answer = await house.ask(house.plan("one"), house.exchange())
    assert answer.attempt.delivered_text == ["f{}"]


NOTHING = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


@pytest.mark.parametrize("usage", [NOTHING, {"total_tokens": 0}, {"prompt_tokens": "3", "completion_tokens": []}])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_usage_that_counts_nothing_is_none_where_something_was_said(
    house: House, usage: dict[str, Any], stream: bool
) -> None:
    said = "one two " * 400
    whole = {"choices": [{"index": 0, "message": {"content": said}, "finish_reason": "stop"}], "usage": usage}
    pieces = ({"choices": [{"delta": {"content": said}, "finish_reason": "stop"}]}, {"choices": [], "usage": usage})
    events = b"".join([b"data: " + msgspec.json.encode(piece) + b"\n\n" for piece in pieces])
    house.replies = {"one": [reply(200, events + b"data: [DONE]\n\n" if stream else whole)]}
    exchange = house.exchange(stream=stream)
    answer = await house.ask(house.plan("one"), exchange, stream=stream)
    while isinstance(answer, AnswerStream) and await answer.read():
        pass
    assert answer.attempt.source == "counted"
    await house.meter.count(answer.attempt)
    house.meter.settle(exchange, answer.attempt)
    [row] = [msgspec.json.decode(row, type=LedgerRow) for row in house.rows]
    assert (row.source, row.usage_suspect, msgspec.json.decode(row.usage_raw)) == ("counted", True, usage)
    assert (row.input_tokens, row.output_tokens) == (answer.attempt.input_tokens_bound, 801)


async def test_a_stream_that_is_cut_after_a_usage_of_nothing_is_billed_for_its_prompt_too(house: House) -> None:
    cut = b'data: {"choices":[{"delta":{"content":"hi"}}],"usage":' + msgspec.json.encode(NOTHING) + b"}\n\n"
    house.replies = {"one": [reply(200, cut)]}
    exchange = house.exchange(stream=True)
    stream = await house.ask(house.plan("one"), exchange, stream=True)
    assert isinstance(stream, AnswerStream)
    await stream.read()
    with pytest.raises(UpstreamError) as failed:
        await stream.read()
    stream.abandon(failed.value)
    house.meter.settle(exchange, stream.attempt)
    [row] = [msgspec.json.decode(row, type=LedgerRow) for row in house.rows]
    assert row.source == "counted"
    assert (row.input_tokens, row.output_tokens > 0) == (stream.attempt.input_tokens_bound, True)


async def test_an_answer_of_nothing_may_have_used_nothing(house: House) -> None:
    empty = {"choices": [{"index": 0, "message": {"content": ""}, "finish_reason": "stop"}], "usage": NOTHING}
    house.replies = {"one": [reply(200, empty)]}
    exchange = house.exchange()
    answer = await house.ask(house.plan("one"), exchange)
    house.meter.settle(exchange, answer.attempt)
    assert house.outcomes() == [("ok", "provider")]
    assert answer.attempt.cost_nano_usd == 0


async def test_money_is_set_aside_for_each_try(house: House) -> None:
    house.replies = {"one": [reply(503, b"x"), reply(200, ANSWER)]}
    await house.ask(house.plan("one"), house.exchange(budgets=(BUDGET,)), max_tokens=10, n=2)
    assert len(house.holds) == 2
    assert (
        house.holds[0] == len(b'{"model":"m","messages":[{"role":"user","content":"hi"}],"max_tokens":10,"n":2}') + 20
    )


async def test_a_key_with_a_budget_may_not_use_what_has_no_price(house: House) -> None:
    house.replies = {"two": [reply(200, ANSWER)]}
    exchange = house.exchange(budgets=(BUDGET,))
    with pytest.raises(CallerError, match="no price") as refused:
        await house.ask(house.plan("two"), exchange)
    assert (refused.value.status, refused.value.code) == (403, "price_unknown")
    assert house.asked == [] and exchange.attempts == []


async def test_nobody_may_use_what_has_no_price_if_the_operator_says_so(house: House) -> None:
    house.replies = {"one": [reply(200, ANSWER)], "two": [reply(200, ANSWER)]}
    house.relay._reserve.block_unpriced = True
    with pytest.raises(CallerError, match=r"prices\.on_missing is block"):
        await house.ask(house.plan("two"), house.exchange())
    assert isinstance(await house.ask(house.plan("one"), house.exchange()), WholeAnswer)
    assert house.asked == ["one"] and house.holds == []


async def test_an_answer_goes_through_as_it_came_but_for_its_cost(house: House) -> None:
    odd = b'{"choices":[{"message":{"content":"\\u00e9"}}], "big":12345678901234567890123, "f":1.50,'
    odd += b' "usage":{"prompt_tokens":1,"completion_tokens":0,"total_tokens":1,"new":{"a":1}}}'
    house.replies = {"one": [reply(200, odd)]}
    answer = await house.ask(house.plan("one"), house.exchange())
    assert isinstance(answer, WholeAnswer)
    shown = msgspec.json.decode(answer.with_cost(0.25), type=dict[str, msgspec.Raw])
    before = msgspec.json.decode(odd, type=dict[str, msgspec.Raw])
    usage = msgspec.json.decode(shown.pop("usage"))
    assert usage == {**msgspec.json.decode(before.pop("usage")), "cost": 0.25}
    assert {name: bytes(raw) for name, raw in shown.items()} == {name: bytes(raw) for name, raw in before.items()}


async def test_a_spent_budget_stops_before_anything_is_sent(house: House) -> None:
    async def refuse(caller: Caller, nano_usd: int) -> Hold:
        raise PolicyError("spent", status=429, code="insufficient_quota", error_type="policy_budget_exceeded")

    house.hold = refuse
    exchange = house.exchange(budgets=(BUDGET,))
    with pytest.raises(PolicyError):
        await house.ask(house.plan("one"), exchange)
    assert house.asked == [] and exchange.attempts == []


async def test_what_cannot_be_written_down_is_not_sent(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    settled: list[int] = []
    house.meter.on_settled.append(lambda _, attempt: settled.append(attempt.cost_nano_usd))
    monkeypatch.setattr(house.journal, "failing", True)
    with pytest.raises(MeteringUnavailable):
        await house.ask(house.plan("one"), house.exchange(budgets=(BUDGET,)))
    assert house.asked == []
    assert settled == [0]
    assert house.rows == []


async def test_a_stream_fails_over_until_its_first_content_and_not_after(house: House) -> None:
    empty = b'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\ndata: {"error":{"message":"overloaded"}}\n\n'
    good = b'data: {"choices":[{"delta":{"content":"hi"}}]}\n\ndata: {"error":{"message":"late"}}\n\n'
    house.replies = {"one": [reply(200, empty)], "two": [reply(200, good)]}
    stream = await house.ask(house.plan("one", "two"), house.exchange(stream=True), stream=True)
    assert isinstance(stream, AnswerStream)
    assert b"hi" in await stream.read()
    with pytest.raises(UpstreamError, match="late") as failed:
        await stream.read()
    for _ in range(3):
        assert not house.resting.rests("two/m", asyncio.get_running_loop().time())
        stream.abandon(failed.value)
    assert house.resting.rests("two/m", asyncio.get_running_loop().time())
    assert (stream.attempt.source, stream.attempt.outcome) == ("counted", failed.value.error_type)
    assert house.asked == ["one", "two"]


async def test_a_provider_that_cannot_be_reached_costs_nothing(house: House) -> None:
    await house.accounts["one"].close()
    provider = Provider(name="one", api_base="http://127.0.0.1:9/v1")
    house.accounts["one"] = Account(provider)
    with pytest.raises(UpstreamError) as failed:
        await house.ask(house.plan("one", attempts=1), house.exchange())
    assert failed.value.error_type == "provider_unreachable"
    assert house.outcomes() == [("provider_unreachable", "none")]


async def test_a_provider_whose_budget_is_spent_is_passed_over_and_has_no_row(house: House) -> None:
    house.replies = {"one": [reply(200, ANSWER)]}
    house.bound["one"] = (Budget("p", "provider", "one", 10),)

    async def spent_at_the_first(caller: Caller, nano_usd: int) -> Hold:
        house.holds.append(nano_usd)
        if len(house.holds) == 1:
            raise budget_exceeded(
                caller, house.bound["one"][0], spent_nano_usd=10, asked_nano_usd=nano_usd, resets_in_seconds=None
            )
        return Hold(nano_usd)

    house.hold = spent_at_the_first
    exchange = house.exchange()
    assert isinstance(await house.ask(house.plan("one", "one"), exchange, max_tokens=5), WholeAnswer)
    assert (len(house.holds), len(house.rows), len(exchange.attempts)) == (2, 0, 1)
    assert exchange.provider_budgets == house.bound["one"]


async def test_where_every_provider_is_spent_the_caller_is_told_not_to_retry(house: House) -> None:
    house.replies = {"one": [reply(200, ANSWER)]}
    house.bound["one"] = (Budget("p", "provider", "one", 10),)

    async def spent(caller: Caller, nano_usd: int) -> Hold:
        raise budget_exceeded(
            caller, house.bound["one"][0], spent_nano_usd=10, asked_nano_usd=nano_usd, resets_in_seconds=60
        )

    house.hold = spent
    exchange = house.exchange()
    with pytest.raises(UpstreamError, match="the budget resets in 1 min") as refused:
        await house.ask(house.plan("one"), exchange, max_tokens=5)
    assert (refused.value.status, refused.value.headers["x-should-retry"]) == (429, "false")
    assert house.asked == [] and exchange.attempts == []


async def test_what_was_set_aside_is_free_again_if_the_limit_cannot_be_said(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request without a limit is translated again with one, and the second time it may be refused."""
    translator = house.accounts["one"].translator
    encode = translator.encode_request

    def picky(chat: ChatRequest, target: Target) -> UpstreamRequest:
        if "max_completion_tokens" in chat:
            raise CallerError("Thinking needs more than that.", param="max_completion_tokens")
        return encode(chat, target)

    monkeypatch.setattr(translator, "encode_request", picky)
    exchange = house.exchange(budgets=(BUDGET,))
    chat = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    with pytest.raises(CallerError):
        await house.relay.answer(house.plan("one"), chat, exchange)
    (attempt,) = exchange.attempts
    assert attempt.hold is not None
    assert (attempt.settled, attempt.dispatched, attempt.cost_nano_usd) == (True, False, 0)
    assert (house.asked, house.rows) == ([], [])
