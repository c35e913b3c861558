"""What a stranger may send, as data: for each body, field value, framing and target what is wrong with it."""

from __future__ import annotations

import json
from typing import Any

MESSAGES = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> bytes:
    return json.dumps({"model": "gpt", "messages": MESSAGES, **fields}).encode()


BODIES: dict[str, tuple[bytes, str]] = {
    "not json": (b"hello", "invalid_json"),
    "empty": (b"", "invalid_json"),
    "blank": (b"  \n", "invalid_json"),
    "null": (b"null", "invalid_json"),
    "array": (b"[]", "invalid_json"),
    "string": (b'"text"', "invalid_json"),
    "number": (b"7", "invalid_json"),
    "cut": (chat()[:-1], "invalid_json"),
    "more behind": (chat() + b"{}", "invalid_json"),
    "single quotes": (b"{'model': 'gpt'}", "invalid_json"),
    "comment": (b'{"model": "gpt" /* x */}', "invalid_json"),
    "trailing comma": (b'{"model": "gpt",}', "invalid_json"),
    "NaN": (chat(temperature=float("nan")), "invalid_json"),
    "Infinity": (chat(temperature=float("inf")), "invalid_json"),
    "minus Infinity": (chat(temperature=float("-inf")), "invalid_json"),
    "10,000 arrays": (b"[" * 10_000 + b"]" * 10_000, "json_too_deep"),
    "10,000 objects": (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "json_too_deep"),
    "10,000 open": (b"[" * 10_000, "json_too_deep"),
    "deep metadata": (b'{"model":"gpt","metadata":' + b"[" * 500 + b"]" * 500 + b"}", "json_too_deep"),
    "65 levels": (b'{"a":' * 65 + b"1" + b"}" * 65, "json_too_deep"),
    "lone high surrogate": (rb'{"model":"gpt","messages":[{"role":"user","content":"\ud800"}]}', "invalid_unicode"),
    "lone low surrogate": (rb'{"model":"gpt","messages":[{"role":"user","content":"\udfff x"}]}', "invalid_unicode"),
    "surrogate in a key": (rb'{"model":"gpt","\ud800":1}', "invalid_unicode"),
    "invalid UTF-8": (b'{"model":"gpt\xff"}', "invalid_unicode"),
    "overlong UTF-8": (b'{"model":"gpt\xc0\xaf"}', "invalid_unicode"),
    "UTF-16": (chat().decode().encode("utf-16"), ""),
    "byte order mark": (b"\xef\xbb\xbf" + chat(), "invalid_json"),
    "raw NUL": (b'{"model":"g\x00pt"}', "invalid_json"),
    "raw newline": (b'{"model":"g\npt"}', "invalid_json"),
    "model twice": (b'{"model":"gpt","model":"claude","messages":[{"role":"user","content":"x"}]}', "duplicate_key"),
    "limit twice": (chat()[:-1] + b',"max_tokens":1,"max_tokens":2}', "duplicate_key"),
    "escaped twin": (chat()[:-1] + rb',"user":"a","us\u0065r":"b"}', "duplicate_key"),
    "twice within": (b'{"model":"gpt","messages":[{"role":"user","role":"system","content":"x"}]}', "duplicate_key"),
    "1 MB of braces": (b"{" * 1_000_000, ""),
}


WRONG: list[Any] = [None, True, 0, -1, 1.5, 2**63, "", "text", "5", [], [1], [None], {}, {"a": 1}, [[]], [{}]]

