"""What a caller reads when money stands in the way: one sentence with cause and fix, and no float in it."""

from __future__ import annotations

import pytest

from proxy.admission.refusals import budget_exceeded, dollars, duration
from proxy.exchange import Budget, Caller

CI = Caller("k", "ci", "sk-strata-…")


@pytest.mark.parametrize(
    ("budget_", "spent", "seconds", "message"),
    [
        (
            Budget("b", "key", "k", 5_000_000_000, 86400),
            5_020_000_000,
            11_520,
            'The key "ci" has spent $5.02 of $5.00; the budget resets in 3 h 12 min.',
        ),
        (
            Budget("b", "team", "t", 5_000_000_000),
            5_000_000_000,
            None,
            'The team of the key "ci" has spent $5.00 of $5.00; its owner can raise the budget.',
        ),
        (
            Budget("b", "global", "", 5_000_000_000, 60),
            4_900_000_000,
            30,
            "This gateway has spent $4.90 of $5.00, and this request may cost $0.40 with others under way; "
            "the budget resets in 30 s.",
        ),
        (
            Budget("b", "provider", "gpu", 0),
            0,
            None,
            'This gateway\'s budget for "gpu" has a budget of $0.00 and may send nothing. Its owner can raise it.',
        ),
    ],
)
def test_a_refusal_says_what_is_spent_and_when_that_changes(
    budget_: Budget, spent: int, seconds: float | None, message: str
) -> None:
    error = budget_exceeded(CI, budget_, spent_nano_usd=spent, asked_nano_usd=400_000_000, resets_in_seconds=seconds)
    assert error.message == message
    assert len(message) <= 200
    assert error.details["spent_nano_usd"] == spent


@pytest.mark.parametrize(
    ("nano_usd", "text"),
    [
        (0, "$0.00"),
        (5_020_000_000, "$5.02"),
        (1_234_567_890_000, "$1,234.56"),
        (10_000_000, "$0.01"),
        (312_345, "$0.00031"),
        (1, "$0.000000001"),
        (100, "$0.0000001"),
    ],
)
def test_money_is_written_without_floats(nano_usd: int, text: str) -> None:
    assert dollars(nano_usd) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "1 s"), (59, "59 s"), (60, "1 min"), (11_520, "3 h 12 min"), (90_000, "1 d 1 h"), (86_460, "1 d")],
)
def test_durations_show_their_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text
