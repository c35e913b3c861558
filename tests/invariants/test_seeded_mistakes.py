"""A check that cannot fail proves nothing: each finds the mistake that was made for it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from proxy.admission.budgets import Budgets
from proxy.exchange import Usage
from proxy.metering import meter, prices, segments
from proxy.metering.adoption import Estate
from proxy.metering.journal import Journal
from proxy.metering.meter import Meter
from proxy.metering.price_lines import price_of
from proxy.metering.segments import SETTLE, Record, Segment
from tests.invariants.histories import History, lend_and_lose_power
from tests.invariants.world import Bank, Power

Patch = pytest.MonkeyPatch

ENOUGH = settings(
    max_examples=1500,
    stateful_step_count=30,
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


def dispatches_nothing(patch: Patch) -> None:
    patch.setattr(Journal, "append_dispatch", lambda self, key, payload: None)


def writes_over_rows(patch: Patch) -> None:
    def insert(self: Bank, row: Any) -> bool:
        key = (row.request_id, row.attempt)
        if key not in self.rows:
            self.count(row)
        self.rows[key] = row if key not in self.rows else msgspec.structs.replace(row, duration_ms=row.duration_ms + 1)
        return True

    patch.setattr(Bank, "insert", insert)


def rounds_down(patch: Patch) -> None:
    whole = price_of
    patch.setattr(prices, "price_of", lambda *given: whole(*given)._replace(nano_usd=whole(*given).nano_usd - 1))


def inserts_twice(patch: Patch) -> None:
    """Without ON CONFLICT."""

    def insert(self: Bank, row: Any) -> bool:
        key = (row.request_id, row.attempt)
        if key in self.rows:
            key = (row.request_id, row.attempt + 100)
        self.rows[key] = row
        self.count(row)
        return True

    patch.setattr(Bank, "insert", insert)


def counts_what_was_there(patch: Patch) -> None:
    def insert(self: Bank, row: Any) -> bool:
        """Counters that move with what was sent, and not with what was inserted: adoption after a lost answer."""
        self.rows.setdefault((row.request_id, row.attempt), row)
        self.count(row)
        return True

    patch.setattr(Bank, "insert", insert)


def grants_what_is_not_there(patch: Patch) -> None:
    patch.setattr(Bank, "free", lambda self, budget_id, starts_ms: self.limits[budget_id])


def resolves_twice(patch: Patch) -> None:
    once = Budgets.resolve

    def resolve(self: Budgets, hold: Any, cost_nano_usd: int) -> None:
        hold.resolved = False
        once(self, hold, cost_nano_usd)

    patch.setattr(Budgets, "resolve", resolve)


def buries_the_living(patch: Patch) -> None:
    """Adoption that does not look at the lock, like a lease that ends by the clock."""
    patch.setattr("proxy.metering.adoption.fcntl.flock", lambda fd, how: None)
    patch.setattr(Estate, "finish", lambda self: None)


def writes_at_the_next_sync(patch: Patch) -> None:
    append = Segment.append

    def later(self: Segment, data: bytes) -> None:
        if data[9:10] == bytes([SETTLE]):
            self.unsynced.append(data)
        else:
            append(self, data)

    patch.setattr(Segment, "append", later)


def promises_without_syncing(patch: Patch) -> None:
    """The journal says that the disk has what it was never asked to keep."""
    patch.setattr(Power, "sync", lambda self, fd: None)


def believes_any_frame(patch: Patch) -> None:
    """Reading that does not look at the sum: a torn frame becomes whatever lies there."""
    head = struct.Struct("<IIBB")

    def record_at(data: bytes, at: int, offset: int) -> Record | None:
        if at + head.size > len(data):
            return None
        length, _, _, kind = head.unpack_from(data, at)
        stop = at + head.size + length
        return (
            None if length == 0 or stop > len(data) else Record(kind, data[at + head.size : stop], offset + stop - at)
        )

    patch.setattr(segments, "_record_at", record_at)


def subtracts(patch: Patch) -> None:
    patch.setattr(meter, "NOTHING_USED", Usage(input=-1))


def counts_events_only(patch: Patch) -> None:
    patch.setattr(Meter, "_count_now", lambda self, attempt: 0)


def bills_the_bound(patch: Patch) -> None:
    usage = Meter._usage

    def bound(self: Meter, attempt: Any) -> Usage:
        said = usage(self, attempt)
        return said if attempt.source != "provider" else msgspec.structs.replace(said, input=attempt.input_tokens_bound)

    patch.setattr(Meter, "_usage", bound)


MISTAKES: dict[str, Callable[[Patch], None]] = {
    "I1": dispatches_nothing,
    "I2": writes_over_rows,
    "I3": rounds_down,
    "I4": inserts_twice,
    "I5": counts_what_was_there,
    "I6": grants_what_is_not_there,
    "I7": resolves_twice,
    "I8": buries_the_living,
    "I9": writes_at_the_next_sync,
    "I10": promises_without_syncing,
    "I11": believes_any_frame,
    "I12": subtracts,
    "I13": counts_events_only,
    "I14": bills_the_bound,
}


@pytest.mark.parametrize(("number", "mistake"), MISTAKES.items(), ids=[made.__name__ for made in MISTAKES.values()])
def test_the_checks_find(number: str, mistake: Callable[[Patch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    mistake(monkeypatch)
    either = {"I2": "I[24]", "I4": "I[14]", "I5": "I[45]"}.get(number, number)
    with pytest.raises(AssertionError, match=f"^{either}:"):
        run_state_machine_as_test(History, settings=ENOUGH)


def test_the_checks_find_what_was_lent_before_the_disk_had_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A settlement that is lost with the power makes its hold due, which another worker has spent by then."""

    async def keep(self: Journal) -> bool:
        return True

    monkeypatch.setattr(Journal, "keep", keep)
    with pytest.raises(AssertionError, match=r"^I6:"):
        lend_and_lose_power()
