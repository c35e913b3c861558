"""
Amazon Bedrock's Converse and ConverseStream: answers, event streams and the refusals that gateways run into. Pure.

Model and kind of answer stand in the path, not in the body, and a stream is made of AWS's binary events.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import msgspec

from tests import eventstream
from tests.oracle.bill import Item
from tests.oracle.mind import Asked
from tests.oracle.script import Wanted

PATH = re.compile(r"^/model/([^/]+)/converse(-stream)?$")
STREAM_TYPE = "application/vnd.amazon.eventstream"
REASONS_APART = False
COMMENT = b""
"""AWS's framing has none."""
BROKEN = eventstream.message(
    {":event-type": "contentBlockDelta", ":content-type": "application/json", ":message-type": "event"}, b"{broken"
)
END = b""
"""The last event is the metadata, which `events` gives: its usage is the request's own."""

TYPES = {
    400: "ValidationException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    408: "ModelTimeoutException",
    424: "ModelErrorException",
    429: "ThrottlingException",
    500: "InternalServerException",
    503: "ServiceUnavailableException",
}
FIELDS = frozenset(
    (
        *("messages", "system", "inferenceConfig", "toolConfig", "outputConfig", "guardrailConfig", "serviceTier"),
        *("additionalModelRequestFields", "additionalModelResponseFieldPaths", "performanceConfig"),
        *("promptVariables", "requestMetadata"),
    )
)


def asked(body: dict[str, Any]) -> Asked:
    config = body.get("toolConfig") or {}
    specs = [tool["toolSpec"] for tool in config.get("tools") or () if "toolSpec" in tool]
    [(kind, choice)] = (config.get("toolChoice") or {"auto": {}}).items()
    structure = body.get("outputConfig", {}).get("textFormat", {}).get("structure")
    told: dict[str, Any] | None = {} if "JSON object" in str(body.get("system")) else None
    return Asked(
        [(spec["name"], spec["inputSchema"]["json"]) for spec in specs],
        choice["name"] if kind == "tool" else kind,
        json.loads(structure["jsonSchema"]["schema"]) if structure else told,
        any("toolResult" in block for block in body["messages"][-1]["content"]),
    )


def said(path: str, body: dict[str, Any]) -> dict[str, Any]:
    found = PATH.search(path.partition("?")[0])
    assert found is not None
    return {
        "model": unquote(found[1]),
        "stream": found[2] is not None,
        "system": body.get("system"),
        "messages": [
            {**message, "content": [_part(block) for block in message.get("content") or ()]}
            for message in body.get("messages") or ()
        ],
        "tools": [tool["toolSpec"] for tool in _tools(body) if "toolSpec" in tool],
    }


def _part(block: dict[str, Any]) -> dict[str, Any]:
    """A block has its kind for its only key; others have it as their type."""
    [(kind, value)] = list(block.items())[:1] or [("", None)]
    if kind == "toolResult":
        return {"type": kind, "content": [_part(inner) for inner in value.get("content") or ()]}
    return {"type": kind, "text": value} if kind == "text" else {"type": kind}


def _tools(body: dict[str, Any]) -> list[dict[str, Any]]:
    return (body.get("toolConfig") or {}).get("tools") or []


def refuse(body: dict[str, Any], headers: dict[str, str]) -> tuple[int, str] | None:
    """What Bedrock itself would refuse: status and message."""
    if wrong := _refuse_caller(headers):
        return 403, wrong
    if unknown := sorted(body.keys() - FIELDS):
        return 400, f"The field {unknown[0]} is not a member of the request."
    messages = body.get("messages") or []
    if not messages or messages[0]["role"] != "user":
        return 400, "A conversation must start with a user message."
    names: list[str] = []
    for number, message in enumerate(messages):
        at = f"messages.{number}"
        if message["role"] != ("user", "assistant")[number % 2]:
            return 400, f"{at}: A conversation must alternate between user and assistant roles."
        if wrong := _refuse_content(message["content"], f"{at}.content"):
            return 400, wrong
        names += [block["document"]["name"] for block in message["content"] if "document" in block]
    if len(names) != len(set(names)):
        return 400, "Documents in a request must have names of their own."
    for number, block in enumerate(body.get("system") or ()):
        if "text" in block and not block["text"].strip():
            return 400, _blank(f"system.{number}")
    wrong = _refuse_tools(body) or _unanswered(messages)
    return (400, wrong) if wrong else None


def _refuse_caller(headers: dict[str, str]) -> str | None:
    given = headers.get("authorization", "")
    if not given:
        return "Missing Authentication Token"
    if given.startswith("Bearer "):
        return None
    signed = re.search(r"^AWS4-HMAC-SHA256 Credential=\S+/bedrock/aws4_request, ?SignedHeaders=(\S+), ?Sig", given)
    if signed is None or "host" not in signed[1].split(";") or not headers.get("x-amz-date"):
        return "The request signature we calculated does not match the signature you provided."
    return None


def _refuse_content(blocks: list[dict[str, Any]], at: str) -> str | None:
    if not blocks:
        return f"The content field in the Message object at {at} is empty. Add a ContentBlock object."
    for number, block in enumerate(blocks):
        if len(block) != 1:
            return f"{at}.{number}: A ContentBlock has exactly one member."
        if "text" in block and not block["text"].strip():
            return _blank(f"{at}.{number}")
        if "toolResult" in block and (wrong := _refuse_content(block["toolResult"]["content"], f"{at}.{number}")):
            return wrong
    if any("document" in block for block in blocks) and not any("text" in block for block in blocks):
        return f"{at}: A message with a document must have a text block."
    return None


