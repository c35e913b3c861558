"""
YAML as nodes that know where they stand, by the rules of YAML 1.2: `no` and `on` are text, 010 is ten, 12:30 is text,
1e3 is a number. The tree is built from PyYAML's events, so that depth and size are bounded before anything grows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from proxy.config.problems import ConfigError, Mark, Problem, shown

MAX_BYTES = 1_000_000
MAX_NODES = 50_000
MAX_DEPTH = 40

Kind = Literal["text", "integer", "number", "boolean", "null", "any"]

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_NUMBER = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_FLOW_REFERENCE = re.compile(r"""(?P<key>[\w-]+:\s+)?(?P<reference>\$\{[^}"']*\})""")
_STRING_TAGS = ("!", "tag:yaml.org,2002:str")


@dataclass(frozen=True, slots=True, repr=False)
class ScalarNode:
    at: Mark
    text: str
    kind: Kind = "text"
    """`any`: it came from a reference or the environment, and is what the reader needs it to be."""
    origin: str = ""
    """The reference it came from, which may be shown; the text then may not."""

    def __str__(self) -> str:
        if self.origin:
            return f"what {self.origin} holds"
        return shown(self.text) if self.text or self.kind == "text" else "nothing"


@dataclass(frozen=True, slots=True, repr=False)
class Entry:
    key: ScalarNode
    value: Node


@dataclass(frozen=True, slots=True, repr=False)
class MappingNode:
    at: Mark
    entries: dict[str, Entry]

    def __str__(self) -> str:
        return "a map"


@dataclass(frozen=True, slots=True, repr=False)
class SequenceNode:
    at: Mark
    items: list[Node]

    def __str__(self) -> str:
        return "a list"


Node = ScalarNode | MappingNode | SequenceNode


def kind_of(text: str) -> Kind:
    """What a plain scalar means in the core schema of YAML 1.2."""
    if text in ("", "~", "null", "Null", "NULL"):
        return "null"
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return "boolean"
    if _INTEGER.fullmatch(text):
        return "integer"
    return "number" if _NUMBER.fullmatch(text) else "text"


def is_null(node: Node) -> bool:
    return isinstance(node, ScalarNode) and (node.kind == "null" or (node.kind == "any" and not node.text))


def parse(data: bytes, file: str) -> Node:
    """The one document in `data`. Raises ConfigError with the first thing that is not YAML, or not ours."""
    if len(data) > MAX_BYTES:
        raise _refusal(Mark(file), f"the file has {len(data)} bytes; {MAX_BYTES} are allowed.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _refusal(Mark(file, data.count(b"\n", 0, error.start) + 1), "the file is not UTF-8 text.") from None
    try:
        return _Builder(text, file).document()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _refusal(Mark(file, line), "there is a control character, which YAML does not allow.") from None
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, text, file) from None


class _Builder:
    """Events to nodes. An alias is built again from its anchor's events' node, and counts as often as it is used."""

    def __init__(self, text: str, file: str) -> None:
        self._file = file
        self._events: Iterator[yaml.Event] = yaml.parse(text, Loader=_LOADER)
        self._anchors: dict[str, tuple[Node, int, int]] = {}
        """By name: the node, how many nodes it is, how deep it goes."""
        self._count = 0
        self._deepest = 0

    def document(self) -> Node:
        root: Node | None = None
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                if root is not None:
                    raise _refusal(self._mark(event), "there is a second document; the file holds one.")
                root = self._node(next(self._events), 0)
        return root if root is not None else ScalarNode(Mark(self._file, 1, 1), "", "null")

    def _mark(self, event: yaml.Event) -> Mark:
        start = event.start_mark
        return Mark(self._file, start.line + 1, start.column + 1) if start else Mark(self._file)

    def _node(self, event: yaml.Event, depth: int) -> Node:
        at = self._mark(event)
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self._anchors:
                raise _refusal(at, f'there is no finished anchor "&{event.anchor}" above this "*{event.anchor}".')
            known, size, height = self._anchors[event.anchor]
            self._grow(size, depth + height, at)
            return known
        before, deepest = self._count, self._deepest
        self._deepest = depth
        self._grow(1, depth, at)
        node: Node
        if isinstance(event, yaml.ScalarEvent):
            node = self._scalar(event, at)
        elif isinstance(event, yaml.SequenceStartEvent):
            self._refuse_tag(event.tag, at)
            items: list[Node] = []
            while not isinstance(inner := next(self._events), yaml.SequenceEndEvent):
                items.append(self._node(inner, depth + 1))
            node = SequenceNode(at, items)
        else:
            assert isinstance(event, yaml.MappingStartEvent)
            self._refuse_tag(event.tag, at)
            node = self._mapping(at, depth)
        if event.anchor:
            self._anchors[event.anchor] = (node, self._count - before, self._deepest - depth)
        self._deepest = max(deepest, self._deepest)
        return node

    def _grow(self, size: int, depth: int, at: Mark) -> None:
        self._count += size
        self._deepest = max(self._deepest, depth)
        if self._count > MAX_NODES:
            raise _refusal(at, f"the file has more than {MAX_NODES} values once its aliases are written out.")
        if depth > MAX_DEPTH:
            raise _refusal(at, f"this is nested more than {MAX_DEPTH} deep.")

    def _refuse_tag(self, tag: str | None, at: Mark) -> None:
        if tag not in (None, "!"):
            raise _refusal(at, f"the tag {tag} means nothing here; leave it out.")

    def _scalar(self, event: yaml.ScalarEvent, at: Mark) -> ScalarNode:
        if event.tag not in (None, *_STRING_TAGS):
            self._refuse_tag(event.tag, at)
        plain = event.implicit[0] and event.tag is None
        return ScalarNode(at, event.value, kind_of(event.value) if plain else "text")

    def _mapping(self, at: Mark, depth: int) -> MappingNode:
        entries: dict[str, Entry] = {}
        merged: dict[str, Entry] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._node(event, depth + 1)
            if not isinstance(key, ScalarNode):
                raise _refusal(key.at, f"a key is text, not {key}.")
            value = self._node(next(self._events), depth + 1)
            if key.text == "<<":
                merged = {**_merge(value), **merged}
            elif key.text in entries:
                first = entries[key.text].key.at
                raise _refusal(key.at, f"the key {shown(key.text)} stands here twice; first on line {first.line}.")
            else:
                entries[key.text] = Entry(key, value)
        return MappingNode(at, {**merged, **entries})


def _merge(value: Node) -> dict[str, Entry]:
    """`<<: *anchor` or `<<: [*one, *two]`; the first named wins."""
    maps = value.items if isinstance(value, SequenceNode) else [value]
    merged: dict[str, Entry] = {}
    for item in maps:
        if not isinstance(item, MappingNode):
            raise _refusal(item.at, f'"<<" takes a map or a list of maps, not {item}.')
        merged = {**item.entries, **merged}
    return merged


def _refusal(at: Mark, message: str) -> ConfigError:
    return ConfigError([Problem(at.line, at.column, "error", message, at.file)])


def _syntax_error(error: yaml.MarkedYAMLError, text: str, file: str) -> ConfigError:
    lines = text.splitlines()
    for mark in (error.problem_mark, error.context_mark):
        if mark is None or mark.line >= len(lines):
            continue
        trap = _flow_trap(lines[mark.line])
        if trap:
            return _refusal(Mark(file, mark.line + 1, trap[0] + 1), trap[1])
    mark = error.problem_mark or error.context_mark
    at = Mark(file, mark.line + 1, mark.column + 1) if mark else Mark(file)
    if mark and mark.line < len(lines) and lines[mark.line][mark.column : mark.column + 1] == "\t":
        return _refusal(at, "there is a tab, and YAML is indented by spaces only: replace it.")
    return _refusal(at, f"this is not valid YAML: {error.problem or error.context}.")


def _flow_trap(line: str) -> tuple[int, str] | None:
    """The first `${X}` inside { } or [ ] on a line that has no quotes around it: its column, and what to say."""
    for match in _FLOW_REFERENCE.finditer(line):
        before, reference = line[: match.start("reference")], match["reference"]
        quoted = before.count('"') % 2 or before.count("'") % 2
        if quoted or not ("{" in before or "[" in before):
            continue
        left, right = "{}" if before.rfind("{") > before.rfind("[") else "[]"
        message = (
            f"{left}{match['key'] or ''}{reference}{right} is not valid YAML: "
            f'inside {left} {right} put quotes around "{reference}".'
        )
        return match.start("reference"), message
    return None
