"""
A provider's stream put together as the provider itself would have answered whole, without any code of ours: so that
both ways can be compared, for every stream there is.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from proxy.providers import Json
from proxy.upstream.framing import SSE


def events_of(stream: bytes) -> list[Json]:
    framing = SSE()
    framed = [*framing.feed(stream), *framing.close()]
    return [msgspec.json.decode(event.data) for event in framed if event.data.strip() not in (b"", b"[DONE]")]


def anthropic(stream: bytes) -> Json:
    """Up to the first message_stop; some recordings hold several answers."""
    message: Json = {}
    blocks: dict[int, Json] = {}
    written: dict[int, str] = {}
    for event in events_of(stream):
        match event["type"]:
            case "message_start":
                message = event["message"]
            case "content_block_start":
                blocks[event["index"]] = event["content_block"]
            case "content_block_delta":
                _grow(blocks[event["index"]], event["delta"], written, event["index"])
            case "message_delta":
                message |= {name: value for name, value in event["delta"].items() if value is not None}
                message.setdefault("usage", {})
                message["usage"] |= {name: value for name, value in event.get("usage", {}).items() if value is not None}
                message |= {name: event[name] for name in ("context_management",) if event.get(name)}
            case "message_stop":
                break
    for index, text in written.items():
        if text:
            blocks[index]["input"] = msgspec.json.decode(text)
    return {**message, "type": "message", "content": list(blocks.values())}


def _grow(block: Json, delta: Json, written: dict[int, str], index: int) -> None:
    match delta["type"]:
        case "input_json_delta":
            written[index] = written.get(index, "") + delta["partial_json"]
        case "citations_delta":
            block["citations"] = [*(block.get("citations") or []), delta["citation"]]
        case "text_delta" | "thinking_delta" | "signature_delta" | "compaction_delta" as kind:
            name = {"compaction_delta": "content"}.get(kind, kind.removesuffix("_delta"))
            block[name] = (block.get(name) or "") + delta[name]


def openai(stream: bytes) -> Json:
    """By OpenAI's own SDK."""
    state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
    for event in events_of(stream):
        state.handle_chunk(ChatCompletionChunk.model_validate(event))
    whole: Json = msgspec.json.decode(state.current_completion_snapshot.to_json())
    for choice in whole["choices"]:
        for call in choice["message"].get("tool_calls") or ():
            call.pop("index", None)
            call["function"].pop("parsed_arguments", None)
        choice["message"].pop("parsed", None)
    return whole


WHOLE: dict[str, Callable[[bytes], Json]] = {"anthropic": anthropic, "openai": openai}
"""By API."""


def comparable(completion: Json) -> Json:
    """Without what depends on how an answer was cut: the spelling of JSON, logprobs, and fields that say nothing."""
    choices = []
    for choice in completion["choices"]:
        message = {name: value for name, value in choice["message"].items() if value}
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = msgspec.json.decode(call["function"]["arguments"] or "{}")
        if str(message.get("content", "")).startswith("{"):
            message["content"] = msgspec.json.decode(message["content"])
        rest = {name: value for name, value in choice.items() if value is not None and name != "logprobs"}
        choices.append({**rest, "message": message})
    return {"choices": choices, "usage": completion.get("usage")}
