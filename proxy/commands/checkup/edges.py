"""Who can reach the gateway, and how what they send is kept from others; and whether one answers now."""

from __future__ import annotations

import contextlib
import http.client
import math
import ssl
import time
from collections.abc import Iterator

import msgspec

from proxy.commands.checkup.finding import Finding, fail, ok, warn
from proxy.config import Config, Server
from proxy.config.certificates import tls_context
from proxy.config.listeners import Tls
from proxy.config.providers import is_loopback

ASK_SECONDS = 3.0
RENEW_DAYS = 14


def look_at_edges(config: Config) -> Iterator[Finding]:
    server = config.server
    yield _reach("server.host", server.host, server)
    if server.admin is not None:
        yield _reach("server.admin.host", server.admin.host, server)
    if server.tls is not None:
        yield _certificate(server.tls)
    yield _metrics(config)
    yield _bodies(config)
    yield _running(server)


def _reach(setting: str, host: str, server: Server) -> Finding:
    if is_loopback(host):
        return ok("reach", f"{setting} is {host}: only this machine gets there.")
    if server.tls is not None:
        return ok("reach", f"{setting} is {host}, by TLS.")
    if server.trusted_proxies:
        return ok("reach", f"{setting} is {host}; TLS is a matter of the trusted proxies before it.")
    return warn(
        "reach",
        f"{setting} is {host} without TLS, so keys travel in the clear: set server.tls, or let a proxy with TLS stand "
        "before the gateway and list it in server.trusted_proxies.",
    )


def _certificate(tls: Tls) -> Finding:
    until = valid_until(tls)
    if until is None:
        return fail(
            "certificate", f"{tls.certificate} is not valid today: renew it; the gateway takes the new one itself."
        )
    days = math.floor((until - time.time()) / 86_400)
    if days < RENEW_DAYS:
        return warn(
            "certificate", f"{tls.certificate} ends in {days} days: renew it; the gateway takes the new one itself."
        )
    return ok("certificate", f"{tls.certificate} is valid for {days} days more.")


def valid_until(tls: Tls) -> float | None:
    """
    The end of the certificate as Unix time; None if it has ended, or has not begun. Asked of OpenSSL, by a handshake
    with ourselves: nothing else in the standard library reads one.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client.load_verify_locations(tls.certificate)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(to_client, to_server)
    answering = tls_context(tls).wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (asking, answering):
            try:
                with contextlib.suppress(ssl.SSLWantReadError):
                    side.do_handshake()
            except ssl.SSLError:
                return None
    until = (asking.getpeercert() or {}).get("notAfter")
    return float(ssl.cert_time_to_seconds(until)) if isinstance(until, str) else None


def _metrics(config: Config) -> Finding:
    server, metrics = config.server, config.metrics
    if not metrics.enabled:
        return ok("metrics", "they are off.")
    host = server.admin.host if server.admin is not None and server.admin.metrics else server.host
    if metrics.token is not None:
        return ok("metrics", f"{metrics.path} needs its token.")
    if is_loopback(host):
        return ok("metrics", f"{metrics.path} is for this machine only.")
    return warn(
        "metrics",
        f"whoever reaches {host} reads {metrics.path}, names of keys and models included: set telemetry.metrics.token, "
        "or server.admin with metrics: true.",
    )


def _bodies(config: Config) -> Finding:
    bodies = config.logging.bodies
    if bodies in ("none", "redacted"):
        return ok("bodies", "no text of prompts and answers is in the log.")
    whose = "of whatever fails" if bodies == "errors" else "of every request"
    said = f"logging.bodies is {bodies}: the log holds prompts and answers {whose}"
    if bodies == "errors":
        return ok("bodies", f"{said}.")
    return warn("bodies", f"{said}; set it to none, errors or redacted unless whoever reads the log may read them.")


def _running(server: Server) -> Finding:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(server.host, server.host)
    try:
        status, body = _ask(server, host)
    except (OSError, http.client.HTTPException):
        return ok("gateway", f"none answers on port {server.port} of {host}; what follows is how one would start.")
    try:
        said = msgspec.json.decode(body, type=dict[str, object])
    except (msgspec.DecodeError, UnicodeDecodeError):
        said = {}
    degraded = said.get("degraded")
    if "status" not in said or not isinstance(degraded, list):
        return fail("gateway", f"port {server.port} of {host} is somebody else's: choose another in server.port.")
    away = ", ".join(map(str, degraded))
    if status != 200:
        return fail("gateway", f"it runs and cannot serve, for it lacks {away or 'something'}: see its log.")
    if away:
        return warn("gateway", f"it runs without its {away}: bring that back, or see its log.")
    return ok("gateway", f"it runs on port {server.port}, and is ready.")


def _ask(server: Server, host: str) -> tuple[int, bytes]:
    if server.tls is None:
        connection = http.client.HTTPConnection(host, server.port, timeout=ASK_SECONDS)
    else:
        # It is our own machine that we ask, by another name than the certificate's
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(host, server.port, timeout=ASK_SECONDS, context=context)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        return answer.status, answer.read(10_000)
    finally:
        connection.close()
