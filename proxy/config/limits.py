"""The `limits` section, how fast whoever may ask; and `redis`, which several processes count in together."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from proxy.config import Model, Redis, SharedLimit
from proxy.config.keys import RATES, may_name
from proxy.config.problems import Report, Wrong, shown
from proxy.config.quantities import boolean, check_ports, choice, secret, text, whole_seconds
from proxy.config.reading import Key, Keys, child, flag_inline_secret, read_map
from proxy.config.yaml import Node, ScalarNode, SequenceNode

SCOPES = ("global", "model", "team", "user", "key")
MAX_BURST_SECONDS = 3_600


def _burst(node: Node) -> int:
    seconds = whole_seconds(node)
    if seconds > MAX_BURST_SECONDS:
        raise Wrong(f"must be from 1s to 1h, not {node}.")
    return seconds


_LIMIT: Keys = {
    "scope": Key("scope", choice(*SCOPES)),
    "name": Key("name", text),
    "model": Key("model", text),
    "burst": Key("burst_seconds", _burst),
    **RATES,
}


def read_limits(node: Node | None, models: Mapping[str, Model], report: Report) -> tuple[SharedLimit, ...]:
    if node is not None and not isinstance(node, SequenceNode):
        report.error(node.at, f"limits must be a list of {{scope, rpm, …}}, not {node}.")
        return ()
    found: list[SharedLimit] = []
    for place, item in enumerate(node.items if node is not None else []):
        limit = _limit(item, f"limits[{place}]", models, report)
        if limit is None:
            continue
        if any((limit.scope, limit.name, limit.model) == (one.scope, one.name, one.model) for one in found):
            report.error(item.at, f"limits[{place}]: another limit of this file is for the same. Put them together.")
        found.append(limit)
    return tuple(found)


def _limit(node: Node, path: str, models: Mapping[str, Model], report: Report) -> SharedLimit | None:
    fields = read_map(node, path, _LIMIT, report)
    if child(node, "scope") is None:
        report.error(node.at, f"{path} needs a scope.")
    if "scope" not in fields:
        return None
    scope = fields["scope"]
    if not fields.keys() & {key.field for key in RATES.values()}:
        if all(child(node, name) is None for name in RATES):
            report.error(node.at, f"{path} limits nothing: it needs rpm, tpm or max_parallel_requests.")
        return None
    problem = _misplaced(scope, fields)
    if problem:
        report.error(node.at, f"{path} {problem}.")
        return None
    if scope == "model":
        fields["model"] = fields.pop("name")
    elif scope == "global" and fields.get("model"):
        fields["scope"] = "model"
    model = fields.get("model", "")
    if model and not may_name(model, models):
        report.warning(node.at, f"{path}: no model is called {shown(model)}.")
    return SharedLimit(**fields)


def _misplaced(scope: str, fields: Mapping[str, Any]) -> str:
    if scope == "global" and fields.get("name"):
        return "is for everybody and has no name"
    if scope == "model" and not fields.get("name"):
        return "needs the name of a model"
    if scope == "model" and fields.get("model"):
        return "names its model already: leave out model"
    return ""


def _url(node: Node) -> object:
    url = secret(node)
    if not url.reveal().startswith(("redis://", "rediss://", "unix://")):
        raise Wrong("must begin with redis:// or, with TLS, rediss://; leave it out to count in each process alone.")
    if not url.reveal().startswith("unix://"):
        check_ports(url.reveal())
        number = re.split("[?#]", url.reveal().partition("://")[2])[0].partition("/")[2].strip("/")
        if number and not number.isdigit():
            raise Wrong("must end with the number of a database, like /0, or with the port.")
    return url


def _prefix(node: Node) -> str:
    prefix = text(node)
    if not re.fullmatch(r"[A-Za-z0-9._:-]{1,64}", prefix):
        raise Wrong(f"must be up to 64 letters, digits and . _ : -, not {node}.")
    return prefix


_REDIS: Keys = {
    "url": Key("url", _url),
    "limits": Key("limits", choice("shares", "strict")),
    "sentinel_master": Key("sentinel_master", text),
    "cluster": Key("cluster", boolean),
    "prefix": Key("prefix", _prefix),
}


def read_redis(node: Node | None, report: Report) -> Redis:
    fields = read_map(node, "redis", _REDIS, report)
    url = child(node, "url")
    if isinstance(url, ScalarNode) and "@" in url.text and ":" in url.text.partition("://")[2].rpartition("@")[0]:
        flag_inline_secret(url, "redis.url", "REDIS_URL", report)
    if node is not None and fields.get("cluster") and fields.get("sentinel_master"):
        report.error(node.at, "redis.sentinel_master and redis.cluster exclude each other.")
    return Redis(**fields)
