"""
What OpenAI parameters become at Anthropic: tables, and the promise that nothing is lost in silence.
"""

from __future__ import annotations

from typing import Any

import pytest

from proxy.dialects.chat_shape import ChatShape
from proxy.errors import CallerError
from proxy.providers import Json, Target, UpstreamRequest, load
from proxy.providers.anthropic.reasoning import version_of
from proxy.providers.anthropic.requests import MEANT

HAIKU, OPUS_46, OPUS_47 = "claude-haiku-4-5-20251001", "claude-opus-4-6", "claude-opus-4-7"
USER = {"role": "user", "content": "Hi"}
TOOL = {"type": "function", "function": {"name": "look"}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
ASKED = {"role": "assistant", "content": None, "tool_calls": [CALL]}


def encode(
    model: str = HAIKU, *, messages: list[Json] | None = None, limit: int | None = None, **chat: Any
) -> UpstreamRequest:
    body = {"model": "m", "messages": messages or [USER], "max_tokens": 8000} | chat
    return load("anthropic").encode_request(body, Target(model=model, max_output_tokens=limit))


def params(request: UpstreamRequest) -> list[str]:
    return [notice.param for notice in request.notices]


@pytest.mark.parametrize(
    ("model", "version"),
    [
        ("claude-3-opus-20240229", (3, 0)),
        ("claude-3-5-haiku-latest", (3, 5)),
        ("claude-3-7-sonnet-20250219", (3, 7)),
        ("claude-sonnet-4-20250514", (4, 0)),
        ("claude-opus-4-1", (4, 1)),
        ("claude-haiku-4-5-20251001", (4, 5)),
        ("claude-opus-4-5@20251101", (4, 5)),
        ("anthropic.claude-sonnet-4-6-v1:0", (4, 6)),
        ("claude-sonnet-4.6", (4, 6)),
        ("claude-opus-5", (5, 0)),
        ("claude-2.1", (2, 1)),
        ("kimi-k2", None),
        ("our-claude", None),
    ],
)
def test_the_version_is_read_from_the_name(model: str, version: tuple[int, int] | None) -> None:
    assert version_of(model) == version


@pytest.mark.parametrize(
    ("chat", "param"),
    [
        ({"n": 2}, "n"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"stop": " \n"}, "stop"),
        ({"stop": ["END", ""]}, "stop[1]"),
        ({"reasoning_effort": "enormous"}, "reasoning_effort"),
        ({"reasoning_effort": ""}, "reasoning_effort"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "often"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools.tools"),
        ({"tools": [{"type": "custom", "custom": {"name": "c"}}]}, "tools[0].type"),
        ({"response_format": {"type": "grammar"}}, "response_format.type"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
        ({"messages": [{"role": "system", "content": "Be brief."}]}, "messages"),
        ({"messages": [USER, {"role": "function", "name": "f", "content": "1"}]}, "messages[1].role"),
        ({"messages": [USER, ASKED, {"role": "tool", "content": "1"}]}, "messages[2].tool_call_id"),
        (
            {"messages": [USER, {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}]},
            "messages[1].function_call",
        ),
    ],
)
def test_what_cannot_be_said_is_refused_with_its_path(chat: Json, param: str) -> None:
    with pytest.raises(CallerError) as refused:
        encode(**chat)
    assert refused.value.status == 400
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}, ""),
        ({"type": "video_url"}, ""),
        ({"type": "image_url", "image_url": {"url": "ftp://example.com/a.png"}}, ".image_url.url"),
        ({"type": "image_url", "image_url": {"url": "data:image/tiff;base64,AAAA"}}, ".image_url.url"),
        ({"type": "image_url", "image_url": {"url": "data:image/png,raw"}}, ".image_url.url"),
        ({"type": "file", "file": {"file_id": "file-1"}}, ".file"),
        ({"type": "file", "file": {"file_data": "data:application/zip;base64,AAAA"}}, ".file.file_data"),
        ({"type": "file", "file": {"file_data": "data:text/plain;base64,/w=="}}, ".file.file_data"),
    ],
)
def test_parts_that_anthropic_does_not_take_are_refused(part: Json, param: str) -> None:
    with pytest.raises(CallerError) as refused:
        encode(messages=[{"role": "user", "content": [{"type": "text", "text": "See:"}, part]}])
    assert refused.value.param == f"messages[0].content[1]{param}"


