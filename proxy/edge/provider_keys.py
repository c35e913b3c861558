"""
/api/keys/providers: the keys with which providers are asked, beside the operator's own of the configuration.

A key comes in once and is never shown again, but for its last four characters. It is tried before it is saved. Who sees
and changes which rows is held by row-level security; a member saves keys of his own, an admin those of teams and of
everybody too.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from proxy.config import Provider
from proxy.config.presets import SIM
from proxy.config.problems import suggestion
from proxy.edge.bodies import body_of
from proxy.edge.callers import Callers, json_answer
from proxy.errors import CallerError, PolicyError
from proxy.exchange import Caller
from proxy.storage import provider_keys
from proxy.storage.postgres import Connection, Database
from proxy.storage.provider_keys import MAX_ROWS, SealedKey
from proxy.storage.sealing import CannotOpen
from proxy.upstream.accounts import Account
from proxy.upstream.key_checks import Checked, check
from proxy.upstream.own_keys import EMPTY, OwnKeys, host_of

MASK = "••••••••"
OF_CONFIG = "config:"
"""What the ids of the operator's own keys begin with."""
LEAST_TO_SHOW = 12
"""Of a shorter key four characters would say too much."""

AUDITED = ("scope", "user_id", "team_id", "provider", "name", "api_base", "last_four")
"""What of a key is written down when it changes; the key itself never is."""

Note = Callable[..., Awaitable[None]]
"""Writes down a change in its own transaction: (connection, *, actor, action, object, before, after, request_id)."""

_NAME = re.compile(r"\S(.{0,62}\S)?")
_KEY = re.compile(r"[\x21-\x7e]{6,4096}")
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class NewKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    provider: str
    api_key: str
    name: str = ""
    api_base: str = ""
    scope: Literal["user", "team", "global", ""] = ""
    user_id: str = ""
    team_id: str = ""
    save_anyway: bool = False


