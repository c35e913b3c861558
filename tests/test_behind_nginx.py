"""A real nginx with TLS before the gateway, as most are run: whom the log names, and what a client can claim."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.certificates import client_of, write_certificate
from tests.conftest import needs
from tests.gateway import Gateway, free_port

SECONDS = 20.0
CLIENT = "127.0.0.2"
"""Another loopback address than nginx's own, which is the one that is trusted."""
NGINX = """\
worker_processes 1; daemon off; pid nginx.pid; error_log nginx.err warn;
events {{ worker_connections 64; }}
http {{
  access_log off; client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4;
  scgi_temp_path t5;
  server {{
    listen 127.0.0.1:{listen} ssl; ssl_certificate {certificate}; ssl_certificate_key {key};
    location / {{
      proxy_pass http://127.0.0.1:{port}; proxy_http_version 1.1; proxy_buffering off;
      proxy_set_header Connection ""; proxy_set_header Host $host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; proxy_set_header X-Forwarded-Proto $scheme;
    }}
  }}
}}
"""
BODY = b'{"model":"sim/chat","messages":[{"role":"user","content":"hi"}]}'
STREAMED = BODY[:-1] + b',"stream":true}'

pytestmark = pytest.mark.needs("nginx")


class Behind:
    def __init__(self, gateway: Gateway, port: int, tls: ssl.SSLContext) -> None:
        self.gateway = gateway
        self._port = port
        self._tls = tls

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """By way of nginx, from CLIENT."""
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self._port, timeout=SECONDS, context=self._tls, source_address=(CLIENT, 0)
        )
        try:
            sent = {"authorization": f"Bearer {self.gateway.key}", "content-type": "application/json"}
            told = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, headers=sent | told)
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    folder = tmp_path_factory.mktemp("nginx")
    certificate, key = write_certificate(folder / "tls")
    server = "trusted_proxies: [127.0.0.1], hsts: 180d, allowed_hosts: [localhost, 127.0.0.1]"
    gateway = Gateway(folder / "home", server=server).start()
    listen = free_port()
    (folder / "nginx.conf").write_text(NGINX.format(listen=listen, port=gateway.port, certificate=certificate, key=key))
    process = subprocess.Popen([needs("nginx"), "-p", str(folder), "-c", str(folder / "nginx.conf")])
    deadline = time.monotonic() + SECONDS
    while True:
        assert time.monotonic() < deadline and process.poll() is None
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", listen), timeout=1):
            break
        time.sleep(0.05)
    yield Behind(gateway, listen, client_of(certificate))
    process.terminate()
    process.wait(SECONDS)
    gateway.stop()


def test_the_log_names_whoever_came_to_nginx_whatever_they_claim(behind: Behind) -> None:
    path = "/v1/chat/completions"
    assert behind.ask("POST", path, BODY, x_request_id="honest")[0] == 200
    assert behind.ask("POST", path, BODY, x_request_id="liar", x_forwarded_for="6.6.6.6, 127.0.0.1")[0] == 200
    assert behind.ask("POST", path, BODY, x_request_id="other", forwarded="for=6.6.6.6")[0] == 200
    status, _, body = behind.ask("POST", path, STREAMED, x_request_id="streamed")
    assert status == 200 and body.endswith(b"data: [DONE]\n\n")
    assert behind.ask("POST", path, BODY, x_request_id="stranger", host="evil.example")[0] == 421
    behind.gateway.stop()
    lines = [json.loads(line) for line in Path(behind.gateway.log).read_text().splitlines()]
    clients = {line["request_id"]: line["client"] for line in lines if line["logger"] == "strata.access"}
    assert clients == dict.fromkeys(("honest", "liar", "other", "streamed"), CLIENT)
    behind.gateway.start()


def test_tls_that_ends_at_nginx_is_tls(behind: Behind) -> None:
    status, headers, _ = behind.ask("GET", "/v1/models", x_forwarded_proto="http")
    assert (status, headers["strict-transport-security"]) == (200, "max-age=15552000")
    assert "strict-transport-security" not in behind.gateway.ask("GET", "/v1/models").headers
