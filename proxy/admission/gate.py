"""
From the headers of a request to its caller: which key or person, whether it lives, which models, which limits bind it.

Digest first, questions later: a key that is known costs one HMAC and two dictionary look-ups, and only the look-ups on
a connection that sends the same head again. What came instead (junk, another gateway's key, a provider's) is only asked
once nothing was found, for the sake of the message.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from operator import attrgetter

import msgspec

from proxy.admission import keys
from proxy.admission.accounts.people import People
from proxy.admission.keyring import Keyring
from proxy.admission.limits import Limits, Who
from proxy.config import Secret
from proxy.errors import CallerError, PolicyError, Unauthenticated
from proxy.exchange import Budget, Caller
from proxy.storage.keys import KeyRow
from proxy.storage.people import PersonRow
from proxy.storage.vault import split_keys

MASTER = Caller(key_id="00000000-0000-0000-0000-000000000000", name="master", display="master key", role="admin")

MAX_KEY_BYTES = 512
MAX_CALLERS = 100_000

FOREIGN_KEYS = (
    (b"sk-ant-", "an Anthropic", "sk-ant-…"),
    (b"sk-proj-", "an OpenAI", "sk-proj-…"),
    (b"sk-or-", "an OpenRouter", "sk-or-…"),
    (b"gsk_", "a Groq", "gsk_…"),
    (b"xai-", "an xAI", "xai-…"),
    (b"AIza", "a Google", "AIza…"),
    (b"sk-", "an OpenAI", "sk-…"),
)
"""How keys of providers begin, most particular first; only to say so when one is sent here."""

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class KeptDigest:
    """Of the key in one head, for whoever sends that same head again. What the key is worth is asked each time."""

    __slots__ = ("digest", "pepper")

    def __init__(self) -> None:
        self.digest = b""
        self.pepper: bytes | None = None
        """What it was made with; None: it was not made yet."""


class Gate:
    """Admits callers, or raises an error that says how to be admitted."""

    def __init__(
        self,
        keyring: Keyring,
        limits: Limits,
        pepper: bytes,
        *,
        prefix: str = keys.PREFIX,
        master_key: Secret | None = None,
        everybody: tuple[Budget, ...] = (),
        people: People | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._keyring = keyring
        self._limits = limits
        self._pepper = pepper
        self._prefix = prefix
        self._prefix_bytes = prefix.encode()
        self._master_keys = [key.encode() for key in split_keys(master_key.reveal())] if master_key else []
        """Several during a rotation; each is as good as the other until it is taken out."""
        self._people = people
        self._wall_clock = wall_clock
        self._callers: dict[bytes | str, tuple[KeyRow | PersonRow, Caller]] = {}
        """Keys by digest, since during a rotation one is two rows; people by id."""
        self._used_at: dict[str, float] = {}
        self._everybody: tuple[Budget, ...] = ()
        self._master = MASTER
        self.bind_everybody(everybody)

    def bind_everybody(self, budgets: tuple[Budget, ...]) -> None:
        """From now on these budgets bind every caller, whatever their key: the master key's, too."""
        self._everybody = budgets
        everybody = self._limits.everybody
        bound = budgets or everybody
        self._master = msgspec.structs.replace(MASTER, budgets=budgets, limits=everybody) if bound else MASTER
        self._callers.clear()

    @property
    def named(self) -> tuple[Who, ...]:
        """Users and teams that the configuration limits by name."""
        return self._limits.named

    def bind_named(self, ids: Mapping[Who, str]) -> None:
        """Who is behind the names of users and teams that the configuration limits."""
        if self._limits.learn(ids):
            self._callers.clear()

    def use_pepper(self, pepper: bytes) -> None:
        """What digests are made with from now on; the keyring's must be the same."""
        self._pepper = pepper

    async def admit(self, credentials: Sequence[tuple[bytes, bytes]], kept: KeptDigest | None = None) -> Caller:
        """
        Who sent these credential headers (all that are present: lower-case name, value); `kept` belongs to them. Does
        not suspend for a key that is known. Raises Unauthenticated, CallerError (`ambiguous_credentials`) or, if
        Postgres is away and only it could tell, Unavailable.
        """
        caller = self.recognise(credentials, kept)
        if caller is not None:
            return caller
        token = self._token(credentials)
        if self._people is not None and _is_persons(token):
            return self._as_person(await self._people.find(token))
        row = await self._keyring.find(keys.digest(token, self._pepper))
        if row is None:
            raise self._unknown(token)
        return self._of_key(row)

    def recognise(self, credentials: Sequence[tuple[bytes, bytes]], kept: KeptDigest | None = None) -> Caller | None:
        """`admit` as far as it goes without waiting for anybody. None: it goes further."""
        if kept is not None and kept.pepper is self._pepper:
            digest = kept.digest
        else:
            token = self._token(credentials)
            if _is_persons(token):
                return None
            digest = keys.digest(token, self._pepper)
            if kept is not None:
                kept.digest, kept.pepper = digest, self._pepper
        row = self._keyring.known(digest)
        if row is None:
            token = self._token(credentials)
            if any([hmac.compare_digest(token, key) for key in self._master_keys]):
                return self._master
            if not keys.well_formed(token, self._prefix_bytes):
                raise self._unknown(token)
            return None
        return self._of_key(row)

    def _of_key(self, row: KeyRow) -> Caller:
        if row.revoked_at is not None or (row.expires_at is not None and row.expires_at <= self._wall_clock()):
            raise _ended(row)
        used = self._used_at
        if row.id in used or len(used) < MAX_CALLERS:
            used[row.id] = self._wall_clock()
        known = self._callers.get(row.digest)
        if known is not None and known[0] is row:
            return known[1]
        return self._remember(row)

    def take_uses(self) -> dict[str, float]:
        """Which keys were let in since the last call, and when last (Unix seconds)."""
        used, self._used_at = self._used_at, {}
        return used

    def put_back(self, used_at: Mapping[str, float]) -> None:
        """What could not be written; a use since then is the later one, and counts."""
        self._used_at = {**used_at, **self._used_at}

    def allow(self, caller: Caller, model: str) -> None:
        """Whether the caller may use the model by this name. Raises PolicyError 403 `model_not_allowed`."""
        if not permits(caller, model):
            raise PolicyError(
                f'The key "{caller.name}" may use {_listed(caller.models)}, not "{_shortened(model)}". '
                "Ask its owner to add it.",
                status=403,
                code="model_not_allowed",
                error_type="policy_model_denied",
            )

    def _as_person(self, row: PersonRow) -> Caller:
        """What each key is held to binds a person without a key, too: nobody gets around it by signing in."""
        known = self._callers.get(row.id)
        if known is not None and known[0] == row:
            return known[1]
        limits = self._limits.of(row.id, "", row.id, row.team_id, rpm=None, tpm=None, max_parallel=None)
        caller = Caller(
            key_id=row.id,
            name=row.name,
            display="",
            limits=limits,
            budgets=self._bound(row.budgets),
            user_id=row.id,
            team_id=row.team_id,
            role=row.role,
        )
        return self._keep(row.id, row, caller)

    def _token(self, credentials: Sequence[tuple[bytes, bytes]]) -> bytes:
        token = credential(credentials)
        if token is None:
            raise Unauthenticated(
                f'No API key. Send "Authorization: Bearer {self._prefix}…"; make one with: strata keys create NAME',
                code="missing_api_key",
            )
        if len(token) > MAX_KEY_BYTES and not _is_persons(token):
            raise self._unknown(token)
        return token

    def _remember(self, row: KeyRow) -> Caller:
        caller = Caller(
            key_id=row.id,
            name=row.name,
            display=row.display,
            models=row.models,
            limits=self._limits.of(
                *(row.id, row.name, row.user_id, row.team_id),
                rpm=row.rpm,
                tpm=row.tpm,
                max_parallel=row.max_parallel,
            ),
            budgets=self._bound(row.budgets),
            user_id=row.user_id,
            team_id=row.team_id,
        )
        return self._keep(row.digest, row, caller)

    def _bound(self, budgets: tuple[Budget, ...]) -> tuple[Budget, ...]:
        # What a row says of everybody's budgets is as old as its last change.
        own = [budget for budget in budgets if budget.scope != "global"]
        return tuple(sorted((*own, *self._everybody), key=attrgetter("id")))

    def _keep(self, known_by: bytes | str, row: KeyRow | PersonRow, caller: Caller) -> Caller:
        if len(self._callers) >= MAX_CALLERS:
            del self._callers[next(iter(self._callers))]
        self._callers[known_by] = (row, caller)
        return caller

    def _unknown(self, token: bytes) -> Unauthenticated:
        """Why this cannot be a key of ours; shows nothing of it unless it wears our prefix."""
        if token.startswith(self._prefix_bytes):
            if not keys.well_formed(token, self._prefix_bytes):
                return Unauthenticated(
                    "This key is incomplete or mistyped: its checksum does not match. Copy it again; "
                    "if it is lost, make another with: strata keys create NAME"
                )
            return Unauthenticated(
                f"This key is not known here: {keys.display(token.decode('ascii'))}. Keys of another gateway or of "
                "OpenAI do not work; make one with: strata keys create NAME"
            )
        for start, owner, shown in FOREIGN_KEYS:
            if token.startswith(start):
                return Unauthenticated(
                    f"That looks like {owner} key ({shown}). This gateway needs its own key; "
                    f"the {owner.split()[-1]} key belongs in config.yaml under providers."
                )
        return Unauthenticated(
            "This key is not known here. Keys of another gateway or of OpenAI do not work; "
            "make one with: strata keys create NAME"
        )


