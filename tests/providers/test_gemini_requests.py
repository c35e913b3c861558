"""
What OpenAI parameters become at Gemini: tables, and the promise that nothing is lost in silence.
"""

from __future__ import annotations

from typing import Any

import pytest

from proxy.dialects.chat_shape import ChatShape
from proxy.errors import CallerError, GatewayFault
from proxy.providers import Json, Target, UpstreamRequest, load
from proxy.providers.gemini.models import NEWEST, read_model, version_of
from proxy.providers.gemini.requests import MEANT
from proxy.providers.gemini.schemas import inlined, subset

FLASH_2, PRO_25, FLASH_25 = "gemini-2.0-flash", "gemini-2.5-pro", "gemini-2.5-flash"
PRO_3, PRO_31, FLASH_3, FLASH_38 = (
    "gemini-3-pro-preview",
    "gemini-3.1-pro",
    "gemini-3-flash-preview",
    "gemini-3.8-flash",
)
USER: Json = {"role": "user", "content": "Hi"}
TOOL = {"type": "function", "function": {"name": "look"}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
ASKED: Json = {"role": "assistant", "content": None, "tool_calls": [CALL]}
PLACE = {"project": "p", "region": "global"}


def encode(
    model: str = FLASH_25, *, api: str = "gemini", messages: list[Json] | None = None, **chat: Any
) -> UpstreamRequest:
    body = {"model": "m", "messages": messages or [USER]} | chat
    return load(api).encode_request(body, Target(model=model, options=PLACE))


def params(request: UpstreamRequest) -> list[str]:
    return [notice.param for notice in request.notices]


def said(part: Json) -> Json:
    return {"role": "user", "content": [{"type": "text", "text": "See:"}, part]}


@pytest.mark.parametrize(
    ("model", "version"),
    [
        ("gemini-1.5-pro-002", (1, 5)),
        ("gemini-2.0-flash-lite", (2, 0)),
        ("gemini-2.5-flash-image", (2, 5)),
        ("gemini-live-2.5-flash", (2, 5)),
        ("gemini-3-pro-preview", (3, 0)),
        ("models/gemini-3.5-flash", (3, 5)),
        ("gemini-flash-latest", NEWEST),
        ("gemini-exp-1206", None),
        ("gemma-3-27b-it", None),
        ("endpoints/42", None),
    ],
)
def test_the_version_is_read_from_the_name(model: str, version: tuple[int, int] | None) -> None:
    assert version_of(model) == version


@pytest.mark.parametrize(
    "name", ["", "..", "../x", "a/b", "a?x=1", "a#f", "a:generateContent", "a b", "a%2fb", "models/../x", "ä"]
)
@pytest.mark.parametrize("api", ["gemini", "vertex"])
def test_a_name_that_could_lead_elsewhere_is_no_model(api: str, name: str) -> None:
    with pytest.raises(CallerError) as refused:
        encode(name, api=api)
    assert (refused.value.status, refused.value.param) == (404, "model")


@pytest.mark.parametrize(
    ("model", "path"),
    [
        (FLASH_25, "/models/gemini-2.5-flash:generateContent"),
        ("models/gemini-2.5-flash", "/models/gemini-2.5-flash:generateContent"),
        ("tunedModels/ours-1", "/tunedModels/ours-1:generateContent"),
    ],
)
def test_the_model_stands_in_the_address(model: str, path: str) -> None:
    assert encode(model).path == path
    assert encode(model, stream=True).path == path.replace(":generateContent", ":streamGenerateContent?alt=sse")


@pytest.mark.parametrize(
    "options", [{}, {"project": "p"}, {"project": "../x", "region": "global"}, {"project": "p", "region": "a/b"}]
)
def test_vertex_has_no_address_without_a_project_and_a_region(options: dict[str, str]) -> None:
    with pytest.raises(GatewayFault) as fault:
        load("vertex").encode_request({"model": "m", "messages": [USER]}, Target(model=FLASH_25, options=options))
    assert fault.value.error_type == "gateway_config"


@pytest.mark.parametrize(
    ("chat", "param"),
    [
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"stop": ""}, "stop"),
        ({"stop": list("abcdef")}, "stop"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"reasoning_effort": "enormous"}, "reasoning_effort"),
        ({"google": {"labels": "a"}}, "labels"),
        ({"thinking": {"type": "sometimes"}}, "thinking"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "often"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools.tools"),
        ({"tools": [{"type": "custom", "custom": {"name": "c"}}]}, "tools[0].type"),
        ({"tools": [TOOL, {"type": "function", "function": {"name": "-x"}}]}, "tools[1].function.name"),
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
        (
            {
                "messages": [
                    {"role": "system", "content": [{"type": "image_url", "image_url": {"url": "gs://a/b.png"}}]},
                    USER,
                ]
            },
            "messages[0].content[0]",
        ),
    ],
)
def test_what_cannot_be_said_is_refused_with_its_path(chat: Json, param: str) -> None:
    with pytest.raises(CallerError) as refused:
        encode(**chat)
    assert refused.value.status == 400
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("model", "part", "param"),
    [
        (FLASH_25, {"type": "smell"}, ""),
        (FLASH_25, {"type": "image_url", "image_url": {"url": "http://example.com/a.png"}}, ".image_url.url"),
        (FLASH_25, {"type": "image_url", "image_url": {"url": "data:image/png,raw"}}, ".image_url.url"),
        (FLASH_25, {"type": "image_url", "image_url": {"url": "gs://nest/egg"}}, ".image_url.url"),
        (FLASH_2, {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}, ".image_url.url"),
        (FLASH_25, {"type": "file", "file": {"file_id": "file-1"}}, ".file"),
        (FLASH_25, {"type": "file", "file": {}}, ".file"),
    ],
)
def test_parts_that_gemini_does_not_take_are_refused(model: str, part: Json, param: str) -> None:
    with pytest.raises(CallerError) as refused:
        encode(model, messages=[said(part)])
    assert refused.value.param == f"messages[0].content[1]{param}"


