"""What the tests of the configuration share: a file is written into the working folder and looked at."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from proxy.config import Config
from proxy.config.load import Examined, examine
from proxy.config.problems import text_of

KEY = "sk-proj-Zq8vT3nKx5Lw9Rb2Hd7Jc4Mf"
STRONG = "q7Zt2mVx9Lk4Wn8Rb3Hd6Jc5Pf1Ys0Ga"

OWN = "providers: {gpu: {type: openai_compatible, api_base: 'http://127.0.0.1:8000/v1'}}\n"


def look(text: str | bytes, environ: Mapping[str, str] | None = None) -> Examined:
    Path("config.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
    return examine(Path("config.yaml"), environ or {}, new_secret=lambda: "NEW")


def good(text: str, environ: Mapping[str, str] | None = None) -> Config:
    config, problems = look(text, environ)
    assert config is not None, text_of(problems)
    return config


def said(examined: Examined) -> list[str]:
    """Each problem as `line:column severity message`."""
    return [f"{one.line}:{one.column} {one.severity} {one.message}" for one in examined.problems]
