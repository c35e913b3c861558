"""Prices are integers, agree with genai-prices to the nano-dollar, and are unknown rather than wrong."""

from __future__ import annotations

import gzip
import random
import runpy
import sys
from datetime import UTC, datetime, time
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import genai_prices
import msgspec
import pytest
from genai_prices import types
from genai_prices.data import providers
from hypothesis import given
from hypothesis import strategies as st

from proxy.config import Deployment, PriceOverride, Prices, Provider
from proxy.exchange import Usage
from proxy.metering import build_prices
from proxy.metering.price_lines import MAX_SOURCE_CHARS, Condition, Entry, Line, entry_at
from proxy.metering.prices import MAX_REMEMBERED, TABLE, ListedModel, PriceBook, Table, matches

BOOK = PriceBook()
NOON_MS = int(datetime(2026, 11, 20, 12, tzinfo=UTC).timestamp() * 1000)

FREE_MODEL = next(m.id for p in providers if p.id == "openrouter" for m in p.models if m.id.endswith(":free"))


def deployment(name: str, model: str, *, api: str = "openai", api_base: str = "http://127.0.0.1:9/v1") -> Deployment:
    return Deployment(provider=Provider(name=name, api=api, api_base=api_base), model=model)


def at(*moment: int) -> int:
    return int(datetime(*moment, tzinfo=UTC).timestamp() * 1000)  # type: ignore[misc, arg-type]


def test_a_deployment_costs_what_the_model_behind_it_costs() -> None:
    provider = Provider(name="azure-eu", api="azure", api_base="https://eu.azure.example")
    usage = Usage(input=1000, cache_read=500, output=100)
    ours = Deployment(provider=provider, model="our-mini", base_model="GPT-5-mini")
    named = Deployment(provider=provider, model="gpt-5-mini")
    nameless = Deployment(provider=provider, model="our-mini")
    assert BOOK.cost(ours, usage, NOON_MS) == BOOK.cost(named, usage, NOON_MS)
    assert BOOK.cost(ours, usage, NOON_MS).state == "priced"
    assert BOOK.cost(nameless, usage, NOON_MS).state == "unknown"
    assert BOOK.max_output_tokens(ours) == BOOK.max_output_tokens(named)


@pytest.mark.parametrize(("api", "model"), [("mistral", "mistral-large-latest"), ("cohere", "command-a-03-2025")])
def test_an_api_with_one_owner_is_priced_as_theirs(api: str, model: str) -> None:
    own = deployment("ours", model, api=api, api_base="http://127.0.0.1:9")
    assert BOOK.cost(own, Usage(input=1000), NOON_MS).state == "priced"


TIERS = {
    "": None,
    "priority": {"service_tier": "priority"},
    "flex": {"service_tier": "flex"},
    "batch": {"processing": "batch"},
}


def values_of(model: types.ModelInfo) -> list[tuple[str, Any]]:
    listed = model.prices if isinstance(model.prices, list) else [types.ConditionalPrice(prices=model.prices)]
    sets = [entry.prices for entry in listed] + [variant.prices for variant in model.price_variants or ()]
    return [(key, value) for prices in sets for key, value in vars(prices).items() if value is not None]


def keys_of(model: types.ModelInfo) -> set[str]:
    return {key for key, _ in values_of(model)}


def token_models() -> list[tuple[types.Provider, types.ModelInfo]]:
    """Models whose answers are priced by what our buckets can say."""
    ours = {*build_prices.BUCKETS, "requests_kcount"}
    harmless = {"storage_searches_kcount", "output_citation_mtok"}
    return [
        (provider, model)
        for provider in providers
        for model in provider.models
        if {"input_mtok", "output_mtok"} <= keys_of(model) <= ours | harmless
        and provider.find_model(model.id) is model
        and provider.id != "openai-decisions"
    ]


