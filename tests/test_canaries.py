"""
Secrets stay where they are put: a gateway that logs everything is given one in each place that takes one, is driven
through good and bad days by clients and by a provider that says aloud what it was sent, and then everything that it has
written or answered is searched for them.

Spans are among it where OpenTelemetry is installed.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, quote, urlsplit

import asyncpg
import pytest
import redis
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from proxy.cli import main
from proxy.config import Secret
from proxy.edge.access import ACCESS
from proxy.hiding import Hiding, secrets_of
from proxy.rounds import Rounds
from proxy.telemetry.logs import configure
from tests.canaries import CANARIES, forms, hits
from tests.conftest import needs, run_sql
from tests.gateway import Gateway, free_port
from tests.listening_provider import MESSAGE, ListeningProvider, Reply, Request, answering, completion
from tests.redis_server import RedisServer

PATH = "/v1/chat/completions"
RSA_KEY = rsa.generate_private_key(65537, 2048)
PEM = RSA_KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
MODELS = ("oai/m", "environment/m", "claude/m", "gemini/m", "aws/m", "vertex/gemini-m", "entra/m", "command/m")
TRACED = find_spec("opentelemetry") is not None and find_spec("opentelemetry.sdk") is not None
KEPT_APART = ("prompt", "answer")
"""What clients send and get, of course; no secret from them, but from logs and tables."""


def config(provider: str, redis_url: str, collector: str) -> str:
    c = {name: json.dumps(value) for name, value in CANARIES.items()}
    account = json.dumps(
        json.dumps(
            {
                "type": "service_account",
                "client_email": "strata@example.iam.gserviceaccount.com",
                "private_key": PEM,
                "private_key_id": "1",
                "token_uri": f"{provider}/token",
            }
        ).replace("$", "$$")
    )
    return f"""
server: {{max_body: 20MB, shutdown_grace: 5s}}
auth: {{master_key: {json.dumps(CANARIES["master key"] + "," + CANARIES["old master key"])}}}
logging: {{level: debug, format: json}}
redis: {{url: {json.dumps(redis_url)}}}
telemetry:
  metrics: {{token: {c["token of the metrics"]}}}
  traces: {{{f"endpoint: '{collector}', sample: 1, " if TRACED else ""}headers: {{x-key: {c["key of the collector"]}}}}}
keys: {{static: [{{name: file, key: {c["key of the file"]}}}]}}
providers:
  oai:
    {{type: openai_compatible, api_base: "{provider}/v1", api_key: {c["operator's key"]},
     headers: {{x-team-token: {c["header of a provider"]}}}}}
  environment: {{type: openai_compatible, api_base: "{provider}/v1", api_key: "${{OPERATORS_KEY}}"}}
  claude: {{type: anthropic, api_base: "{provider}", api_key: {c["operator's key"]}}}
  gemini: {{api_base: "{provider}/v1beta", api_key: {c["operator's key"]}}}
  command: {{type: cohere, api_base: "{provider}", api_key: {c["operator's key"]}}}
  aws:
    {{type: bedrock, api_base: "{provider}", region: eu-west-1, access_key_id: AKIDEXAMPLE,
     secret_access_key: {c["aws secret"]}, session_token: {c["aws session token"]}}}
  vertex: {{project: birds, region: global, api_base: "{provider}", credentials: {account}}}
  entra:
    {{type: azure, api_base: "{provider}", tenant_id: t, client_id: c, authority: "{provider}",
     client_secret: {c["client secret of entra"]}}}
models: {{{", ".join(f"{name}: {name}" for name in MODELS)}}}
defaults: {{allowed_fails: 1000000, num_retries: 0}}
alerts:
  channels:
    hook: {{type: webhook, url: "{provider}/hook", secret: {c["secret of the webhook"]}}}
    slack: {{type: slack, url: "{provider}/{quote(CANARIES["address of slack"])}"}}
    refused: {{type: slack, url: "http://127.0.0.1:1/{quote(CANARIES["address of slack"])}"}}
    mail: {{type: email, to: [ops@example.com]}}
  smtp:
    {{host: 127.0.0.1, port: 1, from: a@example.com, user: u, security: none,
     password: {c["password of smtp"]}}}
