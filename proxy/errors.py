"""
Everything that can go wrong, as the client sees it.

    GatewayError
    ├── CallerError      the request is wrong                      caller_…
    ├── PolicyError      the request is right, and not allowed     policy_…
    ├── UpstreamError    the provider failed                       provider_…
    └── GatewayFault     we failed                                 gateway_…

An error carries everything its answer needs: the status, OpenAI's four fields, our `error_type` (the fault domain that
metrics and the ledger use) and headers. The message is one sentence with cause and fix, because OpenAI's SDKs show
nothing else. It never holds a secret.
"""

from __future__ import annotations

from collections.abc import Mapping

ERROR_TYPES = frozenset(
    {
        "caller_unauthenticated",
        "caller_invalid_request",
        "caller_unknown_route",
        "caller_model_not_found",
        "caller_context_length",
        "caller_too_large",
        "caller_cancelled",
        "policy_forbidden",
        "policy_model_denied",
        "policy_rate_limited",
        "policy_budget_exceeded",
        "policy_guardrail",
        "provider_auth",
        "provider_quota",
        "provider_rate_limited",
        "provider_overloaded",
        "provider_error",
        "provider_timeout",
        "provider_unreachable",
        "provider_bad_response",
        "provider_stream_cut",
        "provider_content_filter",
        "gateway_overloaded",
        "gateway_no_deployment",
        "gateway_timeout",
        "gateway_config",
        "gateway_internal",
    }
)


class GatewayError(Exception):
    """An error with its answer: `status`, OpenAI's `type`, `code` and `param`, our `error_type`, and headers."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        type: str,
        code: str | None,
        error_type: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        details: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.type = type
        self.code = code
        self.error_type = error_type
        self.param = param
        self.headers = dict(headers or {})
        self.details = dict(details or {})

    def body(self) -> dict[str, object]:
        """OpenAI's error object; `details` appears only when there are some."""
        error: dict[str, object] = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        if self.details:
            error["details"] = self.details
        return {"error": error}


class CallerError(GatewayError):
    """The request is wrong; sending it again unchanged will fail again."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str | None = "invalid_request",
        param: str | None = None,
        error_type: str = "caller_invalid_request",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            message,
            status=status,
            type="invalid_request_error",
            code=code,
            error_type=error_type,
            param=param,
            headers=headers,
        )


class Unauthenticated(CallerError):
    """401. No key, an unknown one, a revoked or expired one."""

    def __init__(self, message: str, *, code: str = "invalid_api_key") -> None:
        super().__init__(message, status=401, code=code, error_type="caller_unauthenticated")
        self.headers["www-authenticate"] = "Bearer"


class PolicyError(GatewayError):
    """The request is well formed and this key may not make it, or not now."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str,
        error_type: str,
        headers: Mapping[str, str] | None = None,
        details: Mapping[str, object] | None = None,
    ) -> None:
        kind = "insufficient_quota" if code == "insufficient_quota" else "rate_limit_error"
        super().__init__(
            message,
            status=status,
            type="permission_error" if status == 403 else kind,
            code=code,
            error_type=error_type,
            headers=headers,
            details=details,
        )


class UpstreamError(GatewayError):
    """
    A provider failed. `retryable`: another attempt may succeed. `rest_seconds`: how long the deployment should rest
    (0: not at all). `sent`: whether request bytes may have reached the provider, and so may be billed.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 502,
        code: str | None = "provider_error",
        type: str = "server_error",
        error_type: str = "provider_error",
        param: str | None = None,
        retryable: bool = True,
        rest: bool = True,
        retry_after_seconds: float | None = None,
        upstream_status: int | None = None,
        sent: bool = True,
    ) -> None:
        super().__init__(message, status=status, type=type, code=code, error_type=error_type, param=param)
        self.retryable = retryable
        self.rest = rest
        self.retry_after_seconds = retry_after_seconds
        self.upstream_status = upstream_status
        self.sent = sent
        if retry_after_seconds is not None:
            seconds = min(max(retry_after_seconds, 0.0), 60.0)
            self.headers["retry-after"] = str(max(1, round(seconds)))
            self.headers["retry-after-ms"] = str(round(seconds * 1000))


class StreamTruncated(UpstreamError):
    """The provider ended its answer before its own terminal event. A clean close is no proof of a whole answer."""

    def __init__(self, message: str = "The provider closed the stream before its end.") -> None:
        super().__init__(message, code="upstream_incomplete", error_type="provider_stream_cut")


class GatewayFault(GatewayError):
    """We cannot serve: overloaded, the database is away, the journal cannot be written, a bug."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 503,
        code: str = "gateway_error",
        error_type: str = "gateway_internal",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, status=status, type="server_error", code=code, error_type=error_type, headers=headers)
