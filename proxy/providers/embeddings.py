"""
Embeddings: what an API does for POST /v1/embeddings, in the clothes of a translator, so that the relay knows no other.

An API that embeds has `encode_embeddings` and `decode_embeddings` beside its chat. What comes back is OpenAI's list
without its envelope: `data`, with each vector undecoded as it came, `usage` where the provider counts, and `model` if
it named one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, runtime_checkable

import msgspec

from proxy.errors import CallerError, UpstreamError
from proxy.providers import Completion, Json, Notice, StreamDecoder, Target, UpstreamRequest
from proxy.providers.faults import bad_response, stream_error

if TYPE_CHECKING:  # what has a Translator is an API, to `load`
    from proxy.providers import Translator

Shape = TypeVar("Shape")
UNREADABLE = (msgspec.DecodeError, ValueError, RecursionError)

_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_items = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode
_decode_any = msgspec.json.Decoder().decode


@runtime_checkable
class Embeds(Protocol):
    """An API that makes embeddings."""

    auth: str

    def encode_embeddings(self, asked: Json, target: Target) -> UpstreamRequest:
        """Must not change `asked`. Raises CallerError with a `param`."""

    def decode_embeddings(self, body: bytes) -> Json: ...

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError: ...


def embedder(translator: Translator) -> Translator | None:
    """What speaks of embeddings to this API; None if it makes none."""
    return Embedder(translator) if isinstance(translator, Embeds) else None


class Embedder:
    framing: Literal["sse", "aws"] = "sse"
    same_dialect = False

    def __init__(self, api: Embeds) -> None:
        self.auth = api.auth
        self._api = api

    def encode_request(self, chat: Json, target: Target) -> UpstreamRequest:
        return self._api.encode_embeddings(chat, target)

    def decode_response(self, body: bytes) -> Completion:
        return self._api.decode_embeddings(body)

    def stream_decoder(self) -> StreamDecoder:
        raise NotImplementedError("embeddings are not streamed")

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        return self._api.decode_error(status, headers, body)


def decode_list(body: bytes) -> Json:
    """OpenAI's own answer. Raises UpstreamError if it is an error, or none."""
    try:
        fields = _decode_fields(body)
        if bytes(fields.get("error", b"null")) != b"null":
            raise stream_error(_decode_any(body))
        data = _decode_items(fields["data"])
        usage = _decode_any(fields["usage"]) if "usage" in fields else None
    except (*UNREADABLE, KeyError):
        raise bad_response("The provider sent an answer that is not a list of embeddings.") from None
    if not all("embedding" in item for item in data):
        raise bad_response("The provider sent a list in which an embedding is missing.")
    answer = {name: value for name, value in fields.items() if name not in ("object", "usage")}
    return {**answer, "data": data} | ({"usage": _with_prompt(usage)} if isinstance(usage, dict) else {})


def decode_as(body: bytes, shape: type[Shape]) -> Shape:
    """A native answer. Raises UpstreamError if it is not one."""
    try:
        return msgspec.json.decode(body, type=shape)
    except UNREADABLE:
        raise no_vectors() from None


def no_vectors() -> UpstreamError:
    return bad_response("The provider sent an answer that holds no embeddings.")


def answer_of(vectors: Iterable[msgspec.Raw], tokens: int | None) -> Json:
    """Vectors in the order of the texts, as they came; and how many tokens these were, if the provider says so."""
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    return {"data": data} | ({} if tokens is None else {"usage": {"prompt_tokens": tokens, "total_tokens": tokens}})


def texts_in(asked: Json, api: str) -> list[str]:
    """The texts to embed. Raises CallerError for token numbers: they are of OpenAI's vocabularies."""
    given = asked["input"]
    texts = [given] if isinstance(given, str) else given
    if not all(isinstance(text, str) for text in texts):
        raise CallerError(f"{api} takes texts, not token numbers of another vocabulary.", param="input")
    return list(texts)


def one_text(asked: Json, api: str) -> str:
    """Raises CallerError if there are several."""
    texts = texts_in(asked, api)
    if len(texts) > 1:
        raise CallerError(f"{api} embeds one text in a request, not {len(texts)}: send them one by one.", param="input")
    return texts[0]


def left_out(asked: Json, meant: Collection[str], api: str) -> Iterator[Notice]:
    """Notices for what this API has no word for. How vectors are packed is between the client and us."""
    for name, value in asked.items():
        if name not in {"model", "input", "encoding_format", "strata", *meant} and value is not None:
            yield Notice(name, f"{api} has no {name} for embeddings; it was left out.")


def renamed(asked: Json, names: Mapping[str, str]) -> Json:
    """What of these was asked for, under the names it has there."""
    return {there: asked[here] for here, there in names.items() if asked.get(here) is not None}


def _with_prompt(usage: dict[str, Any]) -> Json:
    """Voyage and Jina count one number: all there is, is prompt."""
    if usage.get("prompt_tokens") is None and isinstance(usage.get("total_tokens"), int):
        return {**usage, "prompt_tokens": usage["total_tokens"]}
    return usage
