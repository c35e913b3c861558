"""
What strangers try beside bodies that are none: other spellings, other people's headers, floods, slowness, circles.

After each test there is one row in the ledger for each request that a provider has seen, and not one more; nothing is
under way, and the gateway answers.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bad_inputs import BODIES, chat
from tests.gateway import Gateway
from tests.listening_provider import ListeningProvider, Reply, answering, completion, held
from tests.strangers import PATH, SECONDS, at_rest, head, post, refused, send, shipped, whole

MASTER = "q7Zt2mVx9Lk4Wn8Rb3Hd6Jc5Pf1Ys0Ga"
MAX_IN_FLIGHT = 30
SERVER = (
    "max_body: 20MB, max_bodies: 40MB, header_timeout: 1s, body_timeout: 1s, write_timeout: 1s, "
    f"max_in_flight: {MAX_IN_FLIGHT}"
)
CREDENTIALS = ("authorization: Bearer {key}", "x-api-key: {key}", "api-key: {key}")


@pytest.fixture(scope="module")
def provider() -> Iterator[ListeningProvider]:
    with ListeningProvider() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(provider: ListeningProvider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("strangers") / "home"
    running = Gateway(home, oracle=provider.url, server=SERVER, more=f"auth: {{master_key: {MASTER}}}\n")
    itself = f'  itself: {{type: openai_compatible, api_base: "{running.base_url}", api_key: {MASTER}}}\n'
    config = running.config.read_text().replace("models:\n", f"{itself}models:\n  round: itself/round\n", 1)
    running.config.write_text(config)
    running.start()
    yield running
    running.stop()


class Seen:
    """How many attempts a test has caused that the provider could not see."""

    elsewhere = 0


@pytest.fixture(autouse=True)
async def seen(gateway: Gateway, provider: ListeningProvider) -> AsyncIterator[Seen]:
    before, asked_before = await shipped(gateway), provider.asked
    expected = Seen()
    yield expected
    assert gateway.alive()
    await at_rest(gateway)
    assert await shipped(gateway) == before + provider.asked - asked_before + expected.elsewhere
    assert "Traceback" not in gateway.log.read_text()


def get(gateway: Gateway, target: str, *lines: str, key: str = MASTER) -> bytes:
    return head(gateway, *lines, target=target, method="GET", key=key)


@pytest.mark.parametrize("host", ["x/healthz?", "x/v1/models#", "x@127.0.0.1", "x:80:80/", "../healthz"])
@pytest.mark.parametrize("path", ["/api/audit", "/api/keys/providers"])
async def test_a_host_with_a_path_in_it_opens_no_door(gateway: Gateway, host: str, path: str) -> None:
    raw = f"GET {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {gateway.key}\r\n\r\n".encode()
    [answer] = await send(gateway, raw)
    refused(answer, 400, 403)
    assert answer.code in ("invalid_host", "forbidden")


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("//api//audit", "invalid_path"),
        ("/api//audit", "unknown_url"),
        ("/v1/%2e%2e/api/audit", "invalid_path"),
        ("/v1/..%2fapi/audit", "unknown_url"),
        ("/v1/models/../../api/audit", "invalid_path"),
        ("/api/audit%00", "invalid_path"),
        ("/api/audit/", "unknown_url"),
        ("/API/AUDIT", "unknown_url"),
        ("/api/audit;x=1", "unknown_url"),
        ("/api/%61udit%2f", "unknown_url"),
        ("http://evil/api/audit", "invalid_path"),
        ("@evil/api/audit", "invalid_path"),
    ],
)
async def test_no_other_spelling_of_a_path_leads_to_it(gateway: Gateway, target: str, code: str) -> None:
    for answer in await send(gateway, get(gateway, target)):
        refused(answer, 400, 404)
        assert answer.code in (code, "invalid_http"), answer


@pytest.mark.parametrize("wrong", ["wrong", "sk-proj-abcdefgh", "sk-strata-" + "a" * 43])
async def test_who_asks_first_is_refused_before_the_body(gateway: Gateway, wrong: str) -> None:
    [answer] = await send(gateway, head(gateway, "expect: 100-continue", "content-length: 20000000", key=wrong))
    refused(answer, 401)
    assert answer.code == "invalid_api_key"
    revoked = gateway.create_key(f"gone-{wrong[:5]}")
    assert gateway.strata("keys", "revoke", f"gone-{wrong[:5]}").returncode == 0
    await asyncio.sleep(0.5)
    [answer] = await send(gateway, head(gateway, "expect: 100-continue", "content-length: 20000000", key=revoked))
    refused(answer, 401)
    assert answer.code == "key_revoked"


@pytest.mark.parametrize("wrong", ["", "wrong", "sk-strata-" + "a" * 43])
@pytest.mark.parametrize("size", ["content-length: 19000000", "transfer-encoding: chunked"])
async def test_nobodys_large_body_is_refused_after_its_first_piece(gateway: Gateway, wrong: str, size: str) -> None:
    piece = b"x" * 100_000
    framed = piece if "length" in size else b"186a0\r\n%b\r\n" % piece
    [answer] = await send(gateway, head(gateway, size, key=wrong or "nobody") + framed * 3)
    refused(answer, 401)


async def test_large_bodies_have_so_much_room_and_no_more_and_it_comes_back(gateway: Gateway) -> None:
    """Three of 19 MB do not fit into 40 MB; what ends, however it ends, makes room."""
    start = head(gateway, "content-length: 19000000") + b" " * 18_900_000
    for _ in range(3):
        lines = [await asyncio.open_connection("127.0.0.1", gateway.port) for _ in range(3)]
        for _, writer in lines:
            writer.write(start)
        async with asyncio.timeout(SECONDS):
            reading = [asyncio.ensure_future(reader.read(400)) for reader, _ in lines]
            done, _ = await asyncio.wait(reading, return_when=asyncio.FIRST_COMPLETED)
        first = done.pop().result()
        assert first.startswith(b"HTTP/1.1 503 "), first
        assert b"retry-after: 1" in first
        for one in reading:
            one.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
        for _, writer in lines:
            writer.transport.abort()
        await asyncio.sleep(0.1)
    padded = chat()[:-1] + b" " * 19_000_000 + b"}"
    for _ in range(4):
        [answer] = await send(gateway, whole(gateway, padded))
        assert answer.status == 200
    [answer] = await send(gateway, head(gateway, "content-length: 19000000") + padded[:-9], answers=1)
    assert answer.status in (400, 408)  # the body never came: body_timeout is a second


async def test_who_asks_first_with_a_key_is_told_to_go_on_and_served(gateway: Gateway) -> None:
    body = chat()
    waiting, served = await send(gateway, whole(gateway, body, "expect: 100-continue"), answers=2)
    assert (waiting.status, served.status) == (100, 200)


async def test_a_body_in_drops_is_hung_up_on(gateway: Gateway) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(head(gateway, "content-length: 1000"))
    async with asyncio.timeout(SECONDS):
        answered = asyncio.ensure_future(reader.read())
        while not answered.done():
            writer.write(b" ")
            await asyncio.sleep(0.1)
    writer.close()
    assert answered.result().startswith(b"HTTP/1.1 408 ")


async def test_two_hundred_slow_connections_keep_nobody_waiting_and_are_closed(gateway: Gateway) -> None:
    slow = [await asyncio.open_connection("127.0.0.1", gateway.port) for _ in range(200)]
    for _, writer in slow:
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-slow: ")
    served = await post(gateway, chat())
    assert served.status == 200
    async with asyncio.timeout(SECONDS):
        answers = await asyncio.gather(*(reader.read() for reader, _ in slow))
    assert all(answer == b"" or answer.startswith(b"HTTP/1.1 408 ") for answer in answers)
    for _, writer in slow:
        writer.close()


FOREIGN = ("x-forwarded-for: 9.9.9.9", "x-real-ip: 9.9.9.9", "forwarded: for=9.9.9.9", "x-user-id: root",
           "x-strata-user: root", "openai-organization: org-theirs", "openai-project: proj-theirs", "cookie: a=b",
           "x-custom-host: evil.example", "x-goog-api-key-x: theirs", "te: trailers", "proxy-authorization: Basic eA==",
           "connection: x-strip", "x-strip: 1", "x-strata-provider: claude", "user-agent: theirs/1")  # fmt: skip


async def test_nothing_of_a_clients_head_reaches_a_provider_or_decides_who_it_is(
    gateway: Gateway, provider: ListeningProvider
) -> None:
    with answering(provider, lambda request: completion()) as requests:
        answer = await post(gateway, chat(), *FOREIGN, "x-request-id: foreign-1")
    assert answer.status == 200
    [asked] = requests
    assert {name.lower() for name, _ in asked.headers} == {
        *("host", "user-agent", "accept", "accept-encoding", "content-type", "content-length", "authorization"),
        "x-strata-hops",
    }
    told = dict(asked.headers)
    assert told["authorization"] == "Bearer sk-oracle-of-the-tests"
    assert told["host"] == provider.url.removeprefix("http://")
    assert "theirs" not in str(asked)
    [row] = await gateway.settled("foreign-1")
    [plain] = await _row_of(gateway, chat(), "x-request-id: plain-1")
    assert {row[name] == plain[name] for name in ("key_id", "user_id", "team_id", "deployment")} == {True}


async def _row_of(gateway: Gateway, body: bytes, line: str) -> list[Any]:
    assert (await post(gateway, body, line)).status == 200
    return await gateway.settled(line.partition(": ")[2])


@pytest.mark.parametrize(
    "fields",
    [
        {"metadata": {"user_id": "root", "tags": "x"}},
        {"cache": {"namespace": "theirs", "no-store": True}},
        {"user": "a\r\nx-evil: 1"},
        {"metadata": {"a\r\nx-evil": "b\r\nx-evil: 1"}},
        {"safety_identifier": "\u202eevil\u2028"},
        {"unheard_of": {"deep": [1, {"a": None}]}},
        {"tools": [{"type": "function", "function": {"name": "x", "parameters": {"$ref": "#", "$defs": {}}}}]},
        {
            "tools": [
                {"type": "function", "function": {"name": "x", "parameters": {"type": "string", "pattern": "(a+)+$"}}}
            ]
        },
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"enum": [str(n) for n in range(10_000)]}},
            }
        },
    ],
    ids=["metadata", "cache", "line in user", "line in metadata", "bidi", "unknown", "cycle", "regex", "enums"],
)
async def test_what_is_the_providers_business_goes_there_as_it_came(
    gateway: Gateway, provider: ListeningProvider, fields: dict[str, Any]
) -> None:
    with answering(provider, lambda request: completion()) as requests:
        answer = await post(gateway, chat(**fields))
    assert answer.status == 200, answer
    [asked] = requests
    assert {name: json.loads(asked.body)[name] for name in fields} == fields
    assert not any(name.lower() == "x-evil" for name, _ in asked.headers)


async def test_ten_megabytes_that_are_a_request_are_served(gateway: Gateway, provider: ListeningProvider) -> None:
    text = "x" * 10_000_000
    with answering(provider, lambda request: completion()) as requests:
        answer = await post(gateway, chat(messages=[{"role": "user", "content": text}]))
    assert answer.status == 200
    assert json.loads(requests[0].body)["messages"][0]["content"] == text


async def test_a_bomb_is_not_unpacked(gateway: Gateway) -> None:
    answer = await post(gateway, gzip.compress(bytes(10_000_000)), "content-encoding: gzip")
    refused(answer, 415)
    assert answer.code == "unsupported_encoding"


async def test_a_body_without_a_type_is_read_as_json(gateway: Gateway) -> None:
    body = chat()
    lines = f"authorization: Bearer {gateway.key}\r\ncontent-length: {len(body)}\r\n\r\n"
    [answer] = await send(gateway, f"POST {PATH} HTTP/1.1\r\nhost: x\r\n{lines}".encode() + body)
    assert answer.status == 200


@pytest.mark.parametrize("digits", [500, 5_000])
@pytest.mark.parametrize("field", ["max_tokens", "n", "seed", "best_of"])
async def test_a_number_of_many_digits_is_refused(gateway: Gateway, field: str, digits: int) -> None:
    answer = await post(gateway, chat()[:-1] + b',"%b":%b}' % (field.encode(), b"9" * digits))
    refused(answer, 400)
    assert answer.code in ("invalid_value", "invalid_json")


@pytest.mark.parametrize("wanted", ["h2c", "websocket", "TLS/1.3"])
@pytest.mark.parametrize(("method", "target"), [("GET", "/v1/models"), ("POST", PATH), ("GET", "/healthz")])
async def test_an_upgrade_is_refused_and_nothing_behind_it_is_served(
    gateway: Gateway, method: str, target: str, wanted: str
) -> None:
    lines = (f"upgrade: {wanted}", "connection: upgrade", "content-length: 0")
    raw = head(gateway, *lines, target=target, method=method) + whole(gateway, chat())
    answers = await send(gateway, raw, answers=2)
    [answer] = answers
    refused(answer, 426)
    assert (answer.code, answer.headers["upgrade"]) == ("no_upgrade", "HTTP/1.1")


def chunked(gateway: Gateway, target: str, *trailers: bytes, key: str = MASTER) -> bytes:
    begun = head(gateway, "transfer-encoding: chunked", target=target, key=key)
    return begun + b"2\r\n{}\r\n0\r\n" + b"".join(line + b"\r\n" for line in (*trailers, b""))


TRAILERS = {
    "ten thousand": [b"x-%d: %b" % (number, b"y" * 100) for number in range(10_000)],
    "one without end": [b"x: " + b"y" * 10_000_000],
}


@pytest.mark.parametrize("kind", TRAILERS)
@pytest.mark.parametrize("target", [PATH, "/api/keys/providers"])
async def test_trailers_are_limited_like_headers(gateway: Gateway, target: str, kind: str) -> None:
    for answer in await send(gateway, chunked(gateway, target, *TRAILERS[kind])):
        refused(answer, 431)
        assert answer.code == "headers_too_large"


async def test_an_extension_of_a_chunk_is_limited_too(gateway: Gateway) -> None:
    raw = head(gateway, "transfer-encoding: chunked") + b"2;" + b"e" * 10_000_000 + b"\r\n{}\r\n0\r\n\r\n"
    for answer in await send(gateway, raw):
        refused(answer, 431)


async def test_empty_lines_between_requests_are_limited_too(gateway: Gateway) -> None:
    body = chat(model="nothing")
    first, second = await send(gateway, whole(gateway, body) + b"\r\n" * 1_000_000, answers=2)
    assert (first.status, second.status) == (404, 431)


@pytest.mark.parametrize("target", [PATH, "/api/keys/providers"])
async def test_a_key_behind_the_body_is_no_key(gateway: Gateway, target: str) -> None:
    credential = f"authorization: Bearer {MASTER}".encode()
    raw = chunked(gateway, target, credential, b"x-api-key: " + MASTER.encode(), b"host: evil")
    nobody = raw.replace(credential + b"\r\n", b"", 1)
    assert nobody.count(MASTER.encode()) == 2
    [answer] = await send(gateway, nobody)
    refused(answer, 401)
    assert answer.code == "missing_api_key"
    [answer] = await send(gateway, raw.replace(MASTER.encode(), gateway.key.encode(), 1))
    refused(answer, 400 if target == PATH else 403)


async def test_who_leaves_in_the_middle_of_a_page_s_body_is_no_failure(gateway: Gateway) -> None:
    for key in (MASTER, gateway.key, "wrong"):
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(head(gateway, "content-length: 100", target="/api/keys/providers", key=key) + b"{")
        await writer.drain()
        await asyncio.sleep(0.1)
        writer.close()
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(head(gateway, "content-length: 100", target="/api/keys/providers", key=MASTER) + b"{")
    async with asyncio.timeout(SECONDS):
        assert b"HTTP/1.1 5" not in await reader.read()
    writer.close()


async def test_a_key_of_ten_megabytes_is_too_large(gateway: Gateway) -> None:
    [answer] = await send(gateway, whole(gateway, chat(), key="x" * 10_000_000))
    refused(answer, 431)
    assert answer.code == "headers_too_large"


@pytest.mark.parametrize("line", CREDENTIALS)
async def test_a_keys_bounds_hold_whichever_header_brings_it(gateway: Gateway, line: str) -> None:
    name = f"bound-{line[:3]}"
    key = gateway.create_key(name, "--models", "sim/chat")
    credential, body = line.format(key=key), chat()
    raw = f"POST {PATH} HTTP/1.1\r\nhost: x\r\n{credential}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
    [answer] = await send(gateway, raw)
    refused(answer, 403)
    assert answer.code == "model_not_allowed"
    [answer] = await send(gateway, f"GET /api/audit HTTP/1.1\r\nhost: localhost\r\n{credential}\r\n\r\n".encode())
    refused(answer, 403)
    assert answer.code == "forbidden"


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1"])
@pytest.mark.parametrize("path", [PATH, "/v1/models", "/api/audit", "/healthz"])
async def test_no_other_site_is_let_in(gateway: Gateway, path: str, origin: str) -> None:
    asked = ("access-control-request-method: POST", "access-control-request-headers: authorization")
    raw = head(gateway, f"origin: {origin}", *asked, target=path, method="OPTIONS")
    [preflight] = await send(gateway, raw)
    refused(preflight, 405)
    assert preflight.code == "method_not_allowed"
    [answer] = await send(gateway, get(gateway, path, f"origin: {origin}", "cookie: session=1"))
    for one in (preflight, answer):
        assert not [name for name in one.headers if name.startswith("access-control-") or name == "set-cookie"]


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json", "/debug", "/admin", "/.env", "/config.yaml"])
async def test_nothing_of_a_framework_is_shown(gateway: Gateway, path: str) -> None:
    for key in (MASTER, gateway.key):
        [answer] = await send(gateway, get(gateway, path, key=key))
        refused(answer, 404)
        assert answer.code == "unknown_url"


async def test_a_range_is_not_a_way_to_have_more(gateway: Gateway) -> None:
    ranges = "range: bytes=" + "0-," * 5_000
    [answer] = await send(gateway, get(gateway, "/v1/models", ranges))
    assert answer.status == 200
    assert "content-range" not in answer.headers


STRANGE_IDS = ("%ff", "%ed%a0%80", "x" * 5_000, "'%20OR%201=1--", "..%5c..", "%25", "config:", "config:sim",
               "%e2%80%ae")  # fmt: skip
UNKNOWN_ID = "00000000-0000-4000-8000-000000000000"


@pytest.mark.parametrize("route", ["/api/requests/", "/api/keys/providers/"])
async def test_an_id_that_is_nobodys_is_unknown_however_strange(gateway: Gateway, route: str) -> None:
    for key in (MASTER, gateway.key) if "requests" in route else (MASTER,):
        [unknown] = await send(gateway, get(gateway, route + UNKNOWN_ID, key=key))
        refused(unknown, 404)
        for id in STRANGE_IDS:
            [answer] = await send(gateway, get(gateway, route + id, key=key))
            refused(answer, 404)
            said, usual = (json.loads(one.body)["error"] for one in (answer, unknown))
            assert (said["message"], said["code"]) == (usual["message"], usual["code"])


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=1000000000", "limit"),
        ("limit=0", "limit"),
        ("limit=-1", "limit"),
        ("limit=%EF%BC%95", "limit"),
        ("limit=1&limit=2", "limit"),
        ("sort=key;drop", "sort"),
        ("order=1", "order"),
        ("model=" + "%25" * 1000, "model"),
        ("model=", "model"),
        ("cursor=AAAA", "cursor"),
        ("cursor=%c3%a9", "cursor"),
        ("cursor=f39_f39_f39_f39_f39_f39_f39_f39_", "cursor"),
        ("since=tomorrow", "since"),
        ("since=0001-01-01T00:00:00%2B23:59", "since"),
        ("until=9999-12-31T23:59:59-23:59", "until"),
        ("until=300000-01-01", "until"),
        ("status=%2B200", "status"),
    ],
)
async def test_a_list_that_is_asked_for_oddly_names_what_is_odd(gateway: Gateway, query: str, param: str) -> None:
    for key in (MASTER, gateway.key):
        [answer] = await send(gateway, get(gateway, f"/api/requests?{query}", key=key))
        refused(answer, 400)
        assert (answer.code, answer.param) == ("invalid_value", param)


async def test_signs_that_mean_something_to_sql_mean_themselves(gateway: Gateway) -> None:
    assert (await post(gateway, chat(), "x-request-id: sql-1")).status == 200
    await gateway.settled("sql-1")
    for text in ("%25", "_", "%5c", "%27", "%25" * 90, "gpt%27--", "$1", "%EF%BF%BD", "gp_"):
        for name in ("model", "key", "deployment", "error_type"):
            [answer] = await send(gateway, get(gateway, f"/api/requests?{name}={text}"))
            assert (answer.status, json.loads(answer.body)["data"]) == (200, []), (name, text)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"provider":"oai","provider":"claude","api_key":"sk-abcdefgh"}', "duplicate_key"),
        (b'{"provider":"oai","api_key":"sk-abcdefgh","api_key":"sk-ijklmnop"}', "duplicate_key"),
        (rb'{"provider":"oai","api_key":"\ud800"}', "invalid_unicode"),
        (b'{"provider":"oai","api_key":"\xff"}', "invalid_unicode"),
        (b'{"provider":' * 10_000, "json_too_deep"),
        (b'{"a":' + b"[" * 100 + b"]" * 100 + b"}", "json_too_deep"),
        (b'{"provider":"oai","api_key":1e400}', "invalid_json"),
        (b'{"provider":"oai","api_key":"sk-abcdefgh","role":"admin"}', "invalid_value"),
        (b'{"provider":"oai","api_key":"sk-abcdefgh","spend":0}', "invalid_value"),
        (b'{"provider":"oai","api_key":"sk-abcdefgh","name":"a\xe2\x80\xaeb"}', "invalid_value"),
        (b'{"provider":"oai","api_key":"sk-abc\\u0000defgh"}', "invalid_value"),
        (b'{"provider":"oai\\u0000","api_key":"sk-abcdefgh"}', "unknown_provider"),
        (b"[]", "invalid_json"),
        (b"null", "invalid_json"),
        (b"", "invalid_json"),
    ],
)
async def test_a_provider_key_that_is_oddly_said_is_not_saved(gateway: Gateway, body: bytes, code: str) -> None:
    answer = (await send(gateway, whole(gateway, body, target="/api/keys/providers", key=MASTER)))[0]
    refused(answer, 400)
    assert answer.code == code, answer
    [listed] = await send(gateway, get(gateway, "/api/keys/providers"))
    assert {one["scope"] for one in json.loads(listed.body)["data"]} == {"operator"}


async def test_a_provider_that_is_the_gateway_itself_does_not_go_round_for_ever(gateway: Gateway, seen: Seen) -> None:
    answer = await post(gateway, chat(model="round"))
    assert (answer.status, answer.code) == (508, "loop_detected")
    seen.elsewhere = 4  # MAX_HOPS and the first; each was sent, and each has its row
    assert gateway.get("/v1/models", gateway.key)[0] == 200


@pytest.mark.parametrize("hops", ["x", "-1", "1e3", "٣", "99"])
async def test_hops_that_are_no_digit_are_refused(gateway: Gateway, hops: str) -> None:
    body = chat()
    raw = whole(gateway, body).replace(b"\r\n\r\n", b"\r\nx-strata-hops: " + hops.encode() + b"\r\n\r\n", 1)
    [answer] = await send(gateway, raw)
    refused(answer, 400)
    assert (answer.code, answer.param) == ("invalid_value", "x-strata-hops")


@pytest.mark.parametrize("name", ["x-strata-strict", "x-strata-notices"])
async def test_a_wish_in_a_header_is_true_or_false(gateway: Gateway, name: str) -> None:
    for said in ("maybe", "1", "yes", "true,false"):
        answer = await post(gateway, chat(), f"{name}: {said}")
        refused(answer, 400)
        assert (answer.code, answer.param) == ("invalid_value", name)


async def test_what_a_stranger_says_is_one_line_in_the_log(gateway: Gateway) -> None:
    forged = '\n{"level":"error","message":"forged"}\r\x1b[31m\u2028\u202e'
    for model in (f"gpt{forged}", f"sim/{forged}"):
        refused(await post(gateway, chat(model=model)), 404)
    [answer] = await send(gateway, get(gateway, "/v1/models/%0a%1b%5b31mforged"))
    refused(answer, 400, 404)
    await asyncio.sleep(0.5)
    text = gateway.log.read_text()
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u2028\u202e]", text)
    assert all(json.loads(line)["message"] != "forged" for line in text.splitlines())


async def test_names_that_strangers_choose_make_no_series(gateway: Gateway) -> None:
    def series() -> set[str]:
        page = gateway.get("/metrics")[1].decode()
        return {line.rpartition(" ")[0] for line in page.splitlines() if line and line[0] != "#"}

    refused(await post(gateway, chat(model="first-of-many")), 404)
    refused((await send(gateway, whole(gateway, chat(), target="/v1/first-of-many")))[0], 404)
    before = series()
    for number in range(200):
        refused(await post(gateway, chat(model=f"model-{number}", user=f"user-{number}")), 404)
        refused((await send(gateway, whole(gateway, chat(), target=f"/v1/path-{number}")))[0], 404)
    assert series() == before


async def test_small_bad_requests_leave_no_memory_behind(gateway: Gateway) -> None:
    def resident_bytes() -> int:
        assert gateway.process is not None
        pages = Path(f"/proc/{gateway.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    small = [body for body, _ in BODIES.values() if len(body) <= 10_240]
    small += [chat(model="x" * 9_000), chat(metadata={"a": "b" * 9_000, "c": "\0"}), chat(stop=["y"] * 2_600)]
    round_of_them = b"".join(whole(gateway, body) for body in small)
    for count in (1, 20):
        before = resident_bytes()
        for _ in range(count):
            assert len(await send(gateway, round_of_them, answers=len(small))) == len(small)
    assert resident_bytes() - before < 20 * 1_048_576  # 20 rounds: a whole round may not leave a megabyte


async def test_above_its_limit_it_refuses_at_once_and_serves_the_others(
    gateway: Gateway, provider: ListeningProvider
) -> None:
    with held(provider) as release:
        waiting = [asyncio.ensure_future(post(gateway, chat())) for _ in range(MAX_IN_FLIGHT + 10)]
        async with asyncio.timeout(SECONDS):
            while sum(one.done() for one in waiting) < 10:
                await asyncio.sleep(0.05)
        release()
        answers = await asyncio.gather(*waiting)
    over = [answer for answer in answers if answer.status != 200]
    assert len(over) == 10
    for answer in over:
        assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "gateway_overloaded", "1")


async def test_a_client_that_leaves_before_its_answer_has_its_row(
    gateway: Gateway, provider: ListeningProvider
) -> None:
    with held(provider) as release:
        for stream in (False, True):  # the stream's is no stream: tried again if anybody waited
            _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            writer.write(whole(gateway, chat(stream=stream), f"x-request-id: gone-{stream}"))
            await writer.drain()
            async with asyncio.timeout(SECONDS):
                while len(provider.requests) <= stream:
                    await asyncio.sleep(0.02)
            writer.close()
        release()
        for stream in (False, True):
            await gateway.settled(f"gone-{stream}")


async def test_a_client_that_stops_reading_is_left_and_has_its_row(
    gateway: Gateway, provider: ListeningProvider
) -> None:
    event = {"choices": [{"index": 0, "delta": {"content": "hello " * 1_700}}]}
    events = (b"data: " + json.dumps(event).encode() + b"\n\n") * 800 + b"data: [DONE]\n\n"
    endless = Reply(200, {"content-type": "text/event-stream"}, events)
    with answering(provider, lambda request: endless):
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port, limit=1024)
        writer.write(whole(gateway, chat(stream=True), "x-request-id: deaf-1"))
        [row] = await gateway.settled("deaf-1")
        assert row["output_tokens"] > 0
        assert b"[DONE]" not in await _what_is_left(reader)
        writer.close()


async def _what_is_left(reader: asyncio.StreamReader) -> bytes:
    """What had been written to us when the gateway gave up."""
    got = b""
    try:
        async with asyncio.timeout(SECONDS):
            while data := await reader.read(1_000_000):
                got = (got + data)[-1000:]
    except ConnectionError:
        pass
    return got


def test_a_client_that_stalls_does_not_hold_up_the_end(provider: ListeningProvider, tmp_path: Path) -> None:
    ending = Gateway(tmp_path / "home", oracle=provider.url, server="body_timeout: 600s, header_timeout: 600s").start()
    stalled = []
    for begun in (head(ending, "content-length: 100") + b"{", b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"):
        connection = socket.create_connection(("127.0.0.1", ending.port), timeout=SECONDS)
        connection.sendall(begun)
        stalled.append(connection)
    assert ending.alive()
    ending.stop()  # fails unless it ends on SIGTERM
    assert ending.process is not None
    assert ending.process.returncode == 0
    for connection in stalled:
        connection.close()
