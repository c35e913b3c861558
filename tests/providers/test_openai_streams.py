"""
What "compatible" providers do differently, undone; and usage in one arithmetic.
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import UpstreamError
from proxy.providers import Event, Json, Target, load
from proxy.providers.chunks import ChunkWriter
from proxy.providers.usage import openai_usage
from tests.golden import check_invariants, fold

USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}


def stream(*chunks: Any) -> list[Json]:
    decoder = load("openai").stream_decoder()
    found: list[Json] = []
    for chunk in chunks:
        found += decoder.feed(Event("", b"[DONE]" if chunk == "[DONE]" else msgspec.json.encode(chunk)))
    return [*found, *decoder.close()]


def choice(delta: Json, finish: str | None = None, **fields: Any) -> Json:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **fields}


def call(index: int | None, id: str | None = None, name: str | None = None, arguments: str | None = "") -> Json:
    function = {"arguments": arguments} | ({"name": name} if name else {})
    return {
        "tool_calls": [
            {"function": function} | ({"id": id} if id else {}) | ({} if index is None else {"index": index})
        ]
    }


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (USAGE, (5, 2, 7)),
        ({"prompt_tokens": 5, "completion_tokens": 2}, (5, 2, 7)),
        ({"prompt_tokens": 5}, (5, 0, 5)),
        ({**USAGE, "completion_tokens_details": {"reasoning_tokens": 2}}, (5, 2, 7)),
        ({**USAGE, "total_tokens": 27, "completion_tokens_details": {"reasoning_tokens": 20}}, (5, 22, 27)),
        ({**USAGE, "completion_tokens_details": None}, (5, 2, 7)),
    ],
)
def test_completion_tokens_include_reasoning(usage: Json, expected: tuple[int, int, int]) -> None:
    read = openai_usage(usage)
    assert (read["prompt_tokens"], read["completion_tokens"], read["total_tokens"]) == expected


def whole(message: Json, finish: str = "stop", **fields: Any) -> Json:
    body = {"choices": [{"index": 0, "message": message, "finish_reason": finish, **fields}]}
    (found,) = load("openai").decode_response(msgspec.json.encode(body))["choices"]
    return dict(found)


@pytest.mark.parametrize("told", [{}, {"error": {"code": 502, "message": "The model went away."}}])
def test_an_answer_that_broke_off_is_an_error_and_never_looks_whole(told: Json) -> None:
    with pytest.raises(UpstreamError, match="broke off" if not told else "went away"):
        whole({"content": "half an"}, "error", **told)
    decoder = load("openai").stream_decoder()
    assert list(decoder.feed(Event("", msgspec.json.encode(choice({"content": "half an"})))))
    broken = {"choices": [{"index": 0, "delta": {}, "finish_reason": "error", **told}], "usage": USAGE}
    with pytest.raises(UpstreamError, match="broke off" if not told else "went away"):
        list(decoder.feed(Event("", msgspec.json.encode(broken))))
    assert decoder.usage_so_far == USAGE


def test_what_stands_beside_an_answer_is_there_streamed_or_whole_and_once() -> None:
    logprobs = {"content": [{"token": "a", "logprob": -1.0, "bytes": [97], "top_logprobs": []}], "refusal": None}
    beside = {"logprobs": logprobs, "stop_reason": "END"}
    ends = {"choices": [{"index": 0, "delta": {}, "finish_reason": "length", **beside}]}
    chunks = stream(choice({"content": "a"}), ends, "[DONE]")
    assert [one["choices"][0].get("logprobs") for one in chunks] == [None, None, logprobs]
    assert chunks[-1]["choices"][0]["stop_reason"] == "END"
    assert whole({"content": "a"}, "length", **beside).items() >= {**beside, "finish_reason": "length"}.items()


@pytest.mark.parametrize(("sent", "arguments"), [({"a": 1}, '{"a":1}'), ("", "{}"), (None, "{}"), ('{"a"', '{"a"')])
def test_arguments_are_text_streamed_or_whole(sent: Any, arguments: str) -> None:
    said: Json = {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "look", "arguments": sent}}]}
    (call,) = whole({"content": None, **said})["message"]["tool_calls"]
    assert call["function"] == {"name": "look", "arguments": arguments}
    (folded,) = fold(stream(choice(said), choice({}, "stop"), "[DONE]"))["choices"]
    assert folded["message"]["tool_calls"][0]["function"] == call["function"]


def test_content_that_is_a_list_of_text_and_reasoning_is_told_in_openais_form() -> None:
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm.", "signature": "s"}]}
    message = whole({"content": [thought, {"type": "text", "text": "Yes"}, {"type": "text", "text": "."}]})["message"]
    assert (message["content"], message["reasoning_content"]) == ("Yes.", "Hm.")
    assert [one["signature"] for one in message["reasoning_details"]] == ["s"]
    text = [{"type": "text", "text": "Yes."}]
    chunks = stream(choice({"content": [thought]}), choice({"content": text}), choice({}, "stop"), "[DONE]")
    (folded,) = fold(chunks)["choices"]
    assert (folded["message"]["content"], folded["message"]["reasoning_content"]) == ("Yes.", "Hm.")


def test_cached_tokens_have_one_name() -> None:
    assert openai_usage({**USAGE, "prompt_cache_hit_tokens": 4})["prompt_tokens_details"] == {"cached_tokens": 4}


@pytest.mark.parametrize(
    "fragments",
    [
        [call(0, "a", "look", '{"x"'), call(0, None, None, ":1}"), call(1, "b", "see", "{}")],
        [call(0, "a", "look", '{"x"'), call(0, "a", "look", ":1}"), call(1, "b", "see", "")],
        [call(0, "a", "look", '{"x":1}'), call(0, "b", "see", "{}")],
        [call(None, "a", "look", '{"x"'), call(None, None, None, ":1}"), call(None, "b", "see", "{}")],
        [call(3, "a", "look", '{"x":1}'), call(7, "b", "see", None)],
        [call(0, "a", "look", '{"x"'), call(1, "b", "see", "{"), call(0, "", "", ":1}"), call(1, None, None, "}")],
    ],
)
def test_calls_are_told_apart_however_they_are_counted(fragments: list[Json]) -> None:
    chunks = stream(*[choice(fragment) for fragment in fragments], choice({}, "stop"), "[DONE]")
    check_invariants(chunks)
    (whole,) = fold(chunks)["choices"]
    assert whole["finish_reason"] == "tool_calls"
    assert [(found["id"], found["function"]) for found in whole["message"]["tool_calls"]] == [
        ("a", {"name": "look", "arguments": '{"x":1}'}),
        ("b", {"name": "see", "arguments": "{}"}),
    ]


def test_what_a_call_carries_beside_its_function_stays() -> None:
    signed = call(0, "a", "look", "{}")
    signed["tool_calls"][0]["extra_content"] = {"google": {"thought_signature": "s"}}
    (first, second, *_) = stream(choice(signed), choice({}, "tool_calls"), "[DONE]")
    assert first["choices"][0]["delta"]["role"] == "assistant"
    assert second["choices"][0]["delta"]["tool_calls"][0]["extra_content"] == {"google": {"thought_signature": "s"}}


def test_tool_calls_without_a_call_is_a_stop() -> None:
    chunks = stream(choice({"content": "Hi"}), choice({}, "tool_calls"), "[DONE]")
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(("native", "reason"), [("eos", "stop"), ("model_length", "length"), ("odd", "stop")])
def test_other_finish_reasons_become_one_of_five(native: str, reason: str) -> None:
    (ended,) = stream(choice({"content": "Hi"}, native), "[DONE]")[-1]["choices"]
    assert (ended["finish_reason"], ended["native_finish_reason"]) == (reason, native)
    whole = {"choices": [{"message": {"content": "Hi"}, "finish_reason": native}]}
    (ended,) = load("openai").decode_response(msgspec.json.encode(whole))["choices"]
    assert (ended["finish_reason"], ended["native_finish_reason"]) == (reason, native)


@pytest.mark.parametrize(
    "chunks",
    [
        ["[DONE]"],
        [choice({"content": "Hi"})],
        [choice({"content": "Hi"}, "stop")],
        [choice({"content": "Hi"}, usage=USAGE)],
        [{"choices": [], "usage": USAGE}],
    ],
)
def test_an_unfinished_stream_is_cut(chunks: list[Any]) -> None:
    with pytest.raises(UpstreamError) as cut:
        stream(*chunks)
    assert cut.value.code == "upstream_incomplete"


def test_nothing_follows_done() -> None:
    assert stream(choice({"content": "a"}, "stop"), "[DONE]", choice({"content": "b"})) == stream(
        choice({"content": "a"}, "stop"), "[DONE]"
    )


def test_groq_keeps_its_usage_apart() -> None:
    last = choice({}, "stop", x_groq={"id": "req_1", "usage": {**USAGE, "queue_time": 0.1}})
    assert stream(choice({"content": "Hi"}), last, "[DONE]")[-1]["usage"]["total_tokens"] == 7


@given(
    st.recursive(st.none() | st.integers() | st.text(max_size=4), lambda x: st.lists(x) | st.dictionaries(st.text(), x))
)
def test_junk_is_a_bad_response(junk: object) -> None:
    for chunk in (junk, {"choices": junk}, {"choices": [junk]}, choice({"tool_calls": junk}), {"usage": junk}):
        try:
            stream(chunk)
        except UpstreamError as error:
            assert error.error_type in {"provider_bad_response", "provider_stream_cut", "provider_error"}


def test_a_deployment_of_another_provider_gets_the_request_as_it_was() -> None:
    chat: Json = {
        "model": "fast",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": False,
        "cache_control": {},
        "new": 1,
    }
    request = load("openai").encode_request(chat, Target(model="gpt-4.1-mini"))
    assert request.body == {**chat, "model": "gpt-4.1-mini"}
    assert chat["model"] == "fast"
    assert request.notices == ()


def test_a_quirk_that_takes_nothing_away_is_not_told() -> None:
    quirks = {"drop": ["seed"], "rename": {"max_completion_tokens": "max_tokens"}, "set": {"safe_prompt": True}}
    chat: Json = {"model": "m", "messages": [], "seed": None, "max_completion_tokens": 5}
    request = load("openai").encode_request(chat, Target(model="m", quirks=quirks))
    assert request.body == {"model": "m", "messages": [], "max_tokens": 5, "safe_prompt": True}
    assert request.notices == ()


@given(
    st.lists(st.tuples(st.sampled_from(["text", "call", "more", "finish", "usage"]), st.integers(0, 2)), max_size=20)
)
def test_the_writer_keeps_its_promises_in_any_order(steps: list[tuple[str, int]]) -> None:
    out, chunks = ChunkWriter(), []
    for what, number in steps:
        match what:
            case "text":
                chunks += out.delta({"content": "a"}, choice=number)
            case "call" if not out.knows(number):
                chunks += out.tool_call(number, id=f"id{number}", name="look")
            case "more" if out.knows(number):
                chunks += out.arguments(number, "{}")
            case "finish":
                out.finish({"finish_reason": ["stop", "length", "tool_calls"][number]}, choice=number)
            case "usage":
                out.usage({"prompt_tokens": number, "completion_tokens": 1, "total_tokens": number + 1})
    chunks += out.end()
    if out.begun:
        check_invariants(chunks)
    else:
        assert all("usage" in chunk for chunk in chunks)
