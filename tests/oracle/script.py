"""What a request asks the oracle to do, and what a request says: its text, its images, its tools. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Literal

import msgspec

from tests.oracle import mind

_MARKER = re.compile(r"@@(\{.*?\})@@", re.DOTALL)
_NONCE = re.compile(r"nonce=([A-Za-z0-9_.-]{1,64})")

WORDS = ("red", "tree", "house", "river", "stone", "cloud", "light", "road", "sea", "hill")


class BadScript(ValueError):
    """The marker cannot be read: the test is wrong, and is told so."""


class Script(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One answer, scripted. Without a marker: six words, at once, with exact usage."""

    status: int = 200
    times: int | None = None
    """How many of this nonce's first attempts the faults meet; after them the answer is healthy. None: all."""
    models: tuple[str, ...] = ()
    """The faults meet these upstream models only; none given: all."""
    retry_after: str | None = None
    message: str | None = None
    """The error's text."""
    code: str | None = None
    """OpenAI's error code, Anthropic's error type, Bedrock's exception, Google's status."""
    delay_ms: int = 0
    """Before the response head."""
    gap_ms: int = 0
    """Before each content event."""
    text: str | None = None
    """The whole text, in one piece; None: `pieces` words, each one token and one event."""
    pieces: int = 6
    thinking: int = 0
    """Words of reasoning before the text."""
    tools: int = 0
    """How many of the request's tools are called, in their order."""
    arguments: dict[str, Any] | None = None
    clever: bool = False
    """What to call and what to say follows from the request; see `mind`."""
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    cut: int | None = None
    """Drop the connection after so many content events; not streamed: in the middle of the body."""
    clean_cut: bool = False
    """End the body properly where `cut` says, but without the stream's own end."""
    error: int | None = None
    """An error event after so many content events."""
    usage: Literal["exact", "none", "twice"] = "exact"
    garbage: Literal["", "html", "not_http", "bad_json", "no_content", "coded"] = ""
    """`bad_json`: the third event of a stream is broken. The others replace the answer."""
    split: int = 0
    """Write at most so many bytes at a time, at places the seed decides; 0: each event as a whole."""
    comments: int = 0
    """SSE comments before the first event."""
    hang: bool = False
    """Never answer; the request ends when its sender hangs up."""

    def healthy(self) -> Script:
        """The same answer without its faults."""
        return msgspec.structs.replace(
            self, status=200, cut=None, error=None, garbage="", hang=False, delay_ms=0, retry_after=None
        )


class Wanted(msgspec.Struct, frozen=True):
    """A request as every API means it."""

    api: str
    model: str
    stream: bool
    include_usage: bool
    prompt: str
    """All text of the conversation, tools included."""
    images: int
    tools: tuple[str, ...]
    nonce: str
    script: Script

    @property
    def prompt_tokens(self) -> int:
        """Everything that is sent: a token for four bytes, 85 for an image, and what the script caches besides."""
        return -(-len(self.prompt.encode()) // 4) + 85 * self.images

    def words(self) -> list[str]:
        if self.script.text is not None:
            return [self.script.text]
        return [f" {WORDS[number % len(WORDS)]}" for number in range(self.script.pieces)]

    def thoughts(self) -> list[str]:
        return [f" {WORDS[-1 - number % len(WORDS)]}" for number in range(self.script.thinking)]

    def calls(self) -> list[tuple[str, dict[str, Any]]]:
        given = self.script.arguments
        return [
            (name, {"city": WORDS[number % len(WORDS)]} if given is None else given)
            for number, name in enumerate(self.tools[: self.script.tools])
        ]


def marker(**script: Any) -> str:
    """The words to put into a prompt; refuses what the oracle would not understand."""
    msgspec.convert(script, Script)
    return f"@@{msgspec.json.encode(script).decode()}@@"


def read(
    api: str,
    body: dict[str, Any],
    asked: Callable[[dict[str, Any]], mind.Asked],
    scripts: dict[str, Script],
    *,
    whole: dict[str, Any],
) -> Wanted:
    """
    `body` is a request in OpenAI's or Anthropic's words, `whole` the one that came, which is what `asked` reads;
    `scripts` says what a model does whose prompt holds no marker.
    """
    model = str(body.get("model", ""))
    messages: list[dict[str, Any]] = [one for one in body.get("messages") or [] if isinstance(one, dict)]
    from_user = [message for message in messages if message.get("role") == "user"]
    last = "\n".join(_texts(from_user[-1].get("content"))) if from_user else ""
    prompt = "\n".join(
        [*_texts(body.get("system")), *(text for one in messages for text in _texts(one.get("content")))]
    )
    nonce = _NONCE.search(prompt)
    found = _MARKER.search(last)
    try:
        script = msgspec.json.decode(found[1], type=Script) if found else scripts.get(model, Script())
    except msgspec.DecodeError as error:
        raise BadScript(f"the marker {found and found[1]} is no script: {error}") from error
    tools = [tool.get("function", tool) for tool in body.get("tools") or []]
    options = body.get("stream_options") or {}
    names = [str(tool.get("name")) for tool in tools]
    if script.clever:
        script, names = _clever(script, names, mind.think(asked(whole), last))
    return Wanted(
        api=api,
        model=model,
        stream=body.get("stream") is True,
        include_usage=options.get("include_usage") is True,
        prompt=prompt + (msgspec.json.encode(tools).decode() if tools else ""),
        images=sum(
            str(part.get("type")).startswith("image") for one in messages for part in _parts(one.get("content"))
        ),
        tools=tuple(names),
        nonce=nonce[1] if nonce else "",
        script=script,
    )


def _clever(
    script: Script, names: list[str], thought: mind.Thought | dict[str, Any] | None
) -> tuple[Script, list[str]]:
    if isinstance(thought, mind.Thought):
        names = [thought.tool, *(name for name in names if name != thought.tool)]
        return msgspec.structs.replace(script, tools=1, arguments=thought.arguments), names
    if thought is None:
        return script, names
    return msgspec.structs.replace(script, text=msgspec.json.encode(thought).decode()), names


def _parts(content: object) -> Iterator[dict[str, Any]]:
    if isinstance(content, list):
        for part in content:
            if isinstance(part, dict):
                yield part
                yield from _parts(part.get("content"))


def _texts(content: object) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    for part in _parts(content):
        if isinstance(part.get("text"), str):
            yield part["text"]
