"""
OpenAI's own chat API, and the many that speak it: almost nothing to translate.

Requests keep every field, known or not. Where the client speaks this API too, answers pass through as bytes and nothing
here reads them; the decoders serve the other dialects, and undo what "compatible" providers do differently.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from proxy.errors import StreamTruncated, UpstreamError
from proxy.providers import ChatRequest, Chunk, Completion, Event, Json, Target, UpstreamRequest, quirks
from proxy.providers.chunks import FINISH_REASONS, ChunkWriter, settled_finish
from proxy.providers.embeddings import decode_list
from proxy.providers.faults import bad_response, stream_error, upstream_error
from proxy.providers.usage import openai_usage

GATEWAY_FIELDS = frozenset({"strata"})
"""Fields of a request that speak to the gateway and go no further."""

NATIVE_FINISH = {
    "eos": "stop", "end_turn": "stop", "stop_sequence": "stop", "model_length": "length", "max_tokens": "length",
    "model_context_window_exceeded": "length", "insufficient_system_resource": "length", "network_error": "length",
    "tool_use": "tool_calls", "sensitive": "content_filter", "refusal": "content_filter",
}  # fmt: skip
"""
Finish reasons that are not OpenAI's, of providers that otherwise are: Together, DeepSeek, z.ai, and those who serve
Claude. What was cut short is `length`, whoever cut it. What is not here is `stop`.
"""

_ENVELOPE = frozenset({"id", "object", "created", "choices", "usage"})
_NEVER_BESIDE = _ENVELOPE | {"model", "service_tier", "system_fingerprint", "x_groq", "obfuscation", "p"}
"""Fields of a chunk that are the envelope's, have a place of their own, or are padding."""

_NO_EXTRA = frozenset({"index", "delta", "message", "text", "finish_reason", "native_finish_reason"})
"""Fields of a choice that have a place of their own; the others stand beside its delta."""
_NOTHING: tuple[Any, ...] = (None, "", [], {})