def random_usage(dice: random.Random, keys: set[str]) -> Usage:
    """In the buckets that the model prices, and in those that the rules price."""

    def some(*needed: str) -> int:
        if not keys.issuperset(needed):
            return 0
        return dice.choice([0, 1, dice.randrange(100), dice.randrange(5_000), dice.randrange(400_000)])

    return Usage(
        input=some(),
        cache_read=some(),
        cache_write_5m=some(),
        cache_write_1h=some("cache_write_1h_mtok") if "cache_write_mtok" in keys else some(),
        audio_input=some("input_audio_mtok"),
        output=some(),
        reasoning=some(),
        audio_output=some("output_audio_mtok"),
        image_input=some(),
        image_output=some("output_image_mtok"),
        searches=some("web_searches_kcount") % 50,
    )


def as_oracle(usage: Usage, keys: set[str]) -> genai_prices.Usage:
    said: dict[str, Any] = {
        "input_tokens": usage.prompt,
        "output_tokens": usage.completion,
        "cache_read_tokens": usage.cache_read,
        "cache_write_tokens": usage.cache_write_5m + usage.cache_write_1h,
        "cache_write_1h_tokens": usage.cache_write_1h,
        "output_reasoning_tokens": usage.reasoning,
        "web_searches": usage.searches,
    }
    apart = {
        "input_audio": usage.audio_input,
        "output_audio": usage.audio_output,
        "input_image": usage.image_input,
        "output_image": usage.image_output,
    }
    said |= {f"{name}_tokens": count for name, count in apart.items() if f"{name}_mtok" in keys}
    return genai_prices.Usage(**said)


def test_five_thousand_costs_agree_with_genai_prices_within_a_nano_dollar() -> None:
    dice = random.Random(20261123)
    models = token_models()
    assert len(models) > 1500
    special = [pair for pair in models if pair[1].price_variants or keys_of(pair[1]) & APART]
    assert len(special) > 80
    seen = dict.fromkeys(TIERS, 0)
    for provider, model in [*dice.sample(models, 1300), *dice.choices(special, k=1200)]:
        mine = deployment(provider.id, model.id)
        tiers = [tier for tier in BOOK.current_lines(mine) if tier in TIERS]
        for _ in range(2):
            tier = dice.choice(tiers)
            month = 11 if tier and dice.random() < 0.5 else dice.randrange(1, 12)
            moment = datetime(2026, month, dice.randrange(1, 23), dice.randrange(24), 30, tzinfo=UTC)
            prices = vars(model.get_prices(moment, TIERS[tier]))
            keys = {key for key, value in prices.items() if value is not None}
            usage = random_usage(dice, keys)
            theirs = genai_prices.calc_price(
                as_oracle(usage, keys),
                model.id,
                provider_id=provider.id,
                genai_request_timestamp=moment,
                price_context=TIERS[tier],
            ).total_price
            got = BOOK.cost(mine, usage, int(moment.timestamp() * 1000), tier)
            # A few prices are a float's rounding error beyond a pico-dollar; over many tokens that can show.
            slack = 1 + sum(msgspec.structs.astuple(usage)) // 2000 if has_odd_price(model) else 1
            assert got.state == ("free" if theirs == 0 and got.nano_usd == 0 else "priced") or theirs == 0
            assert abs(Decimal(got.nano_usd) - theirs * 10**9) <= slack, (provider.id, model.id, usage, tier)
            seen[tier] += 1
    assert sum(seen.values()) == 5000
    assert min(seen.values()) > 100, seen


APART = {"input_audio_mtok", "output_audio_mtok", "input_image_mtok", "output_image_mtok"}


def has_odd_price(model: types.ModelInfo) -> bool:
    values = [value for _, value in values_of(model)]
    plain = [value for value in values if isinstance(value, Decimal)]
    tiered = [
        price
        for value in values
        if isinstance(value, types.TieredPrices)
        for price in (value.base, *(tier.price for tier in value.tiers))
    ]
    return any(value * 1_000_000 % 1 for value in plain + tiered)


