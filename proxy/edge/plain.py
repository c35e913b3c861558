"""
The port without TLS, where all there is to learn is where the other one is.

A browser that comes without anything is led there. Whoever has already sent a key or a body is not: they would go on
doing so, each time in the clear first, and never know.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from proxy.edge.callers import CREDENTIALS
from proxy.edge.guards import refusal
from proxy.edge.hosts import Hosts
from proxy.errors import CallerError

KEY_WORDS = (b"key=", b"token=")


class Plain:
    """An ASGI app. `tls_port`: where TLS is."""

    def __init__(self, tls_port: int, hosts: Hosts | None) -> None:
        self._port = "" if tls_port == 443 else f":{tls_port}"
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        answer = self._answer(scope)
        if answer.status_code == 403 and "expect" not in Headers(scope=scope):
            await _read_out(receive)
        await answer(scope, receive, send)

    def _answer(self, scope: Scope) -> Response:
        headers = Headers(scope=scope)
        if scope["method"] not in ("GET", "HEAD") or "transfer-encoding" in headers or _size(headers):
            return refusal(scope, _refused("TLS is needed here"))
        query: bytes = scope["query_string"]
        if any(name in CREDENTIALS for name, _ in scope["headers"]) or any(word in query.lower() for word in KEY_WORDS):
            return refusal(scope, _refused("This key was sent in the clear: replace it, for others may have read it"))
        host = headers["host"]
        try:
            if self._hosts is not None:
                self._hosts.check(host.encode("latin-1"))
        except CallerError as error:
            return refusal(scope, error)
        name = host[: host.index("]") + 1] if host.startswith("[") and "]" in host else host.partition(":")[0]
        target = scope["raw_path"].decode("latin-1") + (f"?{query.decode('latin-1')}" if query else "")
        return Response(status_code=308, headers={"location": f"https://{name}{self._port}{target}"})


async def _read_out(receive: Receive) -> None:
    """Closing a socket with unread bytes resets it, and the client would never see why it was refused."""
    while (message := await receive())["type"] == "http.request" and message.get("more_body"):
        pass


def _size(headers: Headers) -> bool:
    return headers.get("content-length", "0").strip("0") != ""


def _refused(cause: str) -> CallerError:
    return CallerError(
        f"{cause}. Use https:// in the base URL.", status=403, code="https_required", headers={"connection": "close"}
    )
