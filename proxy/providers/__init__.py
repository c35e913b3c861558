"""
What providers speak. One module per native API, each with `class Translator`; a provider itself is data.

A translator maps OpenAI chat requests to native ones, and native answers to OpenAI ones. It is sans-IO: bytes or dicts
in, dicts out; no socket, clock, random, credential, log or metric. The golden files in tests/providers/<api>/ are its
specification. The OpenAI chat chunk is the only currency; usage travels inside it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from proxy.errors import UpstreamError

Json = dict[str, Any]
ChatRequest = Json
"""An OpenAI chat completion request, validated by the dialect. Nobody changes it."""
Chunk = Json
"""An OpenAI `chat.completion.chunk` without its envelope (`id`, `created`, `model`, `object`): `choices`, `usage`."""
Completion = Json
"""An OpenAI `chat.completion` without its envelope: `choices`, `usage`; `model` if the provider named one."""


class Event(NamedTuple):
    """One framed piece of a native stream: the SSE event name (or "") and its data."""

    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Notice:
    """A parameter that was changed or left out on the way, in words for the caller."""

    param: str
    message: str
    lost: bool = True
    """False: what the caller wanted is done in another way. A strict request is refused for what is lost."""


class UpstreamRequest(msgspec.Struct, frozen=True):
    """What to send. `path` is joined to the provider's api_base; `headers` never hold a secret."""

    path: str
    body: Json
    headers: Mapping[str, str] = MappingProxyType({})
    notices: tuple[Notice, ...] = ()
    service_tier: str = ""
    """The tier it asks to be served at, where the body does not say so under OpenAI's own name."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a translator may know about where a request goes: the upstream's model name and the provider's quirks."""

    model: str
    quirks: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    """The provider's settings beside its address: project, region, api_version …"""
    max_output_tokens: int | None = None
    """The model's own maximum, where the price table knows it; for APIs that demand a limit."""


class StreamDecoder(Protocol):
    """The state of one answer stream."""

    @property
    def usage_so_far(self) -> Json | None:
        """What the provider has said of usage up to now: all that is left to go by if the stream is cut."""

    def feed(self, event: Event) -> Iterable[Chunk]:
        """The chunks this event amounts to; often one, sometimes none. Raises UpstreamError on an error event."""

    def close(self) -> Iterable[Chunk]:
        """The bytes have ended. Raises StreamTruncated if the native terminal event never came."""


class Translator(Protocol):
    """Holds the state of no request: one instance serves them all."""

    framing: Literal["sse", "aws"]
    same_dialect: bool
    """True where the native API is OpenAI's own: then bytes pass through and a tap reads them."""
    auth: str
    """
    The header that carries the provider's key; "bearer" is `authorization: Bearer <key>`; an identifier is a module of
    `proxy.upstream.credentials` that signs or fetches tokens.
    """

    # Where an API lists its models, it has `list_models(target) -> UpstreamRequest`, to be sent with GET and no
    # body: what a key is tried with, since it costs nothing.
    #
    # Where an API does not follow every link to a file, it has `takes_url(url, model) -> bool`: the other links are
    # fetched first, and `encode_request` sees `data:` URLs. Without it, links are passed on.

    def encode_request(self, chat: ChatRequest, target: Target) -> UpstreamRequest:
        """Must not change `chat`: it is encoded again for each deployment tried. Raises CallerError with a `param`."""

    def decode_response(self, body: bytes) -> Completion:
        """A whole native answer. Raises UpstreamError(code="bad_response") if it is not one."""

    def stream_decoder(self) -> StreamDecoder: ...

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        """A native error answer as ours, by way of `proxy.providers.faults.upstream_error`."""


@cache
def load(api: str) -> Translator:
    """Finds the module by its name; there is no list to edit. Raises LookupError for an unknown API."""
    if not api.isidentifier() or api.startswith("_"):
        raise LookupError(f"no API is called {api!r}")
    try:
        module = importlib.import_module(f"{__name__}.{api}")
        translator: Translator = module.Translator()
    except (ModuleNotFoundError, AttributeError) as error:
        raise LookupError(f"no API is called {api!r}") from error
    return translator
