"""
Google's access tokens, from a token server on a real socket: every kind of credentials, renewal in the background, and
failures that say what is wrong to the operator and nothing to anybody else.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from proxy.config import Provider, Secret
from proxy.errors import UpstreamError
from proxy.providers import Target, UpstreamRequest
from proxy.upstream.accounts import Account
from proxy.upstream.credentials import Outgoing, Surroundings, authorise, google
from proxy.upstream.credentials.google import RENEW_BEFORE_SECONDS, RETRY_SECONDS, AccessTokens
from proxy.upstream.credentials.google_tokens import METADATA_PATH, SCOPE

OUTGOING = Outgoing("POST", "aiplatform.googleapis.com", "/v1/x", {}, b"{}")
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
NOW = 1_700_000_000.0


def pem(key: Any) -> str:
    return str(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode())


class TokenServer:
    """Answers from a list, else with token after token; keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str], Any]] = []
        """Path, headers, and the form or JSON of each request."""
        self.answers: list[tuple[int, Any]] = []
        self.seconds = 3600
        self.delay = 0.0
        self.issued = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:]) if name}
        body = (await reader.readexactly(int(headers.get("content-length", 0)))).decode()
        said = json.loads(body) if body.startswith("{") else dict(parse_qsl(body))
        self.asked.append((head[0].split(" ")[1], headers, said))
        await asyncio.sleep(self.delay)
        status, answer = self.answers.pop(0) if self.answers else (200, self._token())
        data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
        writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % (status, len(data)) + data)
        await writer.drain()
        writer.close()

    def _token(self) -> dict[str, Any]:
        self.issued += 1
        return {"access_token": f"token-{self.issued}", "expires_in": self.seconds, "token_type": "Bearer"}


@pytest.fixture
async def server() -> AsyncIterator[TokenServer]:
    tokens = TokenServer()
    listening = await asyncio.start_server(tokens.serve, "127.0.0.1", 0)
    tokens.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    yield tokens
    listening.close()


class Time:
    def __init__(self) -> None:
        self.now = 0.0


def tokens_of(credentials: str, environ: Mapping[str, str] | None = None, time: Time | None = None) -> AccessTokens:
    time = time or Time()
    provider = Provider(
        name="cloud",
        api="vertex",
        api_base="https://x",
        secrets={"credentials": Secret(credentials)} if credentials else {},
    )
    surroundings = Surroundings(environ=environ or {}, wall_clock=lambda: NOW + time.now, clock=lambda: time.now)
    found = authorise("google", provider, surroundings)
    assert isinstance(found, AccessTokens)
    return found


def service_account(server: TokenServer, **more: Any) -> str:
    fields = {"type": "service_account", "client_email": "bird@nest.iam.gserviceaccount.com", "private_key_id": "k1"}
    return json.dumps({**fields, "private_key": pem(KEY), "token_uri": f"{server.url}/token", **more})


def user(server: TokenServer, **more: Any) -> str:
    fields = {"type": "authorized_user", "client_id": "c", "client_secret": "s3cret", "refresh_token": "r3fresh"}
    return json.dumps({**fields, "token_uri": f"{server.url}/token", **more})


def workload(server: TokenServer, source: Any, **more: Any) -> str:
    fields = {
        "type": "external_account",
        "audience": "//iam/pool",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
    }
    return json.dumps({**fields, "token_url": f"{server.url}/sts", "credential_source": source, **more})


def unpacked(part: str) -> Any:
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))


def test_a_token_that_the_operator_brings_is_a_fixed_header() -> None:
    provider = Provider(name="cloud", api_base="https://x", secrets={"access_token": Secret("ya29.abc")})
    assert authorise("google", provider, Surroundings(environ={})) == {"authorization": "Bearer ya29.abc"}


