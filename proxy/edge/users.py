"""
/api/users and /api/teams: who there is, and what they may do.

One sees oneself and one's team; an admin sees and changes everybody. People are never deleted: what they have spent
keeps their name.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from proxy.edge.bodies import NAME, body_of
from proxy.edge.callers import Callers, json_answer
from proxy.edge.parameters import Parameters, wrong
from proxy.errors import CallerError
from proxy.exchange import Caller
from proxy.storage import users
from proxy.storage.postgres import Database

MAX_LIMIT = 200
DEFAULT_LIMIT = 50

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

Name = Annotated[str, msgspec.Meta(max_length=200, pattern=NAME)]
TeamName = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=NAME)]


class UserChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is not said stays; `team_id: null` takes somebody out of his team."""

    name: Name | msgspec.UnsetType = msgspec.UNSET
    role: Literal["admin", "member", "viewer"] | msgspec.UnsetType = msgspec.UNSET
    team_id: str | msgspec.UnsetType | None = msgspec.UNSET
    disabled: bool | msgspec.UnsetType = msgspec.UNSET


class Team(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: TeamName


class UsersPage:
    def __init__(self, callers: Callers, database: Database) -> None:
        self._callers = callers
        self._database = database

    async def list(self, request: Request) -> Response:
        caller = await self._callers.admit(request)
        said = Parameters(request, ("limit", "cursor", "team_id"))
        limit = said.whole("limit", 1, MAX_LIMIT) or DEFAULT_LIMIT
        after, team_id = said.text("cursor"), said.text("team_id")
        for name, value in (("cursor", after), ("team_id", team_id)):
            if value is not None and not _ID.fullmatch(value):
                raise wrong(name, "must be an id")
        async with self._database.acting_as(caller) as connection:
            rows = await users.list_users(connection, limit=limit + 1, after=after or users.NOBODY, team_id=team_id)
        data = [_user(row) for row in rows[:limit]]
        more = len(rows) > limit
        cursor = data[-1]["id"] if more else None
        return json_answer({"object": "list", "data": data, "has_more": more, "next_cursor": cursor})

    async def show(self, request: Request) -> Response:
        caller = await self._callers.admit(request)
        async with self._database.acting_as(caller) as connection:
            row = await users.read_user(connection, _id_of(request, _no_user))
        if row is None:
            raise _no_user()
        return json_answer(_user(row))

    async def change(self, request: Request) -> Response:
        caller = await self._callers.admit(request)
        said = await body_of(request, UserChange)
        wanted: dict[str, Any] = {
            name: value for name in said.__struct_fields__ if (value := getattr(said, name)) is not msgspec.UNSET
        }
        if isinstance(said.team_id, str) and not _ID.fullmatch(said.team_id):
            raise CallerError("team_id must be the id of a team.", code="invalid_value", param="team_id")
        async with self._database.acting_as(caller) as connection:
            id = _id_of(request, _no_user)
            row = await users.change_user(connection, id, wanted, actor=actor(caller), request_id=_request_id(request))
        if row is None:
            raise _no_user()
        return json_answer(_user(row))

    async def sign_out(self, request: Request) -> Response:
        """Ends every session of somebody, on every device."""
        caller = await self._callers.admit(request)
        async with self._database.acting_as(caller) as connection:
            id = _id_of(request, _no_user)
            if not await users.sign_out(connection, id, actor=actor(caller), request_id=_request_id(request)):
                raise _no_user()
        return Response(status_code=204)

    async def list_teams(self, request: Request) -> Response:
        caller = await self._callers.admit(request)
        async with self._database.acting_as(caller) as connection:
            rows = await users.list_teams(connection)
        return json_answer({"object": "list", "data": [{"object": "team", **row} for row in rows]})

    async def create_team(self, request: Request) -> Response:
        return await self._save_team(request, None, 201)

    async def rename_team(self, request: Request) -> Response:
        return await self._save_team(request, _id_of(request, _no_team), 200)

    async def _save_team(self, request: Request, id: str | None, status: int) -> Response:
        caller = await self._callers.admit(request)
        said = await body_of(request, Team)
        async with self._database.acting_as(caller) as connection:
            request_id = _request_id(request)
            saved = await users.save_team(connection, said.name, id, actor=actor(caller), request_id=request_id)
            if saved is None:
                raise _no_team()
            [row] = await users.list_teams(connection, saved)
        return json_answer({"object": "team", **row}, status)


def actor(caller: Caller) -> str:
    return caller.user_id or caller.name


def _user(row: dict[str, Any]) -> dict[str, Any]:
    return {"object": "user", **row}


def _request_id(request: Request) -> str:
    return str(request.scope["state"].get("request_id", ""))


def _id_of(request: Request, missing: Any) -> str:
    id: str = request.path_params["id"]
    if not _ID.fullmatch(id):
        raise missing()
    return id


def _no_user() -> CallerError:
    return CallerError("There is no user with this id that you may see.", status=404, code="user_not_found")


def _no_team() -> CallerError:
    return CallerError("There is no team with this id that you may see.", status=404, code="team_not_found")
