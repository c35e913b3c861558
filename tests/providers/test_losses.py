"""
What stands inside a parameter arrives, or the notices tell of it; an answer that is none is nobody else's failure.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from proxy.config.presets import PRESETS
from proxy.errors import CallerError, UpstreamError
from proxy.providers import Json, Target, UpstreamRequest, load
from tests.compatibility import MODELS, OPTIONS, SCHEMA, TOOL

USER = {"role": "user", "content": "Hi"}
FORM = {"type": "json_schema", "json_schema": {"name": "x", "description": "What the bird said.", "schema": SCHEMA}}
SEARCH = {"type": "google_search"}
MARK = {"cache_control": {"type": "ephemeral"}}


def encode(api: str, model: str = "", quirks: Any = None, **chat: Any) -> UpstreamRequest:
    body = {"model": "m", "messages": [USER], "max_tokens": 8000} | chat
    return load(api).encode_request(body, Target(model or MODELS[api], quirks or {}, options=OPTIONS))


def params(request: UpstreamRequest) -> list[str]:
    return [notice.param for notice in request.notices]


@pytest.mark.parametrize("tools", [[], [TOOL]])
@pytest.mark.parametrize(
    ("api", "model"),
    [*((api, "") for api in MODELS), ("anthropic", "claude-3-5-haiku"), ("bedrock", "meta.llama3-3-70b-instruct-v1:0")],
)
def test_the_model_is_told_what_a_format_says_of_itself(api: str, model: str, tools: list[Json]) -> None:
    request = encode(api, model, response_format=FORM, tools=tools)
    assert b"What the bird said." in msgspec.json.encode(request.body)


def test_the_model_is_told_it_in_words_too() -> None:
    request = encode("openai", "m", PRESETS["deepseek"].quirks, response_format=FORM)
    assert b"What the bird said." in msgspec.json.encode(request.body)


def test_of_two_names_for_who_asks_the_one_that_is_not_sent_is_told() -> None:
    request = encode("anthropic", user="ada", safety_identifier="hash-7")
    assert request.body["metadata"] == {"user_id": "ada"}
    assert params(request) == ["safety_identifier"]
    assert params(encode("anthropic", user="ada", safety_identifier="ada")) == []
    assert params(encode("anthropic", safety_identifier="hash-7")) == []


@pytest.mark.parametrize("api", ["cohere", "mistral"])
def test_a_cache_mark_that_means_nothing_there_is_told(api: str) -> None:
    marked = {"role": "user", "content": [{"type": "text", "text": "Hi", **MARK}]}
    assert params(encode(api, messages=[marked])) == ["cache_control"]
    assert params(encode(api, tools=[{**TOOL, **MARK}])) == ["cache_control"]


def test_cohere_knows_what_an_effort_is_and_says_when_it_does_not_count() -> None:
    with pytest.raises(CallerError) as refused:
        encode("cohere", reasoning_effort="enormous")
    assert refused.value.param == "reasoning_effort"
    request = encode("cohere", reasoning_effort="low", thinking={"type": "disabled"})
    assert (request.body["thinking"], params(request)) == ({"type": "disabled"}, ["reasoning_effort"])


def test_googles_own_tools_do_not_run_where_the_choice_leaves_them_out() -> None:
    request = encode("gemini", tools=[SEARCH], tool_choice="none")
    assert ("tools" in request.body, params(request)) == (False, ["tool_choice"])
    request = encode("gemini", tools=[SEARCH, TOOL], tool_choice="none")
    assert [list(tool) for tool in request.body["tools"]] == [["functionDeclarations"]]
    named: Json = {"type": "function", "function": {"name": "look"}}
    for listed, kept in (([named], 1), ([named, SEARCH], 2)):
        allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": listed}}
        assert len(encode("gemini", tools=[SEARCH, TOOL], tool_choice=allowed).body["tools"]) == kept


ANSWERED = [USER, {"role": "assistant", "content": "Hello."}]


@pytest.mark.parametrize("blank", ["", None, [], [{"type": "text", "text": ""}]])
@pytest.mark.parametrize("api", ["anthropic", "gemini", "vertex", "bedrock"])
def test_a_last_word_that_says_nothing_is_refused_and_no_answer_is_gone_on_with(api: str, blank: Any) -> None:
    with pytest.raises(CallerError) as refused:
        encode(api, messages=[*ANSWERED, {"role": "user", "content": blank}])
    assert refused.value.param == "messages[2].content"
    assert encode(api, messages=[USER, {"role": "user", "content": blank}]).notices == ()
    assert encode(api, messages=ANSWERED).notices == ()


@pytest.mark.parametrize("api", ["anthropic", "bedrock"])
def test_white_space_that_an_api_takes_no_part_of_is_told(api: str) -> None:
    texts = [{"type": "text", "text": text} for text in ("one", "\n\n", "", "two")]
    request = encode(api, messages=[{"role": "user", "content": texts}])
    assert params(request) == ["messages[0].content[1]"]
    assert not any(notice.lost for notice in request.notices)


def test_an_image_of_an_earlier_answer_goes_back_or_is_told_of() -> None:
    drawn: Json = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    talk = [USER, {"role": "assistant", "content": "Here.", "images": [drawn]}, {"role": "user", "content": "Redder."}]
    request = encode("gemini", "gemini-2.5-flash-image", messages=talk)
    image = {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}
    assert (request.body["contents"][1]["parts"], request.notices) == ([{"text": "Here."}, image], ())
    assert params(encode("gemini", "gemini-3-pro-image", messages=talk)) == ["messages[].images"]
    nonsense = [USER, {"role": "assistant", "content": "Here.", "images": [5, {"image_url": {"url": 5}}]}, USER]
    assert len(encode("gemini", messages=nonsense).body["contents"][1]["parts"]) == 1


@pytest.mark.parametrize(
    ("api", "body"),
    [
        ("mistral", {"choices": [{"message": {"content": ["x"]}}]}),
        ("mistral", {"choices": [{"message": {"content": [{"type": "text", "text": 5}]}}]}),
        ("mistral", {"choices": [{"message": {"content": [{"type": "thinking", "thinking": 5}]}}]}),
        ("gemini", {"candidates": [{"content": {"parts": [{"thought": True, "text": t} for t in (5, "x")]}}]}),
        ("gemini", {"candidates": [{"content": {"parts": [{"thought": True, "text": t} for t in (["x"], "x")]}}]}),
    ],
)
def test_an_answer_with_parts_of_the_wrong_type_is_the_providers_failure(api: str, body: Json) -> None:
    with pytest.raises(UpstreamError) as failed:
        load(api).decode_response(msgspec.json.encode(body))
    assert failed.value.code == "bad_response"