async def test_a_service_account_vouches_for_itself(server: TokenServer) -> None:
    tokens = tokens_of(service_account(server))
    assert await tokens.headers(OUTGOING) == {"authorization": "Bearer token-1"}
    ((path, _, form),) = server.asked
    assert path == "/token"
    assert form["grant_type"] == "urn:ietf:params:oauth:grant-type:jwt-bearer"
    head, claims, signature = form["assertion"].split(".")
    assert unpacked(head) == {"alg": "RS256", "typ": "JWT", "kid": "k1"}
    expected = {"iss": "bird@nest.iam.gserviceaccount.com", "scope": SCOPE, "aud": f"{server.url}/token"}
    assert unpacked(claims) == {**expected, "iat": int(NOW), "exp": int(NOW) + 3600}
    raw = base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4))
    KEY.public_key().verify(raw, f"{head}.{claims}".encode(), PKCS1v15(), SHA256())
    await tokens.close()


async def test_credentials_may_be_a_file_and_are_read_when_they_are_needed(server: TokenServer, tmp_path: Path) -> None:
    path = tmp_path / "account.json"
    tokens = tokens_of(str(path))
    with pytest.raises(UpstreamError) as refused:
        await tokens.headers(OUTGOING)
    assert "does not exist" in refused.value.__notes__[0]
    path.write_text(service_account(server))
    assert await tokens_of(str(path)).headers(OUTGOING) == {"authorization": "Bearer token-1"}


async def test_a_user_who_logged_in_with_gcloud_is_found(server: TokenServer, tmp_path: Path) -> None:
    folder = tmp_path / ".config" / "gcloud"
    folder.mkdir(parents=True)
    (folder / "application_default_credentials.json").write_text(user(server, quota_project_id="birds"))
    tokens = tokens_of("", {"HOME": str(tmp_path)})
    assert await tokens.headers(OUTGOING) == {"authorization": "Bearer token-1", "x-goog-user-project": "birds"}
    form = {"grant_type": "refresh_token", "client_id": "c", "client_secret": "s3cret", "refresh_token": "r3fresh"}
    assert server.asked[0][2] == form
    elsewhere = tokens_of("", {"HOME": "/nonexistent", "CLOUDSDK_CONFIG": str(folder)})
    assert (await elsewhere.headers(OUTGOING))["authorization"] == "Bearer token-2"


