"""The `budgets` section: limits for everybody, for a provider, a team or a user; and how a window is written."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Literal, NamedTuple

from proxy.config import SharedBudget
from proxy.config.problems import Mark, Report, Wrong, shown, suggestion
from proxy.config.quantities import choice, dollars, text, whole_seconds
from proxy.config.reading import Key, child, read_map
from proxy.config.yaml import Node, ScalarNode, SequenceNode

SCOPES = ("global", "provider", "team", "user")


class Window(NamedTuple):
    """How often a budget starts again: every so many seconds (from the epoch, UTC), or with the calendar (UTC)."""

    seconds: int | None = None
    calendar: Literal["day", "week", "month"] | None = None


_CALENDAR: dict[str, Window] = {
    "day": Window(calendar="day"),
    "week": Window(calendar="week"),
    "month": Window(calendar="month"),
    "1mo": Window(calendar="month"),
}


def window(node: Node) -> Window:
    """`30d`, `1h`, or `month`, `week`, `day`: those begin with the calendar's."""
    if isinstance(node, ScalarNode) and node.text in _CALENDAR:
        return _CALENDAR[node.text]
    try:
        return Window(seconds=whole_seconds(node))
    except Wrong as wrong:
        raise Wrong(f"{str(wrong).rstrip('.')}. For the calendar's write day, week or month.") from None


def shortest(seconds: int | None, calendar: str | None) -> str:
    """A window as it would be written: `month`, `30d`, `90m`; `ever` for none."""
    if calendar is not None or seconds is None:
        return calendar or "ever"
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds % length == 0:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def amount(flag: str, value: str) -> tuple[int, Window]:
    """`5/1d`, `500/month`, `100`: nano-dollars and how often they are there anew. Raises `Wrong`."""
    money, slash, period = value.partition("/")
    length: Window = parsed(flag, period, window) if slash else Window()
    return parsed(flag, money.removeprefix("$"), dollars), length


def parsed(flag: str, value: str, parse: Callable[[ScalarNode], Any]) -> Any:
    try:
        return parse(ScalarNode(Mark(flag), value.strip(), "any"))
    except Wrong as wrong:
        raise Wrong(f"{flag} {wrong}") from None


def written(nano_usd: int, seconds: int | None, calendar: str | None) -> str:
    """The way back: `5/1d`, `0.25/month`, `100`."""
    whole, rest = divmod(nano_usd, 10**9)
    money = f"{whole}.{rest:09}".rstrip("0").rstrip(".")
    return money if calendar is None and seconds is None else f"{money}/{shortest(seconds, calendar)}"


_BUDGET = {
    "scope": Key("scope", choice(*SCOPES)),
    "name": Key("name", text),
    "max_budget": Key("limit_nano_usd", dollars),
    "budget_duration": Key("window", window),
}


def read_budgets(node: Node | None, providers: Collection[str], report: Report) -> tuple[SharedBudget, ...]:
    if node is not None and not isinstance(node, SequenceNode):
        report.error(node.at, f"budgets must be a list of {{scope, max_budget, …}}, not {node}.")
        return ()
    found: list[SharedBudget] = []
    for place, item in enumerate(node.items if node is not None else []):
        budget = _budget(item, f"budgets[{place}]", providers, report)
        if budget is None:
            continue
        if any(_same(budget, other) for other in found):
            report.error(item.at, f"budgets[{place}]: another budget of this file is for the same and as long.")
        found.append(budget)
    return tuple(found)


def _budget(node: Node, path: str, providers: Collection[str], report: Report) -> SharedBudget | None:
    fields = read_map(node, path, _BUDGET, report)
    for name in ("scope", "max_budget"):
        if child(node, name) is None:
            report.error(node.at, f"{path} needs a {name}.")
    if "scope" not in fields or "limit_nano_usd" not in fields:
        return None
    scope, name = fields["scope"], fields.get("name", "")
    if (scope == "global") == bool(name):
        why = "is for everybody and has no name" if name else f"needs the name of a {scope}"
        report.error(node.at, f"{path} {why}.")
        return None
    if scope == "provider" and name not in providers:
        report.error(node.at, f"{path}.name: no provider is called {shown(name)}.{suggestion(name, providers)}")
        return None
    length = fields.get("window", Window())
    return SharedBudget(
        scope=scope,
        name=name,
        limit_nano_usd=fields["limit_nano_usd"],
        window_seconds=length.seconds,
        calendar=length.calendar,
    )


def _same(one: SharedBudget, other: SharedBudget) -> bool:
    return (one.scope, one.name, one.window_seconds, one.calendar) == (
        other.scope,
        other.name,
        other.window_seconds,
        other.calendar,
    )
