"""
The keys this worker knows: a snapshot of them all by digest, so that a request waits for nobody.

Freshness: a notification from Postgres within milliseconds, a poll every 5 s in case one was missed, everything anew
after a reconnect. A snapshot that could not be confirmed for `stale_max_seconds` is no longer believed.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Sequence

import msgspec

from proxy.admission import keys
from proxy.config import StaticKey
from proxy.exchange import Budget
from proxy.storage.keys import CHANNEL, KeyRow, changed_since, find_key
from proxy.storage.postgres import Database, Unavailable
from proxy.storage.snapshots import keep_fresh

STATIC_NAMESPACE = uuid.UUID("6f1f0c34-7a8e-5d55-9a3f-0f6f6c7d2b11")

MAX_KEYS = 100_000
MAX_REMEMBERED = 10_000
"""Ended keys, and unknown ones, that are refused without a look-up."""
MAX_LOOKUPS = 64
UNKNOWN_SECONDS = 5.0
ENDED = 0.0
"""A moment that is over by whatever clock."""

log = logging.getLogger("strata.admission")


class Shelf:
    """
    At most `capacity` keys, each found by its id and by its digest; and by the one before its last rotation, under
    which it is another row that ends when that secret does.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.by_id: dict[str, KeyRow] = {}
        self.by_digest: dict[bytes, KeyRow] = {}

    def __len__(self) -> int:
        return len(self.by_id)

    def keep(self, row: KeyRow) -> bool:
        """Adds the key as the newest, instead of what it was before; True if the oldest had to go for it."""
        self.drop(row.id)
        full = len(self.by_id) >= self._capacity
        if full:
            self.drop(next(iter(self.by_id)))
        if row.owner_disabled:
            row = msgspec.structs.replace(row, expires_at=ENDED)
        self.by_id[row.id] = row
        self.by_digest[row.digest] = row
        if row.previous_digest is not None:
            self.by_digest[row.previous_digest] = _before_rotation(row)
        return full

    def drop(self, id: str) -> None:
        """With every secret that it was known by: one of two rotations ago has nobody else to end it."""
        row = self.by_id.pop(id, None)
        if row is not None:
            self.by_digest.pop(row.digest, None)
            if row.previous_digest is not None:
                self.by_digest.pop(row.previous_digest, None)


