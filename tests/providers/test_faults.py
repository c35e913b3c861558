"""
The table of errors: what each provider says, and what the client, the retries and the resting make of it.
"""

from __future__ import annotations

import traceback
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import ERROR_TYPES
from proxy.providers.faults import FAULTS, MAX_MESSAGE_CHARACTERS, clean, stream_error, upstream_error

ANTHROPIC = {
    "type": "error",
    "error": {"type": "invalid_request_error", "message": "messages: at least one is required"},
}


def said(message: str, **fields: Any) -> dict[str, Any]:
    return {"error": {"message": message, **fields}}


TABLE = [
    # status, body, error_type, status out, code, retryable, rest
    (400, ANTHROPIC, "caller_invalid_request", 400, "invalid_request", False, False),
    (
        422,
        {"detail": [{"loc": ["body", "n"], "msg": "too big"}]},
        "caller_invalid_request",
        422,
        "invalid_request",
        False,
        False,
    ),
    (413, said("Too big", type="request_too_large"), "caller_too_large", 413, "request_too_large", False, False),
    (400, said("Unknown effort", code="bad_effort"), "caller_invalid_request", 400, "bad_effort", False, False),
    (401, said("Incorrect API key provided: sk-x"), "provider_auth", 502, "provider_auth", True, True),
    (403, said("Not allowed", type="permission_error"), "provider_auth", 502, "provider_auth", True, True),
    (403, said("No access", code="model_not_found"), "provider_error", 502, "upstream_model_not_found", True, False),
    (403, said("Flagged", metadata={"reasons": ["x"]}), "provider_content_filter", 400, "content_filter", False, False),
    (
        400,
        {"code": "Bad", "error": "Incorrect API key provided: xai-x"},
        "provider_auth",
        502,
        "provider_auth",
        True,
        True,
    ),
    (400, said("API key not valid.", status="INVALID_ARGUMENT"), "provider_auth", 502, "provider_auth", True, True),
    (400, said("User location is not supported for…"), "provider_auth", 502, "provider_auth", True, True),
    (400, said("Gemini API free tier is not available in…"), "provider_quota", 502, "provider_quota", True, True),
    (400, said("x", details=[{"reason": "API_KEY_INVALID"}]), "provider_auth", 502, "provider_auth", True, True),
    (
        404,
        said("model: claude-x", type="not_found_error"),
        "provider_error",
        502,
        "upstream_model_not_found",
        True,
        False,
    ),
    (400, said("x", code="model_not_found"), "provider_error", 502, "upstream_model_not_found", True, False),
    (404, said("x", code="DeploymentNotFound"), "provider_error", 502, "upstream_model_not_found", True, False),
    (402, {"message": "Insufficient Balance"}, "provider_quota", 502, "provider_quota", True, True),
    (400, said("Your credit balance is too low to…"), "provider_quota", 502, "provider_quota", True, True),
    (429, said("You exceeded…", code="insufficient_quota"), "provider_quota", 502, "provider_quota", True, True),
    (429, said("Slow down"), "provider_rate_limited", 429, "rate_limit_exceeded", True, True),
    (429, b"", "provider_rate_limited", 429, "rate_limit_exceeded", True, True),
    (400, said("x", status="RESOURCE_EXHAUSTED"), "provider_rate_limited", 429, "rate_limit_exceeded", True, True),
    (408, b"", "provider_timeout", 504, "provider_timeout", True, True),
    (504, said("x", type="timeout_error"), "provider_timeout", 504, "provider_timeout", True, True),
    (508, said("Round and round", code="loop_detected"), "gateway_config", 508, "loop_detected", False, False),
    (503, b"upstream connect error", "provider_overloaded", 503, "provider_overloaded", True, True),
    (529, said("Overloaded", type="overloaded_error"), "provider_overloaded", 503, "provider_overloaded", True, True),
    (500, said("Overloaded", type="overloaded_error"), "provider_overloaded", 503, "provider_overloaded", True, True),
    (500, said("Boom", type="api_error"), "provider_error", 502, "provider_error", True, True),
    (502, b"<html><title>502 Bad Gateway</title>", "provider_error", 502, "provider_error", True, True),
    (405, b"", "provider_error", 502, "provider_error", True, True),
    (301, b"", "provider_error", 502, "provider_error", True, True),
    (400, said("x", code="content_filter"), "provider_content_filter", 400, "content_filter", False, False),
    (
        400,
        said("x", code=None, innererror={"code": "ResponsibleAIPolicyViolation"}),
        "provider_content_filter",
        400,
        "content_filter",
        False,
        False,
    ),
    (
        400,
        said("Output blocked by content filtering policy"),
        "provider_content_filter",
        400,
        "content_filter",
        False,
        False,
    ),
    *(
        (400, {"message": message}, "caller_context_length", 400, "context_length_exceeded", False, False)
        for message in (
            "prompt is too long: 3333404 tokens > 200000 maximum",
            "The input token count (1250074) exceeds the maximum number of tokens allowed (1048576).",
            "Input Tokens Exceeded: …",
            "Input is too long for requested model.",
            "This model's maximum context length is 131072 tokens.",
            "This endpoint's maximum context length is 131072 tokens.",
            "too many tokens: …",
            "prompt too long; exceeded max context length",
        )
    ),
    (
        400,
        said("x", code="context_length_exceeded"),
        "caller_context_length",
        400,
        "context_length_exceeded",
        False,
        False,
    ),
]


