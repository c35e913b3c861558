"""
OpenAI embeddings as clients speak them: a body in, a request out; vectors in, bytes out.

How vectors are packed (`encoding_format`) is between the client and us: OpenAI's SDKs ask for base64 unless told
otherwise, and most providers only know lists of numbers.
https://platform.openai.com/docs/api-reference/embeddings/create
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec

from proxy.dialects.chat_shape import Strata
from proxy.dialects.openai import decode_as
from proxy.errors import CallerError
from proxy.providers import Json, Notice

MAX_DIMENSIONS = 2**31 - 1

_encode = msgspec.json.Encoder().encode
_decode_numbers = msgspec.json.Decoder(list[float]).decode
_decode_text = msgspec.json.Decoder(str).decode


class EmbeddingsShape(msgspec.Struct):
    """Only what holds for every provider; a field that is not listed passes untouched."""

    model: Annotated[str, msgspec.Meta(min_length=1)]
    input: str | list[Any]
    dimensions: Annotated[int, msgspec.Meta(ge=1, le=MAX_DIMENSIONS)] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    stream: bool | None = None
    strata: Strata | None = None
    user: str | None = None


def decode(body: bytes) -> Json:
    """The request in `body`, validated. Raises CallerError with `param`, before anything is spent."""
    asked = decode_as(body, EmbeddingsShape)
    _check_input(asked["input"])
    if asked.get("stream"):
        raise CallerError("Embeddings are not streamed: leave stream out.", code="invalid_value", param="stream")
    return asked


def countable(asked: Json) -> tuple[str, int]:
    """What there is to count, if the provider does not: text; and how many tokens came as numbers."""
    given = asked["input"]
    if isinstance(given, str):
        return given, 0
    if _is_token(given[0]):
        return "", len(given)
    return "\n".join(one for one in given if isinstance(one, str)), sum(len(one) for one in given if type(one) is list)


def how_many(asked: Json) -> int:
    """Texts, each of which has one vector."""
    given = asked["input"]
    return 1 if isinstance(given, str) or _is_token(given[0]) else len(given)


def pack(data: Sequence[Json], asked: Json) -> list[Json]:
    """The vectors as they were asked for; untouched where they are right already. ValueError if one is none."""
    packed = asked.get("encoding_format") == "base64"
    return [{**item, "embedding": _as_asked(item["embedding"], packed)} for item in data]


def encode(answer: Json, *, model: str, cost: float | None, notices: Sequence[Notice]) -> bytes:
    """The whole answer. `cost` in dollars; None: the price is unknown."""
    stamped = {**answer, "object": "list", "model": answer.get("model", model)}
    stamped["usage"] = {**answer["usage"], "cost": cost}
    if notices:
        stamped["strata"] = {"notices": notices}
    return _encode(stamped)


def size_of(data: Sequence[Json]) -> int:
    """Bytes of all vectors, as they came."""
    return sum(memoryview(item["embedding"]).nbytes for item in data)


def _as_asked(vector: msgspec.Raw, packed: bool) -> msgspec.Raw | str | tuple[float, ...]:
    """As base64 of 32-bit floats, or as a list of numbers."""
    is_list = bytes(memoryview(vector)[:1]) == b"["
    if packed and is_list:
        numbers = _decode_numbers(vector)
        return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()
    if not packed and not is_list:
        raw = base64.b64decode(_decode_text(vector), validate=True)
        if len(raw) % 4:
            raise ValueError("not a list of 32-bit floats")
        return struct.unpack(f"<{len(raw) // 4}f", raw)
    return vector


def _check_input(given: str | list[Any]) -> None:
    if not given:
        raise CallerError("input is empty: send a text, or a list of texts.", code="invalid_value", param="input")
    if isinstance(given, str) or all(map(_is_token, given)):
        return
    for position, one in enumerate(given):
        if isinstance(one, str) and one:
            continue
        if not (isinstance(one, list) and one and all(map(_is_token, one))):
            raise CallerError(
                f"input[{position}] must be a text that is not empty, or a list of token numbers.",
                code="invalid_value",
                param=f"input[{position}]",
            )


def _is_token(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**31
