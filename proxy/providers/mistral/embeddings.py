"""Mistral's embeddings: OpenAI's with a name of its own for the dimensions. docs.mistral.ai/api/endpoint/embeddings"""

from __future__ import annotations

from proxy.providers import Json, Target, UpstreamRequest
from proxy.providers.embeddings import left_out, renamed, texts_in

OWN = {"dimensions": "output_dimension", "output_dtype": "output_dtype", "metadata": "metadata"}


def encode_embeddings(asked: Json, target: Target) -> UpstreamRequest:
    body = {"model": target.model, "input": texts_in(asked, "Mistral"), **renamed(asked, OWN)}
    return UpstreamRequest("/embeddings", body, notices=tuple(left_out(asked, OWN, "Mistral")))
