"""
The `alerts` section: where word is sent, and of what. Without rules of its own, a file with channels gets the usual
ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

from proxy.config import AlertRule, Alerts, Channel, Email, Secret, Slack, Smtp, Webhook
from proxy.config.problems import Mark, Report, Wrong, shown, suggestion
from proxy.config.quantities import Parse, choice, dollars, integer, secret, text, texts
from proxy.config.reading import Key, child, entries_of, flag_inline_secret, read_map
from proxy.config.yaml import Node, ScalarNode, SequenceNode, is_null

WHEN = ("budget_used", "budget_forecast", "spend", "unpriced_requests")
PER = ("all", "key", "user", "team", "provider", "model")
USUAL = (
    AlertRule(name="budgets", when="budget_used", above=(500, 800, 1000)),
    AlertRule(name="forecast", when="budget_forecast"),
    AlertRule(name="unpriced", when="unpriced_requests", above=(0,)),
)


def web_address(node: Node) -> Secret:
    url = secret(node)
    parts = urlsplit(url.reveal())
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise Wrong("must be an address like https://hooks.example.com/strata.")
    return url


def mail_addresses(node: Node) -> tuple[str, ...]:
    found = texts(node)
    for address in found:
        name, at, host = address.rpartition("@")
        if not (name and at and host) or not address.isprintable() or " " in address or "," in address:
            raise Wrong(f"must be mail addresses like ops@example.com, not {shown(address)}.")
    return found


def mail_address(node: Node) -> str:
    return mail_addresses(node)[0]


_CHANNELS: Mapping[str, tuple[type[Any], Mapping[str, Key], tuple[str, ...]]] = {
    "webhook": (Webhook, {"url": Key("url", web_address), "secret": Key("secret", secret)}, ("url",)),
    "slack": (Slack, {"url": Key("url", web_address)}, ("url",)),
    "email": (Email, {"to": Key("to", mail_addresses)}, ("to",)),
}
_SMTP = {
    "host": Key("host", text),
    "from": Key("sender", mail_address),
    "port": Key("port", integer(1, 65_535)),
    "user": Key("user", text),
    "password": Key("password", secret),
    "security": Key("security", choice("starttls", "tls", "none")),
}
_RULE = {
    "name": Key("name", text),
    "when": Key("when", choice(*WHEN)),
    "per": Key("per", choice(*PER)),
    "notify": Key("notify", texts),
}


def read_alerts(node: Node | None, report: Report) -> Alerts:
    read_map(node, "alerts", {}, report, besides=("channels", "smtp", "rules"))
    channels = _channels(child(node, "channels"), report)
    smtp = _smtp(child(node, "smtp"), report)
    if smtp is None and any(isinstance(channel, Email) for channel in channels):
        at = node.at if node is not None else Mark("environment")
        report.error(at, "alerts.smtp is missing: an email channel needs a server to send by.")
    rules = _rules(child(node, "rules"), [channel.name for channel in channels], report)
    if rules is None:
        rules = USUAL if channels else ()
    return Alerts(channels=tuple(channels), smtp=smtp, rules=rules)


def _channels(node: Node | None, report: Report) -> list[Channel]:
    found: list[Channel] = []
    for name, entry in entries_of(node, "alerts.channels", report):
        path = f"alerts.channels.{name}"
        kind_node = child(entry.value, "type")
        kind = kind_node.text if isinstance(kind_node, ScalarNode) else ""
        if kind not in _CHANNELS:
            hint = suggestion(kind, _CHANNELS) if kind else ""
            report.error(entry.key.at, f"{path} needs a type: {', '.join(_CHANNELS)}.{hint}")
            continue
        struct, keys, needed = _CHANNELS[kind]
        fields = read_map(entry.value, path, keys, report, besides=("type",))
        for key in needed:
            if child(entry.value, key) is None:
                report.error(entry.key.at, f"{path} needs {key}.")
        flag_inline_secret(child(entry.value, "secret"), f"{path}.secret", "ALERT_SECRET", report)
        if all(keys[key].field in fields for key in needed):
            found.append(struct(name=name, **fields))
    return found


def _smtp(node: Node | None, report: Report) -> Smtp | None:
    if node is None:
        return None
    fields = read_map(node, "alerts.smtp", _SMTP, report)
    flag_inline_secret(child(node, "password"), "alerts.smtp.password", "SMTP_PASSWORD", report)
    for key in ("host", "from"):
        if child(node, key) is None:
            report.error(node.at, f"alerts.smtp needs {key}.")
    if "host" not in fields or "sender" not in fields:
        return None
    return Smtp(**fields)


def _rules(node: Node | None, channels: list[str], report: Report) -> tuple[AlertRule, ...] | None:
    if node is None or is_null(node):
        return None
    if not isinstance(node, SequenceNode):
        report.error(node.at, f"alerts.rules must be a list of {{name, when, …}}, not {node}.")
        return None
    found: dict[str, AlertRule] = {}
    for place, item in enumerate(node.items):
        path = f"alerts.rules[{place}]"
        fields = read_map(item, path, _RULE, report, besides=("above",))
        for key in ("name", "when"):
            if child(item, key) is None:
                report.error(item.at, f"{path} needs {key}.")
        for name in fields.get("notify", ()):
            if name not in channels:
                report.error(item.at, f"{path}.notify: no channel is called {shown(name)}.{suggestion(name, channels)}")
        if "name" not in fields or "when" not in fields:
            continue
        if fields["name"] in found:
            report.error(item.at, f"{path}: another rule is called {shown(fields['name'])}.")
        fields["above"] = _above(child(item, "above"), fields["when"], f"{path}.above", item, report)
        found[fields["name"]] = AlertRule(**fields)
    return tuple(found.values())


def _above(node: Node | None, when: str, path: str, rule: Node, report: Report) -> tuple[int, ...]:
    """One threshold or a list, in the unit of what the rule looks at."""
    usual: dict[str, tuple[int, ...]] = {rule.when: rule.above for rule in USUAL}
    if node is None:
        if when == "spend":
            report.error(rule.at, f"{path} is missing: a spend needs an amount in dollars, for example 50.")
        return usual.get(when, ())
    if when == "budget_forecast":
        report.error(node.at, f"{path} has no meaning for budget_forecast: it looks for a budget that will not last.")
        return ()
    parse: Parse = {"budget_used": _part, "spend": dollars, "unpriced_requests": integer(0, 10**9)}[when]
    found = []
    for item in node.items if isinstance(node, SequenceNode) else [node]:
        try:
            found.append(parse(item))
        except Wrong as wrong:
            report.error(item.at, f"{path} {wrong}")
    return tuple(sorted(set(found)))


def _part(node: Node) -> int:
    """`0.8` or `80%` of a budget, in thousandths."""
    written = node.text.strip() if isinstance(node, ScalarNode) else ""
    try:
        part = Decimal(written[:-1]) / 100 if written.endswith("%") else Decimal(written)
    except ArithmeticError:
        part = Decimal(-1)
    if not Decimal("0.001") <= part <= 10 or part * 1000 != int(part * 1000):
        raise Wrong(f"must be a part of the budget like 0.8 or 80%, not {node}.")
    return int(part * 1000)
