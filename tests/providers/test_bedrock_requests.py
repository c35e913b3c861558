"""
What OpenAI parameters become at Bedrock: tables, the promise that nothing is lost in silence, and AWS's own validator.
"""

from __future__ import annotations

import base64
from itertools import pairwise
from typing import Any

import botocore.loaders
import botocore.model
import botocore.validate
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects.chat_shape import ChatShape
from proxy.errors import CallerError
from proxy.providers import Json, Target, UpstreamRequest, load
from proxy.providers.bedrock.models import model_of
from proxy.providers.bedrock.requests import MEANT, escaped
from tests.golden import CASES, Case

HAIKU = "us.anthropic.claude-haiku-4-5-20251001-v1:0"
SONNET_4, SONNET_46, SONNET_5 = (
    "anthropic.claude-sonnet-4-20250514-v1:0",
    "eu.anthropic.claude-sonnet-4-6",
    ("global.anthropic.claude-sonnet-5"),
)
NOVA, NOVA_2, LLAMA = "amazon.nova-pro-v1:0", "us.amazon.nova-2-lite-v1:0", "meta.llama3-3-70b-instruct-v1:0"
USER = {"role": "user", "content": "Hi"}
TOOL = {"type": "function", "function": {"name": "look"}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
ASKED = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "1"}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
FORM = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}

SHAPES = botocore.model.ServiceModel(botocore.loaders.Loader().load_service_model("bedrock-runtime", "service-2"))


def encode(
    model: str = HAIKU, *, messages: list[Json] | None = None, limit: int | None = None, **chat: Any
) -> UpstreamRequest:
    body = {"model": "m", "messages": messages or [USER], "max_tokens": 8000} | chat
    return load("bedrock").encode_request(body, Target(model=model, max_output_tokens=limit))


def params(request: UpstreamRequest) -> list[str]:
    return [notice.param for notice in request.notices]


def more(request: UpstreamRequest) -> Json:
    fields: Json = request.body.get("additionalModelRequestFields", {})
    return fields


def as_python(shape: Any, value: Any) -> Any:
    """A JSON body as botocore wants it before it writes JSON itself: bytes where we have base64."""
    if shape.type_name == "structure" and not getattr(shape, "is_document_type", False) and isinstance(value, dict):
        known = shape.members
        return {name: as_python(known[name], inner) if name in known else inner for name, inner in value.items()}
    if shape.type_name == "list" and isinstance(value, list):
        return [as_python(shape.member, inner) for inner in value]
    return base64.b64decode(value, validate=True) if shape.type_name == "blob" else value


def check_shape(request: Json) -> None:
    """AWS's own validator has nothing against it."""
    operation = "ConverseStream" if request["path"].endswith("/converse-stream") else "Converse"
    shape = SHAPES.operation_model(operation).input_shape
    body = {"modelId": "m", **request["body"]}
    report = botocore.validate.ParamValidator().validate(as_python(shape, body), shape)
    assert not report.has_errors(), report.generate_report()


GIVEN = [case for case in CASES if case.api == "bedrock"]


@pytest.mark.parametrize("case", GIVEN, ids=lambda case: case.folder.name)
def test_aws_own_validator_takes_every_golden_request(case: Case) -> None:
    request = case.upstream_request()
    if "error" in request:
        assert request["status"] == 400
    else:
        check_shape(request)


def test_there_are_golden_requests_to_validate() -> None:
    assert sum("error" not in case.upstream_request() for case in GIVEN) >= 30


words = st.text(alphabet="ab .\u00e4\n", max_size=5)
marks = st.none() | st.just({"type": "ephemeral", "ttl": "1h"})
parts = st.lists(
    st.builds(
        lambda text, mark: {"type": "text", "text": text} | ({"cache_control": mark} if mark else {}), words, marks
    ),
    max_size=3,
)
messages = st.lists(
    st.one_of(
        st.builds(lambda role, content: {"role": role, "content": content}, st.sampled_from(["user", "system"]), parts),
        st.builds(lambda text: {"role": "assistant", "content": text}, words),
        st.just({**ASKED, "reasoning_content": "Hm."}),
        st.builds(lambda text: {**RESULT, "content": text}, words | parts),
    ),
    min_size=1,
    max_size=8,
)


