"""
ConverseStream's events as OpenAI chunks.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass, field
from typing import Any

import msgspec

from proxy.errors import StreamTruncated
from proxy.providers import Chunk, Event, Json
from proxy.providers.bedrock.answers import (
    ANSWER_TOOL,
    SERVER_TOOL,
    UNSIGNED,
    annotations_of,
    finish_of,
    image_of,
    redacted_thought,
    thought,
    usage_of,
)
from proxy.providers.bedrock.failures import stream_failure
from proxy.providers.chunks import ChunkWriter
from proxy.providers.faults import bad_response


@dataclass(slots=True)
class _Block:
    """
    A content block that is open. `start` is where its text begins in the whole content; `blobs` are the pieces, each in
    base64 of its own, of a redacted thought or an image.
    """

    kind: str
    start: int
    form: str = ""
    silent: bool = True
    unsigned: bool = False
    citations: list[Any] = field(default_factory=list)
    blobs: list[str] = field(default_factory=list)


class StreamDecoder:
    """
    messageStart
      ( contentBlockStart?  contentBlockDelta*  contentBlockStop )*
    messageStop  metadata

    An event's name is its type, and its data has no other. Only tool calls need a start: text and thoughts begin with
    their first delta. The usage comes in `metadata`, after the end, so the finish reason waits for it. An `exception:…`
    or `error:…` may come anywhere, and then nothing follows. Unknown events, blocks and deltas are passed over, and so
    are tools that run on the server.
    """

    def __init__(self) -> None:
        self._out = ChunkWriter()
        self._blocks: dict[int, _Block] = {}
        self._characters = 0
        self._stop: Json | None = None
        self._done = False

    @property
    def usage_so_far(self) -> Json | None:
        """What the provider has reported up to here, in OpenAI's shape: nothing, before the metadata."""
        return self._out.usage_so_far

    def feed(self, event: Event) -> list[Chunk]:
        if self._done:
            return []
        kind, _, name = event.name.partition(":")
        if kind in ("exception", "error"):
            raise stream_failure(name, event.data)
        native = _decode(event.data)
        try:
            return self._transition(kind, native)
        except (KeyError, TypeError, AttributeError, binascii.Error) as error:
            raise bad_response(f"The provider sent a malformed {kind} event.") from error

    def close(self) -> list[Chunk]:
        if not self._done:
            raise StreamTruncated
        return []

    def _transition(self, kind: str, native: Json) -> list[Chunk]:
        match kind:
            case "contentBlockStart":
                return self._open(native["contentBlockIndex"], native["start"])
            case "contentBlockDelta":
                return self._delta(native["contentBlockIndex"], native["delta"])
            case "contentBlockStop":
                return self._close_block(native["contentBlockIndex"])
            case "messageStop":
                self._stop = native
            case "metadata" if self._stop is not None:
                return self._end(self._stop, native)
        return []

    def _open(self, index: int, start: Json) -> list[Chunk]:
        call = start.get("toolUse")
        if "image" in start:
            self._blocks[index] = _Block("image", self._characters, form=start["image"]["format"])
        elif call is None:
            self._blocks[index] = _Block("other" if start else "text", self._characters)
        elif call.get("type") == SERVER_TOOL:
            self._blocks[index] = _Block("other", self._characters)
        elif call["name"] == ANSWER_TOOL:
            self._blocks[index] = _Block("answer", self._characters)
        else:
            self._blocks[index] = _Block("call", self._characters)
            return self._out.tool_call(index, id=call["toolUseId"], name=call["name"])
        return []

    def _delta(self, index: int, delta: Json) -> list[Chunk]:
        block = self._blocks.get(index)
        if block is None:
            block = self._blocks[index] = _Block("text", self._characters)
        match delta:
            case {"text": str(text)}:
                return self._text(text)
            case {"toolUse": {"input": str(piece)}}:
                return self._input(index, block, piece)
            case {"reasoningContent": dict(said)}:
                block.blobs += [said["redactedContent"]] if said.get("redactedContent") else []
                return self._thought(index, block, said.get("text"), said.get("signature"))
            case {"image": {"source": {"bytes": str(piece)}}}:
                block.blobs.append(piece)
            case {"citation": citation}:
                block.citations.append(citation)
        return []

    def _close_block(self, index: int) -> list[Chunk]:
        block = self._blocks.pop(index, None)
        if block is None:
            return []
        if block.kind == "call":
            return self._out.complete(index)
        if block.kind == "answer" and block.silent:
            return self._text("{}")
        if block.kind == "image":
            return self._out.delta({"images": [image_of(block.form, _joined(block.blobs))]}) if block.blobs else []
        if block.blobs:
            return self._out.delta({"reasoning_details": redacted_thought(index, _joined(block.blobs))})
        if block.unsigned:
            return self._out.delta({"reasoning_details": [{**UNSIGNED, "index": index}]})
        fields = annotations_of(block.citations, block.start, self._characters)
        return self._out.delta(fields) if fields else []

    def _text(self, text: str) -> list[Chunk]:
        self._characters += len(text)
        return self._out.delta({"content": text}) if text else []

    def _input(self, index: int, block: _Block, piece: str) -> list[Chunk]:
        if block.kind == "other" or not piece:
            return []
        block.silent = False
        return self._text(piece) if block.kind == "answer" else self._out.arguments(index, piece)

    def _thought(self, index: int, block: _Block, text: str | None, signature: str | None) -> list[Chunk]:
        details = thought(index, text, signature)
        if not details:
            return []
        block.unsigned = not signature
        delta: Json = {"reasoning_content": text} if text else {}
        return self._out.delta({**delta, "reasoning_details": details})

    def _end(self, stop: Json, metadata: Json) -> list[Chunk]:
        self._done = True
        chunks = [chunk for index in list(self._blocks) for chunk in self._close_block(index)]
        counted = usage_of(metadata)
        if counted:
            self._out.usage(counted)
        self._out.finish(finish_of(stop["stopReason"], {**stop, **metadata}))
        return chunks + self._out.end()


def _joined(pieces: list[str]) -> str:
    """One blob out of its pieces, each of which is base64 of its own."""
    if len(pieces) == 1:
        return pieces[0]
    return base64.b64encode(b"".join(base64.b64decode(piece) for piece in pieces)).decode()


def _decode(data: bytes) -> Json:
    try:
        native = msgspec.json.decode(data) if data.strip() else {}
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise bad_response("The provider sent an event that is not JSON.") from error
    if not isinstance(native, dict):
        raise bad_response("The provider sent an event that is not an object.")
    return native
