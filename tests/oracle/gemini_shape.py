"""
Google's generateContent, as AI Studio and Vertex serve it: answers, streams, errors in its words, and how a request is
understood; what is refused is in `gemini_refusals`. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from tests.oracle import mind
from tests.oracle.bill import Item
from tests.oracle.gemini_refusals import refuse, signs
from tests.oracle.script import Wanted

__all__ = ["END", "PATH", "REASONS_APART", "asked", "error", "error_event", "events", "refuse", "said", "whole"]

Json = dict[str, Any]

PATH = re.compile(r"/(?:models/|endpoints/)(?P<model>[^/:]+):(?P<method>generateContent|streamGenerateContent)$")
REASONS_APART = True

STATUSES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    504: "DEADLINE_EXCEEDED",
}
SIGNATURE = "c2lnbmVkIGJ5IEdvb2dsZQ=="
END = b""
"""A stream ends with its body; its last event is the one with the finishReason."""


def said(path: str, body: Json) -> Json:
    """The request in the words that `script.read` knows. A function's result is a message of its own, as at OpenAI."""
    found = PATH.search(path.partition("?")[0])
    assert found is not None
    messages = []
    for turn in body.get("contents") or []:
        parts = turn.get("parts") or []
        results = [{"type": "text", "text": _text(part)} for part in parts if "functionResponse" in part]
        media = [more for part in parts for more in part.get("functionResponse", {}).get("parts", [])]
        if results:
            messages.append({"role": "tool", "content": results + _content(media)})
        if others := _content([part for part in parts if "functionResponse" not in part]):
            messages.append({"role": turn.get("role", "user"), "content": others})
    return {
        "model": found["model"],
        "stream": found["method"].startswith("stream"),
        "system": _content(body.get("systemInstruction", {}).get("parts", [])),
        "messages": messages,
        "tools": _functions(body),
    }


def _text(part: Json) -> str:
    return msgspec.json.encode(part["functionResponse"]["response"]).decode()


def _content(parts: list[Json]) -> list[Json]:
    content = []
    for part in parts:
        media = part.get("inlineData") or part.get("fileData")
        if media:
            content.append({"type": media.get("mimeType", "application/octet-stream")})
        elif "text" in part:
            content.append({"type": "text", "text": part["text"]})
    return content


def _functions(body: Json) -> list[Json]:
    return [function for tool in body.get("tools") or [] for function in tool.get("functionDeclarations", [])]


def asked(body: Json) -> mind.Asked:
    calling = body.get("toolConfig", {}).get("functionCallingConfig", {})
    allowed = calling.get("allowedFunctionNames") or []
    mode = calling.get("mode", "AUTO").lower()
    return mind.Asked(
        [
            (function["name"], function.get("parametersJsonSchema") or _plain(function.get("parameters") or {}))
            for function in _functions(body)
            if not allowed or function["name"] in allowed
        ],
        "auto" if mode == "validated" else mode,
        _schema(body),
        any("functionResponse" in part for part in body["contents"][-1]["parts"]),
    )


def _schema(body: Json) -> Json | None:
    """Of the answer: held to it, or told in words to a model that has tools."""
    config = body.get("generationConfig", {})
    if "responseJsonSchema" in config:
        return dict(config["responseJsonSchema"])
    if "responseSchema" in config:
        return dict(_plain(config["responseSchema"]))
    system = "\n".join(part.get("text", "") for part in body.get("systemInstruction", {}).get("parts", []))
    _, told, schema = system.partition("JSON schema: ")
    if told:
        return dict(json.JSONDecoder().raw_decode(schema)[0])
    return {} if config.get("responseMimeType") == "application/json" or "JSON object" in system else None


def _plain(schema: Any) -> Any:
    """A schema of OpenAPI's, with its types in JSON Schema's small letters."""
    if isinstance(schema, list):
        return [_plain(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    kind = schema.get("type")
    return {name: _plain(inner) for name, inner in schema.items()} | (
        {"type": kind.lower()} if isinstance(kind, str) else {}
    )


def error(status: int, message: str | None, code: str | None) -> bytes:
    kind = code or STATUSES.get(status, "UNAVAILABLE" if status >= 500 else "INVALID_ARGUMENT")
    text = message or f"The oracle was told to answer {status}."
    return msgspec.json.encode({"error": {"code": status, "message": text, "status": kind}})


def error_event(message: str | None, code: str | None) -> bytes:
    return b"data: " + error(503, message or "The model is overloaded.", code) + b"\r\n\r\n"


def usage(item: Item, tokens: int) -> Json:
    """After so many tokens of the answer: thoughts come first and stand beside the rest, cached ones are inside."""
    prompt = item.input_tokens + item.cache_read_tokens + item.cache_write_5m_tokens + item.cache_write_1h_tokens
    thoughts = min(tokens, item.reasoning_tokens)
    counted = {"promptTokenCount": prompt, "totalTokenCount": prompt + tokens}
    counted |= {"candidatesTokenCount": tokens - thoughts} if tokens > thoughts else {}
    counted |= {"thoughtsTokenCount": thoughts} if thoughts else {}
    cached = item.cache_read_tokens
    return {
        **counted,
        **({"cachedContentTokenCount": cached} if cached else {}),
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": prompt}],
    }


def whole(wanted: Wanted, item: Item) -> bytes:
    parts: list[Json] = []
    if wanted.script.thinking:
        parts.append({"text": "".join(wanted.thoughts()), "thought": True})
    if not wanted.script.tools:
        parts.append({"text": "".join(wanted.words()), **_signature(wanted)})
    parts += _calls(wanted)
    return msgspec.json.encode(_response(wanted, item, parts, item.output_tokens, "STOP"))


def events(wanted: Wanted, item: Item) -> Iterator[tuple[int, bytes]]:
    """Each event, with how many billed output tokens it brings; every one has the usage up to it."""
    parts: list[Json] = [{"text": thought, "thought": True} for thought in wanted.thoughts()]
    parts += _calls(wanted) if wanted.script.tools else [{"text": word} for word in wanted.words()]
    for number, part in enumerate(parts, start=1):
        yield 1, _event(_response(wanted, item, [part], number))
    last = {"text": "", **({} if wanted.script.tools else _signature(wanted))}
    response = _response(wanted, item, [last], item.output_tokens, "STOP")
    yield 0, _event(response)
    if wanted.script.usage == "twice":
        del response["candidates"]
        yield 0, _event(response)


def _event(response: Json) -> bytes:
    return b"data: " + msgspec.json.encode(response) + b"\r\n\r\n"


def _response(wanted: Wanted, item: Item, parts: list[Json], tokens: int, finish: str | None = None) -> Json:
    candidate: Json = {"content": {"parts": parts, "role": "model"}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    response: Json = {"candidates": [candidate], "modelVersion": wanted.model}
    if wanted.script.usage != "none":
        response["usageMetadata"] = usage(item, tokens)
    return {**response, "responseId": f"{item.nonce or 'oracle'}-{item.ordinal}"}


def _calls(wanted: Wanted) -> list[Json]:
    """Without ids, but for those of models that sign; of calls side by side the first is signed."""
    parts: list[Json] = []
    for number, (name, arguments) in enumerate(wanted.calls()):
        call: Json = {"name": name, "args": arguments}
        if signs(wanted.model):
            call["id"] = f"call-{number}"
        parts.append({"functionCall": call, **({} if number else _signature(wanted))})
    return parts


def _signature(wanted: Wanted) -> Json:
    return {"thoughtSignature": SIGNATURE} if signs(wanted.model) else {}
