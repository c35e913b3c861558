"""
/api/keys: virtual keys made, seen, changed, rotated and revoked over HTTP.

A key's text is in the answer to the request that made it, and nowhere else, ever. Whose rows somebody sees and changes
is held by row-level security; how much a member may give a key, by `proxy.admission.key_rules`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import msgspec
from msgspec import UnsetType
from starlette.requests import Request
from starlette.responses import Response

from proxy.admission.key_rules import (
    BOUNDS,
    MAX_KEYS_OF_A_MEMBER,
    KeyRules,
    NewKey,
    Rotation,
    Said,
    as_it_is,
    grace_seconds,
)
from proxy.admission.keyring import Keyring
from proxy.admission.keys import digest, display, new_key
from proxy.config import Config
from proxy.config.budgets import written
from proxy.edge.bodies import body_of
from proxy.edge.callers import Callers, json_answer
from proxy.edge.parameters import Parameters, cursor_after, read_cursor, wrong
from proxy.errors import CallerError, PolicyError
from proxy.exchange import Caller
from proxy.storage.key_changes import (
    Actor,
    Filters,
    StoredSecret,
    add_key,
    change_key,
    count_unrevoked,
    end_key,
    lock_key,
    rotate_key,
    show_key,
    show_keys,
    team_of,
)
from proxy.storage.keys import KeyRow
from proxy.storage.postgres import Connection, Database
from proxy.storage.vault import Vault

MAX_LIMIT = 200
DEFAULT_LIMIT = 50
PARAMETERS = ("limit", "cursor", "state", "user_id", "team_id", "tag")
STATES = ("active", "disabled", "expired", "revoked")
"""`disabled`: its user is."""

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class KeysPage:
    """Keys of the configuration are listed for admins, first, and cannot be changed here."""

    def __init__(
        self,
        callers: Callers,
        database: Database,
        keyring: Keyring,
        vault: Vault,
        config: Config,
        *,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._callers = callers
        self._database = database
        self._keyring = keyring
        self._vault = vault
        self._rules = KeyRules(config)
        self._prefix = config.keys.prefix
        self._source = Path(config.source).name if config.source else "the configuration"
        self._wall_clock = wall_clock

    async def list(self, request: Request) -> Response:
        caller = await self._callers.admit(request)
        said = Parameters(request, PARAMETERS)
        limit = said.whole("limit", 1, MAX_LIMIT) or DEFAULT_LIMIT
        for name in ("user_id", "team_id"):
            value = said.text(name)
            if value is not None and not _ID.fullmatch(value):
                raise wrong(name, "must be an id")
        state = said.text("state")
        if state not in (None, *STATES):
            raise wrong("state", f"must be {', '.join(STATES)}")
        filters = Filters(state, said.text("user_id"), said.text("team_id"), said.text("tag"))
        cursor = read_cursor(said.text("cursor"))
        async with self._database.acting_as(caller) as connection:
            rows = await show_keys(connection, filters, limit + 1, cursor)
        more, rows = len(rows) > limit, rows[:limit]
        data = [_shown(row) for row in rows]
        if cursor is None and caller.admin and filters in (Filters(), Filters("active")):
            data = [*(self._of_file(row) for row in self._keyring.static_rows()), *data]
        following = cursor_after(rows[-1]["created_at"], rows[-1]["id"]) if more else None
        return json_answer({"object": "list", "data": data, "has_more": more, "next_cursor": following})

    async def show(self, request: Request) -> Response:
        caller = await self._callers.admit(request)
        id = request.path_params["id"]
        static = self._static(caller, id)
        if static is not None:
            return json_answer(self._of_file(static))
        async with self._database.acting_as(caller) as connection:
            key = await _read(connection, id)
        return json_answer(_shown(key))

    async def create(self, request: Request) -> Response:
        caller = await self._callers.admit(request)
        said = await body_of(request, NewKey)
        if isinstance(said.name, UnsetType):
            raise CallerError("A key needs a name.", code="missing_required_parameter", param="name")
        now = self._wall_clock()
        wanted = self._rules.applied(said, self._rules.defaults(now), now)
        if not caller.admin:
            self._rules.hold_member_to(said, wanted, None, now)
            wanted = msgspec.structs.replace(wanted, limited_by_admin=False)
        text, secret = self._new_secret()
        async with self._database.acting_as(caller) as connection:
            user_id, team_id = await _owner(connection, caller, said)
            made = await add_key(connection, wanted, secret, _actor(caller, request), user_id=user_id, team_id=team_id)
        return _told_once(_shown(made), text, 201)

    async def change(self, request: Request) -> Response:
        caller = await self._callers.admit(request)
        id = self._changeable(caller, request)
        said = await body_of(request, Said)
        if not any(not isinstance(value, UnsetType) for value in msgspec.structs.astuple(said)):
            raise CallerError("Nothing is to be changed: say at least one field.", code="missing_required_parameter")
        now = self._wall_clock()
        async with self._database.acting_as(caller) as connection:
            before = await _read(connection, id, to_change=True)
            current = as_it_is(before)
            wanted = self._rules.applied(said, current, now)
            if not caller.admin:
                self._rules.hold_member_to(said, wanted, current, now)
            elif any(not isinstance(getattr(said, field), UnsetType) for field in BOUNDS):
                wanted = msgspec.structs.replace(wanted, limited_by_admin=True)
            budgets = not isinstance(said.budgets, UnsetType)
            after = await change_key(connection, before, wanted, _actor(caller, request), budgets=budgets)
        return json_answer(_shown(after))

    async def remove(self, request: Request) -> Response:
        """Revokes; what was spent with the key keeps its name."""
        caller = await self._callers.admit(request)
        id = self._changeable(caller, request)
        async with self._database.acting_as(caller) as connection:
            before = await _read(connection, id, to_change=True, revoked_too=True)
            after = await end_key(connection, before, _actor(caller, request))
        return json_answer(_shown(after))

    async def rotate(self, request: Request) -> Response:
        """A new secret for the same key: its id, budgets and what it has spent stay."""
        caller = await self._callers.admit(request)
        id = self._changeable(caller, request)
        grace = grace_seconds(await body_of(request, Rotation, optional=True))
        text, secret = self._new_secret()
        async with self._database.acting_as(caller) as connection:
            before = await _read(connection, id, to_change=True)
            after = await rotate_key(connection, before, secret, grace, _actor(caller, request))
        return _told_once(_shown(after), text, 200)

    def _new_secret(self) -> tuple[str, StoredSecret]:
        text = new_key(self._prefix)
        return text, StoredSecret(digest(text, self._vault.pepper), self._vault.pepper_id, display(text))

    def _static(self, caller: Caller, id: str) -> KeyRow | None:
        """A key of the configuration, which is nobody's: only admins know of it."""
        return next((row for row in self._keyring.static_rows() if caller.admin and row.id == id), None)

    def _changeable(self, caller: Caller, request: Request) -> str:
        id: str = request.path_params["id"]
        static = self._static(caller, id)
        if static is not None:
            raise CallerError(
                f'The key "{static.name}" is defined in {self._source} under keys.static. Change it there.',
                status=409,
                code="read_only",
            )
        return id

    def _of_file(self, row: KeyRow) -> dict[str, Any]:
        budgets = [
            _budget({**msgspec.structs.asdict(budget), "spent_nano_usd": None, "resets_at": None})
            for budget in row.budgets
        ]
        none = ("user_id", "team_id", "created_at", "expires_at", "revoked_at", "last_used_at", "rotated_at")
        return {
            "object": "key",
            "id": row.id,
            "source": self._source,
            "read_only": True,
            "state": "active",
            "name": row.name,
            "display": row.display,
            "models": row.models,
            "budgets": budgets,
            "rpm": row.rpm,
            "tpm": row.tpm,
            "max_parallel": row.max_parallel,
            "tags": [],
            "metadata": {},
            "limited_by_admin": True,
            **dict.fromkeys((*none, "old_secret_until")),
        }


