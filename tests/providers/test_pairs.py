"""
The strongest goldens there are: requests that were recorded in OpenAI's form and natively too, by people who knew
nothing of this gateway. What a translator makes of the one says what the other says.

The recordings lie beside the repository, with the neutral form that both are compared in. An API is in the test as soon
as it has a translator.
"""

from __future__ import annotations

import gzip
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from proxy.providers import Json, Target, load
from tests.compatibility import OPTIONS, apis

DATA = Path(__file__).parents[3] / "shared" / "fidelity"
PARAMETERS = ("max_tokens", "temperature", "top_p", "stop", "seed", "presence_penalty", "frequency_penalty")

NATIVE = {
    "anthropic/messages": "anthropic",
    "gemini/generateContent": "gemini",
    "gemini/streamGenerateContent": "gemini",
    "vertex/generateContent": "vertex",
    "vertex/streamGenerateContent": "vertex",
    "vertex/rawPredict": "vertex",
    "vertex/streamRawPredict": "vertex",
    "bedrock/converse": "bedrock",
    "bedrock/converse-stream": "bedrock",
}
"""How the recordings name what was recorded, and who translates to it here."""

ONE_ANSWER = {"bedrock/converse", "bedrock/converse-stream"}
"""Refuses to give several answers; who recorded it natively asked for one."""

pytestmark = pytest.mark.skipif(not (DATA / "pairs.jsonl.gz").exists(), reason="the recordings are not here")


@cache
def neutral() -> ModuleType:
    spec = importlib.util.spec_from_file_location("canon", DATA / "tools" / "canon.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lines(name: str) -> Iterator[Any]:
    with gzip.open(DATA / name) as packed:
        for line in packed:
            yield msgspec.json.decode(line)


@cache
def recorded() -> dict[str, Json]:
    """By id."""
    return {row["id"]: row for row in lines("recorded.jsonl.gz")}


def pairs(kind: str) -> Iterator[tuple[Json, Json]]:
    """Rows whose requests say the same: one in OpenAI's form, one of this kind. Each way of saying it once."""
    seen = set()
    for pair in lines("pairs.jsonl.gz"):
        for _, ours, *_ in pair["chat"]:
            for label, theirs, *_ in pair["native"]:
                if label != kind or ours not in recorded() or theirs not in recorded():
                    continue
                chat, native = recorded()[ours], recorded()[theirs]
                said = msgspec.json.encode([chat["request"]["json"], native["request"]["json"], native["model"]])
                if said not in seen:
                    seen.add(said)
                    yield chat, native


def as_neutral(row: Json, body: Json) -> Json:
    form: Json = neutral().req({**row, "request": {"json": body}})
    return form


@pytest.mark.parametrize("kind", [kind for kind, api in NATIVE.items() if api in apis()])
def test_a_request_becomes_the_one_that_was_recorded_natively(kind: str) -> None:
    translator = load(NATIVE[kind])
    compared = 0
    for chat, native in pairs(kind):
        asked = {**chat["request"]["json"], "stream": native["api"].lower().startswith("stream") or "-stream" in kind}
        target = Target(native["model"], options=OPTIONS, max_output_tokens=8192)
        if kind in ONE_ANSWER:
            asked.pop("n", None)
        made = as_neutral(native, translator.encode_request(asked, target).body)
        wanted = as_neutral(native, native["request"]["json"])
        told = f"{chat['source']['path']} as {native['source']['path']}"
        assert neutral().key(made) == neutral().key(wanted), told
        given = neutral().req(chat)
        for name in PARAMETERS:
            if name in given["params"] and given["params"][name] == wanted["params"].get(name):
                assert made["params"].get(name) == given["params"][name], f"{name}: {told}"
        if given["tool_choice"] == wanted["tool_choice"]:
            assert made["tool_choice"] == given["tool_choice"], told
        compared += 1
    assert compared > 0
