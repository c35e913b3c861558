"""
OpenAI chat completions as clients speak them: a body in, `ChatRequest` out; completions and chunks in, bytes out.

The one place that stamps the envelope (`id`, `object`, `created`, `model`), the same on every chunk of a stream.
A tool call without an id gets one here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from proxy.dialects.bodies import decode_object
from proxy.dialects.chat_shape import ChatShape
from proxy.errors import CallerError
from proxy.providers import ChatRequest, Chunk, Completion, Json, Notice

_encode = msgspec.json.Encoder().encode

DONE = b"data: [DONE]\n\n"
CHUNK = "chat.completion.chunk"

CONTROL_FIELDS = frozenset(
    {"api_base", "base_url", "api_key", "custom_llm_provider", "mock_response", "api_version", "extra_headers"}
)
"""What other gateways let a body decide. Here only the operator does, so they are refused rather than forwarded."""

STORED_FIELDS = ("model", "user", "safety_identifier", "prompt_cache_key", "metadata")
"""What may end up in a table, where Postgres takes no NUL."""


def decode(body: bytes) -> ChatRequest:
    """The request in `body`, validated. Raises CallerError with `param`, before anything is spent."""
    return decode_as(body, ChatShape)


def decode_as(body: bytes, shape: type[msgspec.Struct]) -> Json:
    """A request of another shape, held to the same rules."""
    chat = decode_object(body)
    try:
        msgspec.convert(chat, shape)
    except msgspec.ValidationError as error:
        raise _explain(str(error)) from None
    if not CONTROL_FIELDS.isdisjoint(chat):
        name = sorted(CONTROL_FIELDS & chat.keys())[0]
        raise CallerError(
            f"{name} is not for a request body to set: where requests go is configured on the gateway.",
            code="unsupported_field",
            param=name,
        )
    if body.find(b"\\u0000") >= 0:
        _refuse_stored_nul(chat)
    return chat


def wants_usage(chat: ChatRequest) -> bool:
    """Whether the client asked for the usage chunk of a stream."""
    options = chat.get("stream_options")
    return bool(options and options.get("include_usage"))


def stamp_completion(
    completion: Completion, *, id: str, created: int, model: str, cost: float | None, notices: Sequence[Notice]
) -> bytes:
    """A whole answer as bytes. `cost` in dollars; None: the price is unknown, and `usage.cost` is null."""
    stamped = {
        "id": id,
        "object": "chat.completion",
        "created": created,
        "model": completion.get("model", model),
        **{name: value for name, value in completion.items() if name != "model"},
    }
    for choice in stamped.get("choices", ()):
        name_calls(choice.get("message", {}).get("tool_calls"), id)
    if stamped.get("usage") is not None:
        stamped["usage"] = {**stamped["usage"], "cost": cost}
    if notices:
        stamped["strata"] = {"notices": notices}
    return _encode(stamped)


class Envelope:
    """Stamps the chunks of one stream. Its encoded head is made once."""

    def __init__(self, *, id: str, created: int, model: str) -> None:
        self._id = id
        self._head = {"id": id, "object": CHUNK, "created": created, "model": model}

    def encode(self, chunk: Chunk) -> bytes:
        """One chunk as an SSE event."""
        for choice in chunk["choices"]:
            name_calls(choice["delta"].get("tool_calls"), self._id)
        return b"data: " + _encode({**self._head, **chunk}) + b"\n\n"

    def mend(self, chunk: dict[str, Any]) -> bytes:
        """A provider's own chunk with what it lacks: fields that are empty on it, the delta of a choice."""
        for choice in chunk.get("choices") or ():
            choice["delta"] = choice.get("delta") or {}
        own = {name: value for name, value in chunk.items() if value or name not in self._head}
        return b"data: " + _encode({**self._head, **own, "object": CHUNK}) + b"\n\n"

    def usage(self, usage: dict[str, Any], cost: float | None) -> bytes:
        """The usage chunk: `choices` empty, usage with its cost."""
        return self.encode({"choices": [], "usage": {**usage, "cost": cost}})

    def notices(self, notices: Sequence[Notice]) -> bytes:
        """A chunk without choices that says what translation changed, for a client that asked."""
        return self.encode({"choices": [], "strata": {"notices": notices}})


def encode_error(error: dict[str, object]) -> bytes:
    """A failed stream: OpenAI's SDKs raise on this event; no [DONE] follows, so half an answer never looks whole."""
    return b"data: " + _encode(error) + b"\n\n"


def name_calls(calls: list[dict[str, Any]] | None, id: str) -> None:
    """Gives an id to each call that has none, in place; the same one however often it is asked."""
    for position, call in enumerate(calls or ()):
        # a fragment that only continues a call carries neither name nor id
        if not call.get("id") and call.get("function", {}).get("name"):
            call["id"] = f"call_{id.removeprefix('chatcmpl-')}_{call.get('index', position)}"


def _refuse_stored_nul(chat: ChatRequest) -> None:
    for name in STORED_FIELDS:
        if name in chat and b"\\u0000" in _encode(chat[name]):
            raise CallerError(
                f"{name} holds a NUL character, which cannot be stored.", code="invalid_character", param=name
            )
    for position, tool in enumerate(chat.get("tools") or ()):
        if "\0" in (tool.get("function") or {}).get("name", ""):
            param = f"tools[{position}].function.name"
            raise CallerError(f"{param} holds a NUL character.", code="invalid_character", param=param)


_EXPECTED = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<path>[^`]*)`)?$", re.DOTALL)
_TYPES = re.compile(r"\b(int|float|str|bool|array|object)\b")
_WORDS = {
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "bool": "a boolean",
    "array": "an array",
    "object": "an object",
}


def _explain(text: str) -> CallerError:
    """msgspec's `Expected …, got … - at `$.path`` in OpenAI's terms: a sentence, and the path as `param`."""
    found = _EXPECTED.match(text)
    what, path = (found["what"], found["path"]) if found else (text, None)
    missing = re.search(r"missing required field `(\w+)`", what)
    if missing:
        path = f"{path}.{missing[1]}" if path else missing[1]
        return CallerError(f"{path} is missing.", code="missing_required_parameter", param=path)
    what = what.replace("`", "").replace(" | null", "").replace(" | ", " or ")
    what = _TYPES.sub(lambda found: _WORDS[found[1]], what)
    what = what.replace("Expected ", "must be ").replace(", got ", ", not ")
    what = what.replace("Invalid enum value ", "does not know ")
    where = path or "the body"
    return CallerError(f"{where} {what}."[:500], code="invalid_value", param=path or None)
