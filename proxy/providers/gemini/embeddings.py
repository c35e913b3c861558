"""
Gemini's embeddings: `batchEmbedContents` of the Gemini API (https://ai.google.dev/api/embeddings), and on Google Cloud
`predict`, or `embedContent` for the models that only know that.
https://cloud.google.com/vertex-ai/generative-ai/docs/model-reference/text-embeddings-api

Google cuts off a text that is too long without a word; where it can be told not to, it is told.
"""

from __future__ import annotations

import msgspec

from proxy.providers import Json, Target, UpstreamRequest
from proxy.providers.embeddings import answer_of, decode_as, left_out, no_vectors, one_text, renamed, texts_in
from proxy.providers.gemini.models import Model, read_model

OWN = {"task_type": "taskType", "taskType": "taskType", "title": "title"}
"""Google's own parameters, which OpenAI's clients send as `extra_body`."""
MEANT = {"dimensions", *OWN}
ONE_BY_ONE = "gemini-embedding-2"
"""Models of Google Cloud that have `embedContent` and no `predict`."""


class _Values(msgspec.Struct, frozen=True):
    values: msgspec.Raw


class _Counted(msgspec.Struct, frozen=True):
    promptTokenCount: int | None = None


class _Batch(msgspec.Struct, frozen=True):
    embeddings: list[_Values]
    usageMetadata: _Counted = _Counted()


class _Statistics(msgspec.Struct, frozen=True):
    token_count: float | None = None


class _Predicted(_Values, frozen=True):
    statistics: _Statistics = _Statistics()


class _Prediction(msgspec.Struct, frozen=True):
    embeddings: _Predicted


class _Cloud(msgspec.Struct, frozen=True):
    """Of `predict` or of `embedContent`."""

    predictions: list[_Prediction] = []
    embedding: _Values | None = None
    usageMetadata: _Counted = _Counted()


def encode_embeddings(asked: Json, target: Target) -> UpstreamRequest:
    name = _name(read_model(target.model))
    settings = renamed(asked, {"dimensions": "outputDimensionality", **OWN})
    requests = [
        {"model": name, "content": {"parts": [{"text": text}]}, **settings} for text in texts_in(asked, "Gemini")
    ]
    notices = tuple(left_out(asked, MEANT, "Gemini"))
    return UpstreamRequest(f"/{name}:batchEmbedContents", {"requests": requests}, notices=notices)


def decode_embeddings(body: bytes) -> Json:
    batch = decode_as(body, _Batch)
    return answer_of((one.values for one in batch.embeddings), batch.usageMetadata.promptTokenCount)


def encode_cloud(asked: Json, model: Model) -> UpstreamRequest:
    """The path is what stands behind the publisher."""
    notices = tuple(left_out(asked, MEANT, "Vertex"))
    if model.name.rpartition("/")[2].startswith(ONE_BY_ONE):
        settings = renamed(asked, {"dimensions": "outputDimensionality", **OWN})
        text = one_text(asked, f"{model.name} on Vertex")
        body: Json = {"content": {"parts": [{"text": text}]}, "embedContentConfig": {**settings, "autoTruncate": False}}
        return UpstreamRequest(f"/{_name(model)}:embedContent", body, notices=notices)
    own = renamed(asked, {"task_type": "task_type", "taskType": "task_type", "title": "title"})
    parameters = renamed(asked, {"dimensions": "outputDimensionality"})
    instances = [{"content": text, **own} for text in texts_in(asked, "Vertex")]
    body = {"instances": instances, "parameters": {"autoTruncate": False, **parameters}}
    return UpstreamRequest(f"/{_name(model)}:predict", body, notices=notices)


def decode_cloud(body: bytes) -> Json:
    native = decode_as(body, _Cloud)
    if native.embedding is not None:
        return answer_of([native.embedding.values], native.usageMetadata.promptTokenCount)
    if not native.predictions:
        raise no_vectors()
    counts = [one.embeddings.statistics.token_count for one in native.predictions]
    tokens = None if None in counts else int(sum(count or 0 for count in counts))
    return answer_of((one.embeddings.values for one in native.predictions), tokens)


def _name(model: Model) -> str:
    return model.name if "/" in model.name else f"models/{model.name}"
