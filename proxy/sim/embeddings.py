"""Vectors of length one, made from the text's hash: equal texts are equal, all others are nearly at right angles."""

from __future__ import annotations

import base64
import hashlib
import math
import struct
from collections.abc import Mapping
from typing import Any

import msgspec

from proxy.sim.answers import BYTES_PER_TOKEN, BadRequest

DEFAULT_DIMENSIONS = 256
MAX_DIMENSIONS = 3_072
MAX_INPUTS = 2_048


def embed(model: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """OpenAI's embeddings answer. Input is a text, texts, token numbers, or lists of them; floats or base64 out."""
    inputs = _inputs(request.get("input"))
    wanted = request.get("dimensions")
    dimensions = DEFAULT_DIMENSIONS if wanted is None else wanted
    if not isinstance(dimensions, int) or isinstance(dimensions, bool) or not 1 <= dimensions <= MAX_DIMENSIONS:
        raise BadRequest(f"dimensions must be from 1 to {MAX_DIMENSIONS}.", "dimensions")
    as_text = request.get("encoding_format") == "base64"
    data: list[dict[str, Any]] = []
    for index, (source, _) in enumerate(inputs):
        vector = _vector(source, dimensions)
        packed = base64.b64encode(struct.pack(f"<{dimensions}f", *vector)).decode() if as_text else vector
        data.append({"object": "embedding", "index": index, "embedding": packed})
    used = sum(count for _, count in inputs)
    return {
        "object": "list",
        "data": data,
        "model": model,
        "usage": {"prompt_tokens": used, "total_tokens": used},
    }


def _inputs(value: object) -> list[tuple[bytes, int]]:
    """Each input as bytes to hash, with its token count."""
    many = value if isinstance(value, list) and not all(_is_token(one) for one in value) else [value]
    if not 1 <= len(many) <= MAX_INPUTS:
        raise BadRequest(f"input must hold from 1 to {MAX_INPUTS} entries.", "input")
    inputs: list[tuple[bytes, int]] = []
    for one in many:
        if isinstance(one, str) and one:
            raw = one.encode("utf-8", "replace")
            inputs.append((raw, -(-len(raw) // BYTES_PER_TOKEN)))
        elif isinstance(one, list) and one and all(_is_token(number) for number in one):
            inputs.append((msgspec.json.encode(one), len(one)))
        else:
            raise BadRequest(
                "input must be a text that is not empty, a list of them, or lists of token numbers.", "input"
            )
    return inputs


def _is_token(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _vector(source: bytes, dimensions: int) -> list[float]:
    raw = hashlib.shake_128(source).digest(2 * dimensions)
    numbers = [number + 0.5 for number in struct.unpack(f"<{dimensions}h", raw)]
    length = math.sqrt(sum(number * number for number in numbers))
    return [round(number / length, 8) for number in numbers]
