"""An attempt that reached a provider has exactly one row, and the row says where its numbers come from."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config import Deployment, Ledger, PriceOverride, Prices, Provider
from proxy.exchange import Attempt, Caller, Exchange, Hold, OwnKey, Usage
from proxy.metering import tokens
from proxy.metering.journal import Journal, MeteringUnavailable
from proxy.metering.meter import MAX_COST_NANO_USD, Meter
from proxy.metering.prices import PriceBook
from proxy.metering.segments import DISPATCH, PROGRESS, SETTLE, Position, read_records
from proxy.metering.tokens import MAX_BYTES_ON_LOOP, Tokenizer
from proxy.storage.ledger import LedgerRow, decode_row

PRICES = PriceBook(
    Prices(models={"p/m": PriceOverride(input_pico_usd=3_000, output_pico_usd=10_000, request_nano_usd=100)})
)
TEXT = "The quick brown fox jumps over the lazy dog. " * 20


class Bench:
    """A meter over a real journal, and what it told."""

    def __init__(self, folder: Path) -> None:
        self.journal = Journal(folder, Ledger(segment_bytes=1_000_000))
        self.journal.open()
        self.offered: list[tuple[LedgerRow, Position | None]] = []
        self.settled: list[int] = []
        self.closed: list[Exchange] = []
        self.tokenizer = Tokenizer()
        self.now_ns = 5_000_000_000
        self.meter = Meter(
            self.journal,
            PRICES,
            offer=lambda record, position, charge: self.offered.append((decode_row(record), position)),
            on_settled=[lambda _, attempt: self.settled.append(attempt.number)],
            on_closed=[self.closed.append],
            tokenizer=self.tokenizer,
            clock_ns=lambda: self.now_ns,
        )

    def records(self) -> list[tuple[int, LedgerRow]]:
        path = self.journal.segment_path(1)
        return [(record.kind, decode_row(record.payload)) for record in read_records(path)]

    @property
    def row(self) -> LedgerRow:
        ((row, _),) = self.offered
        return row


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    yield made
    await made.journal.close()


def exchange(**fields: Any) -> Exchange:
    return Exchange(
        id=b"i" * 16, request_id="req_1", endpoint="/v1/chat/completions", started_at_ms=1_790_000_000_000,
        started_ns=1_000_000_000, model="m", **fields,
    )  # fmt: skip


def attempt(number: int = 1, **fields: Any) -> Attempt:
    deployment = Deployment(provider=Provider(name="p", api_base="http://127.0.0.1:9"), model="m")
    return Attempt(number, deployment, 2_000_000_000, **{"input_tokens_bound": 50, "output_tokens_bound": 20} | fields)


async def test_a_dispatch_is_in_the_journal_with_the_most_it_can_cost(bench: Bench) -> None:
    one = attempt(hold=Hold(900, ("b1",), (7,)))
    bench.meter.dispatch(exchange(stream=True), one)
    bench.meter.dispatch(exchange(), one)
    ((kind, row),) = bench.records()
    assert kind == DISPATCH
    assert one.dispatched
    assert (row.source, row.outcome, row.status, row.cost_nano_usd) == ("orphan", "gateway_internal", 0, 900)
    assert (row.input_tokens, row.output_tokens, row.budget_ids, row.budget_starts_ms) == (50, 20, ("b1",), (7,))
    unheld = attempt(2)
    bench.meter.dispatch(exchange(), unheld)
    assert bench.records()[1][1].cost_nano_usd == 50 * 3 + 20 * 10 + 100


async def test_every_column_of_a_row_is_in_its_place(bench: Bench) -> None:
    caller = Caller("k1", "team key", "sk-…", user_id="u1", team_id="t1")
    whole = exchange(caller=caller, stream=True)
    one = attempt(
        hold=Hold(900, ("b1", "b2"), (7, 8)),
        usage=Usage(*range(1, 12)),
        usage_raw=b'{"prompt_tokens":14}\xff',
        source="provider",
        status=201,
        first_event_ns=2_500_000_000,
        ended_ns=4_000_000_000,
        usage_suspect=True,
        service_tier="flex",
        own_key=OwnKey("o1", "mine", "user", "abcd"),
    )
    bench.meter.dispatch(whole, one)
    bench.meter.settle(whole, one)
    (_, dispatched), (_, settled) = bench.records()
    expected = LedgerRow(
        request_id=whole.id,
        attempt=1,
        started_at_ms=1_790_000_000_000,
        worker_id=bench.journal.worker_id.bytes,
        public_id="req_1",
        key_id="k1",
        key_name="team key",
        user_id="u1",
        team_id="t1",
        endpoint="/v1/chat/completions",
        model="m",
        deployment="p/m",
        provider="p",
        stream=True,
        status=201,
        outcome="ok",
        source="provider",
        input_tokens=1,
        cache_read_tokens=2,
        cache_write_5m_tokens=3,
        cache_write_1h_tokens=4,
        audio_input_tokens=5,
        output_tokens=6,
        reasoning_tokens=7,
        audio_output_tokens=8,
        cost_nano_usd=one.cost_nano_usd,
        price_state=one.price_state,
        price_source=one.price_source,
        usage_raw='{"prompt_tokens":14}\ufffd',
        usage_suspect=True,
        duration_ms=2_000,
        first_token_ms=500,
        budget_ids=("b1", "b2"),
        budget_starts_ms=(7, 8),
        image_input_tokens=9,
        image_output_tokens=10,
        searches=11,
        service_tier="flex",
        provider_key_id="o1",
    )
    assert settled == expected
    alike = LedgerRow.__struct_fields__[:14]
    assert [getattr(dispatched, name) for name in alike] == [getattr(settled, name) for name in alike]
    assert bench.meter.settled_total == 1


async def test_rows_name_the_caller_and_the_deployment_of_their_own_request(bench: Bench) -> None:
    for number, name in enumerate(("a", "b", "a"), 1):
        renamed = exchange(caller=Caller("k1", name, "sk-…"))
        bench.meter.dispatch(renamed, attempt(number))
    bench.meter.dispatch(exchange(), attempt(4))
    assert [(row.key_id, row.key_name) for _, row in bench.records()] == [
        ("k1", "a"),
        ("k1", "b"),
        ("k1", "a"),
        (None, ""),
    ]


async def test_a_settlement_has_the_providers_numbers_and_its_exact_price(bench: Bench) -> None:
    caller = Caller("k1", "team key", "sk-…", user_id="u1", team_id="t1")
    whole = exchange(caller=caller, stream=True)
    one = attempt(
        hold=Hold(900, ("b1",), (7,)),
        usage=Usage(input=10, cache_read=4, output=5, reasoning=2),
        usage_raw=b'{"prompt_tokens":14}\xff',
        source="provider",
        status=200,
        first_event_ns=2_500_000_000,
    )
    bench.meter.dispatch(whole, one)
    bench.meter.settle(whole, one)
    bench.meter.settle(whole, one)
    row = bench.row
    assert [kind for kind, _ in bench.records()] == [DISPATCH, SETTLE]
    assert bench.records()[1][1] == row
    assert bench.offered[0][1] == bench.journal.position
    assert row.cost_nano_usd == one.cost_nano_usd == 14 * 3 + 7 * 10 + 100
    assert (row.key_id, row.key_name, row.user_id, row.team_id) == ("k1", "team key", "u1", "t1")
    assert (row.source, row.outcome, row.price_state) == ("provider", "ok", "priced")
    assert PRICES.lines(row.price_source) == {
        "input": 3_000, "cache_read": 3_000, "cache_write_5m": 3_000, "cache_write_1h": 3_000, "output": 10_000,
        "reasoning": 10_000, "image_input": 3_000, "request": 100_000,
    }  # fmt: skip
    assert (row.input_tokens, row.cache_read_tokens, row.output_tokens, row.reasoning_tokens) == (10, 4, 5, 2)
    assert (row.duration_ms, row.first_token_ms) == (3000, 500)
    assert row.usage_raw == '{"prompt_tokens":14}�'
    assert (row.deployment, row.provider, row.stream) == ("p/m", "p", True)
    assert bench.settled == [1]
    assert bench.journal.open_dispatches == {}


async def test_a_long_stream_is_noted_as_far_as_it_has_come(bench: Bench) -> None:
    bench.tokenizer.load()
    whole, one = exchange(stream=True), attempt(hold=Hold(900, ("b1",), (7,)))
    bench.meter.progress(whole, one, None)
    assert bench.records() == []
    bench.meter.dispatch(whole, one)
    for words in ("one two three", " four five"):
        one.delivered_text.append(words)
        one.delivered_events += 1
        bench.meter.progress(whole, one, None)
    bench.meter.progress(whole, one, Usage(input=14, output=2))
    bench.meter.progress(whole, one, Usage())
    one.delivered_events = 9
    bench.meter.progress(whole, one, Usage(input=14))
    (_, *notes) = bench.records()
    assert [kind for kind, _ in notes] == [PROGRESS] * 5
    counted = [(row.source, row.input_tokens, row.output_tokens) for _, row in notes]
    assert counted == [("orphan", 50, 3), ("orphan", 50, 5), ("orphan", 14, 5), ("orphan", 50, 5), ("orphan", 14, 9)]
    assert notes[-1][1].cost_nano_usd == 14 * 3 + 9 * 10 + 100
    assert notes[-1][1].budget_ids == ("b1",)
    bench.meter.settle(whole, one)
    bench.meter.progress(whole, one, None)
    assert [kind for kind, _ in bench.records()][-1] == SETTLE


async def test_an_attempt_that_was_never_dispatched_has_no_row_and_is_still_told(bench: Bench) -> None:
    one = attempt(outcome="provider_unreachable", ended_ns=2_100_000_000)
    bench.meter.settle(exchange(), one)
    bench.meter.dispatch(exchange(), one)
    assert bench.records() == []
    assert bench.settled == [1]
    assert (one.outcome, one.cost_nano_usd, one.dispatched, one.ended_ns) == (
        "provider_unreachable", 0, False, 2_100_000_000,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "source", "counts", "cost"),
    [
        pytest.param({"status": 429, "outcome": "provider_rate_limited"}, "none", (0, 0), 0, id="refused"),
        pytest.param({"source": "ambiguous", "outcome": "provider_timeout"}, "ambiguous", (50, 0), 250, id="no answer"),
        pytest.param({"source": "ambiguous", "delivered_events": 3}, "counted", (50, 3), 280, id="cut before its end"),
        pytest.param({"status": 200}, "counted", (50, 0), 250, id="an answer without a word about usage"),
        pytest.param({"status": 200, "source": "drained"}, "counted", (50, 0), 250, id="drained, and nothing said"),
        pytest.param({"delivered_text": ["ab", "c"], "status": 200}, "counted", (50, 3), 280, id="text without usage"),
        pytest.param({"delivered_text": ["a"], "delivered_events": 9}, "counted", (50, 9), 340, id="more events"),
        pytest.param({"usage": Usage(input=5), "status": 200}, "provider", (5, 0), 115, id="a forgotten source"),
        pytest.param({"usage": Usage(input=5, output=1), "source": "drained"}, "drained", (5, 1), 125, id="drained"),
        pytest.param(
            {"usage": Usage(input=5, output=1), "source": "counted", "delivered_events": 8},
            "counted", (5, 8), 195, id="exact input, counted output",
        ),
        pytest.param(
            {"usage": Usage(input=5, output=30), "source": "counted", "delivered_events": 8},
            "counted", (5, 30), 415, id="the provider had counted further than we",
        ),
        pytest.param({"usage": Usage(), "usage_suspect": True, "status": 200}, "counted", (50, 0), 250, id="garbage"),
    ],
)  # fmt: skip
async def test_what_is_billed_when_usage_is_uncertain(
    bench: Bench, fields: dict[str, Any], source: str, counts: tuple[int, int], cost: int
) -> None:
    one = attempt(**fields)
    bench.meter.dispatch(exchange(), one)
    bench.meter.settle(exchange(), one)
    row = bench.row
    assert (row.source, (row.input_tokens, row.output_tokens), row.cost_nano_usd) == (source, counts, cost)
    assert one.usage is not None
    assert one.usage.completion == row.output_tokens


async def test_an_impossible_cost_is_bounded_and_suspect(bench: Bench) -> None:
    one = attempt(usage=Usage(input=10**15), source="provider")
    bench.meter.dispatch(exchange(), one)
    bench.meter.settle(exchange(), one)
    assert (bench.row.cost_nano_usd, bench.row.usage_suspect) == (MAX_COST_NANO_USD, True)


async def test_close_settles_what_is_open_once(bench: Bench) -> None:
    whole = exchange(attempts=[attempt(1, status=500, outcome="provider_error"), attempt(2, status=200), attempt(3)])
    for one in whole.attempts[:2]:
        bench.meter.dispatch(whole, one)
    bench.meter.settle(whole, whole.attempts[0])
    bench.meter.close(whole)
    bench.meter.close(whole)
    assert [(row.attempt, row.source) for row, _ in bench.offered] == [(1, "none"), (2, "counted")]
    assert bench.settled == [1, 2, 3]
    assert bench.closed == [whole]


async def test_a_listener_that_fails_keeps_nobody_else_from_being_told(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a listener's mistake")

    bench.meter.on_settled.insert(0, fail)
    bench.meter.on_closed.insert(0, fail)
    whole = exchange(attempts=[attempt()])
    bench.meter.close(whole)
    assert (bench.settled, bench.closed) == ([1], [whole])
    assert [record.message for record in caplog.records] == [
        "a settled attempt could not be told",
        "a closed exchange could not be told",
    ]


async def test_without_a_journal_nothing_is_dispatched_and_what_runs_is_settled(bench: Bench) -> None:
    running, late = attempt(1, usage=Usage(input=1), source="provider"), attempt(2)
    bench.meter.dispatch(exchange(), running)
    bench.journal.failing = True
    with pytest.raises(MeteringUnavailable):
        bench.meter.dispatch(exchange(), late)
    bench.meter.settle(exchange(), running)
    assert (late.dispatched, running.settled) == (False, True)
    assert bench.offered[0][1] is None
    assert bench.journal.kept_in_memory == 1


async def test_long_text_is_counted_exactly_in_a_thread_if_there_is_time(bench: Bench) -> None:
    long_text = TEXT * 10
    counted, hurried = (
        attempt(1, delivered_text=[long_text], status=200),
        attempt(2, delivered_text=[long_text], status=200),
    )
    for one in (counted, hurried):
        bench.meter.dispatch(exchange(), one)
    await bench.meter.count(counted)
    assert counted.source == "counted"
    bench.meter.settle(exchange(), counted)
    bench.meter.settle(exchange(), hurried)
    exact, bound = (row.output_tokens for row, _ in bench.offered)
    assert exact == 2001
    assert bound == len(long_text)
    await bench.meter.count(counted)
    reported = attempt(3, usage=Usage(output=1), source="provider", delivered_text=["abc"])
    await bench.meter.count(reported)
    assert (reported.usage, reported.source) == (Usage(output=1), "provider")


async def test_a_count_that_comes_after_the_settlement_changes_nothing(bench: Bench) -> None:
    one = attempt(delivered_text=["abc"], status=200)
    bench.meter.dispatch(exchange(), one)
    counting = asyncio.ensure_future(bench.meter.count(one))
    await asyncio.sleep(0)
    bench.meter.settle(exchange(), one)
    before = msgspec.structs.astuple(one)
    await counting
    assert msgspec.structs.astuple(one) == before


async def test_what_was_sent_is_counted_where_an_answer_has_no_text(bench: Bench) -> None:
    texts, numbers, late = attempt(1, status=200), attempt(2, status=200), attempt(3, status=200)
    for one in (texts, numbers, late):
        bench.meter.dispatch(exchange(), one)
    await bench.meter.count_input(texts, TEXT, 0)
    await bench.meter.count_input(numbers, "", 7)
    bench.meter.settle(exchange(), texts)
    bench.meter.settle(exchange(), numbers)
    counting = asyncio.ensure_future(bench.meter.count_input(late, TEXT, 0))
    await asyncio.sleep(0)
    bench.meter.settle(exchange(), late)
    before = msgspec.structs.astuple(late)
    await counting
    assert msgspec.structs.astuple(late) == before
    counted = [(row.input_tokens, row.output_tokens, row.source) for row, _ in bench.offered]
    assert counted[:2] == [(await LOADED.count_exactly(TEXT), 0, "counted"), (7, 0, "counted")]


def test_counts_are_those_of_o200k() -> None:
    tokenizer = Tokenizer()
    assert not tokenizer.loaded
    assert tokenizer.count("") == 0
    assert not tokenizer.loaded
    tokenizer.load_soon().join()
    tokenizer.load()
    assert tokenizer.loaded
    assert [
        tokenizer.count(text) for text in ("antidisestablishmentarianism", "お誕生日おめでとう", "<|endoftext|>")
    ] == [6, 8, 7]
    assert tokenizer.count("a " * MAX_BYTES_ON_LOOP) == 2 * MAX_BYTES_ON_LOOP


LOADED = Tokenizer()
LOADED.load()


async def test_an_answer_of_nothing_but_spaces_is_counted_however_long_it_is() -> None:
    assert 0 < await LOADED.count_exactly(" " * 1_200_000) < 20_000
    assert 200_001 <= await LOADED.count_exactly("a b " * 100_000) <= 200_001 + 3


@given(st.text())
def test_no_text_has_more_tokens_than_the_bound(text: str) -> None:
    assert LOADED._encoding is not None
    exact = len(LOADED._encoding.encode_ordinary(text))
    assert exact <= LOADED.count(text) <= exact or len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES_ON_LOOP
    assert exact <= len(text.encode("utf-8", "surrogatepass"))


async def test_without_a_vocabulary_bytes_stand_in(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tokens, "ENCODING", "no_such_vocabulary")
    tokenizer = Tokenizer()
    assert await tokenizer.count_exactly("häß") == 5
    assert tokenizer.count("häß") == 5
    assert "could not be loaded" in caplog.text


def test_the_operators_own_vocabulary_folder_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "/theirs")
    Tokenizer().load()
    assert os.environ["TIKTOKEN_CACHE_DIR"] == "/theirs"
