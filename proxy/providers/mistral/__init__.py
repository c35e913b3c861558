"""
Mistral's chat API: OpenAI's with names and rules of its own. `requests` puts a conversation as Mistral takes it, for it
refuses every field that it does not know; `content` reads answers, whose content may be a list of thoughts, text and
references. The rest of an answer is OpenAI's, so its decoders do the rest.
docs.mistral.ai/api
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from proxy.errors import UpstreamError
from proxy.providers import ChatRequest, Chunk, Completion, Json, Target, UpstreamRequest, openai
from proxy.providers.embeddings import decode_list
from proxy.providers.faults import bad_response, upstream_error
from proxy.providers.mistral.content import ContentReader
from proxy.providers.mistral.embeddings import encode_embeddings
from proxy.providers.mistral.requests import encode_chat


class Translator:
    framing: Literal["sse", "aws"] = "sse"
    same_dialect = False
    auth = "bearer"

    def list_models(self, target: Target) -> UpstreamRequest:
        return UpstreamRequest("/models", {})

    def encode_request(self, chat: ChatRequest, target: Target) -> UpstreamRequest:
        return encode_chat(chat, target)

    def decode_response(self, body: bytes) -> Completion:
        completion = openai.Translator().decode_response(body)
        try:
            for choice in completion["choices"]:
                choice["message"] = ContentReader().read(choice["message"])
        except (TypeError, AttributeError) as error:
            raise bad_response("The provider sent an answer that is not a chat completion.") from error
        return completion

    def stream_decoder(self) -> StreamDecoder:
        return StreamDecoder()

    def encode_embeddings(self, asked: Json, target: Target) -> UpstreamRequest:
        return encode_embeddings(asked, target)

    def decode_embeddings(self, body: bytes) -> Json:
        return decode_list(body)

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        return upstream_error(status, headers, body)


class StreamDecoder(openai.StreamDecoder):
    """
    ( chunk )+  [DONE]

    As OpenAI's, but that a delta's content may be a list, calls come whole, and usage stands on the last choice.
    """

    def __init__(self) -> None:
        super().__init__()
        self._contents: dict[int, ContentReader] = {}

    def _choice(self, native: Json) -> list[Chunk]:
        reader = self._contents.setdefault(native.get("index") or 0, ContentReader())
        return super()._choice({**native, "delta": reader.read(native.get("delta") or {})})
