"""GET /api/alerts: the rules in force, the channels without their secrets, and what was said last."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from proxy.config import Alerts
from proxy.edge.callers import Callers, json_answer

Last = Callable[[], Awaitable[Sequence[Any]]]


class AlertsPage:
    def __init__(self, callers: Callers, config: Alerts, last: Last) -> None:
        self._callers = callers
        self._config = config
        self._last = last

    async def show(self, request: Request) -> Response:
        await self._callers.admit(request)
        said = [{**dict(row), "deliveries": msgspec.json.decode(row["deliveries"])} for row in await self._last()]
        channels = [{"name": channel.name, "type": channel.__struct_config__.tag} for channel in self._config.channels]
        return json_answer({"rules": self._config.rules, "channels": channels, "said": said})
