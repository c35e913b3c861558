"""Histories of the world, drawn by Hypothesis: requests, answers, streams, deaths, losses of power, shipping."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from proxy.errors import GatewayFault, PolicyError
from proxy.exchange import Attempt, Caller, Exchange, Usage
from proxy.metering.segments import SETTLE
from proxy.storage.ledger import decode_row
from tests.invariants import checks
from tests.invariants.world import CALLERS, DEPLOYMENT, Done, Key, Worker, World

T = TypeVar("T")
WHICH = st.integers(0, 1_000)
TOKENS = st.integers(0, 120)
USAGE = st.builds(Usage, input=TOKENS, cache_read=TOKENS, output=TOKENS, reasoning=TOKENS)
SOURCE = st.sampled_from(["provider", "provider", "drained", "counted", "ambiguous", "none"])
WORDS = ("one", " two", " antidisestablishmentarianism", " über", " 北京", " …")
MEMORY = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
RUNNER = asyncio.Runner()
"""One event loop for all histories: nothing of one is left in it when the next begins."""


class History(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.world = World(Path(tempfile.mkdtemp(prefix="strata-history-", dir=MEMORY)))
        self.world.hire()
        self.world.hire()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """One step, and whatever it started."""

        async def step() -> T:
            result = await work
            for _ in range(12):
                await asyncio.sleep(0)
            return result

        for worker in self.world.workers:
            worker.now += 1
        return RUNNER.run(step())

    @rule(which=WHICH, caller=st.sampled_from(CALLERS), into=TOKENS, out=TOKENS)
    def send(self, which: int, caller: Caller, into: int, out: int) -> None:
        self._send(self._worker(which), self.world.new_exchange(caller), into, out)

    def _send(self, worker: Worker, exchange: Exchange, into: int, out: int) -> None:
        number = len(exchange.attempts) + 1
        attempt = Attempt(number, DEPLOYMENT, 0, input_tokens_bound=into, output_tokens_bound=out)
        most = worker.meter.prices.ceiling(DEPLOYMENT, into, out).nano_usd
        assert exchange.caller is not None
        try:
            if exchange.caller.budgets:
                attempt.hold = self.run(worker.budgets.hold(exchange.caller, most))
        except (PolicyError, GatewayFault):
            return
        exchange.attempts.append(attempt)
        worker.open.append((exchange, attempt))
        worker.meter.dispatch(exchange, attempt)
        self.world.sent[exchange.id, number] = most

    @rule(which=WHICH, open_=WHICH, words=st.lists(st.sampled_from(WORDS), max_size=5))
    def stream(self, which: int, open_: int, words: list[str]) -> None:
        worker = self._worker(which)
        if worker.open:
            exchange, attempt = worker.open[open_ % len(worker.open)]
            attempt.status = 200
            attempt.delivered_text += words
            attempt.delivered_events += len(words)
            worker.meter.progress(exchange, attempt, None)

    @rule(
        which=WHICH,
        caller=st.sampled_from(CALLERS),
        words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=5),
        usage=USAGE,
        source=SOURCE,
    )
    def answer(self, which: int, caller: Caller, words: list[str], usage: Usage, source: str) -> None:
        """A whole request with nothing in between."""
        worker = self._worker(which)
        before = len(worker.open)
        self._send(worker, self.world.new_exchange(caller), 50, 50)
        if len(worker.open) > before:
            self.stream(which, before, words)
            self.settle(which, before, usage, source, told_twice=False, again=False)

    @rule(
        which=WHICH,
        open_=WHICH,
        usage=USAGE,
        source=SOURCE,
        told_twice=st.booleans(),
        again=st.booleans(),
    )
    def settle(self, which: int, open_: int, usage: Usage, source: str, told_twice: bool, again: bool) -> None:
        worker = self._worker(which)
        if not worker.open:
            return
        exchange, attempt = worker.open.pop(open_ % len(worker.open))
        text = "".join(attempt.delivered_text)
        if source in ("provider", "drained"):
            attempt.usage, attempt.source, attempt.status = usage, source, 200  # type: ignore[assignment]  # of the list above
        elif source == "ambiguous" and not attempt.delivered_text:
            attempt.source = "ambiguous"
        elif source == "none" and not attempt.delivered_text:
            attempt.status, attempt.outcome = 429, "provider_rate_limited"
        else:
            attempt.status = 200
        worker.meter.settle(exchange, attempt)
        if told_twice:
            worker.meter.settle(exchange, attempt)
            if attempt.hold is not None:
                worker.budgets.resolve(attempt.hold, attempt.cost_nano_usd)
        key = (exchange.id, attempt.number)
        self.world.done[key] = Done(attempt.source, usage, text)
        self.world.told.add(key)
        self._note_overrun(attempt)
        if again and attempt.source in ("none", "ambiguous"):
            self._send(worker, exchange, attempt.input_tokens_bound, attempt.output_tokens_bound)

    def _note_overrun(self, attempt: Attempt, cost: int | None = None) -> None:
        hold = attempt.hold
        if hold is not None:
            beyond = max(0, (attempt.cost_nano_usd if cost is None else cost) - hold.nano_usd)
            for period in zip(hold.budget_ids, hold.period_starts_ms, strict=True):
                self.world.overrun[period] += beyond

    @rule(which=WHICH, count=st.integers(1, 4))
    def ship(self, which: int, count: int) -> None:
        worker = self._worker(which)
        for row in worker.queue[:count]:
            self.world.bank.insert(row)
        del worker.queue[:count]

    @precondition(lambda self: self.world.bank.rows)
    @rule(order=st.randoms(use_true_random=False))
    def ship_again(self, order: Any) -> None:
        """A worker that never heard that its batch had arrived; in any order, from anybody."""
        bank = self.world.bank
        rows = list(bank.rows.values())
        before = (dict(bank.rows), dict(bank.settled), dict(bank.granted))
        for row in order.sample(rows, min(4, len(rows))):
            bank.insert(row)
        assert (bank.rows, bank.settled, bank.granted) == before, "I4: shipping again has changed something"

    @rule(which=WHICH)
    def sync(self, which: int) -> None:
        self.run(self._worker(which).journal.sync())

    @rule(which=WHICH)
    def kill(self, which: int) -> None:
        worker = self._worker(which)
        self._die(worker)
        self.world.hire()

    def _die(self, worker: Worker) -> None:
        self.world.workers.remove(worker)
        told = self.world.told & {(row.request_id, row.attempt) for row in worker.queue}
        for _, attempt in worker.open:
            # its row will be its last note, which may be more than it held: what it said was its least
            written = [decode_row(payload) for _, payload in self.world.frames_of(worker.journal.name)]
            self._note_overrun(attempt, max((row.cost_nano_usd for row in written), default=0))
        worker.die()
        checks.after_a_death(self.world, worker.journal.name, told)

    @rule(cut=st.floats(0, 1), garbage=st.binary(max_size=40))
    def lose_power(self, cut: float, garbage: bytes) -> None:
        """All are dead, and of each file the disk has what it promised and some of the rest."""
        world = self.world
        for worker in list(world.workers):
            name = worker.journal.name
            written = world.frames_of(name)
            promised = len(written) - worker.unsynced
            for path in world.folder.glob(f"{name}-*.journal"):
                self._tear(path, cut, garbage)
            found = world.frames_of(name)
            assert found == written[: len(found)], "I11: something else was read than was written"
            assert len(found) >= promised, "I10: what the disk had promised is gone"
            most = max((decode_row(payload).cost_nano_usd for _, payload in written), default=0)
            for _, attempt in worker.open:
                self._note_overrun(attempt, most)
            settled = {_key(payload) for kind, payload in found if kind == SETTLE}
            lost = {_key(payload) for _, payload in written[len(found) :]}
            world.forgotten |= lost
            for key in lost - settled:
                world.done.pop(key, None)
            world.workers.remove(worker)
            worker.die()
        world.hire()
        world.hire()

    def _tear(self, path: Path, cut: float, garbage: bytes) -> None:
        kept, written = self.world.disk.synced[path], self.world.disk.written[path]
        at = kept + int((written - kept) * cut)
        data = path.read_bytes()
        path.write_bytes(data[:at] + (garbage + bytes(len(data)))[: len(data) - at])

    @rule()
    def adopt(self) -> None:
        self.world.adopt()

    @rule(seconds=st.sampled_from([1, 30, 60]))
    def time_passes(self, seconds: int) -> None:
        self.world.bank.now_ms += seconds * 1000

    @rule(which=WHICH)
    def sweep(self, which: int) -> None:
        async def idle() -> None:
            for _ in range(7):
                await self._worker(which).budgets.sweep()

        self.run(idle())

    @invariant()
    def all_holds(self) -> None:
        checks.at_every_moment(self.world)

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            if sys.exc_info()[0] is None:  # else something has failed already, and is to be told as it is
                for worker in list(self.world.workers):
                    self._die(worker)
                self.world.adopt()
                checks.at_every_moment(self.world)
                checks.in_the_end(self.world)
        finally:
            self.world.close()

    def _worker(self, which: int) -> Worker:
        return self.world.workers[which % len(self.world.workers)]


def _key(payload: bytes) -> Key:
    row = decode_row(payload)
    return row.request_id, row.attempt


def lend_and_lose_power() -> History:
    """One history that dice hardly ever draw: a worker lends what an answer left of its hold, then the power goes."""
    history = History()
    history.begin()
    lender, borrower = 1, 0
    history.send(which=lender, caller=CALLERS[1], into=0, out=87)
    history.settle(which=lender, open_=0, usage=Usage(), source="provider", told_twice=False, again=False)
    history.send(which=borrower, caller=CALLERS[1], into=0, out=65)
    assert len(history.world.sent) == 2, "nothing was lent"
    try:
        history.kill(which=borrower)
        history.lose_power(cut=0.75, garbage=b"")
    finally:
        history.teardown()
    return history
