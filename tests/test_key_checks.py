"""Whether a provider takes a key: where it is asked, for how long, and what is made of what it says."""

from __future__ import annotations

import asyncio
import http.server
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from proxy.config import Provider, Secret
from proxy.config.presets import PRESETS
from proxy.exchange import Caller
from proxy.providers import Target
from proxy.storage.postgres import Database
from proxy.storage.provider_keys import SealedKey, insert
from proxy.storage.vault import Vault
from proxy.upstream.accounts import Account
from proxy.upstream.elsewhere import Elsewhere
from proxy.upstream.key_checks import MAX_DETAIL_CHARACTERS, check
from proxy.upstream.own_keys import EMPTY, OwnKeys, host_of
from tests.test_remote_files import certificate

KEY = "sk-of-a-user-0123456789"
VAULT = Vault(b"q8Zr2LxW0vT5nYb7KcJd3MfH6gPs9AeU")


@pytest.mark.parametrize(
    ("provider", "options", "target"),
    [
        ("openai", {}, "/v1/models"),
        ("groq", {}, "/openai/v1/models"),
        ("openrouter", {}, "/api/v1/key"),
        ("anthropic", {}, "/v1/models?limit=1000"),
        ("gemini", {}, "/v1beta/models?pageSize=1000"),
        ("mistral", {}, "/v1/models"),
        ("cohere", {}, "/v1/models?page_size=1000"),
        ("azure", {}, "/openai/v1/models"),
        ("azure", {"api_version": "2024-10-21"}, "/openai/models?api-version=2024-10-21"),
    ],
)
async def test_each_api_is_asked_for_its_models_at_its_own_place(
    provider: str, options: dict[str, str], target: str
) -> None:
    preset = PRESETS[provider]
    base = preset.api_base if preset.api_base.startswith("https") else "https://birds.openai.azure.com"
    account = Account(
        Provider(name=provider, api=preset.api, api_base=base, api_key=Secret(KEY), quirks=dict(preset.quirks))
    )
    request = account.translator.list_models(Target("", preset.quirks, options))  # type: ignore[attr-defined]
    assert account._target(request.path) == target
    await account.close()


class Answers:
    """A provider that gives one answer to whoever has a key, and to the others 401; or none at all."""

    def __init__(self) -> None:
        self.answer: bytes | None = b""
        self.heads: list[str] = []
        self.port = 0

    def give(self, status: int, body: str, *headers: str) -> None:
        lines = "".join(f"{header}\r\n" for header in headers)
        self.answer = f"HTTP/1.1 {status} X\r\ncontent-length: {len(body.encode())}\r\n{lines}\r\n{body}".encode()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.heads.append(head)
        if self.answer is None:
            await reader.read()
        elif "authorization" in head:
            writer.write(self.answer)
        else:
            writer.write(b"HTTP/1.1 401 X\r\ncontent-length: 0\r\n\r\n")
        writer.close()


@pytest.fixture
async def answers() -> AsyncIterator[Answers]:
    made = Answers()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    server.close()


