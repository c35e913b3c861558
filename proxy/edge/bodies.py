"""The JSON body of a page that changes something, read into a shape that knows all its fields."""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec
from starlette.requests import Request

from proxy.dialects.bodies import decode_object
from proxy.errors import CallerError

MAX_BYTES = 200_000
EMAIL = r"^[^\s@\x00-\x1f\x7f]+@[^\s@\x00-\x1f\x7f]+\Z"
NAME = r"^[^\x00-\x1f\x7f]*\Z"
"""Patterns of texts: nothing that a terminal or a header would obey."""

T = TypeVar("T")


async def body_of(request: Request, shape: type[T], *, optional: bool = False) -> T:
    """
    Raises CallerError. Only what calls itself JSON: a form of another site can send anything else in a visitor's name.
    `optional`: no body is one that says nothing.
    """
    body = bytearray()
    async for part in request.stream():
        body.extend(part)
        if len(body) > MAX_BYTES:
            raise CallerError(
                f"The body has more than {MAX_BYTES} bytes.",
                status=413,
                code="request_too_large",
                error_type="caller_too_large",
            )
    if optional and not body:
        return shape()
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise CallerError(
            "Send the body as JSON, with Content-Type: application/json.", status=415, code="unsupported_media_type"
        )
    return _decoded(bytes(body), shape)


def _decoded(body: bytes, shape: type[T]) -> T:
    try:
        return msgspec.convert(decode_object(body), shape)
    except msgspec.ValidationError as error:
        # its words name fields and types, never a value
        path = re.search(r"`\$\.(\w+)`", str(error))
        raise CallerError(
            f"The body is not as it should be: {error}.", code="invalid_value", param=path[1] if path else None
        ) from None
