"""
What the simulated provider says. Pure: the same request has the same answer, on every machine, for ever.

Tokens are counted by one rule everywhere: UTF-8 bytes divided by four, rounded up, for each text by itself. A prompt is
the texts of its messages, its tool calls and its tool definitions; an image is 85 tokens.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from proxy.sim.schemas import instance, quotations

Request = Mapping[str, Any]

BYTES_PER_TOKEN = 4
TOKENS_PER_IMAGE = 85
MAX_CHOICES = 128
MAX_TOOL_CALLS = 8

_OPENINGS = (
    "Every river begins as something you could step across.",
    "A good map leaves out almost everything.",
    "The oldest bridges were built by people who expected floods.",
    "Stone remembers pressure long after the weight is gone.",
    "Lighthouses were the first machines that worked while everyone slept.",
    "The quietest part of an orchestra is the one that keeps the time.",
)
_MIDDLES = (
    "What matters is not how much it carries but how evenly the load is shared.",
    "Small repairs, made early, are cheaper than one that cannot be put off.",
    "Nobody notices a joint until it fails, so a careful builder looks there first.",
    "Measured twice, the same distance still surprises, because the ruler moves with the heat.",
    "Water finds the weakest seam, and so does time.",
    "What looks like a decoration is often the only thing that holds the rest in place.",
)
_ENDINGS = (
    "That is why the plan is kept where anyone can read it.",
    "In the end the simplest arch outlived them all.",
    "Ask again tomorrow and the answer will be the same.",
    "So the work goes on, layer upon layer.",
    "It has stood for a thousand years, and it was never finished.",
)
_THOUGHTS = (
    "First, what is being asked? ",
    "The question has one part that is certain and one that is not. ",
    "I compare the two and keep the simpler one. ",
    "A quick check of the result shows nothing missing. ",
)


class ToolCall(msgspec.Struct, frozen=True):
    id: str
    name: str
    arguments: str


class Choice(msgspec.Struct, frozen=True):
    """One of the `n` answers. `finish_reason` is OpenAI's word."""

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str = "stop"


class Answer(msgspec.Struct, frozen=True):
    """A whole answer with its usage. Reasoning tokens are part of the completion tokens."""

    id: str
    choices: tuple[Choice, ...]
    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int

    def usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": self.reasoning_tokens,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }


