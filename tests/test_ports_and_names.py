"""The admin's own port, and the names that a request may be for."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.edge.hosts import Hosts
from proxy.edge.plain import Plain
from proxy.errors import CallerError
from tests.gateway import Answer, Gateway, free_port

MASTER = "q7Zt2mVx9Lk4Wn8Rb3Hd6Jc5Pf1Ys0Ga"
BODY = b'{"model":"sim/chat","messages":[{"role":"user","content":"hi"}]}'
PATH = "/v1/chat/completions"


@pytest.fixture(scope="module")
def admin_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def gateway(admin_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    server = f"admin: {{port: {admin_port}, metrics: true}}, host: 0.0.0.0"
    running = Gateway(
        tmp_path_factory.mktemp("ports") / "home", server=server, more=f"auth: {{master_key: {MASTER}}}\n"
    ).start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    server = 'allowed_hosts: [llm.example.com, "*.internal"]'
    running = Gateway(tmp_path_factory.mktemp("named") / "home", server=server).start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    running = Gateway(tmp_path_factory.mktemp("local") / "home").start()
    yield running
    running.stop()


def ask(gateway: Gateway, path: str, host: str = "", port: int = 0, method: str = "GET") -> Answer:
    headers = {"authorization": f"Bearer {MASTER}", "content-type": "application/json"}
    return gateway.ask(
        method, path, headers | ({"host": host} if host else {}), BODY if method == "POST" else None, port
    )


def test_the_admins_pages_are_on_their_own_port_alone(gateway: Gateway, admin_port: int) -> None:
    for path in ("/api/audit", "/api/prices", "/metrics"):
        assert ask(gateway, path, port=admin_port).status == 200
        hidden = ask(gateway, path)
        assert (hidden.status, hidden.error["code"]) == (404, "unknown_url")
    for path in ("/console", "/console/app.js", "/auth/login", "/api", "/api/audi"):
        answer = ask(gateway, path)
        assert answer.status == 404
        assert "/api" not in answer.error["message"].replace(path, "")  # nor is one told what there is elsewhere


def test_what_is_everybodys_is_on_both_ports(gateway: Gateway, admin_port: int) -> None:
    for port in (gateway.port, admin_port):
        assert ask(gateway, "/v1/models", port=port).status == 200
        assert ask(gateway, "/healthz", port=port).status == 200
        assert ask(gateway, PATH, port=port, method="POST").status == 200
        assert ask(gateway, "/readyz", port=port).status == 200


def test_a_name_that_leads_here_by_trickery_opens_no_page_of_the_admins(
    local: Gateway, gateway: Gateway, admin_port: int
) -> None:
    for running, port in ((local, local.port), (gateway, admin_port)):
        for host in ("evil.example", "localhost.evil.example", f"evil.example:{port}", "192.0.2.1", "127.0.0.1.nip.io"):
            answer = ask(running, "/api/audit", host, port)
            assert (answer.status, answer.error["code"]) == (421, "unknown_host")
            assert "server.allowed_hosts" in answer.error["message"]
            assert ask(running, "/v1/models", host, port).status in (200, 401)
        for host in (
            "localhost",
            f"LOCALHOST:{port}",
            "127.0.0.1",
            "127.0.0.53",
            "[::1]",
            f"[::1]:{port}",
            "a.localhost",
        ):
            assert ask(running, "/api/audit", host, port).status in (200, 401)


def test_a_gateway_with_names_answers_to_these_alone(named: Gateway) -> None:
    for host in ("llm.example.com", "LLM.example.com:4000", "llm.example.com.", "a.internal", "a.b.internal:1"):
        assert ask(named, "/v1/models", host).status == 401
        assert ask(named, "/api/audit", host).status == 401
        assert ask(named, PATH, host, method="POST").status == 401
    for host in ("evil.example", "internal", "xllm.example.com", "localhost", "127.0.0.1"):
        for path, method in (("/v1/models", "GET"), ("/api/audit", "GET"), (PATH, "POST"), ("/nowhere", "GET")):
            assert ask(named, path, host, method=method).status == 421
        assert ask(named, "/healthz", host).status == ask(named, "/readyz", host).status == 200  # asked by address


def test_a_port_that_is_taken_is_said_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for setting, options in (("", ("--port", str(port))), (" (server.admin.port)", ())):
            server = "" if options else f"admin: {{port: {port}}}, port: {free_port()}"
            gateway = Gateway(tmp_path / "home", server=server)
            done = gateway.strata("serve", *options)
            assert done.returncode == 1
            assert done.stderr.startswith(f"Port {port} on 127.0.0.1{setting} is in use.\nFix: ")
            assert not (tmp_path / "home" / "postgres").exists()


async def led(scope: dict[str, Any], hosts: Hosts | None) -> tuple[int, dict[bytes, bytes]]:
    """What the port without TLS answers."""
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    plain = {"type": "http", "method": "GET", "raw_path": b"/a", "query_string": b"", "headers": []}
    await Plain(443, hosts)(plain | scope, receive, send)
    return sent[0]["status"], dict(sent[0]["headers"])


async def test_the_port_without_tls_leads_to_no_name_that_is_not_ours() -> None:
    ours, evil = {"headers": [(b"host", b"llm.example.com")]}, {"headers": [(b"host", b"evil.example")]}
    status, headers = await led(ours, Hosts(["llm.example.com"]))
    assert (status, headers[b"location"]) == (308, b"https://llm.example.com/a")
    status, headers = await led(evil, Hosts(["llm.example.com"]))
    assert status == 421 and b"location" not in headers


@pytest.mark.parametrize("host", [b"", b"::1", b"localhost@evil.example", b"127.0.0.1.evil.example", b"0x7f.1"])
def test_what_is_not_plainly_this_machine_is_not(host: bytes) -> None:
    with pytest.raises(CallerError):
        Hosts().check(host)
