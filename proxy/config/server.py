"""The `server` section: where the gateway listens, whom it believes, and which browsers and names it answers."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Any

from proxy.config import Server
from proxy.config.certificates import tls_context
from proxy.config.listeners import Admin, Cors, Tls
from proxy.config.problems import Report, Wrong
from proxy.config.quantities import boolean, choice, duration, integer, size, text, texts
from proxy.config.reading import Key, Keys, child, read_map
from proxy.config.yaml import Node, ScalarNode

_PORT = integer(1, 65_535)
_TIME = duration(0.01, 86_400)
_HOST_NAME = re.compile(r"(?:\*\.)?[a-z0-9_](?:[a-z0-9._-]*[a-z0-9_])?|[0-9a-f:]+")
_LISTENING = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")


def listening(node: Node) -> str:
    """An address or a name of this machine."""
    host = text(node)
    try:
        ipaddress.ip_address(host)
    except ValueError:
        if not _LISTENING.fullmatch(host) or not host.strip("0123456789."):
            raise Wrong(
                "must be an address or a name of this machine like 127.0.0.1, ::1 or 0.0.0.0 (no port, no scheme), "
                f"not {node}."
            ) from None
    return host


def _networks(node: Node) -> tuple[str, ...]:
    found = []
    for network in texts(node):
        try:
            found.append(str(ipaddress.ip_network(network)))
        except ValueError:
            raise Wrong(
                f'must be addresses or networks like 10.0.0.0/8 or fd00::/8, not "{network}"{_meant(network)}.'
            ) from None
    return tuple(found)


def _meant(network: str) -> str:
    try:
        return f" (did you mean {ipaddress.ip_network(network, strict=False)}?)"
    except ValueError:
        return ""


def _origins(node: Node) -> tuple[str, ...]:
    origins = tuple(origin.lower() for origin in texts(node))
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise Wrong(
                f'must be origins like https://app.example.com (no path, no slash at the end) or "*", not "{origin}".'
            )
    return origins


def _hosts(node: Node) -> tuple[str, ...]:
    hosts = tuple(host.lower().strip("[]") for host in texts(node))
    for host in hosts:
        if not _HOST_NAME.fullmatch(host):
            raise Wrong(f'must be names like llm.example.com or *.example.com (no port, no scheme), not "{host}".')
    return hosts


def _hsts(node: Node) -> int:
    if isinstance(node, ScalarNode) and node.text.lower() == "off":
        return 0
    try:
        return int(duration(60)(node))
    except Wrong as wrong:
        raise Wrong(str(wrong).replace("must be", "must be off, or", 1)) from None


_SERVER: Keys = {
    "host": Key("host", listening),
    "port": Key("port", _PORT),
    "max_body": Key("max_body_bytes", size(1_000, 10**9)),
    "max_bodies": Key("max_bodies_bytes", size(1_000, 10**12)),
    "max_in_flight": Key("max_in_flight", integer(1, 1_000_000)),
    "keepalive": Key("keepalive_seconds", duration(0, 3_600)),
    "header_timeout": Key("header_timeout_seconds", _TIME),
    "body_timeout": Key("body_timeout_seconds", _TIME),
    "write_timeout": Key("write_timeout_seconds", _TIME),
    "shutdown_grace": Key("shutdown_grace_seconds", duration(0, 86_400)),
    "response_headers": Key("response_headers", choice("full", "minimal")),
    "trusted_proxies": Key("trusted_proxies", _networks),
    "hsts": Key("hsts_seconds", _hsts),
    "redirect_http": Key("redirect_http", _PORT),
    "allowed_hosts": Key("allowed_hosts", _hosts),
}
_TLS: Keys = {"certificate": Key("certificate", text), "key": Key("key", text)}
_CORS: Keys = {
    "origins": Key("origins", _origins),
    "credentials": Key("credentials", boolean),
    "max_age": Key("max_age_seconds", duration(0, 86_400)),
}
_ADMIN: Keys = {"host": Key("host", listening), "port": Key("port", _PORT), "metrics": Key("metrics", boolean)}


def read_server(node: Node | None, folder: Path, report: Report) -> Server:
    """`folder`: where paths begin that are not absolute, as in ${file:…}."""
    fields = read_map(node, "server", _SERVER, report, besides=("tls", "cors", "admin"))
    fields["tls"] = _read_tls(child(node, "tls"), folder, report)
    fields["cors"] = _read_cors(child(node, "cors"), report)
    fields["admin"] = _read_admin(child(node, "admin"), report)
    if node is not None:
        _check_together(node, fields, report)
    return Server(**fields)


def _read_tls(node: Node | None, folder: Path, report: Report) -> Tls | None:
    if node is None:
        return None
    before = len(report.problems)
    fields = read_map(node, "server.tls", _TLS, report)
    if len(fields) < len(_TLS):
        if len(report.problems) == before:
            missing = " and ".join(name for name in _TLS if name not in fields)
            report.error(node.at, f"server.tls needs a {missing}: the path of a PEM file.")
        return None
    tls = Tls(**{name: str(folder / path) for name, path in fields.items()})
    try:
        tls_context(tls)
    except Wrong as wrong:
        report.error(node.at, f"server.tls {wrong}")
    return tls


def _read_cors(node: Node | None, report: Report) -> Cors:
    cors = Cors(**read_map(node, "server.cors", _CORS, report))
    if node is not None and cors.credentials and "*" in cors.origins:
        report.error(
            node.at,
            'server.cors: "*" and credentials exclude each other: any page could act with the cookies of whoever reads '
            "it. Name the origins.",
        )
    return cors


def _read_admin(node: Node | None, report: Report) -> Admin | None:
    if node is None:
        return None
    before = len(report.problems)
    fields = read_map(node, "server.admin", _ADMIN, report)
    if "port" not in fields:
        if len(report.problems) == before:
            report.error(node.at, "server.admin needs a port of its own.")
        return None
    return Admin(**fields)


def _check_together(node: Node, fields: dict[str, Any], report: Report) -> None:
    admin: Admin | None = fields["admin"]
    ports = {"server.port": fields.get("port", Server().port)}
    others = {"server.admin.port": admin.port if admin else None, "server.redirect_http": fields.get("redirect_http")}
    for name, port in others.items():
        twin = next((other for other, taken in ports.items() if taken == port), None)
        if port is not None and twin is not None:
            report.error(node.at, f"{name} and {twin} are both {port}. Give each a port of its own.")
        elif port is not None:
            ports[name] = port
    if fields.get("redirect_http") and child(node, "tls") is None:
        report.error(
            node.at, "server.redirect_http leads to TLS, and there is none here. Set server.tls, or take it out."
        )
    if any(network.endswith("/0") for network in fields.get("trusted_proxies", ())):
        report.warning(
            node.at,
            "server.trusted_proxies holds every address there is: whoever reaches this port can claim any other. "
            "Name the proxies.",
        )
