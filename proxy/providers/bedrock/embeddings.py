"""
Embeddings on Bedrock: Converse has none, so each family is spoken to by `invoke` in its own words.
https://docs.aws.amazon.com/bedrock/latest/userguide/model-parameters-titan-embed-text.html
https://docs.aws.amazon.com/bedrock/latest/userguide/model-parameters-embed.html

How many tokens Cohere's models read stands in a header only; they are counted here.
"""

from __future__ import annotations

import msgspec

from proxy.errors import CallerError
from proxy.providers import Json, Notice, Target, UpstreamRequest
from proxy.providers.bedrock.requests import escaped, model_behind, refuse_unsafe
from proxy.providers.cohere.embeddings import Floats, encode_texts
from proxy.providers.embeddings import answer_of, decode_as, left_out, no_vectors, one_text, renamed

TITAN, TITAN_1, COHERE = "amazon.titan-embed", "amazon.titan-embed-text-v1", "cohere.embed"


class _Answer(msgspec.Struct, frozen=True):
    """Titan's one vector with its tokens, or Cohere's many."""

    embedding: msgspec.Raw = msgspec.Raw()
    inputTextTokenCount: int | None = None
    embeddings: Floats | list[msgspec.Raw] | None = None


def encode_embeddings(asked: Json, target: Target) -> UpstreamRequest:
    refuse_unsafe(target.model)
    model = model_behind(target).id
    if model.startswith(TITAN):
        body, notices = _titan(asked, model)
    elif model.startswith(COHERE):
        body, notices = encode_texts(asked)
    else:
        raise CallerError(
            f"Embeddings of {target.model!r:.100} are not known here: on Bedrock, amazon.titan-embed-… and "
            "cohere.embed-… make some.",
            param="model",
        )
    return UpstreamRequest(f"/model/{escaped(target.model)}/invoke", body, notices=notices)


def decode_embeddings(body: bytes) -> Json:
    answer = decode_as(body, _Answer)
    if memoryview(answer.embedding):
        return answer_of([answer.embedding], answer.inputTextTokenCount)
    many = answer.embeddings
    if many is None:
        raise no_vectors()
    return answer_of(many.float if isinstance(many, Floats) else many, None)


def _titan(asked: Json, model: str) -> tuple[Json, tuple[Notice, ...]]:
    body: Json = {"inputText": one_text(asked, "Titan")}
    meant: set[str] = set()
    if not model.startswith(TITAN_1):  # the first version knows nothing but the text
        meant = {"dimensions", "normalize"}
        body |= renamed(asked, {name: name for name in sorted(meant)})
    return body, tuple(left_out(asked, meant, "Titan"))