async def test_a_workloads_own_token_is_exchanged(server: TokenServer, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("subject-1\n")
    assert await tokens_of(workload(server, {"file": str(path)})).headers(OUTGOING) == {
        "authorization": "Bearer token-1"
    }
    asked, _, form = server.asked[0]
    assert (asked, form["subject_token"], form["audience"], form["scope"]) == ("/sts", "subject-1", "//iam/pool", SCOPE)
    path.write_text('{"id_token": "subject-2"}')
    told = {"type": "json", "subject_token_field_name": "id_token"}
    await tokens_of(workload(server, {"file": str(path), "format": told})).headers(OUTGOING)
    assert server.asked[1][2]["subject_token"] == "subject-2"


async def test_a_workloads_token_may_come_from_an_address_and_become_a_service_account(server: TokenServer) -> None:
    server.answers = [
        (200, "subject-3"),
        (200, {"access_token": "federated", "expires_in": 600}),
        (200, {"accessToken": "impersonated", "expireTime": "2023-11-14T23:13:20Z"}),
    ]
    source = {"url": f"{server.url}/subject", "headers": {"x-why": "ci"}}
    url = f"{server.url}/impersonate"
    tokens = tokens_of(workload(server, source, service_account_impersonation_url=url))
    assert await tokens.headers(OUTGOING) == {"authorization": "Bearer impersonated"}
    assert [path for path, _, _ in server.asked] == ["/subject", "/sts", "/impersonate"]
    assert server.asked[0][1]["x-why"] == "ci"
    assert server.asked[1][2]["subject_token"] == "subject-3"
    assert server.asked[2][1]["authorization"] == "Bearer federated"
    assert server.asked[2][2]["scope"] == [SCOPE]


async def test_a_user_may_be_a_service_account_for_the_time_being(server: TokenServer) -> None:
    server.answers = [
        (200, {"access_token": "users"}),
        (200, {"accessToken": "its", "expireTime": "2023-11-14T23:13:20+00:00"}),
    ]
    credentials = {"type": "impersonated_service_account", "source_credentials": json.loads(user(server))}
    written = json.dumps({**credentials, "service_account_impersonation_url": f"{server.url}/be"})
    assert await tokens_of(written).headers(OUTGOING) == {"authorization": "Bearer its"}


async def test_a_machine_on_google_cloud_needs_no_credentials(server: TokenServer) -> None:
    tokens = tokens_of("", {"GCE_METADATA_HOST": server.url.removeprefix("http://")})
    assert await tokens.headers(OUTGOING) == {"authorization": "Bearer token-1"}
    path, headers, _ = server.asked[0]
    assert (path, headers["metadata-flavor"]) == (METADATA_PATH, "Google")


async def test_many_requests_share_one_token_and_one_fetch(server: TokenServer) -> None:
    server.delay = 0.05
    tokens = tokens_of(service_account(server))
    found = await asyncio.gather(*(tokens.headers(OUTGOING) for _ in range(50)))
    assert {headers["authorization"] for headers in found} == {"Bearer token-1"}
    assert len(server.asked) == 1
    assert await tokens.headers(OUTGOING) == found[0]
    assert len(server.asked) == 1


async def test_one_who_leaves_does_not_end_the_fetch_of_the_others(server: TokenServer) -> None:
    server.delay = 0.1
    tokens = tokens_of(service_account(server))
    first = asyncio.create_task(tokens.headers(OUTGOING))
    second = asyncio.create_task(tokens.headers(OUTGOING))
    await asyncio.sleep(0.02)
    first.cancel()
    assert await second == {"authorization": "Bearer token-1"}
    assert len(server.asked) == 1


async def test_a_token_is_renewed_before_it_ends_and_nobody_waits(server: TokenServer) -> None:
    time = Time()
    tokens = tokens_of(service_account(server), time=time)
    await tokens.headers(OUTGOING)
    time.now = 3600 - RENEW_BEFORE_SECONDS + 1
    server.delay = 0.05
    assert await tokens.headers(OUTGOING) == {"authorization": "Bearer token-1"}
    assert await tokens.headers(OUTGOING) == {"authorization": "Bearer token-1"}
    await tokens.close()
    assert await tokens.headers(OUTGOING) == {"authorization": "Bearer token-2"}
    assert len(server.asked) == 2


async def test_a_token_server_that_fails_does_not_take_a_good_token_away(server: TokenServer) -> None:
    time = Time()
    tokens = tokens_of(service_account(server), time=time)
    await tokens.headers(OUTGOING)
    time.now = 3600 - RENEW_BEFORE_SECONDS + 1
    server.answers = [(503, {"error": "unavailable"})]
    assert await tokens.headers(OUTGOING) == {"authorization": "Bearer token-1"}
    await tokens.close()
    assert await tokens.headers(OUTGOING) == {"authorization": "Bearer token-1"}
    assert len(server.asked) == 2, "a failure stands for a while"
    time.now += RETRY_SECONDS
    await tokens.headers(OUTGOING)
    await tokens.close()
    assert await tokens.headers(OUTGOING) == {"authorization": "Bearer token-2"}


async def test_a_token_server_that_is_down_is_not_stormed(server: TokenServer) -> None:
    server.answers = [(400, {"error": "invalid_grant", "error_description": "s3cret account bird@nest"})] * 9
    time = Time()
    tokens = tokens_of(user(server), time=time)
    for _ in range(20):
        with pytest.raises(UpstreamError) as refused:
            await tokens.headers(OUTGOING)
    assert len(server.asked) == 1
    error = refused.value
    assert (error.error_type, error.retryable, error.rest, error.sent) == ("provider_auth", True, True, False)
    (note,) = error.__notes__
    assert note == "providers.cloud got no access token: 127.0.0.1 answered with HTTP 400 invalid_grant."
    time.now = RETRY_SECONDS
    with pytest.raises(UpstreamError):
        await tokens.headers(OUTGOING)
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("credentials", "why"),
    [
        ("{", "not JSON"),
        ('{"type": "service_account"}', "lack 'client_email'|lack 'private_key'"),
        ('{"type": "service_account", "client_email": "a", "private_key": "-----BEGIN"}', "no PEM key"),
        ('{"type": "service_account", "client_email": "a", "private_key": 7}', "no PEM key"),
        ('{"type": "authorized_user", "client_id": "c"}', "lack 'client_secret'"),
        ('{"type": "gdch"}', "'gdch' are not known"),
        ('{"type": "external_account", "credential_source": {"executable": {}}}', "other kinds"),
        ('{"type": "external_account", "credential_source": {"file": "/nonexistent/x"}}', "cannot be read"),
        ('{"type": "external_account", "credential_source": 7}', "not text"),
        ('{"type": "external_account", "credential_source": {"url": "http://169.254.169.254/x"}}', "not https"),
    ],
)
async def test_credentials_that_cannot_serve_say_why_to_the_operator(credentials: str, why: str) -> None:
    with pytest.raises(UpstreamError) as refused:
        await tokens_of(credentials).headers(OUTGOING)
    assert re.search(why, refused.value.__notes__[0])
    assert not re.search(why, refused.value.message)