class Translator:
    framing: Literal["sse", "aws"] = "sse"
    same_dialect = True
    auth = "bearer"

    def list_models(self, target: Target) -> UpstreamRequest:
        return UpstreamRequest(str(target.quirks.get("key_check", "/models")), {})

    def encode_request(self, chat: ChatRequest, target: Target) -> UpstreamRequest:
        """The same body for this model. Usage is always asked for; whether the client sees it is decided later."""
        body = {**chat, "model": target.model}
        for name in GATEWAY_FIELDS & body.keys():
            del body[name]
        if not target.quirks.get("stream_options", True):
            body.pop("stream_options", None)
        elif body.get("stream"):
            body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
        body, notices = quirks.apply(body, target.quirks)
        return UpstreamRequest(path="/chat/completions", body=body, notices=tuple(notices))

    def decode_response(self, body: bytes) -> Completion:
        native = _decode(body)
        if native.get("error"):
            raise stream_error(native)
        try:
            completion: Completion = {"choices": [_choice(choice) for choice in native["choices"]]}
            if isinstance(native.get("usage"), dict):
                completion["usage"] = openai_usage(native["usage"])
        except (KeyError, TypeError, AttributeError) as error:
            raise bad_response("The provider sent an answer that is not a chat completion.") from error
        beside = {name: value for name, value in native.items() if name not in _ENVELOPE}
        return completion | beside | _tier(native)

    def stream_decoder(self) -> StreamDecoder:
        return StreamDecoder()

    def encode_embeddings(self, asked: Json, target: Target) -> UpstreamRequest:
        body = {name: value for name, value in asked.items() if name not in GATEWAY_FIELDS}
        return UpstreamRequest(path="/embeddings", body={**body, "model": target.model})

    def decode_embeddings(self, body: bytes) -> Json:
        return decode_list(body)

    def decode_error(self, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
        return upstream_error(status, headers, body)


class StreamDecoder:
    """
    ( chunk )*  [DONE]?

    A chunk has `choices` (none at first on Azure; none at last, beside `usage`), or an `error`, and then nothing
    follows; so it is with an event named `error`. Providers repeat the role on every chunk, put usage on the last
    choice or on each, where the last word counts, end twice, call reasoning by two names, and number tool calls as they
    please.
    """

    def __init__(self) -> None:
        self._out = ChunkWriter()
        self._done = False
        self._beside: Json = {}
        self._unsaid: Json = {}
        """Fields of chunks that no client knows yet: citations, the provider behind a router, timings."""
        self._calls = 0
        self._slots: dict[tuple[int, int | None], tuple[int, str | None]] = {}
        """By choice and the provider's index: the call that it means now, as our key and its id."""

    @property
    def usage_so_far(self) -> Json | None:
        """What the provider has reported up to here, in OpenAI's shape; all there is when a stream is cut."""
        return self._out.usage_so_far

    def feed(self, event: Event) -> list[Chunk]:
        data = event.data.strip()
        if self._done or not data:
            return []
        if data == b"[DONE]":
            return self._end()
        native = _decode(data)
        if event.name == "error" or native.get("error"):
            raise stream_error(native)
        try:
            return self._chunks(native)
        except (KeyError, TypeError, AttributeError) as error:
            raise bad_response("The provider sent a malformed chunk.") from error

    def close(self) -> list[Chunk]:
        """Some never say [DONE] (Cerebras); then a finish for each choice and the usage prove that all is there."""
        if self._done:
            return []
        if self._out.finished and self._out.usage_so_far is not None:
            return self._end()
        raise StreamTruncated

    def _chunks(self, native: Json) -> list[Chunk]:
        usage = native.get("usage") or _of(native, "x_groq").get("usage")
        if isinstance(usage, dict):
            self._out.usage(openai_usage(usage))
        chunks: list[Chunk] = []
        for choice in native.get("choices") or ():
            chunks += self._choice(choice)
        tier = _tier(native)
        chunks = [{**chunk, **tier} for chunk in chunks] if tier else chunks
        return self._say_beside(native, chunks)

    def _say_beside(self, native: Json, chunks: list[Chunk]) -> list[Chunk]:
        """Says what stands beside the choices once, and again only when it changes: some repeat it on every chunk."""
        for name, value in native.items():
            if name not in _NEVER_BESIDE and value is not None and self._beside.get(name) != value:
                self._beside[name] = self._unsaid[name] = value
        if not self._unsaid or not chunks:
            return chunks
        first, self._unsaid = {**chunks[0], **self._unsaid}, {}
        return [first, *chunks[1:]]

    def _end(self) -> list[Chunk]:
        if not self._out.begun:
            raise StreamTruncated("The provider ended the stream without an answer.")
        self._done = True
        return self._say_beside({}, self._out.end())

    def _choice(self, native: Json) -> list[Chunk]:
        index = native.get("index") or 0
        _refuse_broken(native)
        delta = _renamed_reasoning(_flat(_of(native, "delta")))
        calls = delta.pop("tool_calls", None) or ()
        delta = {name: value for name, value in delta.items() if name != "role" and value not in (None, "", [])}
        extra = {name: value for name, value in native.items() if name not in _NO_EXTRA and value not in _NOTHING}
        ends = bool(native.get("finish_reason"))
        chunks = self._out.delta(delta, choice=index, extra=extra) if delta or (extra and not ends) else []
        for call in calls:
            chunks += self._call(call, index)
        if ends:
            self._out.finish({**_finish(native), **({} if delta else extra)}, choice=index)
        return chunks

    def _call(self, native: Json, choice: int) -> list[Chunk]:
        function = _of(native, "function")
        arguments = _text(function.get("arguments"))
        key = self._key(native, choice)
        if self._out.knows(key, choice=choice):
            return self._out.arguments(key, arguments, choice=choice)
        extra = {field: value for field, value in native.items() if field not in ("index", "id", "type", "function")}
        name = function.get("name") or ""
        return self._out.tool_call(key, id=native.get("id"), name=name, arguments=arguments, choice=choice, extra=extra)

    def _key(self, native: Json, choice: int) -> int:
        """By index, unless the provider counts every call as 0 (another id says so) or does not count (a name does)."""
        index, id = native.get("index"), native.get("id")
        known = self._slots.get((choice, index))
        begins = index is None and not id and _of(native, "function").get("name")
        if known is None or begins or (id and known[1] and id != known[1]):
            known = self._slots[choice, index] = (self._calls, id)
            self._calls += 1
        return known[0]


def _choice(native: Json) -> Json:
    _refuse_broken(native)
    message = _renamed_reasoning(_flat(_of(native, "message")))
    message = {"role": "assistant", "content": None, **message}
    if isinstance(message["content"], dict):
        message["content"] = _text(message["content"])
    if message.get("tool_calls"):
        message["tool_calls"] = [_whole_call(call) for call in message["tool_calls"]]
    elif "tool_calls" in message:
        del message["tool_calls"]
    finish = _finish(native) if native.get("finish_reason") else {"finish_reason": "stop"}
    finish["finish_reason"] = settled_finish(finish["finish_reason"], has_calls=bool(message.get("tool_calls")))
    return {**native, "index": native.get("index") or 0, "message": message, **finish}


def _whole_call(native: Json) -> Json:
    call = {"type": "function", **native}
    if isinstance(call.get("function"), dict):
        function = call["function"]
        call["function"] = {**function, "arguments": _text(function.get("arguments")) or "{}"}
    return call


def _refuse_broken(choice: Json) -> None:
    """`error` is no end of an answer, and nothing else tells that it broke off (OpenRouter, Mistral)."""
    if choice.get("finish_reason") == "error":
        if choice.get("error"):
            raise stream_error(choice)
        raise bad_response("The provider broke off its answer.")


def _flat(message: Json) -> Json:
    """
    Content as text where it came as a list of text and reasoning, as Databricks has it of models that reason. A list of
    anything else stays.
    docs.databricks.com/aws/en/machine-learning/model-serving/query-reason-models
    """
    content = message.get("content")
    if not isinstance(content, list) or any(_of_kind(part) not in ("text", "reasoning") for part in content):
        return message
    text = "".join(part.get("text") or "" for part in content if part["type"] == "text")
    said = [one for part in content if part["type"] == "reasoning" for one in part.get("summary") or ()]
    thoughts = "".join(one.get("text") or "" for one in said)
    signed = [
        {"type": "reasoning.text", "text": one.get("text") or "", "signature": one["signature"]}
        for one in said
        if one.get("signature")
    ]
    extras = {"reasoning_content": thoughts, "reasoning_details": signed}
    return {**message, "content": text or None, **{name: value for name, value in extras.items() if value}}


def _of_kind(part: Any) -> Any:
    return part.get("type") if isinstance(part, dict) else None


def _tier(native: Json) -> Json:
    """The service tier, by OpenAI's name for the one that needs none (Groq: on_demand)."""
    tier = native.get("service_tier")
    if tier is None:
        return {}
    return {"service_tier": "default" if tier in ("on_demand", "standard") else tier}


def _finish(native: Json) -> Json:
    reason = native["finish_reason"]
    own = native.get("native_finish_reason")
    if reason not in FINISH_REASONS:
        reason, own = NATIVE_FINISH.get(reason, "stop"), own or reason
    return {"finish_reason": reason, "native_finish_reason": own} if own else {"finish_reason": reason}


def _renamed_reasoning(message: Json) -> Json:
    """`reasoning` (Ollama, Groq, OpenRouter) is `reasoning_content` (DeepSeek, xAI) here; some send both."""
    message = dict(message)
    reasoning = message.pop("reasoning", None)
    if isinstance(reasoning, str) and reasoning and not message.get("reasoning_content"):
        message["reasoning_content"] = reasoning
    return message


def _decode(body: bytes) -> Json:
    try:
        native = msgspec.json.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise bad_response("The provider sent something that is not JSON.") from error
    if not isinstance(native, dict):
        raise bad_response("The provider sent JSON that is not an object.")
    return native


def _of(native: Json, name: str) -> Json:
    value = native.get(name)
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    """Arguments are a string; some send the object itself."""
    if isinstance(value, str):
        return value
    return "" if value is None else msgspec.json.encode(value).decode()