@pytest.mark.parametrize("arguments", ["{", "[1]", "7", '"x"', "nope"])
def test_arguments_that_are_no_object_are_refused(arguments: str) -> None:
    call = {**CALL, "function": {"name": "look", "arguments": arguments}}
    with pytest.raises(CallerError) as refused:
        encode(messages=[USER, {"role": "assistant", "tool_calls": [CALL, call]}])
    assert refused.value.param == "messages[1].tool_calls[1].function.arguments"


def test_every_parameter_of_openai_is_meant_or_gets_a_notice() -> None:
    """A name that the dialect knows and this translator does not must be told to the caller."""
    value: dict[str, Any] = {"logit_bias": {"1": 1}, "store": True}
    for name in set(ChatShape.__struct_fields__) - MEANT - {"audio"}:
        chat: dict[str, Any] = {name: value.get(name, "x")}
        assert name in params(encode(**chat)), name


@pytest.mark.parametrize(
    "chat", [{"logprobs": False}, {"store": False}, {"seed": None}, {"n": 1}, {"modalities": ["text"]}]
)
def test_parameters_that_change_nothing_need_no_notice(chat: Json) -> None:
    request = encode(**chat)
    assert request.notices == ()
    assert request.body == {"contents": [{"role": "user", "parts": [{"text": "Hi"}]}]}


@pytest.mark.parametrize(
    ("model", "effort", "config", "noticed"),
    [
        (FLASH_2, "low", None, True),
        (FLASH_2, "none", None, False),
        (FLASH_25, "none", {"thinkingBudget": 0}, False),
        (PRO_25, "none", {"thinkingBudget": 128}, True),
        (FLASH_25, "minimal", {"thinkingBudget": 1024, "includeThoughts": True}, False),
        (PRO_25, "high", {"thinkingBudget": 24_576, "includeThoughts": True}, False),
        ("gemma-4", "low", {"thinkingBudget": 1024, "includeThoughts": True}, False),
        (PRO_3, "none", {"thinkingLevel": "LOW"}, True),
        (PRO_3, "minimal", {"thinkingLevel": "LOW", "includeThoughts": True}, True),
        (PRO_3, "medium", {"thinkingLevel": "HIGH", "includeThoughts": True}, True),
        (PRO_31, "medium", {"thinkingLevel": "MEDIUM", "includeThoughts": True}, False),
        (PRO_31, "xhigh", {"thinkingLevel": "HIGH", "includeThoughts": True}, True),
        (FLASH_3, "none", {"thinkingLevel": "MINIMAL"}, True),
        (FLASH_3, "minimal", {"thinkingLevel": "MINIMAL", "includeThoughts": True}, False),
        (FLASH_38, "minimal", {"thinkingLevel": "LOW", "includeThoughts": True}, True),
        ("gemini-flash-latest", "medium", {"thinkingLevel": "MEDIUM", "includeThoughts": True}, False),
    ],
)
def test_an_effort_is_a_budget_or_a_level(model: str, effort: str, config: Json | None, noticed: bool) -> None:
    request = encode(model, reasoning_effort=effort)
    assert request.body.get("generationConfig", {}).get("thinkingConfig") == config
    assert params(request) == (["reasoning_effort"] if noticed else [])


