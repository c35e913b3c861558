"""
What may be said of a virtual key over HTTP, and how far a member may go. Pure.

Nobody gives a key more than he has: for a member that is what `keys.defaults` of the configuration say, and of a key
whose limits an admin has set, what it has already. That bounds a key; people are
bounded by the budgets and limits of users and teams.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from proxy.admission.gate import covers
from proxy.config import Config
from proxy.config.budgets import amount, parsed
from proxy.config.keys import may_name
from proxy.config.problems import Wrong, suggestion
from proxy.config.quantities import whole_seconds
from proxy.config.yaml import Node
from proxy.errors import CallerError, PolicyError
from proxy.storage.key_changes import KeyBudget, Wanted

MAX_GRACE_SECONDS = 7 * 86_400
MAX_METADATA_BYTES = 4096
MAX_DEPTH = 8
SMALLEST, LARGEST = 1e-15, 2**53
"""Numbers between them come back from the database as they went in."""
MAX_KEYS_OF_A_MEMBER = 100
LAST_MOMENT = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()
"""What the database could keep beyond it, nobody here can read."""

Rate = Annotated[int, Meta(ge=1, le=1_000_000_000)]
Names = Annotated[list[Annotated[str, Meta(min_length=1, max_length=200)]], Meta(min_length=1, max_length=200)]
Tags = Annotated[list[Annotated[str, Meta(min_length=1, max_length=64)]], Meta(max_length=16)]
Period = Annotated[str, Meta(min_length=1, max_length=64)]

_NAME = re.compile(r"\S(.{0,62}\S)?")


class Said(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is not said stays as it is; of a new key, it is what `keys.defaults` say. null: none."""

    name: str | UnsetType = UNSET
    models: Names | UnsetType = UNSET
    budgets: Annotated[list[Period], Meta(max_length=8)] | UnsetType = UNSET
    """`5/1d`, `100/month`, `100`, as on the command line."""
    rpm: Rate | UnsetType | None = UNSET
    tpm: Rate | UnsetType | None = UNSET
    max_parallel: Annotated[int, Meta(ge=1, le=1000000)] | UnsetType | None = UNSET
    expires: Period | UnsetType | None = UNSET
    """`90d` from now, or a moment: `2027-01-31T00:00:00Z`."""
    tags: Tags | UnsetType = UNSET
    metadata: dict[str, Any] | UnsetType = UNSET