@given(messages, st.sampled_from([HAIKU, SONNET_5, NOVA, LLAMA]), st.sampled_from([None, "none", "required"]))
def test_whatever_is_sent_is_valid_or_refused_with_a_path(talk: list[Json], model: str, choice: str | None) -> None:
    try:
        request = encode(model, messages=talk, tools=[TOOL], tool_choice=choice, response_format=FORM)
    except CallerError as refused:
        assert refused.param
        return
    check_shape({"path": request.path, "body": request.body})
    roles = [turn["role"] for turn in request.body["messages"]]
    assert all(one != other for one, other in pairwise(roles)), "neighbours of one role are one turn"
    blocks = [block for turn in request.body["messages"] for block in turn["content"]]
    assert all(block["text"].strip() for block in [*blocks, *request.body.get("system", [])] if "text" in block)
    assert sum("cachePoint" in block for block in [*blocks, *request.body.get("system", [])]) <= 4
    if any("toolUse" in block for block in blocks):
        assert request.body["toolConfig"]["tools"], "a history of calls needs its tools"


@pytest.mark.parametrize(
    ("name", "id", "version"),
    [
        ("anthropic.claude-3-haiku-20240307-v1:0", "anthropic.claude-3-haiku-20240307-v1:0", (3, 0)),
        (HAIKU, "anthropic.claude-haiku-4-5-20251001-v1:0", (4, 5)),
        (SONNET_4, SONNET_4, (4, 0)),
        ("us-gov.anthropic.claude-opus-5-5", "anthropic.claude-opus-5-5", (5, 5)),
        ("anthropic.claude-v2:1", "anthropic.claude-v2:1", (2, 0)),
        ("anthropic.claude-next", "anthropic.claude-next", None),
        ("arn:aws:bedrock:us-east-1::foundation-model/amazon.nova-pro-v1:0", NOVA, None),
        ("arn:aws:bedrock:us-east-1:123456789012:inference-profile/eu.amazon.nova-pro-v1:0", NOVA, None),
        ("arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/q1w2e3r4t5y6", "", None),
        ("arn:aws:bedrock:us-east-1:123456789012:imported-model/q1w2e3r4t5y6", "", None),
        ("openai.gpt-oss-120b-1:0", "openai.gpt-oss-120b-1:0", None),
        ("does-not-exist", "", None),
    ],
)
def test_the_id_tells_the_model(name: str, id: str, version: tuple[int, int] | None) -> None:
    assert (model_of(name).id, model_of(name).version) == (id, version)


def test_an_arn_is_one_segment_of_the_path() -> None:
    arn = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/q1w2"
    assert encode(arn).path == (
        "/model/arn%3Aaws%3Abedrock%3Aus-east-1%3A123456789012%3Aapplication-inference-profile%2Fq1w2/converse"
    )
    assert encode(arn, stream=True).path.endswith("%2Fq1w2/converse-stream")
    assert escaped("a b/\u00e4") == "a%20b%2F%C3%A4"


@pytest.mark.parametrize("model", ["..", ".", "a b", "a\nb", "a?b", "", "x" * 3000])
def test_what_cannot_be_a_model_goes_into_no_path(model: str) -> None:
    with pytest.raises(CallerError) as refused:
        encode(model)
    assert refused.value.param == "model"


