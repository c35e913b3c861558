"""What real providers were asked and answered, through a running gateway and back; it lies beside the house."""

from __future__ import annotations

import importlib.util

import pytest

from tests.conftest import lack
from tests.fidelity import DATA, score

FLOOR = 194
NEEDED = ("httpx", "botocore", "anthropic", "openai", "googleapiclient", "jsonschema")


@pytest.mark.skipif(not DATA.exists(), reason="the recordings are not here")
@pytest.mark.parametrize("chunk", [None, 7])
def test_every_recorded_case_passes_in_both_directions(chunk: int | None) -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        lack(f"the scorer needs {', '.join(missing)}: pip install -c constraints.txt '.[recordings]'")
    passed, cases, table = score(DATA, chunk=chunk)
    assert (passed, cases) == (FLOOR, FLOOR), table
