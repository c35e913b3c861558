"""Azure's credentials, against a token server of our own on a real socket."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest

from proxy.config import Provider, Secret
from proxy.errors import UpstreamError
from proxy.providers import Target
from proxy.upstream.accounts import Account
from proxy.upstream.credentials import Outgoing, Surroundings, entra, renewal
from proxy.upstream.credentials.entra import EntraToken, credential
from tests.hostile_upstream import Peer, Upstream, serving

SECRET = "S3cr3t~value-of-the-client"
OUTGOING = Outgoing("POST", "eu.azure.example", "/openai/v1/chat/completions", {}, b"{}")


class TokenServer:
    """Answers each question for a token with the next of `answers`; the last one for ever."""

    def __init__(self, *answers: tuple[int, Mapping[str, Any]], wait_seconds: float = 0.0) -> None:
        self.answers = list(answers)
        self.wait_seconds = wait_seconds
        self.asked = 0

    async def __call__(self, peer: Peer) -> None:
        try:
            while True:
                await peer.request()
                self.asked += 1
                await asyncio.sleep(self.wait_seconds)
                status, said = self.answers[min(self.asked, len(self.answers)) - 1]
                body = msgspec.json.encode(said)
                head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
                await peer.send(head.encode() + body)
        except (asyncio.IncompleteReadError, ConnectionError):
            return


def token(name: str = "t1", seconds: int | str = 3600) -> tuple[int, Mapping[str, Any]]:
    return 200, {"token_type": "Bearer", "access_token": name, "expires_in": seconds}


REFUSED = (
    401,
    {
        "error": "invalid_client",
        "error_description": f"AADSTS7000215: Invalid client secret {SECRET} for app 'x'.",
        "error_codes": [7000215],
    },
)


class Clock:
    def __init__(self) -> None:
        self.now = 5000.0

    def __call__(self) -> float:
        return self.now


def address(upstream: Upstream) -> str:
    return f"http://127.0.0.1:{upstream.origin.port}"


def azure(upstream: Upstream, *, secret: str | None = SECRET, **options: str) -> Provider:
    return Provider(
        name="azure-eu",
        api="azure",
        api_base="https://eu.azure.example",
        options={"tenant_id": "ten/ant", "client_id": "app-1", "authority": address(upstream), **options},
        secrets={"client_secret": Secret(secret)} if secret else {},
    )


def tokens(provider: Provider, clock: Clock, environ: Mapping[str, str] | None = None) -> EntraToken:
    found = credential(provider, Surroundings(environ=environ or {}, wall_clock=clock))
    assert isinstance(found, EntraToken)
    return found


async def bearer(of: EntraToken) -> str:
    return (await of.headers(OUTGOING))["authorization"].removeprefix("Bearer ")


def parts(request: bytes) -> tuple[str, dict[str, str], dict[str, list[str]]]:
    """The target, the headers and the form of a request."""
    head, _, body = request.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return first, headers, parse_qs(body.decode())


def test_a_key_needs_no_token() -> None:
    provider = Provider(name="a", api="azure", api_base="https://eu.azure.example", api_key=Secret("k"))
    assert credential(provider, Surroundings(environ={})) == {"api-key": "k"}


async def test_a_client_secret_is_exchanged_for_a_token_that_is_kept() -> None:
    server = TokenServer(token())
    async with serving(server) as upstream:
        one = tokens(azure(upstream), Clock())
        assert [await bearer(one), await bearer(one)] == ["t1", "t1"]
        await one.close()
    (request,) = upstream.requests
    first, _, form = parts(request)
    assert first == "POST /ten%2Fant/oauth2/v2.0/token HTTP/1.1"
    assert form == {
        "grant_type": ["client_credentials"],
        "client_id": ["app-1"],
        "client_secret": [SECRET],
        "scope": ["https://cognitiveservices.azure.com/.default"],
    }


async def test_all_who_wait_share_one_question() -> None:
    server = TokenServer(token(), wait_seconds=0.05)
    async with serving(server) as upstream:
        one = tokens(azure(upstream), Clock())
        assert set(await asyncio.gather(*(bearer(one) for _ in range(30)))) == {"t1"}
        assert server.asked == 1
        await one.close()


async def test_one_who_leaves_takes_the_token_from_nobody() -> None:
    server = TokenServer(token(), wait_seconds=0.1)
    async with serving(server) as upstream:
        one = tokens(azure(upstream), Clock())
        leaving, staying = asyncio.ensure_future(bearer(one)), asyncio.ensure_future(bearer(one))
        await asyncio.sleep(0.02)
        leaving.cancel()
        assert await staying == "t1"
        assert server.asked == 1
        await one.close()


async def test_a_token_is_renewed_in_the_background_before_it_expires() -> None:
    clock, server = Clock(), TokenServer(token("old"), token("new"), wait_seconds=0.05)
    async with serving(server) as upstream:
        one = tokens(azure(upstream), clock)
        assert await bearer(one) == "old"
        clock.now += 3600 - 300 - 1
        assert await bearer(one) == "old" and server.asked == 1
        clock.now += 2
        assert [await bearer(one) for _ in range(5)] == ["old"] * 5, "nobody waits for the new one"
        await asyncio.sleep(0.2)
        assert server.asked == 2 and await bearer(one) == "new"
        await one.close()


async def test_while_renewal_fails_the_old_token_serves_and_nobody_hammers() -> None:
    clock, server = Clock(), TokenServer(token("old"), REFUSED)
    async with serving(server) as upstream:
        one = tokens(azure(upstream), clock)
        await bearer(one)
        clock.now += 3600 - 299
        for _ in range(5):
            assert await bearer(one) == "old"
            await asyncio.sleep(0.02)
        assert server.asked == 2
        clock.now += 299
        with pytest.raises(UpstreamError) as failed:
            await bearer(one)
        assert (failed.value.error_type, failed.value.sent, failed.value.status) == ("provider_auth", False, 502)
        await one.close()


async def test_a_refusal_tells_its_code_to_the_operator_and_nothing_to_the_client(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = TokenServer(REFUSED)
    async with serving(server) as upstream:
        one = tokens(azure(upstream), Clock())
        with caplog.at_level(logging.WARNING), pytest.raises(UpstreamError) as failed:
            await bearer(one)
        await one.close()
    assert "invalid_client, AADSTS7000215" in caplog.text and "client_secret" in caplog.text
    for told in (caplog.text, failed.value.message, repr(failed.value.body())):
        assert SECRET not in told and "Invalid client secret" not in told
    assert "AADSTS" not in failed.value.message


@pytest.mark.parametrize(
    "answer",
    [
        (200, {"access_token": "t"}),
        (200, {"access_token": 7, "expires_in": 9}),
        (200, {"expires_in": 9}),
        (500, {"access_token": "t", "expires_in": 9}),
        (302, {}),
    ],
)
async def test_what_is_no_token_is_none(answer: tuple[int, Mapping[str, Any]]) -> None:
    async with serving(TokenServer(answer)) as upstream:
        one = tokens(azure(upstream), Clock())
        with pytest.raises(UpstreamError):
            await bearer(one)
        await one.close()


async def test_a_token_server_that_is_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renewal, "FETCH_SECONDS", 0.1)
    async with serving(TokenServer(token(), wait_seconds=30)) as upstream:
        one = tokens(azure(upstream), Clock())
        with pytest.raises(UpstreamError):
            await asyncio.wait_for(bearer(one), 2)
        await one.close()


async def test_a_federated_token_is_read_anew_each_time(tmp_path: Path) -> None:
    clock, server, file = Clock(), TokenServer(token("a"), token("b")), tmp_path / "token"
    async with serving(server) as upstream:
        file.write_text("first\n")
        one = tokens(azure(upstream, secret=None, federated_token_file=str(file)), clock)
        await bearer(one)
        file.write_text("second\n")
        clock.now += 3600
        assert await bearer(one) == "b"
        await one.close()
    forms = [parts(request)[2] for request in upstream.requests]
    assert [form["client_assertion"] for form in forms] == [["first"], ["second"]]
    assert {form["client_assertion_type"][0] for form in forms} == {entra.ASSERTION_TYPE}
    assert "client_secret" not in forms[0]


async def test_a_federated_token_that_is_missing_is_the_operators_to_mend(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(TokenServer(token())) as upstream:
        one = tokens(azure(upstream, secret=None, federated_token_file="/not/there"), Clock())
        with pytest.raises(UpstreamError):
            await bearer(one)
    assert "FileNotFoundError" in caplog.text


async def test_a_machine_of_azures_asks_its_metadata_service() -> None:
    async with serving(TokenServer(token(seconds="86400"))) as upstream:
        provider = azure(upstream, secret=None, scope="https://ai.azure.com/.default")
        one = tokens(provider, Clock(), {"AZURE_POD_IDENTITY_AUTHORITY_HOST": address(upstream)})
        assert await bearer(one) == "t1"
        await one.close()
    first, headers, _ = parts(upstream.requests[0])
    url = urlsplit(first.split()[1])
    assert first.startswith("GET ") and url.path == "/metadata/identity/oauth2/token" and headers["metadata"] == "true"
    assert parse_qs(url.query) == {
        "api-version": ["2018-02-01"],
        "resource": ["https://ai.azure.com"],
        "client_id": ["app-1"],
    }


async def test_an_app_service_says_the_moment_and_wants_its_proof() -> None:
    clock = Clock()
    server = TokenServer((200, {"access_token": "app", "expires_on": "5100"}), token("later"))
    async with serving(server) as upstream:
        environ = {"IDENTITY_ENDPOINT": f"{address(upstream)}/msi/token", "IDENTITY_HEADER": "proof-1"}
        one = tokens(azure(upstream, secret=None), clock, environ)
        assert await bearer(one) == "app"
        clock.now += 75  # of its hundred seconds
        assert await bearer(one) == "later"
        await one.close()
    first, headers, _ = parts(upstream.requests[0])
    assert first.startswith("GET /msi/token?api-version=2019-08-01&resource=https%3A%2F%2Fcognitiveservices.azure.com&")
    assert headers["x-identity-header"] == "proof-1"


async def test_a_secret_never_travels_unencrypted(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(TokenServer(token())) as upstream:
        provider = azure(upstream, authority="http://login.example")
        with pytest.raises(UpstreamError):
            await bearer(tokens(provider, Clock()))
        assert upstream.requests == []
    assert "https://" in caplog.text


@pytest.mark.parametrize(
    ("path", "version", "target"),
    [
        ("", "2024-10-21", "/openai/deployments/ours/chat/completions?api-version=2024-10-21"),
        ("/openai", "2024-10-21", "/openai/deployments/ours/chat/completions?api-version=2024-10-21"),
        ("", "", "/openai/v1/chat/completions"),
        ("/openai/v1", "", "/openai/v1/chat/completions"),
        ("/openai/v1/", "preview", "/openai/v1/chat/completions?api-version=preview"),
    ],
)
async def test_a_request_goes_where_azure_takes_it_with_the_token(path: str, version: str, target: str) -> None:
    async def both(peer: Peer) -> None:
        """The token's server and the model's, at one address."""
        await TokenServer(token())(peer)

    async with serving(both) as upstream:
        provider = Provider(
            name="azure-eu",
            api="azure",
            api_base=f"{address(upstream)}{path}",
            options={"tenant_id": "t", "client_id": "c", "authority": address(upstream), "api_version": version},
            secrets={"client_secret": Secret(SECRET)},
        )
        account = Account(provider)
        chat = {"model": "x", "messages": [{"role": "user", "content": "Hello"}]}
        request = account.translator.encode_request(chat, Target("ours", provider.quirks, provider.options))
        now = asyncio.get_running_loop().time()
        response = await account.send(request, b"{}", {}, connect_seconds=2, deadline=now + 5)
        response.close()
        await account.close()
    first, headers, _ = parts(upstream.requests[-1])
    assert first == f"POST {target} HTTP/1.1"
    assert headers["authorization"] == "Bearer t1" and "api-key" not in headers
    assert not any(SECRET.encode() in request.partition(b"\r\n")[0] for request in upstream.requests)