class BadRequest(ValueError):
    """The request cannot be answered; `param` is the part that is wrong."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


def tokens(text: str) -> int:
    return -(-len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN)


def answer(model: str, request: Request) -> Answer:
    """Raises BadRequest where OpenAI would answer 400."""
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(one, Mapping) for one in messages):
        raise BadRequest("messages must be a list with at least one message.", "messages")
    wanted = request.get("n")
    count = wanted if isinstance(wanted, int) and not isinstance(wanted, bool) else 1
    if not 1 <= count <= MAX_CHOICES:
        raise BadRequest(f"n must be from 1 to {MAX_CHOICES}.", "n")
    root = _digest(model, messages, request.get("tools"), request.get("response_format"))
    choices = tuple(_choice(model, request, messages, _digest(root.hex(), index)) for index in range(count))
    reasoning = sum(tokens(choice.reasoning) for choice in choices)
    return Answer(
        id=f"chatcmpl-sim{root.hex()[:24]}",
        choices=choices,
        prompt_tokens=_prompt_tokens(messages, request.get("tools")),
        completion_tokens=reasoning + sum(_spoken_tokens(choice) for choice in choices),
        reasoning_tokens=reasoning,
    )


def _choice(model: str, request: Request, messages: list[Request], seed: bytes) -> Choice:
    calls = _tool_calls(model, request, messages, seed)
    if calls:
        return Choice(tool_calls=calls, finish_reason="tool_calls")
    reasoning = "".join(_vary(_THOUGHTS, seed)).strip() if model == "reasoning" else ""
    return _shorten(Choice(text=_text(model, request, messages, seed), reasoning=reasoning), request)


def _text(model: str, request: Request, messages: list[Request], seed: bytes) -> str:
    wanted = _mapping(request.get("response_format"))
    if model == "echo":
        return _asked(messages)
    if wanted.get("type") == "json_schema":
        schema = _mapping(wanted.get("json_schema")).get("schema")
        return msgspec.json.encode(instance(schema, seed)).decode()
    named = quotations(_asked(messages)) if wanted.get("type") == "json_object" else []
    if named:  # a prompt in JSON mode says which members it wants
        return msgspec.json.encode({name: _pick(_OPENINGS, seed, at % 8) for at, name in enumerate(named)}).decode()
    if wanted.get("type") == "json_object" or model == "json":
        return msgspec.json.encode(
            {"title": _pick(_OPENINGS, seed, 0), "rating": 1 + seed[1] % 5, "done": True}
        ).decode()
    results = [text_of(message) for message in messages if message.get("role") == "tool"]
    if results and messages[-1].get("role") == "tool":
        return f"The tool answered: {'; '.join(result[:400] for result in results[-MAX_TOOL_CALLS:])}."
    return " ".join((_pick(_OPENINGS, seed, 0), *_vary(_MIDDLES, seed)[: 2 + seed[2] % 3], _pick(_ENDINGS, seed, 3)))


def _tool_calls(model: str, request: Request, messages: list[Request], seed: bytes) -> tuple[ToolCall, ...]:
    """
    The tool that the prompt names, or that `tool_choice` does, else the first; called with what the user quoted and
    numbered. With `parallel_tool_calls: true` two calls at once.
    """
    choice = request.get("tool_choice") or "auto"
    functions = [_mapping(_mapping(tool).get("function")) for tool in _list(request.get("tools"))]
    functions = [function for function in functions if isinstance(function.get("name"), str)]
    allowed = _mapping(_mapping(choice).get("allowed_tools"))
    if allowed:
        names = {_mapping(_mapping(tool).get("function")).get("name") for tool in _list(allowed.get("tools"))}
        functions = [function for function in functions if function["name"] in names]
        choice = allowed.get("mode")
    forced = choice == "required" or isinstance(choice, Mapping)
    if not functions or choice == "none" or not (forced or model == "tools"):
        return ()
    if messages[-1].get("role") == "tool" and not forced:
        return ()
    said = _asked(messages)
    functions.sort(key=lambda function: function["name"] not in said)
    if isinstance(choice, Mapping):
        named = _mapping(choice.get("function")).get("name")
        functions = [function for function in functions if function["name"] == named]
        if not functions:
            raise BadRequest("tool_choice names a function that is not among the tools.", "tool_choice")
    called = functions[:1]
    if request.get("parallel_tool_calls") is True and not isinstance(choice, Mapping):
        called = (functions * 2)[: max(2, min(len(functions), MAX_TOOL_CALLS))]
    return tuple(_call(function, _digest(seed.hex(), index), said) for index, function in enumerate(called))


def _asked(messages: list[Request]) -> str:
    """What the user said last."""
    return next((text_of(message) for message in reversed(messages) if message.get("role") == "user"), "")


def _call(function: Request, seed: bytes, said: str) -> ToolCall:
    value = instance(function.get("parameters"), seed, said)
    arguments = msgspec.json.encode(value if isinstance(value, dict) else {}).decode()
    return ToolCall(f"call_sim{seed.hex()[:20]}", function["name"], arguments)


def _shorten(choice: Choice, request: Request) -> Choice:
    """Cuts at the first stop sequence, then at the token limit, which counts reasoning too."""
    text, finish_reason = choice.text, "stop"
    stop = request.get("stop")
    for sequence in [stop] if isinstance(stop, str) else _list(stop)[:4]:
        if isinstance(sequence, str) and sequence:
            text = text.partition(sequence)[0]
    limit = request.get("max_completion_tokens")
    limit = request.get("max_tokens") if limit is None else limit
    reasoning = choice.reasoning
    if isinstance(limit, int) and tokens(reasoning) + tokens(text) > limit:
        reasoning = _clip(reasoning, limit)
        text, finish_reason = _clip(text, limit - tokens(reasoning)), "length"
    return Choice(text, reasoning, (), finish_reason)


def _clip(text: str, limit: int) -> str:
    return text.encode("utf-8", "replace")[: max(limit, 0) * BYTES_PER_TOKEN].decode("utf-8", "ignore")


def pieces(text: str, most: int = 2_048) -> list[str]:
    """The text as a stream gives it: words with the space before them, several at once if it is long."""
    words = re.findall(r"\s*\S+|\s+", text)
    size = -(-len(words) // most) or 1
    return ["".join(words[start : start + size]) for start in range(0, len(words), size)]


def text_of(message: Request) -> str:
    """The text of a message, whichever of the two forms its content has."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = (part.get("text") for part in _list(content) if isinstance(part, Mapping))
    return "\n".join(part for part in parts if isinstance(part, str))


def _prompt_tokens(messages: Iterable[Request], tools: object) -> int:
    total = tokens(msgspec.json.encode(tools).decode()) if tools else 0
    for message in messages:
        total += tokens(text_of(message))
        images = [part for part in _list(message.get("content")) if _mapping(part).get("type") == "image_url"]
        total += TOKENS_PER_IMAGE * len(images)
        for call in _list(message.get("tool_calls")):
            total += tokens(str(_mapping(_mapping(call).get("function")).get("arguments", "")))
    return max(total, 1)


def _spoken_tokens(choice: Choice) -> int:
    return tokens(choice.text) + sum(tokens(call.name) + tokens(call.arguments) for call in choice.tool_calls)


def _digest(*parts: object) -> bytes:
    return hashlib.blake2b(msgspec.json.encode(parts), digest_size=32).digest()


def _pick(lines: tuple[str, ...], seed: bytes, place: int) -> str:
    return lines[seed[place] % len(lines)]


def _vary(lines: tuple[str, ...], seed: bytes) -> list[str]:
    """The same lines in an order that the seed decides."""
    return [line for _, line in sorted(zip(seed[8:], lines, strict=False))]


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