@pytest.mark.parametrize(
    ("chat", "param"),
    [
        ({"n": 2}, "n"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"stop": " \n"}, "stop"),
        ({"stop": ["END", ""]}, "stop[1]"),
        ({"reasoning_effort": "enormous"}, "reasoning_effort"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "often"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools.tools"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"tools": [{"name": "x"}]}}},
            "tool_choice.allowed_tools.tools",
        ),
        ({"tools": [{"type": "custom", "custom": {"name": "c"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a.b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "n" * 65}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "strata_answer"}}]}, "tools[0].function.name"),
        ({"response_format": {"type": "grammar"}}, "response_format.type"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
        ({"messages": [{"role": "system", "content": "Be brief."}]}, "messages"),
        ({"messages": [USER, {"role": "function", "name": "f", "content": "1"}]}, "messages[1].role"),
        ({"messages": [USER, ASKED, {"role": "tool", "content": "1"}]}, "messages[2].tool_call_id"),
        ({"messages": [USER, RESULT]}, "messages[1].tool_call_id"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [{"id": "c", "custom": {}}]}]},
         "messages[1].tool_calls[0].type"),
        (
            {"messages": [USER, {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}}]},
            "messages[1].function_call",
        ),
        ({"guardrailConfig": "abc"}, "guardrailConfig"),
        ({"additionalModelResponseFieldPaths": {}}, "additionalModelResponseFieldPaths"),
        ({"additionalModelRequestFields": {"max_tokens": 9}}, "additionalModelRequestFields"),
        ({"additionalModelRequestFields": {"inferenceConfig": {"maxTokens": 9}}}, "additionalModelRequestFields"),
    ],
)  # fmt: skip
def test_what_cannot_be_said_is_refused_with_its_path(chat: Json, param: str) -> None:
    with pytest.raises(CallerError) as refused:
        encode(**chat)
    assert refused.value.status == 400
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"type": "input_audio", "input_audio": {"data": "AAAA", "format": "midi"}}, ".input_audio"),
        ({"type": "hologram"}, ""),
        ({"type": "video_url", "video_url": {"url": "https://example.com/a.mp4"}}, ".video_url.url"),
        ({"type": "video_url", "video_url": {"url": "data:video/ogg;base64,AAAA"}}, ".video_url.url"),
        ({"type": "image_url", "image_url": {"url": "ftp://example.com/a.png"}}, ".image_url.url"),
        ({"type": "image_url", "image_url": {"url": "data:image/tiff;base64,AAAA"}}, ".image_url.url"),
        ({"type": "image_url", "image_url": {"url": "data:image/png,raw"}}, ".image_url.url"),
        ({"type": "image_url", "image_url": {"url": "s3://payroll/a.png"}}, ".image_url.url"),
        ({"type": "file", "file": {"file_id": "file-1"}}, ".file"),
        ({"type": "file", "file": {"file_data": "https://example.com/a.pdf"}}, ".file.file_data"),
        ({"type": "file", "file": {"file_data": "data:application/zip;base64,AAAA"}}, ".file.file_data"),
    ],
)
def test_parts_that_bedrock_does_not_take_are_refused(part: Json, param: str) -> None:
    with pytest.raises(CallerError) as refused:
        encode(messages=[{"role": "user", "content": [{"type": "text", "text": "See:"}, part]}])
    assert refused.value.param == f"messages[0].content[1]{param}"


@pytest.mark.parametrize(
    ("file", "block"),
    [
        ({"file_data": "JVBERi0="}, {"document": {"format": "pdf", "name": "document"}}),
        ({"file_data": "AAAA", "filename": "a.b.DOCX"}, {"document": {"format": "docx", "name": "a b"}}),
        ({"file_data": "data:application/octet-stream;base64,AAAA", "filename": "t.csv"},
         {"document": {"format": "csv", "name": "t"}}),
        ({"file_data": "data:application/json;base64,e30=", "filename": "\u00e4"},
         {"document": {"format": "txt", "name": "document"}}),
        ({"file_data": "data:text/x-python;base64,AAAA", "filename": "x.py"},
         {"document": {"format": "txt", "name": "x"}}),
        ({"file_data": "data:image/JPG;base64,AAAA"}, {"image": {"format": "jpeg"}}),
        ({"file_data": "AAAA", "filename": "pier.3gp"}, {"video": {"format": "three_gp"}}),
    ],
)  # fmt: skip
def test_a_file_is_what_its_type_or_its_name_says(file: Json, block: Json) -> None:
    content = [{"type": "text", "text": "See:"}, {"type": "file", "file": file}]
    found = encode(messages=[{"role": "user", "content": content}]).body["messages"][0]["content"][1]
    ((kind, said),) = found.items()
    assert {kind: {name: value for name, value in said.items() if name != "source"}} == block