class Keyring:
    """
    Finds keys by digest. `db` may be away at any time: known keys go on for `stale_max_seconds`, unknown ones are
    answered with Unavailable (503), never with a refusal.
    """

    def __init__(
        self,
        db: Database,
        pepper: bytes,
        *,
        pepper_id: str = "",
        static: Sequence[StaticKey] = (),
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        stale_max_seconds: float = 900.0,
        poll_seconds: float = 5.0,
        max_keys: int = MAX_KEYS,
    ) -> None:
        self._db = db
        self._clock = clock
        self._static_keys = static
        self._wall_clock = wall_clock
        self._stale_max_seconds = stale_max_seconds
        self._poll_seconds = poll_seconds
        self._max_keys = max_keys
        self.use_pepper(pepper, pepper_id)
        self._active = Shelf(max_keys)
        self._ended = Shelf(MAX_REMEMBERED)
        self._unknown_until: dict[bytes, float] = {}
        self._lookups: dict[bytes, asyncio.Task[KeyRow | None]] = {}
        self._version = 0
        self._believed_until = float("-inf")
        self._changed = asyncio.Event()
        self._reload = True
        self._full_logged = False
        self._pepper_logged = False
        self._task: asyncio.Task[None] | None = None
        self.failures_total = 0
        """Refreshes that failed."""
        self.lookups_total = 0
        """Look-ups of single keys in Postgres."""

    def use_pepper(self, pepper: bytes, pepper_id: str) -> None:
        """What digests are made with from now on; the gate's must be the same."""
        self._pepper_id = pepper_id
        rows = _static_rows(self._static_keys, pepper, pepper_id, self._wall_clock())
        self._static = {row.digest: row for row in rows}

    def __len__(self) -> int:
        return len(self._static) + len(self._active)

    @property
    def stale(self) -> bool:
        """Whether the snapshot is too old to be believed; static keys are always good."""
        return self._clock() > self._believed_until

    def static_rows(self) -> tuple[KeyRow, ...]:
        """The keys that the configuration owns; read-only."""
        return tuple(self._static.values())

    async def start(self) -> None:
        """Loads the snapshot and keeps it fresh. A database that is away is waited for in the background."""
        await self._db.listen(CHANNEL, self._on_notice)
        try:
            await self._refresh()
        except Exception as error:
            self._failed(error)
        freshness = keep_fresh(self._refresh, self._changed, self._poll_seconds, self._failed)
        self._task = asyncio.create_task(freshness, name="keyring")

    async def close(self) -> None:
        """Ends the background work."""
        tasks = [*self._lookups.values(), *([self._task] if self._task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._task = None

    def known(self, digest: bytes) -> KeyRow | None:
        """The key, active or ended, if this worker knows it and may still believe what it knows."""
        row = self._active.by_digest.get(digest) or self._ended.by_digest.get(digest)
        if row is None or self._clock() > self._believed_until:
            return self._static.get(digest)
        return row

    async def find(self, digest: bytes) -> KeyRow | None:
        """The key, active or ended, or None if there is none. Raises Unavailable if nobody can say."""
        row = self.known(digest)
        if row is not None:
            return row
        if self._unknown_until.get(digest, 0.0) > self._clock():
            return None
        lookup = self._lookups.get(digest)
        if lookup is None:
            if len(self._lookups) >= MAX_LOOKUPS:
                raise Unavailable("Too many unknown keys are being looked up at once. Try again in a second.")
            lookup = asyncio.create_task(self._look_up(digest), name="key look-up")
            self._lookups[digest] = lookup
            lookup.add_done_callback(lambda _: self._lookups.pop(digest, None))
        return await asyncio.shield(lookup)

    async def _look_up(self, digest: bytes) -> KeyRow | None:
        self.lookups_total += 1
        row = await find_key(self._db, digest)
        if row is not None:
            self._store(row, self._active, self._ended)
            return self._active.by_digest.get(digest) or self._ended.by_digest.get(digest)
        if len(self._unknown_until) >= MAX_REMEMBERED:
            del self._unknown_until[next(iter(self._unknown_until))]
        self._unknown_until[digest] = self._clock() + UNKNOWN_SECONDS
        return None

    def _on_notice(self, payload: str) -> None:
        """A key changed; or, without a payload, the connection is new and anything may have been missed."""
        if not payload:
            self._reload = True
        self._changed.set()

    def _failed(self, error: Exception) -> None:
        self.failures_total += 1
        if isinstance(error, Unavailable):
            log.warning("Postgres is away: keys are served from memory.")
        else:
            log.error("The keys could not be refreshed; the next poll tries again.", exc_info=error)

    async def _refresh(self) -> None:
        self._changed.clear()
        began = self._clock()
        reload, self._reload = self._reload, False
        active, ended = self._active, self._ended
        if reload:
            active, ended = Shelf(self._max_keys), Shelf(MAX_REMEMBERED)
        cursor = 0 if reload else self._version
        try:
            while rows := await changed_since(self._db, cursor):
                for row in rows:
                    self._store(row, active, ended)
                cursor = rows[-1].version
        except BaseException:
            self._reload = self._reload or reload
            raise
        self._active, self._ended = active, ended
        self._version = cursor
        self._believed_until = began + self._stale_max_seconds

    def _store(self, row: KeyRow, active: Shelf, ended: Shelf) -> None:
        """Keeps the newer of two states of one key; a look-up may be overtaken by a refresh."""
        self._unknown_until.pop(row.digest, None)
        known = active.by_id.get(row.id) or ended.by_id.get(row.id)
        if known is not None and known.version >= row.version:
            return
        active.drop(row.id)
        if row.revoked_at is not None:
            ended.keep(row)
            return
        if active.keep(row) and not self._full_logged:
            self._full_logged = True
            log.warning("There are more than %d keys: the rest is looked up one by one.", self._max_keys)
        if self._pepper_id and row.pepper_id != self._pepper_id and not self._pepper_logged:
            self._pepper_logged = True
            log.error(
                "The key %s was made under another master key (%s, now %s) and cannot be recognised. "
                "Restore the master key that this database had.",
                row.display,
                row.pepper_id,
                self._pepper_id,
            )


def _before_rotation(row: KeyRow) -> KeyRow:
    """The key under its previous digest. Without a grace it has ended."""
    ends = [moment for moment in (row.previous_until or ENDED, row.expires_at) if moment is not None]
    return msgspec.structs.replace(row, digest=row.previous_digest, expires_at=min(ends), replaced=True)


def static_names(static: Sequence[StaticKey]) -> dict[str, str]:
    """Ids of the configuration's keys, with their names: the same on every start and every replica."""
    return {_static_id(key): key.name for key in static}


def _static_id(key: StaticKey) -> str:
    return str(uuid.uuid5(STATIC_NAMESPACE, f"key:{key.name}"))


def _static_rows(static: Sequence[StaticKey], pepper: bytes, pepper_id: str, now: float) -> list[KeyRow]:
    """Keys of the configuration as rows."""
    rows = []
    for key in static:
        key_id = _static_id(key)
        budgets: tuple[Budget, ...] = ()
        if key.budget_nano_usd is not None:
            budget_id = str(uuid.uuid5(STATIC_NAMESPACE, f"budget:{key.name}"))
            limit, calendar = key.budget_nano_usd, key.budget_calendar
            budgets = (Budget(budget_id, "key", key_id, limit, key.budget_seconds, calendar),)
        text = key.key.reveal()
        rows.append(
            KeyRow(
                id=key_id,
                name=key.name,
                digest=keys.digest(text, pepper),
                pepper_id=pepper_id,
                display=keys.display(text),
                user_id=None,
                team_id=None,
                models=key.models,
                rpm=key.rpm,
                created_at=now,
                expires_at=None,
                revoked_at=None,
                last_used_at=None,
                version=0,
                budgets=budgets,
                tpm=key.tpm,
                max_parallel=key.max_parallel,
            )
        )
    return rows
