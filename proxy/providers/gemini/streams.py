"""
Gemini's answers as OpenAI chunks, streamed or whole.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import msgspec

from proxy.errors import StreamTruncated
from proxy.providers import Chunk, Event, Json
from proxy.providers.chunks import ChunkWriter
from proxy.providers.faults import bad_response, stream_error
from proxy.providers.gemini.answers import NOT_FINISHED, finish_of, logprobs_of, refused_prompt, usage_of
from proxy.providers.gemini.arguments import Arguments
from proxy.providers.gemini.grounding import annotations_of, searches_of
from proxy.providers.gemini.reasoning import FORMAT

_MALFORMED = (KeyError, TypeError, AttributeError, ValueError, IndexError)


@dataclass(slots=True)
class _Candidate:
    """One of the answers that are being written."""

    index: int
    text: str = ""
    grounding: Json = field(default_factory=dict)
    citations: list[Any] = field(default_factory=list)
    details: int = 0
    """How many entries of `reasoning_details` are whole."""
    thinking: bool = False
    calls: int = 0
    open_call: Arguments | None = None


class StreamDecoder:
    """
    ( candidates | promptFeedback | usageMetadata )+

    Every event is a response of its own, with any of the three; it holds the next parts of each candidate. There is no
    last event: the answer is whole when every candidate has its finishReason, or the prompt has its blockReason. An
    `error` may come in place of any event, and then nothing follows. Usage is cumulative: each mention replaces the one
    before. A call arrives whole, or (`willContinue`) as a name, pieces of arguments, and an empty call that ends it.
    """

    def __init__(self) -> None:
        self._out = ChunkWriter()
        self._candidates: dict[int, _Candidate] = {}
        self._usage: Json = {}
        self.model: str | None = None

    @property
    def usage_so_far(self) -> Json | None:
        """What the provider has reported up to here, in OpenAI's shape; all there is when a stream is cut."""
        with contextlib.suppress(*_MALFORMED):
            self._count()
        return self._out.usage_so_far

    def feed(self, event: Event) -> list[Chunk]:
        return self.read(event.data) if event.data.strip() else []

    def read(self, data: bytes) -> list[Chunk]:
        """One response. Raises UpstreamError if it is an error, or no response."""
        native = _decode(data)
        try:
            return self._response(native)
        except _MALFORMED as error:
            raise bad_response("The provider sent a response that is none of its API's.") from error

    def close(self) -> list[Chunk]:
        if not self._out.finished:
            raise StreamTruncated
        return self.end()

    def end(self) -> list[Chunk]:
        """What is said last: open calls, sources, the finish of each candidate, the usage."""
        try:
            chunks = self._sources()
        except _MALFORMED as error:
            raise bad_response("The provider sent sources that are none.") from error
        return chunks + self._out.end()

    def _count(self) -> None:
        counted = usage_of(self._usage)
        if counted:
            self._out.usage(counted)

    def _sources(self) -> list[Chunk]:
        self._count()
        chunks: list[Chunk] = []
        searches = 0
        for state in self._candidates.values():
            chunks += self._close_call(state)
            annotations = annotations_of(state.grounding, state.citations, state.text)
            if annotations:
                chunks += self._out.delta({"annotations": annotations}, choice=state.index)
            searches += searches_of(state.grounding, self.model)
        usage = self._out.usage_so_far
        if usage is not None and searches:
            self._out.usage({**usage, "server_tool_use": {"web_search_requests": searches}})
        return chunks

    def _response(self, native: Json) -> list[Chunk]:
        if isinstance(native.get("modelVersion"), str):
            self.model = native["modelVersion"]
        # Every event counts anew, and only the last count is ever asked for.
        self._usage |= {name: value for name, value in (native.get("usageMetadata") or {}).items() if value is not None}
        chunks: list[Chunk] = []
        for candidate in native.get("candidates") or ():
            chunks += self._candidate(candidate)
        feedback = native.get("promptFeedback") or {}
        if feedback.get("blockReason") and not self._out.begun:
            self._out.finish(refused_prompt(feedback))
        return chunks

    def _candidate(self, native: Json) -> list[Chunk]:
        index = native.get("index") or 0
        state = self._candidates.get(index)
        if state is None:
            state = self._candidates[index] = _Candidate(index)
        chunks: list[Chunk] = []
        for part in (native.get("content") or {}).get("parts") or ():
            chunks += self._part(state, part)
        logprobs = logprobs_of(native.get("logprobsResult") or {})
        if logprobs:
            chunks += self._out.delta({}, choice=index, extra={"logprobs": logprobs})
        state.grounding |= {name: value for name, value in (native.get("groundingMetadata") or {}).items() if value}
        cited = native.get("citationMetadata") or {}
        state.citations += cited.get("citations") or cited.get("citationSources") or []
        if native.get("finishReason") not in NOT_FINISHED:
            grounding = {"grounding_metadata": state.grounding} if state.grounding else {}
            self._out.finish(finish_of(native) | grounding, choice=index)
        return chunks

    def _part(self, state: _Candidate, part: Json) -> list[Chunk]:
        signature = part.get("thoughtSignature")
        if "functionCall" in part:
            return self._call(state, part["functionCall"], signature)
        if part.get("thought"):
            return self._thought(state, part.get("text"), signature)
        chunks: list[Chunk] = []
        if part.get("text"):
            chunks = self._text(state, part["text"])
        elif "inlineData" in part:
            blob = part["inlineData"]
            image = {"type": "image_url", "image_url": {"url": f"data:{blob['mimeType']};base64,{blob['data']}"}}
            chunks = self._out.delta({"images": [image]}, choice=state.index)
        elif "executableCode" in part:
            code = part["executableCode"]
            chunks = self._text(state, f"\n```{(code.get('language') or '').lower()}\n{code.get('code') or ''}\n```\n")
        elif "codeExecutionResult" in part:
            chunks = self._text(state, f"\n```\n{part['codeExecutionResult'].get('output') or ''}\n```\n")
        if signature and part.keys() <= {"text", "thoughtSignature"}:
            # others sign steps of Google's own tools, which do not go back
            chunks += self._detail(state, {"type": "reasoning.encrypted", "data": signature})
        return chunks

    def _text(self, state: _Candidate, text: str) -> list[Chunk]:
        state.text += text
        self._end_thought(state)
        return self._out.delta({"content": text}, choice=state.index)

    def _thought(self, state: _Candidate, text: str | None, signature: str | None) -> list[Chunk]:
        if not text and not signature:
            return []
        state.thinking = True
        detail: Json = {"type": "reasoning.text", "text": text or ""}
        if signature:
            detail["signature"] = signature
        delta: Json = {"reasoning_content": text} if text else {}
        delta["reasoning_details"] = [{**detail, "format": FORMAT, "index": state.details}]
        return self._out.delta(delta, choice=state.index)

    def _detail(self, state: _Candidate, detail: Json) -> list[Chunk]:
        self._end_thought(state)
        index, state.details = state.details, state.details + 1
        return self._out.delta(
            {"reasoning_details": [{**detail, "format": FORMAT, "index": index}]}, choice=state.index
        )

    def _end_thought(self, state: _Candidate) -> None:
        if state.thinking:
            state.details += 1
            state.thinking = False

    def _call(self, state: _Candidate, native: Json, signature: str | None) -> list[Chunk]:
        self._end_thought(state)
        if not native.get("name"):
            if state.open_call is None:
                return []
            for piece in native.get("partialArgs") or ():
                state.open_call.add(piece)
            return [] if native.get("willContinue") else self._close_call(state)
        chunks = self._close_call(state)
        extra = {"extra_content": {"google": {"thought_signature": signature}}} if signature else None
        arguments = Arguments(native.get("args") or {})
        for piece in native.get("partialArgs") or ():
            arguments.add(piece)
        state.calls += 1
        chunks += self._out.tool_call(
            state.calls,
            id=native.get("id"),
            name=native["name"],
            arguments="" if native.get("willContinue") else arguments.encoded(),
            choice=state.index,
            extra=extra,
        )
        state.open_call = arguments if native.get("willContinue") else None
        return chunks

    def _close_call(self, state: _Candidate) -> list[Chunk]:
        call, state.open_call = state.open_call, None
        return [] if call is None else self._out.arguments(state.calls, call.encoded(), choice=state.index)


def _decode(data: bytes) -> Json:
    try:
        native = msgspec.json.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise bad_response("The provider sent something that is not JSON.") from error
    if isinstance(native, list) and native and isinstance(native[0], dict) and "error" in native[0]:
        native = native[0]
    if not isinstance(native, dict):
        raise bad_response("The provider sent JSON that is not an object.")
    if native.get("error"):
        raise stream_error(native)
    return native
