"""
Texts without the secrets that this process knows. Whoever is sent a secret may send it back in an error, and patterns
cannot know what a key looks like that an operator has chosen; so besides patterns the very values are looked for.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote, unquote

import msgspec

from proxy.config import Secret

SHORTEST = 8
"""Shorter values (`none`, `local`) are words as well as keys."""
SHORTEST_PART = 6
"""Of a secret at the end of a text that was cut there."""

_TELLING = re.compile("auth|key|token|secret|cookie|password", re.IGNORECASE)
_PATH = re.compile(r"^https?://[^/]+(/.{8,})$", re.IGNORECASE)
_PASSWORD = re.compile(r"^[a-z][a-z0-9+.-]*://[^/@\s]*?:([^/\s]+)@", re.IGNORECASE)


class Hiding:
    """Called with a text, gives it back with `…` in place of each secret: as it is, quoted for a URL, or in base64."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._secrets = sorted({secret for secret in secrets if len(secret) >= SHORTEST}, key=len, reverse=True)
        shapes = sorted({shape for secret in self._secrets for shape in _shapes(secret)}, key=len, reverse=True)
        self._found = re.compile("|".join(map(re.escape, shapes))) if shapes else None
        self._found_bytes = re.compile(self._found.pattern.encode()) if self._found else None

    def __call__(self, text: str) -> str:
        if self._found is None:
            return text
        text = self._found.sub("…", text)
        whole = text.rstrip("….")
        for secret in self._secrets if whole != text else ():
            for length in range(len(secret) - 1, SHORTEST_PART - 1, -1):
                if whole.endswith(secret[:length]):
                    return whole[:-length] + "…"
        return text

    def in_bytes(self, data: bytes) -> bytes:
        return data if self._found_bytes is None else self._found_bytes.sub("…".encode(), data)


def secrets_of(value: Any) -> set[str]:
    """
    Every secret in a configuration, or in a part of it: whole, by its lines and by its parts, which are the password
    and the path of an address and each of several master keys. Headers count by their names.
    """
    if isinstance(value, Secret):
        return _parts(value.reveal())
    if isinstance(value, msgspec.Struct):
        found = {secret for name in value.__struct_fields__ for secret in secrets_of(getattr(value, name))}
        headers = getattr(value, "headers", None)
        if isinstance(headers, dict):
            found |= {said for name, said in headers.items() if _TELLING.search(name)}
        return found
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return set()
    return {secret for one in value for secret in secrets_of(one)}


def _parts(secret: str) -> set[str]:
    password, path = _PASSWORD.match(secret), _PATH.match(secret)
    lines = secret.replace("\\n", "\n").splitlines()
    inside = {found[1] for found in (password, path) if found}
    inside |= {unquote(one) for one in inside}
    return {
        secret,
        secret.rpartition(" ")[2],
        *secret.split(","),
        *(line for line in lines if len(line) >= 32),
        *inside,
    }


def _shapes(secret: str) -> set[str]:
    encoded = base64.b64encode(secret.encode()).decode().rstrip("=")
    return {secret, quote(secret), quote(secret, safe=""), encoded, encoded.translate(str.maketrans("+/", "-_"))}
