"""What `bedrock` means in config.yaml: a region, and credentials that come whole from one place."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.config import Secret
from proxy.config.load import load
from tests.configs import good, look, said

ARN = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/q1w2e3r4t5y6"
PAIR = {"AWS_ACCESS_KEY_ID": "AKIA7QENVIRONMENT1", "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/of/the/environment"}


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("variable", ["AWS_REGION", "AWS_DEFAULT_REGION"])
def test_a_region_is_enough_and_makes_the_address(variable: str) -> None:
    config = good("providers: {bedrock: }", {variable: "eu-central-1"})
    provider = config.providers["bedrock"]
    assert provider.api_base == "https://bedrock-runtime.eu-central-1.amazonaws.com"
    assert (provider.api, provider.options, provider.secrets) == ("bedrock", {"region": "eu-central-1"}, {})


def test_without_a_region_it_is_off_and_says_what_is_missing() -> None:
    assert good("providers: {bedrock: }").off == {"bedrock": "AWS_REGION or AWS_DEFAULT_REGION is not set"}


def test_the_environment_alone_turns_nothing_on() -> None:
    assert "bedrock" not in load(None, {**PAIR, "AWS_REGION": "us-east-1"}).providers


def test_credentials_of_the_environment_are_taken_together() -> None:
    environ = {**PAIR, "AWS_SESSION_TOKEN": "of-the-environment", "AWS_REGION": "us-east-1"}
    secrets = good("providers: {bedrock: }", environ).providers["bedrock"].secrets
    assert secrets == {
        "access_key_id": Secret(PAIR["AWS_ACCESS_KEY_ID"]),
        "secret_access_key": Secret(PAIR["AWS_SECRET_ACCESS_KEY"]),
        "session_token": Secret("of-the-environment"),
    }


def test_credentials_of_the_file_are_not_mixed_with_others_of_the_environment() -> None:
    text = "providers: {bedrock: {region: us-west-2, access_key_id: '${A}', secret_access_key: '${B}'}}"
    environ = {"A": "AKIA1", "B": "of-the-file", "AWS_SESSION_TOKEN": "other", "AWS_BEARER_TOKEN_BEDROCK": "other"}
    secrets = good(text, environ).providers["bedrock"].secrets
    assert secrets == {"access_key_id": Secret("AKIA1"), "secret_access_key": Secret("of-the-file")}


def test_a_bearer_key_and_a_profile_have_names() -> None:
    text = (
        "providers: {bedrock: {region: us-west-2, api_key: '${K}'}, other: {type: bedrock, region: a-b-1, profile: p}}"
    )
    providers = good(text, {"K": "bedrock-api-key"}).providers
    assert providers["bedrock"].secrets == {"api_key": Secret("bedrock-api-key")}
    assert (providers["other"].options, providers["other"].secrets) == ({"region": "a-b-1", "profile": "p"}, {})


def test_models_are_ids_profiles_and_arns() -> None:
    text = f"""
models:
  one: bedrock/us.anthropic.claude-haiku-4-5-20251001-v1:0
  two: "bedrock/{ARN}"
  "bedrock/*": bedrock/*
"""
    models = good(text, {"AWS_REGION": "us-east-1"}).models
    assert models["one"].deployments[0].model == "us.anthropic.claude-haiku-4-5-20251001-v1:0"
    assert models["two"].deployments[0].model == ARN
    assert models["bedrock/*"].deployments[0].model == "*"


def test_signed_requests_travel_in_the_open_on_this_machine_alone() -> None:
    here = "providers: {bedrock: {region: us-east-1, api_base: 'http://127.0.0.1:9900'}}"
    assert good(here).providers["bedrock"].api_base == "http://127.0.0.1:9900"
    [problem] = said(look(here.replace("127.0.0.1", "10.0.0.1")))
    assert "must begin with https://" in problem


def test_a_key_id_is_hidden_like_a_secret_although_aws_calls_it_none() -> None:
    config = good("providers: {bedrock: }", {**PAIR, "AWS_REGION": "us-east-1"})
    assert "AKIA7QENVIRONMENT1" not in repr(config) + str(config.providers["bedrock"].secrets)
    [problem] = said(look(f"providers: {{bedrock: {{region: r, access_key_id: {PAIR['AWS_ACCESS_KEY_ID']}XYZ}}}}"))
    assert "use ${AWS_ACCESS_KEY_ID}" in problem and "AKIA7Q" not in problem
