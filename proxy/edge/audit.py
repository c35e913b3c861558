"""GET /api/audit: who changed what, newest first."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from proxy.edge.callers import Callers, json_answer
from proxy.edge.parameters import Parameters
from proxy.storage.audit import NEWEST, list_audit
from proxy.storage.postgres import Database

PARAMETERS = ("limit", "cursor", "actor", "action", "object")
MAX_LIMIT = 200
DEFAULT_LIMIT = 50


class AuditPage:
    def __init__(self, callers: Callers, database: Database) -> None:
        self._callers = callers
        self._database = database

    async def list(self, request: Request) -> Response:
        caller = await self._callers.admit(request)
        said = Parameters(request, PARAMETERS)
        limit = said.whole("limit", 1, MAX_LIMIT) or DEFAULT_LIMIT
        below = said.whole("cursor", 1, NEWEST) or NEWEST
        async with self._database.acting_as(caller) as connection:
            rows = await list_audit(
                connection,
                limit=limit + 1,
                below=below,
                actor=said.text("actor"),
                action=said.text("action"),
                object=said.text("object"),
            )
        data = rows[:limit]
        more = len(rows) > limit
        cursor = str(data[-1]["seq"]) if more else None
        return json_answer({"object": "list", "data": data, "has_more": more, "next_cursor": cursor})
