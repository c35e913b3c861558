"""
The console's session: two cookies that no script reads, and a token that a page sends beside them.

Cookies come with whatever any page asks of us in the visitor's name. So a request that changes something by them must
show, in a header, what only our own page was told. The lane that serves models knows no cookies.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from proxy.admission.accounts.tokens import Tokens
from proxy.errors import PolicyError

ACCESS = "strata_access"
REFRESH = "strata_refresh"
REFRESH_PATH = "/auth"
FORGERY_HEADER = "x-csrf-token"
SAFE = ("GET", "HEAD", "OPTIONS")


def access_cookie(request: Request) -> str | None:
    return request.cookies.get(ACCESS) or None


def refresh_cookie(request: Request) -> str | None:
    return request.cookies.get(REFRESH)


def check_origin(request: Request, session_id: str, tokens: Tokens) -> None:
    """PolicyError 403 if a page of ours did not send this, which came with a cookie of that session."""
    if request.method in SAFE:
        return
    if not tokens.same_forgery(session_id, request.headers.get(FORGERY_HEADER, "")):
        raise PolicyError(
            f"This request came by a cookie alone. Send its session's csrf_token in {FORGERY_HEADER}, too.",
            status=403,
            code="csrf_token_missing",
            error_type="policy_forbidden",
        )


def set_session(answer: Response, request: Request, access: str, refresh: str, ttl_seconds: float) -> None:
    secure = request.url.scheme == "https"
    lasting = int(ttl_seconds)
    answer.set_cookie(ACCESS, access, max_age=lasting, secure=secure, httponly=True, samesite="strict")
    answer.set_cookie(
        REFRESH, refresh, max_age=lasting, path=REFRESH_PATH, secure=secure, httponly=True, samesite="strict"
    )


def end_session(answer: Response) -> None:
    answer.delete_cookie(ACCESS, httponly=True, samesite="strict")
    answer.delete_cookie(REFRESH, path=REFRESH_PATH, httponly=True, samesite="strict")
