"""
Cohere's chat API, version 2. Each direction is a file: `requests` (with `messages` for the conversation), `answers` for
whole answers and what both kinds share, `streams` for the events.
docs.cohere.com/v2/reference/chat
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from proxy.errors import UpstreamError
from proxy.providers import ChatRequest, Completion, Json, Target, UpstreamRequest
from proxy.providers.cohere.answers import decode_answer
from proxy.providers.cohere.embeddings import decode_embeddings, encode_embeddings
from proxy.providers.cohere.requests import encode_chat
from proxy.providers.cohere.streams import StreamDecoder
from proxy.providers.faults import upstream_error


class Translator:
    framing: Literal["sse", "aws"] = "sse"
    same_dialect = False
    auth = "bearer"

    def list_models(self, target: Target) -> UpstreamRequest:
        return UpstreamRequest("/v1/models?page_size=1000", {})

    def encode_request(self, chat: ChatRequest, target: Target) -> UpstreamRequest:
        return encode_chat(chat, target)

    def decode_response(self, body: bytes) -> Completion:
        return decode_answer(body)

    def stream_decoder(self) -> StreamDecoder:
        return StreamDecoder()

    def encode_embeddings(self, asked: Json, target: Target) -> UpstreamRequest:
        return encode_embeddings(asked, target)

    def decode_embeddings(self, body: bytes) -> Json:
        return decode_embeddings(body)

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        return upstream_error(status, headers, body)
