"""
Whether a request can still be afforded, before it is sent: its worst case is set aside, later its true cost taken.

A worker leases money from a budget's period in Postgres and divides it among requests by plain arithmetic, so that no
two spend the same dollar: settled <= limit + what answers cost beyond their holds. A lease never expires by time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from operator import attrgetter

from proxy.admission.refusals import budget_exceeded, budget_unavailable
from proxy.admission.shares import Account, Share
from proxy.exchange import Budget, Caller, Hold
from proxy.storage.budgets import Lease, ask_for_leases, return_lease, take_lease
from proxy.storage.postgres import Database, Unavailable

FOR_EVER_MS = 2**63
MAX_ACCOUNTS = 200_000
IDLE_SWEEPS = 5
ASK_AGAIN_SECONDS = 0.05
"""How long the others have to give back what they do not use, before a request is refused."""
REFUSED_SECONDS = 0.25
"""For so long nobody asks Postgres again for what it has refused twice."""
AWAY_SECONDS = 1.0
"""For so long after a call that did not reach Postgres nobody waits for the next one."""
MAX_ASKED = 8
SLICE = 500
"""Accounts swept before the event loop has its turn."""
CLOSE_SECONDS = 5.0

log = logging.getLogger("strata.admission")

TakeLease = Callable[[Database, Budget, str, int, int], Awaitable[Lease]]
ReturnLease = Callable[[Database, str, int, str, int], Awaitable[None]]
AskForLeases = Callable[[Database, str, str], Awaitable[None]]


async def _kept_already() -> bool:
    return True


async def _no_heirs() -> None:
    return None


class Budgets:
    """The budgets of this worker. `workers`: how many share them, so that the first does not lease everything."""

    def __init__(
        self,
        db: Database,
        worker_id: str,
        *,
        workers: int = 2,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        sweep_seconds: float = 1.0,
        take: TakeLease = take_lease,
        give_back: ReturnLease = return_lease,
        ask_others: AskForLeases = ask_for_leases,
        keep: Callable[[], Awaitable[bool]] = _kept_already,
        wait_for_heirs: Callable[[], Awaitable[None]] = _no_heirs,
        max_accounts: int = MAX_ACCOUNTS,
    ) -> None:
        self._db = db
        self._worker_id = worker_id
        self._workers = workers
        self._clock = clock
        self._wall_clock = wall_clock
        self._sleep = sleep
        self._sweep_seconds = sweep_seconds
        self._take = take
        self._give_back = give_back
        self._ask_others = ask_others
        self._keep = keep
        """Whether the disk has what was settled so far."""
        self._wait_for_heirs = wait_for_heirs
        """Returns when the leases of dead workers are back."""
        self._max_accounts = max_accounts
        self._accounts: dict[str, Account] = {}
        self._past: dict[tuple[str, int], Share] = {}
        """Periods that are over for this worker and have holds or money left."""
        self._away_until = float("-inf")
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._returning: set[asyncio.Task[bool]] = set()
        self.overrun_nano_usd_total = 0
        """What answers cost beyond their holds: the only way past a limit."""
        self.stranded_nano_usd_total = 0
        """Given back without an answer from Postgres; stays leased until this worker's journal is adopted."""
        self.failures_total = 0
        """Sweeps that failed."""

    def __len__(self) -> int:
        return len(self._accounts)

    def shares(self) -> dict[tuple[str, int], tuple[int, int]]:
        """By budget and start of its period (ms): what is free and what is held here, in nano-dollars."""
        now = {(a.budget.id, a.share.starts_ms): a.share for a in self._accounts.values() if a.share is not None}
        return {period: (share.free, share.held) for period, share in (self._past | now).items()}

    async def start(self) -> None:
        """Begins to give idle leases back: by and by, and at once when another worker is short."""
        self._task = asyncio.create_task(self._sweep_for_ever(), name="budgets")

    async def close(self) -> None:
        """Gives back what is not spent. What has been spent and not yet shipped stays leased: the shipper lowers it."""
        self._stop.set()
        tasks: list[asyncio.Task[int] | asyncio.Task[bool] | asyncio.Task[None]] = [*self._returning]
        tasks += [account.asking for account in self._accounts.values() if account.asking]
        if self._task is not None:
            tasks.append(self._task)
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_SECONDS)
        for account in list(self._accounts.values()):
            share = account.share
            if share is not None and share.free and not await self._return_free(account.budget.id, share):
                return  # each of the others would wait as long; whoever ships our last row gives all of them back
        await self._clear_past()

    async def hold(self, caller: Caller, nano_usd: int, more: tuple[Budget, ...] = ()) -> Hold | None:
        """
        Sets `nano_usd` aside at every budget of the caller and at those of the provider (`more`), or at none. None if
        there are none. Raises PolicyError 429 `insufficient_quota`; GatewayFault 503 `budget_unavailable` if a lease is
        needed and Postgres is away. Does not suspend while the leases here suffice.
        """
        budgets = caller.budgets + more if more else caller.budgets
        if not budgets:
            return None
        now_ms = self._wall_clock() * 1000
        shares = []
        for budget in budgets:
            account = self._accounts.get(budget.id)
            share = account.share if account is not None else None
            if share is None or budget.limit_nano_usd <= 0 or now_ms >= share.ends_ms or 0 < nano_usd > share.free:
                return await self._hold_slowly(caller, budgets, nano_usd)
            shares.append(share)
        for share in shares:
            share.set_aside(nano_usd)
        return _hold(nano_usd, budgets, shares)

    def resolve(self, hold: Hold, cost_nano_usd: int) -> None:
        """The request has cost this much; the rest of its hold is free again. A second time changes nothing."""
        if hold.resolved:
            return
        hold.resolved = True
        self.overrun_nano_usd_total += max(0, cost_nano_usd - hold.nano_usd)
        for budget_id, starts_ms in zip(hold.budget_ids, hold.period_starts_ms, strict=True):
            account = self._accounts[budget_id]
            share = account.share
            if share is None or share.starts_ms != starts_ms:
                share = self._past[budget_id, starts_ms]
            share.resolve(hold.nano_usd, cost_nano_usd)
            account.settled += cost_nano_usd
            account.refused_until = float("-inf")

    def on_notice(self, payload: str) -> None:
        """What was said on the channel: another worker is short of a budget, or the budget has changed."""
        kind, _, rest = payload.partition(" ")
        budget_id, _, asker = rest.partition(" ")
        account = self._accounts.get(budget_id)
        if account is None or asker == self._worker_id:
            return
        if kind == "changed":
            account.refused_until = float("-inf")
        share = account.share
        if share is not None and share.free > 0 and not account.waiting and not self._stop.is_set():
            task = asyncio.create_task(self._return_free(budget_id, share), name="budget return")
            self._returning.add(task)
            task.add_done_callback(self._returning.discard)

    async def sweep(self) -> None:
        """Gives back what nobody has used for a while, and forgets budgets that nobody uses."""
        now_ms = self._wall_clock() * 1000
        for number, account in enumerate(list(self._accounts.values())):
            if number % SLICE == SLICE - 1:
                await asyncio.sleep(0)
            share = account.share
            if share is not None and not account.busy:
                share.idle_sweeps += 1
                if now_ms >= share.ends_ms:
                    self._past[account.budget.id, share.starts_ms] = share
                    account.share = None
                elif self._db.up and (share.free < 0 or (share.free and share.idle_sweeps > IDLE_SWEEPS)):
                    await self._return_free(account.budget.id, share)
        if self._db.up:
            await self._clear_past()
        unresolved = {budget_id for budget_id, _ in self._past}
        for account in list(self._accounts.values()):
            if _unused(account) and account.budget.id not in unresolved:
                del self._accounts[account.budget.id]

    async def _sweep_for_ever(self) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), self._sweep_seconds)
                return
            try:
                await self.sweep()
            except Exception:
                self.failures_total += 1
                log.exception("Idle leases could not be swept; the next sweep tries again.")

    async def _hold_slowly(self, caller: Caller, budgets: tuple[Budget, ...], nano_usd: int) -> Hold:
        """All budgets in the order of their ids; what was set aside before one refused is put back."""
        budgets = tuple(sorted(budgets, key=attrgetter("id")))
        shares: list[Share] = []
        try:
            for budget in budgets:
                shares.append(await self._set_aside(caller, budget, nano_usd))
        except BaseException:
            for share in shares:
                share.resolve(nano_usd, 0)
            raise
        return _hold(nano_usd, budgets, shares)

    async def _set_aside(self, caller: Caller, budget: Budget, nano_usd: int) -> Share:
        if self._stop.is_set():
            raise budget_unavailable()
        account = self._account(budget)
        account.busy += 1
        try:
            refusals = 0
            for _ in range(MAX_ASKED):
                share = self._live(account)
                if share is not None and budget.limit_nano_usd > 0 and not 0 < nano_usd > share.free:
                    share.set_aside(nano_usd)
                    return share
                if budget.limit_nano_usd <= 0 or self._just_refused(account, nano_usd):
                    break
                if self._clock() < self._away_until and not self._db.up:
                    raise budget_unavailable()
                refused = await self._ask(account, nano_usd)
                if not refused:
                    continue
                if refusals and nano_usd >= refused:
                    account.refused, account.refused_until = nano_usd, self._clock() + REFUSED_SECONDS
                    break
                refusals += 1
                await self._ask_around(account)
        except Unavailable as error:
            self._away_until = self._clock() + AWAY_SECONDS
            raise budget_unavailable() from error
        finally:
            account.busy -= 1
        raise self._exceeded(caller, account, budget, nano_usd)

    async def _ask_around(self, account: Account) -> None:
        """
        Gives the living a moment to return what they do not use, asked once for all who wait here, and the dead's heirs
        the time that they need. If that is not heard, nobody gives back anything.
        """
        if self._clock() >= account.asked_until:
            account.asked_until = self._clock() + ASK_AGAIN_SECONDS
            with contextlib.suppress(Unavailable):
                await self._ask_others(self._db, account.budget.id, self._worker_id)
        await self._sleep(ASK_AGAIN_SECONDS)
        await self._wait_for_heirs()

    async def _ask(self, account: Account, nano_usd: int) -> int:
        """
        Waits for a lease that somebody is already taking, or takes one, in a task of its own: a request that is
        cancelled must not lose what Postgres has granted. The need that was refused, or 0.
        """
        account.waiting.append(nano_usd)
        try:
            if account.asking is None:
                account.asking = asyncio.create_task(self._lease(account), name="budget lease")
            return await asyncio.shield(account.asking)
        finally:
            account.waiting.remove(nano_usd)

    async def _lease(self, account: Account) -> int:
        try:
            share = self._live(account)
            free = share.free if share is not None else 0
            smallest = min(account.waiting, default=0)
            if share is not None and smallest <= free:
                return 0
            need = smallest - free
            size = min(account.budget.limit_nano_usd // 50, account.free_there // (2 * self._workers))
            want = max(need, size, sum(account.waiting) - free)
            lease = await self._take(self._db, account.budget, self._worker_id, want, need)
            self._credit(account, lease)
            return smallest if lease.granted_nano_usd < need else 0
        finally:
            account.asking = None

    def _credit(self, account: Account, lease: Lease) -> None:
        share = account.share
        if share is None or share.starts_ms != lease.starts_at_ms:
            if share is not None:
                self._past[account.budget.id, share.starts_ms] = share
            share = self._past.pop((account.budget.id, lease.starts_at_ms), None) or Share(lease.starts_at_ms)
            account.share = share
        # Where our clock runs ahead, Postgres decides that the period still goes on; believed for a second at a time
        now_ms = int(self._wall_clock() * 1000)
        share.ends_ms = FOR_EVER_MS if lease.ends_at_ms is None else max(lease.ends_at_ms, now_ms + 1000)
        share.free += lease.granted_nano_usd
        share.idle_sweeps = 0
        account.free_there = lease.free_nano_usd
        account.settled = lease.settled_nano_usd

    async def _return_free(self, budget_id: str, share: Share) -> bool:
        """
        Whether disk and Postgres have taken it. Below zero it is a debt: the lease in Postgres grows by it, so that
        nobody can borrow what is spent. What an answer left of its hold is only given away when the disk has its
        settlement: after a loss of power the whole hold would be charged.
        """
        nano_usd, share.free = share.free, 0
        share.returning += 1
        try:
            if nano_usd > 0 and not await self._keep():
                share.free += nano_usd
                return False
            await self._give_back(self._db, budget_id, share.starts_ms, self._worker_id, nano_usd)
        except Unavailable:
            # Whether it arrived is not known, and given twice it would free money that was spent
            self.stranded_nano_usd_total += nano_usd
            log.warning("A budget's lease of %d nano-dollars was given back without an answer.", nano_usd)
            return False
        finally:
            share.returning -= 1
        return True

    async def _clear_past(self) -> None:
        for period, share in list(self._past.items()):
            if share.free and not await self._return_free(period[0], share):
                return
            if share.over and self._past.get(period) is share:
                del self._past[period]

    def _account(self, budget: Budget) -> Account:
        account = self._accounts.get(budget.id)
        if account is None:
            if len(self._accounts) >= self._max_accounts:
                raise budget_unavailable()
            account = self._accounts[budget.id] = Account(budget)
        account.budget = budget
        return account

    def _live(self, account: Account) -> Share | None:
        share = account.share
        return None if share is None or self._wall_clock() * 1000 >= share.ends_ms else share

    def _just_refused(self, account: Account, nano_usd: int) -> bool:
        return nano_usd >= account.refused and self._clock() < account.refused_until

    def _exceeded(self, caller: Caller, account: Account, budget: Budget, nano_usd: int) -> Exception:
        share = account.share
        resets = None
        if share is not None and share.ends_ms != FOR_EVER_MS:
            resets = share.ends_ms / 1000 - self._wall_clock()
        free = account.free_there + (max(0, share.free) if share is not None else 0)
        return budget_exceeded(
            caller,
            budget,
            spent_nano_usd=account.settled,
            asked_nano_usd=nano_usd,
            free_nano_usd=free if budget.limit_nano_usd > 0 else 0,
            resets_in_seconds=resets,
        )


def _unused(account: Account) -> bool:
    share = account.share
    return not account.busy and account.asking is None and (share is None or share.over)


def _hold(nano_usd: int, budgets: Sequence[Budget], shares: Sequence[Share]) -> Hold:
    return Hold(nano_usd, tuple([budget.id for budget in budgets]), tuple([share.starts_ms for share in shares]))
