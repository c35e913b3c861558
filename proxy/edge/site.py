"""
Every route that is not hot, and the one error shape for all of them: OpenAI's, also for 404, 405 and 500.

`x-request-id` is put on every answer here, as `replies` does on the hot ones.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterable, Sequence

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.config import Config
from proxy.edge.guards import Guards, Ports, is_admins, refusal
from proxy.edge.replies import new_request_id
from proxy.errors import CallerError, GatewayError, GatewayFault

log = logging.getLogger("strata.edge")


def site(
    routes: Sequence[Route],
    hot_paths: Iterable[str],
    lifespan: object,
    guarded: Callable[[ASGIApp], ASGIApp] = lambda app: app,
) -> ASGIApp:
    """The Starlette app behind the hot lane; `guarded` puts something before it."""
    known = [*hot_paths, *(route.path for route in routes)]

    async def refuse(request: Request, error: Exception) -> Response:
        if isinstance(error, GatewayError):
            return refusal(request.scope, error)
        if isinstance(error, HTTPException):
            return refusal(request.scope, _explain(request, error, known))
        if isinstance(error, ClientDisconnect):  # in the middle of a body; nobody reads this
            return refusal(request.scope, CallerError("The body did not arrive.", code="incomplete_body"))
        log.error("request to %s failed inside the gateway", request.scope.get("path"), exc_info=error)
        return refusal(request.scope, _internal())

    app = Starlette(
        routes=list(routes),
        lifespan=lifespan,  # type: ignore[arg-type]
        exception_handlers={kind: refuse for kind in (GatewayError, HTTPException, ClientDisconnect, Exception)},
    )
    app.router.redirect_slashes = False
    return RequestIds(guarded(app))


def sites(routes: Sequence[Route], hot_paths: Sequence[str], lifespan: object, config: Config) -> ASGIApp:
    """One site for everybody; or two, if the admin has a port of their own."""
    server, metrics = config.server, config.metrics

    def guarded(app: ASGIApp) -> ASGIApp:
        return Guards(app, server, [metrics.path])

    every = site(routes, hot_paths, lifespan, guarded)
    if server.admin is None:
        return every
    hidden = [metrics.path] if server.admin.metrics else []
    public = [route for route in routes if not is_admins(route.path) and route.path not in hidden]
    return Ports(every, site(public, hot_paths, None, guarded), server.admin.port)


class RequestIds:
    """Pure ASGI: gives each request an id and puts it on the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        id = new_request_id()
        scope.setdefault("state", {})["request_id"] = id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).setdefault("x-request-id", id)
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            # Starlette answers 500 by our handler, which has logged it, and raises it once more for the server to log.
            log.debug("already answered", exc_info=True)


def _explain(request: Request, error: HTTPException, known: Sequence[str]) -> GatewayError:
    method, path = request.method, request.scope["path"]
    shown = path.encode("unicode_escape").decode()[:100]
    if error.status_code == 405 or (error.status_code == 404 and path in known):
        return CallerError(
            f"{shown} takes another method than {method}.",
            status=405,
            code="method_not_allowed",
            error_type="caller_unknown_route",
            headers=dict(error.headers or {}) or {"allow": "POST"},
        )
    if error.status_code == 404:
        near = difflib.get_close_matches(path, [one for one in known if "{" not in one], n=1, cutoff=0.6)
        hint = f" Did you mean {near[0]}?" if near else " The API is under /v1; see the README for its routes."
        return CallerError(
            f"There is no {method} {shown}.{hint}",
            status=404,
            code="unknown_url",
            error_type="caller_unknown_route",
        )
    return CallerError(str(error.detail), status=error.status_code, code="http_error")


def _internal() -> GatewayFault:
    return GatewayFault(
        "The gateway failed on this request; its operator finds the cause in the log.",
        status=500,
        code="internal_error",
        error_type="gateway_internal",
    )
