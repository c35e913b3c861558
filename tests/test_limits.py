"""Which limits bind whom, what a turn takes of them, and what somebody is told who has to wait."""

from __future__ import annotations

import subprocess
import sys

import pytest

from proxy.admission.limits import Limits, Standing, format_reset, limit_headers
from proxy.admission.turns import Turns, wanted_tokens
from proxy.config import Deployment, Provider, SharedLimit
from proxy.errors import PolicyError
from proxy.exchange import Attempt, Caller, Exchange, Limit, Usage
from proxy.storage.budget_settings import find_subjects
from proxy.storage.keys import insert_key
from proxy.storage.postgres import Database

SECOND_NS = 1_000_000_000
DEPLOYMENT = Deployment(provider=Provider(name="p", api_base="http://127.0.0.1:9"), model="m")


class Clock:
    now_ns = 10**15

    def __call__(self) -> int:
        return self.now_ns


def caller(*limits: Limit) -> Caller:
    return Caller("k", "ci", "sk-strata-…", limits=limits)


def finished(*tokens: int) -> Exchange:
    attempts = [Attempt(at, DEPLOYMENT, 0, usage=Usage(input=count)) for at, count in enumerate(tokens, 1)]
    return Exchange(bytes(16), "req_1", "chat", 0, 0, attempts=attempts)


async def take(turns: Turns, who: Caller, tokens: int = 0, model: str = "fast"):  # type: ignore[no-untyped-def]
    return await turns.take(who, turns.binding(who, model, model), model, model, tokens)


async def refused(turns: Turns, who: Caller, tokens: int = 0, model: str = "fast") -> PolicyError:
    with pytest.raises(PolicyError) as caught:
        await take(turns, who, tokens, model)
    assert (caught.value.status, caught.value.code) == (429, "rate_limit_exceeded")
    return caught.value


def of(limits: Limits, *, user: str | None = None, team: str | None = None, **own: int) -> list[tuple[str, int | None]]:
    numbers = {"rpm": own.get("rpm"), "tpm": own.get("tpm"), "max_parallel": own.get("max_parallel")}
    return [(limit.id, limit.rpm) for limit in limits.of("k", "ci", user, team, **numbers)]


def test_a_key_has_its_own_limits_its_user_s_its_team_s_and_everybody_s() -> None:
    limits = Limits(
        (
            SharedLimit(scope="global", rpm=1000),
            SharedLimit(scope="team", rpm=300),
            SharedLimit(scope="user", rpm=100),
            SharedLimit(scope="key", model="smart", rpm=5),
            SharedLimit(scope="model", model="smart", rpm=7),
        )
    )
    assert of(limits) == [("key:k/smart", 5), ("global", 1000)]
    assert of(limits, user="u", team="t", rpm=10) == [
        *(("team:t", 300), ("user:u", 100), ("key:k/smart", 5)),
        *(("key:k", 10), ("global", 1000)),
    ]
    assert [limit.rpm for limit in limits.by_model["smart"]] == [7]


def test_the_named_one_holds_instead_of_the_one_for_each_once_its_id_is_known() -> None:
    limits = Limits(
        (
            SharedLimit(scope="user", rpm=100),
            SharedLimit(scope="user", name="ann@example.com", rpm=900),
            SharedLimit(scope="team", name="research", rpm=50),
            SharedLimit(scope="key", name="ci", tpm=10),
        )
    )
    assert limits.named == (("team", "research"), ("user", "ann@example.com"))
    assert of(limits, user="u", team="t") == [("user:u", 100), ("key:k", None)]
    assert limits.learn({("user", "ann@example.com"): "u", ("team", "research"): "t"})
    assert of(limits, user="u", team="t") == [("user:u", 900), ("team:t", 50), ("key:k", None)]
    assert not limits.learn({("user", "ann@example.com"): "u", ("team", "research"): "t"})


