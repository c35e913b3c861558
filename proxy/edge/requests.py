"""GET /api/requests and /api/requests/{id}: what happened to a request, and why it cost what it cost."""

from __future__ import annotations

import base64
import binascii
import struct
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from proxy.edge.callers import Callers, json_answer
from proxy.errors import CallerError
from proxy.metering.explanation import explain
from proxy.storage.postgres import Database
from proxy.storage.requests import Filters, find_request, list_requests

MAX_LIMIT = 200
DEFAULT_LIMIT = 50
MAX_VALUE_CHARS = 300
PARAMETERS = ("limit", "cursor", "model", "key", "status", "error_type", "deployment", "since", "until")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CURSOR = struct.Struct(">q16s")


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
        said = _parameters(request)
        limit = _whole(said, "limit", 1, MAX_LIMIT) or DEFAULT_LIMIT
        filters = Filters(
            model=said.get("model"),
            key=said.get("key"),
            status=_whole(said, "status", 0, 999),
            error_type=said.get("error_type"),
            deployment=said.get("deployment"),
            since=_moment(said, "since"),
            until=_moment(said, "until"),
        )
        cursor = _read_cursor(said)
        async with self._database.acting_as(caller) as connection:
            rows = await list_requests(connection, filters, limit + 1, cursor)
        data = [dict(row) for row in rows[:limit]]
        more = len(rows) > limit
        following = _cursor(data[-1]["started_at"], data[-1]["id"]) if more else None
        return json_answer({"object": "list", "data": data, "has_more": more, "next_cursor": following})


def _not_found() -> CallerError:
    return CallerError(
        "No such request is known, or it is another key's. Rows arrive within a second, and the history is kept for as "
        "long as history.retention says.",
        status=404,
        code="request_not_found",
    )


def _parameters(request: Request) -> Mapping[str, str]:
    said: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in PARAMETERS:
            raise _wrong(name[:64], f"is not known here; there are {', '.join(PARAMETERS)}")
        if name in said:
            raise _wrong(name, "is given twice")
        if not value or "\0" in value or len(value) > MAX_VALUE_CHARS:
            raise _wrong(name, f"must have 1 to {MAX_VALUE_CHARS} characters, none of them NUL")
        said[name] = value
    return said


def _whole(said: Mapping[str, str], name: str, low: int, high: int) -> int | None:
    text = said.get(name)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
        raise _wrong(name, f"must be a whole number from {low} to {high}")
    return int(text)


def _moment(said: Mapping[str, str], name: str) -> datetime | None:
    text = said.get(name)
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise _wrong(name, "must be a time like 2026-11-23T14:00:00Z") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _cursor(started_at: datetime, id: str) -> str:
    microseconds = (started_at - _EPOCH) // timedelta(microseconds=1)
    return base64.urlsafe_b64encode(_CURSOR.pack(microseconds, uuid.UUID(id).bytes)).decode()


def _read_cursor(said: Mapping[str, str]) -> tuple[datetime, str] | None:
    text = said.get("cursor")
    if text is None:
        return None
    try:
        microseconds, id = _CURSOR.unpack(base64.urlsafe_b64decode(text.encode()))
        return _EPOCH + timedelta(microseconds=microseconds), str(uuid.UUID(bytes=id))
    except (binascii.Error, struct.error, OverflowError, ValueError):
        raise _wrong("cursor", "must be next_cursor of the page before, unchanged") from None


def _wrong(name: str, why: str) -> CallerError:
    shown = name.encode("unicode_escape").decode()
    return CallerError(f"The parameter {shown} {why}.", code="invalid_value", param=name)
