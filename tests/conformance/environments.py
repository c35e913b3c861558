"""Where other people's clients are installed: each in an environment of its own, made by `.ci/run`."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.conformance import REFUSED
from tests.conftest import lack
from tests.gateway import Gateway

ROOT = Path(__file__).parents[2]
LANGCHAIN = ROOT / ".venv-conformance" / "bin" / "python"
NODE = ROOT / "tests" / "conformance" / "node"
SECONDS = 240


def langchain() -> Path:
    if not LANGCHAIN.exists():
        lack(
            "LangChain is not installed: python3 -m venv .venv-conformance && "
            ".venv-conformance/bin/pip install -c constraints.txt -e '.[conformance]'"
        )
    return LANGCHAIN


def node_packages() -> Path:
    if not (NODE / "node_modules").is_dir():
        lack("the JavaScript clients are not installed: npm ci --prefix tests/conformance/node")
    return NODE


def run(command: Sequence[str | Path], gateway: Gateway, model: str) -> subprocess.CompletedProcess[str]:
    """A client's own tests against the gateway, as a process that knows only where it is, and what it must refuse."""
    known = {"STRATA_BASE_URL": gateway.base_url, "STRATA_KEY": gateway.key, "STRATA_MODEL": model}
    known["STRATA_REFUSED"] = json.dumps(REFUSED.get(model, {}))
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    return subprocess.run(
        command, cwd=ROOT, env=kept | known, capture_output=True, text=True, timeout=SECONDS, check=False
    )
