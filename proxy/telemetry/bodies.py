"""
What clients ask and are answered, as log lines of their own, if the operator says so: `logging.bodies`.

One line for a request, when it is over, under the logger `strata.bodies`. What is copied is bounded first and searched
for secrets then, text by text, so that a line is JSON whatever was cut. Of images, files and sound there is only what
they are and how long. `redacted` copies no text at all: what a client may have written freely is a number of
characters there, and only words of closed lists, numbers and the names of tools stay.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from proxy.exchange import Exchange
from proxy.telemetry.logs import Line, RequestLog, timestamp

MAX_CHARS = 32_768
"""Of a question, and of an answer."""
MAX_NAMES = 200
"""Of tools."""
MAX_NAME_CHARS = 256
MAX_DEPTH = 8
ENTRY_CHARS = 40
"""What a message, a part or a call counts besides its text."""

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Parts that are text, and where it is."""
FILES = frozenset({"image_url", "input_image", "input_audio", "file", "video_url"})
PARAMETERS = frozenset(
    {
        "audio", "best_of", "frequency_penalty", "function_call", "logit_bias", "logprobs", "max_completion_tokens",
        "max_tokens", "metadata", "modalities", "moderation", "n", "parallel_tool_calls", "prediction",
        "presence_penalty", "prompt_cache_key", "prompt_cache_retention", "reasoning_effort", "response_format",
        "safety_identifier", "seed", "service_tier", "stop", "store", "strata", "stream", "stream_options",
        "temperature", "thinking", "tool_choice", "top_logprobs", "top_p", "user", "verbosity", "web_search_options",
    }
)  # fmt: skip
"""Whose names may stand in a redacted line; any other name is a client's own word."""
WORDS = frozenset(
    {
        "auto", "none", "required", "minimal", "low", "medium", "high", "xhigh", "default", "flex", "priority", "scale",
        "standard", "text", "json_object", "json_schema", "function", "in_memory", "24h",
    }
)  # fmt: skip
"""What they may say there."""

_BODY = frozenset({"model", "messages", "tools", "functions"})
_DATA_URL = re.compile(r"\s*data:(?:(image|audio|video|application|text)/)?[^\s,]{0,200},", re.IGNORECASE)


class Bodies:
    """`listeners`: who wants to hear of requests that are over; nobody, if no bodies are wanted."""

    def __init__(self, mode: Literal["none", "errors", "redacted", "full"], log: RequestLog) -> None:
        self.wanted = mode != "none"
        self.listeners: tuple[Callable[[Exchange], None], ...] = (self.note,) if self.wanted else ()
        self._errors_only = mode == "errors"
        self._full = mode != "redacted"
        self._log = log

    def note(self, exchange: Exchange) -> None:
        """Writes its line. What was refused before it was understood has no bodies."""
        if exchange.asked is None or (self._errors_only and exchange.error is None):
            return
        error, caller = exchange.error, exchange.caller
        line = Line(timestamp(exchange.started_at_ms), "info", "strata.bodies", "bodies")
        line.request_id = self._log.masked(exchange.request_id)
        line.endpoint, line.model, line.status = exchange.endpoint, exchange.model, exchange.status
        line.key = caller.name if caller is not None else ""
        line.error_type = error.error_type if error is not None else ""
        line.stream, line.client_left, line.finish_reason = (
            exchange.stream,
            exchange.client_left,
            exchange.finish_reason,
        )
        line.asked = _Copy(self._full, self._log.masked).question(exchange.asked)
        answer = _Copy(self._full, self._log.masked)
        answered: dict[str, Any] = {}
        if error is not None:
            answered["error"] = answer.text(error.message)
        if exchange.answered:
            answered["messages"] = answer.messages(exchange.answered)
        line.answered = answered or None
        self._log.put(line)


