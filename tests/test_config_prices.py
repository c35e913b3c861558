"""Prices of the file: kinds of token, lengths, service tiers, a first day; and what is wrong is said where it is."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from proxy.config import PriceList, PriceOverride, PriceTier
from tests.configs import OWN, good, look, said


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    yield


def prices(text: str) -> str:
    return f"{OWN}prices: {{models: {{gpu/x: {text}}}}}"


def test_every_key_has_its_field() -> None:
    config = good(
        OWN
        + """
prices:
  models:
    gpu/x:
      input: 1
      output: 2
      cached_input: 0.1
      cache_write: 1.25
      cache_write_1h: 2.5
      reasoning: 3
      audio_input: 4
      audio_output: 5
      image_input: 6
      image_output: 7
      search: 10
      request: 0.01
      from: 2026-12-01
      tiers:
        - {above: 400000, output: 9}
        - {above: 200000, input: 2}
      service_tiers:
        priority: {input: 8, output: 16, tiers: [{above: 5, input: 9}]}
"""
    )
    assert config.prices.models["gpu/x"] == PriceOverride(
        input_pico_usd=1_000_000,
        output_pico_usd=2_000_000,
        cached_input_pico_usd=100_000,
        cache_write_pico_usd=1_250_000,
        cache_write_1h_pico_usd=2_500_000,
        reasoning_pico_usd=3_000_000,
        audio_input_pico_usd=4_000_000,
        audio_output_pico_usd=5_000_000,
        image_input_pico_usd=6_000_000,
        image_output_pico_usd=7_000_000,
        search_pico_usd=10_000_000_000,
        request_nano_usd=10_000_000,
        from_ms=int(datetime(2026, 12, 1, tzinfo=UTC).timestamp() * 1000),
        tiers=(
            PriceTier(above_tokens=200_000, input_pico_usd=2_000_000),
            PriceTier(above_tokens=400_000, output_pico_usd=9_000_000),
        ),
        service_tiers={
            "priority": PriceList(
                input_pico_usd=8_000_000,
                output_pico_usd=16_000_000,
                tiers=(PriceTier(above_tokens=5, input_pico_usd=9_000_000),),
            )
        },
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{inpt: 1}", '2:27 error unknown key "inpt" in prices.models.gpu/x. Did you mean "input"?'),
        ("{audio: 1}", 'unknown key "audio" in prices.models.gpu/x.'),
        ("{input: cheap}", 'prices.models.gpu/x.input must be dollars like 5 or 0.25, not "cheap".'),
        ("{search: 0.0000000001}", "prices.models.gpu/x.search must be dollars per thousand in steps of 0.000000001"),
        (
            "{from: soon}",
            'prices.models.gpu/x.from must be a day like 2026-12-01 (it begins at midnight, UTC), not "so',
        ),
        ("{from: 2026-02-30}", "prices.models.gpu/x.from must be a day"),
        ("{from: []}", "prices.models.gpu/x.from must be a day like 2026-12-01"),
        ("{tiers: {above: 5}}", "prices.models.gpu/x.tiers must be a list like [{above: 200000, input: 2.50}], not a"),
        ("{tiers: [{input: 5}]}", "prices.models.gpu/x.tiers: a tier needs above, the prompt's tokens"),
        ("{tiers: [5]}", 'prices.models.gpu/x.tiers must be a map of key: value, not "5".'),
        ("{tiers: [{above: many, input: 5}]}", "prices.models.gpu/x.tiers.above must be a whole number from 1"),
        ("{tiers: [{above: 5}, {above: 5}]}", "prices.models.gpu/x.tiers: two tiers begin above 5 tokens."),
        ("{tiers: [{abov: 5}]}", 'unknown key "abov" in prices.models.gpu/x.tiers. Did you mean "above"?'),
        ("{service_tiers: [priority]}", "prices.models.gpu/x.service_tiers must be a map of key: value, not a list."),
        ("{service_tiers: {default: {input: 1}}}", "is the price without a service tier"),
        ("{service_tiers: {flex: {ouput: 1}}}", 'unknown key "ouput" in prices.models.gpu/x.service_tiers.flex. Did'),
        ("{service_tiers: {flex: {tiers: 5}}}", "prices.models.gpu/x.service_tiers.flex.tiers must be a list"),
        ("{service_tiers: {flex: {from: 2026-12-01}}}", 'unknown key "from" in prices.models.gpu/x.service_tiers.flex'),
    ],
)
def test_a_mistake_is_said_with_its_path_and_place(text: str, message: str) -> None:
    examined = look(prices(text))
    assert examined.config is None
    assert any(message in one for one in said(examined)), said(examined)
    assert all(one.startswith("2:") for one in said(examined))
