"""Who calls a route that is not hot, and the plain JSON answer that most of them give."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from proxy.admission.gate import Gate
from proxy.errors import PolicyError
from proxy.exchange import Caller

CREDENTIALS = ("authorization", "x-api-key", "api-key")


class Callers:
    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    async def admit(self, request: Request) -> Caller:
        """Raises Unauthenticated, or Unavailable if only Postgres could tell."""
        credentials = [(name, value) for name, value in request.scope["headers"] if name.decode() in CREDENTIALS]
        return await self._gate.admit(credentials)

    async def admit_admin(self, request: Request) -> Caller:
        """Like `admit`; PolicyError 403 for a caller who may not manage the gateway."""
        caller = await self.admit(request)
        if not caller.admin:
            raise PolicyError(
                f'The key "{caller.name}" may not manage this gateway. Use the master key (auth.master_key).',
                status=403,
                code="admin_only",
                error_type="policy_forbidden",
            )
        return caller


def json_answer(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