FIELDS: dict[str, list[Any]] = {
    "model": [None, True, 5, 1.5, "", [], {}, "x" * 1_000_000, "gpt ", "GPT", "ɡpt", "../gpt", "gpt\n", "gpt\x00"],
    "messages": [None, True, 5, "hi", {}, [], [None], ["hi"], [[]], [{}], [{"role": "user", "content": 5}],
                 [{"role": "nobody", "content": "x"}], [{"role": 5, "content": "x"}], [{"content": "x"}],
                 [{"role": "user", "content": [5]}], [{"role": "user", "content": [{"type": 5}]}],
                 [{"role": "user", "content": [{"type": "text", "text": 5}]}],
                 [{"role": "user", "content": [{"type": "image_url", "image_url": 5}]}],
                 [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": 5}}]}],
                 [{"role": "assistant", "tool_calls": 5}], [{"role": "assistant", "tool_calls": [5]}],
                 [{"role": "assistant", "tool_calls": [{"id": 5, "function": {"name": "x"}}]}],
                 [{"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": 5}}]}],
                 [{"role": "tool", "tool_call_id": 5, "content": "x"}]],
    "max_tokens": [True, 0, -1, 1.5, "5", "５", " 1_000 ", 2**31, 2**63, 2**64, [], {}],
    "max_completion_tokens": [True, 0, -1, 1.5, "5", 2**63, [], {}],
    "best_of": [True, 0, -1, 129, 10**6, 1.5, "1", [], {}],
    "n": [True, 0, -1, 129, 10**6, 1.5, "1", [], {}],
    "temperature": [True, -0.1, 2.1, "1", [], {}, 10**300],
    "top_p": [True, -0.1, 1.1, "1", [], {}],
    "presence_penalty": [True, -2.1, 2.1, "0", [], {}],
    "frequency_penalty": [True, -2.1, 2.1, "0", [], {}],
    "logit_bias": [True, 5, "x", [], {"a": "x"}, {"a": None}, {"a": []}],
    "logprobs": [5, "true", [], {}],
    "top_logprobs": [True, -1, 21, 1.5, "1", [], {}],
    "stop": [True, 5, {}, [5], [None], [[]]],
    "stream": [5, 0, 1, "true", [], {}],
    "stream_options": [True, 5, "x", [], {"include_usage": "yes"}, {"include_usage": 1}],
    "tools": [True, 5, "x", {}, [5], [None], ["x"], [{}], [{"type": 5}], [{"type": "function", "function": 5}],
              [{"type": "function", "function": {}}], [{"type": "function", "function": {"name": 5}}],
              [{"type": "function", "function": {"name": ""}}],
              [{"type": "function", "function": {"name": "x", "parameters": 5}}]],
    "tool_choice": [True, 5, [], {"function": "x"}, {"function": {"name": []}}, {"allowed_tools": {"tools": ["x"]}}],
    "parallel_tool_calls": [5, "true", [], {}],
    "response_format": [True, 5, "json", [], {}, {"type": 5}, {"type": "json_schema", "json_schema": 5},
                        {"type": "json_schema", "json_schema": {}},
                        {"type": "json_schema", "json_schema": {"name": "x", "schema": 5}}],
    "metadata": [True, 5, "x", [], {"a": 5}, {"a": None}, {"a": {}}, {str(n): "x" for n in range(65)}],
    "user": [True, 5, [], {}],
    "seed": [True, 1.5, "5", 2**63, [], {}],
    "service_tier": [True, 5, [], {}],
    "reasoning_effort": [True, 5, [], {}],
    "store": [5, "true", [], {}],
    "modalities": [True, 5, "text", {}, [5]],
    "audio": [True, 5, "x", []],
    "prediction": [True, 5, "x", []],
    "verbosity": [True, 5, [], {}],
    "web_search_options": [True, 5, "x", [], {"user_location": "x"}, {"user_location": {"approximate": "x"}}],
    "functions": [True, 5, "x", {}, [5], [{}], [{"name": 5}]],
    "function_call": [True, 5, []],
    "safety_identifier": [True, 5, [], {}],
    "prompt_cache_key": [True, 5, [], {}],
}  # fmt: skip


SMUGGLED = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"

FRAMINGS: dict[str, tuple[list[str], bytes]] = {
    "length and chunked": (["content-length: 5", "transfer-encoding: chunked"], b"0\r\n\r\n" + SMUGGLED),
    "chunked and length": (["transfer-encoding: chunked", "content-length: 5"], b"0\r\n\r\n" + SMUGGLED),
    "two lengths": (["content-length: 3", "content-length: 30"], b"abc" + SMUGGLED),
    "a list of lengths": (["content-length: 3, 3"], b"abc" + SMUGGLED),
    "plus": (["content-length: +3"], b"abc" + SMUGGLED),
    "minus": (["content-length: -1"], SMUGGLED),
    "hexadecimal": (["content-length: 0x3"], b"abc" + SMUGGLED),
    "2^64": ([f"content-length: {2**64}"], b"abc"),
    "gzip, chunked": (["transfer-encoding: gzip, chunked"], b"0\r\n\r\n" + SMUGGLED),
    "chunked, identity": (["transfer-encoding: chunked, identity"], b"0\r\n\r\n" + SMUGGLED),
    "xchunked": (["transfer-encoding: xchunked"], b"0\r\n\r\n" + SMUGGLED),
    "space before the colon": (["transfer-encoding : chunked"], b"0\r\n\r\n" + SMUGGLED),
    "chunked twice": (["transfer-encoding: chunked", "transfer-encoding: chunked"], b"0\r\n\r\n" + SMUGGLED),
    "chunk size 0x3": (["transfer-encoding: chunked"], b"0x3\r\nabc\r\n0\r\n\r\n" + SMUGGLED),
    "chunk size of 17 digits": (["transfer-encoding: chunked"], b"1" * 17 + b"\r\nabc\r\n0\r\n\r\n"),
    "negative chunk": (["transfer-encoding: chunked"], b"-1\r\nabc\r\n0\r\n\r\n" + SMUGGLED),
    "chunk without its end": (["transfer-encoding: chunked"], b"3\r\nabcXX0\r\n\r\n" + SMUGGLED),
    "no name": ([": x"], SMUGGLED),
    "folded": (["x-a: 1", " folded: 2", "content-length: 0"], SMUGGLED),
    "NUL in a value": (["x-a: 1\x00", "content-length: 0"], SMUGGLED),
    "bare CR in a value": (["x-a: 1\rcontent-length: 5", "content-length: 0"], SMUGGLED),
    "two hosts": (["host: evil", "content-length: 0"], SMUGGLED),
}


TARGETS = ["@evil/", "http://evil/v1/chat/completions", "//v1//chat/completions", "/v1/%00", "/v1/chat/completions%00",
           "/v1/../v1/chat/completions", "/v1/%2e%2e/chat/completions", "/v1/%ff", "*", "/v1/chat/completions/",
           "/V1/CHAT/COMPLETIONS", "/v1/chat/completions;x", "/v1\\chat\\completions", "/v1/models/%2e%2e"]  # fmt: skip