class Change(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is not said stays; the address belongs to the key and changes with it."""

    name: str | None = None
    api_key: str | None = None
    api_base: str | None = None
    save_anyway: bool = False


class ProviderKeysPage:
    """`source` is the configuration's file; `accounts` are the operator's."""

    def __init__(
        self,
        callers: Callers,
        database: Database,
        own_keys: OwnKeys,
        accounts: Mapping[str, Account],
        source: str | None,
        note: Note,
    ) -> None:
        self._callers = callers
        self._database = database
        self._own_keys = own_keys
        self._accounts = accounts
        self._note = note
        self._source = Path(source).name if source else "the environment"
        self._checked: dict[str, tuple[Checked, datetime]] = {}
        """What was said of the operator's keys, by provider; this worker's knowledge."""

    async def list(self, request: Request) -> Response:
        caller = await self._callers.admit(request)
        async with self._database.acting_as(caller) as connection:
            rows = await provider_keys.shown(connection)
        operators = [self._operators(name, caller) for name in sorted(self._accounts) if name != SIM]
        return json_answer({"object": "list", "data": [*operators, *(self._shown(row) for row in rows)]})

    async def show(self, request: Request) -> Response:
        caller = await self._callers.admit(request)
        id = request.path_params["id"]
        if self._is_operators(id):
            return json_answer(self._operators(id.removeprefix(OF_CONFIG), caller))
        return json_answer(await self._read(caller, id))

    async def create(self, request: Request) -> Response:
        caller = await self._callers.admit(request)
        wanted = await body_of(request, NewKey)
        scope, owner_id = _owner(caller, wanted)
        operators = self._provider(wanted.provider)
        name = _name(wanted.name or wanted.provider)
        if len(self._own_keys) >= MAX_ROWS:
            raise CallerError(f"There are {MAX_ROWS} provider keys already. Delete some first.", code="too_many_keys")
        api_base = await self._own_keys.elsewhere.admit(wanted.api_base, operators.api_base)
        id = str(uuid.uuid4())
        key, account = self._prepared(id, scope, owner_id, wanted.provider, name, api_base, wanted.api_key)
        status, detail = await self._tried(account, wanted.save_anyway or _anyway(request))
        async with self._database.acting_as(caller) as connection:
            await provider_keys.insert(connection, key, status=status, detail=detail)
            [row] = await provider_keys.shown(connection, id)
            await self._audit(connection, request, caller, "create", id, None, row)
        return json_answer(self._shown(row), 201)

    async def change(self, request: Request) -> Response:
        caller = await self._callers.admit(request)
        id = self._changeable(request)
        wanted = await body_of(request, Change)
        if wanted.api_base is not None and wanted.api_key is None:
            raise CallerError(
                "api_base changes together with api_key only: a key belongs to the address it was saved for.",
                code="invalid_value",
                param="api_base",
            )
        before = await self._read(caller, id, to_change=True)
        name = before["name"] if wanted.name is None else _name(wanted.name)
        key, said = None, Checked("not checked", "")
        if wanted.api_key is not None:
            operators = self._provider(before["provider"])
            said_base = before["api_base"] if wanted.api_base is None else wanted.api_base
            api_base = await self._own_keys.elsewhere.admit(said_base, operators.api_base)
            owner_id = before["user_id"] or before["team_id"]
            place = (id, before["scope"], owner_id, before["provider"], name, api_base)
            key, account = self._prepared(*place, wanted.api_key)
            said = await self._tried(account, wanted.save_anyway or _anyway(request))
        async with self._database.acting_as(caller) as connection:
            if key is None:
                changed = await provider_keys.rename(connection, id, name)
            else:
                changed = await provider_keys.replace(connection, key, status=said.status, detail=said.detail)
            if not changed:
                raise _not_found()
            [row] = await provider_keys.shown(connection, id)
            await self._audit(connection, request, caller, "rename" if key is None else "replace", id, before, row)
        return json_answer(self._shown(row))

    async def remove(self, request: Request) -> Response:
        caller = await self._callers.admit(request)
        id = self._changeable(request)
        before = await self._read(caller, id, to_change=True)
        async with self._database.acting_as(caller) as connection:
            if not await provider_keys.remove(connection, id):
                raise _not_found()
            await self._audit(connection, request, caller, "delete", id, before, None)
        return json_answer({"object": "provider_key.deleted", "id": id, "deleted": True})

    async def validate(self, request: Request) -> Response:
        """Tries a key that is saved, the operator's too, and remembers what the provider said."""
        caller = await self._callers.admit(request)
        id = request.path_params["id"]
        if self._is_operators(id):
            if not caller.admin:
                raise _forbidden()
            provider = id.removeprefix(OF_CONFIG)
            self._checked[provider] = (await check(self._accounts[provider]), datetime.now(UTC))
            return json_answer(self._operators(provider, caller))
        await self._read(caller, id, to_change=True)
        key = await provider_keys.read_one(self._database, id)
        if key is None:
            raise _not_found()
        try:
            account = self._own_keys.open(key)
        except CannotOpen as error:
            raise CallerError(
                f"This key cannot be opened: {error}. Replace it, or delete it.",
                status=409,
                code="provider_key_unusable",
            ) from None
        said = await check(account)
        await provider_keys.note_status(self._database, key, status=said.status, detail=said.detail)
        return json_answer(await self._read(caller, id))

    async def _read(self, caller: Caller, id: str, *, to_change: bool = False) -> dict[str, Any]:
        """One that the caller may see; PolicyError if he wants to change it and may not."""
        if not _ID.fullmatch(id):
            raise _not_found()
        async with self._database.acting_as(caller) as connection:
            rows = await provider_keys.shown(connection, id)
            if not rows:
                raise _not_found()
            if to_change and not await provider_keys.may_change(connection, id):
                raise _forbidden()
        return self._shown(rows[0])

    async def _audit(
        self,
        connection: Connection,
        request: Request,
        caller: Caller,
        action: str,
        id: str,
        before: Mapping[str, Any] | None,
        after: Mapping[str, Any] | None,
    ) -> None:
        await self._note(
            connection,
            actor=caller.user_id or caller.name,
            action=f"provider_key.{action}",
            object=id,
            before={name: before[name] for name in AUDITED} if before is not None else None,
            after={name: after[name] for name in AUDITED} if after is not None else None,
            request_id=request.scope["state"].get("request_id", ""),
        )

    def _prepared(
        self, id: str, scope: str, owner_id: str | None, provider: str, name: str, api_base: str, secret: str
    ) -> tuple[SealedKey, Account]:
        """The row, sealed, and the account to try it with. Raises CallerError."""
        if not _KEY.fullmatch(secret):
            raise CallerError(
                "api_key must be the provider's key: 6 to 4096 plain characters without spaces.",
                code="invalid_value",
                param="api_key",
            )
        host = host_of(api_base or self._accounts[provider].provider.api_base)
        last_four = secret[-4:] if len(secret) >= LEAST_TO_SHOW else ""
        key = SealedKey(id, scope, owner_id, provider, name, api_base, host, last_four, 0, EMPTY)
        try:
            account = self._own_keys.account_with(key, secret)
        except CannotOpen as error:
            raise CallerError(
                f"{provider} cannot be used with a key of one's own: {error}.", code="invalid_value", param="provider"
            ) from None
        return self._own_keys.sealed(key, secret), account

    async def _tried(self, account: Account, save_anyway: bool) -> Checked:
        """What the provider says of the key; CallerError unless it is fit to be saved."""
        said = await check(account)
        if said.status not in ("valid", "not checked") and not save_anyway:
            raise CallerError(
                f"The key was not saved, for the provider says: {said.status} ({said.detail}). Correct it, or save it "
                "all the same with save_anyway.",
                code="provider_key_" + said.status.replace(" ", "_"),
                param="api_key",
            )
        return said

    def _provider(self, name: str) -> Provider:
        if name == SIM:
            raise CallerError("The simulated provider takes no key.", code="invalid_value", param="provider")
        account = self._accounts.get(name)
        if account is None:
            known = [one for one in self._accounts if one != SIM]
            raise CallerError(
                f"No provider is called {name[:64]!r} here.{suggestion(name, known)} The operator adds providers.",
                code="unknown_provider",
                param="provider",
            )
        return account.provider

    def _is_operators(self, id: str) -> bool:
        name = id.removeprefix(OF_CONFIG)
        return id.startswith(OF_CONFIG) and name in self._accounts and name != SIM

    def _changeable(self, request: Request) -> str:
        id: str = request.path_params["id"]
        if self._is_operators(id):
            raise PolicyError(
                f"This key is the operator's and is changed in {self._source}.",
                status=403,
                code="read_only",
                error_type="policy_forbidden",
            )
        return id

    def _operators(self, provider: str, caller: Caller) -> dict[str, Any]:
        """The operator's own key: that it is there is for all to see, its last characters for admins."""
        key = self._accounts[provider].provider.api_key
        secret = key.reveal() if key is not None else ""
        said, at = self._checked.get(provider, (Checked("not checked", ""), None))
        last_four = secret[-4:] if caller.admin and len(secret) >= LEAST_TO_SHOW else ""
        return {
            "object": "provider_key",
            "id": f"{OF_CONFIG}{provider}",
            "source": self._source,
            "read_only": True,
            "scope": "operator",
            "user_id": None,
            "team_id": None,
            "provider": provider,
            "name": provider,
            "api_base": self._accounts[provider].provider.api_base if caller.admin else "",
            "last_four": last_four,
            "masked": MASK + last_four if secret else "",
            "status": said.status,
            "detail": said.detail if caller.admin else "",
            "last_validated_at": at,
            "created_at": None,
        }

    def _shown(self, row: Mapping[str, Any]) -> dict[str, Any]:
        why = self._own_keys.attention.get(row["id"])
        return {
            "object": "provider_key",
            "id": row["id"],
            "source": "database",
            "read_only": False,
            "scope": row["scope"],
            "user_id": row["user_id"],
            "team_id": row["team_id"],
            "provider": row["provider"],
            "name": row["name"],
            "api_base": row["api_base"],
            "last_four": row["last_four"],
            "masked": MASK + row["last_four"],
            "status": row["status"] if why is None else "needs attention",
            "detail": row["detail"] if why is None else f"It cannot be opened: {why}. Replace it, or delete it.",
            "last_validated_at": row["last_validated_at"],
            "created_at": row["created_at"],
        }


def _owner(caller: Caller, wanted: NewKey) -> tuple[str, str | None]:
    """For whom: the scope, and the id of the user or team. PolicyError if it is not the caller's to say."""
    scope = wanted.scope or ("user" if wanted.user_id or caller.user_id else "team" if wanted.team_id else "global")
    for param, value in (("user_id", wanted.user_id), ("team_id", wanted.team_id)):
        if value and (scope != param.removesuffix("_id") or not _ID.fullmatch(value)):
            raise CallerError(f"{param} must be an id, and belongs to that scope.", code="invalid_value", param=param)
    if not caller.admin and (scope != "user" or wanted.user_id not in ("", caller.user_id)):
        raise _forbidden()
    if scope == "global":
        return scope, None
    owner_id = wanted.user_id or caller.user_id if scope == "user" else wanted.team_id or caller.team_id
    if not owner_id:
        raise CallerError(
            f"Say for which {scope}: {scope}_id is missing.", code="missing_required_parameter", param=f"{scope}_id"
        )
    return scope, owner_id


def _anyway(request: Request) -> bool:
    return request.query_params.get("save_anyway") in ("true", "1")


def _name(text: str) -> str:
    if not _NAME.fullmatch(text) or not text.isprintable():
        raise CallerError("name must have 1 to 64 printable characters.", code="invalid_value", param="name")
    return text


def _forbidden() -> PolicyError:
    return PolicyError(
        "Your role does not let you do this with this key: a member changes his own, an admin those of teams and of "
        "everybody, too.",
        status=403,
        code="forbidden",
        error_type="policy_forbidden",
    )


def _not_found() -> CallerError:
    return CallerError("There is no provider key with this id.", status=404, code="provider_key_not_found")
