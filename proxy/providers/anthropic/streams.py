"""
Anthropic's answer events as OpenAI chunks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from proxy.errors import StreamTruncated
from proxy.providers import Chunk, Event, Json
from proxy.providers.anthropic.answers import (
    ANSWER_TOOL,
    SHOWN,
    annotations_of,
    finish_of,
    redacted_thought,
    refusal_of,
    thought,
    usage_of,
)
from proxy.providers.chunks import ChunkWriter
from proxy.providers.faults import bad_response, stream_error


@dataclass(slots=True)
class _Block:
    """A content block that is open. `start` is where its text begins in the whole content."""

    type: str
    start: int = 0
    input: Json = field(default_factory=dict)
    citations: list[Any] = field(default_factory=list)
    native: Json = field(default_factory=dict)
    """As it came, where OpenAI has no place for it."""
    pieces: list[str] = field(default_factory=list)
    """Its input, or of a compaction its content, as far as it has come."""


class StreamDecoder:
    """
    message_start
      ( content_block_start  content_block_delta*  content_block_stop )*
    message_delta+  message_stop

    `ping` may come anywhere; so may `error`, and then nothing follows. Usage is cumulative: each mention replaces the
    one before. Unknown events, blocks and deltas are passed over; a known one in the wrong place is an error. A
    message_start may be repeated, but a second message in the middle of the first cannot be told to a client.
    """

    def __init__(self) -> None:
        self._out = ChunkWriter()
        self._message_id: str | None = None
        self._blocks: dict[int, _Block] = {}
        self._usage: Json = {}
        self._ending: Json = {}
        self._characters = 0
        self._stopped = False
        self._broken = False
        """Whether the input of one of Anthropic's own tools is no JSON; where the limit cut it, the tool never ran."""

    @property
    def usage_so_far(self) -> Json | None:
        """What the provider has reported up to here, in OpenAI's shape; all there is when a stream is cut."""
        return self._out.usage_so_far

    def feed(self, event: Event) -> list[Chunk]:
        if self._stopped or not event.data.strip():
            return []
        native = _decode(event.data)
        try:
            return self._transition(native)
        except (KeyError, TypeError, AttributeError, msgspec.DecodeError) as error:
            raise bad_response(f"The provider sent a malformed {native.get('type')} event.") from error

    def close(self) -> list[Chunk]:
        if not self._stopped:
            raise StreamTruncated
        return []

    def _transition(self, native: Json) -> list[Chunk]:
        match native.get("type"):
            case "message_start":
                return self._begin(native["message"])
            case "content_block_start":
                return self._open(native["index"], native["content_block"])
            case "content_block_delta":
                return self._delta(native["index"], native["delta"])
            case "content_block_stop":
                return self._close_block(native["index"])
            case "message_delta":
                ending = {"context_management": native.get("context_management"), **native["delta"]}
                self._ending |= {name: value for name, value in ending.items() if value is not None}
                self._count(native.get("usage") or {})
                return []
            case "message_stop":
                return self._stop()
            case "error":
                raise stream_error(native)
        return []

    def _begin(self, message: Json) -> list[Chunk]:
        if self._out.begun and message.get("id") != self._message_id:
            raise bad_response("The provider began a second message in the middle of an answer.")
        self._message_id = message.get("id")
        self._count(message.get("usage") or {})
        return []

    def _open(self, index: int, native: Json) -> list[Chunk]:
        kind = native["type"]
        self._blocks[index] = _Block(kind, start=self._characters, input=native.get("input") or {})
        match kind:
            case "text":
                self._blocks[index].citations += native.get("citations") or []
                return self._text(native.get("text") or "")
            case "thinking":
                return self._thought(index, native.get("thinking") or None, native.get("signature") or None)
            case "redacted_thinking":
                return self._out.delta({"reasoning_details": [redacted_thought(index, native.get("data"))]})
            case "tool_use" if native["name"] == ANSWER_TOOL:
                self._blocks[index].type = ANSWER_TOOL
            case "tool_use":
                return self._out.tool_call(index, id=native.get("id"), name=native["name"])
            case _:
                self._blocks[index].native = native
        return []

    def _delta(self, index: int, delta: Json) -> list[Chunk]:
        block = self._blocks.get(index)
        if block is None:
            raise bad_response("The provider sent a piece of a content block that had not begun.")
        match delta["type"]:
            case "text_delta":
                return self._text(delta["text"])
            case "thinking_delta":
                return self._thought(index, delta["thinking"], None)
            case "signature_delta":
                return self._thought(index, None, delta["signature"])
            case "input_json_delta" if block.type == "tool_use":
                return self._out.arguments(index, delta["partial_json"])
            case "input_json_delta" if block.type == ANSWER_TOOL:
                block.pieces.append(delta["partial_json"])
                return self._text(delta["partial_json"])
            case "input_json_delta":
                block.pieces.append(delta["partial_json"])
            case "compaction_delta":
                block.native = {**block.native, "content": (block.native.get("content") or "") + delta["content"]}
            case "citations_delta":
                block.citations.append(delta["citation"])
        return []

    def _close_block(self, index: int) -> list[Chunk]:
        block = self._blocks.pop(index, None)
        if block is None:
            return []
        if block.type == "tool_use":
            return self._out.complete(index, msgspec.json.encode(block.input).decode())
        if block.type == ANSWER_TOOL:
            return [] if any(block.pieces) else self._text(msgspec.json.encode(block.input).decode())
        if block.type not in SHOWN:
            whole = _whole(block)
            self._broken = self._broken or whole is None
            return self._out.delta({"native_blocks": [whole]}) if whole else []
        fields = annotations_of(block.citations, block.start, self._characters)
        return self._out.delta(fields) if fields else []

    def _text(self, text: str) -> list[Chunk]:
        self._characters += len(text)
        return self._out.delta({"content": text}) if text else []

    def _thought(self, index: int, text: str | None, signature: str | None) -> list[Chunk]:
        if not text and not signature:
            return []
        delta: Json = {"reasoning_content": text} if text else {}
        return self._out.delta({**delta, "reasoning_details": [thought(index, text, signature)]})

    def _count(self, usage: Json) -> None:
        self._usage |= {name: value for name, value in usage.items() if value is not None}
        counted = usage_of(self._usage)
        if counted:
            self._out.usage(counted)

    def _stop(self) -> list[Chunk]:
        if "stop_reason" not in self._ending and not self._out.begun:
            raise StreamTruncated("The provider ended the stream without an answer.")
        self._stopped = True
        # an answer that is cut may leave a block open
        chunks = [chunk for index in list(self._blocks) for chunk in self._close_block(index)]
        if self._broken and finish_of(self._ending)["finish_reason"] != "length":
            raise bad_response("The provider sent a malformed content_block_stop event.")
        refusal = refusal_of(self._ending)
        chunks += self._out.delta({"refusal": refusal}) if refusal else []
        self._out.finish(finish_of(self._ending))
        return chunks + self._out.end()


def _whole(block: _Block) -> Json | None:
    """A block of Anthropic's own, with the input that came in pieces; None if they are no whole."""
    written = "".join(block.pieces)
    try:
        return {**block.native, "input": msgspec.json.decode(written)} if written else block.native
    except msgspec.DecodeError:
        return None


def _decode(data: bytes) -> Json:
    try:
        native = msgspec.json.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise bad_response("The provider sent an event that is not JSON.") from error
    if not isinstance(native, dict):
        raise bad_response("The provider sent an event that is not an object.")
    return native
