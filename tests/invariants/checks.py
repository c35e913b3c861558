"""What must hold in the world. Each check has a number, and its failure is an AssertionError that begins with it."""

from __future__ import annotations

from collections import Counter

from proxy.metering.segments import SETTLE
from proxy.storage.ledger import decode_row
from tests.invariants.world import (
    CACHED_PICO,
    INPUT_PICO,
    LIMITS,
    OUTPUT_PICO,
    REQUEST_NANO,
    TOKENIZER,
    World,
)

ESTIMATED = {"counted", "ambiguous", "orphan", "none"}


def at_every_moment(world: World) -> None:
    _rows_never_change(world)
    _rows_are_what_their_usage_costs(world)
    _budgets_are_the_sum_of_their_rows(world)
    _nothing_is_overspent(world)
    _holds_belong_to_open_attempts(world)
    _no_lease_is_free_that_somebody_may_spend(world)
    _costs_are_whole_and_add_up(world)
    _counted_is_never_less_than_delivered(world)


def in_the_end(world: World) -> None:
    """When everybody is dead, adopted and shipped."""
    rows = world.bank.rows
    missing = world.sent.keys() - rows.keys()
    assert missing <= world.forgotten, f"I1: {len(missing - world.forgotten)} attempts have no row"
    assert rows.keys() <= world.sent.keys(), "I1: a row of an attempt that was never sent"
    assert not any(world.bank.granted.values()), "I7: a lease without a worker"
    for key, done in world.done.items():
        row = rows.get(key)
        if row is None or row.source in ESTIMATED:
            continue
        billed = (row.input_tokens, row.cache_read_tokens, row.output_tokens, row.reasoning_tokens)
        given = (done.usage.input, done.usage.cache_read, done.usage.output, done.usage.reasoning)
        assert billed == given, f"I14: billed {billed}, used {given}"
    sources = Counter(row.source for row in rows.values())
    exact = {key for key, done in world.done.items() if done.source in ("provider", "drained")}
    assert sources["provider"] + sources["drained"] >= len(exact - world.forgotten), (
        "I14: an exact answer was estimated"
    )


def after_a_death(world: World, name: str, told: set[tuple[bytes, int]]) -> None:
    """What clients of this worker were told can be read, whenever it was killed."""
    rows = [decode_row(payload) for kind, payload in world.frames_of(name) if kind == SETTLE]
    found = {(row.request_id, row.attempt) for row in rows}
    assert told <= found | world.bank.rows.keys(), "I9: a client was told what nobody can read"


def _rows_never_change(world: World) -> None:
    for key, row in world.first_seen.items():
        assert world.bank.rows.get(key) == row, "I2: a row has changed"
    world.first_seen.update(world.bank.rows)


def _rows_are_what_their_usage_costs(world: World) -> None:
    for row in world.bank.rows.values():
        if row.source not in ("provider", "drained"):
            continue
        pico = row.input_tokens * INPUT_PICO + row.cache_read_tokens * CACHED_PICO
        pico += (row.output_tokens + row.reasoning_tokens) * OUTPUT_PICO
        exact = pico / 1000 + REQUEST_NANO
        assert abs(row.cost_nano_usd - exact) <= 0.5, f"I3: {row.cost_nano_usd} for {exact}"


def _budgets_are_the_sum_of_their_rows(world: World) -> None:
    sums: Counter[tuple[str, int]] = Counter()
    for row in world.bank.rows.values():
        for period in zip(row.budget_ids, row.budget_starts_ms, strict=True):
            sums[period] += row.cost_nano_usd
    assert +Counter(world.bank.settled) == +sums, "I5: a budget is not the sum of its rows"


def _nothing_is_overspent(world: World) -> None:
    for (budget_id, starts_ms), settled in world.bank.settled.items():
        allowed = LIMITS[budget_id] + world.overrun[budget_id, starts_ms]
        assert settled + world.bank.leased(budget_id, starts_ms) <= allowed, "I6: a budget is overspent"


def _holds_belong_to_open_attempts(world: World) -> None:
    for worker in world.workers:
        held: Counter[tuple[str, int]] = Counter()
        for _, attempt in worker.open:
            if attempt.hold is not None:
                for period in zip(attempt.hold.budget_ids, attempt.hold.period_starts_ms, strict=True):
                    held[period] += attempt.hold.nano_usd
        shares = {period: amount for period, (_, amount) in worker.budgets.shares().items() if amount}
        assert shares == dict(+held), "I7: what is held is not what open attempts hold"


def _no_lease_is_free_that_somebody_may_spend(world: World) -> None:
    for worker in world.workers:
        spendable: Counter[tuple[str, int]] = Counter()
        for period, (free, held) in worker.budgets.shares().items():
            spendable[period] += free + held
        for row in worker.queue:
            for period in zip(row.budget_ids, row.budget_starts_ms, strict=True):
                spendable[period] += row.cost_nano_usd
        for (budget_id, starts_ms), amount in spendable.items():
            granted = world.bank.granted.get((budget_id, starts_ms, worker.id), 0)
            assert amount <= granted, "I8: a living worker can spend what is not leased to it"


def _costs_are_whole_and_add_up(world: World) -> None:
    rows = world.bank.rows.values()
    assert all(type(row.cost_nano_usd) is int and row.cost_nano_usd >= 0 for row in rows), "I12: a cost below zero"
    counts = (count for row in rows for count in (row.input_tokens, row.output_tokens))
    assert all(type(count) is int and count >= 0 for count in counts), "I12: a count below zero"


def _counted_is_never_less_than_delivered(world: World) -> None:
    for key, done in world.done.items():
        row = world.bank.rows.get(key)
        if row is not None and row.source == "counted":
            assert row.output_tokens >= TOKENIZER.count(done.text), "I13: less counted than was delivered"