@pytest.mark.parametrize("arguments", ["{", "[1]", "7", '"x"', "nope"])
def test_arguments_that_are_no_object_are_refused(arguments: str) -> None:
    call = {**CALL, "function": {"name": "look", "arguments": arguments}}
    with pytest.raises(CallerError) as refused:
        encode(messages=[USER, {"role": "assistant", "tool_calls": [CALL, call]}])
    assert refused.value.param == "messages[1].tool_calls[1].function.arguments"


def test_every_parameter_of_openai_is_meant_or_gets_a_notice() -> None:
    """A name that the dialect knows and this translator does not must be told to the caller."""
    value: dict[str, Any] = {"logit_bias": {"1": 1}, "logprobs": True, "metadata": {"a": "b"}, "store": True}
    for name in set(ChatShape.__struct_fields__) - MEANT:
        chat: dict[str, Any] = {name: value.get(name, "x")}
        assert name in params(encode(**chat)), name


@pytest.mark.parametrize("chat", [{"logprobs": False}, {"store": False}, {"seed": None}, {"presence_penalty": 0.0}])
def test_parameters_that_change_nothing_need_no_notice(chat: Json) -> None:
    assert encode(**chat).notices == ()


@pytest.mark.parametrize(
    ("chat", "limit", "expected", "noticed"),
    [
        ({"max_tokens": 5, "max_completion_tokens": 9}, 64_000, 9, False),
        ({"max_tokens": 5}, 64_000, 5, False),
        ({"max_tokens": None}, 64_000, 64_000, False),
        ({"max_tokens": None}, None, 32_000, True),
    ],
)
def test_the_limit_is_never_a_silent_small_number(chat: Json, limit: int | None, expected: int, noticed: bool) -> None:
    request = encode(limit=limit, **chat)
    assert request.body["max_tokens"] == expected
    assert (params(request) == ["max_tokens"]) is noticed


@pytest.mark.parametrize(
    ("model", "effort", "limit", "thinking", "level"),
    [
        (HAIKU, "none", 8000, None, None),
        (HAIKU, "minimal", 8000, {"type": "enabled", "budget_tokens": 1024}, None),
        (HAIKU, "medium", 8000, {"type": "enabled", "budget_tokens": 2048}, None),
        (HAIKU, "high", 6000, {"type": "enabled", "budget_tokens": 3000}, None),
        (HAIKU, "max", 64_000, {"type": "enabled", "budget_tokens": 16_384}, None),
        (HAIKU, "low", 1025, {"type": "enabled", "budget_tokens": 1024}, None),
        (HAIKU, "low", 1024, None, None),
        ("claude-3-5-haiku-latest", "high", 8000, None, None),
        ("kimi-k2", "low", 8000, {"type": "enabled", "budget_tokens": 1024}, None),
        (OPUS_46, "minimal", 8000, {"type": "adaptive"}, "low"),
        (OPUS_46, "max", 8000, {"type": "adaptive"}, "max"),
        (OPUS_46, "xhigh", 8000, {"type": "adaptive"}, "high"),
        (OPUS_46, "none", 8000, {"type": "disabled"}, None),
        (OPUS_47, "xhigh", 8000, {"type": "adaptive", "display": "summarized"}, "xhigh"),
    ],
)
def test_effort_becomes_a_budget_or_an_effort(
    model: str, effort: str, limit: int, thinking: Json | None, level: str | None
) -> None:
    body = encode(model, reasoning_effort=effort, max_tokens=limit).body
    assert body.get("thinking") == thinking
    assert body.get("output_config", {}).get("effort") == level
    if thinking and "budget_tokens" in thinking:
        assert 1024 <= thinking["budget_tokens"] < body["max_tokens"]


@pytest.mark.parametrize("model", [HAIKU, OPUS_46])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "look"}}])
def test_a_forced_tool_comes_before_thinking(model: str, choice: object) -> None:
    request = encode(model, reasoning_effort="high", tools=[TOOL], tool_choice=choice)
    assert "thinking" not in request.body and "output_config" not in request.body
    assert "reasoning_effort" in params(request)


