"""
What stands before every page that is not hot: whose name the request is for, what a browser asks in advance, and the
headers that tell browsers to be careful. And, where the operator has a port of their own, what is served on which.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from proxy.config import Server
from proxy.config.providers import is_loopback
from proxy.edge.browsers import Header, Origins
from proxy.edge.hosts import Hosts
from proxy.edge.replies import error_body, error_headers, new_request_id
from proxy.errors import GatewayError

PROBES = ("/healthz", "/readyz")
"""Asked by address, whatever names the gateway goes by."""
CAREFUL: list[Header] = [(b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer")]


class Guards:
    """Pure ASGI. `probes`: further paths that are asked by address, such as the metrics'."""

    def __init__(self, app: ASGIApp, server: Server, probes: Sequence[str] = ()) -> None:
        self._app = app
        self._probes = frozenset((*PROBES, *probes))
        self._origins = Origins(server.cors) if server.cors.origins else None
        self._hosts = Hosts(server.allowed_hosts) if server.allowed_hosts else None
        own_host = server.admin.host if server.admin is not None else server.host
        self._own_hosts = self._hosts or (Hosts() if is_loopback(own_host) else None)
        self._hsts = (
            [(b"strict-transport-security", b"max-age=%d" % server.hsts_seconds)] if server.hsts_seconds else []
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        path: str = scope["path"]
        origin = headers.get("origin", "").encode("latin-1")
        told = self._told(scope, path, origin)

        async def send_with_care(message: Message) -> None:
            if message["type"] == "http.response.start":
                said = {name for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *(one for one in told if one[0] not in said or one[0] == b"vary"),
                ]
            await send(message)

        try:
            self._check_host(path, headers)
            answer = self._preflight(scope["method"], origin, headers)
        except GatewayError as error:
            answer = refusal(scope, error)
        await (answer or self._app)(scope, receive, send_with_care)

    def _told(self, scope: Scope, path: str, origin: bytes) -> list[Header]:
        told = list(CAREFUL)
        if is_within(path, "/api", "/auth"):
            told.append((b"cache-control", b"no-store"))
        if scope["scheme"] == "https":
            told += self._hsts
        return told + self._origins.headers(origin) if self._origins is not None else told

    def _check_host(self, path: str, headers: Headers) -> None:
        hosts = self._own_hosts if is_admins(path) else self._hosts
        if hosts is not None and path not in self._probes:
            hosts.check(headers.get("host", "").encode("latin-1"))

    def _preflight(self, method: str, origin: bytes, headers: Headers) -> Response | None:
        if method != "OPTIONS" or self._origins is None or "access-control-request-method" not in headers:
            return None
        wanted = headers.get("access-control-request-headers", "").encode("latin-1")
        answer = Response(status_code=204)
        answer.raw_headers = self._origins.preflight(origin, wanted)
        return answer


class Ports:
    """The admin's port has every page, the public one only what is everybody's: there the others do not exist."""

    def __init__(self, every: ASGIApp, public: ASGIApp, admin_port: int) -> None:
        self._every = every
        self._public = public
        self._admin_port = admin_port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        whole = scope["type"] != "http" or scope["server"][1] == self._admin_port
        await (self._every if whole else self._public)(scope, receive, send)


def is_admins(path: str) -> bool:
    """Of a request or a route: whether it belongs to the people who run the gateway, not to those who call it."""
    return is_within(path, "/api", "/auth", "/console")


def is_within(path: str, *folders: str) -> bool:
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


def refusal(scope: Scope, error: GatewayError) -> Response:
    """The answer to a request that an error has ended."""
    id = scope.get("state", {}).get("request_id") or new_request_id()
    headers = {name.decode(): value.decode("latin-1") for name, value in error_headers(error, id)}
    return Response(error_body(error), error.status, headers)
