"""`strata prices` says what everything costs and who says so, and `strata check` what nobody knows the price of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from proxy.cli import main
from proxy.config.load import examine
from proxy.metering.prices import PriceBook
from proxy.metering.unpriced import unpriced

ENVIRON = {"OPENAI_API_KEY": "sk-x", "ANTHROPIC_API_KEY": "sk-y"}
FILE = """
providers:
  openai:
  anthropic:
  gpu: {type: openai_compatible, api_base: 'http://127.0.0.1:9/v1'}
  lab: {type: openai_compatible, api_base: 'http://127.0.0.1:9/v1'}
models:
  fast: [openai/gpt-5-mini, gpu/llama]
  smart: anthropic/claude-sonnet-4-5
  mine: lab/one
  any/*: gpu/*
  openai/*: openai/*
prices:
  models:
    lab/*: {input: 0, output: 0, request: 0.000000001}
"""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(FILE)

    def call(*words: str) -> tuple[int, str, str]:
        code = main(words, ENVIRON)
        told = capsys.readouterr()
        return code, told.out, told.err

    return call


def listed(run: Run, *words: str) -> dict[str, Any]:
    code, out, _ = run("prices", *words, "--json")
    assert code == 0
    return {one["deployment"]: one for one in msgspec.json.decode(out)}


def test_each_routed_deployment_is_listed_with_its_price_and_its_source(run: Run) -> None:
    code, out, _ = run("prices")
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split() == ["DEPLOYMENT", "INPUT", "CACHED", "WRITTEN", "OUTPUT", "BESIDES", "SOURCE"]
    sonnet = next(line for line in lines if line.startswith("anthropic/claude-sonnet-4-5"))
    assert sonnet.split()[1:5] == ["3", "0.3", "3.75", "15"]
    assert "cache_write_1h 6, 1000 searches 10" in sonnet
    date = PriceBook().date
    assert f"({date}) anthropic/claude-sonnet-4-5" in sonnet
    longer = lines[lines.index(sonnet) + 1]
    assert longer.split()[:4] == ["6", "0.6", "7.5", "22.5"] and longer.endswith(">200000")
    assert next(line for line in lines if line.startswith("gpu/llama")).split()[1:] == ["unknown", "NO", "PRICE"]
    assert "request 0.000000001" in next(line for line in lines if line.startswith("lab/one"))
    assert next(line for line in lines if line.startswith("openai/*")).split()[1:3] == ["by", "model"]
    assert next(line for line in lines if line.startswith("sim/echo")).split()[1:] == [
        "0",
        "0",
        "0",
        "0",
        "-",
        "simulated",
    ]
    assert lines[-1].startswith("2 deployments have no price")


def test_the_listing_for_machines_has_every_bucket_as_an_exact_decimal(run: Run) -> None:
    found = listed(run)
    line = found["openai/gpt-5-mini"]["lines"][0]
    assert line["usd_per_million_tokens"] == {
        "input": "0.25", "cache_read": "0.025", "cache_write_5m": "0.25", "cache_write_1h": "0.25", "output": "2",
        "reasoning": "2", "image_input": "0.25",
    }  # fmt: skip
    assert (line["service_tier"], line["above_tokens"], line["usd_per_request"]) == ("", 0, "0")
    assert line["date"] == PriceBook().date and line["date"] in line["source"]
    states = {name: one["state"] for name, one in found.items()}
    assert states["gpu/llama"] == states["gpu/*"] == "unknown"
    assert (states["openai/*"], states["sim/echo"], states["lab/one"]) == ("by_model", "free", "priced")
    assert found["gpu/llama"]["models"] == ["fast"]


@pytest.mark.parametrize(
    ("words", "deployments"),
    [
        (("fast",), {"openai/gpt-5-mini", "gpu/llama"}),
        (("smart", "lab/one"), {"anthropic/claude-sonnet-4-5", "lab/one"}),
        (("openai/gpt-5",), {"openai/gpt-5"}),
    ],
)
def test_only_what_is_asked_for_is_listed(run: Run, words: tuple[str, ...], deployments: set[str]) -> None:
    found = listed(run, *words)
    assert set(found) == deployments
    tiers = {line["service_tier"] for one in found.values() for line in one["lines"]}
    assert ("priority" in tiers) == any(name.startswith("openai/") for name in deployments)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("prices", "fst"), 'no model or deployment is called "fst". Did you mean "fast"?'),
        (("prices", "nobody/x"), 'no model or deployment is called "nobody/x".'),
        (("prices", "--since", "2026-11-01"), "--since belongs to: strata prices rerate"),
        (("prices", "--dry-run"), "--dry-run belongs to: strata prices rerate"),
        (("prices", "rerate"), "--since is missing"),
        (
            ("prices", "rerate", "--since", "monday"),
            "--since must be a day like 2026-12-01 (it begins at midnight, UTC), ",
        ),
        (("prices", "rerate", "--since", "2026-11-02", "--until", "2026-11-02"), "--until must be after --since."),
        (("prices", "rerate", "fast", "--since", "2026-11-02"), '"fast": name a model with --model.'),
    ],
)
def test_wrong_words_are_answered_with_the_fix(run: Run, words: tuple[str, ...], message: str) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err.startswith(message) and "\nFix: " in err


def test_check_warns_of_each_deployment_without_a_price(run: Run) -> None:
    code, out, _ = run("check")
    assert code == 0
    assert "models.fast: gpu/llama has no price: its calls cost an unknown amount" in out
    assert "models.any/*: gpu/* has no price" in out
    assert out.count("has no price") == 2
    assert run("check", "--strict")[0] == 2
    Path("config.yaml").write_text(FILE.replace("prices:\n", "prices:\n  on_missing: block\n"))
    assert "gpu/llama has no price: nobody can use it (prices.on_missing is block)" in run("check")[1]
    Path("config.yaml").write_text(FILE + "    gpu/*: {input: 0, output: 0}\n")
    assert run("check", "--strict")[0] == 0


def test_what_is_simulated_is_never_without_a_price(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config, _ = examine(None, {})
    assert config is not None
    assert list(unpriced(config, PriceBook(config.prices))) == []
