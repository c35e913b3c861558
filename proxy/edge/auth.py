"""
/auth: signing in and out, and who one is. Tokens for programs; cookies for the console, which says so (`session`).

The first account is the admin's, and nobody's who happens to be early: it is made with the master key. From which
address somebody comes proves nothing: behind a proxy on this machine the whole world is on this machine.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from proxy.admission.accounts.signing_in import Opened, SigningIn
from proxy.admission.accounts.tokens import Tokens, read_refresh, session_of
from proxy.admission.gate import credential
from proxy.config import Auth
from proxy.edge.addresses import client_address
from proxy.edge.bodies import EMAIL, NAME, body_of
from proxy.edge.callers import Callers, credentials_of, json_answer
from proxy.edge.cookies import access_cookie, check_origin, end_session, refresh_cookie, set_session
from proxy.errors import PolicyError, Unauthenticated
from proxy.exchange import Caller
from proxy.storage.postgres import Database
from proxy.storage.users import read_user

Email = Annotated[str, msgspec.Meta(min_length=3, max_length=320, pattern=EMAIL)]
Password = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]
Name = Annotated[str, msgspec.Meta(max_length=200, pattern=NAME)]
Text = Annotated[str, msgspec.Meta(max_length=200)]
Session = Literal["tokens", "cookie"]


class Credentials(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    email: Email
    password: Password
    session: Session = "tokens"


class Registration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    email: Email
    password: Password
    name: Name = ""
    invitation: Text = ""
    session: Session = "tokens"


class Refresh(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    refresh_token: Text = ""


class Leaving(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    everywhere: bool = False
    refresh_token: Text = ""


class NewPassword(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    current_password: Password
    new_password: Password


class AuthPage:
    def __init__(self, callers: Callers, signing_in: SigningIn, tokens: Tokens, database: Database, auth: Auth) -> None:
        self._callers = callers
        self._signing_in = signing_in
        self._tokens = tokens
        self._database = database
        self._auth = auth

    async def register(self, request: Request) -> Response:
        self._refuse_elsewhere()
        said = await body_of(request, Registration)
        given = (said.email, said.password, said.name.strip(), client_address(request.scope))
        if said.invitation:
            opened = await self._signing_in.register_invited(said.invitation, *given)
        elif await self._may_be_first(request):
            try:
                opened = await self._signing_in.register_first(*given)
            except PolicyError:
                if self._auth.registration != "open":
                    raise
                return await self._register_open(*given)
        else:
            return await self._register_open(*given)
        return await self._opened(request, opened, said.session, status=201)

    async def log_in(self, request: Request) -> Response:
        self._refuse_elsewhere()
        said = await body_of(request, Credentials)
        opened = await self._signing_in.log_in(said.email, said.password, client_address(request.scope))
        return await self._opened(request, opened, said.session)

    async def refresh(self, request: Request) -> Response:
        """By the token in the body, or by the cookie."""
        self._refuse_elsewhere()
        cookie = refresh_cookie(request)
        said = await body_of(request, Refresh)
        shown = said.refresh_token or cookie or ""
        opened = await self._signing_in.refresh(shown)
        return await self._opened(request, opened, "tokens" if said.refresh_token else "cookie")

    async def log_out(self, request: Request) -> Response:
        """By either token, or either cookie: the access token may have expired long ago."""
        said = await body_of(request, Leaving)
        cookie = None if _has_credential(request) else refresh_cookie(request)
        if said.refresh_token:
            shown = said.refresh_token
        elif cookie is not None and (refresh := read_refresh(cookie)) is not None:
            check_origin(request, refresh.session_id, self._tokens)
            shown = cookie
        else:
            await self._callers.admit(request)
            shown = _shown(request)
        await self._signing_in.end(shown, everywhere=said.everywhere)
        answer = Response(status_code=204)
        end_session(answer)
        return answer

    async def me(self, request: Request) -> Response:
        caller = await self._callers.admit(request)
        said = await self._described(caller)
        if access_cookie(request) and not _has_credential(request):
            said["csrf_token"] = self._tokens.forgery(session_of(access_cookie(request) or ""))
        return json_answer(said)

    async def password(self, request: Request) -> Response:
        self._refuse_elsewhere()
        caller = await self._callers.admit(request)
        said = await body_of(request, NewPassword)
        opened = await self._signing_in.change_password(
            caller.user_id or caller.key_id, said.current_password, said.new_password, client_address(request.scope)
        )
        return await self._opened(request, opened, "tokens" if _has_credential(request) else "cookie")

    async def _register_open(self, *given: str) -> Response:
        await self._signing_in.register_open(*given)
        return json_answer({"object": "registration", "status": "accepted", "next": "POST /auth/login"}, 202)

    async def _may_be_first(self, request: Request) -> bool:
        if not _has_credential(request):
            return False
        caller = await self._callers.admit(request)
        return caller.admin and caller.user_id is None

    async def _opened(self, request: Request, opened: Opened, session: Session, status: int = 200) -> Response:
        async with self._database.transaction() as connection:
            user = await read_user(connection, opened.user_id)
        said: dict[str, Any] = {"expires_in": opened.expires_in, "user": None if user is None else _user(user)}
        if session == "tokens":
            tokens = {"access_token": opened.access_token, "refresh_token": opened.refresh_token}
            return json_answer({**tokens, "token_type": "bearer", **said}, status)
        answer = json_answer({**said, "csrf_token": self._tokens.forgery(opened.session_id)}, status)
        set_session(answer, request, opened.access_token, opened.refresh_token, self._auth.session_ttl_seconds)
        return answer

    async def _described(self, caller: Caller) -> dict[str, Any]:
        if caller.role == "key":
            return {"object": "key", "id": caller.key_id, "name": caller.name, "role": "key"}
        if caller.user_id is None:
            return {"object": "master_key", "name": caller.name, "role": caller.role}
        async with self._database.acting_as(caller) as connection:
            user = await read_user(connection, caller.user_id)
        if user is None:
            raise Unauthenticated("This session has ended. Sign in again.", code="session_ended")
        return _user(user)

    def _refuse_elsewhere(self) -> None:
        issuer = self._auth.issuer
        if issuer is not None:
            raise PolicyError(
                f"People sign in at {issuer.issuer} here. Send its access token as Authorization: Bearer.",
                status=403,
                code="sign_in_elsewhere",
                error_type="policy_forbidden",
            )


def _user(row: dict[str, Any]) -> dict[str, Any]:
    names = ("id", "email", "name", "role", "team_id")
    return {"object": "user", **{name: row[name] for name in names}}


def _shown(request: Request) -> str:
    """The access token that has just been verified."""
    if not _has_credential(request):
        return access_cookie(request) or ""
    return (credential(credentials_of(request)) or b"").decode("ascii", "replace")


def _has_credential(request: Request) -> bool:
    return bool(credentials_of(request))
