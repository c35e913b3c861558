"""Google's two houses in the configuration: AI Studio with its key, the Cloud with project, region and credentials."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.config import Secret
from tests.configs import good, look, said

VERTEX = "providers: {vertex: {project: birds, region: %s}}\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "environ",
    [
        {"GEMINI_API_KEY": "AIza-1"},
        {"GOOGLE_API_KEY": "AIza-1"},
        {"GOOGLE_API_KEY": "other", "GEMINI_API_KEY": "AIza-1"},
    ],
)
def test_a_key_of_ai_studio_has_two_names(environ: dict[str, str]) -> None:
    gemini = good("models: {m: gemini/gemini-2.5-flash}\n", environ).providers["gemini"]
    assert gemini.api_key == Secret("AIza-1")
    assert gemini.api_base == "https://generativelanguage.googleapis.com/v1beta"


def test_without_a_key_it_is_off_and_both_names_are_told() -> None:
    assert good("models: {m: gemini/gemini-2.5-flash}\n").off["gemini"] == "GEMINI_API_KEY or GOOGLE_API_KEY is not set"


@pytest.mark.parametrize(
    ("region", "address"),
    [
        ("europe-west4", "https://europe-west4-aiplatform.googleapis.com"),
        ("global", "https://aiplatform.googleapis.com"),
        ("eu", "https://aiplatform.eu.rep.googleapis.com"),
        ("us", "https://aiplatform.us.rep.googleapis.com"),
    ],
)
def test_the_region_is_in_the_address(region: str, address: str) -> None:
    vertex = good(VERTEX % region).providers["vertex"]
    assert (vertex.api, vertex.api_base) == ("vertex", address)
    assert vertex.options == {"project": "birds", "region": region}


def test_googles_own_variables_are_enough() -> None:
    environ = {
        "GOOGLE_CLOUD_PROJECT": "birds",
        "GOOGLE_CLOUD_LOCATION": "global",
        "GOOGLE_APPLICATION_CREDENTIALS": "/run/secrets/google.json",
    }
    vertex = good("models: {m: vertex/gemini-2.5-flash}\n", environ).providers["vertex"]
    assert vertex.options == {"project": "birds", "region": "global"}
    assert vertex.secrets == {"credentials": Secret("/run/secrets/google.json")}
    del environ["GOOGLE_CLOUD_PROJECT"]
    assert good("models: {m: vertex/x}\n", environ).off["vertex"] == "GOOGLE_CLOUD_PROJECT is not set"


def test_a_second_project_has_a_name_of_its_own() -> None:
    config = good(
        "providers: {eu: {type: vertex, project: nests, region: eu, access_token: '${TOKEN}'}}\n", {"TOKEN": "ya29"}
    )
    assert (config.providers["eu"].api, config.providers["eu"].secrets) == ("vertex", {"access_token": Secret("ya29")})


def test_a_path_is_no_secret_and_a_private_key_is() -> None:
    path = "providers: {vertex: {project: p, region: eu, credentials: /etc/secrets/google/account.json}}\n"
    assert said(look(path)) == []
    inline = 'providers: {vertex: {project: p, region: eu, credentials: \'{"type": "service_account"}\'}}\n'
    assert said(look(inline)) == [
        "1:59 warning providers.vertex.credentials: this looks like a key; use ${GOOGLE_APPLICATION_CREDENTIALS}."
    ]