def test_of_a_key_s_own_numbers_and_the_file_s_the_lower_ones_hold() -> None:
    limits = Limits((SharedLimit(scope="key", rpm=100, tpm=900, burst_seconds=5),))
    assert of(limits) == [("key:k", 100)]
    (own,) = limits.of("k", "ci", None, None, rpm=7, tpm=1000, max_parallel=2)
    assert (own.rpm, own.tpm, own.max_parallel, own.burst_seconds) == (7, 900, 2, 5)


async def test_requests_beyond_the_minute_s_are_told_when_to_come_back() -> None:
    clock = Clock()
    turns = Turns(Limits(), clock_ns=clock)
    who = caller(Limit("key:k", "key", rpm=2))
    for remaining in (1, 0):
        standing = (await take(turns, who)).standing()
        assert (standing.limit, standing.remaining, standing.token_limit) == (2, remaining, None)
    clock.now_ns += 5_500_000_000
    error = await refused(turns, who)
    assert error.message == 'The key "ci" is limited to 2 requests a minute. Try again in 25 s.'
    assert error.headers["retry-after"] == "25"
    assert error.headers["retry-after-ms"] == "24500"
    assert error.headers["x-ratelimit-limit-requests"] == "2"
    assert error.headers["x-ratelimit-remaining-requests"] == "0"
    assert error.headers["x-ratelimit-reset-requests"] == "54.5s"
    assert error.details == {"scope": "key", "limit": "rpm"}
    clock.now_ns += 24_500_000_000
    assert (await take(turns, who)).standing().remaining == 0


async def test_tokens_are_taken_by_the_estimate_and_put_right_when_the_answer_is_there() -> None:
    clock = Clock()
    turns = Turns(Limits(), clock_ns=clock)
    who = caller(Limit("key:k", "key", rpm=100, tpm=1000))
    turn = await take(turns, who, 900)
    assert turn.standing().tokens_remaining == 100
    error = await refused(turns, who, 200)
    assert error.message == 'The key "ci" is limited to 1000 tokens a minute. Try again in 6 s.'
    assert error.headers["x-ratelimit-remaining-tokens"] == "100"
    assert error.headers["x-ratelimit-remaining-requests"] == "99"
    turn.end(finished(30, 70))
    turn.end(finished(900))
    assert (await take(turns, who, 200)).standing().tokens_remaining == 700


async def test_no_more_run_at_once_than_may_and_one_that_ends_makes_room() -> None:
    turns = Turns(Limits(), clock_ns=Clock())
    who = caller(Limit("key:k", "key", max_parallel=2))
    first, _ = await take(turns, who), await take(turns, who)
    assert first.standing() is None
    error = await refused(turns, who)
    assert error.message == 'The key "ci" is limited to 2 requests at once, and they run. Try again when one has ended.'
    assert (error.headers["retry-after"], error.details["limit"]) == ("1", "concurrency")
    first.end(finished())
    await take(turns, who)
    await refused(turns, who)


async def test_whoever_is_refused_by_one_limit_has_taken_nothing_of_the_others() -> None:
    turns = Turns(Limits(), clock_ns=Clock())
    wide, narrow = Limit("team:t", "team", rpm=10, tpm=1000, max_parallel=5), Limit("key:k", "key", rpm=1)
    await take(turns, caller(wide, narrow), 100)
    for _ in range(20):
        error = await refused(turns, caller(wide, narrow), 100)
    assert error.details == {"scope": "key", "limit": "rpm"}
    standing = (await take(turns, caller(wide), 100)).standing()
    assert (standing.remaining, standing.tokens_remaining) == (8, 800)


async def test_a_refusal_says_whose_limit_it_is() -> None:
    turns = Turns(Limits((SharedLimit(scope="model", model="fast", rpm=1),)), clock_ns=Clock())
    said = []
    for limit in (
        Limit("team:t", "team", rpm=0),
        Limit("user:u", "user", tpm=0),
        Limit("global", "global", rpm=0),
        Limit("key:k/slow", "key", rpm=0, model="slow"),
    ):
        said.append((await refused(turns, caller(limit), 1, limit.model or "other")).message.partition(" may ")[0])
    assert said == [
        *('The team of the key "ci"', 'The user of the key "ci"', "This gateway"),
        'The key "ci", for "slow",',
    ]
    await take(turns, caller())
    assert (await refused(turns, caller())).message.startswith('The model "fast" is limited to 1 requests a minute.')


