"""LangChain's standard tests of a chat model, whatever speaks behind the gateway."""

from __future__ import annotations

import re

import pytest

from tests.conformance import MODELS, REFUSED, environments
from tests.gateway import Gateway

OPTIONS = [
    *("-c", "/dev/null", "--rootdir=tests/conformance", "--confcutdir=tests/conformance", "--import-mode=importlib"),
    *("-o", "asyncio_mode=auto", "-o", "asyncio_default_test_loop_scope=session"),
    *("-o", "asyncio_default_fixture_loop_scope=session", "-p", "no:cacheprovider", "-q", "--tb=short"),
]
LEAST = 40
"""So many of them are about what a gateway can do: no audio, none of Anthropic's own formats."""


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_langchains_standard_tests_pass(gateway: Gateway, model: str) -> None:
    python = environments.langchain()
    done = environments.run([python, "-m", "pytest", *OPTIONS, "tests/conformance/langchain_suite.py"], gateway, model)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= LEAST
    refused = re.search(r"(\d+) xfailed", done.stdout)
    assert int(refused[1] if refused else 0) == len(REFUSED.get(model, {}))
