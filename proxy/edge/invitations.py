"""/api/invitations: with which somebody makes himself an account. The text of one is shown once, when it is made."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from proxy.edge.bodies import EMAIL, body_of
from proxy.edge.callers import Callers, json_answer
from proxy.errors import CallerError
from proxy.storage import invitations
from proxy.storage.postgres import Database

DAY_SECONDS = 86_400

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Invitation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`email` None: whoever holds it makes an account with an address of his own."""

    email: Annotated[str, msgspec.Meta(min_length=3, max_length=320, pattern=EMAIL)] | None = None
    role: Literal["admin", "member", "viewer"] = "member"
    team_id: str | None = None
    days: Annotated[int, msgspec.Meta(ge=1, le=90)] = 7


class InvitationsPage:
    def __init__(self, callers: Callers, database: Database) -> None:
        self._callers = callers
        self._database = database

    async def list(self, request: Request) -> Response:
        caller = await self._callers.admit(request)
        async with self._database.acting_as(caller) as connection:
            rows = await invitations.list_invitations(connection)
        return json_answer({"object": "list", "data": [{"object": "invitation", **row} for row in rows]})

    async def create(self, request: Request) -> Response:
        caller = await self._callers.admit(request)
        said = await body_of(request, Invitation)
        if said.team_id is not None and not _ID.fullmatch(said.team_id):
            raise CallerError("team_id must be the id of a team.", code="invalid_value", param="team_id")
        text, digest = invitations.new_invitation()
        async with self._database.acting_as(caller) as connection:
            id = await invitations.insert_invitation(
                connection,
                digest=digest,
                email=said.email,
                role=said.role,
                team_id=said.team_id,
                created_by=caller.user_id,
                actor=caller.user_id or caller.name,
                ttl_seconds=said.days * DAY_SECONDS,
                request_id=request.scope["state"].get("request_id", ""),
            )
            [row] = await invitations.list_invitations(connection, id)
        return json_answer({"object": "invitation", "invitation": text, **row}, 201)

    async def revoke(self, request: Request) -> Response:
        caller = await self._callers.admit(request)
        id = request.path_params["id"]
        request_id = request.scope["state"].get("request_id", "")
        actor = caller.user_id or caller.name
        async with self._database.acting_as(caller) as connection:
            if not _ID.fullmatch(id) or not await invitations.revoke_invitation(
                connection, id, actor=actor, request_id=request_id
            ):
                raise CallerError("There is no open invitation with this id.", status=404, code="invitation_not_found")
        return Response(status_code=204)
