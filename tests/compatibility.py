"""
What becomes of each parameter of OpenAI's chat completions at each API: found by sending it through the translator.

`python -m tests.compatibility` writes docs/compatibility.md. The parameters are those of the official SDK's types, the
APIs are the modules of `proxy.providers`: a new one of either is in the table by itself, or has no probe and fails.
"""

from __future__ import annotations

import pkgutil
import sys
import typing
from pathlib import Path
from typing import Any, Literal

from openai.types.chat.completion_create_params import CompletionCreateParamsBase

import proxy.providers
from proxy.errors import CallerError
from proxy.providers import Json, Notice, Target, Translator, load

TARGET = Path(__file__).parent.parent / "docs" / "compatibility.md"
Fate = Literal["mapped", "emulated", "dropped", "refused", "lost"]
MODELS = {
    "anthropic": "claude-sonnet-4-5",
    "gemini": "gemini-2.5-pro",
    "vertex": "gemini-2.5-pro",
    "bedrock": "anthropic.claude-sonnet-4-5-20250929-v1:0",
    "cohere": "command-a-03-2025",
    "mistral": "mistral-large-latest",
}
"""A model that can do what its API can."""
OPTIONS = {"project": "p", "region": "us-central1"}
"""Settings without which some API has no address."""

TOOL = {
    "type": "function",
    "function": {"name": "look", "parameters": {"type": "object", "properties": {"a": {"type": "string"}}}},
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"], "additionalProperties": False}
PROBES: dict[str, tuple[Json, Json]] = {
    "audio": ({"modalities": ["text", "audio"]}, {"audio": {"voice": "alloy", "format": "wav"}}),
    "frequency_penalty": ({}, {"frequency_penalty": 0.5}),
    "function_call": ({"functions": [TOOL["function"]]}, {"function_call": {"name": "look"}}),
    "functions": ({}, {"functions": [TOOL["function"]]}),
    "logit_bias": ({}, {"logit_bias": {"50": 10}}),
    "logprobs": ({}, {"logprobs": True}),
    "max_completion_tokens": ({}, {"max_completion_tokens": 77}),
    "max_tokens": ({}, {"max_tokens": 77}),
    "metadata": ({}, {"metadata": {"team": "search"}}),
    "modalities": ({}, {"modalities": ["text", "audio"]}),
    "moderation": ({}, {"moderation": {"model": "omni-moderation-latest"}}),
    "n": ({}, {"n": 2}),
    "parallel_tool_calls": ({"tools": [TOOL]}, {"parallel_tool_calls": False}),
    "prediction": ({}, {"prediction": {"type": "content", "content": "what it may be"}}),
    "presence_penalty": ({}, {"presence_penalty": 0.5}),
    "prompt_cache_key": ({}, {"prompt_cache_key": "search"}),
    "prompt_cache_options": ({}, {"prompt_cache_options": {"mode": "auto"}}),
    "prompt_cache_retention": ({}, {"prompt_cache_retention": "24h"}),
    "reasoning_effort": ({"max_tokens": 8000}, {"reasoning_effort": "low"}),
    "response_format": (
        {},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}},
    ),
    "safety_identifier": ({}, {"safety_identifier": "user-7"}),
    "seed": ({}, {"seed": 7}),
    "service_tier": ({}, {"service_tier": "priority"}),
    "stop": ({}, {"stop": ["END"]}),
    "store": ({}, {"store": True}),
    "stream_options": ({"stream": True}, {"stream_options": {"include_usage": True}}),
    "temperature": ({}, {"temperature": 0.5}),
    "tool_choice": ({"tools": [TOOL]}, {"tool_choice": {"type": "function", "function": {"name": "look"}}}),
    "tools": ({}, {"tools": [TOOL]}),
    "top_logprobs": ({"logprobs": True}, {"top_logprobs": 3}),
    "top_p": ({}, {"top_p": 0.5}),
    "user": ({}, {"user": "user-7"}),
    "verbosity": ({}, {"verbosity": "low"}),
    "web_search_options": ({}, {"web_search_options": {"search_context_size": "low"}}),
}
"""By parameter: what must be there too, and the parameter itself with a value that means something."""

MEANT_FOR_US = {"model", "messages", "stream_options"}
"""Always there, or read by the gateway: usage is asked for in every stream, and shown if the client wanted it."""

WORDS: dict[Fate, str] = {
    "mapped": "yes",
    "emulated": "emulated",
    "dropped": "left out, with a notice",
    "refused": "refused",
    "lost": "LOST",
}


def parameters() -> list[str]:
    return sorted(typing.get_type_hints(CompletionCreateParamsBase))


def apis() -> list[str]:
    """Every API that has a translator."""
    found = []
    for module in pkgutil.iter_modules(proxy.providers.__path__):
        try:
            load(module.name)
        except LookupError:
            continue
        found.append(module.name)
    return found


def fate(api: str, parameter: str) -> Fate:
    """What becomes of the parameter. `lost`: nothing in the request tells of it, and nobody is told."""
    if parameter in MEANT_FOR_US:
        return "mapped"
    needed, probe = PROBES[parameter]
    translator = load(api)
    try:
        without, _ = _translated(translator, api, needed)
        body, notices = _translated(translator, api, needed | probe)
    except CallerError as refusal:
        if (refusal.param or "").partition("[")[0].partition(".")[0] not in {*needed, *probe}:
            raise AssertionError(f"{api} refuses {parameter} without naming it: {refusal.message}") from refusal
        return "refused"
    told = [notice for notice in notices if notice.param.partition("[")[0].partition(".")[0] in probe]
    if told:
        return "dropped" if any(notice.lost for notice in told) and body == without else "emulated"
    return "mapped" if body != without else "lost"


def table() -> str:
    names = apis()
    lines = [
        "# What becomes of each parameter",
        "",
        "Generated by `python -m tests.compatibility`, which sends each parameter of OpenAI's chat completions through",
        "each translator. `yes`: it arrives in the API's own form. `emulated`: done another way, or within the API's",
        "limits, and said in `x-strata-warning`. `left out, with a notice`: the API has nothing like it;",
        "`x-strata-warning` says so, `strata.notices` too if the request asks for it, and a strict request is refused.",
        "`refused`: an answer without it would be another answer, so the request gets a 400 that names it.",
        "",
        f"| parameter | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
    ]
    for parameter in parameters():
        lines.append(f"| `{parameter}` | {' | '.join(WORDS[fate(name, parameter)] for name in names)} |")
    return "\n".join(lines) + "\n"


def _translated(translator: Translator, api: str, fields: Json) -> tuple[Any, tuple[Notice, ...]]:
    chat = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], **fields}
    target = Target(MODELS.get(api, "m"), options=OPTIONS, max_output_tokens=8192)
    request = translator.encode_request(chat, target)
    return (request.path, dict(request.headers), request.body), request.notices


if __name__ == "__main__":
    TARGET.write_text(table())
    sys.stdout.write(f"{TARGET}\n")
