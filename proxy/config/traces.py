"""The `telemetry.traces` section: where spans go, of how many requests, and whether they hold what is said there."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from proxy.config import Secret, Traces
from proxy.config.problems import Report, Wrong, shown
from proxy.config.providers import is_loopback
from proxy.config.quantities import boolean, text
from proxy.config.reading import Key, Keys, child, flag_inline_secret, read_map
from proxy.config.yaml import MappingNode, Node, ScalarNode

SPANS_PATH = "/v1/traces"

_PART = re.compile(r"0|1|[01]?\.[0-9]{1,9}|1e-[1-9]")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


def read_traces(node: Node | None, report: Report) -> Traces:
    fields = read_map(node, "telemetry.traces", _TRACES, report)
    headers = child(node, "headers")
    for name, entry in headers.entries.items() if isinstance(headers, MappingNode) else ():
        flag_inline_secret(entry.value, f"telemetry.traces.headers.{name}", "OTLP_KEY", report)
    if node is not None and fields.get("endpoint"):
        _check(node, fields, report)
    return Traces(**fields)


def _check(node: Node, fields: dict[str, Any], report: Report) -> None:
    url = urlsplit(fields["endpoint"])
    if not _installed():
        report.error(
            node.at,
            "telemetry.traces needs OpenTelemetry, which is not installed. Install it with: "
            "pip install 'strata-gateway[otel]'; or take out its endpoint.",
        )
    if url.scheme == "http" and fields.get("secret_headers") and not is_loopback(url.hostname or ""):
        report.warning(node.at, f"telemetry.traces: its headers travel unencrypted to {url.hostname}. Use https://.")


def _installed() -> bool:
    try:
        return find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ModuleNotFoundError:
        return False


def _endpoint(node: Node) -> str:
    """A collector's address; the path that OTLP gives to spans may stand at its end or be left out."""
    url = text(node)
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    # not shown: it may hold a key
    if not good or not url.isascii() or any(mark in url for mark in ' "<>\\^`{|}?#'):
        raise Wrong("must be the address of a collector that takes OTLP over HTTP, like http://127.0.0.1:4318.")
    if "@" in parts.netloc:
        raise Wrong("must not hold a user name or password; put what authorises under headers.")
    url = url.rstrip("/")
    return url if url.endswith(SPANS_PATH) else url + SPANS_PATH


def _part(node: Node) -> float:
    if not isinstance(node, ScalarNode) or not _PART.fullmatch(node.text) or float(node.text) > 1:
        raise Wrong(f"must be a part of all requests from 0 to 1, like 0.1, not {node}.")
    return float(node.text)


def _secret_headers(node: Node) -> dict[str, Secret]:
    if not isinstance(node, MappingNode):
        raise Wrong("must be a map of headers, like {x-api-key: …}.")
    for name, entry in node.entries.items():
        if not _HEADER_NAME.fullmatch(name):
            raise Wrong(f"has {shown(name)}, which cannot be the name of a header.")
        value = entry.value
        if not isinstance(value, ScalarNode) or not (value.text.isascii() and value.text.isprintable()):
            raise Wrong(f"has a value for {name} that no header can have: it must be one line of plain ASCII.")
    values = {name: entry.value for name, entry in node.entries.items()}
    return {name.lower(): Secret(value.text) for name, value in values.items() if isinstance(value, ScalarNode)}


_TRACES: Keys = {
    "endpoint": Key("endpoint", _endpoint),
    "sample": Key("sample", _part),
    "headers": Key("secret_headers", _secret_headers),
    "content": Key("content", boolean),
    "pass_on": Key("pass_on", boolean),
}