@pytest.mark.parametrize(
    ("where", "model", "usage", "dollars"),
    [
        ("openai", "gpt-5", Usage(input=1_000_000, output=1_000_000), "11.25"),
        ("openai", "gpt-5-2025-08-07", Usage(cache_read=1_000_000), "0.125"),
        ("openai", "gpt-5", Usage(reasoning=1_000_000), "10"),
        ("anthropic", "claude-sonnet-4-5", Usage(cache_write_5m=1_000_000), "7.5"),
        ("anthropic", "claude-sonnet-4-5", Usage(cache_write_5m=100_000), "0.375"),
        ("anthropic", "claude-sonnet-4-5", Usage(cache_write_1h=100_000), "0.6"),
        ("google", "gemini-2.5-pro", Usage(input=200_000), "0.25"),
        ("google", "gemini-2.5-pro", Usage(input=200_001), "0.5000025"),
        ("anthropic", "claude-sonnet-4-5", Usage(searches=3), "0.03"),
        ("openai", "gpt-5", Usage(image_input=1_000_000), "1.25"),
    ],
)
def test_prices_that_people_know(where: str, model: str, usage: Usage, dollars: str) -> None:
    price = BOOK.cost(deployment(where, model), usage, NOON_MS)
    assert (price.state, price.nano_usd) == ("priced", int(Decimal(dollars) * 10**9))
    assert price.source.startswith("genai-prices 0.")


def test_half_a_nano_dollar_is_rounded_up_once() -> None:
    model = deployment("openai", "gpt-5-nano")
    per_token = Decimal("0.05") / 10**6
    for tokens in range(1, 50):
        exact = (per_token * tokens * 10**9).quantize(Decimal(1), ROUND_HALF_UP)
        assert BOOK.cost(model, Usage(input=tokens), NOON_MS).nano_usd == int(exact)


@pytest.mark.parametrize(
    ("name", "api", "api_base", "model", "state"),
    [
        ("azure-eu", "openai", "https://mine.openai.azure.com/openai/v1", "gpt-4o", "priced"),
        ("xai", "openai", "http://127.0.0.1:1", "grok-3", "priced"),
        ("company", "anthropic", "http://10.0.0.5", "claude-sonnet-4-5", "priced"),
        ("company", "gemini", "http://10.0.0.5", "gemini-2.5-pro", "priced"),
        ("bedrock", "bedrock", "http://10.0.0.5", "us.anthropic.claude-3-haiku-20240307-v1:0", "priced"),
        ("openai", "openai", "http://127.0.0.1:1", "gpt-5.2-20251211", "priced"),
        ("gpu", "openai", "http://10.0.0.7/v1", "gpt-5", "unknown"),
        ("openai", "openai", "https://api.openai.com/v1", "no-such-model", "unknown"),
        ("openai", "openai", "https://api.openai.com/v1", "whisper-1", "unknown"),
        ("openrouter", "openai", "https://openrouter.ai/api/v1", FREE_MODEL, "free"),
        ("sim", "openai", "http://sim.invalid", "echo", "free"),
        ("test", "sim", "http://sim.invalid", "echo", "free"),
    ],
)
def test_a_provider_is_found_by_name_address_or_an_api_with_one_owner(
    name: str, api: str, api_base: str, model: str, state: str
) -> None:
    where = deployment(name, model, api=api, api_base=api_base)
    price = BOOK.cost(where, Usage(input=1000, output=10), NOON_MS)
    assert price.state == state
    assert (price.nano_usd > 0) == (state == "priced")


def test_overrides_come_first_and_a_missing_price_is_unknown() -> None:
    book = PriceBook(
        Prices(
            models={
                "openai/gpt-5": PriceOverride(input_pico_usd=3_000, output_pico_usd=7_000, cached_input_pico_usd=1_000),
                "gpu/*": PriceOverride(input_pico_usd=0, output_pico_usd=0),
                "half/*": PriceOverride(input_pico_usd=2_000),
                "flat/*": PriceOverride(input_pico_usd=0, output_pico_usd=0, request_nano_usd=50),
                "none/*": PriceOverride(),
                "sim/echo": PriceOverride(
                    input_pico_usd=1_000,
                    output_pico_usd=1_000,
                    cache_write_pico_usd=4_000,
                    cache_write_1h_pico_usd=5_000,
                ),
            }
        )
    )
    usage = Usage(input=10, cache_read=10, cache_write_1h=1, output=10)
    results = {
        name: book.cost(deployment(name, model), usage, NOON_MS)[:2]
        for name, model in [
            ("openai", "gpt-5"),
            ("gpu", "x"),
            ("half", "x"),
            ("flat", "x"),
            ("none", "x"),
            ("sim", "echo"),
        ]
    }
    assert results == {
        "openai": ("priced", 30 + 10 + 3 + 70),
        "gpu": ("free", 0),
        "half": ("unknown", 42),
        "flat": ("priced", 50),
        "none": ("unknown", 0),
        "sim": ("priced", 10 + 10 + 5 + 10),
    }
    assert book.cost(deployment("half", "x"), Usage(input=4), NOON_MS)[:2] == ("priced", 8)
    assert book.cost(deployment("gpu", "x"), usage, NOON_MS).source.startswith("config.yaml gpu/* #")
    assert book.ceiling(deployment("none", "x"), 5, 5).state == "unknown"
    assert book.ceiling(deployment("half", "x"), 5, 5).state == "unknown"
    assert book.ceiling(deployment("half", "x"), 5, 0)[:2] == ("priced", 10)
    assert book.ceiling(deployment("gpu", "x"), 5, 5)[:2] == ("free", 0)


