"""
A provider's error answer, or error event, as an `UpstreamError`: one table decides what the client sees, whether
another deployment is tried and whether this one rests, so that no provider can get retries wrong.

First the provider's codes and the beginnings of its messages are read, then its status. Only beginnings: a message may
quote the caller, and a caller must not be able to make a deployment rest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from proxy.errors import UpstreamError

MAX_MESSAGE_CHARACTERS = 500
MAX_RETRY_AFTER_SECONDS = 300.0


class Fault(NamedTuple):
    """One row: what the client sees, whether to try another deployment, whether this one rests, and our sentence."""

    status: int
    code: str
    type: str
    error_type: str
    retryable: bool
    rest: bool
    sentence: str = ""
    """Ours. Empty: the provider's own words are the message, for the caller can act on them."""
    quotes: bool = True
    """Whether the provider's words follow our sentence. Not where they would tell strangers about the operator."""


CALLER, SERVER = "invalid_request_error", "server_error"
FAULTS = {
    "invalid": Fault(400, "invalid_request", CALLER, "caller_invalid_request", False, False),
    "too_large": Fault(413, "request_too_large", CALLER, "caller_too_large", False, False),
    "context": Fault(400, "context_length_exceeded", CALLER, "caller_context_length", False, False),
    "filtered": Fault(400, "content_filter", CALLER, "provider_content_filter", False, False),
    "auth": Fault(
        502, "provider_auth", SERVER, "provider_auth", True, True,
        "The provider refused this gateway's key. The operator can check it with: strata doctor", False,
    ),
    "quota": Fault(
        502, "provider_quota", SERVER, "provider_quota", True, True,
        "This gateway's account at the provider has no credit left. The operator can add some there.", False,
    ),
    "no_model": Fault(
        502, "upstream_model_not_found", SERVER, "provider_error", True, False,
        "The provider does not know the configured model",
    ),
    "rate": Fault(
        429, "rate_limit_exceeded", "rate_limit_error", "provider_rate_limited", True, True,
        "The provider limits this gateway's rate; try again later",
    ),
    "timeout": Fault(504, "provider_timeout", SERVER, "provider_timeout", True, True, "The provider timed out"),
    "overloaded": Fault(
        503, "provider_overloaded", SERVER, "provider_overloaded", True, True, "The provider is overloaded"
    ),
    "loop": Fault(
        508, "loop_detected", SERVER, "gateway_config", False, False,
        "The request went round in a circle of gateways. The operator mends the api_base of its provider", False,
    ),
    "error": Fault(502, "provider_error", SERVER, "provider_error", True, True, "The provider failed"),
}  # fmt: skip

STATUSES = {
    400: "invalid", 401: "auth", 402: "quota", 403: "auth", 404: "no_model", 408: "timeout", 413: "too_large",
    422: "invalid", 429: "rate", 503: "overloaded", 504: "timeout", 508: "loop", 529: "overloaded",
}  # fmt: skip
"""Everything else that is not a success is `error`."""

WORDS = {
    "context_length_exceeded": "context", "too_many_prompt_tokens": "context", "too_many_tokens": "context",
    "content_filter": "filtered", "content_policy_violation": "filtered",
    "responsibleaipolicyviolation": "filtered", "model_not_found": "no_model", "deploymentnotfound": "no_model",
    "invalid_model": "no_model", "unknown_model": "no_model",
    "invalid_api_key": "auth", "api_key_invalid": "auth", "authentication_error": "auth", "permission_error": "auth",
    "unrecognizedclientexception": "auth", "accessdeniedexception": "auth", "insufficient_quota": "quota",
    "billing_error": "quota", "billing_hard_limit_reached": "quota", "rate_limit_error": "rate",
    "rate_limit_exceeded": "rate", "throttlingexception": "rate", "resource_exhausted": "rate",
    "request_too_large": "too_large", "not_found_error": "no_model", "timeout_error": "timeout",
    "deadline_exceeded": "timeout", "overloaded_error": "overloaded", "overloaded": "overloaded",
    "unavailable": "overloaded", "serviceunavailableexception": "overloaded",
}  # fmt: skip
"""By the error's `code`, `type` or `status`, in lower case; the more telling one is read first."""

