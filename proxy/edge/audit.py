"""GET /api/audit: who changed what, newest first."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from proxy.edge.callers import Callers, json_answer
from proxy.errors import CallerError
from proxy.storage.audit import NEWEST, list_audit
from proxy.storage.postgres import Database

PARAMETERS = ("limit", "cursor", "actor", "action", "object")
MAX_LIMIT = 200
DEFAULT_LIMIT = 50
MAX_VALUE_CHARS = 300


class AuditPage:
    def __init__(self, callers: Callers, database: Database) -> None:
        self._callers = callers
        self._database = database

    async def list(self, request: Request) -> Response:
        caller = await self._callers.admit(request)
        said = _parameters(request)
        limit = _whole(said, "limit", MAX_LIMIT) or DEFAULT_LIMIT
        below = _whole(said, "cursor", NEWEST) or NEWEST
        async with self._database.acting_as(caller) as connection:
            rows = await list_audit(
                connection,
                limit=limit + 1,
                below=below,
                actor=said.get("actor"),
                action=said.get("action"),
                object=said.get("object"),
            )
        data = rows[:limit]
        more = len(rows) > limit
        cursor = str(data[-1]["seq"]) if more else None
        return json_answer({"object": "list", "data": data, "has_more": more, "next_cursor": cursor})


def _parameters(request: Request) -> Mapping[str, str]:
    said: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in PARAMETERS:
            raise _wrong(name[:64], f"is not known here; there are {', '.join(PARAMETERS)}")
        if name in said or not value or "\0" in value or len(value) > MAX_VALUE_CHARS:
            raise _wrong(name, f"must be there once, with 1 to {MAX_VALUE_CHARS} characters, none of them NUL")
        said[name] = value
    return said


def _whole(said: Mapping[str, str], name: str, most: int) -> int | None:
    text = said.get(name)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= most:
        raise _wrong(name, f"must be a whole number from 1 to {most}")
    return int(text)


def _wrong(name: str, why: str) -> CallerError:
    shown = name.encode("unicode_escape").decode()
    return CallerError(f"The parameter {shown} {why}.", code="invalid_value", param=name)
