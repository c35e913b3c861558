"""
The arguments of a call that arrive in pieces: each names its place by a JSONPath (`$.trip.stops[0]`) and holds a value,
or the next part of a string. https://cloud.google.com/vertex-ai/generative-ai/docs/multimodal/function-calling
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import msgspec

from proxy.providers import Json

MAX_ITEMS = 10_000
"""An index beyond this is no argument of anybody's."""

_STEP = re.compile(r"""\.(?P<name>[^.\[\]]+)|\[(?P<index>\d+)\]|\[(?P<quote>['"])(?P<quoted>.*?)(?P=quote)\]""")
_VALUES = ("stringValue", "numberValue", "boolValue")


class Arguments:
    """What is known of one call's arguments."""

    def __init__(self, known: Json) -> None:
        self._root: Json = dict(known)

    def add(self, piece: Json) -> None:
        """Raises ValueError if its path is none."""
        path = piece["jsonPath"]
        steps = [_step(found) for found in _STEP.finditer(path)]
        if not steps or "$" + "".join(found[0] for found in _STEP.finditer(path)) != path:
            raise ValueError(f"no path: {path[:80]}")
        value = next((piece[name] for name in _VALUES if name in piece), None)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        holder: Any = self._root
        for step, following in pairwise(steps):
            holder = _inside(holder, step, [] if isinstance(following, int) else {})
        _put(holder, steps[-1], value)

    def encoded(self) -> str:
        """As the JSON text that OpenAI's `arguments` are."""
        return msgspec.json.encode(self._root).decode()


def _step(found: re.Match[str]) -> str | int:
    return int(found["index"]) if found["index"] is not None else found["name"] or found["quoted"]


def _inside(holder: Any, step: str | int, empty: Any) -> Any:
    """What stands at this step; made if nothing does."""
    there = _at(holder, step)
    if there is None:
        there = empty
        _replace(holder, step, there)
    return there


def _put(holder: Any, step: str | int, value: Any) -> None:
    """Pieces of one string follow each other; anything else replaces."""
    there = _at(holder, step)
    _replace(holder, step, there + value if isinstance(there, str) and isinstance(value, str) else value)


def _at(holder: Any, step: str | int) -> Any:
    if isinstance(holder, list) and isinstance(step, int):
        return holder[step] if step < len(holder) else None
    if isinstance(holder, dict) and isinstance(step, str):
        return holder.get(step)
    raise ValueError("the path does not fit what came before")


def _replace(holder: Any, step: str | int, value: Any) -> None:
    if isinstance(step, int):
        if step > MAX_ITEMS:
            raise ValueError("the index is too large")
        holder += [None] * (step + 1 - len(holder))
    holder[step] = value