BEGINNINGS = (
    ("prompt is too long", "context"),
    ("input is too long", "context"),
    ("input length and `max_tokens` exceed context limit", "context"),
    ("the input token count", "context"),
    ("input tokens exceeded", "context"),
    ("too many tokens", "context"),
    ("prompt too long", "context"),
    ("this model's maximum context length", "context"),
    ("this endpoint's maximum context length", "context"),
    ("the prompt is too long", "context"),
    ("output blocked by content filtering", "filtered"),
    ("incorrect api key", "auth"),
    ("invalid api key", "auth"),
    ("api key not valid", "auth"),
    ("invalid x-api-key", "auth"),
    ("user location is not supported", "auth"),  # Google's, of the gateway's own place
    ("gemini api free tier is not available", "quota"),
    ("your credit balance is too low", "quota"),
    ("insufficient balance", "quota"),
    ("the provided model identifier is invalid", "no_model"),
)

STREAM_STATUSES = {
    "invalid_request_error": 400, "authentication_error": 401, "billing_error": 402, "permission_error": 403,
    "not_found_error": 404, "request_too_large": 413, "rate_limit_error": 429, "api_error": 500, "timeout_error": 504,
    "overloaded_error": 529,
}  # fmt: skip
"""The status an error event would have had as an answer."""


class Said(NamedTuple):
    """What a provider's error says, whatever its shape."""

    message: str = ""
    words: tuple[str, ...] = ()
    """Its codes, the most telling first."""
    param: str | None = None
    code: str | None = None
    status: int | None = None
    retry_after_seconds: float | None = None


