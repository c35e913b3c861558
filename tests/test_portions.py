"""What workers lease is what a limit has: nothing is spent twice and nothing lost, whatever they do, at any time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.admission.portions import IDLE_TICKS, Lease, Portion
from proxy.exchange import Limit
from proxy.storage.redis_limits import Granted

OPERATIONS = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["spend", "settle", "ask", "tick", "quiet"]), st.integers(1, 400)),
    max_size=120,
)


class Bank:
    """Redis's part, without time: what is owed never goes down by itself."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.owed = 0

    def answer(self, charge: int, want: int, need: int) -> int:
        self.owed += charge
        assert self.owed >= 0
        free = max(0, self.size - self.owed)
        granted = 0 if free < need else min(want, free)
        self.owed += granted
        return granted


@given(size=st.integers(1, 2000), operations=OPERATIONS)
def test_what_is_owed_is_what_is_used_and_what_the_workers_have(
    size: int, operations: list[tuple[int, str, int]]
) -> None:
    bank, leases = Bank(size), [Lease(size, size) for _ in range(3)]
    open_turns: list[list[int]] = [[], [], []]
    used = debts = 0
    for worker, what, number in operations:
        lease = leases[worker]
        if what == "spend" and lease.free >= number:
            lease.free -= number
            lease.spent += number
            used += number
            open_turns[worker].append(number)
        elif what == "settle" and open_turns[worker]:
            more = number - open_turns[worker].pop()
            lease.free -= more
            lease.spent += more
            used += more
            debts += max(0, more)
        elif what == "tick":
            lease.tick(None, 0)
        elif what in ("ask", "quiet"):
            need = number if what == "ask" else None
            charge, want, needed = lease.plan(need, quiet=what == "quiet", workers=3)
            lease.take_over(bank.answer(charge, want, needed), 0)
            if need is not None and needed and lease.free < need:
                assert bank.size - bank.owed < needed
        assert bank.owed - sum(one.free for one in leases) == used
        assert used <= size + debts


@given(size=st.integers(1, 2000), numbers=st.lists(st.integers(1, 100), min_size=1, max_size=30))
def test_a_worker_that_rests_gives_everything_back(size: int, numbers: list[int]) -> None:
    bank, lease = Bank(size), Lease(size, size)
    used = 0
    for number in numbers:
        charge, want, need = lease.plan(number, quiet=False, workers=3)
        lease.take_over(bank.answer(charge, want, need), 0)
        if lease.free >= number:
            lease.free -= number
            used += number
    charge, want, need = lease.plan(None, quiet=True, workers=3)
    lease.take_over(bank.answer(charge, want, need), 0)
    assert (lease.free, bank.owed) == (0, used)


@given(st.lists(st.sampled_from(["take", "end", "ask", "rest", "tick"]), max_size=80), st.integers(1, 12))
def test_no_more_run_here_than_places_are_leased(operations: list[str], most: int) -> None:
    mine = Portion(Limit("key:k", "key", max_parallel=most), workers=3)
    now_ns = 0
    for what in operations:
        now_ns += 50_000_000
        if what == "take":
            before = mine.running
            assert mine.spend(0) is (before < mine.slots)
        elif what == "end" and mine.running:
            mine.settle(0, 0)
        elif what == "tick":
            mine.tick(now_ns)
        elif what in ("ask", "rest"):
            asked = mine.ask("", 0 if what == "ask" else None)
            assert mine.running <= mine.slots or mine.slots == 0
            mine.told(asked, Granted(0, 0, 0, 0, 0, 0, min(asked.slots, most)), now_ns)
        assert mine.running <= most


def test_the_background_asks_while_something_is_used_and_then_once_more_to_give_back() -> None:
    mine = Portion(Limit("key:k", "key", rpm=6000), workers=3)
    asked = mine.ask("", 1)
    assert (asked.requests_need, asked.requests_want) == (1, 1 + 6000 // 300)
    mine.told(asked, Granted(asked.requests_want, 5000, 0, 0, 0, 0, -1), 0)
    assert mine.spend(1)
    ticks = [mine.tick(number) for number in range(1, IDLE_TICKS + 2)]
    assert ticks == [True, False, False, False, True]
    asked = mine.ask("", None)
    assert asked.requests_charge == -20
    mine.told(asked, Granted(0, 5020, 0, 0, 0, 0, -1), 0)
    mine.settle(1, 1)
    assert not mine.tick(100)
    assert mine.over
