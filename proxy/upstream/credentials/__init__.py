"""
What authorises a request: a key in a header, made once; or a signature or a short-lived token, made for each request.

A translator says which it wants (`Translator.auth`): "bearer", the name of a header, or the name of a module here.
Such a module has `def credential(provider, surroundings) -> Mapping[str, str] | Credential`: headers that stay as they
are, or something that signs. Tokens are kept and renewed here, before they expire; nothing of them is ever in an
address, a message or a log line.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from proxy.config import Provider


class Outgoing(NamedTuple):
    """A request that is about to be sent, as a signature sees it. `path` is as it stands on the wire."""

    method: str
    host: str
    path: str
    headers: Mapping[str, str]
    """Those that the translator adds; names in lower case."""
    body: bytes


class Credential(Protocol):
    async def headers(self, request: Outgoing) -> Mapping[str, str]:
        """
        The header lines that authorise this request. Does not wait while what it holds is fresh. Raises UpstreamError
        (`provider_auth`) with the fix where there is nothing to authorise with.
        """

    async def close(self) -> None: ...


@dataclass(frozen=True)
class Surroundings:
    """What a credential may look at besides its provider's settings. Tests bring their own."""

    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    wall_clock: Callable[[], float] = time.time
    clock: Callable[[], float] = time.monotonic


def authorise(kind: str, provider: Provider, surroundings: Surroundings) -> Mapping[str, str] | Credential:
    """Fixed headers, or what signs. A provider without a key gets no header at all."""
    if kind == "bearer" or not kind.isidentifier():
        if provider.api_key is None:
            return {}
        key = provider.api_key.reveal()
        return {"authorization": f"Bearer {key}"} if kind == "bearer" else {kind: key}
    module = importlib.import_module(f"{__name__}.{kind}")
    found: Mapping[str, str] | Credential = module.credential(provider, surroundings)
    return found