@pytest.mark.parametrize(
    ("status", "body", "word", "detail"),
    [
        (200, '{"data": [{}, {}, {}]}', "valid", "3 models, answered in"),
        (200, '{"data": {"label": "x"}}', "valid", "answered in"),
        (200, "\xff{", "valid", "answered in"),
        (302, "", "unreachable", "302"),
        (400, '{"error": {"message": "API key not valid. Please pass a valid API key."}}', "invalid", "400: API key"),
        (400, '{"error": {"message": "What is this?"}}', "not checked", "400: What is this?"),
        (401, "", "invalid", "401: it did not say why"),
        (403, '{"error": {"message": "No."}}', "invalid", "403: No."),
        (404, "", "not checked", "no list of models"),
        (429, '{"error": {"code": "insufficient_quota", "message": "Broke."}}', "no quota", "429: Broke."),
        (429, '{"error": {"message": "Slow down."}}', "rate limited", "429: Slow down."),
        (503, "<html><title>Down</title></html>", "unreachable", "503: A web page titled “Down”"),
        (401, '{"error": {"message": "' + KEY + "x" * 900 + '"}}', "invalid", "401: "),
        (401, '{"error": {"message": "a\\u001b[2Jb\\nc"}}', "invalid", "401: a[2Jb c"),
    ],
)
async def test_what_the_provider_says_becomes_a_word_and_a_short_line_without_the_key(
    answers: Answers, status: int, body: str, word: str, detail: str
) -> None:
    answers.give(status, body)
    account = Account(Provider(name="p", api_base=f"http://127.0.0.1:{answers.port}/v1", api_key=Secret(KEY)))
    said = await check(account)
    assert (said.status, detail in said.detail) == (word, True), said
    assert KEY not in said.detail and len(said.detail) <= MAX_DETAIL_CHARACTERS and said.detail.isprintable()
    assert answers.heads[0].startswith("GET /v1/models HTTP/1.1\r\n") and f"Bearer {KEY}" in answers.heads[0]
    assert all(KEY not in head for head in answers.heads[1:])
    await account.close()


async def test_a_provider_that_says_nothing_is_unreachable_after_the_time_it_has(answers: Answers) -> None:
    answers.answer = None
    account = Account(Provider(name="p", api_base=f"http://127.0.0.1:{answers.port}/v1", api_key=Secret(KEY)))
    said = await check(account, seconds=0.3)
    assert said.status == "unreachable"
    assert (account.pool.active, account.pool.waiting) == (0, 0)
    await account.close()


async def test_an_api_without_a_list_of_models_cannot_be_tried() -> None:
    account = Account(
        Provider(
            name="b", api="bedrock", api_base="https://bedrock-runtime.eu-west-1.amazonaws.com", api_key=Secret(KEY)
        )
    )
    assert (await check(account)).status == "not checked"
    await account.close()


@pytest.fixture
def tls_server(tmp_path: Path) -> Iterator[tuple[int, ssl.SSLContext, list[dict[str, str]]]]:
    """A port, what trusts the server there, and the headers that came."""
    server_context, client_context = certificate(tmp_path, "users.example")
    came: list[dict[str, str]] = []

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            came.append({name.lower(): value for name, value in self.headers.items()})
            known = f"Bearer {KEY}" in (self.headers.get("authorization") or "")
            self.send_response(200 if known else 401)
            self.send_header("content-length", "11")
            self.end_headers()
            self.wfile.write(b'{"data":[]}')

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    server.socket = server_context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1], client_context, came
    server.shutdown()
    thread.join(10)
    server.server_close()


async def test_at_a_users_own_address_only_his_key_arrives_and_nothing_of_the_operators(
    db: Database, tls_server: tuple[int, ssl.SSLContext, list[dict[str, str]]]
) -> None:
    port, context, came = tls_server

    async def look_up(_: str) -> list[str]:
        return ["127.0.0.1"]

    operators = Account(
        Provider(
            name="oai",
            api_base="http://127.0.0.1:9/v1",
            api_key=Secret("sk-operators-key-0000"),
            headers={"x-operators": "secret"},
        )
    )
    own = OwnKeys(db, VAULT, {"oai": operators}, Elsewhere(lookup=look_up, public=lambda _: True, ssl_context=context))
    base = f"https://users.example:{port}/v1"
    key = SealedKey(
        "00000000-0000-0000-0000-000000000001", "global", None, "oai", "n", base, host_of(base), "", 0, EMPTY
    )
    async with db.transaction() as connection:
        await insert(connection, own.sealed(key, KEY), status="not checked", detail="")
    await own.start()
    account = own.account_for(Caller("k", "k", ""), operators)
    assert account.own_key is not None and account.own_key.elsewhere
    assert (await check(account)).status == "valid"
    assert [headers.get("authorization") for headers in came] == [f"Bearer {KEY}", None]
    assert all("x-operators" not in headers and headers["host"] == f"users.example:{port}" for headers in came)
    assert operators.pool.active == operators.pool.idle == 0
    await own.close()
    await operators.close()
