"""
config.yaml and the environment become one frozen `Config`, or a `ConfigError` that names everything that is wrong.

What wins: a flag (the command line replaces fields afterwards), then the environment (`STRATA_SERVER__PORT`), then the
file, then the default.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from proxy.config import (
    Config,
    Database,
    History,
    Ledger,
    Logging,
    Metrics,
    Prices,
    RemoteFiles,
    Rest,
    Timeouts,
)
from proxy.config.alerts import read_alerts
from proxy.config.auth import read_auth
from proxy.config.budgets import read_budgets
from proxy.config.keys import read_keys
from proxy.config.limits import read_limits, read_redis
from proxy.config.models import NUM_RETRIES, TIMEOUTS, Models
from proxy.config.prices import read_prices
from proxy.config.problems import ConfigError, Mark, Problem, Report, Wrong, suggestion
from proxy.config.providers import Providers
from proxy.config.quantities import boolean, check_ports, choice, duration, integer, secret, size, text, texts
from proxy.config.reading import Key, Keys, child, entries_of, flag_inline_secret, read_map, unknown_key
from proxy.config.references import Resolver
from proxy.config.server import read_server
from proxy.config.traces import read_traces
from proxy.config.yaml import MAX_BYTES, Entry, MappingNode, Node, ScalarNode, is_null, parse


def postgres_url(node: Node) -> object:
    url = secret(node)
    if not url.reveal().startswith(("postgres://", "postgresql://")):
        raise Wrong("must begin with postgresql://; leave it out for the database that comes with Strata.")
    check_ports(url.reveal())
    return url


def _path(node: Node) -> str:
    path = text(node)
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", path):
        raise Wrong(f"must be a path like /metrics, not {node}.")
    return path


_TIME = duration(0.01, 86_400)
_DATABASE: Keys = {
    "url": Key("url", postgres_url),
    "auto_migrate": Key("auto_migrate", boolean),
    "listen_url": Key("listen_url", postgres_url),
    "pool": Key("pool", integer(1, 1_000)),
}
_DEFAULTS: Keys = {**TIMEOUTS, "num_retries": NUM_RETRIES}
_REST: Keys = {
    "allowed_fails": Key("allowed_fails", integer(1, 1_000_000)),
    "cooldown_time": Key("cooldown_seconds", duration(0, 86_400)),
}
_METRICS: Keys = {
    "enabled": Key("enabled", boolean),
    "path": Key("path", _path),
    "token": Key("token", secret),
    "max_keys": Key("max_keys", integer(0, 100_000)),
}
_LOGGING: Keys = {
    "level": Key("level", choice("debug", "info", "warning", "error")),
    "format": Key("format", choice("auto", "json", "pretty")),
    "bodies": Key("bodies", choice("none", "errors", "redacted", "full")),
}
_LEDGER: Keys = {
    "fsync_interval": Key("fsync_interval_seconds", duration(0, 10)),
    "segment_size": Key("segment_bytes", size(100_000, 10**10)),
    "retention": Key("retention_seconds", duration(0)),
    "ship_interval": Key("ship_interval_seconds", duration(0.01, 3_600)),
    "batch_rows": Key("batch_rows", integer(1, 1_000)),
}
_HISTORY: Keys = {
    "enabled": Key("enabled", boolean),
    "retention": Key("retention_seconds", duration(3_600)),
}
_REMOTE_FILES: Keys = {
    "enabled": Key("enabled", boolean),
    "http": Key("http", boolean),
    "hosts": Key("hosts", texts),
    "max_files": Key("max_files", integer(1, 100)),
    "max_size": Key("max_bytes", size(1_000, 10**9)),
    "timeout": Key("timeout_seconds", _TIME),
}
_SECTIONS = [
    "server", "database", "auth", "providers", "models", "defaults", "keys", "budgets", "limits", "redis", "prices",
    "alerts", "telemetry", "logging", "ledger", "history", "remote_files",
]  # fmt: skip
_LITELLM = {
    "model_list": "models go under models, as name: provider/model",
    "litellm_settings": "retries and timeouts go under defaults",
    "router_settings": "retries and timeouts go under defaults",
    "general_settings": "the master key goes under auth, the database under database",
    "environment_variables": "write ${NAME} where the value is needed",
}


class Examined(NamedTuple):
    """A configuration with everything there is to say about it; None if it cannot be used."""

    config: Config | None
    problems: list[Problem]


def find(environ: Mapping[str, str], folder: Path) -> Path | None:
    """The file to use when none is named: STRATA_CONFIG, else config.yaml in this folder, else none."""
    named = environ.get("STRATA_CONFIG")
    if named:
        return Path(named)
    usual = folder / "config.yaml"
    return usual if usual.is_file() else None


def load(path: Path | None, environ: Mapping[str, str]) -> Config:
    """The configuration. Raises ConfigError with everything that is wrong with it."""
    config, problems = examine(path, environ)
    if config is None:
        raise ConfigError(problems)
    return config


def examine(
    path: Path | None, environ: Mapping[str, str], *, new_secret: Callable[[], str] = lambda: secrets.token_urlsafe(32)
) -> Examined:
    """Like `load`, but raises nothing and also returns the warnings and notes with their places."""
    try:
        data = _read(path) if path is not None else b""
        return _examine(path, data, environ, new_secret)
    except ConfigError as error:
        return Examined(None, error.problems)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        reason = (error.strerror or "error").lower()
        raise ConfigError([Problem(0, 0, "error", f"the file cannot be read: {reason}.", str(path))]) from None


def _examine(path: Path | None, data: bytes, environ: Mapping[str, str], new_secret: Callable[[], str]) -> Examined:
    file = str(path) if path is not None else "environment"
    report = Report()
    root = _overridden(parse(data, file), environ, report)
    sections: dict[str, Node] = {}
    resolver = Resolver(environ, path.parent if path is not None else Path(), report)
    for name, entry in entries_of(root, "the file", report):
        if name in _LITELLM:
            report.error(entry.key.at, f'unknown key "{name}". That is LiteLLM\'s; here {_LITELLM[name]}.')
        elif name not in _SECTIONS:
            unknown_key(name, entry.key.at, "", _SECTIONS, report)
        elif name == "providers":
            sections[name] = entry.value
        else:
            sections[name] = resolver.resolve(entry.value, lambda at, why: report.error(at, f"{why}. {_fix(why)}"))
    config = _build(sections, resolver, environ, report, new_secret)
    problems = report.in_order()
    if config is None or report.failed:
        return Examined(None, problems)
    warnings = tuple(f"{problem.at}: {problem.message}" for problem in problems if problem.severity == "warning")
    digest = hashlib.sha256(data).hexdigest()[:12] if path is not None else ""
    source = file if path is not None else None
    return Examined(msgspec.structs.replace(config, warnings=warnings, source=source, hash=digest), problems)


def _fix(why: str) -> str:
    if why.startswith("the file"):
        return "Put it there, or correct its path."
    return "Set it, or write a fallback: ${NAME:-fallback}."


def _build(
    sections: Mapping[str, Node],
    resolver: Resolver,
    environ: Mapping[str, str],
    report: Report,
    new_secret: Callable[[], str],
) -> Config | None:
    def fields(section: str, keys: Keys) -> dict[str, Any]:
        return read_map(sections.get(section), section, keys, report)

    providers = Providers(environ, report)
    providers.read(sections.get("providers"), resolver)
    defaults = fields("defaults", {**_DEFAULTS, **_REST})
    rest = {key.field: defaults.pop(key.field) for key in _REST.values() if key.field in defaults}
    num_retries = defaults.pop("num_retries", 2)
    models = Models(providers, Timeouts(**defaults), num_retries, report).read(_present(sections.get("models")))
    telemetry = sections.get("telemetry")
    read_map(telemetry, "telemetry", {}, report, besides=("metrics", "traces"))
    metrics = read_map(child(telemetry, "metrics"), "telemetry.metrics", _METRICS, report)
    flag_inline_secret(child(child(telemetry, "metrics"), "token"), "telemetry.metrics.token", "METRICS_TOKEN", report)
    traces = read_traces(child(telemetry, "traces"), report)
    database = fields("database", _DATABASE)
    for name, variable in (("url", "DATABASE_URL"), ("listen_url", "DATABASE_LISTEN_URL")):
        url = child(sections.get("database"), name)
        if isinstance(url, ScalarNode) and "@" in url.text and ":" in url.text.partition("://")[2].rpartition("@")[0]:
            flag_inline_secret(url, f"database.{name}", variable, report)
    auth = read_auth(sections.get("auth"), report, new_secret)
    server = read_server(sections.get("server"), resolver.folder, report)
    logging, ledger = fields("logging", _LOGGING), fields("ledger", _LEDGER)
    history, remote_files = fields("history", _HISTORY), fields("remote_files", _REMOTE_FILES)
    keys = read_keys(sections.get("keys"), models, report)
    budgets = read_budgets(_present(sections.get("budgets")), providers.known(), report)
    limits = read_limits(_present(sections.get("limits")), models, report)
    redis = read_redis(sections.get("redis"), report)
    prices: Prices = read_prices(sections.get("prices"), providers.known(), report)
    alerts = read_alerts(sections.get("alerts"), report)
    if report.failed:
        return None
    return Config(
        server=server,
        database=Database(**database),
        auth=auth,
        providers=providers.on,
        models=models,
        rest=Rest(**rest),
        keys=keys,
        budgets=budgets,
        limits=limits,
        redis=redis,
        prices=prices,
        alerts=alerts,
        metrics=Metrics(**metrics),
        traces=traces,
        logging=Logging(**logging),
        ledger=Ledger(**ledger),
        history=History(**history),
        remote_files=RemoteFiles(**remote_files),
        off={name: off.reason for name, off in providers.off.items()},
    )


def _present(node: Node | None) -> Node | None:
    return None if node is None or is_null(node) else node


def _overridden(root: Node, environ: Mapping[str, str], report: Report) -> Node:
    """The file's tree with what the environment says put over it."""
    usual = {
        ("database", "url"): "DATABASE_URL",
        ("redis", "url"): "REDIS_URL",
        ("auth", "master_key"): "STRATA_MASTER_KEY",
    }
    paths: dict[tuple[str, ...], str] = {path: name for path, name in usual.items() if environ.get(name)}
    for (section, key), name in usual.items():
        written = child(child(root, section), key)
        if name in paths.values() and isinstance(written, ScalarNode) and "$" not in written.text:
            report.warning(written.at, f"{section}.{key} is not used: {name} is set, and the environment wins.")
    for name in sorted(environ):
        path = tuple(name.removeprefix("STRATA_").lower().split("__"))
        if not name.startswith("STRATA_") or len(path) < 2 or not environ[name]:
            continue
        if path[0] not in _SECTIONS or not all(path):
            hint = suggestion(path[0], _SECTIONS)
            report.error(Mark("environment"), f'{name}: there is no section "{path[0]}".{hint}')
            continue
        paths[path] = name
    for path, name in paths.items():
        root = _put(root, path, ScalarNode(Mark(f"environment {name}"), _escaped(environ[name]), "any", f"${{{name}}}"))
    return root


def _escaped(value: str) -> str:
    """A value of the environment means itself: nothing in it is a reference."""
    return value.replace("$", "$$")


def _put(node: Node, path: tuple[str, ...], value: ScalarNode) -> Node:
    if not path:
        return value
    entries = dict(node.entries) if isinstance(node, MappingNode) else {}
    if not isinstance(node, MappingNode) and not is_null(node):
        return node  # wrong anyway; the reader says so
    name, rest = path[0], path[1:]
    old = entries[name] if name in entries else Entry(ScalarNode(value.at, name), ScalarNode(value.at, "", "null"))
    entries[name] = Entry(old.key, _put(old.value, rest, value))
    return MappingNode(node.at, entries)