def _is_persons(token: bytes) -> bool:
    """Whether it has the form of a token of somebody who has signed in; whether it is one says its verifier."""
    return token.startswith(b"eyJ") and token.count(b".") == 2


def credential(credentials: Sequence[tuple[bytes, bytes]]) -> bytes | None:
    """
    The one secret in these headers, or None. `Bearer` in any case and one or more spaces. Two Authorization headers, or
    two secrets that differ, are refused: which of them counts must not depend on who reads first.
    """
    found: bytes | None = None
    authorizations = 0
    foreign_scheme = False
    for name, value in credentials:
        if name == b"authorization":
            authorizations += 1
            scheme, _, token = value.strip().partition(b" ")
            token = token.strip()
            if scheme.lower() != b"bearer":
                foreign_scheme = True
                token = value
        else:
            token = value.strip()
        if authorizations > 1 or (found is not None and token and found != token):
            raise CallerError(
                "More than one credential was sent. Send one only: Authorization: Bearer, x-api-key or api-key.",
                code="ambiguous_credentials",
                error_type="caller_unauthenticated",
            )
        found = token or found
    if foreign_scheme:
        raise Unauthenticated('The Authorization header is not "Bearer KEY". Send "Authorization: Bearer KEY".')
    return found


def permits(caller: Caller, model: str) -> bool:
    """Whether one of the caller's patterns covers the model; `*` stands for anything, slashes too."""
    return covers(caller.models, model)