@pytest.mark.parametrize(
    ("thinking", "config"),
    [
        ({"type": "enabled", "budget_tokens": 500}, {"thinkingBudget": 500, "includeThoughts": True}),
        ({"type": "enabled"}, {"includeThoughts": True}),
        ({"type": "adaptive"}, {"includeThoughts": True}),
        ({"type": "disabled"}, {"thinkingBudget": 0}),
    ],
)
def test_thinking_in_anthropics_form_is_taken_too(thinking: Json, config: Json) -> None:
    assert encode(thinking=thinking).body["generationConfig"] == {"thinkingConfig": config}


def test_googles_own_parameters_go_where_google_has_them() -> None:
    settings = [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}]
    for chat in (
        {"safety_settings": settings},
        {"safetySettings": settings},
        {"google": {"safety_settings": settings}},
    ):
        request = encode(**chat)
        assert request.body["safetySettings"] == settings
        assert request.notices == ()
    wrapped = encode(
        extra_body={"google": {"thinking_config": {"thinking_budget": 9}}}, reasoning_effort="low", thinking={}
    )
    assert wrapped.body["generationConfig"] == {"thinkingConfig": {"thinking_budget": 9}}
    assert params(wrapped) == ["reasoning_effort", "thinking"]


@pytest.mark.parametrize(
    ("tool", "native"),
    [
        ({"type": "google_search"}, {"googleSearch": {}}),
        ({"type": "googleSearch"}, {"googleSearch": {}}),
        ({"type": "code_execution"}, {"codeExecution": {}}),
        ({"type": "url_context", "url_context": {}}, {"urlContext": {}}),
        (
            {
                "type": "google_search_retrieval",
                "google_search_retrieval": {"dynamicRetrievalConfig": {"mode": "MODE_DYNAMIC"}},
            },
            {"googleSearchRetrieval": {"dynamicRetrievalConfig": {"mode": "MODE_DYNAMIC"}}},
        ),
    ],
)
def test_googles_own_tools_go_by_their_names(tool: Json, native: Json) -> None:
    assert encode(tools=[tool]).body["tools"] == [native]


@pytest.mark.parametrize(
    ("details", "resolution", "noticed"),
    [
        (["low", "low"], "MEDIA_RESOLUTION_LOW", False),
        (["high"], "MEDIA_RESOLUTION_HIGH", False),
        (["auto", None], None, False),
        (["low", "high"], None, True),
        (["low", None], None, True),
    ],
)
def test_images_have_one_detail_or_none(details: list[str | None], resolution: str | None, noticed: bool) -> None:
    parts = [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": detail}}
        for detail in details
    ]
    request = encode(messages=[{"role": "user", "content": parts}])
    assert request.body.get("generationConfig", {}).get("mediaResolution") == resolution
    assert params(request) == (["image_url.detail"] if noticed else [])


@pytest.mark.parametrize(
    ("api", "asked", "header", "field", "tier"),
    [
        ("gemini", "flex", None, "flex", "flex"),
        ("gemini", "default", None, "standard", "standard"),
        ("gemini", "auto", None, None, ""),
        ("vertex", "priority", "priority", None, "priority"),
    ],
)
def test_the_service_tier_is_asked_for_and_known(
    api: str, asked: str, header: str | None, field: str | None, tier: str
) -> None:
    """What it costs is held by the tier that was asked for, wherever the API has it."""
    request = encode(api=api, service_tier=asked)
    assert request.headers.get("x-vertex-ai-llm-shared-request-type") == header
    assert request.body.get("serviceTier") == field
    assert request.service_tier == tier


def test_a_foreign_call_of_gemini_3_says_that_it_is_unsigned() -> None:
    """Only the first of its turn, where Gemini would look; and not for models that do not ask for it."""
    second = {**CALL, "id": "call_2"}
    results = [{"role": "tool", "tool_call_id": id, "content": "1"} for id in ("call_1", "call_2")]
    messages = [USER, {**ASKED, "tool_calls": [CALL, second]}, *results]
    request = encode(PRO_3, messages=messages)
    signed = ["thoughtSignature" in part for part in request.body["contents"][1]["parts"]]
    assert signed == [True, False]
    assert [(notice.param, notice.lost) for notice in request.notices] == [
        ("messages[].tool_calls[].extra_content", False)
    ]
    assert encode(FLASH_25, messages=messages).notices == ()