@pytest.mark.parametrize("arguments", ["{", "[1]", "7", '"x"', "nope"])
def test_arguments_that_are_no_object_are_refused(arguments: str) -> None:
    call = {**CALL, "function": {"name": "look", "arguments": arguments}}
    with pytest.raises(CallerError) as refused:
        encode(messages=[USER, {"role": "assistant", "tool_calls": [CALL, call]}])
    assert refused.value.param == "messages[1].tool_calls[1].function.arguments"


def test_every_parameter_of_openai_is_meant_or_gets_a_notice() -> None:
    """A name that the dialect knows and this translator does not must be told to the caller."""
    value: dict[str, Any] = {"logit_bias": {"1": 1}, "logprobs": True, "store": True}
    for name in set(ChatShape.__struct_fields__) - MEANT:
        chat: dict[str, Any] = {name: value.get(name, "x")}
        assert name in params(encode(**chat)), name


@pytest.mark.parametrize(
    "chat", [{"logprobs": False}, {"store": False}, {"seed": None}, {"presence_penalty": 0.0}, {"service_tier": "auto"}]
)
def test_parameters_that_change_nothing_need_no_notice(chat: Json) -> None:
    assert encode(**chat).notices == ()


@pytest.mark.parametrize(
    ("model", "effort", "limit", "fields"),
    [
        (HAIKU, "none", 8000, {}),
        (HAIKU, "minimal", 8000, {"thinking": {"type": "enabled", "budget_tokens": 1024}}),
        (HAIKU, "high", 6000, {"thinking": {"type": "enabled", "budget_tokens": 3000}}),
        (HAIKU, "max", 64_000, {"thinking": {"type": "enabled", "budget_tokens": 16_384}}),
        (HAIKU, "low", 1024, {}),
        ("anthropic.claude-3-5-haiku-20241022-v1:0", "high", 8000, {}),
        ("anthropic.claude-next", "low", 8000, {"thinking": {"type": "enabled", "budget_tokens": 1024}}),
        (SONNET_46, "minimal", 8000, {"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}}),
        (SONNET_46, "xhigh", 8000, {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}}),
        (SONNET_46, "none", 8000, {"thinking": {"type": "disabled"}}),
        (SONNET_5, "xhigh", 8000,
         {"thinking": {"type": "adaptive", "display": "summarized"}, "output_config": {"effort": "xhigh"}}),
        ("anthropic.claude-opus-5-5", "none", 8000, {}),
        (NOVA, "high", 8000, {}),
        (NOVA_2, "none", 8000, {}),
        (NOVA_2, "low", 8000, {"reasoningConfig": {"type": "enabled", "maxReasoningEffort": "low"}}),
        (NOVA_2, "high", 8000, {"reasoningConfig": {"type": "enabled", "maxReasoningEffort": "medium"}}),
        (NOVA_2, "high", None, {"reasoningConfig": {"type": "enabled", "maxReasoningEffort": "high"}}),
        ("openai.gpt-oss-20b-1:0", "none", 8000, {"reasoning_effort": "low"}),
        ("openai.gpt-oss-20b-1:0", "max", 8000, {"reasoning_effort": "high"}),
        ("us.deepseek.r1-v1:0", "low", 8000, {}),
    ],
)  # fmt: skip
def test_effort_is_asked_in_each_familys_own_words(model: str, effort: str, limit: int | None, fields: Json) -> None:
    request = encode(model, reasoning_effort=effort, max_tokens=limit)
    assert more(request) == fields
    if not fields and (effort, model) not in ((("none", HAIKU)), ("none", NOVA_2)):
        assert params(request) == ["reasoning_effort"], "what has no effect is told"


def test_a_thinking_budget_brings_its_limit() -> None:
    for limit, expected in ((64_000, 64_000), (None, 32_000)):
        request = encode(HAIKU, reasoning_effort="low", max_tokens=None, limit=limit)
        assert request.body["inferenceConfig"]["maxTokens"] == expected


@pytest.mark.parametrize(("model", "thinks"), [(HAIKU, False), (SONNET_46, False), (SONNET_5, True)])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "look"}}])
def test_a_forced_tool_comes_before_thinking_where_both_cannot_be(model: str, thinks: bool, choice: object) -> None:
    request = encode(model, reasoning_effort="high", tools=[TOOL], tool_choice=choice)
    assert ("thinking" in more(request), "output_config" in more(request)) == (thinks, thinks)
    assert ("reasoning_effort" in params(request)) is not thinks


