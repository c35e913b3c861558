"""Who calls a route that is not hot, whether they may, and the plain JSON answer that most of these routes give."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from proxy.admission.gate import Gate
from proxy.edge.access import require
from proxy.exchange import Caller

CREDENTIALS = ("authorization", "x-api-key", "api-key")


class Callers:
    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def admit(self, request: Request) -> Caller:
        """
        Raises Unauthenticated; PolicyError 403 where the table of `access` says no; Unavailable if only Postgres could
        tell who it is.
        """
        credentials = [(name, value) for name, value in request.scope["headers"] if name.decode() in CREDENTIALS]
        caller = await self._gate.admit(credentials)
        require(caller, request.method, request.scope["route"].path)
        return caller


def json_answer(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
