"""The provider's bill against the ledger, item by item. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from tests.gateway import Row, equal
from tests.oracle import Item

EXACT = frozenset({"provider", "drained", "none"})
ESTIMATED = frozenset({"counted", "ambiguous", "orphan"})


@dataclass
class Verdict:
    """`lost`, `doubled` and `wrong` say what is amiss, a sentence each; all empty is a right bill."""

    items: int = 0
    """What the provider has put on its bill."""
    exact: int = 0
    estimated: int = 0
    """Rows that say they are estimates; each is at least what the provider charges."""
    orphans: int = 0
    """Those among the estimates that a dead worker left."""
    unsent: int = 0
    """Rows of attempts that were written down and died before the provider saw them."""
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    billed_nano_usd: int = 0
    ledger_nano_usd: int = 0

    @property
    def right(self) -> bool:
        return not (self.lost or self.doubled or self.wrong)


def judge(rows: Iterable[Row], items: Iterable[Item]) -> Verdict:
    """
    Rows and items belong together by nonce (`public_id`) and by the order of the attempts. An exact row must equal its
    item in every number; an estimated one must not be below it. A row without an item must be an estimate, or free.
    """
    verdict = Verdict()
    rows_of: dict[str, list[Row]] = defaultdict(list)
    items_of: dict[str, list[Item]] = defaultdict(list)
    for row in rows:
        rows_of[row["public_id"]].append(row)
        verdict.ledger_nano_usd += row["cost_nano_usd"]
    for item in items:
        items_of[item.nonce].append(item)
        verdict.billed_nano_usd += item.nano_usd
        verdict.items += 1
    for nonce in sorted(rows_of.keys() | items_of.keys()):
        _judge_one(verdict, nonce, rows_of[nonce], items_of[nonce])
    return verdict


def _judge_one(verdict: Verdict, nonce: str, rows: list[Row], items: list[Item]) -> None:
    rows = sorted(rows, key=lambda row: row["attempt"])
    items = sorted(items, key=lambda item: item.ordinal)
    attempts = [(row["request_id"], row["attempt"]) for row in rows]
    if len(set(attempts)) < len(attempts):
        verdict.doubled.append(f"{nonce}: {len(rows)} rows, some for the same attempt")
        return
    for item in items[len(rows) :]:
        verdict.lost.append(f"{nonce}: attempt {item.ordinal} ({item.api}, {item.nano_usd} nano-dollars) has no row")
    for row, item in zip(rows, items, strict=False):
        _judge_pair(verdict, nonce, row, item)
    for row in rows[len(items) :]:
        if row["source"] in ESTIMATED or row["cost_nano_usd"] == 0:
            verdict.unsent += 1
        else:
            verdict.doubled.append(f"{nonce}: attempt {row['attempt']} is charged, and the provider never saw it")


def _judge_pair(verdict: Verdict, nonce: str, row: Row, item: Item) -> None:
    if row["source"] in EXACT:
        differences = equal(row, item)
        if differences:
            verdict.wrong.append(f"{nonce}: {row['source']} row differs (ledger, bill): {differences}")
        else:
            verdict.exact += 1
    elif row["source"] not in ESTIMATED:
        verdict.wrong.append(f"{nonce}: source {row['source']!r} is none of ours")
    elif row["cost_nano_usd"] < item.nano_usd:
        verdict.wrong.append(
            f"{nonce}: {row['source']} row of {row['cost_nano_usd']} nano-dollars, the provider charges {item.nano_usd}"
        )
    else:
        verdict.estimated += 1
        verdict.orphans += row["source"] == "orphan"