"""


class House:
    """The gateway, and everything that came out of it, by where it came from."""

    def __init__(
        self, gateway: Gateway, provider: ListeningProvider, collector: ListeningProvider, dsn: str, redis_url: str
    ) -> None:
        self.gateway, self.provider, self.collector = gateway, provider, collector
        self.dsn, self.redis_url = dsn, redis_url
        self.places: dict[str, bytes] = {}
        self.answered = 0

    def call(self, method: str, path: str, body: object = None, key: str = "", **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.gateway.port, timeout=60)
        sent = {"content-type": "application/json", **headers}
        if "authorization" not in sent and key is not None:
            sent["authorization"] = f"Bearer {key or self.gateway.key}"
        data = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else None
        connection.request(method, path, data, sent)
        answer = connection.getresponse()
        said = answer.read()
        connection.close()
        self.answered += 1
        self.places[f"answer {self.answered} to {method} {path}"] = str(answer.getheaders()).encode() + said
        return answer.status, said

    def run(self, *words: str) -> None:
        ran = self.gateway.strata(*words)
        self.answered += 1
        self.places[f"command {self.answered} {' '.join(words)}"] = (ran.stdout + ran.stderr).encode()


def chat(model: str = "oai/m", **fields: object) -> dict[str, object]:
    return {"model": model, "messages": [{"role": "user", "content": CANARIES["prompt"]}], **fields}


def token_of(request: Request) -> Reply | None:
    """What a token server says; None if it was not asked for a token."""
    if "/token" not in request.path:
        return None
    said = {"access_token": "ya29.short", "expires_in": 3600, "token_type": "Bearer"}
    return Reply(200, {"content-type": "application/json"}, json.dumps(said).encode())


def good(request: Request) -> Reply:
    answer = {**MESSAGE, "content": CANARIES["answer"]}
    if b'"stream":true' in request.body:
        chunk = {"id": "c", "choices": [{"index": 0, "delta": answer, "finish_reason": "stop"}]}
        events = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode()
        return Reply(200, {"content-type": "text/event-stream"}, events)
    if request.method == "GET" and not request.headers_named("authorization"):
        return Reply(401, {}, b"no key")
    return token_of(request) or completion(choices=[{"index": 0, "message": answer, "finish_reason": "stop"}])


def told_back(request: Request) -> str:
    """Everything that authorised it, as a careless provider quotes it; of a form what is in its fields."""
    form = {
        name: values for name, values in parse_qs(request.body.decode("utf-8", "replace")).items() if len(name) < 40
    }
    secret = [form.get("client_secret"), form.get("assertion")]
    return f"{request.path} {dict(request.headers)} {secret}".replace("\n", " ")


def echo(status: int, shape: str) -> Callable[[Request], Reply]:
    def answer(request: Request) -> Reply:
        if shape != "token":
            token = token_of(request)
            if token is not None:
                return token
        text = told_back(request)
        headers = {"content-type": "application/json", "x-echo": quote(text), "www-authenticate": quote(text)}
        if shape == "stream":
            first = {"id": "c", "choices": [{"index": 0, "delta": {"content": "x"}}]}
            events = f"data: {json.dumps(first)}\n\ndata: {json.dumps({'error': {'message': text}})}\n\n"
            return Reply(status, {"content-type": "text/event-stream"}, events.encode())
        key = (request.headers_named("authorization") or request.headers_named("x-api-key") or ["none"])[0]
        key = key.removeprefix("Bearer ")
        bodies = {
            "json": json.dumps({"error": {"message": text, "code": key, "param": key, "type": key}}),
            "near the end": json.dumps({"error": {"message": "x" * 480 + key}}),
            "text": text,
            "html": f"<html><title>{key}</title>{text}</html>",
            "detail": json.dumps({"detail": [{"msg": text, "loc": ["body", key]}]}),
            "token": json.dumps({"error": "invalid_client", "error_description": text, "error_codes": [7000215]}),
            "list": json.dumps([{"error": {"message": text, "status": key}}]),
            "quoted": json.dumps({"message": quote(text)}),
        }
        return Reply(status, headers, bodies[shape].encode())

    return answer


@pytest.fixture
def login(postgres_server: str) -> Iterator[str]:
    """`name:password` of an owner, for an address. Asked for before the database, so that it outlives that."""
    password = CANARIES["password of the database"]
    drop = "DROP ROLE IF EXISTS canary"
    asyncio.run(run_sql(postgres_server, drop, f"CREATE ROLE canary LOGIN SUPERUSER PASSWORD '{password}'"))
    yield f"canary:{quote(password, safe='')}"
    asyncio.run(run_sql(postgres_server, drop))


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    password = CANARIES["password of redis"]
    server = RedisServer(needs("redis-server"), tmp_path / "redis", "--requirepass", password).start()
    yield f"redis://:{quote(password, safe='')}@127.0.0.1:{server.port}/0"
    server.stop()


@pytest.fixture
async def house(tmp_path: Path, redis_url: str, login: str, database_dsn: str) -> AsyncIterator[House]:
    dsn = f"postgresql://{login}{database_dsn[database_dsn.index('@') :]}"
    with ListeningProvider() as provider, ListeningProvider() as collector:
        provider.answer = good
        collector.answer = lambda request: Reply(200, {}, b"")
        gateway = Gateway(tmp_path / "home", database_url=dsn)
        gateway.environ["OPERATORS_KEY"] = CANARIES["operator's key of the environment"]
        gateway.config.write_text(config(provider.url, redis_url, collector.url))
        made = House(gateway, provider, collector, database_dsn, redis_url)
        try:
            await asyncio.to_thread(gateway.start)
            yield made
        finally:
            await asyncio.to_thread(gateway.stop)


def drive_well(house: House) -> None:
    cookies = {"cookie": f"session={CANARIES['junk cookie']}"}
    for model in MODELS:
        for stream in (False, True):
            house.call("POST", PATH, chat(model, stream=stream), **cookies)
    status, _ = house.call("POST", PATH, chat(), key=CANARIES["key of the file"])
    assert status == 200
    status, _ = house.call("POST", PATH, chat(), key=CANARIES["old master key"])
    assert status == 200


def drive_providers_that_talk(house: House) -> None:
    shapes = ("json", "near the end", "text", "html", "detail", "list", "quoted")
    cases = [(status, shape) for status in (400, 401, 403, 404, 422, 429, 500, 503) for shape in shapes]
    for status, shape in [
        *cases,
        (200, "json"),
        (200, "text"),
        (200, "stream"),
        (302, "text"),
        (400, "token"),
        (500, "token"),
    ]:
        with answering(house.provider, echo(status, shape)):
            for model in MODELS:
                for stream in (False, True):
                    house.call("POST", PATH, chat(model, stream=stream))


def drive_strangers(house: House) -> None:
    junk = CANARIES["junk credential"]
    for credential in (junk, f"Bearer {junk}", f"Basic {junk}", f"Bearer {junk} {junk}"):
        assert house.call("POST", PATH, chat(), authorization=credential)[0] == 401
        assert house.call("GET", "/api/audit", authorization=credential)[0] == 401
        house.call("GET", "/metrics", authorization=credential)
    for name in ("x-api-key", "api-key"):
        assert house.call("POST", PATH, chat(), **{name: junk})[0] == 400
    house.call("POST", f"{PATH}?api_key={CANARIES['key in a query']}&key={CANARIES['key in a query']}", chat())
    house.call("GET", f"/v1/none?api_key={CANARIES['key in a query']}")
    house.call("GET", f"/api/requests?model={CANARIES['key in a query']}")
    prompt = CANARIES["prompt"]
    for body in (
        json.dumps(chat())[:-1].encode(),
        json.dumps(chat())[:-1].encode() + b',"n":1,"n":2}',
        json.dumps(chat(messages=[{"role": "user", "content": {"text": prompt}}])).encode(),
        json.dumps(chat(messages=[{"role": "user", "content": [{"type": "text", "text": [prompt]}]}])).encode(),
        json.dumps(chat(max_tokens=-1)).encode(),
        json.dumps(chat("no-such-model")).encode(),
        json.dumps(chat()).encode() + b"\xff",
    ):
        assert house.call("POST", PATH, body)[0] in (400, 404)
    with socket.create_connection(("127.0.0.1", house.gateway.port), timeout=20) as raw:
        raw.sendall(f"GET /x HTTP/1.1\r\nhost: x\r\nauthorization: {junk}\r\nbad header {junk}\r\n\r\n".encode())
        house.places["answer to junk"] = raw.recv(65_536)


def drive_pages(house: House) -> None:
    master = CANARIES["master key"]
    for key in ("", master):
        for access in ACCESS:
            if access.method == "GET":
                house.call("GET", access.path.replace("{id:path}", "x").replace("{id}", "config:oai"), key=key)
    for provider in ("oai", "claude", "gemini"):
        house.call("POST", f"/api/keys/providers/config:{provider}/validate", key=master)
        with answering(house.provider, echo(401, "json")):
            house.call("POST", f"/api/keys/providers/config:{provider}/validate", key=master)
            refused = {"provider": provider, "api_key": CANARIES["refused provider key"], "scope": "global"}
            assert house.call("POST", "/api/keys/providers", refused, key=master)[0] == 400
        saved = {
            "provider": provider,
            "api_key": CANARIES["saved provider key"],
            "scope": "global",
            "save_anyway": True,
        }
        status, said = house.call("POST", "/api/keys/providers", saved, key=master)
        assert status == 201, said
        id = json.loads(said)["id"]
        house.call("PATCH", f"/api/keys/providers/{id}", saved | {"api_key": [saved["api_key"]]}, key=master)
        with answering(house.provider, echo(500, "quoted")):
            house.call("POST", f"/api/keys/providers/{id}/validate", key=master)
    for wrong in (
        {"api_key": CANARIES["saved provider key"], "provider": [1]},
        {"api_key": [CANARIES["saved provider key"]]},
    ):
        house.call("POST", "/api/keys/providers", wrong, key=master)
    metrics = house.call("GET", "/metrics", key=CANARIES["token of the metrics"])
    assert metrics[0] == 200
    house.call("GET", "/metrics", key=CANARIES["junk credential"])


COMMANDS = ("check", "check --json", "check --strict", "keys list --json", "budgets list", "request show x", "prices",
            "alerts list", "alerts test", "alerts test --json", "audit list", "audit verify", "vault status", "migrate",
            "ledger verify", "keys revoke none", "doctor")  # fmt: skip


def drive_commands(house: House) -> None:
    for line in COMMANDS:
        house.run(*line.split())
    broken = house.gateway.config.with_name("broken.yaml")
    for number, text in enumerate(mistakes(house.gateway.config.read_text())):
        broken.write_text(text)
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            main(["check", str(broken)], {"OPERATORS_KEY": CANARIES["operator's key of the environment"]})
        house.places[f"mistake {number}"] = said.getvalue().encode()


def drive_bad_days(house: House) -> None:
    """Commands, and gateways that are ended after a while, where nobody answers or a password is wrong."""
    gateway, right = house.gateway, house.gateway.environ["DATABASE_URL"]
    closed = free_port()
    login, _, rest = right.partition("@")
    text, store = gateway.config.read_text(), urlsplit(house.redis_url).port
    other = Gateway(gateway.home.with_name("other"), name="bad-day", database_url=right)
    other.environ |= gateway.environ
    other.config.write_text(text.replace(f"127.0.0.1:{store}", f"127.0.0.1:{closed}"))
    for url in (
        f"{login}@127.0.0.1:{closed}/x",
        f"{login.replace('canary:', 'nobody:')}@{rest}",
        f"{login}@{rest.replace('/test_', '/missing_')}",
    ):
        other.environ["DATABASE_URL"] = url
        for words in (("keys", "list"), ("migrate",), ("vault", "status")):
            ran = other.strata(*words)
            assert ran.returncode
            house.places[f"bad day {url[:30]} {words}"] = (ran.stdout + ran.stderr).encode()
        other.serve_for(seconds=3)
    other.environ["DATABASE_URL"] = right
    other.serve_for(seconds=4)
    assert b"ready at" in other.log.read_bytes()
    house.places["bad days"] = other.log.read_bytes()


def mistakes(whole: str) -> Iterator[str]:
    """The configuration with each secret in turn where it is of the wrong kind, and in addresses that are none."""
    for value in CANARIES.values():
        written = json.dumps(value)
        if written in whole:
            yield from (whole.replace(written, put) for put in (f"[{written}]", f"{{a: {written}}}", f"{written}x"))
    password = CANARIES["password of redis"]
    for form in (
        "providers: {one: {type: openai_compatible, api_base: 'https://u:PASSWORD@example.com/v1'}}",
        "providers: {one: {type: openai_compatible, api_base: 'gopher://u:PASSWORD@example.com'}}",
        "database: {url: 'mysql://u:PASSWORD@db/x'}",
        "redis: {url: 'http://u:PASSWORD@db/x'}",
        "alerts: {channels: {a: {type: slack, url: 'u:PASSWORD@x'}}}",
    ):
        yield form.replace("PASSWORD", password)


TABLES = """
SELECT format('%I.%I', n.nspname, c.relname) AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'm') AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
"""


async def dump(dsn: str) -> dict[str, bytes]:
    """Every row of every table that is ours, bytes in hex, and what Postgres remembers of statements."""
    connection = await asyncpg.connect(dsn, timeout=10)
    try:
        tables = [row["name"] for row in await connection.fetch(TABLES)]
        assert len(tables) > 15
        found = {}
        for table in (*tables, "pg_stat_activity"):
            rows = await connection.fetch(f"SELECT t::text AS row FROM {table} t")
            found[f"table {table}"] = "\n".join(row["row"] for row in rows).encode()
        return found
    finally:
        await connection.close()


def files(folder: Path) -> dict[str, bytes]:
    return {f"file {path.relative_to(folder)}": path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def in_redis(url: str) -> bytes:
    client = redis.Redis.from_url(url)
    try:
        return b"\n".join(key + (client.dump(key) or b"") for key in client.scan_iter())
    finally:
        client.close()


async def test_no_secret_leaves_the_place_where_it_was_put(house: House) -> None:
    for drive in (drive_well, drive_providers_that_talk, drive_strangers, drive_pages, drive_commands, drive_bad_days):
        await asyncio.to_thread(drive, house)
    assert house.gateway.alive()
    await asyncio.sleep(2)
    tables = await dump(house.dsn)
    kept_in_redis = await asyncio.to_thread(in_redis, house.redis_url)
    await asyncio.to_thread(house.gateway.stop)
    log = house.gateway.log.read_bytes()
    assert b'"level":"debug"' in log
    assert len(house.places) > 800
    assert len(tables["table strata.requests"]) > 10_000

    spans = b"".join(request.body for request in house.collector.requests)
    assert len(spans) > 10_000 or not TRACED

    written = {"the log": log, "spans": spans, **tables, "redis": kept_in_redis, **files(house.gateway.home)}
    secrets = {name: value for name, value in CANARIES.items() if name not in KEPT_APART}
    secrets |= {"virtual key": house.gateway.key, "private key of google": PEM.splitlines()[3]}
    assert hits(written, {**CANARIES, **secrets}) == []
    assert hits(house.places, secrets) == []


@pytest.mark.parametrize("name", CANARIES)
@pytest.mark.parametrize("form", forms(CANARIES["prompt"]))
def test_a_canary_is_found_in_every_form(name: str, form: str) -> None:
    planted = b"before " + forms(CANARIES[name])[form] + b" after"
    found = hits({"clean": b"nothing here", "planted": planted})
    assert {hit.canary for hit in found} == {name}
    assert form in {hit.form for hit in found}
    assert {hit.place for hit in found} == {"planted"}


def test_canaries_do_not_stand_for_each_other() -> None:
    for name, value in CANARIES.items():
        assert {hit.canary for hit in hits({"all others": " ".join(set(CANARIES.values()) - {value}).encode()})} == {
            *CANARIES
        } - {name}


async def test_a_canary_is_found_in_every_place(tmp_path: Path, database_dsn: str, redis_url: str) -> None:
    value = CANARIES["saved provider key"]
    connection = await asyncpg.connect(database_dsn, timeout=10)
    await connection.execute("CREATE TABLE strata.planted (words text, sealed bytea, more jsonb, many text[])")
    for words, sealed, more, many in (
        (value, None, None, None),
        (None, value.encode(), None, None),
        (None, None, json.dumps({"a": [value]}), None),
        (None, None, None, [value]),
    ):
        await connection.execute("TRUNCATE strata.planted")
        await connection.execute("INSERT INTO strata.planted VALUES ($1, $2, $3, $4)", words, sealed, more, many)
        assert {hit.place for hit in hits(await dump(database_dsn))} == {"table strata.planted"}
    await connection.close()

    for name, data in (("journal/1.seg", b"\0\1" + value.encode()), ("deep/er/file", value.encode().hex().encode())):
        path = tmp_path / "home" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
        assert {hit.place for hit in hits(files(tmp_path / "home"))} == {f"file {name}"}
        path.unlink()

    client = redis.Redis.from_url(redis_url)
    for write in (
        lambda: client.set("k", value),
        lambda: client.hset("k", "field", value),
        lambda: client.set(value, 1),
    ):
        client.flushall()
        write()
        assert hits({"redis": in_redis(redis_url)}, {"it": value})
    client.close()


@pytest.mark.parametrize("format", ["json", "pretty"])
async def test_a_task_that_fails_with_a_secret_in_its_words_does_not_log_it(format: Literal["json", "pretty"]) -> None:
    written = io.StringIO()
    hide = Hiding(secrets_of([Secret(value) for value in CANARIES.values()]))
    log = configure("debug", format, written, hide)
    failures: list[str] = []

    async def fail() -> None:
        words = " ".join(CANARIES.values())
        try:
            raise ValueError(f"inner {words}")
        except ValueError as error:
            error.add_note(words)
            raise RuntimeError(words) from error

    rounds = Rounds(failures.append)
    try:
        rounds.start("doomed", fail)
        logging.getLogger("somebody.else").debug("a library says %s", list(CANARIES.values()))
        async with asyncio.timeout(10):
            while not failures:
                await asyncio.sleep(0.01)
        await rounds.stop()
        log.flush()
    finally:
        configure("warning", "json", io.StringIO())
    said = written.getvalue()
    assert "the background task doomed failed" in said
    assert "RuntimeError" in said
    assert hits({"the log": said.encode()}) == []


def test_what_was_hidden_was_there_to_be_found() -> None:
    written = io.StringIO()
    log = configure("debug", "json", written)
    try:
        logging.getLogger("somebody").debug("%s", CANARIES["operator's key"])
        log.flush()
    finally:
        configure("warning", "json", io.StringIO())
    assert hits({"the log": written.getvalue().encode()})
