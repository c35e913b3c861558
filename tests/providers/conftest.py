"""
Golden cases: `pytest tests/providers tests/test_providers.py --update-golden` rewrites the files that are ours (2_ and
4_); then read the diff.
"""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the 2_ and 4_ files of the golden cases")
