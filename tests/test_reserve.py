"""What is set aside before a request goes out is its worst case, and an answer without a limit gets one it can pay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from proxy.admission.refusals import budget_exceeded
from proxy.config import Deployment, PriceOverride, Prices, Provider
from proxy.errors import CallerError, PolicyError, UpstreamError
from proxy.exchange import Attempt, Budget, Caller, Hold
from proxy.metering.prices import PriceBook
from proxy.providers import Target
from proxy.upstream.reserve import (
    DEFAULT_OUTPUT_BOUND,
    IMAGE_TOKENS,
    LIMIT_BYTES,
    UNKNOWN_WINDOW_TOKENS,
    Reserve,
    choices,
    media_tokens,
    output_bound,
)

NANO = 1_000
"""Pico-dollars: a token in costs one nano-dollar, a token out ten."""
PRICES = Prices(models={"gpu/m": PriceOverride(input_pico_usd=NANO, output_pico_usd=10 * NANO)})
GPU = Deployment(provider=Provider(name="gpu", api_base="http://gpu.example/v1"), model="m")
MINE = Budget("b", "key", "k", 10**9)
OF_PROVIDER = Budget("p", "provider", "gpu", 10**9)
ASKED: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


class Till:
    """Postgres, the leases and everything: so much is free, and each hold is written down."""

    def __init__(self, free: int, budget: Budget = MINE) -> None:
        self.free = free
        self.budget = budget
        self.held: list[int] = []
        self.bound: list[tuple[Budget, ...]] = []

    async def hold(self, caller: Caller, nano_usd: int, more: tuple[Budget, ...]) -> Hold:
        self.held.append(nano_usd)
        self.bound.append(more)
        if nano_usd > self.free:
            raise budget_exceeded(
                caller,
                self.budget,
                spent_nano_usd=0,
                asked_nano_usd=nano_usd,
                free_nano_usd=self.free,
                resets_in_seconds=60,
            )
        return Hold(nano_usd)


def caller(*budgets: Budget) -> Caller:
    return Caller("k", "ci", "sk-strata-…", budgets=budgets)


async def reserve(
    till: Till,
    chat: Mapping[str, Any],
    *,
    maximum: int | None = None,
    strict: bool = False,
    who: Caller | None = None,
    providers: Mapping[str, tuple[Budget, ...]] | None = None,
    deployment: Deployment = GPU,
) -> tuple[int | None, Attempt]:
    target = Target(deployment.model, max_output_tokens=maximum)
    attempt = Attempt(1, deployment, 0, input_tokens_bound=100, output_tokens_bound=output_bound(dict(chat), target))
    purse = Reserve(PriceBook(PRICES), till.hold, providers or {}, block_unpriced=False)
    limit = await purse.set_aside(who or caller(MINE), attempt, dict(chat), target, strict=strict)
    return limit, attempt


async def test_the_clients_own_limit_is_what_is_reserved() -> None:
    till = Till(10**9)
    limit, attempt = await reserve(till, {**ASKED, "max_tokens": 50, "n": 3})
    assert limit is None and till.held == [100 + 150 * 10]
    assert attempt.hold is not None and attempt.hold.nano_usd == till.held[0]


async def test_of_two_limits_the_larger_is_reserved_for_nobody_knows_which_a_provider_heeds() -> None:
    till = Till(10**9)
    for limits in ((50, 900), (900, 50)):
        sent = dict(zip(("max_completion_tokens", "max_tokens"), limits, strict=True))
        await reserve(till, {**ASKED, **sent})
    assert till.held == [100 + 900 * 10] * 2


async def test_without_a_limit_the_models_maximum_is_reserved_and_nothing_is_changed() -> None:
    till = Till(10**9)
    limit, _ = await reserve(till, ASKED, maximum=2_000)
    assert limit is None and till.held == [100 + LIMIT_BYTES + 20_000]


async def test_where_the_maximum_is_unknown_too_a_limit_is_set() -> None:
    till = Till(10**9)
    limit, attempt = await reserve(till, ASKED)
    assert limit == DEFAULT_OUTPUT_BOUND == attempt.output_tokens_bound
    assert till.held == [100 + LIMIT_BYTES + 10 * DEFAULT_OUTPUT_BOUND]


@pytest.mark.parametrize(("n", "best_of", "answers"), [(3, None, 3), (1, 5, 5), (4, 2, 4), (None, 2, 2)])
def test_all_answers_that_are_made_are_reserved_for(n: int | None, best_of: int | None, answers: int) -> None:
    assert choices({"n": n, "best_of": best_of}) == answers


@pytest.mark.parametrize(("n", "expected"), [(1, 481), (4, 120)])
async def test_what_is_left_of_a_budget_limits_the_answer(n: int, expected: int) -> None:
    till = Till(5_000)
    limit, attempt = await reserve(till, {**ASKED, "n": n}, maximum=2_000)
    assert limit is not None and limit - 2 <= expected <= limit + 2
    assert attempt.hold is not None
    assert 4_900 < attempt.hold.nano_usd <= 5_000


@pytest.mark.parametrize(
    ("chat", "strict"),
    [({**ASKED, "max_tokens": 2_000}, False), (ASKED, True), ({**ASKED, "max_completion_tokens": 2_000}, False)],
)
async def test_a_clients_limit_and_a_strict_request_are_left_alone_and_refused(
    chat: dict[str, Any], strict: bool
) -> None:
    with pytest.raises(PolicyError, match="may cost") as refused:
        await reserve(Till(5_000), chat, maximum=2_000, strict=strict)
    assert (refused.value.status, refused.value.code) == (429, "insufficient_quota")
    assert refused.value.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("frees", [(9_000, 5_000), (5_000, 9_000)])
async def test_the_tightest_of_several_budgets_limits_the_answer(frees: tuple[int, int]) -> None:
    yours = msgspec.structs.replace(MINE, id="c")
    second = Till(frees[1], yours)

    class Both(Till):
        async def hold(self, caller: Caller, nano_usd: int, more: tuple[Budget, ...]) -> Hold:
            await super().hold(caller, nano_usd, more)
            return await second.hold(caller, nano_usd, more)

    limit, attempt = await reserve(Both(frees[0]), ASKED, maximum=2_000, who=caller(MINE, yours))
    assert limit is not None and 479 <= limit <= 483
    assert attempt.hold is not None and attempt.hold.nano_usd <= 5_000


async def test_a_strict_request_must_say_how_long_an_answer_may_be_where_nobody_knows() -> None:
    with pytest.raises(CallerError, match="send max_completion_tokens"):
        await reserve(Till(10**9), ASKED, strict=True)


async def test_an_answer_of_a_few_words_is_not_worth_a_call() -> None:
    with pytest.raises(PolicyError):
        await reserve(Till(100 + LIMIT_BYTES + 10 * 12), ASKED, maximum=2_000)


async def test_a_spent_provider_is_as_good_as_one_that_fails() -> None:
    till = Till(0, OF_PROVIDER)
    with pytest.raises(UpstreamError, match='This gateway\'s budget for "gpu"') as failed:
        await reserve(till, {**ASKED, "max_tokens": 1}, who=caller(), providers={"gpu": (OF_PROVIDER,)})
    assert till.bound == [(OF_PROVIDER,)]
    error = failed.value
    assert (error.status, error.code, error.retryable, error.rest) == (429, "insufficient_quota", True, False)
    assert error.headers["x-should-retry"] == "false"


async def test_a_provider_with_a_budget_and_without_a_price_says_so() -> None:
    unpriced = Deployment(provider=Provider(name="gpu", api_base="http://gpu.example/v1"), model="other")
    with pytest.raises(CallerError, match='the provider "gpu" has a budget'):
        await reserve(Till(0), ASKED, who=caller(), providers={"gpu": (OF_PROVIDER,)}, deployment=unpriced)


def parts(*content: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(content)}, {"role": "assistant", "content": "Yes."}]}


@pytest.mark.parametrize(
    ("chat", "tokens"),
    [
        (parts({"type": "text", "text": "x"}, {"type": "input_audio", "input_audio": {"data": "AAAA"}}), 0),
        (parts({"type": "image_url", "image_url": {"url": "https://e.example/a.png"}}), IMAGE_TOKENS),
        (parts(*[{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}] * 2), 2 * IMAGE_TOKENS),
        (parts({"type": "file", "file": {"file_data": "A" * 700}}), 700),
        (parts({"type": "file", "file": {"file_id": "file-1"}}), UNKNOWN_WINDOW_TOKENS),
        (parts(*[{"type": "video_url", "video_url": {"url": "https://e.example/v"}}] * 3), UNKNOWN_WINDOW_TOKENS),
        (ASKED, 0),
    ],
)
def test_what_is_few_bytes_and_many_tokens_has_a_ceiling(chat: dict[str, Any], tokens: int) -> None:
    assert media_tokens(chat, UNKNOWN_WINDOW_TOKENS) == tokens


async def test_an_image_behind_an_address_is_reserved_for() -> None:
    till = Till(10**9)
    image = {"type": "image_url", "image_url": {"url": "https://e.example/a.png"}}
    _, attempt = await reserve(till, {**parts(image), "max_tokens": 1})
    assert till.held == [100 + IMAGE_TOKENS + 10]
    assert attempt.input_tokens_bound == 100 + IMAGE_TOKENS