def test_raw_thinking_passes_to_claude_alone() -> None:
    raw = {"type": "enabled", "budget_tokens": 1500}
    request = encode(SONNET_4, thinking=raw, reasoning_effort="low", temperature=1, top_k=5, top_p=0.5)
    assert more(request) == {"thinking": raw}
    assert request.body["inferenceConfig"] == {"maxTokens": 8000, "temperature": 1}
    assert params(request) == ["reasoning_effort", "top_k", "top_p"]
    assert params(encode(NOVA, thinking=raw)) == ["thinking"]


def test_newest_models_take_no_sampling() -> None:
    request = encode(SONNET_5, temperature=0.5, top_p=0.5, top_k=4)
    assert request.body["inferenceConfig"] == {"maxTokens": 8000} and more(request) == {}
    assert params(request) == ["temperature", "top_p", "top_k"]


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (HAIKU, {"top_k": 4}),
        ("mistral.mistral-large-2407-v1:0", {"top_k": 4}),
        (NOVA, {"inferenceConfig": {"topK": 4}}),
        ("cohere.command-r-plus-v1:0", {"k": 4}),
        (LLAMA, {}),
    ],
)
def test_top_k_has_a_name_in_each_family(model: str, fields: Json) -> None:
    request = encode(model, top_k=4)
    assert more(request) == fields
    assert params(request) == ([] if fields else ["top_k"])


@pytest.mark.parametrize(
    ("model", "how"),
    [
        (HAIKU, "native"), (SONNET_46, "native"), ("qwen.qwen3-32b-v1:0", "native"),
        ("openai.gpt-oss-20b-1:0", "native"),
        ("deepseek.v3-v1:0", "native"), (SONNET_4, "tool"), (SONNET_5, "tool"), ("anthropic.claude-opus-4-7", "tool"),
        (NOVA, "tool"), ("mistral.mistral-large-2407-v1:0", "tool"), (LLAMA, "hint"), ("us.deepseek.r1-v1:0", "hint"),
        ("anthropic.claude-opus-5-5", "hint"), ("arn:aws:bedrock:us-east-1:123456789012:imported-model/q1", "hint"),
    ],
)  # fmt: skip
def test_a_schema_is_held_to_in_the_best_way_that_a_model_has(model: str, how: str) -> None:
    request = encode(model, response_format=FORM)
    forced = [tool["toolSpec"]["name"] for tool in request.body.get("toolConfig", {}).get("tools", ())]
    assert ("outputConfig" in request.body) is (how == "native")
    assert (forced == ["strata_answer"]) is (how == "tool")
    assert any('"a":{"type":"string"}' in block["text"] for block in request.body.get("system", ())) is (how == "hint")
    assert [notice.lost for notice in request.notices] == {"native": [], "tool": [False], "hint": [True]}[how]


