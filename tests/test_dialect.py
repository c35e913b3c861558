"""The OpenAI dialect: what a stranger may send, and how answers look."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dialects import openai as dialect
from proxy.dialects.bodies import MAX_DEPTH, decode_object
from proxy.errors import CallerError

HELLO: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), json_values, max_size=6))
def test_every_valid_object_is_read_as_it_stands(value: dict[str, Any]) -> None:
    assert decode_object(msgspec.json.encode(value)) == value


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"   ", "invalid_json"),
        (b"not json", "invalid_json"),
        (b"null", "invalid_json"),
        (b"[1]", "invalid_json"),
        (b'"text"', "invalid_json"),
        (b"true", "invalid_json"),
        (b"1", "invalid_json"),
        (b'{"a":NaN}', "invalid_json"),
        (b'{"a":Infinity}', "invalid_json"),
        (b'{"a":1e400}', "invalid_json"),
        (b'{"a":"\\ud800"}', "invalid_unicode"),
        (b'{"a":"\xff"}', "invalid_unicode"),
        (b'\xef\xbb\xbf{"a":1}', "invalid_json"),
        ('{"a":1}'.encode("utf-16"), "invalid_json"),
        (b'{"a":1,"a":2}', "duplicate_key"),
        (b'{"a":{"b":1,"c":2,"b":1}}', "duplicate_key"),
        (b'{"a":' + b"[" * 100 + b"]" * 100 + b"}", "json_too_deep"),
        (b'{"a":' * 200 + b"1" + b"}" * 200, "json_too_deep"),
        (b"[" * 100_000 + b"]" * 100_000, "json_too_deep"),
    ],
)
def test_what_is_not_one_plain_object_is_refused_with_its_reason(body: bytes, code: str) -> None:
    with pytest.raises(CallerError) as refused:
        decode_object(body)
    assert (refused.value.status, refused.value.code) == (400, code)


def test_nesting_is_counted_in_structure_not_in_brackets_of_text() -> None:
    assert decode_object(msgspec.json.encode({"a": "[" * 1000, "b": [[]] * 500}))
    deep: Any = 1
    for _ in range(MAX_DEPTH - 1):
        deep = [deep]
    assert decode_object(msgspec.json.encode({"a": deep, "b": [[]] * 100}))


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"max_tokens": "5"}, "max_tokens", "must be an integer, not a string"),
        ({"max_tokens": True}, "max_tokens", "must be an integer, not a boolean"),
        ({"max_tokens": 1.5}, "max_tokens", "must be an integer"),
        ({"max_tokens": 0}, "max_tokens", ">= 1"),
        ({"max_tokens": 2**63}, "max_tokens", "<="),
        ({"temperature": 3}, "temperature", "<= 2"),
        ({"n": 129}, "n", "<= 128"),
        ({"stop": 5}, "stop", "a string or an array"),
        ({"messages": []}, "messages", ">= 1"),
        ({"messages": [{"role": "robot"}]}, "messages[0].role", "robot"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "missing"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type", "missing"),
        ({"tools": [{"type": "function", "function": {"name": 5}}]}, "tools[0].function.name", "a string"),
        ({"model": 5}, "model", "a string"),
        ({"stream": "yes"}, "stream", "a boolean"),
        ({"api_base": "http://evil"}, "api_base", "configured on the gateway"),
        ({"tool_choice": {"function": "look"}}, "tool_choice.function", "an object"),
        ({"tool_choice": {"function": {"name": ["look"]}}}, "tool_choice.function.name", "a string"),
        ({"tool_choice": {"allowed_tools": []}}, "tool_choice.allowed_tools", "an object"),
        ({"tool_choice": {"allowed_tools": {}}}, "tool_choice.allowed_tools.tools", "missing"),
        ({"tool_choice": {"allowed_tools": {"tools": ["look"]}}}, "tool_choice.allowed_tools.tools[0]", "an object"),
        ({"web_search_options": {"user_location": "Berlin"}}, "web_search_options.user_location", "an object"),
    ],
)
def test_a_wrong_field_is_named_with_its_path(fields: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(CallerError) as refused:
        dialect.decode(msgspec.json.encode({**HELLO, **fields}))
    assert refused.value.status == 400
    assert refused.value.param == param
    assert words in refused.value.message
    assert "`" not in refused.value.message


@pytest.mark.parametrize(
    ("said", "path"),
    [
        ({"reasoning_details": [{"type": "reasoning.text", "text": 5}]}, "reasoning_details[0].text"),
        ({"reasoning_details": [{"type": "reasoning.text", "index": []}]}, "reasoning_details[0].index"),
        ({"reasoning_details": [{"type": "reasoning.text", "format": {}}]}, "reasoning_details[0].format"),
        ({"native_blocks": [{}]}, "native_blocks[0].type"),
        ({"native_blocks": [{"type": "server_tool_use", "id": []}]}, "native_blocks[0].id"),
        ({"tool_calls": [{"id": "a", "function": {"name": "f"}, "extra_content": "x"}]}, "tool_calls[0].extra_content"),
        ({"content": [{"type": "video_url", "video_url": "https://a.example/v.mp4"}]}, "content[0].video_url"),
        ({"content": [{"type": "video_url", "video_url": {"url": 5}}]}, "content[0].video_url.url"),
    ],
)
def test_what_a_client_brings_back_changed_beyond_use_is_named_and_no_failure_of_ours(
    said: dict[str, Any], path: str
) -> None:
    with pytest.raises(CallerError) as refused:
        dialect.decode(msgspec.json.encode({**HELLO, "messages": [{"role": "assistant", **said}]}))
    assert (refused.value.status, refused.value.param) == (400, f"messages[0].{path}")


def test_a_model_is_needed() -> None:
    with pytest.raises(CallerError, match=r"model is missing\."):
        dialect.decode(b'{"messages":[{"role":"user","content":"x"}]}')


def test_unknown_fields_pass_as_they_came() -> None:
    chat = dialect.decode(msgspec.json.encode({**HELLO, "brand_new": {"a": [1, 2.5, None]}}))
    assert chat["brand_new"] == {"a": [1, 2.5, None]}


@pytest.mark.parametrize("field", ["model", "user", "metadata", "tools"])
def test_nul_is_refused_where_it_would_be_stored(field: str) -> None:
    values = {
        "model": "m\0",
        "user": "u\0",
        "metadata": {"k": "\0"},
        "tools": [{"type": "function", "function": {"name": "f\0"}}],
    }
    with pytest.raises(CallerError) as refused:
        dialect.decode(msgspec.json.encode({**HELLO, field: values[field]}))
    assert refused.value.code == "invalid_character"


def test_nul_in_a_prompt_is_the_providers_business() -> None:
    chat = {**HELLO, "messages": [{"role": "user", "content": "a\0b"}], "tools": [{"type": "function"}]}
    assert dialect.decode(msgspec.json.encode(chat)) == chat


def test_every_chunk_of_a_stream_wears_the_same_envelope() -> None:
    envelope = dialect.Envelope(id="chatcmpl-1", created=5, model="m")
    first = envelope.encode({"choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}]})
    last = envelope.usage({"prompt_tokens": 1}, None)
    for event in (first, last):
        chunk = msgspec.json.decode(event.removeprefix(b"data: "))
        assert (chunk["id"], chunk["created"], chunk["model"]) == ("chatcmpl-1", 5, "m")
        assert chunk["object"] == "chat.completion.chunk"
    assert chunk["choices"] == []
    assert chunk["usage"] == {"prompt_tokens": 1, "cost": None}


def test_a_call_without_an_id_gets_one_and_a_fragment_does_not() -> None:
    envelope = dialect.Envelope(id="chatcmpl-abc", created=5, model="m")
    calls = [{"index": 1, "function": {"name": "f", "arguments": ""}}, {"index": 1, "function": {"arguments": "{}"}}]
    chunk = {"choices": [{"index": 0, "delta": {"tool_calls": calls}, "finish_reason": None}]}
    shown = msgspec.json.decode(envelope.encode(chunk).removeprefix(b"data: "))
    first, second = shown["choices"][0]["delta"]["tool_calls"]
    assert first["id"] == "call_abc_1"
    assert "id" not in second


def test_a_translated_answer_is_stamped_with_its_cost_and_notices() -> None:
    from_provider = {"choices": [{"index": 0, "message": {"content": "x"}}], "usage": {"total_tokens": 3}}
    body = dialect.stamp_completion(from_provider, id="chatcmpl-1", created=5, model="m", cost=0.5, notices=[])
    assert msgspec.json.decode(body) == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 5,
        "model": "m",
        "choices": [{"index": 0, "message": {"content": "x"}}],
        "usage": {"total_tokens": 3, "cost": 0.5},
    }
