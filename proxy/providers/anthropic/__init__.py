"""
Anthropic's Messages API. Each direction is a file: `requests` (with `messages` for the conversation and `reasoning` for
thinking), `answers` for whole answers and what both kinds share, `streams` for the events.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from proxy.errors import UpstreamError
from proxy.providers import ChatRequest, Completion, Target, UpstreamRequest
from proxy.providers.anthropic.answers import decode_answer
from proxy.providers.anthropic.requests import API_VERSION, encode_chat
from proxy.providers.anthropic.streams import StreamDecoder
from proxy.providers.faults import upstream_error


class Translator:
    framing: Literal["sse", "aws"] = "sse"
    same_dialect = False
    auth = "x-api-key"

    def list_models(self, target: Target) -> UpstreamRequest:
        return UpstreamRequest("/v1/models?limit=1000", {}, {"anthropic-version": API_VERSION})

    def encode_request(self, chat: ChatRequest, target: Target) -> UpstreamRequest:
        return encode_chat(chat, target)

    def decode_response(self, body: bytes) -> Completion:
        return decode_answer(body)

    def stream_decoder(self) -> StreamDecoder:
        return StreamDecoder()

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        return upstream_error(status, headers, body)
