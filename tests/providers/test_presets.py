"""
Each known provider's accent, as a small answer of its shape and small requests: what is billed, what the client reads,
what is sent. The shapes are those of recorded answers; the words are ours.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest

from proxy.config.presets import PRESETS
from proxy.errors import CallerError, UpstreamError
from proxy.exchange import Usage
from proxy.providers import Json, Target, load
from tests import compatible
from tests.answers import check_for_clients, streamed, whole

PLAIN = {"prompt_tokens": 9, "completion_tokens": 6, "total_tokens": 15}
BILL = Usage(input=9, output=6)
THOUGHT = {**PLAIN, "completion_tokens_details": {"reasoning_tokens": 4}}
THOUGHT_BILL = Usage(input=9, output=2, reasoning=4)


@dataclass(frozen=True)
class Shape:
    """An answer "Hi" after some thought, as one provider would give it."""

    usage: Json = field(default_factory=lambda: dict(PLAIN))
    bill: Usage = BILL
    usage_is: Literal["apart", "on the last choice", "on every chunk", "in x_groq"] = "apart"
    reasoning: str = ""
    """What it calls its thoughts."""
    finish: str = "stop"
    becomes: str = "stop"
    beside: Json = field(default_factory=dict)
    """What stands beside the choices, and must reach the client."""
    repeats_role: bool = False
    says_done: bool = True
    last_object: str = "chat.completion.chunk"
    tier: str | None = None


SHAPES: dict[str, Shape] = {
    "openai": Shape(
        usage={**THOUGHT, "prompt_tokens_details": {"cached_tokens": 3}},
        bill=Usage(input=6, cache_read=3, output=2, reasoning=4),
    ),
    "azure": Shape(usage=THOUGHT, bill=THOUGHT_BILL, beside={"prompt_filter_results": [{"prompt_index": 0}]}),
    "groq": Shape(
        usage={**THOUGHT, "queue_time": 0.01, "total_time": 0.2},
        bill=THOUGHT_BILL,
        usage_is="in x_groq",
        reasoning="reasoning",
        tier="on_demand",
    ),
    "deepseek": Shape(
        usage={**PLAIN, "prompt_cache_hit_tokens": 8, "prompt_cache_miss_tokens": 1},
        bill=Usage(input=1, cache_read=8, output=6),
        usage_is="on the last choice",
        reasoning="reasoning_content",
        finish="insufficient_system_resource",
        becomes="length",
    ),
    "xai": Shape(
        usage={
            **PLAIN,
            "total_tokens": 215,
            "completion_tokens_details": {"reasoning_tokens": 200},
            "num_sources_used": 0,
        },
        bill=Usage(input=9, output=6, reasoning=200),
        reasoning="reasoning_content",
    ),
    "openrouter": Shape(
        usage={**THOUGHT, "cost": 0.01, "cost_details": {"upstream_inference_cost": 0.01}},
        bill=THOUGHT_BILL,
        usage_is="on the last choice",
        reasoning="reasoning",
        repeats_role=True,
        beside={"provider": "Somebody"},
    ),
    "together": Shape(finish="eos"),
    "fireworks": Shape(usage_is="on the last choice"),
    "cerebras": Shape(
        usage=THOUGHT,
        bill=THOUGHT_BILL,
        usage_is="on the last choice",
        reasoning="reasoning",
        says_done=False,
        beside={"time_info": {"total_time": 0.1}},
    ),
    "perplexity": Shape(
        usage_is="on every chunk",
        repeats_role=True,
        beside={"citations": ["https://example.com/a"]},
        last_object="chat.completion.done",
    ),
    "zai": Shape(
        usage={**THOUGHT, "prompt_tokens_details": {"cached_tokens": 4}},
        bill=Usage(input=5, cache_read=4, output=2, reasoning=4),
        usage_is="on the last choice",
        reasoning="reasoning_content",
        finish="sensitive",
        becomes="content_filter",
        repeats_role=True,
    ),
    "huggingface": Shape(usage_is="in x_groq", reasoning="reasoning", tier="on_demand"),
    "nvidia": Shape(reasoning="reasoning_content"),
    "nebius": Shape(),
    "sambanova": Shape(usage={**PLAIN, "time_to_first_token": 0.1}),
    "github": Shape(),
    "databricks": Shape(usage={**PLAIN, "cache_read_input_tokens": 0}, usage_is="on every chunk"),
    "snowflake": Shape(usage_is="on the last choice", finish="end_turn"),
    "ollama": Shape(reasoning="reasoning"),
    "lm_studio": Shape(beside={"stats": {}} | {"runtime": {"name": "x"}}),
    "vllm": Shape(usage={**PLAIN, "prompt_tokens_details": None}, reasoning="reasoning_content"),
    "llama_cpp": Shape(reasoning="reasoning_content", beside={"timings": {"predicted_n": 6}}),
}

each = pytest.mark.parametrize("name", sorted(SHAPES))


def whole_of(shape: Shape) -> bytes:
    message: Json = {"role": "assistant", "content": "Hi"} | ({shape.reasoning: "Hm."} if shape.reasoning else {})
    choice = {"index": 0, "message": message, "finish_reason": shape.finish}
    envelope = {"id": "a", "object": "chat.completion", "created": 7, "model": "m"}
    tier = {"service_tier": shape.tier} if shape.tier else {}
    return msgspec.json.encode({**envelope, **tier, "choices": [choice], "usage": shape.usage, **shape.beside})


def stream_of(shape: Shape) -> bytes:
    deltas: list[Json] = [{shape.reasoning: "Hm."}] if shape.reasoning else []
    deltas += [{"content": "H"}, {"content": "i"}]
    role = {"role": "assistant"}
    chunks: list[Json] = []
    for place, delta in enumerate([*deltas, {}]):
        last = place == len(deltas)
        choice: Json = {"index": 0, "delta": {**(role if not place or shape.repeats_role else {}), **delta}}
        chunk: Json = {"id": "a", "object": "chat.completion.chunk", "created": 7, "model": "m", "choices": [choice]}
        if last:
            choice["finish_reason"] = shape.finish
            chunk["object"] = shape.last_object
        if shape.usage_is == "on every chunk":
            chunk["usage"] = shape.usage if last else {**PLAIN, "completion_tokens": 1, "total_tokens": 10}
        elif last and shape.usage_is == "on the last choice":
            chunk["usage"] = shape.usage
        elif last and shape.usage_is == "in x_groq":
            chunk["x_groq"] = {"id": "r", "usage": shape.usage}
        chunks.append(chunk | shape.beside | ({"service_tier": shape.tier} if shape.tier else {}))
    if shape.usage_is == "apart":
        chunks.append({**chunks[-1], "choices": [], "usage": shape.usage})
    data = b"".join(b"data: %s\n\n" % msgspec.json.encode(chunk) for chunk in chunks)
    return data + (b"data: [DONE]\n\n" if shape.says_done else b"")


def passes(name: str) -> bool:
    preset = PRESETS[name]
    return load(preset.api).same_dialect and not preset.quirks.get("normalise")


def test_every_provider_that_speaks_openais_api_has_its_shape_here() -> None:
    assert sorted(SHAPES) == sorted(name for name, preset in PRESETS.items() if load(preset.api).same_dialect)


@each
def test_all_ways_give_the_same_bill(name: str) -> None:
    shape, translator = SHAPES[name], load(PRESETS[name].api)
    for one in (
        whole(translator, whole_of(shape), passes=True),
        whole(translator, whole_of(shape), passes=False),
        streamed(translator, stream_of(shape), passes=True),
        streamed(translator, stream_of(shape), passes=False),
    ):
        assert (one.usage, one.suspect, one.tier) == (shape.bill, False, "")


@each
def test_a_client_reads_the_answer_as_openais(name: str) -> None:
    shape, translator = SHAPES[name], load(PRESETS[name].api)
    (completion,) = check_for_clients(whole(translator, whole_of(shape), passes=passes(name)).shown)
    chunks = check_for_clients(streamed(translator, stream_of(shape), passes=passes(name)).shown)
    (choice,) = completion["choices"]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    finishes = [choice.get("finish_reason") for chunk in chunks for choice in chunk["choices"]]
    assert [finish for finish in (choice["finish_reason"], *finishes) if finish] == [shape.becomes] * 2
    assert "".join(delta.get("content") or "" for delta in deltas) == choice["message"]["content"] == "Hi"
    if shape.reasoning:
        assert choice["message"]["reasoning_content"] == "Hm."
        assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == "Hm."
    for said in (completion["usage"], chunks[-1]["usage"]):
        assert said["prompt_tokens"] + said["completion_tokens"] == said["total_tokens"]
        assert said["completion_tokens"] == shape.bill.completion
        assert (said.get("prompt_tokens_details") or {}).get("cached_tokens", 0) == shape.bill.cache_read
    for field_name, value in shape.beside.items():
        assert completion[field_name] == value
        assert any(chunk.get(field_name) == value for chunk in chunks)


@each
def test_a_stream_that_breaks_off_is_counted_and_not_taken_at_its_word(name: str) -> None:
    """Usage that a provider mentions on the way is no bill: the answer went on."""
    stream = stream_of(SHAPES[name])
    cut = stream[: stream.index(b'"H"')].rpartition(b"data:")[0] + b'data: {"choices":[{"delta":{"content":"H"}}]}\n\n'
    for way in (True, False):
        with pytest.raises(UpstreamError) as broken:
            streamed(load(PRESETS[name].api), cut, passes=way)
        assert broken.value.error_type == "provider_stream_cut"


TOOL = {"type": "function", "function": {"name": "look", "strict": True, "parameters": {"type": "object"}}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}

REQUESTS: list[tuple[str, Json, Json, set[str]]] = [
    ("groq", {"logprobs": True, "logit_bias": {"5": 1}}, {"logprobs": None, "logit_bias": None},
     {"logprobs", "logit_bias"}),
    ("groq", {"logprobs": False, "n": 1}, {"logprobs": None, "n": 1}, set()),
    ("groq", {"reasoning_effort": "minimal"}, {"reasoning_effort": "low"}, {"reasoning_effort"}),
    ("groq", {"max_completion_tokens": 7}, {"max_completion_tokens": 7}, set()),
    ("deepseek", {"max_completion_tokens": 7, "max_tokens": 9}, {"max_tokens": 7, "max_completion_tokens": None},
     set()),
    ("deepseek", {"reasoning_effort": "none"}, {"reasoning_effort": None, "thinking": {"type": "disabled"}},
     {"reasoning_effort"}),
    ("deepseek", {"reasoning_effort": "high"}, {"reasoning_effort": "high"}, set()),
    ("deepseek", {"response_format": SCHEMA}, {"response_format": {"type": "json_object"}}, {"response_format"}),
    ("deepseek", {"response_format": {"type": "json_object"}}, {"response_format": {"type": "json_object"}}, set()),
    ("deepseek", {"tools": [TOOL]}, {}, {"tools[].function.strict"}),
    ("lm_studio", {"response_format": {"type": "json_object"}}, {"response_format": None}, {"response_format"}),
    ("lm_studio", {"response_format": SCHEMA}, {"response_format": SCHEMA}, set()),
    ("perplexity", {"stream": True}, {"stream_options": None}, set()),
    ("perplexity", {"stream": True, "stream_options": {"include_usage": True}}, {"stream_options": None}, set()),
    ("xai", {"stream": True}, {"stream_options": {"include_usage": True}}, set()),
    ("snowflake", {"max_tokens": 7}, {"max_completion_tokens": 7, "max_tokens": None}, set()),
    ("openai", {"max_completion_tokens": 7, "logprobs": True}, {"max_completion_tokens": 7, "logprobs": True}, set()),
]  # fmt: skip


@pytest.mark.parametrize(("name", "sent", "expected", "noticed"), REQUESTS)
def test_a_request_is_put_as_the_provider_takes_it(name: str, sent: Json, expected: Json, noticed: set[str]) -> None:
    body, notices = put(name, sent)
    assert {field_name: body.get(field_name) for field_name in expected} == expected
    assert {notice.param for notice in notices} == noticed


def put(name: str, sent: Json, messages: list[Json] | None = None) -> tuple[Json, tuple[Any, ...]]:
    chat = {"model": "m", "messages": messages or [{"role": "user", "content": "Hello"}], **sent}
    preset = PRESETS[name]
    request = load(preset.api).encode_request(chat, Target("up", preset.quirks))
    return request.body, request.notices


def test_strict_leaves_a_tool_and_nothing_else_of_it() -> None:
    body, _ = put("deepseek", {"tools": [TOOL]})
    assert body["tools"] == [{**TOOL, "function": {"name": "look", "parameters": {"type": "object"}}}]
    assert TOOL["function"] == {"name": "look", "strict": True, "parameters": {"type": "object"}}


def test_a_schema_that_cannot_be_enforced_is_told_to_the_model() -> None:
    body, (notice,) = put("deepseek", {"response_format": SCHEMA})
    assert body["messages"][0]["role"] == "system" and '{"type":"object"}' in body["messages"][0]["content"]
    assert notice.lost, "a strict request is refused"
    body, (notice,) = put("perplexity", {"response_format": {"type": "json_object"}})
    assert "JSON object" in body["messages"][0]["content"] and not notice.lost


def test_an_instruction_of_the_developers_is_one_of_the_systems() -> None:
    talk = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert put("zai", {}, talk)[0]["messages"][0] == {"role": "system", "content": "Be brief."}
    assert put("openai", {}, talk)[0]["messages"] == talk


def test_thoughts_go_back_by_the_providers_own_word() -> None:
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": "Hm."}]
    assert put("groq", {}, talk)[0]["messages"][1] == {"role": "assistant", "content": "b", "reasoning": "Hm."}
    assert put("deepseek", {}, talk)[0]["messages"] == talk
    kept = [{"type": "reasoning.text", "text": "H", "format": "unsigned"}, {"text": "m.", "format": "unsigned"}]
    body, notices = put("zai", {}, [talk[0], {"role": "assistant", "content": "b", "reasoning_details": kept}])
    assert body["messages"][1] == {"role": "assistant", "content": "b", "reasoning_content": "Hm."}
    assert notices == ()


@pytest.mark.parametrize("name", ["groq", "cerebras", "perplexity", "ollama"])
def test_two_answers_from_a_provider_that_gives_one_are_refused(name: str) -> None:
    with pytest.raises(CallerError, match="takes n only as") as refused:
        put(name, {"n": 2})
    assert refused.value.param == "n"


@pytest.mark.skipif(not compatible.RECORDINGS.exists(), reason="the recordings are not here")
def test_every_recorded_answer_is_billed_by_its_own_total_and_readable() -> None:
    seen: dict[str, int] = {}
    wrong = []
    for row in compatible.rows():
        name = compatible.provider_of(row)
        seen[name] = seen.get(name, 0) + 1
        if found := compatible.check(row):
            wrong.append((row["id"], name, found))
    assert [one for one in wrong if one[2] != "error"] == []
    assert len(wrong) <= 3, "errors in place of answers"
    assert sum(seen.values()) > 800 and len(seen) > 15


def test_the_documentation_names_every_variable_of_the_providers_that_it_lists() -> None:
    page = (Path(__file__).parents[2] / "docs" / "providers.md").read_text()
    rows = [line.split("|")[1:3] for line in page.splitlines() if line.startswith("| `")]
    listed = {name: variables for names, variables in rows for name in re.findall(r"`(\w+)`", names)}
    assert listed.keys() >= SHAPES.keys()
    for name, variables in listed.items():
        preset = PRESETS[name]
        filled = [preset.options[option] for option in re.findall(r"{(\w+)}", preset.api_base)]
        assert all(
            f"`{variable}`" in variables for said in [preset.variable or "", *filled] for variable in said.split()[:1]
        ), name


ERRORS: list[tuple[str, int, Any, str]] = [
    ("groq", 400, {"error": {"message": "Failed to call a function.", "type": "invalid_request_error",
                             "code": "tool_use_failed", "failed_generation": "<x>"}}, "caller_invalid_request"),
    ("groq", 429, {"error": {"message": "Rate limit reached for model", "type": "tokens",
                             "code": "rate_limit_exceeded"}}, "provider_rate_limited"),
    ("deepseek", 402, {"error": {"message": "Insufficient Balance", "type": "unknown_error", "param": None,
                                 "code": "invalid_request_error"}}, "provider_quota"),
    ("deepseek", 400, {"error": {"message": "This model's maximum context length is 131072 tokens.",
                                 "type": "invalid_request_error"}}, "caller_context_length"),
    ("xai", 400, {"code": "Client specified an invalid argument", "error": "Incorrect API key provided: x***y."},
     "provider_auth"),
    ("xai", 400, {"code": "Client specified an invalid argument",
                  "error": "Model grok-4 does not support parameter reasoningEffort."}, "caller_invalid_request"),
    ("openrouter", 402, {"error": {"message": "Insufficient credits", "code": 402}}, "provider_quota"),
    ("openrouter", 403, {"error": {"message": "Flagged", "code": 403, "metadata": {"reasons": ["violence"]}}},
     "provider_content_filter"),
    ("cerebras", 429, {"message": "Tokens per minute limit exceeded", "type": "too_many_tokens_error",
                       "param": "quota", "code": "token_quota_exceeded"}, "provider_rate_limited"),
    ("perplexity", 400, {"error": {"message": "Invalid model 'sonar-x'.", "type": "invalid_model", "code": 400}},
     "provider_error"),
    ("perplexity", 401, "<html><head><title>401 Authorization Required</title></head></html>", "provider_auth"),
    ("zai", 429, {"error": {"code": "1113", "message": "Insufficient balance or no resource package."}},
     "provider_quota"),
    ("zai", 401, {"error": {"code": "1000", "message": "Authentication Failed"}}, "provider_auth"),
    ("huggingface", 400, {"error": "The requested model 'a/b' is not supported by any provider"},
     "caller_invalid_request"),
    ("nvidia", 404, {"status": 404, "title": "Not Found", "detail": "Function 'x' not found"}, "provider_error"),
    ("github", 404, {"error": {"code": "unknown_model", "message": "Unknown model: x", "details": "Unknown"}},
     "provider_error"),
    ("databricks", 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "No such endpoint."}, "provider_error"),
    ("databricks", 429, {"error_code": "REQUEST_LIMIT_EXCEEDED", "message": "Too many."}, "provider_rate_limited"),
    ("snowflake", 401, {"message": "Programmatic access token is invalid.", "code": "390303"}, "provider_auth"),
    ("ollama", 404, {"error": {"message": "model 'x' not found", "type": "not_found_error", "code": None}},
     "provider_error"),
    ("lm_studio", 400, {"error": "'response_format.type' must be 'json_schema' or 'text'"}, "caller_invalid_request"),
    ("vllm", 400, {"object": "error", "message": "This model's maximum context length is 4096 tokens.",
                   "type": "BadRequestError", "param": None, "code": 400}, "caller_context_length"),
    ("llama_cpp", 503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}},
     "provider_overloaded"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "status", "body", "error_type"), ERRORS)
def test_an_error_is_understood_in_the_providers_shape(name: str, status: int, body: Any, error_type: str) -> None:
    data = body.encode() if isinstance(body, str) else msgspec.json.encode(body)
    error = load(PRESETS[name].api).decode_error(status, {}, data)
    assert error.error_type == error_type
    assert error.body()["error"].keys() >= {"message", "type", "param", "code"}  # type: ignore[attr-defined]
