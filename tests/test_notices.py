"""What is lost in translation is said: in a header, in the body if asked, or the request is refused if it is strict."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.gateway import Gateway, OracleProcess
from tests.oracle import marker

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
LOST: dict[str, Any] = {"frequency_penalty": 0.5, "max_tokens": 100}
STRICT_MODEL = "  strict: {deployments: [claude/claude], strict: true}\n"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    oracle = OracleProcess(tmp_path_factory.mktemp("oracle"))
    running = Gateway(tmp_path_factory.mktemp("notices") / "home", oracle=oracle.url)
    running.config.write_text(running.config.read_text().replace("models:\n", f"models:\n{STRICT_MODEL}", 1))
    yield running.start()
    running.stop()
    oracle.stop()


@pytest.fixture
def client(gateway: Gateway) -> OpenAI:
    return OpenAI(base_url=gateway.base_url, api_key=gateway.key, max_retries=0)


def test_a_loss_is_in_a_header_and_not_in_the_body(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="claude", messages=HELLO, **LOST)
    assert raw.headers["x-strata-warning"] == "frequency_penalty: Anthropic has no frequency_penalty; it was left out."
    assert "strata" not in json.loads(raw.content)


@pytest.mark.parametrize(
    "asked", [{"extra_body": {"strata": {"notices": True}}}, {"extra_headers": {"x-strata-notices": "true"}}]
)
def test_a_client_that_asks_finds_it_in_the_body(client: OpenAI, asked: dict[str, Any]) -> None:
    raw = client.chat.completions.with_raw_response.create(model="claude", messages=HELLO, **LOST, **asked)
    (notice,) = json.loads(raw.content)["strata"]["notices"]
    assert (notice["param"], notice["lost"]) == ("frequency_penalty", True)
    chunks = list(client.chat.completions.create(model="claude", messages=HELLO, stream=True, **LOST, **asked))
    told = [chunk.model_extra["strata"] for chunk in chunks if "strata" in (chunk.model_extra or {})]
    assert [one["notices"][0]["param"] for one in told] == ["frequency_penalty"]
    assert "strata" in (chunks[-1].model_extra or {})
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("model", "asked"),
    [
        ("claude", {"extra_body": {"strata": {"strict": True}}}),
        ("claude", {"extra_headers": {"x-strata-strict": "true"}}),
        ("strict", {}),
    ],
)
def test_a_strict_request_is_refused_before_it_is_sent(
    client: OpenAI, gateway: Gateway, model: str, asked: dict[str, Any], stream: bool
) -> None:
    before = gateway.gauge("strata_upstream_attempts_total")
    with pytest.raises(openai.BadRequestError) as refused:
        create: Any = client.chat.completions.create
        create(model=model, messages=HELLO, stream=stream, **LOST, **asked)
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "frequency_penalty")
    assert "leave frequency_penalty out" in str(refused.value)
    assert gateway.gauge("strata_upstream_attempts_total") == before


def test_strict_refuses_losses_only_and_the_request_has_the_last_word(client: OpenAI) -> None:
    wants_json: dict[str, Any] = {"response_format": {"type": "json_object"}}
    assert client.chat.completions.create(model="strict", messages=HELLO, **wants_json).choices
    lenient: dict[str, Any] = {"extra_body": {"strata": {"strict": False}}}
    assert client.chat.completions.create(model="strict", messages=HELLO, **LOST, **lenient).choices


@pytest.mark.parametrize("stream", [True, False])
def test_what_a_provider_that_failed_would_have_lost_is_not_told_of_the_one_that_answered(
    client: OpenAI, stream: bool
) -> None:
    overloaded = marker(status=529, models=("claude",))
    asked: list[Any] = [{"role": "user", "content": f"Hello {overloaded}"}]
    create: Any = client.chat.completions.with_raw_response.create
    raw = create(model="either", messages=asked, stream=stream, **LOST)
    assert raw.headers["x-strata-attempts"] == "2"
    assert "x-strata-warning" not in raw.headers


@pytest.mark.parametrize("name", ["a\0b", "a\x1bb", "a\x7fb", "a\nb"])
def test_a_parameter_with_a_name_that_fits_no_header_does_not_break_the_answer(client: OpenAI, name: str) -> None:
    asked: Any = {"max_tokens": 9, "extra_body": {name: 1}}
    raw = client.chat.completions.with_raw_response.create(model="claude", messages=HELLO, **asked)
    assert raw.headers["x-strata-warning"] == "a b: Anthropic has no a b; it was left out."


def test_a_header_that_is_too_short_for_all_that_was_lost_says_so(client: OpenAI) -> None:
    many = {f"parameter_{number}": 1 for number in range(40)}
    asked: Any = {"max_tokens": 9, "extra_body": many}
    raw = client.chat.completions.with_raw_response.create(model="claude", messages=HELLO, **asked)
    told = raw.headers["x-strata-warning"]
    said = told.count("it was left out.")
    assert 10 < said < 40
    assert told.endswith(f"it was left out.; and {40 - said} more, which strata.notices tells")


def test_a_wish_that_is_none_is_refused(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"strata\.strict must be a boolean"):
        client.chat.completions.create(model="claude", messages=HELLO, extra_body={"strata": {"strict": "yes"}})


@pytest.mark.parametrize("stream", [True, False])
def test_a_stock_client_that_drops_signatures_goes_on_thinking_in_a_tool_loop(
    client: OpenAI, gateway: Gateway, stream: bool
) -> None:
    function = {"name": "look", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
    asked: dict[str, Any] = {
        "model": "claude",
        "tools": [{"type": "function", "function": function}],
        "reasoning_effort": "low",
        "max_tokens": 8000,
    }
    first: list[Any] = [{"role": "user", "content": f"look {marker(tools=1, thinking=3)}"}]
    create: Any = client.chat.completions.create
    if stream:
        with client.chat.completions.stream(messages=first, **asked) as events:
            answer: Any = events.get_final_completion()
    else:
        answer = create(messages=first, **asked)
    [call] = answer.choices[0].message.tool_calls
    kept = {"id": call.id, "type": "function", "function": {"name": "look", "arguments": call.function.arguments}}
    history = [
        *first,
        {"role": "assistant", "content": None, "tool_calls": [kept]},
        {"role": "tool", "tool_call_id": call.id, "content": "18 degrees"},
    ]
    then = client.chat.completions.with_raw_response.create(messages=history, **asked)
    assert "x-strata-warning" not in then.headers
    other = OpenAI(base_url=gateway.base_url, api_key=gateway.create_key(f"other-{stream}"), max_retries=0)
    stranger: Any = other.chat.completions.with_raw_response.create(messages=history, **asked)
    assert "without its signed reasoning_details" in stranger.headers["x-strata-warning"]