_counts = st.integers(0, 300_000)


@given(
    st.sampled_from(
        [
            ("openai", "gpt-5"),
            ("google", "gemini-2.5-pro"),
            ("anthropic", "claude-sonnet-4-5"),
            ("deepseek", "deepseek-chat"),
        ]
    ),
    st.builds(Usage, _counts, _counts, _counts, _counts, st.just(0), _counts, _counts, st.just(0), _counts, st.just(0)),
    st.integers(0, 1000),
    st.integers(0, 1000),
    st.integers(NOON_MS, NOON_MS + 86_400_000),
    st.sampled_from([("", ""), ("auto", ""), ("auto", "priority"), ("priority", "priority"), ("flex", "flex")]),
)
def test_no_answer_costs_more_than_its_ceiling(
    model: tuple[str, str], usage: Usage, more_input: int, more_output: int, at_ms: int, tiers: tuple[str, str]
) -> None:
    book = PriceBook.__new__(PriceBook)
    book.__dict__.update(BOOK.__dict__, _clock=lambda: NOON_MS / 1000)
    where = deployment(*model)
    asked, served = tiers
    if served not in book.current_lines(where):
        served = ""
    ceiling = book.ceiling(where, usage.prompt + more_input, usage.completion + more_output, asked)
    cost = book.cost(where, usage, at_ms, served)
    assert cost.state == "priced"
    if ceiling.state == "unknown":
        assert asked not in ("", "auto", "flex") and asked not in book.current_lines(where)
        return
    assert 0 <= cost.nano_usd <= ceiling.nano_usd


def test_prices_follow_dates_and_hours() -> None:
    model = deployment("deepseek", "deepseek-v4-pro")
    usage = Usage(input=1_000_000)
    by_hour = [BOOK.cost(model, usage, at(2026, 11, 20, hour, 30)).nano_usd for hour in range(24)]
    expected = [
        int(
            genai_prices.calc_price(
                genai_prices.Usage(input_tokens=1_000_000),
                "deepseek-v4-pro",
                provider_id="deepseek",
                genai_request_timestamp=datetime(2026, 11, 20, hour, 30, tzinfo=UTC),
            ).total_price
            * 10**9
        )
        for hour in range(24)
    ]
    assert by_hour == expected
    assert len(set(by_hour)) > 1
    assert (
        BOOK.cost(deployment("openai", "o3"), Usage(input=1000), at(2025, 1, 1)).nano_usd
        != BOOK.cost(deployment("openai", "o3"), Usage(input=1000), NOON_MS).nano_usd
    )


def test_conditions_hold_around_midnight_and_the_first_price_stands_in_before_all_dates() -> None:
    night = Condition("daily", 23 * 3_600_000, 3_600_000)
    assert [night.holds(at(2026, 1, 1, hour, 30)) for hour in (22, 23, 0, 1)] == [False, True, True, False]
    later, latest = Entry(Condition("from", NOON_MS), ()), Entry(Condition("from", NOON_MS + 1), ())
    assert entry_at((later, latest), NOON_MS - 1) is later
    assert entry_at((later, latest), NOON_MS + 1) is latest


