"""
Bedrock's errors: whose type is in a header or in an event's name and whose text is all the body holds, given the shape
and the status by which `proxy.providers.faults` knows what they mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from proxy.errors import UpstreamError
from proxy.providers.faults import upstream_error

STATUSES = {
    "validationexception": 400, "accessdeniedexception": 403, "resourcenotfoundexception": 404,
    "modeltimeoutexception": 408, "modelerrorexception": 424, "modelstreamerrorexception": 424,
    "throttlingexception": 429, "servicequotaexceededexception": 429, "internalserverexception": 500,
    "modelnotreadyexception": 503, "serviceunavailableexception": 503,
}  # fmt: skip
"""The status that each type means: in a stream there is no other, and a quota answers 400, which it is not."""

FROM_THE_MODEL = "The model returned the following errors: "
"""What Converse puts before the words of a model's maker, which say more by their beginning."""

OPERATORS = (
    ("operation not allowed", 403, "accessdeniedexception"),
    ("you don't have access to the model", 403, "accessdeniedexception"),
    ("this account is not authorized to", 403, "accessdeniedexception"),
)
"""Refusals that answer 400 and are the operator's to mend, not the caller's."""


def decode_failure(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
    """The error for an answer with this status."""
    native = _object(body)
    if native is None:
        return upstream_error(status, headers, body)
    named = headers.get("x-amzn-errortype") or native.get("__type")
    return _failure(status, headers, named if isinstance(named, str) else "", native)


def stream_failure(name: str, data: bytes) -> UpstreamError:
    """The error for an exception inside a stream that had begun with 200; an unmodelled one is text, not JSON."""
    native = _object(data)
    if native is None:
        native = {"message": data.decode("utf-8", "replace")}
    return _failure(500, {}, name, native)


def _failure(status: int, headers: Mapping[str, str], named: str, native: Mapping[str, Any]) -> UpstreamError:
    # `ValidationException:http://internal.amazon.com/…`, `com.amazon.coral.service#ValidationException`
    kind = named.partition(":")[0].rpartition("#")[2].lower()
    said = next((native[key] for key in ("message", "Message", "originalMessage") if native.get(key)), "")
    message = said.removeprefix(FROM_THE_MODEL) if isinstance(said, str) else str(said)
    status = STATUSES.get(kind, status)
    lower = message.lower()
    for beginning, means, word in OPERATORS:
        if lower.startswith(beginning):
            status, kind = means, word
    if lower.startswith("invocation of model id") and "on-demand throughput" in lower:
        status, kind = 404, "model_not_found"
    if kind == "resourcenotfoundexception":
        kind = "model_not_found"
    return upstream_error(status, headers, msgspec.json.encode({"error": {"message": message, "type": kind}}))


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        native = msgspec.json.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    return native if isinstance(native, dict) else None