@pytest.mark.parametrize(("status", "body", "error_type", "out", "code", "retryable", "rest"), TABLE)
def test_the_table(status: int, body: Any, error_type: str, out: int, code: str, retryable: bool, rest: bool) -> None:
    error = upstream_error(status, {}, body if isinstance(body, bytes) else msgspec.json.encode(body))
    assert (error.error_type, error.status, error.code) == (error_type, out, code)
    assert (error.retryable, error.rest, error.upstream_status) == (retryable, rest, status)


def test_every_row_is_of_the_closed_list() -> None:
    assert {fault.error_type for fault in FAULTS.values()} <= ERROR_TYPES


def test_the_callers_own_words_do_not_make_a_deployment_rest() -> None:
    """Providers quote what they refuse; a quotation is not a verdict."""
    quoted = said("messages.0: unexpected 'incorrect api key, your credit balance is too low, overloaded_error'")
    assert upstream_error(400, {}, msgspec.json.encode(quoted)).error_type == "caller_invalid_request"


def test_a_refused_key_is_told_to_the_operator_alone() -> None:
    error = upstream_error(401, {}, msgspec.json.encode(said("No access for org-acme: key sk-ant-abcdefgh1234")))
    assert "acme" not in error.message and "strata doctor" in error.message
    told = "".join(traceback.format_exception(error))
    assert "No access for" in told and "abcdefgh1234" not in told


def test_param_and_words_reach_the_client_where_it_can_act() -> None:
    error = upstream_error(400, {}, msgspec.json.encode(said("Bad max_tokens", param="max_tokens")))
    assert (error.message, error.param) == ("Bad max_tokens", "max_tokens")
    assert upstream_error(400, {}, b"").message.startswith("The provider refused the request (400)")


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "999999"}, 300.0),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, None),
        ({"retry-after": "7", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "7", "retry-after-ms": "x"}, 7.0),
    ],
)
def test_retry_after_is_a_bounded_number_or_nothing(headers: dict[str, str], seconds: float | None) -> None:
    assert upstream_error(429, headers, b"").retry_after_seconds == seconds


def test_google_says_when_to_retry_in_the_body() -> None:
    body = [said("Quota", details=[{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.4s"}])]
    assert upstream_error(429, {}, msgspec.json.encode(body)).retry_after_seconds == 34.4


@pytest.mark.parametrize(
    ("native", "error_type"),
    [
        ({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, "provider_overloaded"),
        ({"type": "error", "error": {"type": "api_error", "message": "Internal"}}, "provider_error"),
        ({"type": "error", "error": {"type": "rate_limit_error"}}, "provider_rate_limited"),
        ({"error": {"code": 429, "message": "x"}}, "provider_rate_limited"),
        ({"error": {"message": "x", "type": "server_error"}}, "provider_error"),
        ({"error": "boom"}, "provider_error"),
        ("boom", "provider_error"),
        (None, "provider_error"),
    ],
)
def test_error_events_have_the_status_they_would_have_had(native: Any, error_type: str) -> None:
    assert stream_error(native).error_type == error_type


@pytest.mark.parametrize(
    "secret",
    [
        "sk-ant-api03-AbCdEfGh1234567890",
        "sk-proj-abcd****************wxyz",
        "sk-abc",
        "AIzaSyA1234567890abcdefghijklmnopqrstu",
        "AKIAIOSFODNN7EXAMPLE",
        "gsk_abc123def456",
        "xai-0123456789abcdef",
        "Bearer abc.def.ghi",
        "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9eyJzdWIiOiIxMjM0NTY3ODkwIn0",
        "0123456789abcdef0123456789abcdef",
    ],
)
def test_what_looks_like_a_key_is_hidden(secret: str) -> None:
    assert secret not in clean(f"Incorrect API key provided: {secret}. See the docs.")
    assert clean(f"Key {secret}, see https://example.com").endswith("see https://example.com")


@pytest.mark.parametrize(
    "plain",
    [
        "prompt is too long: 3333404 tokens > 200000 maximum",
        "Unsupported parameter: 'max_completion_tokens' is not supported with claude-haiku-4-5-20251001.",
        "tools.0.input_schema: JSON schema is invalid; see https://json-schema.org/draft/2020-12",
        "messages.3.content.1.image.source.base64.data: image exceeds 5 MB maximum",
        "the task-specific key-value store and project organisation",
        "gpt-4.1-mini-2025-04-14 and meta-llama/llama-4-maverick-17b",
    ],
)
def test_plain_words_stay(plain: str) -> None:
    assert clean(plain) == plain


@given(st.integers(200, 599), st.binary(max_size=200) | st.text(max_size=3000).map(str.encode))
def test_any_body_at_all_becomes_an_error(status: int, body: bytes) -> None:
    error = upstream_error(status, {"retry-after": "1"}, body)
    assert len(error.message) <= MAX_MESSAGE_CHARACTERS + 120
    assert "\n" not in error.message and "\r" not in error.message


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(0, 600) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["error", "message", "detail", "code", "type", "details", "metadata", "innererror", "reason"]
            ),
            inner,
        )
    ),
)


@given(json_values)
def test_any_json_at_all_becomes_an_error(native: object) -> None:
    assert upstream_error(500, {}, msgspec.json.encode(native)).status in {400, 413, 429, 502, 503, 504}
    assert stream_error(native).message


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "900"}, 0.9),
        ({"retry-after-ms": "12000", "retry-after": "13"}, 12.0),
        ({"retry-after-ms": "9000000"}, 300.0),
        ({"retry-after-ms": "soon", "retry-after": "13"}, 13.0),
    ],
)
def test_milliseconds_are_more_exact_than_seconds(headers: dict[str, str], seconds: float) -> None:
    assert upstream_error(429, headers, b"").retry_after_seconds == seconds
