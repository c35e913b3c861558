"""A provider's usage object, whatever it holds, becomes disjoint buckets that are never negative."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.exchange import Usage
from proxy.metering.usage import MAX_TOKENS, from_openai, read_service_tier, read_untouched
from proxy.providers.usage import openai_usage


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        pytest.param(
            {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}, Usage(input=10, output=5), id="plain"
        ),
        pytest.param(
            {
                "prompt_tokens": 100,
                "completion_tokens": 50,
                "total_tokens": 150,
                "prompt_tokens_details": {
                    "cached_tokens": 30,
                    "cache_write_tokens": 20,
                    "cache_write_1h_tokens": 5,
                    "audio_tokens": 10,
                },
                "completion_tokens_details": {"reasoning_tokens": 15, "audio_tokens": 5},
            },
            Usage(40, 30, 15, 5, 10, 30, 15, 5),
            id="every bucket",
        ),
        pytest.param(
            {
                "input_tokens": 9,
                "output_tokens": 4,
                "input_tokens_details": {"cached_tokens": 2},
                "output_tokens_details": {"reasoning_tokens": 1},
            },
            Usage(input=7, cache_read=2, output=3, reasoning=1),
            id="the names of the Responses API",
        ),
        pytest.param(
            {"prompt_tokens": 10, "completion_tokens": 1, "prompt_cache_hit_tokens": 4, "total_tokens": 11},
            Usage(input=6, cache_read=4, output=1),
            id="DeepSeek's cache hits",
        ),
        pytest.param(
            {
                "prompt_tokens": 12,
                "completion_tokens": 3,
                "total_tokens": 215,
                "completion_tokens_details": {"reasoning_tokens": 200},
            },
            Usage(input=12, output=3, reasoning=200),
            id="xAI's completion leaves reasoning out, and its total gives it away",
        ),
        pytest.param(
            {"prompt_tokens": 8, "total_tokens": 8, "completion_tokens": None, "prompt_tokens_details": None},
            Usage(input=8),
            id="embeddings have no completion, and nulls are nothing",
        ),
        pytest.param(
            {
                "prompt_tokens": 100,
                "completion_tokens": 0,
                "prompt_tokens_details": {"cached_tokens": 90, "audio_tokens": 50},
            },
            Usage(cache_read=90, audio_input=10),
            id="cached audio is in both details, and billed as cached",
        ),
        pytest.param(
            {
                "prompt_tokens": 300,
                "completion_tokens": 90,
                "total_tokens": 390,
                "prompt_tokens_details": {"cached_tokens": 0, "image_tokens": 120, "audio_tokens": 30},
                "completion_tokens_details": {"image_tokens": 60, "reasoning_tokens": 10},
            },
            Usage(input=150, audio_input=30, image_input=120, output=20, reasoning=10, image_output=60),
            id="images in and out",
        ),
        pytest.param(
            {
                "prompt_tokens": 10,
                "completion_tokens": 1,
                "prompt_tokens_details": {"cached_tokens": 8, "image_tokens": 9},
            },
            Usage(cache_read=8, image_input=2, output=1),
            id="cached images are in both details, and billed as cached",
        ),
        pytest.param(
            {
                "prompt_tokens": 5,
                "completion_tokens": 2,
                "total_tokens": 7,
                "server_tool_use": {"web_search_requests": 3},
            },
            Usage(input=5, output=2, searches=3),
            id="Anthropic's searches",
        ),
        pytest.param(
            {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7, "num_search_queries": 4},
            Usage(input=5, output=2, searches=4),
            id="Perplexity's searches",
        ),
        pytest.param(
            {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7, "searches": 1, "server_tool_use": None},
            Usage(input=5, output=2, searches=1),
            id="searches under their plain name",
        ),
        pytest.param(
            {
                "prompt_tokens": 4 + 1_000 + 200,
                "completion_tokens": 6,
                "total_tokens": 1_210,
                "prompt_tokens_details": {"cached_tokens": 1_000, "cache_write_tokens": 200},
            },
            Usage(input=4, cache_read=1_000, cache_write_5m=200, output=6),
            id="Bedrock's prompt is the sum of fresh, read and written",
        ),
        pytest.param(
            {
                "prompt_tokens": 20,
                "completion_tokens": 7 + 50,
                "total_tokens": 77,
                "completion_tokens_details": {"reasoning_tokens": 50},
            },
            Usage(input=20, output=7, reasoning=50),
            id="Gemini's completion is candidates and thoughts",
        ),
    ],
)
def test_usage_that_is_right_is_read_exactly(said: dict[str, Any], expected: Usage) -> None:
    assert from_openai(said) == (expected, False)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        pytest.param({}, Usage(), id="nothing at all"),
        pytest.param({"total_tokens": 50}, Usage(), id="only a total"),
        pytest.param({"prompt_tokens": -5, "completion_tokens": 2}, Usage(output=2), id="negative"),
        pytest.param({"prompt_tokens": 2.5, "completion_tokens": 2}, Usage(input=3, output=2), id="a fraction"),
        pytest.param({"prompt_tokens": float("nan"), "completion_tokens": 2}, Usage(output=2), id="not a number"),
        pytest.param({"prompt_tokens": True, "completion_tokens": 2}, Usage(output=2), id="a truth"),
        pytest.param({"prompt_tokens": "7", "completion_tokens": 2}, Usage(output=2), id="text"),
        pytest.param({"prompt_tokens": MAX_TOKENS + 1, "completion_tokens": 2}, Usage(output=2), id="too many"),
        pytest.param(
            {"prompt_tokens": 10, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 50}},
            Usage(cache_read=10, output=2),
            id="more cached than there was",
        ),
        pytest.param(
            {"prompt_tokens": 10, "completion_tokens": 5, "completion_tokens_details": {"reasoning_tokens": 20}},
            Usage(input=10, reasoning=5),
            id="more reasoning than there was",
        ),
        pytest.param(
            {"prompt_tokens": 10, "prompt_tokens_details": {"cache_write_tokens": 4, "cache_write_1h_tokens": 6}},
            Usage(input=6, cache_write_1h=4),
            id="more written for an hour than written",
        ),
        pytest.param(
            {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 99},
            Usage(input=10, output=5),
            id="wrong total",
        ),
        pytest.param({"prompt_tokens": 1, "prompt_tokens_details": [1]}, Usage(input=1), id="details that are none"),
        pytest.param(
            {"prompt_tokens": 1, "prompt_tokens_details": {"audio_tokens": 1, "image_tokens": 1}},
            Usage(audio_input=1),
            id="more audio and images than there was",
        ),
        pytest.param(
            {"prompt_tokens": 1, "completion_tokens": 3, "completion_tokens_details": {"image_tokens": 9}},
            Usage(input=1, image_output=3),
            id="more images than there was",
        ),
        pytest.param({"prompt_tokens": 1, "server_tool_use": 7}, Usage(input=1), id="tools that are none"),
        pytest.param({"prompt_tokens": 1, "num_search_queries": -1}, Usage(input=1), id="searches below zero"),
    ],
)
def test_numbers_that_cannot_be_right_are_suspect(said: dict[str, Any], expected: Usage) -> None:
    assert from_openai(said) == (expected, True)


_numbers = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(0, 100), st.floats(), st.text(max_size=3), st.just([])
)
_inside = st.dictionaries(
    st.sampled_from(
        [
            "cached_tokens",
            "cache_write_tokens",
            "cache_write_1h_tokens",
            "audio_tokens",
            "image_tokens",
            "reasoning_tokens",
        ]
    ),
    _numbers,
)


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "prompt_tokens",
                "completion_tokens",
                "total_tokens",
                "input_tokens",
                "prompt_cache_hit_tokens",
                "num_search_queries",
                "searches",
            ]
        ),
        _numbers,
    ),
    _inside,
    _inside,
)
def test_any_object_gives_whole_buckets_that_are_not_negative(
    outer: dict[str, Any], prompt: dict[str, Any], completion: dict[str, Any]
) -> None:
    usage, _ = from_openai({**outer, "prompt_tokens_details": prompt, "completion_tokens_details": completion})
    assert all(type(count) is int and 0 <= count <= 3 * MAX_TOKENS for count in msgspec.structs.astuple(usage))


_small = st.integers(0, 30)
_details = st.none() | st.fixed_dictionaries({}, optional={"cached_tokens": _small, "reasoning_tokens": _small})
_rest = st.fixed_dictionaries(
    {},
    optional={
        "prompt_cache_hit_tokens": st.none() | _small,
        "cached_tokens": st.none() | _small,
        "searches": st.none() | _small,
        "service_tier": st.none() | st.just("flex"),
        "cost": st.none() | _small,
        "new": _numbers,
    },
)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(-1, 1), _details, _details, _rest)
def test_a_usage_that_is_left_as_it_came_is_one_that_nothing_had_to_be_done_about(
    prompt: int, completion: int, off: int, inside: Any, outside: Any, rest: dict[str, Any]
) -> None:
    said = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion + off,
        "prompt_tokens_details": inside,
        "completion_tokens_details": outside,
        **rest,
    }
    encoded = msgspec.json.encode(said)
    untouched, (usage, suspect) = read_untouched(encoded), from_openai(openai_usage(said))
    if untouched is not None:
        assert (untouched, False) == (usage, suspect)
        assert openai_usage(said) is said and not {"cost", "service_tier"} & said.keys()
    elif not rest and off == 0:
        assert suspect


@given(st.lists(st.integers(0, 10**6), min_size=11, max_size=11))
def test_buckets_written_as_openai_usage_come_back_as_they_were(counts: list[int]) -> None:
    usage = Usage(*counts)
    said = {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {
            "cached_tokens": usage.cache_read,
            "cache_write_tokens": usage.cache_write_5m + usage.cache_write_1h,
            "cache_write_1h_tokens": usage.cache_write_1h,
            "audio_tokens": usage.audio_input,
            "image_tokens": usage.image_input,
        },
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning,
            "audio_tokens": usage.audio_output,
            "image_tokens": usage.image_output,
        },
        "server_tool_use": {"web_search_requests": usage.searches},
    }
    assert from_openai(said) == (usage, False)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("priority", "priority"),
        ("flex", "flex"),
        ("batch", "batch"),
        *[(word, "") for word in ("default", "standard", "auto", "on_demand", "")],
        *[(nonsense, "") for nonsense in cast("tuple[object, ...]", (None, 7, ["flex"], {}, "x" * 33, "fl\nex"))],
    ],
)
def test_a_service_tier_is_a_short_word_and_the_standard_one_needs_none(said: object, expected: str) -> None:
    assert read_service_tier(said) == expected