async def test_a_key_that_is_no_rsa_key_is_named(server: TokenServer) -> None:
    written = service_account(server, private_key=pem(ec.generate_private_key(ec.SECP256R1())))
    with pytest.raises(UpstreamError) as refused:
        await tokens_of(written).headers(OUTGOING)
    assert "no RSA key" in refused.value.__notes__[0]


@pytest.mark.parametrize(
    ("status", "answer", "why"),
    [
        (200, "<html>", "HTTP 200"),
        (200, {"expires_in": 5}, "no access_token"),
        (200, {"access_token": "brief", "expires_in": 1}, "already ended"),
        (302, "", "HTTP 302"),
        (500, {"error": {"status": "INTERNAL", "message": "s3cret"}}, "HTTP 500 INTERNAL"),
    ],
)
async def test_an_answer_without_a_token_is_none(server: TokenServer, status: int, answer: Any, why: str) -> None:
    server.answers = [(status, answer)]
    with pytest.raises(UpstreamError) as refused:
        await tokens_of(user(server)).headers(OUTGOING)
    assert why in refused.value.__notes__[0]
    assert "s3cret" not in refused.value.__notes__[0]


async def test_no_wait_is_without_an_end(server: TokenServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(google, "FETCH_SECONDS", 0.05)
    server.delay = 0.3
    with pytest.raises(UpstreamError) as refused:
        await tokens_of(service_account(server)).headers(OUTGOING)
    assert "no answer within 0.05 s" in refused.value.__notes__[0]


async def test_a_machine_elsewhere_is_told_what_to_set() -> None:
    with pytest.raises(UpstreamError) as refused:
        await tokens_of("", {"GCE_METADATA_HOST": "127.0.0.1:9"}).headers(OUTGOING)
    assert "set credentials" in refused.value.__notes__[0]


async def test_the_token_is_on_the_request_that_leaves(server: TokenServer) -> None:
    """And nowhere in its address."""
    provider = Provider(
        name="cloud",
        api="vertex",
        api_base=server.url,
        options={"project": "p", "region": "global"},
        secrets={"credentials": Secret(service_account(server))},
    )
    account = Account(provider, surroundings=Surroundings(environ={}))
    loop = asyncio.get_running_loop()
    request = UpstreamRequest("/v1/projects/p:generateContent", {})
    response = await account.send(request, b"{}", {}, connect_seconds=5, deadline=loop.time() + 5)
    assert response.status == 200
    response.close()
    path, headers, _ = server.asked[-1]
    assert (path, headers["authorization"]) == ("/v1/projects/p:generateContent", "Bearer token-1")
    await account.close()


async def test_the_key_of_the_gemini_api_is_in_a_header(server: TokenServer) -> None:
    provider = Provider(name="gemini", api="gemini", api_base=f"{server.url}/v1beta", api_key=Secret("AIza-k3y"))
    account = Account(provider)
    loop = asyncio.get_running_loop()
    request = account.translator.encode_request(
        {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": True},
        Target(model="gemini-2.5-flash"),
    )
    response = await account.send(request, b"{}", {}, connect_seconds=5, deadline=loop.time() + 5)
    response.close()
    path, headers, _ = server.asked[-1]
    assert path == "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse"
    assert headers["x-goog-api-key"] == "AIza-k3y"
    await account.close()
