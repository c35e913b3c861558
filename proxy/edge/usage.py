"""GET /api/usage: what was used and what it cost, by time, model, provider, deployment, key, user, team and tag."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import Response

from proxy.edge.callers import Callers, json_answer
from proxy.edge.parameters import Parameters, wrong
from proxy.errors import GatewayFault
from proxy.metering.usage_questions import MAX_LIMIT, WORDS, Unanswerable, read_question
from proxy.metering.usage_report import answer, next_cursor, to_csv, to_object
from proxy.storage.postgres import Database

DEFAULT_LIMIT = 100
MAX_CURSOR_CHARS = 4_000
SECONDS = 10.0
WAIT_SECONDS = 5.0
NEXT_CURSOR = "x-strata-next-cursor"
"""Of a page in CSV, which has no place for it in its body."""


class UsagePage:
    """An admin sees everything, people their own and their team's, a key its own; and no sign of the others."""

    def __init__(self, callers: Callers, database: Database, static: Mapping[str, str]) -> None:
        self._callers = callers
        self._database = database
        self._static = static
        """Names of the configuration's keys by their ids."""
        self._turn = asyncio.Semaphore(1)
        """One report at a time: the other connections are for requests, budgets and the ledger."""

    async def show(self, request: Request) -> Response:
        caller = await self._callers.admit(request)
        said = Parameters(request, (*WORDS, "format"), max_chars=MAX_CURSOR_CHARS)
        as_csv = _is_csv(said.text("format"))
        try:
            question = read_question(said.text, datetime.now(UTC), MAX_LIMIT if as_csv else DEFAULT_LIMIT)
        except Unanswerable as error:
            raise wrong(error.word, error.why) from None
        async with self._own_turn(), self._database.acting_as(caller, timeout_seconds=SECONDS) as connection:
            report = await answer(connection, question, self._static)
        if not as_csv:
            return json_answer(to_object(report))
        headers = {"content-disposition": 'attachment; filename="usage.csv"'}
        cursor = next_cursor(report)
        if cursor is not None:
            headers[NEXT_CURSOR] = cursor
        return Response(to_csv(report), 200, headers, media_type="text/csv")

    @asynccontextmanager
    async def _own_turn(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await self._turn.acquire()
        except TimeoutError:
            raise GatewayFault(
                "Too many ask for usage at this moment; try again in a few seconds.",
                code="gateway_overloaded",
                error_type="gateway_overloaded",
                headers={"retry-after": "5"},
            ) from None
        try:
            yield
        finally:
            self._turn.release()


def _is_csv(text: str | None) -> bool:
    if text not in (None, "json", "csv"):
        raise wrong("format", "must be json or csv")
    return text == "csv"
