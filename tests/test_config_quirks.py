"""A provider's quirks in the file: each word is known, and takes what the code that reads it takes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from proxy.config.presets import PRESETS
from proxy.config.quirks import QUIRKS
from proxy.providers import quirks
from tests.configs import good, look, said

PROVIDER = "providers: {gpu: {type: openai_compatible, api_base: 'http://127.0.0.1:8000/v1', quirks: "


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{dorp: [user]}", '1:91 error unknown key "dorp" in providers.gpu.quirks. Did you mean "drop"?'),
        ("{rename: [a]}", "1:99 error providers.gpu.quirks.rename must be a map of texts, not a list."),
        ("{normalise: ja}", '1:102 error providers.gpu.quirks.normalise must be true or false, not "ja".'),
        (
            "{only: {n: 1}}",
            '1:97 error providers.gpu.quirks.only must have a list under each name, and has none under "n".',
        ),
        (
            "{values: {a: b}}",
            "1:99 error providers.gpu.quirks.values must have a map of value: value there under each name, and has "
            'none under "a".',
        ),
        ("[drop]", "1:90 error providers.gpu.quirks must be a map of key: value, not a list."),
    ],
)
def test_a_quirk_that_would_do_nothing_or_fail_every_request_is_an_error(text: str, problem: str) -> None:
    assert said(look(PROVIDER + text + "}}")) == [problem]


def test_one_name_alone_is_a_list_of_one() -> None:
    provider = good(PROVIDER + "{drop: user, s3: [bucket]}}}").providers["gpu"]
    assert provider.quirks == {"drop": ["user"], "s3": ["bucket"]}
    body, notices = quirks.apply({"user": "u", "messages": []}, provider.quirks)
    assert "user" not in body and [notice.param for notice in notices] == ["user"]


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.quirks])
def test_the_quirks_of_every_known_provider_can_be_written_in_the_file(name: str) -> None:
    known = msgspec.json.decode(msgspec.json.encode(PRESETS[name].quirks))
    assert set(known) <= set(QUIRKS)
    assert good(PROVIDER + msgspec.json.encode(known).decode() + "}}").providers["gpu"].quirks == known
