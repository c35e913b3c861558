"""
Google Cloud's Vertex AI: Gemini, and Claude by `rawPredict`, under addresses that name a project and a region. What
models say is in `gemini` and `anthropic`; here is only what the house around them changes.

Which of the two an answer is shows in itself: Anthropic's objects have a `type`, Google's never do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import msgspec

from proxy.errors import CallerError, GatewayFault, StreamTruncated, UpstreamError
from proxy.providers import (
    ChatRequest,
    Chunk,
    Completion,
    Event,
    Json,
    Notice,
    Target,
    UpstreamRequest,
    anthropic,
    gemini,
)
from proxy.providers import StreamDecoder as Decoder
from proxy.providers.faults import upstream_error
from proxy.providers.gemini.content import takes_url
from proxy.providers.gemini.embeddings import decode_cloud, encode_cloud
from proxy.providers.gemini.models import read_model
from proxy.providers.gemini.requests import encode_chat

CLAUDE_VERSION = "vertex-2023-10-16"
"""https://docs.anthropic.com/en/api/claude-on-vertex-ai"""

_PLACE = re.compile(r"[a-z0-9][a-z0-9:.-]{0,62}")
_CLAUDE = anthropic.Translator()
_GEMINI = gemini.Translator()


class Translator:
    framing: Literal["sse", "aws"] = "sse"
    same_dialect = False
    auth = "google"

    def takes_url(self, url: str, model: str) -> bool:
        known = read_model(model, cloud=True)
        return not known.name.startswith("claude") and takes_url(url, known)

    def encode_request(self, chat: ChatRequest, target: Target) -> UpstreamRequest:
        place = _place(target.options)
        model = read_model(target.model, cloud=True)
        if model.name.startswith("claude"):
            return _encode_claude(chat, target, f"{place}/publishers/anthropic/models/{model.name}")
        request = encode_chat(chat, target, model)
        publisher = "" if model.name.startswith("endpoints/") else "/publishers/google"
        return msgspec.structs.replace(request, path=f"{place}{publisher}{request.path}")

    def decode_response(self, body: bytes) -> Completion:
        return (_CLAUDE if _is_claudes(body) else _GEMINI).decode_response(body)

    def stream_decoder(self) -> StreamDecoder:
        return StreamDecoder()

    def encode_embeddings(self, asked: Json, target: Target) -> UpstreamRequest:
        place = _place(target.options)
        model = read_model(target.model, cloud=True)
        if model.name.startswith("claude"):
            raise CallerError("Claude makes no embeddings; ask for an embedding model.", param="model")
        request = encode_cloud(asked, model)
        publisher = "" if model.name.startswith("endpoints/") else "/publishers/google"
        return msgspec.structs.replace(request, path=f"{place}{publisher}{request.path}")

    def decode_embeddings(self, body: bytes) -> Json:
        return decode_cloud(body)

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        return upstream_error(status, headers, body)


class StreamDecoder:
    """
    Anthropic's grammar or Gemini's, whichever the first event belongs to.
    """

    def __init__(self) -> None:
        self._chosen: Decoder | None = None

    @property
    def usage_so_far(self) -> Json | None:
        """What the provider has reported up to here, in OpenAI's shape; all there is when a stream is cut."""
        return self._chosen.usage_so_far if self._chosen is not None else None

    def feed(self, event: Event) -> list[Chunk]:
        if self._chosen is None:
            if not event.data.strip():
                return []
            claude = bool(event.name) or _is_claudes(event.data)
            self._chosen = (_CLAUDE if claude else _GEMINI).stream_decoder()
        return list(self._chosen.feed(event))

    def close(self) -> list[Chunk]:
        if self._chosen is None:
            raise StreamTruncated
        return list(self._chosen.close())


class _Typed(msgspec.Struct):
    type: str | None = None


_typed = msgspec.json.Decoder(_Typed).decode


def _is_claudes(body: bytes) -> bool:
    try:
        return _typed(body).type is not None
    except (msgspec.DecodeError, ValueError, RecursionError):
        return False  # the reader chosen by this says what is wrong with it


def _place(options: Mapping[str, str]) -> str:
    project, region = options.get("project", ""), options.get("region", "")
    if not _PLACE.fullmatch(project) or not _PLACE.fullmatch(region):
        raise GatewayFault(
            "This provider needs a project and a region of Google Cloud: set both in config.yaml.",
            status=502,
            code="gateway_config",
            error_type="gateway_config",
        )
    return f"/v1/projects/{project}/locations/{region}"


def _encode_claude(chat: ChatRequest, target: Target, path: str) -> UpstreamRequest:
    _refuse_addresses(chat)
    request = _CLAUDE.encode_request(chat, target)
    body = {"anthropic_version": CLAUDE_VERSION, **request.body}
    body.pop("model", None)
    notices = list(request.notices)
    if body.pop("service_tier", None) is not None and chat.get("service_tier") not in ("auto", "default"):
        notices.append(Notice("service_tier", "Claude has no service tiers on Vertex; it was left out."))
    method = "streamRawPredict" if chat.get("stream") else "rawPredict"
    # the version stands in the body here; what is being tried out is still named in its header
    headers = {name: value for name, value in request.headers.items() if name != "anthropic-version"}
    return UpstreamRequest(f"{path}:{method}", body, headers, tuple(notices))


def _refuse_addresses(chat: ChatRequest) -> None:
    """Anthropic's own API fetches what an https: address names; Google's does not do it for Claude."""
    for number, message in enumerate(chat["messages"]):
        content = message.get("content")
        for place, part in enumerate(content if isinstance(content, list) else ()):
            url = (part.get("image_url") or {}).get("url") or (part.get("file") or {}).get("file_data") or ""
            if url.startswith("https://"):
                param = f"messages[{number}].content[{place}]"
                raise CallerError(
                    f"{param}: Claude on Vertex does not fetch addresses; send the content as a data: URL in base64.",
                    param=param,
                )
