"""
`python -m tests.fidelity`: a real gateway in front of recorded answers of real providers, scored both ways.

The recordings lie beside the repository (`../shared/fidelity`, or `--data`), with their own scorer: each recorded
native request becomes the OpenAI request that says the same; what the gateway sends must be valid for the provider's
API and say what the recorded one said; what it answers must say what the recorded answer said.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.gateway import Gateway, free_port

DATA = Path(__file__).parents[2] / "shared" / "fidelity"
SECONDS = 1_200
CONFIG = """\
providers:
  anthropic: {{type: anthropic, api_base: "http://127.0.0.1:{port}", api_key: sk-recorded-answers}}
  gemini: {{type: gemini, api_base: "http://127.0.0.1:{port}/v1beta", api_key: sk-recorded-answers}}
  vertex:
    {{type: vertex, project: p, region: us-central1, access_token: recorded-answers, api_base: "http://127.0.0.1:{port}"}}
  bedrock:
    {{region: us-east-1, access_key_id: AKIDRECORDED, secret_access_key: recorded-answers,
      api_base: "http://127.0.0.1:{port}"}}
models:
  "anthropic/*": anthropic/*
  "gemini/*": gemini/*
  "vertex/*": vertex/*
  "bedrock/*": bedrock/*
defaults: {{allowed_fails: 1000000, num_retries: 0}}
logging: {{level: warning, format: json}}
"""


@contextlib.contextmanager
def gateway(port: int) -> Iterator[Gateway]:
    """A gateway whose four providers are all the recorder on that port."""
    with tempfile.TemporaryDirectory(prefix="strata-fidelity-") as folder:
        running = Gateway(Path(folder) / "home")
        running.config.write_text(CONFIG.format(port=port))
        try:
            yield running.start()
        finally:
            running.stop()


def score(data: Path, *, chunk: int | None = None, source: str | None = None) -> tuple[int, int, str]:
    """How many cases pass everything, of how many, and the scorer's own table."""
    port = free_port()
    with gateway(port) as running, tempfile.TemporaryDirectory(prefix="strata-fidelity-") as folder:
        command = [sys.executable, str(data / "tools" / "score.py"), running.base_url, "--sim-port", str(port)]
        command += ["--key", running.key, "--out", str(Path(folder) / "score.jsonl")]
        command += ["--chunk", str(chunk)] if chunk else []
        command += ["--source", source] if source else []
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    found = re.search(r"(\d+) of (\d+) cases pass everything", done.stdout)
    if found is None:
        raise RuntimeError(f"the scorer gave no score:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return int(found[1]), int(found[2]), done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fidelity", description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--chunk", type=int, help="cut the recorded streams into pieces of so many bytes")
    parser.add_argument("--source", help="the recordings of these projects only, with commas between")
    parser.add_argument("--floor", type=int, default=0, help="fail below so many")
    options = parser.parse_args()
    passed, _, text = score(options.data, chunk=options.chunk, source=options.source)
    sys.stdout.write(text)
    return int(passed < options.floor)


if __name__ == "__main__":
    sys.exit(main())