def test_a_forced_tool_is_stronger_than_a_schema_held_by_a_tool() -> None:
    request = encode(SONNET_4, response_format=FORM, tools=[TOOL], tool_choice="required")
    assert [tool["toolSpec"]["name"] for tool in request.body["toolConfig"]["tools"]] == ["look"]
    assert params(request) == ["response_format"]


def test_strict_is_kept_where_models_hold_to_it() -> None:
    strict = {"type": "function", "function": {"name": "look", "strict": True, "parameters": {"properties": {}}}}
    (spec,) = encode(tools=[strict]).body["toolConfig"]["tools"]
    assert spec["toolSpec"]["strict"] is True
    assert spec["toolSpec"]["inputSchema"]["json"] == {"type": "object", "properties": {}}
    for model in (SONNET_4, SONNET_5, NOVA):
        request = encode(model, tools=[strict])
        assert "strict" not in request.body["toolConfig"]["tools"][0]["toolSpec"]
        assert params(request) == ["tools[].function.strict"]


def test_allowed_tools_are_the_only_ones_offered() -> None:
    other = {"type": "function", "function": {"name": "other"}}
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": "look"}}]}
    config = encode(tools=[TOOL, other], tool_choice={"type": "allowed_tools", "allowed_tools": allowed}).body[
        "toolConfig"
    ]
    assert [tool["toolSpec"]["name"] for tool in config["tools"]] == ["look"]
    assert config["toolChoice"] == {"any": {}}


def test_parallel_calls_are_forbidden_where_that_can_be_said() -> None:
    assert params(encode(NOVA, tools=[TOOL], parallel_tool_calls=False)) == ["parallel_tool_calls"]
    assert params(encode(NOVA, parallel_tool_calls=False)) == [], "without tools there is nothing to forbid"


def test_marks_go_where_a_cache_is() -> None:
    mark = {"type": "ephemeral"}
    nova = encode(NOVA, messages=[{**USER, "cache_control": mark}], tools=[{**TOOL, "cache_control": mark}])
    assert [list(block) for block in nova.body["messages"][0]["content"]] == [["text"], ["cachePoint"]]
    assert len(nova.body["toolConfig"]["tools"]) == 1 and params(nova) == ["cache_control"]
    assert params(encode(LLAMA, cache_control=mark)) == ["cache_control"]


def test_marks_stay_behind_what_they_mark_when_a_turn_is_put_in_order() -> None:
    mark = {"type": "ephemeral"}
    late = {**RESULT, "content": [{"type": "text", "text": "1", "cache_control": mark}]}
    messages: list[Json] = [
        USER, {**ASKED, "content": "Look:", "cache_control": mark}, {"role": "user", "content": "Wait."}, late
    ]  # fmt: skip
    _, called, answered = encode(messages=messages).body["messages"]
    assert [list(block) for block in called["content"]] == [["text"], ["toolUse"], ["cachePoint"]]
    assert [list(block) for block in answered["content"]] == [["toolResult"], ["cachePoint"], ["text"]]


@pytest.mark.parametrize("form", ["google-gemini-v1", "openai-responses-v1"])
def test_thoughts_of_others_do_not_go_to_claude(form: str) -> None:
    details = [{"type": "reasoning.text", "text": "hm", "signature": "s", "format": form, "index": 0}, "junk"]
    request = encode(messages=[USER, {"role": "assistant", "content": "Yes.", "reasoning_details": details}, USER])
    assert request.body["messages"][1]["content"] == [{"text": "Yes."}]
    assert params(request) == ["messages[].reasoning_content"]


