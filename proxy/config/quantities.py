"""
Nodes to values: text, numbers, durations, sizes, money. Each raises `Wrong` with the end of a sentence that begins with
the value's path. No float touches money.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from proxy.config import Secret
from proxy.config.problems import Wrong
from proxy.config.yaml import MappingNode, Node, ScalarNode, SequenceNode, kind_of

Parse = Callable[[Node], Any]

_DURATION = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?)(?P<unit>ms|s|m|h|d|)")
_SECONDS = {"": Decimal(1), "ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600)}
_SECONDS["d"] = Decimal(86_400)
_SIZE = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?) ?(?P<unit>B|[kK]B|MB|GB|KiB|MiB|GiB|)")
_BYTES = {"": 1, "B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_DECIMAL = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,12})?(?:[eE][-+]?[0-9]{1,2})?|\.[0-9]{1,12}")
_BIGINT = 2**63 - 1
_YEAR_SECONDS = 365 * 86_400


def text(node: Node) -> str:
    """Text that is not empty and holds no line end or control character."""
    if not isinstance(node, ScalarNode):
        raise Wrong(f"must be text, not {node}.")
    if node.kind not in ("text", "any"):
        raise Wrong(f'must be text, not {node}: put quotes around it, "{node.text}".')
    if not node.text or not node.text.isprintable():
        raise Wrong("must be one line of text that is not empty.")
    return node.text


def secret(node: Node) -> Secret:
    if not isinstance(node, ScalarNode):
        raise Wrong(f"must be text, not {node}.")
    if not node.text or not node.text.isprintable() or not node.text.isascii() or " " in node.text.strip():
        raise Wrong(
            "must be one word of plain ASCII; it holds a space, a line end or another character that no key has."
        )
    return Secret(node.text.strip())


def check_ports(url: str) -> None:
    """Of an address that may name several hosts. Raises Wrong, which quotes nothing: a password may be cut there."""
    hosts = re.split("[/?#]", url.partition("://")[2])[0].rpartition("@")[2]
    for host in hosts.split(","):
        port = host.rpartition("]")[2].partition(":")[2]
        if port and not (port.isdigit() and 1 <= int(port) <= 65_535):
            raise Wrong(
                "has no number where its port should be. In a password write : / ? # [ ] @ % as %3A %2F %3F %23 %5B "
                "%5D %40 %25."
            )


def secret_document(node: Node) -> Secret:
    """A secret that is a file's name or its content, and goes into no header."""
    return Secret(text(node).strip())


def boolean(node: Node) -> bool:
    if isinstance(node, ScalarNode) and _kind(node) == "boolean":
        return node.text.lower() == "true"
    raise Wrong(f"must be true or false, not {node}.")


def integer(low: int, high: int) -> Parse:
    def parse(node: Node) -> int:
        number: int | None = None
        if isinstance(node, ScalarNode) and _kind(node) == "integer" and len(node.text) <= 20:
            number = int(node.text, 0) if node.text[:2] in ("0x", "0o") else int(node.text)
        if number is None or not low <= number <= high:
            quotes = (
                " in quotes" if isinstance(node, ScalarNode) and node.kind == "text" and node.text.isdigit() else ""
            )
            raise Wrong(f"must be a whole number from {low} to {high}, not {node}{quotes}.")
        return number

    return parse


def choice(*options: str) -> Parse:
    def parse(node: Node) -> str:
        if not isinstance(node, ScalarNode) or node.text not in options:
            raise Wrong(f"must be {' or '.join(options)}, not {node}.")
        return node.text

    return parse


def duration(low: float = 0.0, high: float = _YEAR_SECONDS) -> Parse:
    """Seconds as a float: `30s`, `5m`, `2h`, `30d`, `250ms`, or a bare number of seconds."""

    def parse(node: Node) -> float:
        seconds = _duration(node)
        if not low <= seconds <= high:
            raise Wrong(f"must be from {_seconds(low)} to {_seconds(high)}, not {node}.")
        return float(seconds)

    return parse


def whole_seconds(node: Node) -> int:
    """A period of at least a second, as whole seconds."""
    seconds = _duration(node)
    if seconds != int(seconds) or not 1 <= seconds <= 10 * _YEAR_SECONDS:
        raise Wrong(f"must be whole seconds from 1s to 3650d, not {node}.")
    return int(seconds)


