"""
What is wrong with a configuration, and where. Messages are complete sentences with cause and fix, and never hold the
value of a secret: `shown` is the only way a value gets into one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Literal, NamedTuple

Severity = Literal["error", "warning", "note"]

_KEY_LIKE = re.compile(
    r"(?:sk|pk|gsk|xai|key|ghp|eyJ|AIza|Bearer )[-_A-Za-z0-9.=/+]{6,}|[-_A-Za-z0-9+=]{28,}|://[^/\s]*@"
)


class Mark(NamedTuple):
    """Where a value stands: line and column from 1; line 0 where there is none (the environment, a whole file)."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        if not self.line:
            return self.file
        return f"{self.file}:{self.line}:{self.column}" if self.column else f"{self.file}:{self.line}"


class Problem(NamedTuple):
    line: int
    column: int
    severity: Severity
    message: str
    file: str = "config.yaml"

    @property
    def at(self) -> Mark:
        return Mark(self.file, self.line, self.column)


def text_of(problems: Sequence[Problem]) -> str:
    """One line for each, aligned: `config.yaml:38:5  error    unknown key "api_bse" in providers.gpu. …`"""
    width = max((len(str(problem.at)) for problem in problems), default=0)
    return "\n".join(f"{problem.at!s:<{width}} {problem.severity:<8} {problem.message}" for problem in problems)


class ConfigError(Exception):
    """The configuration cannot be used. `problems` holds warnings and notes too; at least one is an error."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(text_of(problems))
        self.problems = list(problems)


class Wrong(Exception):
    """A value that does not fit. The message goes on after the value's path: `must be a duration like 30s, …`"""


class Report:
    """Problems as they are found, so that one run names them all."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def error(self, at: Mark, message: str) -> None:
        self._add(at, "error", message)

    def warning(self, at: Mark, message: str) -> None:
        self._add(at, "warning", message)

    def note(self, at: Mark, message: str) -> None:
        self._add(at, "note", message)

    def _add(self, at: Mark, severity: Severity, message: str) -> None:
        problem = Problem(at.line, at.column, severity, message, at.file)
        if problem not in self.problems:  # an anchor is read at each of its aliases
            self.problems.append(problem)

    @property
    def failed(self) -> bool:
        return any(problem.severity == "error" for problem in self.problems)

    def in_order(self) -> list[Problem]:
        return sorted(self.problems, key=lambda problem: (problem.file, problem.line, problem.column))


def looks_like_key(text: str) -> bool:
    return bool(_KEY_LIKE.search(text))


def shown(text: str) -> str:
    """A value in quotes for a message; what may be a key is left out, what is long is cut."""
    if looks_like_key(text):
        return "a value that looks like a key (not shown)"
    return f'"{text}"' if len(text) <= 60 else f'"{text[:57]}…"'


def suggestion(word: str, known: Iterable[str]) -> str:
    """` Did you mean "api_base"?`, or what is known, or nothing."""
    names = list(known)
    close = get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f' Did you mean "{close[0]}"?'
    if not names:
        return ""
    return f" Known: {', '.join(names[:20])}{' …' if len(names) > 20 else ''}."
