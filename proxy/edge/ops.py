"""Health and metrics. Liveness never depends on a dependency: restarting would not bring one back."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Iterable

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from proxy.config import Secret
from proxy.errors import Unauthenticated


class Ops:
    """
    `degraded()` names what is away while we still serve; `ready()` is False when a request would be refused for it.
    `scrape(accept)` is the metrics page in slices, and its content type.
    """

    def __init__(
        self,
        *,
        ready: Callable[[], bool],
        degraded: Callable[[], list[str]],
        scrape: Callable[[str], tuple[Iterable[bytes], str]],
        token: Secret | None,
    ) -> None:
        self._ready = ready
        self._degraded = degraded
        self._scrape = scrape
        self._token = token

    async def healthz(self, request: Request) -> Response:
        return Response(b'{"status":"ok"}', media_type="application/json")

    async def readyz(self, request: Request) -> Response:
        ready = self._ready()
        body = {"status": "ready" if ready else "unavailable", "degraded": self._degraded()}
        return Response(msgspec.json.encode(body), 200 if ready else 503, media_type="application/json")

    async def metrics(self, request: Request) -> Response:
        if self._token is not None:
            sent = request.headers.get("authorization", "").encode("utf-8", "surrogateescape")
            if not hmac.compare_digest(sent, f"Bearer {self._token.reveal()}".encode()):
                raise Unauthenticated("The metrics need their token: Authorization: Bearer <telemetry.metrics.token>.")
        accept = request.headers.get("accept", "")
        slices, content_type = self._scrape(accept)
        body = []
        for part in slices:
            body.append(part)
            await asyncio.sleep(0)  # the streams go on between
        return Response(b"".join(body), headers={"content-type": content_type})