async def test_a_limit_for_a_model_leaves_the_others_alone() -> None:
    turns = Turns(Limits(), clock_ns=Clock())
    who = caller(Limit("key:k/smart", "key", rpm=1, model="smart"))
    await take(turns, who, model="smart")
    await refused(turns, who, model="smart")
    assert (await take(turns, who, model="fast")).standing() is None


async def test_keys_that_rest_are_forgotten_and_nobody_notices() -> None:
    clock = Clock()
    turns = Turns(Limits(), clock_ns=clock, max_allowances=4)
    for number in range(1000):
        (await take(turns, caller(Limit(str(number), "key", rpm=60)))).end(finished())
        clock.now_ns += 60 * SECOND_NS
    assert len(turns) <= 4
    assert turns.evicted_total == 0


async def test_a_full_map_of_busy_keys_drops_one_of_them_and_counts_it() -> None:
    turns = Turns(Limits(), clock_ns=Clock(), max_allowances=4)
    for number in range(10):
        (await take(turns, caller(Limit(str(number), "key", rpm=1)))).end(finished())
    assert len(turns) == 4
    assert turns.evicted_total == 6
    await refused(turns, caller(Limit("9", "key", rpm=1)))


async def test_a_team_of_the_file_is_known_as_soon_as_it_exists(db: Database) -> None:
    limits = Limits((SharedLimit(scope="team", name="research", rpm=7), SharedLimit(scope="user", name="a@b.c", rpm=8)))
    assert await find_subjects(db, limits.named) == {}
    await db.execute("INSERT INTO strata.teams (name) VALUES ('research')")
    found = await find_subjects(db, limits.named)
    assert list(found) == [("team", "research")]
    limits.learn(found)
    assert of(limits, team=found["team", "research"]) == [(f"team:{found['team', 'research']}", 7)]


async def test_a_key_is_stored_with_its_limits(db: Database) -> None:
    row = await insert_key(
        db, name="ci", digest=bytes(32), pepper_id="p", display="d", models=["*"], rpm=1, tpm=2, max_parallel=3,
        expires_at=None, budget_limit_nano_usd=None, budget_window_seconds=None,
    )  # fmt: skip
    assert (row.rpm, row.tpm, row.max_parallel) == (1, 2, 3)


def test_a_gateway_without_redis_does_not_import_its_client() -> None:
    asked = "import sys, proxy.app; print('redis' in sys.modules, 'hiredis' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False False\n"


def test_what_a_request_may_use_is_its_text_and_the_longest_answer_it_allows() -> None:
    message = {"role": "user", "content": "x"}
    assert wanted_tokens({"model": "m", "messages": [message], "max_tokens": 100}, 400) == 200
    assert wanted_tokens({"model": "m", "messages": [message], "max_completion_tokens": 50, "n": 3}, 400) == 250
    assert wanted_tokens({"model": "m", "messages": [message]}, 400) == 100 + 1024


def test_a_picture_counts_as_one_and_not_by_its_bytes() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 400_000}}
    chat = {"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, picture]}]}
    assert wanted_tokens({**chat, "max_tokens": 10}, 400_200) < 1_100


def test_the_six_headers_are_there_where_there_is_a_limit() -> None:
    assert limit_headers(Standing()) == {}
    assert list(limit_headers(Standing(60, 59, 1.0, 1000, 900, 6.0)).values()) == [
        "60",
        "59",
        "1s",
        "1000",
        "900",
        "6s",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (-1, "0s"),
        (0.012, "12ms"),
        (0.9996, "1s"),
        (1.5, "1.5s"),
        (59.999, "59.999s"),
        (60, "1m0s"),
        (360, "6m0s"),
        (90.951, "1m30.951s"),
        (3600, "1h0m0s"),
        (3661.5, "1h1m1.5s"),
    ],
)
def test_resets_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert format_reset(seconds) == text