class NewKey(Said, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """null for a user or a team: the key is nobody's."""

    user_id: str | UnsetType | None = UNSET
    team_id: str | UnsetType | None = UNSET


class Rotation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    grace: Period | None = None
    """How long the old secret goes on, such as `1h`; without it, it ends at once."""


BOUNDS = ("models", "budgets", "rpm", "tpm", "max_parallel", "expires")
"""What an admin sets and a member may then only tighten."""


class KeyRules:
    """Of one configuration: which names and models there are, and what a new key gets."""

    def __init__(self, config: Config) -> None:
        self._defaults = config.keys.defaults
        self._models = config.models
        self._of_file = {key.name for key in config.keys.static}
        self._limited_by_name = {shared.name for shared in config.limits if shared.scope == "key" and shared.name}

    def defaults(self, now: float) -> Wanted:
        """What a new key gets that says nothing of itself."""
        of = self._defaults
        budgets: tuple[KeyBudget, ...] = ()
        if of.budget_nano_usd is not None:
            budgets = (KeyBudget(of.budget_nano_usd, of.budget_seconds, of.budget_calendar),)
        return Wanted(
            name="",
            models=of.models,
            rpm=of.rpm,
            tpm=of.tpm,
            max_parallel=of.max_parallel,
            budgets=budgets,
            expires_at=now + of.expires_seconds if of.expires_seconds else None,
        )

    def applied(self, said: Said, start: Wanted, now: float) -> Wanted:
        """`start` with what is said. CallerError 400 that names the field."""
        changes: dict[str, Any] = {
            name: getattr(said, name)
            for name in ("rpm", "tpm", "max_parallel")
            if not isinstance(getattr(said, name), UnsetType)
        }
        if not isinstance(said.name, UnsetType) and (said.name != start.name or not start.name):
            changes["name"] = self._name(said.name)
        if not isinstance(said.models, UnsetType):
            changes["models"] = self._known_models(said.models)
        if not isinstance(said.budgets, UnsetType):
            changes["budgets"] = _budgets(said.budgets)
        if not isinstance(said.expires, UnsetType):
            changes["expires_at"] = None if said.expires is None else _moment(said.expires, now)
        if not isinstance(said.tags, UnsetType):
            changes["tags"] = _tags(said.tags)
        if not isinstance(said.metadata, UnsetType):
            changes["metadata"] = _metadata(said.metadata)
        return msgspec.structs.replace(start, **changes)

    def hold_member_to(self, said: Said, wanted: Wanted, current: Wanted | None, now: float) -> None:
        """PolicyError 403 if that is more than a member may give; `current`: the key as it is, if it is there."""
        ceilings = [current] if current is not None else []
        if current is None or not current.limited_by_admin:
            ceilings.append(self.defaults(now))
        for field in BOUNDS:
            said_now = current is None or not isinstance(getattr(said, field), UnsetType)
            if said_now and all(_beyond(field, wanted, ceiling) for ceiling in ceilings):
                raise PolicyError(
                    f"{field} would be more than you may give a key: "
                    + ("an admin has set its limits." if len(ceilings) == 1 and current else "keys.defaults say less.")
                    + " Ask an admin.",
                    status=403,
                    code="beyond_your_limits",
                    error_type="policy_forbidden",
                )
        old_name = wanted.name if current is None else current.name
        if wanted.name != old_name or current is None:
            for name in (wanted.name, old_name):
                if name in self._limited_by_name:
                    raise PolicyError(
                        "The configuration has limits for this name (limits, scope key). Only an admin gives it to a "
                        "key, or takes it away.",
                        status=403,
                        code="name_reserved",
                        error_type="policy_forbidden",
                    )

    def _name(self, name: str) -> str:
        if not _NAME.fullmatch(name) or not name.isprintable():
            raise _invalid("name", "must have 1 to 64 printable characters")
        if name in self._of_file:
            raise CallerError(
                f'The name "{name}" belongs to a key of the configuration. Choose another.',
                code="name_taken",
                param="name",
            )
        return name

    def _known_models(self, models: Sequence[str]) -> tuple[str, ...]:
        for name in models:
            if not name.isprintable() or not may_name(name, self._models):
                shown = name[:64].encode("unicode_escape").decode()
                raise _invalid("models", f'has "{shown}", and no model is called so.{suggestion(name, self._models)}')
        return tuple(dict.fromkeys(models))


def as_it_is(key: Mapping[str, Any]) -> Wanted:
    """What was said of a key that is there."""
    expires_at = key["expires_at"]
    return Wanted(
        name=key["name"],
        models=tuple(key["models"]),
        rpm=key["rpm"],
        tpm=key["tpm"],
        max_parallel=key["max_parallel"],
        budgets=tuple(
            KeyBudget(one["limit_nano_usd"], one["window_seconds"], one["calendar"]) for one in key["budgets"]
        ),
        expires_at=None if expires_at is None else expires_at.timestamp(),
        tags=tuple(key["tags"]),
        metadata=key["metadata"],
        limited_by_admin=key["limited_by_admin"],
    )


def grace_period(node: Node) -> int:
    """How long an old secret may go on, in seconds. Raises `Wrong`."""
    seconds = whole_seconds(node)
    if seconds > MAX_GRACE_SECONDS:
        raise Wrong(f"must be at most 7d, not {node}: an old secret is a risk for as long as it works.")
    return seconds


def grace_seconds(rotation: Rotation) -> int | None:
    if rotation.grace is None:
        return None
    try:
        seconds: int = parsed("grace", rotation.grace, grace_period)
    except Wrong as wrong:
        raise CallerError(str(wrong), code="invalid_value", param="grace") from None
    return seconds


def _beyond(field: str, wanted: Wanted, ceiling: Wanted) -> bool:
    if field == "models":
        return not all(covers(ceiling.models, model) for model in wanted.models)
    if field == "budgets":
        return not all(
            any(own.window == cap.window and own.limit_nano_usd <= cap.limit_nano_usd for own in wanted.budgets)
            for cap in ceiling.budgets
        )
    name = "expires_at" if field == "expires" else field
    own, cap = getattr(wanted, name), getattr(ceiling, name)
    return cap is not None and (own is None or own > cap)


def _budgets(texts: Sequence[str]) -> tuple[KeyBudget, ...]:
    found: dict[tuple[int | None, str | None], KeyBudget] = {}
    for text in texts:
        try:
            nano_usd, window = amount("budgets", text)
        except Wrong as wrong:
            raise CallerError(str(wrong), code="invalid_value", param="budgets") from None
        budget = KeyBudget(nano_usd, window.seconds, window.calendar)
        if budget.window in found:
            raise _invalid("budgets", "has two for the same period; the lower would hold, so say that one only")
        found[budget.window] = budget
    return tuple(found.values())


def _moment(text: str, now: float) -> float:
    try:
        return now + int(parsed("expires", text, whole_seconds))
    except Wrong:
        pass  # then it must be a moment
    try:
        moment = datetime.fromisoformat(text)
        unix_seconds = (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        unix_seconds = math.inf
    if unix_seconds > LAST_MOMENT:
        raise _invalid("expires", "must be a period like 90d (at most 3650d) or a moment like 2027-01-31T00:00:00Z")
    if unix_seconds <= now:
        raise _invalid("expires", "must lie in the future; to end a key now, revoke it")
    return unix_seconds


def _tags(tags: Sequence[str]) -> tuple[str, ...]:
    if not all(tag.isprintable() and tag.strip() == tag for tag in tags):
        raise _invalid("tags", "must be printable, without spaces at their ends")
    return tuple(dict.fromkeys(tags))


def _metadata(metadata: dict[str, Any]) -> dict[str, Any]:
    if len(msgspec.json.encode(metadata)) > MAX_METADATA_BYTES:
        raise _invalid("metadata", f"must have at most {MAX_METADATA_BYTES} bytes as JSON")
    level: list[Any] = [metadata]
    for _ in range(MAX_DEPTH):
        names = [name for one in level if isinstance(one, dict) for name in one]
        for part in (*names, *level):
            if isinstance(part, str) and "\0" in part:
                raise _invalid("metadata", "must not hold NUL characters")
            if isinstance(part, int | float) and part and not SMALLEST <= abs(part) <= LARGEST:
                raise _invalid("metadata", "has a number that would not be kept exactly; write it as text")
        level = [
            inner
            for one in level
            for inner in (one.values() if isinstance(one, dict) else one if isinstance(one, list) else ())
        ]
        if not level:
            return metadata
    raise _invalid("metadata", f"must be nested at most {MAX_DEPTH - 1} deep")


def _invalid(param: str, why: str) -> CallerError:
    return CallerError(f"{param} {why.rstrip('.')}.", code="invalid_value", param=param)
