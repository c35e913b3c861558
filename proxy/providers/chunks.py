"""
`ChunkWriter` keeps what every OpenAI client relies on in a stream, whatever order a provider says things in: the role
first and once; tool calls numbered from 0 in order of appearance, each with one id and one name; one finish reason; the
usage last and once, with no choices. A decoder hands it facts and passes on the chunks that come back.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from proxy.providers import Chunk, Json

FINISH_REASONS = frozenset({"stop", "length", "tool_calls", "content_filter", "function_call"})
"""OpenAI's five. No other value ever leaves; the provider's own goes beside it as `native_finish_reason`."""

JOINED = frozenset({"type", "text", "summary", "data", "signature"})
"""Fields of a list's entry that grow from piece to piece; `type` is the one that clients do not join."""


def settled_finish(reason: str, *, has_calls: bool) -> str:
    """`tool_calls` exactly where there are calls: some providers say it without one, others say `stop` with some."""
    if reason == "tool_calls" and not has_calls:
        return "stop"
    return "tool_calls" if reason == "stop" and has_calls else reason


@dataclass(slots=True)
class _Choice:
    index: int
    started: bool = False
    finish: Json | None = None
    calls: dict[object, int] = field(default_factory=dict)
    silent: set[int] = field(default_factory=set)
    """Calls that have shown no arguments yet."""
    entries: dict[str, dict[object, tuple[int, set[str]]]] = field(default_factory=dict)
    """Lists of objects other than calls, by field: what the provider counts an entry by, and its place."""

    def chunk(self, delta: Json, extra: Json | None = None, finish_reason: str | None = None) -> Chunk:
        choice = {"index": self.index, "delta": delta, "finish_reason": finish_reason}
        return {"choices": [{**choice, **extra} if extra else choice]}

    def placed(self, name: str, pieces: list[Json]) -> list[Json]:
        """
        The pieces of a list in a delta, each with its place in the whole list as `index`. A piece that goes on with an
        entry leaves out what the entry has said of itself: clients join strings, so a second `format` would double it.
        """
        known = self.entries.setdefault(name, {})
        placed = []
        for piece in pieces:
            key = piece["index"] if isinstance(piece.get("index"), int) else ("new", len(known))
            place, said = known.setdefault(key, (len(known), set()))
            new = {field: value for field, value in piece.items() if field in JOINED or field not in said}
            said.update(new)
            placed.append({**new, "index": place})
        return placed


class ChunkWriter:
    """
    The state of one answer stream, as the client will see it. Methods return the chunks to send now.

    The role waits for the first content, so the first chunk of a stream means that the answer has begun. The finish
    reason and the usage wait for `end`, because providers repeat both.
    """

    __slots__ = ("_choices", "_usage")

    def __init__(self) -> None:
        self._choices: dict[int, _Choice] = {}
        self._usage: Json | None = None

    def delta(self, delta: Json, *, choice: int = 0, extra: Json | None = None) -> list[Chunk]:
        """
        Fields of a delta other than `role` and `tool_calls`; `extra` are fields of the choice beside it. The objects of
        a list get their places, because OpenAI's SDKs put a stream together by them; pieces of one entry come with the
        same `index`, whichever it is.
        """
        state = self._choice(choice)
        for name, value in delta.items():
            if isinstance(value, list) and value and isinstance(value[0], dict):
                delta = {**delta, name: state.placed(name, value)}
        return [*self._role(state), state.chunk(delta, extra)]

    def tool_call(
        self, key: object, *, id: str | None, name: str, arguments: str = "", choice: int = 0, extra: Json | None = None
    ) -> list[Chunk]:
        """A new call. `key` is whatever the provider counts by; `arguments` is their first piece."""
        state = self._choice(choice)
        number = len(state.calls)
        state.calls[key] = number
        if not arguments:
            state.silent.add(number)
        call: Json = {"index": number, "type": "function", "function": {"name": name, "arguments": arguments}}
        if id:
            call = {"index": number, "id": id, **call}
        return [*self._role(state), state.chunk({"tool_calls": [{**call, **(extra or {})}]})]

    def arguments(self, key: object, piece: str, *, choice: int = 0) -> list[Chunk]:
        """The next piece of a call's arguments."""
        state = self._choice(choice)
        if not piece:
            return []
        number = state.calls[key]
        state.silent.discard(number)
        return [state.chunk({"tool_calls": [{"index": number, "function": {"arguments": piece}}]})]

    def complete(self, key: object, arguments: str = "{}", *, choice: int = 0) -> list[Chunk]:
        """A call is whole. One that showed no arguments gets `arguments`, so that clients can parse them."""
        number = self._choice(choice).calls[key]
        return self.arguments(key, arguments, choice=choice) if number in self._choice(choice).silent else []

    def knows(self, key: object, *, choice: int = 0) -> bool:
        """Whether a call with this key has begun."""
        return key in self._choice(choice).calls

    def finish(self, finish: Json, *, choice: int = 0) -> None:
        """Why a choice ended: its `finish_reason` and fields to stand beside it. The first one counts."""
        state = self._choice(choice)
        if state.finish is None:
            state.finish = finish

    def usage(self, usage: Json) -> None:
        """Tokens so far, in OpenAI's shape; the last one counts."""
        self._usage = usage

    def end(self) -> list[Chunk]:
        """The closing chunks: what calls still owe, a finish for each choice, the usage."""
        chunks: list[Chunk] = []
        for state in self._choices.values():
            chunks += self._role(state)
            for key in list(state.calls):
                chunks += self.complete(key, choice=state.index)
            extra = dict(state.finish or {"finish_reason": "stop"})
            reason = settled_finish(extra.pop("finish_reason"), has_calls=bool(state.calls))
            chunks.append(state.chunk({}, extra, reason))
        if self._usage is not None:
            chunks.append({"choices": [], "usage": self._usage})
        return chunks

    @property
    def begun(self) -> bool:
        """Whether the answer has a choice at all."""
        return bool(self._choices)

    @property
    def finished(self) -> bool:
        """Whether every choice that began has its finish reason."""
        return self.begun and all(state.finish for state in self._choices.values())

    @property
    def usage_so_far(self) -> Json | None:
        """What the provider has reported up to here; all there is when a stream is cut."""
        return self._usage

    def _choice(self, index: int) -> _Choice:
        state = self._choices.get(index)
        if state is None:
            state = self._choices[index] = _Choice(index)
        return state

    def _role(self, state: _Choice) -> list[Chunk]:
        if state.started:
            return []
        state.started = True
        return [state.chunk({"role": "assistant", "content": ""})]