def covers(models: tuple[str, ...], model: str) -> bool:
    """
    The same of a list of patterns. `model` may be a pattern itself: then whether all that it covers is covered, since
    a star in it is met by a star only.
    """
    if "*" in models:
        return True
    exact, patterns = _split(models)
    return model in exact or any(_matches(model, parts) for parts in patterns)


@lru_cache(maxsize=4096)
def _split(models: tuple[str, ...]) -> tuple[frozenset[str], tuple[tuple[str, ...], ...]]:
    exact = frozenset(name for name in models if "*" not in name)
    return exact, tuple(tuple(name.split("*")) for name in models if "*" in name)


def _matches(model: str, parts: tuple[str, ...]) -> bool:
    """The parts of a pattern between its stars, each after the one before; never the backtracking of an expression."""
    first, *middle, last = parts
    if len(model) < len(first) + len(last) or not model.startswith(first) or not model.endswith(last):
        return False
    position, end = len(first), len(model) - len(last)
    for part in middle:
        position = model.find(part, position, end)
        if position < 0:
            return False
        position += len(part)
    return True


def _ended(row: KeyRow) -> Unauthenticated:
    if row.revoked_at is not None:
        return Unauthenticated(
            f'The key "{row.name}" was revoked on {_date(row.revoked_at)}. Ask its owner for another.',
            code="key_revoked",
        )
    if row.owner_disabled:
        return Unauthenticated(
            f'The key "{row.name}" is of somebody whose account is disabled. An admin can enable it again.',
            code="owner_disabled",
        )
    if row.replaced:
        return Unauthenticated(
            f'The key "{row.name}" has had another secret since {_date(row.rotated_at or 0.0)}. Ask its owner for it.',
            code="key_rotated",
        )
    return Unauthenticated(
        f'The key "{row.name}" expired on {_date(row.expires_at or 0.0)}. Its owner can make a new one with: '
        "strata keys create NAME",
        code="key_expired",
    )


def _date(unix_seconds: float) -> str:
    day = datetime.fromtimestamp(unix_seconds, UTC)
    return f"{day.day} {_MONTHS[day.month - 1]} {day.year}"


def _listed(models: tuple[str, ...]) -> str:
    """`fast, smart and sim/*`; the first five of a long list."""
    if not models:
        return "no model"
    if len(models) > 5:
        return ", ".join(models[:5]) + f" and {len(models) - 5} more"
    return " and ".join(filter(None, (", ".join(models[:-1]), models[-1])))


def _shortened(text: str) -> str:
    return text if len(text) <= 64 else text[:63] + "…"