def upstream_error(status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
    """The error for an answer with this status. Header names are lower case; the body may be anything."""
    said = _said(body)
    seconds = _retry_after_seconds(headers)
    return _error(status, said, said.retry_after_seconds if seconds is None else seconds)


def words_of(body: bytes) -> str:
    """What an error answer says, fit for whoever brought the key: see `clean`."""
    return clean(_said(body).message)


def stream_error(native: Any) -> UpstreamError:
    """The error for an error event inside an answer that had begun with 200."""
    said = _read(native)
    status = said.status or next((STREAM_STATUSES[word] for word in said.words if word in STREAM_STATUSES), 500)
    return _error(status, said, said.retry_after_seconds)


def bad_response(message: str) -> UpstreamError:
    """The provider answered, and it is not an answer of its API."""
    return UpstreamError(message, code="bad_response", error_type="provider_bad_response")


def _error(status: int, said: Said, retry_after_seconds: float | None) -> UpstreamError:
    kind = _kind(status, said)
    fault = FAULTS[kind]
    words = clean(said.message)
    passes = not fault.sentence
    message = words or f"The provider refused the request ({status}) and did not say why." if passes else fault.sentence
    if not passes:
        message = f"{message} ({status})" if fault.quotes else message
        message = f"{message}: {words}" if fault.quotes and words else f"{message.rstrip('.')}."
    error = UpstreamError(
        message,
        status=422 if passes and status == 422 and fault.status == 400 else fault.status,
        code=said.code or fault.code if kind == "invalid" else fault.code,
        type=fault.type,
        error_type=fault.error_type,
        param=said.param if passes else None,
        retryable=fault.retryable,
        rest=fault.rest,
        retry_after_seconds=retry_after_seconds if fault.retryable else None,
        upstream_status=status,
    )
    if words and not passes and not fault.quotes:
        error.add_note(f"The provider said ({status}): {words}")
    return error


def _kind(status: int, said: Said) -> str:
    by_status = STATUSES.get(status, "error")
    if by_status == "auth" and "moderation" in said.words:
        return "filtered"
    kinds = [WORDS[word] for word in said.words if word in WORDS]
    message = said.message.lower()
    kinds += [kind for beginning, kind in BEGINNINGS if message.startswith(beginning)]
    if not kinds:
        return by_status
    # a code may sharpen a status, never turn a refusal of the operator's key into the caller's fault
    if by_status == "auth":
        return kinds[0] if kinds[0] in ("filtered", "quota", "no_model") else "auth"
    return kinds[0]


def _said(body: bytes) -> Said:
    try:
        return _read(msgspec.json.decode(body))
    except (msgspec.DecodeError, ValueError, RecursionError):
        text = body[:4096].decode("utf-8", "replace").strip()
        if not text.startswith("<"):
            return Said(text)
        title = re.search(r"<title[^>]*>([^<]{1,200})", text, re.IGNORECASE)
        named = f" titled “{title[1].strip()}”" if title else ""
        return Said(f"A web page{named} came in place of an error.")


def _read(native: Any) -> Said:
    """
    Knows these shapes: `{"error": {…}}` (OpenAI, Anthropic, Google), `[{"error": {…}}]` (Google's streams),
    `{"error": "text", "code": …}` (xAI), `{"message": …}` (Bedrock, Cohere, Mistral), `{"error_code", "message"}`
    (Databricks), `{"detail": text}` and `{"detail": [{"msg", "loc"}]}`, which Mistral puts into `message`.
    """
    if isinstance(native, list):
        native = native[0] if native else {}
    if not isinstance(native, dict):
        return Said(native if isinstance(native, str) else "")
    error = native.get("error")
    if not isinstance(error, dict):
        error = {**native, "message": error} if isinstance(error, str) else native
    message = error.get("message") or error.get("detail") or ""
    if isinstance(message, dict):
        message = message.get("detail") or message
    param = error.get("param")
    if isinstance(message, list):
        param = param or next((where for item in message if (where := _place(item))), None)
        message = "; ".join(_problem(item) for item in message)
    raw = [error.get("code"), error.get("error_code"), _inner_code(error), error.get("status"), error.get("type")]
    raw += _reasons(error)
    code = error.get("code")
    return Said(
        message=message if isinstance(message, str) else str(message),
        words=tuple(word.lower() for word in raw if isinstance(word, str)),
        param=param if isinstance(param, str) else None,
        code=code if isinstance(code, str) and re.fullmatch(r"[a-z0-9_]{1,64}", code) else None,
        status=code if isinstance(code, int) and 400 <= code <= 599 else None,
        retry_after_seconds=_retry_info(error),
    )


def _problem(item: Any) -> str:
    if not isinstance(item, dict):
        return str(item)
    where = item.get("loc")
    return f"{'.'.join(map(str, where))}: {item.get('msg')}" if isinstance(where, list) else str(item.get("msg"))


def _place(item: Any) -> str | None:
    """`["body", "tools", 0]` as the caller would write it; None where nothing is named."""
    where = item.get("loc") if isinstance(item, dict) else None
    path = [step for step in where if step != "body"] if isinstance(where, list) else []
    return ".".join(map(str, path)) or None


def _inner_code(error: Mapping[str, Any]) -> Any:
    inner = error.get("innererror")
    return inner.get("code") if isinstance(inner, dict) else None


def _reasons(error: Mapping[str, Any]) -> list[Any]:
    """Google's `details[].reason`, and OpenRouter's `metadata.reasons`, which only moderation has."""
    details, metadata = error.get("details"), error.get("metadata")
    found = [item.get("reason") for item in details if isinstance(item, dict)] if isinstance(details, list) else []
    return [*found, "moderation"] if isinstance(metadata, dict) and metadata.get("reasons") else found


def _retry_info(error: Mapping[str, Any]) -> float | None:
    """Google says it in the body: `{"@type": "…RetryInfo", "retryDelay": "34.4s"}`."""
    details = error.get("details")
    for item in details if isinstance(details, list) else ():
        delay = item.get("retryDelay") if isinstance(item, dict) else None
        if isinstance(delay, str):
            return _seconds(delay.removesuffix("s"))
    return None


def _retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """A date is ignored: there is no clock here."""
    seconds = _seconds(headers.get("retry-after-ms", ""), per=1000)
    return seconds if seconds is not None else _seconds(headers.get("retry-after", ""))


def _seconds(text: str, *, per: int = 1) -> float | None:
    try:
        value = float(text) / per
    except ValueError:
        return None
    return min(value, MAX_RETRY_AFTER_SECONDS) if math.isfinite(value) and value >= 0 else None


_SECRETS = re.compile(
    r"(?:Bearer\s+\S+)"
    r"|\b(?:sk|rk|pk|gsk|xai|pplx|hf|r8|AIza|AKIA|ASIA|key|org|proj)[-_]?(?=[\w*.…-]*[\d*])[\w*.…-]{6,}"
    r"|\bsk-[\w*.…-]+"
    r"|(?<![\w/+=-])(?=[\w/+=-]*\d)(?=[\w/+=-]*[A-Za-z])[\w/+=-]{32,}",
    re.IGNORECASE,
)


def clean(text: str) -> str:
    """A provider's words fit for a client: one line of at most 500 characters, with nothing that looks like a key."""
    line = " ".join(text[:2048].split())
    line = _SECRETS.sub("[hidden]", "".join(c for c in line if c.isprintable()))
    return line if len(line) <= MAX_MESSAGE_CHARACTERS else line[: MAX_MESSAGE_CHARACTERS - 1] + "…"