@pytest.mark.parametrize(
    "details",
    [
        [{"type": "reasoning.encrypted", "data": 7, "format": "google-gemini-v1", "index": [1]}],
        [{"type": "reasoning.text", "text": None, "format": "google-gemini-v1", "index": {}}],
        [{"type": "reasoning.encrypted", "id": ["call_1"], "format": "google-gemini-v1"}],
    ],
)
def test_details_that_make_no_sense_do_no_harm(details: list[Json]) -> None:
    messages = [
        USER,
        {**ASKED, "reasoning_details": details},
        {"role": "tool", "tool_call_id": "call_1", "content": "1"},
    ]
    parts = encode(messages=messages).body["contents"][1]["parts"]
    assert parts == [{"functionCall": {"id": "call_1", "name": "look", "args": {}}}]


@pytest.mark.parametrize(
    ("schema", "cut", "lost"),
    [
        ({"type": ["string", "null"]}, {"nullable": True, "type": "STRING"}, []),
        ({"type": ["string", "integer"]}, {"anyOf": [{"type": "STRING"}, {"type": "INTEGER"}]}, []),
        ({"type": []}, {"type": "STRING"}, ["type", "values of any type"]),
        ({"const": "a"}, {"type": "STRING", "enum": ["a"]}, []),
        ({"type": "integer", "enum": [1]}, {"type": "INTEGER"}, ["enum"]),
        ({"enum": ["a", ""]}, {"type": "STRING"}, ["enum", "values of any type"]),
        ({"type": ["string", "null"], "enum": ["a", None]}, {"nullable": True, "type": "STRING", "enum": ["a"]}, []),
        ({"type": 5}, {"type": "STRING"}, ["type", "values of any type"]),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, {"nullable": True, "type": "STRING"}, []),
        ({"allOf": [{"type": "string"}]}, {"type": "STRING"}, []),
        ({"allOf": [{"type": "string"}, {"minLength": 1}]}, {"type": "STRING"}, ["allOf", "values of any type"]),
        ({"type": "object", "allOf": [{"maxProperties": 1}]}, {"type": "OBJECT", "maxProperties": 1}, []),
        ({"type": "string", "format": "date-time"}, {"type": "STRING", "format": "date-time"}, []),
        ({"type": "string", "format": "email"}, {"type": "STRING"}, ["format"]),
        ({"type": "object", "additionalProperties": False, "$schema": "x"}, {"type": "OBJECT"}, []),
        (
            {"type": "array", "items": {"type": "number", "multipleOf": 2}},
            {"type": "ARRAY", "items": {"type": "NUMBER"}},
            ["multipleOf"],
        ),
        (
            {"type": "array", "items": [{"type": "number"}]},
            {"type": "ARRAY", "items": {"type": "STRING"}},
            ["items", "values of any type"],
        ),
        (
            {"type": ["array", "integer"]},
            {"anyOf": [{"type": "ARRAY", "items": {"type": "STRING"}}, {"type": "INTEGER"}]},
            ["values of any type"],
        ),
        ({"items": {"type": "number"}}, {"type": "ARRAY", "items": {"type": "NUMBER"}}, []),
        (
            {"properties": {"a": {"type": "string"}}, "required": ["a", "b", ["c"]]},
            {"type": "OBJECT", "properties": {"a": {"type": "STRING"}}, "required": ["a"]},
            [],
        ),
        ({"type": "object", "required": True}, {"type": "OBJECT"}, []),
        ({"type": "object", "additionalProperties": {"type": "string"}}, {"type": "OBJECT"}, ["additionalProperties"]),
        (True, {"type": "STRING"}, ["values of any type"]),
    ],
)
def test_a_schema_is_cut_to_what_old_models_take(schema: Any, cut: Json, lost: list[str]) -> None:
    found: list[str] = []
    assert subset(schema, found.append) == cut
    assert found == lost


def test_references_are_put_in_place_but_for_those_to_themselves() -> None:
    tree = {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}}
    once = inlined(
        {
            "$defs": {"Leaf": {"type": "string"}},
            "type": "object",
            "properties": {"a": {"$ref": "#/$defs/Leaf", "description": "d"}},
        }
    )
    assert once == {"type": "object", "properties": {"a": {"type": "string", "description": "d"}}}
    assert inlined({"$defs": {"Node": tree}, "$ref": "#/$defs/Node"}) == {"$defs": {"Node": tree}, **tree}
    assert inlined({"$defs": ["odd"], "$ref": "#/elsewhere"}) == {"$defs": ["odd"], "$ref": "#/elsewhere"}


