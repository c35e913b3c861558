"""Each price names its line, and with the line and the row anybody can calculate it again."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config import Deployment, PriceList, PriceOverride, Prices, PriceTier, Provider
from proxy.exchange import Usage
from proxy.metering.price_lines import (
    BUCKETS,
    COLUMNS,
    MAX_SOURCE_CHARS,
    Condition,
    described,
    make_line,
    price_of,
    recalculate,
    source_of,
    usage_in,
)
from proxy.metering.prices import PriceBook
from proxy.metering.usage import STANDARD_TIERS
from tests.test_storage_sql import ledger_row

NOON_MS = int(datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp() * 1000)
FIRST_MS = int(datetime(2026, 12, 1, tzinfo=UTC).timestamp() * 1000)
MILLION = 1_000_000


def deployment(name: str, model: str) -> Deployment:
    return Deployment(provider=Provider(name=name, api_base="http://127.0.0.1:9/v1"), model=model)


def book(**models: PriceOverride) -> PriceBook:
    return PriceBook(Prices(models={name.replace("__", "/"): one for name, one in models.items()}))


_rates = st.tuples(*[st.none() | st.integers(0, 10**8) for _ in BUCKETS])
_counts = st.one_of(st.just(0), st.integers(0, 10**6))
_usages = st.builds(Usage, *[_counts] * len(BUCKETS))


@given(_rates, st.integers(0, 10**10), _usages)
def test_a_price_is_the_sum_of_its_buckets_or_says_that_it_is_not_known(
    rates: tuple[int | None, ...], request: int, usage: Usage
) -> None:
    line = make_line("x", 0, rates, request)
    price = price_of(line, usage)
    billed = [(c, r) for c, r in zip(msgspec.structs.astuple(usage), line.rates, strict=True) if c]
    pico = sum(count * rate for count, rate in billed if rate is not None) + request
    assert price.nano_usd == (pico + 500) // 1000
    assert (price.state == "unknown") == any(rate is None for _, rate in billed)
    assert price.state != "free" or price.nano_usd == 0


@given(_rates, st.integers(0, 10**10), _usages)
def test_a_row_can_be_calculated_again_from_its_line(rates: tuple[int | None, ...], request: int, usage: Usage) -> None:
    line = make_line("x", 0, rates, request)
    counts = {COLUMNS[bucket]: count for bucket, count in msgspec.structs.asdict(usage).items()}
    row = ledger_row(**counts, source="provider")
    assert usage_in(row) == usage
    assert recalculate(row, described(line)) == price_of(line, usage).nano_usd
    assert recalculate(ledger_row(**counts, source="none"), described(line)) == 0


RULES = [
    ("cache_read", "input"),
    ("cache_write_5m", "input"),
    ("cache_write_1h", "input"),
    ("reasoning", "output"),
    ("image_input", "input"),
]


@pytest.mark.parametrize(("bucket", "billed_as"), RULES)
def test_what_has_no_price_of_its_own_is_billed_by_a_written_rule(bucket: str, billed_as: str) -> None:
    rates = tuple({"input": 3, "output": 7}.get(name) for name in BUCKETS)
    lines = described(make_line("x", 0, rates))
    assert lines[bucket] == lines[billed_as]


@pytest.mark.parametrize("bucket", ["audio_input", "audio_output", "image_output", "searches"])
def test_without_a_rule_it_is_unknown_and_the_rest_is_counted(bucket: str) -> None:
    line = make_line("x", 0, tuple({"input": 3000, "output": 7000}.get(name) for name in BUCKETS))
    price = price_of(line, msgspec.structs.replace(Usage(input=10), **{bucket: 1}))
    assert price == ("unknown", 30, "x")
    assert bucket not in described(line)


def test_an_hours_cache_write_is_not_taken_for_a_short_one() -> None:
    rates = {"input": 3000, "cache_write_5m": 4000, "output": 7000}
    line = make_line("x", 0, tuple(rates.get(name) for name in BUCKETS))
    assert price_of(line, Usage(cache_write_5m=1))[:2] == ("priced", 4)
    assert price_of(line, Usage(cache_write_5m=1, cache_write_1h=9))[:2] == ("unknown", 4)


def test_a_free_model_is_free_in_all_its_tokens_but_not_in_its_searches() -> None:
    line = make_line("x", 0, tuple({"input": 0, "output": 0}.get(name) for name in BUCKETS))
    assert price_of(line, Usage(1, 1, 1, 1, 1, 1, 1, 1, 1, 1))[:2] == ("free", 0)
    assert price_of(line, Usage(searches=1)).state == "unknown"
    assert price_of(make_line("x", 0, line.rates, 5000), Usage())[:2] == ("priced", 5)


def test_a_source_names_book_model_length_tier_and_time() -> None:
    moment = Condition("from", FIRST_MS)
    assert source_of("t 1 (2026-11-22)", "openai/gpt-5", 272_000, "priority", moment) == (
        "t 1 (2026-11-22) openai/gpt-5 >272000 priority from 2026-12-01"
    )
    night = Condition("daily", 59_400_000, 1_800_000)
    assert source_of("t", "d/m", 0, "", night) == "t d/m daily 16:30:00-00:30:00"
    assert len(source_of("t" * 60, "m" * 999, 9, "p" * 32, night)) <= MAX_SOURCE_CHARS


def test_a_service_tier_has_its_own_price_and_one_without_is_unknown() -> None:
    prices = PriceBook()
    where, usage = deployment("openai", "gpt-5"), Usage(input=MILLION, output=MILLION)
    cost = {
        tier: prices.cost(where, usage, NOON_MS, tier)[:2]
        for tier in ("", "default", "priority", "flex", "batch", "turbo")
    }
    assert cost == {
        "": ("priced", 11_250_000_000),
        "default": ("priced", 11_250_000_000),
        "priority": ("priced", 22_500_000_000),
        "flex": ("priced", 5_625_000_000),
        "batch": ("priced", 5_625_000_000),
        "turbo": ("unknown", 11_250_000_000),
    }
    assert prices.cost(deployment("sim", "echo"), usage, NOON_MS, "priority")[:2] == ("free", 0)
    assert prices.cost(deployment("gpu", "x"), usage, NOON_MS, "priority") == ("unknown", 0, "")
    assert "default" in STANDARD_TIERS


@pytest.mark.parametrize(
    ("asked", "dollars"),
    [("", "11.25"), ("default", "11.25"), ("flex", "11.25"), ("priority", "22.5"), ("auto", "22.5"), ("turbo", None)],
)
def test_a_ceiling_is_of_the_dearest_tier_that_may_be_served(asked: str, dollars: str | None) -> None:
    prices = PriceBook(clock=lambda: NOON_MS / 1000)
    ceiling = prices.ceiling(deployment("openai", "gpt-5"), MILLION, MILLION, asked)
    if dollars is None:
        assert ceiling.state == "unknown"
    else:
        assert (ceiling.state, ceiling.nano_usd) == ("priced", int(float(dollars) * 10**9))
    assert prices.ceiling(deployment("sim", "x"), 5, 5, asked)[:2] == ("free", 0)
    # cheaper tiers never cost more, so that the standard price is a promise where they have none
    groq = prices.ceiling(deployment("anthropic", "claude-sonnet-4-5"), 1000, 0, "flex")
    assert groq.state == "priced"


RICH = PriceOverride(
    input_pico_usd=1_000,
    output_pico_usd=2_000,
    cached_input_pico_usd=500,
    request_nano_usd=7,
    tiers=(
        PriceTier(above_tokens=100, input_pico_usd=3_000),
        PriceTier(above_tokens=200, input_pico_usd=4_000, output_pico_usd=9_000),
    ),
    service_tiers={"priority": PriceList(input_pico_usd=10_000, output_pico_usd=20_000)},
)


@pytest.mark.parametrize(
    ("usage", "tier", "nano_usd"),
    [
        (Usage(input=100), "", 107),
        (Usage(input=101), "", 303 + 7),
        (Usage(input=100, cache_read=2, output=1), "", 300 + 1 + 2 + 7),
        (Usage(input=201, output=1), "", 804 + 9 + 7),
        (Usage(input=201, cache_read=1, output=1), "priority", 2010 + 10 + 20),
    ],
)
def test_an_override_has_lengths_and_service_tiers(usage: Usage, tier: str, nano_usd: int) -> None:
    assert book(gpu__x=RICH).cost(deployment("gpu", "x"), usage, NOON_MS, tier)[:2] == ("priced", nano_usd)


def test_an_override_may_begin_on_a_day() -> None:
    later = PriceOverride(
        input_pico_usd=1_000,
        from_ms=FIRST_MS,
        service_tiers={"turbo": PriceList(input_pico_usd=2_000)},
    )
    prices = book(**{"openai__gpt-5": later, "gpu__x": later})
    listed, own = deployment("openai", "gpt-5"), deployment("gpu", "x")
    usage = Usage(input=1000)

    def cost(where: Deployment, at_ms: int, tier: str = "") -> tuple[Any, ...]:
        return prices.cost(where, usage, at_ms, tier)[:2]

    before, after = FIRST_MS - 1, FIRST_MS
    assert (cost(listed, before), cost(listed, after)) == (("priced", 1_250_000), ("priced", 1_000))
    assert (cost(own, before), cost(own, after)) == (("unknown", 0), ("priced", 1_000))
    assert (cost(listed, before, "priority"), cost(listed, after, "priority")) == (
        ("priced", 2_500_000),
        ("unknown", 1_000),
    )
    assert (cost(own, before, "turbo"), cost(own, after, "turbo")) == (("unknown", 0), ("priced", 2_000))
    sources = [prices.cost(listed, usage, at_ms).source for at_ms in (before, after)]
    assert sources[0].startswith("genai-prices") and "from 2026-12-01 #" in sources[1]


def test_a_changed_override_is_another_line() -> None:
    where = deployment("gpu", "x")
    sources = {
        book(gpu__x=one).cost(where, Usage(input=1), NOON_MS).source
        for one in (
            PriceOverride(input_pico_usd=1),
            PriceOverride(input_pico_usd=2),
            PriceOverride(input_pico_usd=2, request_nano_usd=1),
        )
    }
    assert len(sources) == 3


def test_a_book_knows_the_lines_that_it_may_have_used() -> None:
    prices = PriceBook()
    source = prices.cost(deployment("openai", "gpt-5"), Usage(input=1), NOON_MS).source
    lines = prices.lines(source)
    assert lines is not None
    assert (lines["input"], lines["cache_read"], lines["output"]) == (1_250_000, 125_000, 10_000_000)
    assert (lines["searches"], lines["request"]) == (10_000_000_000, 0)
    assert prices.lines("another") is None