def test_raw_thinking_passes_and_is_not_changed() -> None:
    raw = {"type": "enabled", "budget_tokens": 1500}
    request = encode(thinking=raw, reasoning_effort="low", temperature=1, top_k=5, top_p=0.5)
    assert request.body["thinking"] == {"type": "enabled", "budget_tokens": 1500}
    assert request.body["temperature"] == 1
    assert params(request) == ["top_p", "reasoning_effort", "top_k"]


def test_newest_models_take_no_sampling() -> None:
    request = encode(OPUS_47, temperature=0.5, top_p=0.5, top_k=4)
    assert not {"temperature", "top_p", "top_k"} & request.body.keys()
    assert params(request) == ["temperature", "top_p", "top_k"]


def test_older_models_are_told_a_schema_that_is_no_objects() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array", "items": {}}}}
    request = encode("claude-3-5-haiku-latest", response_format=form)
    assert '"type":"array"' in request.body["system"]
    assert "tools" not in request.body
    assert params(request) == ["response_format"]


@pytest.mark.parametrize(
    ("choice", "offered", "sent"),
    [
        (None, ["look", "strata_answer"], {"type": "any"}),
        ("auto", ["look", "strata_answer"], {"type": "any"}),
        ("none", ["look", "strata_answer"], {"type": "tool", "name": "strata_answer"}),
        ("required", ["look"], {"type": "any"}),
        ({"type": "function", "function": {"name": "look"}}, ["look"], {"type": "tool", "name": "look"}),
    ],
)
def test_older_models_answer_by_a_schema_or_call_a_tool(choice: Any, offered: list[str], sent: Json) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"properties": {}}}}
    body = encode("claude-3-5-haiku-latest", response_format=form, tools=[TOOL], tool_choice=choice).body
    assert [tool["name"] for tool in body["tools"]] == offered
    assert {name: body["tool_choice"][name] for name in sent} == sent


def test_an_answer_by_tool_and_thinking_do_not_go_together() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"properties": {}}}}
    request = encode("claude-3-7-sonnet-latest", response_format=form, reasoning_effort="low", max_tokens=4000)
    assert "thinking" not in request.body
    assert params(request) == ["response_format", "reasoning_effort"]


@pytest.mark.parametrize("kind", ["web_search_20250305", "code_execution_20250825", "mcp_toolset"])
def test_tools_that_anthropic_runs_go_through_as_they_are(kind: str) -> None:
    tool = {"type": kind, "name": "it", "max_uses": 3}
    assert encode(tools=[tool]).body["tools"] == [tool]


@pytest.mark.parametrize("kind", ["custom", "web_search", "advisor_20250301"])
def test_a_tool_that_nobody_here_can_run_or_price_is_refused(kind: str) -> None:
    with pytest.raises(CallerError) as caught:
        encode(tools=[{"type": kind, "name": "it"}])
    assert caught.value.param == "tools[0].type"


@pytest.mark.parametrize("name", ["speed", "inference_geo", "fallbacks"])
def test_what_would_change_the_price_unseen_stays_out(name: str) -> None:
    asked: Json = {name: "fast"}
    request = encode(**asked)
    assert name not in request.body
    assert params(request) == [name]


@pytest.mark.parametrize("betas", ["a", [1], ["a\r\nx-api-key: b"]])
def test_betas_are_names(betas: Any) -> None:
    with pytest.raises(CallerError) as caught:
        encode(betas=betas)
    assert caught.value.param == "betas"


def test_metadata_knows_a_user_only() -> None:
    request = encode(metadata={"user_id": "u-1", "team": "search"})
    assert request.body["metadata"] == {"user_id": "u-1"}
    assert params(request) == ["metadata"]


def test_pieces_of_thoughts_belong_to_whoever_signed_the_first() -> None:
    """A stream says the format once; what another API signed is not Claude's, however it is cut."""

    def turn(format: str) -> list[str]:
        details = [
            {"type": "reasoning.text", "text": "Hm", "format": format, "index": 0},
            {"type": "reasoning.text", "signature": "c2ln", "index": 0},
        ]
        answered: Json = {"role": "assistant", "content": "Ho", "reasoning_details": details}
        body = encode(messages=[USER, answered, USER]).body
        return [block["type"] for block in body["messages"][1]["content"]]

    assert turn("anthropic-claude-v1") == ["thinking", "text"]
    assert turn("google-gemini-v1") == ["text"]


