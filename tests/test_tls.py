"""TLS in the gateway itself: hot requests and pages, new certificates, and the port without it."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import openai
import pytest

from tests.certificates import client_of, write_certificate
from tests.gateway import Answer, Gateway, free_port

SECONDS = 30.0
BODY = b'{"model":"sim/chat","messages":[{"role":"user","content":"hi"}]}'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def plain_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def gateway(folder: Path, plain_port: int) -> Iterator[Gateway]:
    certificate, key = write_certificate(folder)
    server = (
        f"tls: {{certificate: {certificate}, key: {key}}}, hsts: 180d, redirect_http: {plain_port}, "
        "header_timeout: 1s, max_body: 1MB"
    )
    running = Gateway(folder / "home", server=server, tls=client_of(certificate)).start()
    yield running
    running.stop()


def sdk(gateway: Gateway) -> openai.OpenAI:
    assert gateway.tls is not None
    client = httpx2.Client(verify=gateway.tls)
    return openai.OpenAI(base_url=gateway.base_url, api_key=gateway.key, max_retries=0, http_client=client)


def test_an_sdk_is_answered_by_tls_whole_and_streamed(gateway: Gateway) -> None:
    with sdk(gateway) as client:
        for _ in range(3):  # on one connection
            whole = client.chat.completions.create(model="sim/chat", messages=[{"role": "user", "content": "hi"}])
            assert whole.choices[0].message.content
        stream = client.chat.completions.create(
            model="sim/chat", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
        assert [model.id for model in client.models.list()]
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="nothing", messages=[{"role": "user", "content": "hi"}])


def test_large_bodies_and_refusals_pass_through_tls(gateway: Gateway) -> None:
    headers = {"authorization": f"Bearer {gateway.key}", "content-type": "application/json"}
    long = BODY.replace(b"hi", b"hello " * 100_000)
    assert gateway.ask("POST", "/v1/chat/completions", headers, long).status == 200
    assert gateway.ask("POST", "/v1/chat/completions", {}, BODY).status == 401


def test_a_body_that_is_too_large_is_told_so_and_not_cut_off(gateway: Gateway) -> None:
    headers = {"authorization": f"Bearer {gateway.key}", "content-type": "application/json"}
    for size in (1_000_001, 8_000_000):
        answer = gateway.ask("POST", "/v1/chat/completions", headers, b" " * size)
        assert (answer.status, answer.error["code"]) == (413, "request_too_large")


def test_pages_by_tls_tell_browsers_to_stay_with_it(gateway: Gateway) -> None:
    answer = gateway.ask("GET", "/healthz")
    assert (answer.status, answer.headers["strict-transport-security"]) == (200, "max-age=15552000")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_of_today_is_spoken(gateway: Gateway, version: ssl.TLSVersion) -> None:
    assert gateway.tls is not None
    context = client_of(gateway.home.parent / "cert.pem")
    context.minimum_version = context.maximum_version = version
    with (
        socket.create_connection(("127.0.0.1", gateway.port), timeout=SECONDS) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as secure,
    ):
        assert secure.version() == version.name.replace("_", ".")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_tls_of_yesterday_is_refused(gateway: Gateway) -> None:
    context = client_of(gateway.home.parent / "cert.pem")
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("127.0.0.1", gateway.port), timeout=SECONDS) as raw,
        pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(raw, server_hostname="localhost")


def test_who_speaks_no_tls_is_hung_up_on_and_harms_nobody(gateway: Gateway) -> None:
    for said in (b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n", b"\x00" * 100):
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=SECONDS) as raw:
            raw.sendall(said)
            assert not raw.recv(1000).startswith(b"HTTP/1.1 200")
    assert gateway.alive()


def test_who_never_begins_tls_is_hung_up_on(gateway: Gateway) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=SECONDS) as raw:
        assert raw.recv(1000) == b""


def test_a_head_that_does_not_end_is_hung_up_on_under_tls_too(gateway: Gateway) -> None:
    context = client_of(gateway.home.parent / "cert.pem")
    with (
        socket.create_connection(("127.0.0.1", gateway.port), timeout=SECONDS) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as secure,
    ):
        secure.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nx-slow: ")
        assert secure.recv(1000).startswith(b"HTTP/1.1 408 ")


def plain(port: int, method: str, target: str, body: bytes | None = None, **headers: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        connection.request(method, target, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def test_the_port_without_tls_leads_to_the_one_with_it(gateway: Gateway, plain_port: int) -> None:
    for method in ("GET", "HEAD"):
        answer = plain(plain_port, method, "/console/a%20b?x=1&y=%2F", host="llm.example.com:80")
        assert answer.status == 308
        assert answer.headers["location"] == f"https://llm.example.com:{gateway.port}/console/a%20b?x=1&y=%2F"
    six = plain(plain_port, "GET", "/", host="[::1]:80")
    assert six.headers["location"] == f"https://[::1]:{gateway.port}/"


def test_a_key_that_came_in_the_clear_is_never_led_on(gateway: Gateway, plain_port: int) -> None:
    for sent in (
        plain(plain_port, "GET", "/v1/models", authorization=f"Bearer {gateway.key}"),
        plain(plain_port, "GET", "/v1/models", x_api_key=gateway.key),
        plain(plain_port, "GET", f"/v1/models?api_key={gateway.key}"),
        plain(plain_port, "POST", "/v1/chat/completions", BODY),
        plain(plain_port, "POST", "/v1/chat/completions", BODY * 10_000),
        plain(plain_port, "DELETE", "/api/keys/1"),
        plain(plain_port, "GET", "/", BODY),
    ):
        assert (sent.status, sent.error["code"]) == (403, "https_required")
        assert "location" not in sent.headers
        assert gateway.key not in sent.body.decode()
    assert "replace it" in plain(plain_port, "GET", "/", authorization=f"Bearer {gateway.key}").error["message"]


def test_the_port_without_tls_has_the_same_guards(gateway: Gateway, plain_port: int) -> None:
    with socket.create_connection(("127.0.0.1", plain_port), timeout=SECONDS) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nx-slow: ")
        assert raw.recv(1000).startswith(b"HTTP/1.1 408 ")
    with socket.create_connection(("127.0.0.1", plain_port), timeout=SECONDS) as raw:
        raw.sendall(b"GET //evil.example HTTP/1.1\r\nhost: x\r\n\r\n")
        assert raw.recv(1000).startswith(b"HTTP/1.1 400 ")


def shown(gateway: Gateway) -> bytes:
    """The certificate that a new connection is shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", gateway.port), timeout=SECONDS) as raw,
        context.wrap_socket(raw) as secure,
    ):
        return secure.getpeercert(binary_form=True) or b""


def test_a_new_certificate_is_taken_without_a_restart_and_a_bad_one_is_not(gateway: Gateway) -> None:
    before = shown(gateway)
    stranger, _ = write_certificate(gateway.home.parent / "stranger")
    (gateway.home.parent / "cert.pem").write_bytes(stranger.read_bytes())
    deadline = time.monotonic() + SECONDS
    while "the certificate stays as it was" not in gateway.log.read_text():
        assert time.monotonic() < deadline, gateway.tail()
        time.sleep(0.1)
    assert shown(gateway) == before
    certificate, _ = write_certificate(gateway.home.parent)
    while shown(gateway) == before:
        assert time.monotonic() < deadline, gateway.tail()
        time.sleep(0.1)
    gateway.tls = client_of(certificate)
    assert gateway.alive()
