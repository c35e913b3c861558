"""
Cohere's answer events as OpenAI chunks.
"""

from __future__ import annotations

from proxy.errors import StreamTruncated
from proxy.providers import Chunk, Event, Json
from proxy.providers.chunks import ChunkWriter
from proxy.providers.cohere.answers import (
    PLAN,
    THINKING,
    annotations_of,
    decode_object,
    finish_of,
    logprob_of,
    thought,
    usage_of,
)
from proxy.providers.faults import bad_response, stream_error


class StreamDecoder:
    """
    message-start
      ( tool-plan-delta
      | tool-call-start  tool-call-delta*  tool-call-end
      | content-start  content-delta*  content-end
      | citation-start  citation-end )*
    message-end  [DONE]?

    Blocks of content are thinking or text, and citations come in the middle of the text that they are about. Calls and
    blocks are numbered apart. Finish and usage are in message-end, once. Unknown events are passed over; an object with
    a `message` and no type is an error, and then nothing follows.
    """

    def __init__(self) -> None:
        self._out = ChunkWriter()
        self._ended = False
        self._characters = 0
        self._starts: dict[int, int] = {}
        """By number of a block of text: where it begins in the whole content."""
        self._thoughts: dict[object, int] = {}
        """By block, or for the plan: the number of its thought."""

    @property
    def usage_so_far(self) -> Json | None:
        """None until the end: Cohere does not count on the way."""
        return self._out.usage_so_far

    def feed(self, event: Event) -> list[Chunk]:
        data = event.data.strip()
        if self._ended or not data or data == b"[DONE]":
            return []
        native = decode_object(data)
        if "type" not in native and (native.get("message") or native.get("error")):
            raise stream_error(native)
        try:
            return self._transition(native)
        except (KeyError, TypeError, AttributeError) as error:
            raise bad_response(f"The provider sent a malformed {native.get('type')} event.") from error

    def close(self) -> list[Chunk]:
        if not self._ended:
            raise StreamTruncated
        return []

    def _transition(self, native: Json) -> list[Chunk]:
        match native.get("type"):
            case "tool-plan-delta":
                return self._thought(PLAN, "plan", native["delta"]["message"]["tool_plan"])
            case "content-start" | "content-delta":
                return self._content(native)
            case "citation-start":
                citation = native["delta"]["message"]["citations"]
                return self._out.delta(annotations_of(citation, self._starts))
            case "tool-call-start":
                call = native["delta"]["message"]["tool_calls"]
                function = call["function"]
                return self._out.tool_call(
                    native["index"], id=call.get("id"), name=function["name"], arguments=function.get("arguments") or ""
                )
            case "tool-call-delta":
                function = native["delta"]["message"]["tool_calls"]["function"]
                return self._out.arguments(native["index"], function.get("arguments") or "")
            case "tool-call-end":
                return self._out.complete(native["index"])
            case "message-end":
                return self._end(native.get("delta") or {})
        return []

    def _content(self, native: Json) -> list[Chunk]:
        index, content = native["index"], native["delta"]["message"]["content"]
        if content.get("type") == "text":
            self._starts[index] = self._characters
        if content.get("thinking"):
            return self._thought(THINKING, index, content["thinking"])
        text = content.get("text")
        if not text:
            return []
        self._characters += len(text)
        item = logprob_of(native["logprobs"]) if native.get("logprobs") else None
        extra = {"logprobs": {"content": [item], "refusal": None}} if item else None
        return self._out.delta({"content": text}, extra=extra)

    def _thought(self, kind: str, block: object, text: str) -> list[Chunk]:
        if not text:
            return []
        number = self._thoughts.setdefault(block, len(self._thoughts))
        return self._out.delta({"reasoning_content": text, "reasoning_details": [thought(kind, text, number)]})

    def _end(self, delta: Json) -> list[Chunk]:
        usage = usage_of(delta.get("usage") or {})
        if usage:
            self._out.usage(usage)
        self._out.finish(finish_of(delta.get("finish_reason"), delta.get("error")))
        self._ended = True
        return self._out.end()