def _blank(at: str) -> str:
    return f"The text field in the ContentBlock object at {at} is blank. Add text to the text field, and try again."


def _refuse_tools(body: dict[str, Any]) -> str | None:
    tools = _tools(body)
    blocks = [block for message in body["messages"] for block in message["content"]]
    if not tools and any("toolUse" in block or "toolResult" in block for block in blocks):
        return "The toolConfig field must be defined when using toolUse and toolResult content blocks."
    if "toolConfig" in body and not tools:
        return "toolConfig.tools: Member must have length greater than or equal to 1"
    for number, tool in enumerate(tools):
        if "toolSpec" in tool and tool["toolSpec"]["inputSchema"]["json"].get("type") != "object":
            at = f"toolConfig.tools.{number}.toolSpec.inputSchema.json.type"
            return f"The value at {at} must be one of the following: object."
    return None


def _unanswered(messages: list[dict[str, Any]]) -> str | None:
    used: set[str] = set()
    for number, message in enumerate(messages):
        given = {block["toolResult"]["toolUseId"] for block in message["content"] if "toolResult" in block}
        if used - given:
            return f"Expected toolResult blocks at messages.{number}.content for the following Ids: {sorted(used)}"
        if given - used:
            return (
                f"The number of toolResult blocks at messages.{number}.content exceeds the number of toolUse blocks "
                "of previous turn."
            )
        used = {block["toolUse"]["toolUseId"] for block in message["content"] if "toolUse" in block}
    return f"Expected toolResult blocks for the following Ids: {sorted(used)}" if used else None


def error(status: int, message: str | None, code: str | None) -> bytes:
    return msgspec.json.encode({"message": message or f"The oracle was told to answer {status}."})


def error_headers(status: int, code: str | None) -> dict[str, str]:
    """The type of an error is not in its body."""
    return {"x-amzn-errortype": f"{code or TYPES.get(status, 'UnknownError')}:http://internal.amazon.com/coral/"}


def error_event(message: str | None, code: str | None) -> bytes:
    name = code or "internalServerException"
    return eventstream.exception(name, {"message": message or "The oracle failed in the middle."})


def usage(item: Item) -> dict[str, Any]:
    """`inputTokens` leaves out those of the cache, `totalTokens` does not."""
    written = item.cache_write_5m_tokens + item.cache_write_1h_tokens
    spans = (("5m", item.cache_write_5m_tokens), ("1h", item.cache_write_1h_tokens))
    return {
        "inputTokens": item.input_tokens,
        "outputTokens": item.output_tokens,
        "totalTokens": item.input_tokens + item.cache_read_tokens + written + item.output_tokens,
        "cacheReadInputTokens": item.cache_read_tokens,
        "cacheWriteInputTokens": written,
        "cacheDetails": [{"ttl": ttl, "inputTokens": tokens} for ttl, tokens in spans if tokens],
    }


def _counted(wanted: Wanted, item: Item) -> dict[str, Any]:
    counted = {} if wanted.script.usage == "none" else {"usage": usage(item)}
    return {**counted, "metrics": {"latencyMs": 9}}


def whole(wanted: Wanted, item: Item) -> bytes:
    content: list[dict[str, Any]] = []
    if wanted.script.thinking:
        signed = {"text": "".join(wanted.thoughts()), "signature": "c2lnbmVk"}
        content.append({"reasoningContent": {"reasoningText": signed}})
    if not wanted.script.tools:
        content.append({"text": "".join(wanted.words())})
    for number, (name, arguments) in enumerate(wanted.calls()):
        content.append({"toolUse": {"toolUseId": f"tooluse_{number}", "name": name, "input": arguments}})
    return msgspec.json.encode(
        {
            "output": {"message": {"role": "assistant", "content": content}},
            "stopReason": _stop_reason(wanted),
            **_counted(wanted, item),
        }
    )


def events(wanted: Wanted, item: Item) -> Iterator[tuple[int, bytes]]:
    """Each event, with how many billed output tokens it brings. Only calls have a start."""
    yield 0, eventstream.event("messageStart", {"role": "assistant", "p": "abcdef"})
    index = 0
    if wanted.script.thinking:
        for thought in wanted.thoughts():
            yield 1, _delta(index, {"reasoningContent": {"text": thought}})
        yield 0, _delta(index, {"reasoningContent": {"signature": "c2lnbmVk"}})
        yield 0, _stop(index)
        index += 1
    if not wanted.script.tools:
        for word in wanted.words():
            yield 1, _delta(index, {"text": word})
        yield 0, _stop(index)
        index += 1
    for number, (name, arguments) in enumerate(wanted.calls()):
        start = {"toolUse": {"toolUseId": f"tooluse_{number}", "name": name}}
        yield 0, eventstream.event("contentBlockStart", {"contentBlockIndex": index, "start": start})
        yield 0, _delta(index, {"toolUse": {"input": ""}})
        yield 1, _delta(index, {"toolUse": {"input": msgspec.json.encode(arguments).decode()}})
        yield 0, _stop(index)
        index += 1
    yield 0, eventstream.event("messageStop", {"stopReason": _stop_reason(wanted)})
    for _ in range(2 if wanted.script.usage == "twice" else 1):
        yield 0, eventstream.event("metadata", _counted(wanted, item))


def _stop_reason(wanted: Wanted) -> str:
    return "tool_use" if wanted.script.tools else "end_turn"


def _delta(index: int, delta: dict[str, Any]) -> bytes:
    return eventstream.event("contentBlockDelta", {"contentBlockIndex": index, "delta": delta, "p": "abc"})


def _stop(index: int) -> bytes:
    return eventstream.event("contentBlockStop", {"contentBlockIndex": index})