async def _read(
    connection: Connection, id: str, *, to_change: bool = False, revoked_too: bool = False
) -> dict[str, Any]:
    """A key that the caller may see, and if he wants to change it, may change: it is locked then."""
    if not _ID.fullmatch(id):
        raise _not_found()
    locked = to_change and await lock_key(connection, id)
    key = await show_key(connection, id)
    if key is None:
        raise _not_found()
    if to_change and not locked:
        _forbid()
    if to_change and not revoked_too and key["revoked_at"] is not None:
        raise CallerError(
            f'The key "{key["name"]}" is revoked, which cannot be undone. Make another.',
            status=409,
            code="key_revoked",
        )
    return key


async def _owner(connection: Connection, caller: Caller, said: NewKey) -> tuple[str | None, str | None]:
    """For whom: the user and the team. A member's key is his and his team's; whose an admin's is, he says."""
    for param in ("user_id", "team_id"):
        value = getattr(said, param)
        if isinstance(value, str) and not _ID.fullmatch(value):
            raise CallerError(f"{param} must be an id.", code="invalid_value", param=param)
    if not caller.admin:
        own = (caller.user_id, caller.team_id)
        asked = (said.user_id, said.team_id)
        if caller.user_id is None or any(
            not isinstance(other, UnsetType) and other != mine for other, mine in zip(asked, own, strict=True)
        ):
            _forbid()
        if await count_unrevoked(connection, caller.user_id) >= MAX_KEYS_OF_A_MEMBER:
            raise CallerError(
                f"You have {MAX_KEYS_OF_A_MEMBER} keys that are not revoked. Revoke some first, the expired ones too.",
                status=409,
                code="too_many_keys",
            )
        return own
    if isinstance(said.user_id, UnsetType):
        user_id = caller.user_id if isinstance(said.team_id, UnsetType) else None
    else:
        user_id = said.user_id
    if not isinstance(said.team_id, UnsetType):
        return user_id, said.team_id
    # His team's budgets and limits bind his keys, unless the admin says otherwise
    return user_id, None if user_id is None else await team_of(connection, user_id)


def _actor(caller: Caller, request: Request) -> Actor:
    return Actor(caller.user_id or caller.name, request.scope["state"].get("request_id", ""))


def _told_once(key: dict[str, Any], text: str, status: int) -> Response:
    answer = json_answer({"key": text, **key}, status)
    answer.headers["cache-control"] = "no-store"
    return answer


def _shown(key: Mapping[str, Any]) -> dict[str, Any]:
    said = {name: value for name, value in key.items() if name not in ("budgets", "previous_until")}
    return {
        "object": "key",
        "source": "database",
        "read_only": False,
        **said,
        "budgets": [_budget(budget) for budget in key["budgets"]],
        "old_secret_until": key["previous_until"],
    }


def _budget(budget: Mapping[str, Any]) -> dict[str, Any]:
    names = ("id", "limit_nano_usd", "window_seconds", "calendar", "spent_nano_usd", "resets_at")
    text = written(budget["limit_nano_usd"], budget["window_seconds"], budget["calendar"])
    return {"limit": text, **{name: budget[name] for name in names}}


def _forbid() -> NoReturn:
    raise PolicyError(
        "Your role does not let you do this with this key: a member makes and changes his own, an admin everybody's.",
        status=403,
        code="forbidden",
        error_type="policy_forbidden",
    )


def _not_found() -> CallerError:
    return CallerError("There is no key with this id, or it is not yours.", status=404, code="key_not_found")
