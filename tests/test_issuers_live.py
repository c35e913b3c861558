"""A gateway that believes another issuer: its people, with its published keys, over real sockets."""

from __future__ import annotations

import http.client
import http.server
import json
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.gateway import Gateway

MASTER = "q7Zt2mVx9Lk4Wn8Rb3Hd6Jc5Pf1Ys0Ga"
KEY = ec.generate_private_key(ec.SECP256R1())
LEGACY = "a-legacy-secret-of-a-project-1234567890"
PERSON = str(uuid.UUID(int=7, version=4))


class Published(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        shape: dict[str, Any] = jwt.get_algorithm_by_name("ES256").to_jwk(KEY.public_key(), as_dict=True)
        body = json.dumps({"keys": [{**shape, "kid": "k1", "use": "sig"}]}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def issuer() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Published)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def started(folder: Path, auth: str) -> Gateway:
    gateway = Gateway(folder / "home")
    gateway.config.write_text(f"auth: {{master_key: {MASTER}, {auth}}}\n")
    return gateway.start()


def ask(gateway: Gateway, method: str, path: str, token: str, body: object = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)
    headers = {"content-type": "application/json", "authorization": f"Bearer {token}"}
    connection.request(method, path, body=None if body is None else json.dumps(body), headers=headers)
    answer = connection.getresponse()
    status, data = answer.status, answer.read()
    connection.close()
    return status, json.loads(data) if data else None


def token(issuer: str, audience: str, key: Any, algorithm: str, **more: Any) -> str:
    now = int(time.time())
    said = {"iss": issuer, "aud": audience, "sub": PERSON, "iat": now, "exp": now + 600, **more}
    return jwt.encode(said, key, algorithm, {"kid": "k1"})


def test_people_of_an_openid_issuer_ask_models_and_get_their_role_from_a_claim_or_an_admin(
    issuer: str, tmp_path: Path
) -> None:
    said = (
        f"mode: jwt, jwt: {{issuer: '{issuer}', audience: strata, jwks_url: '{issuer}/jwks', claims: {{team: team}}}}"
    )
    gateway = started(tmp_path, said)
    try:
        ann = token(issuer, "strata", KEY, "ES256", email="ann@example.com", team="blue")
        status, me = ask(gateway, "GET", "/auth/me", ann)
        assert (status, me["email"], me["role"]) == (200, "ann@example.com", "member")
        chat = {"model": "sim/echo", "messages": [{"role": "user", "content": "hello"}]}
        assert ask(gateway, "POST", "/v1/chat/completions", ann, chat)[0] == 200
        assert ask(gateway, "PATCH", f"/api/users/{me['id']}", MASTER, {"role": "admin"})[0] == 200
        deadline = time.monotonic() + 10
        while ask(gateway, "GET", "/api/audit", ann)[0] != 200:
            assert time.monotonic() < deadline
        assert ask(gateway, "GET", "/auth/me", token(issuer, "other", KEY, "ES256"))[0] == 401
        elsewhere = ask(gateway, "POST", "/auth/login", "", {"email": "ann@example.com", "password": "x" * 12})
        assert (elsewhere[0], elsewhere[1]["error"]["code"]) == (403, "sign_in_elsewhere")
        assert ask(gateway, "POST", "/auth/logout", ann, {})[0] == 204
        out = ask(gateway, "POST", f"/api/users/{me['id']}/logout", MASTER)
        assert (out[0], out[1]["error"]["code"]) == (409, "signed_in_elsewhere")
    finally:
        gateway.stop()


def test_a_supabase_project_s_people_come_in_and_its_public_keys_do_not(tmp_path: Path) -> None:
    gateway = started(tmp_path, f"mode: supabase, supabase: {{url: 'https://abc.supabase.co', jwt_secret: {LEGACY}}}")
    project = "https://abc.supabase.co/auth/v1"
    try:
        ann = token(project, "authenticated", LEGACY, "HS256", role="authenticated", email="ann@example.com")
        assert ask(gateway, "GET", "/auth/me", ann)[1]["role"] == "member"
        for nobody in (
            token(project, "authenticated", LEGACY, "HS256", role="anon"),
            token(project, "authenticated", LEGACY, "HS256", role="service_role"),
            token(project, "authenticated", LEGACY, "HS256", role="authenticated", is_anonymous=True),
            token(project, "authenticated", "another secret of thirty-two characters", "HS256", role="authenticated"),
        ):
            status, said = ask(gateway, "GET", "/auth/me", nobody)
            assert (status, said["error"]["code"]) == (401, "invalid_token")
    finally:
        gateway.stop()