def test_a_turn_of_thoughts_alone_is_left_out() -> None:
    details = [{"type": "reasoning.text", "text": "hm", "signature": "s", "index": 0}]
    request = encode(messages=[USER, {"role": "assistant", "content": None, "reasoning_details": details}, USER])
    assert [turn["role"] for turn in request.body["messages"]] == ["user"]
    assert params(request) == ["messages[1]"]


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
        {"reasoningContent": {"reasoningText": {"text": "hm", "signature": "s"}}},
        {"text": "Yes."},
    ]


def test_the_same_long_id_becomes_the_same_short_one_and_others_stay_apart() -> None:
    ids = ["x" * 70, "x" * 71, "y|z", "tooluse_1"]
    calls = [{**CALL, "id": id} for id in ids]
    results = [{**RESULT, "tool_call_id": id} for id in ids]
    turns = encode(messages=[USER, {"role": "assistant", "tool_calls": calls}, *results]).body["messages"]
    used = [block["toolUse"]["toolUseId"] for block in turns[1]["content"]]
    assert used == [block["toolResult"]["toolUseId"] for block in turns[2]["content"]]
    assert len(set(used)) == 4 and max(map(len, used)) == 64 and used[3] == "tooluse_1"


def test_metadata_that_does_not_fit_is_left_out_with_a_notice() -> None:
    many = {f"k{number}": "v" for number in range(17)}
    request = encode(metadata=many, user="\u00fc")
    assert len(request.body["requestMetadata"]) == 16
    assert params(request) == ["metadata", "user"]


@pytest.mark.parametrize(
    ("tier", "named"), [("flex", "flex"), ("priority", "priority"), ("default", ""), ("scale", "")]
)
def test_the_tier_is_asked_for_and_priced(tier: str, named: str) -> None:
    request = encode(service_tier=tier)
    assert request.service_tier == named
    assert request.body.get("serviceTier") == ({"type": named} if named else None)
    assert params(request) == (["service_tier"] if tier == "scale" else [])
    assert encode(serviceTier={"type": "reserved"}).service_tier == "reserved"


def test_quirks_speak_of_the_clients_own_words() -> None:
    target = Target(model=HAIKU, quirks={"drop": ["top_k"], "set": {"guardrailConfig": {"guardrailIdentifier": "g1"}}})
    chat = {"messages": [USER], "model": "m", "top_k": 3, "guardrailConfig": {"guardrailIdentifier": "mine"}}
    request = load("bedrock").encode_request(chat, target)
    assert request.body["guardrailConfig"] == {"guardrailIdentifier": "g1"}
    assert params(request) == ["top_k", "guardrailConfig"]


def test_numbers_too_big_for_a_float_survive() -> None:
    call = {**CALL, "function": {"name": "look", "arguments": '{"id": 12345678901234567890123}'}}
    body = encode(messages=[USER, {"role": "assistant", "tool_calls": [call]}, RESULT]).body
    assert body["messages"][1]["content"][0]["toolUse"]["input"] == {"id": 12345678901234567890123}


def test_a_thought_of_anothers_does_not_come_to_claude_by_the_pieces_of_its_stream() -> None:
    first = {"type": "reasoning.text", "text": "Hm, ", "format": "google-gemini-v1", "index": 0}
    last = {"type": "reasoning.text", "text": "yes.", "signature": "U0lH", "index": 0}
    request = encode(messages=[USER, {"role": "assistant", "content": "Yes", "reasoning_details": [first, last]}, USER])
    assert request.body["messages"][1]["content"] == [{"text": "Yes"}]
    assert params(request) == ["messages[].reasoning_content"]
    own = [{"type": "reasoning.text", "text": "Hm, ", "index": 0}, {**last, "format": "anthropic-claude-v1"}]
    request = encode(messages=[USER, {"role": "assistant", "content": "Yes", "reasoning_details": own}, USER])
    thought = {"text": "Hm, yes.", "signature": "U0lH"}
    assert request.body["messages"][1]["content"][0] == {"reasoningContent": {"reasoningText": thought}}
