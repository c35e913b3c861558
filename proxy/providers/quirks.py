"""
How a provider differs from its API, as data: `{"rename": {old: new}, "drop": [name, …], "set": {name: value}}`.

A name is a field of the request; `messages[].name` is a field of every message. What the caller loses by it is a
notice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from proxy.providers import Json, Notice

_OF_MESSAGES = "messages[]."


def apply(body: Json, quirks: Mapping[str, Any]) -> tuple[Json, list[Notice]]:
    """The body as this provider wants it; `body` stays as it is. Renames come first, then drops, then values set."""
    if not quirks:
        return body, []
    body, notices = dict(body), []
    for old, new in quirks.get("rename", {}).items():
        if old in body:
            body[new] = body.pop(old)
    for name in quirks.get("drop", ()):
        if _drop(body, name):
            notices.append(Notice(name, f"This provider does not take {name}; it was left out."))
    for name, value in quirks.get("set", {}).items():
        if body.get(name) not in (None, value):
            notices.append(Notice(name, f"The operator has set {name} for this provider; the value sent was not used."))
        body[name] = value
    return body, notices


def _drop(body: Json, name: str) -> bool:
    """Whether anything was lost: a null says nothing."""
    if not name.startswith(_OF_MESSAGES):
        return body.pop(name, None) is not None
    inner = name.removeprefix(_OF_MESSAGES)
    messages = body.get("messages") or []
    body["messages"] = [
        {key: value for key, value in message.items() if key != inner} if inner in message else message
        for message in messages
    ]
    return any(message.get(inner) is not None for message in messages)