def test_nothing_stands_beside_a_reference_that_stays() -> None:
    """Or Gemini refuses the schema; what a class of its own kind in pydantic's looks like."""
    node = {"type": "object", "properties": {"up": {"$ref": "#/definitions/Node", "description": "the one above"}}}
    alone = {"type": "object", "properties": {"up": {"$ref": "#/definitions/Node"}}}
    whole = inlined({"definitions": {"Node": node}, "$ref": "#/definitions/Node"})
    assert whole == {"definitions": {"Node": alone}, **alone}


@pytest.mark.parametrize("parameters", [{"type": "object", "properties": {}}, {"type": "object"}, {"properties": {}}])
def test_a_function_without_arguments_has_no_parameters_at_an_old_model(parameters: Json) -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": parameters}}]
    assert encode(FLASH_2, tools=tools).body["tools"] == [{"functionDeclarations": [{"name": "look"}]}]


def test_references_that_multiply_stay_references() -> None:
    """Forty lines of such a schema would be a thousand billion."""
    doubling = {
        f"D{n}": {"type": "object", "properties": {side: {"$ref": f"#/$defs/D{n + 1}"} for side in "ab"}}
        for n in range(40)
    }
    bomb = {"$defs": {**doubling, "D40": {"type": "string"}}, "$ref": "#/$defs/D0"}
    assert inlined(bomb) == bomb
    chain = {f"D{n}": {"type": "array", "items": {"$ref": f"#/$defs/D{n + 1}"}} for n in range(500)}
    deep = {"$defs": {**chain, "D500": {"type": "string"}}, "$ref": "#/$defs/D0"}
    assert inlined(deep) == deep


def test_an_old_models_answer_beside_tools_is_asked_for_in_words() -> None:
    request = encode(FLASH_25, tools=[TOOL], response_format={"type": "json_object"})
    assert "generationConfig" not in request.body
    assert "JSON" in request.body["systemInstruction"]["parts"][0]["text"]
    assert [(notice.param, notice.lost) for notice in request.notices] == [("response_format", False)]
    assert encode(PRO_3, tools=[TOOL], response_format={"type": "json_object"}).notices == ()


def test_quirks_hold_for_gemini_too() -> None:
    request = load("gemini").encode_request(
        {"messages": [USER], "model": "m", "seed": 1}, Target(model=FLASH_25, quirks={"set": {"labels": {"a": "b"}}})
    )
    assert request.body["labels"] == {"a": "b"}


def test_claude_on_vertex_takes_what_claude_takes() -> None:
    request = encode("claude-opus-4-6", api="vertex", reasoning_effort="high", n=1, max_tokens=9)
    assert request.body["thinking"] == {"type": "adaptive"}
    assert request.headers == {}
    with pytest.raises(CallerError) as refused:
        encode("claude-opus-4-6", api="vertex", n=2)
    assert refused.value.param == "n"


def test_what_claude_is_to_try_out_is_named_on_vertex_too() -> None:
    request = encode("claude-opus-4-6", api="vertex", betas=["context-1m-2025-08-07"], max_tokens=9)
    assert (request.headers, request.notices) == ({"anthropic-beta": "context-1m-2025-08-07"}, ())


def test_a_thought_that_comes_back_in_the_pieces_of_its_stream_keeps_its_signature() -> None:
    first = {"type": "reasoning.text", "text": "Hm, ", "format": "google-gemini-v1", "index": 0}
    last = {"type": "reasoning.text", "text": "yes.", "signature": "U0lH", "index": 0}
    others = {"type": "reasoning.text", "text": "No.", "signature": "x", "index": 1}
    said = {"role": "assistant", "content": "Yes", "reasoning_details": [first, last, others]}
    parts = encode(messages=[USER, said, USER]).body["contents"][1]["parts"]
    assert parts == [{"text": "Hm, yes.", "thought": True, "thoughtSignature": "U0lH"}, {"text": "Yes"}]


def test_a_name_is_said_to_be_lost_only_where_it_is() -> None:
    result = {"role": "tool", "tool_call_id": "call_1", "name": "look", "content": "1"}
    assert encode(messages=[USER, ASKED, result]).notices == ()
    assert params(encode(messages=[{**USER, "name": "Ada"}])) == ["messages[].name"]


def test_a_jpg_is_a_jpeg() -> None:
    part = {"type": "image_url", "image_url": {"url": "data:image/JPG;base64,AAAA"}}
    sent = encode(messages=[said(part)]).body["contents"][0]["parts"][1]
    assert sent == {"inlineData": {"mimeType": "image/jpeg", "data": "AAAA"}}


def test_a_model_of_the_cloud_is_told_apart() -> None:
    assert read_model(FLASH_2, cloud=True).fetches_links
    assert not read_model(FLASH_2).fetches_links