def test_a_format_and_an_effort_share_output_config() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "properties": {}}}}
    body = encode(OPUS_46, response_format=form, reasoning_effort="low").body
    assert body["output_config"]["effort"] == "low"
    assert body["output_config"]["format"]["schema"]["additionalProperties"] is False


def test_allowed_tools_are_the_only_ones_offered() -> None:
    other = {"type": "function", "function": {"name": "other"}}
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "look"}}]}
    body = encode(tools=[TOOL, other], tool_choice={"type": "allowed_tools", "allowed_tools": allowed}).body
    assert [tool["name"] for tool in body["tools"]] == ["look"]
    assert body["tool_choice"] == {"type": "any"}


def test_strict_is_kept_where_models_hold_to_it() -> None:
    strict = {"type": "function", "function": {"name": "look", "strict": True, "parameters": {"properties": {}}}}
    assert encode(tools=[strict]).body["tools"] == [
        {"name": "look", "input_schema": {"type": "object", "properties": {}}, "strict": True}
    ]
    older = encode("claude-sonnet-4-20250514", tools=[strict])
    assert "strict" not in older.body["tools"][0]
    assert params(older) == ["tools[].function.strict"]


def test_results_come_first_in_their_turn_and_keep_their_marks() -> None:
    mark = {"type": "ephemeral"}
    result = {
        "role": "tool",
        "tool_call_id": "call_1",
        "content": [{"type": "text", "text": "1", "cache_control": mark}],
    }
    turn = encode(messages=[USER, ASKED, {"role": "user", "content": "Wait."}, result]).body["messages"][-1]
    assert turn["content"] == [
        {"type": "tool_result", "tool_use_id": "call_1", "content": "1", "cache_control": mark},
        {"type": "text", "text": "Wait."},
    ]


def test_thoughts_of_others_do_not_go_to_claude() -> None:
    details = [{"type": "reasoning.text", "text": "hm", "signature": "s", "format": "google-gemini-v1", "index": 0}]
    request = encode(messages=[USER, {"role": "assistant", "content": "Yes.", "reasoning_details": details}, USER])
    assert request.body["messages"][1]["content"] == [{"type": "text", "text": "Yes."}]
    assert params(request) == ["messages[].reasoning_content"]


@pytest.mark.parametrize(
    "kept",
    [
        {"thinking_blocks": [{"type": "thinking", "thinking": "hm", "signature": "s"}], "content": "Yes."},
        {"content": [{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "Yes."}]},
    ],
)
def test_native_thinking_blocks_are_taken_too(kept: Json) -> None:
    turn = encode(messages=[USER, {"role": "assistant", **kept}, USER]).body["messages"][1]
    assert turn["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "text", "text": "Yes."},
    ]


def test_a_last_assistant_message_is_trimmed() -> None:
    turn = encode(messages=[USER, {"role": "assistant", "content": "Well, \n"}]).body["messages"][-1]
    assert turn["content"] == [{"type": "text", "text": "Well,"}]


def test_a_mark_on_a_message_stands_on_its_last_block() -> None:
    mark = {"type": "ephemeral"}
    messages: list[Json] = [
        USER,
        {**ASKED, "content": "Look:", "cache_control": mark},
        {"role": "tool", "tool_call_id": "call_1", "content": "1"},
    ]
    blocks = encode(messages=messages).body["messages"][1]["content"]
    assert ["cache_control" in block for block in blocks] == [False, True]


def test_numbers_too_big_for_a_float_survive() -> None:
    call = {**CALL, "function": {"name": "look", "arguments": '{"id": 12345678901234567890123}'}}
    body = encode(
        messages=[
            USER,
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "1"},
        ]
    ).body
    assert body["messages"][1]["content"][0]["input"] == {"id": 12345678901234567890123}


def test_quirks_hold_for_anthropic_too() -> None:
    chat = {"messages": [USER], "model": "m", "max_tokens": 5, "top_k": 3}
    request = load("anthropic").encode_request(chat, Target(model="kimi-k2", quirks={"drop": ["top_k"]}))
    assert "top_k" not in request.body
    assert params(request) == ["top_k"]
