"""
Cohere's embeddings, version 2: docs.cohere.com/v2/reference/embed

Its models tell documents from queries, and want to know which a text is; OpenAI's clients do not say. And it would cut
off a text that is too long without a word, unless it is told not to.
"""

from __future__ import annotations

import msgspec

from proxy.providers import Json, Notice, Target, UpstreamRequest
from proxy.providers.embeddings import answer_of, decode_as, left_out, renamed, texts_in

INPUT_TYPE = "search_document"
MEANT = {"dimensions", "input_type", "truncate"}
GUESSED = Notice(
    "input_type", f"Set to {INPUT_TYPE}; for a query send input_type search_query in the body.", lost=False
)


class Floats(msgspec.Struct, frozen=True):
    float: list[msgspec.Raw]


class _Billed(msgspec.Struct, frozen=True):
    input_tokens: int | None = None


class _Meta(msgspec.Struct, frozen=True):
    billed_units: _Billed = _Billed()


class _Answer(msgspec.Struct, frozen=True):
    embeddings: Floats
    meta: _Meta = _Meta()


def encode_embeddings(asked: Json, target: Target) -> UpstreamRequest:
    body, notices = encode_texts(asked)
    return UpstreamRequest("/v2/embed", {"model": target.model, **body}, notices=notices)


def encode_texts(asked: Json) -> tuple[Json, tuple[Notice, ...]]:
    """What Cohere's models are told, wherever they run: everything but which of them is meant."""
    body: Json = {
        "texts": texts_in(asked, "Cohere"),
        "input_type": asked.get("input_type") or INPUT_TYPE,
        "embedding_types": ["float"],
        "truncate": asked.get("truncate") or "NONE",
        **renamed(asked, {"dimensions": "output_dimension"}),
    }
    notices = () if asked.get("input_type") else (GUESSED,)
    return body, (*notices, *left_out(asked, MEANT, "Cohere"))


def decode_embeddings(body: bytes) -> Json:
    answer = decode_as(body, _Answer)
    return answer_of(answer.embeddings.float, answer.meta.billed_units.input_tokens)
