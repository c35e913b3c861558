"""
Whoever may send a megabyte may fill it with ten thousand of one thing: translating takes time by their number, not by
its square, because it happens on the loop that serves everybody.
"""

from __future__ import annotations

import time
from typing import Any

import pytest

from proxy.providers import Json, Target, load
from tests.compatibility import MODELS, OPTIONS

MANY = range(10_000)
SECONDS = 3.0
"""Hundreds of times what it takes; a square takes longer."""

USER = {"role": "user", "content": "Hi"}
PDF = {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AA"}}
MARKED = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
CALLS: list[Json] = [{"id": str(n), "type": "function", "function": {"name": "look", "arguments": "{}"}} for n in MANY]
SIGNED = [
    {"type": "reasoning.encrypted", "data": "a", "format": "google-gemini-v1", "index": n, "id": "z"} for n in MANY
]
BEGUN = [{"type": "server_tool_use", "id": str(n)} for n in MANY]
FULL: dict[str, Json] = {
    "parameters that nobody knows": {f"parameter_{n}": 1 for n in MANY},
    "fields of a message": {"messages": [USER | {f"field_{n}": 1 for n in MANY}]},
    "instructions in the middle": {"messages": [USER, *({"role": "system", "content": "x"} for _ in MANY), USER]},
    "documents of one name": {"messages": [{"role": "user", "content": [PDF] * len(MANY)}]},
    "cache marks": {"messages": [{"role": "user", "content": [dict(MARKED) for _ in MANY]}]},
    "calls and signatures": {
        "messages": [USER, {"role": "assistant", "tool_calls": CALLS, "reasoning_details": SIGNED}],
        "tools": [{"type": "function", "function": {"name": "look"}}],
    },
    "native blocks": {"messages": [USER, {"role": "assistant", "native_blocks": BEGUN}, USER]},
}


@pytest.mark.parametrize("what", FULL)
@pytest.mark.parametrize("api", [api for api in MODELS if api != "cohere"])
def test_ten_thousand_of_one_thing_do_not_hold_up_everybody(api: str, what: str) -> None:
    chat: dict[str, Any] = {"model": "m", "messages": [USER], "max_tokens": 9, **FULL[what]}
    began = time.perf_counter()
    load(api).encode_request(chat, Target(MODELS[api], options=OPTIONS))
    assert time.perf_counter() - began < SECONDS
