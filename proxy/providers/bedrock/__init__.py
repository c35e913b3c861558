"""
Amazon Bedrock's Converse and ConverseStream. Each direction is a file: `requests` (with `messages` and `content` for
the conversation, `tools`, `formats` for structured output, `reasoning` for thinking, `models` for what a model can do),
`answers` for whole answers and what both kinds share, `streams` for the events, `failures` for errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from proxy.errors import UpstreamError
from proxy.providers import ChatRequest, Completion, Json, Target, UpstreamRequest
from proxy.providers.bedrock.answers import decode_answer
from proxy.providers.bedrock.embeddings import decode_embeddings, encode_embeddings
from proxy.providers.bedrock.failures import decode_failure
from proxy.providers.bedrock.requests import encode_chat
from proxy.providers.bedrock.streams import StreamDecoder


class Translator:
    framing: Literal["sse", "aws"] = "aws"
    same_dialect = False
    auth = "aws"

    def takes_url(self, url: str, model: str) -> bool:
        return False

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
        return decode_failure(status, headers, body)
