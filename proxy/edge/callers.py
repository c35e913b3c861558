"""Who calls a route that is not hot, whether they may, and the plain JSON answer that most of these routes give."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from proxy.admission.accounts.tokens import Tokens, session_of
from proxy.admission.gate import Gate
from proxy.edge.access import require
from proxy.edge.cookies import access_cookie, check_origin
from proxy.exchange import Caller

CREDENTIALS = (b"authorization", b"x-api-key", b"api-key")


class Callers:
    def __init__(self, gate: Gate, tokens: Tokens) -> None:
        self._gate = gate
        self._tokens = tokens

    async def admit(self, request: Request) -> Caller:
        """
        By a credential, else by the console's cookie. Raises Unauthenticated; PolicyError 403 where the table of
        `access` says no, or another site may have sent this; Unavailable if only Postgres could tell who it is.
        """
        credentials = credentials_of(request)
        cookie = None if credentials else access_cookie(request)
        if cookie is None:
            caller = await self._gate.admit(credentials)
        else:
            caller = await self._gate.admit([(b"authorization", b"Bearer " + cookie.encode("utf-8", "surrogatepass"))])
            check_origin(request, session_of(cookie), self._tokens)
        require(caller, request.method, request.scope["route"].path)
        return caller


def credentials_of(request: Request) -> list[tuple[bytes, bytes]]:
    """Every header that may carry one: lower-case name, value."""
    return [(name, value) for name, value in request.scope["headers"] if name in CREDENTIALS]


def json_answer(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
