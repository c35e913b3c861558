"""Routing is pure: a config, a clock and dice in, an order out."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config import Config, Deployment, Model, Provider, Rest
from proxy.errors import CallerError, GatewayFault
from proxy.routing.pace import Pace
from proxy.routing.plan import Router
from proxy.routing.resting import MAX_KNOWN, Resting
from proxy.routing.retries import FLOOR, LONGEST_BACKOFF_SECONDS, RetryBudget, backoff_seconds

ONE = Provider(name="one", api_base="https://one.example/v1")
TWO = Provider(name="two", api_base="https://two.example/v1")


def deployment(provider: Provider, model: str, *, weight: int = 1, order: int = 1) -> Deployment:
    return Deployment(provider=provider, model=model, weight=weight, order=order)


def router(*models: Model, resting: Resting | None = None, dice: float = 0.5) -> Router:
    config = Config(models={model.name: model for model in models})
    return Router(config, resting or Resting(Rest()), lambda: dice)


def names(plan_router: Router, model: str, now: float = 0.0) -> list[str]:
    return [step.deployment.name for step in plan_router.plan(plan_router.find(model), now).steps]


def test_a_list_is_tried_in_order() -> None:
    smart = Model(name="smart", deployments=(deployment(ONE, "a", order=1), deployment(TWO, "b", order=2)))
    assert names(router(smart), "smart") == ["one/a", "two/b"]


def test_weights_share_one_order() -> None:
    balanced = Model(
        name="balanced",
        deployments=(deployment(ONE, "a", weight=3), deployment(TWO, "b", weight=1), deployment(TWO, "c", order=2)),
    )
    dice = random.Random(7)
    plans = Router(Config(models={"balanced": balanced}), Resting(Rest()), dice.random)
    orders = [names(plans, "balanced") for _ in range(2000)]
    first = sum(order[0] == "one/a" for order in orders) / len(orders)
    assert 0.70 < first < 0.80
    assert all(order[2] == "two/c" for order in orders)


def test_a_deployment_that_is_asked_as_often_as_it_may_be_is_passed_over_until_time_has_paid() -> None:
    paced = Deployment(provider=ONE, model="a", order=1, rpm=3)
    smart = Model(name="smart", deployments=(paced, deployment(TWO, "b", order=2)))
    plans = router(smart)
    assert [names(plans, "smart")[0] for _ in range(5)] == ["one/a"] * 3 + ["two/b"] * 2
    assert names(plans, "smart", 19.0) == ["two/b", "one/a"]
    assert names(plans, "smart", 21.0) == ["one/a", "two/b"]


def test_a_deployment_that_has_used_its_tokens_is_passed_over_and_when_all_have_one_is_asked_all_the_same() -> None:
    first, second = (Deployment(provider=ONE, model=name, order=at, tpm=600) for at, name in enumerate("ab", 1))
    pace = Pace()
    config = Config(models={"smart": Model(name="smart", deployments=(first, second))})
    plans = Router(config, Resting(Rest()), lambda: 0.5, pace)
    pace.used(first, 5000, 0.0)
    assert names(plans, "smart", 0.0) == ["one/b", "one/a"]
    pace.used(second, 600, 0.0)
    plan = plans.plan(plans.find("smart"), 0.0)
    assert ([step.deployment.name for step in plan.steps], plan.attempts) == (["one/a", "one/b"], 1)
    assert names(plans, "smart", 61.0) == ["one/a", "one/b"]


def test_a_pattern_serves_a_whole_provider_under_its_own_names() -> None:
    plans = router(Model(name="one/*", deployments=(deployment(ONE, "*"),)))
    assert names(plans, "one/some/model") == ["one/some/model"]
    assert plans.find("one/x").name == "one/*"
    assert plans.names() == ["one/*"]


def test_an_exact_name_wins_over_a_pattern_and_a_long_pattern_over_a_short_one() -> None:
    plans = router(
        Model(name="*", deployments=(deployment(TWO, "any"),)),
        Model(name="one/*", deployments=(deployment(ONE, "*"),)),
        Model(name="one/a", deployments=(deployment(TWO, "own"),)),
    )
    assert names(plans, "one/a") == ["two/own"]
    assert names(plans, "one/b") == ["one/b"]
    assert names(plans, "else") == ["two/any"]


@pytest.mark.parametrize("name", ["smrt", "Smart ", "x" * 1_000_000, "one/\x00", "one/", "\u202e"])
def test_an_unknown_name_is_a_404_that_suggests_and_stays_short(name: str) -> None:
    plans = router(
        Model(name="smart", deployments=(deployment(ONE, "a"),)),
        Model(name="one/*", deployments=(deployment(ONE, "*"),)),
    )
    with pytest.raises(CallerError) as refused:
        plans.find(name)
    assert refused.value.status == 404
    assert refused.value.code == "model_not_found"
    assert len(refused.value.message) < 260
    assert refused.value.message.isprintable()
    if name == "smrt":
        assert 'Did you mean "smart"?' in refused.value.message


def test_a_model_whose_providers_are_all_off_is_a_503_that_says_so() -> None:
    plans = router(Model(name="smart", deployments=()))
    with pytest.raises(GatewayFault, match="strata check") as refused:
        plans.plan(plans.find("smart"), 0.0)
    assert refused.value.status == 503


def test_fallback_models_come_after_and_are_marked() -> None:
    plans = router(
        Model(name="smart", deployments=(deployment(ONE, "a"),), fallbacks=("fast",)),
        Model(name="fast", deployments=(deployment(TWO, "b"),)),
    )
    plan = plans.plan(plans.find("smart"), 0.0)
    assert [(step.deployment.name, step.fallback) for step in plan.steps] == [("one/a", False), ("two/b", True)]


def test_who_rests_goes_last_and_is_asked_once_when_all_rest() -> None:
    resting = Resting(Rest(allowed_fails=1, cooldown_seconds=30))
    smart = Model(name="smart", deployments=(deployment(ONE, "a", order=1), deployment(TWO, "b", order=2)))
    plans = router(smart, resting=resting)
    resting.failed("one/a", 100.0, "provider_error", at_once=False)
    assert names(plans, "smart", 101.0) == ["two/b", "one/a"]
    resting.failed("two/b", 101.0, "provider_error", at_once=False)
    assert plans.plan(plans.find("smart"), 102.0).attempts == 1
    assert names(plans, "smart", 132.0) == ["one/a", "two/b"]


def test_a_rest_that_is_over_is_told_although_nobody_asks_for_the_deployment_again() -> None:
    changes: list[tuple[str, bool, str]] = []
    resting = Resting(Rest(cooldown_seconds=30), lambda *change: changes.append(change))
    resting.failed("one/a", 0.0, "provider_auth", at_once=True)
    resting.wake(29.0)
    assert changes == [("one/a", False, "provider_auth")]
    resting.wake(31.0)
    assert changes[1:] == [("one/a", True, "")]


def test_names_that_clients_make_up_are_forgotten_in_time() -> None:
    changes: list[tuple[str, bool, str]] = []
    resting = Resting(Rest(), lambda *change: changes.append(change))
    for number in range(MAX_KNOWN + 2):
        resting.failed(f"one/{number}", 0.0, "provider_error", at_once=False)
        resting.failed(f"two/{number}", 0.0, "provider_auth", at_once=True)
    assert len(resting._failures) == len(resting._until) == MAX_KNOWN
    assert [name for name, up, _ in changes if up] == ["two/0", "two/1"]


def test_three_failures_within_a_minute_make_a_rest_and_slower_ones_do_not() -> None:
    changes: list[tuple[str, bool, str]] = []
    resting = Resting(Rest(allowed_fails=3, cooldown_seconds=30), lambda *change: changes.append(change))
    for at in (0.0, 40.0, 80.0):
        resting.failed("one/a", at, "provider_error", at_once=False)
    assert not resting.rests("one/a", 81.0)
    resting.failed("one/a", 90.0, "provider_error", at_once=False)
    assert resting.rests("one/a", 91.0)
    assert not resting.rests("one/a", 121.0)
    assert changes == [("one/a", False, "provider_error"), ("one/a", True, "")]


def test_a_refused_key_rests_at_once_and_a_success_ends_any_rest() -> None:
    resting = Resting(Rest())
    resting.failed("one/a", 0.0, "provider_auth", at_once=True)
    assert resting.rests("one/a", 1.0)
    resting.succeeded("one/a")
    assert not resting.rests("one/a", 1.0)


def test_a_provider_that_names_a_time_is_taken_at_its_word_up_to_a_minute() -> None:
    resting = Resting(Rest(allowed_fails=100, cooldown_seconds=30))
    resting.failed("one/a", 0.0, "provider_rate_limited", at_once=False, seconds=5)
    resting.failed("two/b", 0.0, "provider_rate_limited", at_once=False, seconds=86_400)
    assert resting.rests("one/a", 4.9)
    assert not resting.rests("one/a", 5.1)
    assert not resting.rests("two/b", 60.1)


def test_a_cooldown_of_zero_turns_resting_off() -> None:
    resting = Resting(Rest(cooldown_seconds=0))
    resting.failed("one/a", 0.0, "provider_auth", at_once=True)
    assert not resting.rests("one/a", 0.0)


@given(st.integers(1, 40), st.floats(0, 1), st.one_of(st.none(), st.floats(0, 3)))
def test_backoff_is_jittered_bounded_and_never_shorter_than_asked(retry: int, dice: float, asked: float | None) -> None:
    wait = backoff_seconds(retry, lambda: dice, asked)
    assert (asked or 0) <= wait <= max(LONGEST_BACKOFF_SECONDS, asked or 0)


def test_retries_are_capped_at_a_fifth_of_what_is_live_with_a_floor() -> None:
    budget = RetryBudget()
    budget.retrying = FLOOR - 1
    assert budget.allows()
    budget.retrying = FLOOR
    assert not budget.allows()
    budget.live = 100
    assert budget.allows()
    budget.retrying = 20
    assert not budget.allows()
