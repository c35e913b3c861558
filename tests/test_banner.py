"""What a person sees at the start."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.banner import MAX_LINES, banner
from proxy.config import Config
from proxy.config.load import load
from tests.configs import KEY, OWN, good


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "environ", "first_key", "shown", "hidden"),
    [
        ("", {}, "sk-strata-abc", ["sk-strata-abc", "openai/*      off", "set OPENAI_API_KEY"], ["2 h ago"]),
        ("", {"OPENAI_API_KEY": KEY}, None, ["OPENAI_API_KEY found", "3 keys, last used 2 h ago"], [KEY]),
        ("models: {a: anthropic/b}", {}, None, ["a             off", "ANTHROPIC_API_KEY is not set"], ["openai/*"]),
        (OWN + "models: {" + ", ".join(f"m{n}: gpu/x" for n in range(40)) + "}", {}, None, ["and 35 more"], ["m7 "]),
        ("server: {host: 0.0.0.0}", {}, None, ["http://127.0.0.1:4000/v1"], ["Reachable from this machine only"]),
    ],
)
def test_the_banner_says_what_is_on_and_fits_a_terminal(
    text: str, environ: dict[str, str], first_key: str | None, shown: list[str], hidden: list[str]
) -> None:
    config = good(text, environ) if text else load(None, environ)
    said = banner(config, ready_seconds=0.6, data="./.strata", first_key=first_key, key_count=3, last_used="2 h ago")
    assert len(said.splitlines()) <= MAX_LINES
    assert said.splitlines()[-1].strip()
    for part in shown:
        assert part in said
    for part in hidden:
        assert part not in said


def test_a_long_key_keeps_its_distance_from_the_remark() -> None:
    shown = banner(
        Config(), ready_seconds=0.5, data="d", first_key="sk-strata-" + "x" * 49, key_count=0, last_used=None
    )
    assert "x  shown once" in shown


def test_keys_that_nobody_could_read_are_not_said_to_be_none() -> None:
    shown = banner(Config(), ready_seconds=0.5, data="d", first_key=None, key_count=None, last_used=None)
    assert "the database is not ready" in shown and "make one" not in shown