def test_limits_of_models_are_known_where_the_table_knows_them() -> None:
    sonnet = deployment("anthropic", "claude-sonnet-4-5")
    assert (BOOK.max_output_tokens(sonnet), BOOK.context_window(sonnet)) == (64_000, 200_000)
    fresh = PriceBook()
    assert fresh.context_window(deployment("openai", "gpt-5")) == 400_000
    assert fresh.max_output_tokens(deployment("gpu", "x")) is None
    assert fresh.context_window(deployment("gpu", "x")) is None


def test_what_is_remembered_is_bounded() -> None:
    book = PriceBook()
    kept = [deployment("gpu", f"m{number}") for number in range(MAX_REMEMBERED + 10)]
    assert {book.cost(one, Usage(input=1), NOON_MS).state for one in kept} == {"unknown"}
    assert len(book._known) <= MAX_REMEMBERED


@pytest.mark.parametrize(
    ("clause", "text", "expected"),
    [
        (["equals", "GPT-5"], "gpt-5", True),
        (["starts_with", "GPT"], "gpt-5", True),
        (["ends_with", "-Mini"], "gpt-5-mini", True),
        (["contains", "X"], "gpt", False),
        (["regex", "^g.t$"], "gpt", True),
        (["or", [["equals", "a"], ["equals", "b"]]], "b", True),
        (["and", [["contains", "a"], ["contains", "b"]]], "a", False),
    ],
)
def test_clauses(clause: list[Any], text: str, expected: bool) -> None:
    assert matches(clause, text) is expected


def test_the_table_is_what_the_builder_makes() -> None:
    table = msgspec.json.decode(gzip.decompress(TABLE.read_bytes()))
    assert build_prices.build(table["date"]) == TABLE.read_bytes()


def test_the_builder_runs_as_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["build_prices", str(tmp_path / "prices.json.gz")])
    runpy.run_path(build_prices.__file__, run_name="__main__")
    table = msgspec.json.decode(gzip.decompress((tmp_path / "prices.json.gz").read_bytes()))
    assert table["date"] == datetime.now(UTC).date().isoformat()


def test_the_models_of_a_provider_are_known_by_name() -> None:
    assert "gpt-5" in BOOK.models(deployment("openai", "any").provider)
    assert BOOK.models(deployment("gpu", "any").provider) == ()


def test_a_warm_price_looks_nothing_up() -> None:
    book = PriceBook()
    model = deployment("openai", "gpt-5")
    first = book.cost(model, Usage(input=1), NOON_MS)
    book._table = book._overrides = None  # type: ignore[assignment]
    book._listings.clear()
    assert book.cost(model, Usage(input=1), NOON_MS) == first


def test_every_line_of_the_table_has_a_name_of_its_own() -> None:
    table = msgspec.json.decode(gzip.decompress(TABLE.read_bytes()), type=Table)
    book = PriceBook()
    rates: dict[str, Line] = {}
    for place, provider in table.providers.items():
        for model in msgspec.json.decode(provider.models, type=tuple[ListedModel, ...]):
            for entries in book._table_tiers(place, model).values():
                for line in (line for entry in entries for line in entry.lines):
                    assert line.source not in rates, line.source
                    assert 1 <= len(line.source) <= MAX_SOURCE_CHARS
                    rates[line.source] = line
    assert len(rates) > 2500
    assert any("anthropic/claude-sonnet-4-5 >200000 batch from 2026-10-14" in source for source in rates)


def test_prices_by_the_hour_and_by_the_service_tier_at_once_stop_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our lines cannot say both; nobody lists such a model yet."""
    hours = types.TimeOfDateConstraint(start_time=time(1, tzinfo=UTC), end_time=time(2, tzinfo=UTC))
    listed = SimpleNamespace(constraint=hours, prices=None)
    model = SimpleNamespace(id="m", price_variants=[SimpleNamespace(when={"service_tier": "flex"}, constraint=None)])
    monkeypatch.setattr(build_prices, "_listed", lambda _: [listed])
    with pytest.raises(ValueError, match="m: prices by the hour"):
        build_prices.flatten_service_tiers(cast(Any, model))
