"""What the Dockerfile says, instruction by instruction, for tests that hold it to that or do it."""

from __future__ import annotations

import json
import re
import shlex
from typing import NamedTuple

from tests.gateway import ROOT


class Instruction(NamedTuple):
    word: str
    text: str
    stage: int
    """0: before the first FROM."""


def dockerfile() -> list[Instruction]:
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    found, stage = [], 0
    for logical in re.split(r"(?<!\\)\n", "\n".join(lines)):
        word, _, text = logical.replace("\\\n", " ").strip().partition(" ")
        if word:
            stage += word == "FROM"
            found.append(Instruction(word, text.strip(), stage))
    return found


def said(word: str, stage: int | None = None) -> list[str]:
    return [one.text for one in dockerfile() if one.word == word and stage in (None, one.stage)]


def environment() -> dict[str, str]:
    """What the last stage's ENV sets."""
    return dict(part.split("=", 1) for text in said("ENV", LAST) for part in shlex.split(text))


LAST = max(one.stage for one in dockerfile())


def health_command(text: str) -> list[str]:
    command: list[str] = json.loads(text.partition("CMD ")[2])
    return command
