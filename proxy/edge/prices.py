"""GET /api/prices: what each deployment costs, from which table of which date, and which have no price."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from proxy.edge.callers import Callers, json_answer


class PricesPage:
    def __init__(self, callers: Callers, listed: Callable[[], Sequence[dict[str, Any]]], date: str) -> None:
        self._callers = callers
        self._listed = listed
        self._date = date

    async def show(self, request: Request) -> Response:
        await self._callers.admit(request)
        prices = self._listed()
        unpriced = [one["deployment"] for one in prices if one["state"] == "unknown"]
        return json_answer({"table_date": self._date, "prices": prices, "unpriced": unpriced})
