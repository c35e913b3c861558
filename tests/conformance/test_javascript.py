"""OpenAI's SDK for JavaScript and the Vercel AI SDK, whatever speaks behind the gateway: tests of `node --test`."""

from __future__ import annotations

import re

import pytest

from tests.conformance import MODELS, environments
from tests.conftest import needs
from tests.gateway import Gateway


@pytest.mark.needs("node")
@pytest.mark.parametrize("client", ["openai", "vercel"])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_javascript_clients_find_what_they_expect(gateway: Gateway, model: str, client: str) -> None:
    folder = environments.node_packages()
    done = environments.run(
        [needs("node"), "--test", "--test-reporter=tap", str(folder / f"{client}.test.mjs")], gateway, model
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"^# pass (\d+)$", done.stdout, re.MULTILINE)
    assert passed is not None
    assert int(passed[1]) >= 7
