"""
Google's `generateContent`, as the Gemini API (AI Studio) serves it: https://ai.google.dev/api/generate-content. Each
direction has its files: `requests` (with `messages`, `content`, `tools`, `schemas` and `reasoning`), and `streams` with
`answers` and `grounding`. A whole answer is a stream of one event, and is read by the same code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from proxy.errors import UpstreamError
from proxy.providers import ChatRequest, Completion, Json, Target, UpstreamRequest
from proxy.providers.faults import bad_response, upstream_error
from proxy.providers.gemini.answers import completion_of
from proxy.providers.gemini.content import takes_url
from proxy.providers.gemini.embeddings import decode_embeddings, encode_embeddings
from proxy.providers.gemini.models import read_model
from proxy.providers.gemini.requests import encode_chat
from proxy.providers.gemini.streams import StreamDecoder


class Translator:
    framing: Literal["sse", "aws"] = "sse"
    same_dialect = False
    auth = "x-goog-api-key"

    def list_models(self, target: Target) -> UpstreamRequest:
        return UpstreamRequest("/models?pageSize=1000", {})

    def takes_url(self, url: str, model: str) -> bool:
        return takes_url(url, read_model(model))

    def encode_request(self, chat: ChatRequest, target: Target) -> UpstreamRequest:
        return encode_chat(chat, target, read_model(target.model))

    def decode_response(self, body: bytes) -> Completion:
        decoder = StreamDecoder()
        chunks = decoder.read(body) + decoder.end()
        try:
            return completion_of(chunks, decoder.model)
        except (TypeError, AttributeError) as error:
            raise bad_response("The provider sent a response that is none of its API's.") from error

    def stream_decoder(self) -> StreamDecoder:
        return StreamDecoder()

    def encode_embeddings(self, asked: Json, target: Target) -> UpstreamRequest:
        return encode_embeddings(asked, target)

    def decode_embeddings(self, body: bytes) -> Json:
        return decode_embeddings(body)

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        return upstream_error(status, headers, body)
