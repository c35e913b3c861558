"""The table of who may use which route: every route is in it, and it is what the gateway does."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.routing import Route

from proxy.admission.accounts.tokens import Tokens
from proxy.app import Gateway
from proxy.config.load import load
from proxy.edge.access import ACCESS, Access
from proxy.edge.callers import Callers
from proxy.errors import GatewayError, Unauthenticated
from proxy.exchange import Caller
from proxy.pages import pages
from proxy.stories import HOT_PATHS
from proxy.telemetry.logs import RequestLog
from tests.access import TARGET, table

TOKENS = Tokens(lambda: bytes(32))
ROLES = ("key", "viewer", "member", "admin")


class Admits:
    """A gate that lets everybody in whose role is his credential."""

    async def admit(self, credentials: list[tuple[bytes, bytes]]) -> Caller:
        if not credentials:
            raise Unauthenticated("No key.")
        return Caller("k", "k", "", role=credentials[0][1].decode())  # type: ignore[arg-type]  # one of ROLES


def routes(tmp_path: Path) -> list[Route]:
    config = load(None, {"STRATA_HOME": str(tmp_path)})
    return pages(Gateway(config, tmp_path, {}, "postgresql://127.0.0.1:1/none", RequestLog(io.StringIO())))


def test_every_route_has_its_line_and_every_line_its_route(tmp_path: Path) -> None:
    made = {(method, route.path) for route in routes(tmp_path) for method in (route.methods or ()) if method != "HEAD"}
    made |= {("POST", path.decode()) for path in HOT_PATHS}
    assert made == {(access.method, access.path) for access in ACCESS}


def test_the_document_is_the_table() -> None:
    assert TARGET.read_text() == table(), "write it anew with: python -m tests.access"


@pytest.mark.parametrize("access", ACCESS, ids=[f"{access.method} {access.path}" for access in ACCESS])
async def test_everybody_gets_what_the_table_says(access: Access) -> None:
    callers = Callers(Admits(), TOKENS)  # type: ignore[arg-type]  # all that is asked of the gate
    for role in ROLES:
        admitted = await admitted_as(callers, access, role)
        assert admitted == (200 if getattr(access, role) != "no" else 403)
    assert await admitted_as(callers, access, None) == 401


async def admitted_as(callers: Callers, access: Access, role: str | None) -> int:
    route = Route(access.path, lambda request: None, methods=[access.method])
    headers = [(b"authorization", role.encode())] if role else []
    request = Request({"type": "http", "method": access.method, "headers": headers, "route": route})
    try:
        caller = await callers.admit(request)
    except GatewayError as error:
        return error.status
    assert caller.role == role
    return 200