def size(low: int, high: int) -> Parse:
    """Bytes: `10MB`, `64KiB`, or a bare number."""

    def parse(node: Node) -> int:
        match = _SIZE.fullmatch(node.text) if isinstance(node, ScalarNode) else None
        if match is None or len(match["number"]) > 20:
            raise Wrong(f"must be a size like 10MB or 64KiB, or a number of bytes, not {node}.")
        amount = Decimal(match["number"]) * _BYTES[match["unit"]]
        if amount != int(amount) or not low <= amount <= high:
            raise Wrong(f"must be from {low} to {high} bytes, not {node}.")
        return int(amount)

    return parse


def dollars(node: Node) -> int:
    """Dollars as nano-dollars."""
    amount = _decimal(node) * 10**9
    if amount != int(amount) or amount > _BIGINT:
        raise Wrong(f"must be dollars with at most nine decimal places, not {node}.")
    return int(amount)


def dollars_per_million(node: Node) -> int:
    """Dollars per million tokens as pico-dollars a token; what is finer than that cannot be kept exactly."""
    amount = _decimal(node) * 1_000_000
    if amount != int(amount) or amount > _BIGINT:
        raise Wrong(f"must be dollars per million tokens in steps of 0.000001, not {node}.")
    return int(amount)


def dollars_per_thousand(node: Node) -> int:
    """Dollars per thousand as pico-dollars of one."""
    amount = _decimal(node) * 10**9
    if amount != int(amount) or amount > _BIGINT:
        raise Wrong(f"must be dollars per thousand in steps of 0.000000001, not {node}.")
    return int(amount)


def day(node: Node) -> int:
    """The beginning of a day, in UTC, as Unix milliseconds."""
    text = node.text if isinstance(node, ScalarNode) else ""
    try:
        moment = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise Wrong(f"must be a day like 2026-12-01 (it begins at midnight, UTC), not {node}.") from None
    return int(moment.timestamp()) * 1000


def texts(node: Node) -> tuple[str, ...]:
    """A list of texts; one text alone, or several with commas from the environment, count as a list."""
    if isinstance(node, SequenceNode):
        return tuple(text(item) for item in node.items)
    if isinstance(node, ScalarNode) and node.kind in ("text", "any"):
        parts = node.text.split(",") if node.kind == "any" else [node.text]
        return tuple(text(ScalarNode(node.at, part.strip(), "any", node.origin)) for part in parts)
    raise Wrong(f"must be a list of texts, not {node}.")


def text_map(node: Node) -> dict[str, str]:
    if not isinstance(node, MappingNode):
        raise Wrong(f"must be a map of texts, not {node}.")
    return {name: text(entry.value) for name, entry in node.entries.items()}


def json_map(node: Node) -> dict[str, Any]:
    """A map of anything that JSON can hold."""
    if not isinstance(node, MappingNode):
        raise Wrong(f"must be a map, not {node}.")
    return {name: json_value(entry.value) for name, entry in node.entries.items()}


def json_value(node: Node) -> Any:
    if isinstance(node, MappingNode):
        return json_map(node)
    if isinstance(node, SequenceNode):
        return [json_value(item) for item in node.items]
    kind = _kind(node)
    if kind == "null":
        return None
    if kind == "boolean":
        return node.text.lower() == "true"
    if kind == "integer":
        return integer(-(2**63), _BIGINT)(node)
    if kind == "number":
        number = float(node.text) if node.text[-1].isdigit() or node.text[-1] == "." else math.inf
        if not math.isfinite(number):
            raise Wrong(f"must hold only numbers that JSON knows, not {node}.")
        return number
    return node.text


def _kind(node: ScalarNode) -> str:
    return kind_of(node.text) if node.kind == "any" else node.kind


def _decimal(node: Node) -> Decimal:
    if not isinstance(node, ScalarNode) or not _DECIMAL.fullmatch(node.text):
        raise Wrong(f"must be dollars like 5 or 0.25, not {node}.")
    return Decimal(node.text)


def _duration(node: Node) -> Decimal:
    match = _DURATION.fullmatch(node.text) if isinstance(node, ScalarNode) else None
    if match is None or len(match["number"]) > 20:
        raise Wrong(f"must be a duration like 30s, 5m, 2h or 30d, or a number of seconds, not {node}.")
    return Decimal(match["number"]) * _SECONDS[match["unit"]]


def _seconds(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:g}{unit}"
    return f"{seconds:g}s"
