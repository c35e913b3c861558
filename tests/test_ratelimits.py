"""
What a provider says of its limits reaches the client in OpenAI's names, and its own beside them.
"""

from __future__ import annotations

import pytest

from proxy.config import Deployment, Provider
from proxy.upstream.headroom import FORGET_SECONDS, MAX_DEPLOYMENTS, Headroom
from proxy.upstream.ratelimits import limit_lines, shares_left

NOW = 1_747_146_000.0  # 2025-05-13T14:20:00Z
CLAUDE = {
    b"content-type": b"application/json",
    b"anthropic-ratelimit-requests-limit": b"4000",
    b"anthropic-ratelimit-requests-remaining": b"3999",
    b"anthropic-ratelimit-requests-reset": b"2025-05-13T14:20:02Z",
    b"anthropic-ratelimit-tokens-limit": b"480000",
    b"anthropic-ratelimit-tokens-remaining": b"479000",
    b"anthropic-ratelimit-tokens-reset": b"2025-05-13T14:26:03.5Z",
    b"anthropic-ratelimit-input-tokens-remaining": b"400000",
}


def shown(fields: dict[bytes, bytes], taken: bytes = b"") -> dict[str, str]:
    lines = limit_lines(fields, NOW, taken).decode().split("\r\n")[:-1]
    return dict(line.split(": ", 1) for line in lines)


def test_anthropics_limits_are_told_in_openais_names_and_kept() -> None:
    told = shown(CLAUDE)
    assert {name: value for name, value in told.items() if name.startswith("x-")} == {
        "x-ratelimit-limit-requests": "4000",
        "x-ratelimit-remaining-requests": "3999",
        "x-ratelimit-reset-requests": "2s",
        "x-ratelimit-limit-tokens": "480000",
        "x-ratelimit-remaining-tokens": "479000",
        "x-ratelimit-reset-tokens": "6m3.5s",
    }
    own = {name.decode(): value.decode() for name, value in CLAUDE.items() if b"ratelimit" in name}
    assert {name: value for name, value in told.items() if name.startswith("anthropic-")} == own


def test_openais_go_through() -> None:
    fields = {b"x-ratelimit-limit-requests": b"500", b"x-ratelimit-reset-tokens": b"6ms"}
    assert shown(fields) == {"x-ratelimit-limit-requests": "500", "x-ratelimit-reset-tokens": "6ms"}


def test_mistrals_minute_is_the_same_thing() -> None:
    fields = {b"x-ratelimit-limit-req-minute": b"60", b"x-ratelimit-remaining-tokens-minute": b"9"}
    assert shown(fields) == {"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-tokens": "9"}


def test_the_limits_of_the_callers_own_key_come_first() -> None:
    told = shown(CLAUDE, taken=b"x-ratelimit-limit-requests: 60\r\nx-ratelimit-remaining-requests: 59\r\n")
    assert "x-ratelimit-limit-requests" not in told
    assert told["x-ratelimit-limit-tokens"] == "480000"


def test_of_two_spellings_the_first_that_can_be_read_is_told() -> None:
    fields = {b"x-ratelimit-limit-requests": b"60", b"x-ratelimit-limit-req-minute": b"70"}
    assert shown(fields) == {"x-ratelimit-limit-requests": "60"}
    assert shown({**fields, b"x-ratelimit-limit-requests": b"sixty a minute"}) == {"x-ratelimit-limit-requests": "70"}


def test_what_cannot_be_read_hides_nothing_else() -> None:
    fields = {b"x-ratelimit-limit-requests": b"60 \t", b"x-ratelimit-limit-tokens": b"a b"}
    assert shown(fields) == {"x-ratelimit-limit-requests": "60"}


@pytest.mark.parametrize(
    "fields",
    [
        {b"x-ratelimit-limit-requests": b""},
        {b"x-ratelimit-limit-requests": b"4 000"},
        {b"x-ratelimit-limit-requests": b"1" * 41},
        {b"x-ratelimit-limit-organization": b"acme"},
        {b"x-ratelimit-reset-requests": b"2025-05-99T14:20:02Z"},
        {b"x-ratelimit-remaining-requests": b"\xe9"},
    ],
)
def test_what_cannot_be_read_is_not_shown(fields: dict[bytes, bytes]) -> None:
    assert shown(fields) == {}


def test_a_moment_that_has_passed_is_now() -> None:
    assert shown({b"x-ratelimit-reset-requests": b"2025-05-13T14:19:00Z"}) == {"x-ratelimit-reset-requests": "0s"}


def test_what_is_left_of_each_limit_is_a_share_whatever_the_provider_calls_it() -> None:
    assert shares_left(CLAUDE) == {"requests": 3999 / 4000, "tokens": 479000 / 480000}
    openai = {b"X-RateLimit-Limit-Tokens": b"200", b"x-ratelimit-remaining-tokens": b"50"}
    assert shares_left(openai) == {"tokens": 0.25}
    mistral = {b"x-ratelimit-limit-req-minute": b"60", b"x-ratelimit-remaining-req-minute": b"90"}
    assert shares_left(mistral) == {"requests": 1.0}
    nonsense = {b"x-ratelimit-limit-tokens": b"0", b"x-ratelimit-remaining-tokens": b"5"}
    assert shares_left(nonsense | {b"x-ratelimit-limit-requests": b"9e9"}) == {}


def test_what_a_provider_said_long_ago_is_forgotten() -> None:
    now = [0]
    headroom = Headroom(lambda: now[0])
    quick, slow = (Deployment(provider=Provider(name="acme", api_base=""), model=name) for name in ("quick", "slow"))
    head = {b"x-ratelimit-limit-tokens": b"200", b"x-ratelimit-remaining-tokens": b"50"}
    headroom.note(slow, head, 0)
    headroom.note(quick, head, int(FORGET_SECONDS * 1e9))
    now[0] = int(FORGET_SECONDS * 1e9) + 1
    assert list(headroom.left()) == [("acme/quick", "acme", "tokens", 0.25)]


def test_names_that_clients_make_up_do_not_fill_the_memory() -> None:
    headroom = Headroom(lambda: 0)
    head = {b"x-ratelimit-limit-tokens": b"200", b"x-ratelimit-remaining-tokens": b"50"}
    for number in range(3 * MAX_DEPLOYMENTS):
        headroom.note(Deployment(provider=Provider(name="acme", api_base=""), model=f"m{number}"), head, 0)
    assert len(list(headroom.left())) <= MAX_DEPLOYMENTS
