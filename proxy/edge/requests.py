"""GET /api/requests and /api/requests/{id}: what happened to a request, and why it cost what it cost."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from proxy.edge.callers import Callers, json_answer
from proxy.edge.parameters import MAX_VALUE_CHARS, Parameters, cursor_after, read_cursor
from proxy.errors import CallerError
from proxy.metering.explanation import explain
from proxy.storage.postgres import Database
from proxy.storage.requests import Filters, find_request, list_requests

MAX_LIMIT = 200
DEFAULT_LIMIT = 50
PARAMETERS = ("limit", "cursor", "model", "key", "status", "error_type", "deployment", "since", "until")


class Requests:
    """An admin sees every request, people their own, a key its own; and no sign of the others."""

    def __init__(self, callers: Callers, database: Database) -> None:
        self._callers = callers
        self._database = database

    async def show(self, request: Request) -> Response:
        caller = await self._callers.admit(request)
        name = request.path_params["id"]
        if "\0" in name or len(name) > MAX_VALUE_CHARS:
            raise _not_found()
        async with self._database.acting_as(caller) as connection:
            row, bill = await find_request(connection, name)
        if row is None and not bill:
            raise _not_found()
        return json_answer({"object": "request", **msgspec.to_builtins(explain(row, bill))})

    async def list(self, request: Request) -> Response:
        caller = await self._callers.admit(request)
        said = Parameters(request, PARAMETERS)
        limit = said.whole("limit", 1, MAX_LIMIT) or DEFAULT_LIMIT
        filters = Filters(
            model=said.text("model"),
            key=said.text("key"),
            status=said.whole("status", 0, 999),
            error_type=said.text("error_type"),
            deployment=said.text("deployment"),
            since=said.moment("since"),
            until=said.moment("until"),
        )
        cursor = read_cursor(said.text("cursor"))
        async with self._database.acting_as(caller) as connection:
            rows = await list_requests(connection, filters, limit + 1, cursor)
        data = [dict(row) for row in rows[:limit]]
        more = len(rows) > limit
        following = cursor_after(data[-1]["started_at"], data[-1]["id"]) if more else None
        return json_answer({"object": "list", "data": data, "has_more": more, "next_cursor": following})


def _not_found() -> CallerError:
    return CallerError(
        "No such request is known, or it is another key's. Rows arrive within a second, and the history is kept for as "
        "long as history.retention says.",
        status=404,
        code="request_not_found",
    )
