"""
The budgets that bind whoever asks: everybody's, and each provider's. A key's, a user's and a team's come with the key.

From the configuration at once, from Postgres as soon as it is there, and again whenever one changes: heard within
milliseconds, looked for every few seconds in case that was missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Callable, Sequence

from proxy.config import SharedBudget
from proxy.exchange import Budget
from proxy.storage.budget_settings import declare_budgets, read_for_all
from proxy.storage.postgres import Database, Unavailable
from proxy.storage.snapshots import keep_fresh

NAMESPACE = uuid.UUID("6f1f0c34-7a8e-5d55-9a3f-0f6f6c7d2b11")
POLL_SECONDS = 5.0

log = logging.getLogger("strata.admission")


class Bindings:
    """`providers` is the same dict for life: who holds it sees it change. `changed` hears of everybody's new ones."""

    def __init__(
        self,
        db: Database,
        configured: Sequence[SharedBudget] = (),
        *,
        changed: Callable[[tuple[Budget, ...]], None] = lambda _: None,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._db = db
        self._configured = [_budget(shared) for shared in configured]
        self._changed = changed
        self._poll_seconds = poll_seconds
        self._missing: list[Budget] | None = None
        """What the file has and the database has not; their names may come to be. None: nothing is entered yet."""
        self._heard = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.everybody: tuple[Budget, ...] = ()
        self.providers: dict[str, tuple[Budget, ...]] = {}
        self.failures_total = 0
        """Refreshes that failed."""
        self._for_all = [budget for budget in self._configured if budget.scope in ("global", "provider")]
        self._take(self._for_all)

    async def start(self) -> None:
        """Enters the file's budgets and reads all. Raises Unavailable: then nothing was begun."""
        await self.refresh()
        freshness = keep_fresh(self.refresh, self._heard, self._poll_seconds, self._failed)
        self._task = asyncio.create_task(freshness, name="budgets that bind all")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def on_notice(self, payload: str) -> None:
        """A budget changed; or, without a payload, the connection is new and anything may have been missed."""
        if not payload.startswith("short"):
            self._heard.set()

    async def refresh(self) -> None:
        """Raises Unavailable if they cannot be read; those of the file bind even if they cannot be entered."""
        self._heard.clear()
        with contextlib.suppress(Unavailable):
            await self._declare()
        budgets = await read_for_all(self._db)
        if self._missing is None:
            entered = {budget.id for budget in budgets}
            budgets += [budget for budget in self._for_all if budget.id not in entered]
        if self._take(budgets):
            self._changed(self.everybody)

    async def _declare(self) -> None:
        first = self._missing is None
        if first or self._missing:
            wanted = self._configured if self._missing is None else self._missing
            self._missing = await declare_budgets(self._db, wanted, all_there_are=first)
            for budget in self._missing if first else ():
                log.error(
                    'The budget of config.yaml for the %s "%s" is not in force: there is no such %s yet, or a budget '
                    "with the same window was set by hand. See: strata budgets list",
                    *(budget.scope, budget.subject, budget.scope),
                )

    def _take(self, budgets: Sequence[Budget]) -> bool:
        """Whether everybody's budgets are others than before."""
        everybody = tuple(budget for budget in budgets if budget.scope == "global")
        providers: dict[str, tuple[Budget, ...]] = {}
        for budget in budgets:
            if budget.scope == "provider":
                providers[budget.subject] = (*providers.get(budget.subject, ()), budget)
        if providers != self.providers:
            self.providers.clear()
            self.providers.update(providers)
        changed, self.everybody = everybody != self.everybody, everybody
        return changed

    def _failed(self, error: Exception) -> None:
        self.failures_total += 1
        if not isinstance(error, Unavailable):
            log.error("The budgets that bind all could not be read; the next poll tries again.", exc_info=error)


def _budget(shared: SharedBudget) -> Budget:
    """Its id is made of what it is for: the same on every start and every replica, whatever its limit."""
    window = shared.calendar or shared.window_seconds or "ever"
    name = str(uuid.uuid5(NAMESPACE, f"budget:{shared.scope}:{shared.name}:{window}"))
    return Budget(name, shared.scope, shared.name, shared.limit_nano_usd, shared.window_seconds, shared.calendar)