class _Copy:
    """Copies one body, as far as there is room for it."""

    def __init__(self, full: bool, masked: Callable[[str], str]) -> None:
        self._full = full
        self._masked = masked
        self._room = MAX_CHARS

    def question(self, chat: Mapping[str, Any]) -> dict[str, Any]:
        """What is short comes first: a long conversation must not take its room."""
        parameters = {name: value for name, value in chat.items() if name not in _BODY and value is not None}
        shown: dict[str, Any] = {}
        if self._full:
            shown["parameters"] = self._inner(parameters, 0)
        else:
            known = {name: value for name, value in parameters.items() if name in PARAMETERS}
            shown["parameters"] = {name: self._parameter(value) for name, value in known.items()}
            if len(parameters) > len(known):
                shown["other_parameters"] = len(parameters) - len(known)
        tools = [*(chat.get("tools") or ()), *(chat.get("functions") or ())]
        if tools:
            named = (tool.get("function") or tool.get("custom") or tool for tool in tools[:MAX_NAMES])
            shown["tools"] = [self._name(one) for one in self._while_room(named)]
        shown["messages"] = self.messages(chat["messages"])
        return shown

    def messages(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        shown: list[dict[str, Any]] = []
        for message in messages:
            if self._room <= 0:
                shown.append({"left_out": len(messages) - len(shown)})
                break
            shown.append(self._message(message))
        return shown

    def text(self, said: str) -> str | dict[str, Any]:
        if not self._full:
            return {"chars": len(said)}
        if _DATA_URL.match(said):
            return _size(said)
        beginning = said[: max(self._room, 0)]
        self._room -= len(beginning)
        # The mark comes first: by it a secret is found that was cut in the middle
        return self._masked(beginning if len(beginning) == len(said) else f"{beginning}…")

    def _message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        self._room -= ENTRY_CHARS
        role, content = message.get("role"), message.get("content")
        shown: dict[str, Any] = {"role": role if isinstance(role, str) and role in ROLES else "other"}
        if isinstance(content, str):
            shown["content"] = self.text(content)
        elif isinstance(content, list):
            shown["content"] = self._parts(content)
        for name in ("name", "reasoning_content", "refusal"):
            if isinstance(message.get(name), str):
                shown[name] = self.text(message[name])
        calls = message.get("tool_calls")
        if not isinstance(calls, list):
            calls = [{"function": message["function_call"]}] if message.get("function_call") else []
        if calls:
            shown["tool_calls"] = [self._call(call) for call in self._while_room(calls)]
        return shown

    def _parts(self, parts: list[Any]) -> list[dict[str, Any]]:
        shown: list[dict[str, Any]] = []
        for part in parts:
            if self._room <= 0:
                shown.append({"left_out": len(parts) - len(shown)})
                break
            self._room -= ENTRY_CHARS
            shown.append(self._part(part if isinstance(part, dict) else {}))
        return shown

    def _part(self, part: Mapping[str, Any]) -> dict[str, Any]:
        kind = part.get("type")
        if isinstance(kind, str) and kind in TEXTS:
            said = part.get(TEXTS[kind])
            return {"type": kind, "text": self.text(said if isinstance(said, str) else "")}
        if not (isinstance(kind, str) and kind in FILES):
            return {"type": "other"}
        inside = part.get(kind)
        texts = [said for said in (inside.values() if isinstance(inside, dict) else [inside]) if isinstance(said, str)]
        return {"type": kind, **_size(max(texts, key=len, default=""))}

    def _call(self, call: Any) -> dict[str, Any]:
        self._room -= ENTRY_CHARS
        called = (call.get("function") or call.get("custom")) if isinstance(call, dict) else None
        said = (called.get("arguments") or called.get("input")) if isinstance(called, dict) else None
        return {"name": self._name(called), "arguments": self.text(said if isinstance(said, str) else "")}

    def _name(self, named: Any) -> str:
        name = named.get("name") if isinstance(named, dict) else None
        self._room -= ENTRY_CHARS
        return self._masked(name[:MAX_NAME_CHARS]) if isinstance(name, str) else ""

    def _parameter(self, value: Any) -> Any:
        """Of a redacted line."""
        if isinstance(value, dict | list):
            kind = value.get("type") if isinstance(value, dict) else None
            return {"entries": len(value)} | ({"type": kind} if isinstance(kind, str) and kind in WORDS else {})
        return value if value in WORDS else self._inner(value, 0)

    def _inner(self, value: Any, depth: int) -> Any:
        self._room -= ENTRY_CHARS
        if value is None or isinstance(value, bool | float):
            return value
        if isinstance(value, int):
            return value if -(2**63) <= value < 2**63 else "…"
        if isinstance(value, str):
            return self.text(value)
        if depth == MAX_DEPTH:
            return "…"
        if isinstance(value, list):
            return [self._inner(one, depth + 1) for one in self._while_room(value)]
        return {
            self._masked(name[:MAX_NAME_CHARS]): self._field(name, one, depth + 1)
            for name, one in self._while_room(value.items())
        }

    def _field(self, name: str, value: Any, depth: int) -> Any:
        """What only its name tells to be a secret is hidden too."""
        shown = self._inner(value, depth)
        if isinstance(shown, str):
            said = f"{name[:MAX_NAME_CHARS]}: {shown}"
            if self._masked(said) != f"{self._masked(name[:MAX_NAME_CHARS])}: {shown}":
                return "…"
        return shown

    def _while_room(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            if self._room <= 0:
                return
            yield item


def _size(said: str) -> dict[str, Any]:
    found = _DATA_URL.match(said)
    return {"chars": len(said)} | ({"kind": found[1].lower()} if found and found[1] else {})
