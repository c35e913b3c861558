"""Whatever a stranger sends gets a clear 4xx: never a 500, never a hang, no row in the ledger, nothing held."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.bad_inputs import BODIES, FIELDS, FRAMINGS, MESSAGES, TARGETS, WRONG, chat
from tests.gateway import Gateway, OracleProcess
from tests.strangers import PATH, SECONDS, at_rest, head, post, refused, send, shipped, whole


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OracleProcess]:
    running = OracleProcess(tmp_path_factory.mktemp("oracle"))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def gateway(oracle: OracleProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("bad") / "home"
    server = "max_body: 20MB, header_timeout: 1s, body_timeout: 1s"
    running = Gateway(home, oracle=oracle.url, server=server).start()
    yield running
    running.stop()


@pytest.fixture(autouse=True)
async def nothing_lost(gateway: Gateway, request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Around every test: the gateway lives, and unless the test says otherwise nothing reached the ledger."""
    before = await shipped(gateway)
    yield
    assert gateway.alive()
    if "forwarded" not in request.node.name:
        assert await shipped(gateway) == before
    await at_rest(gateway)


@pytest.mark.parametrize("name", BODIES)
async def test_a_body_that_is_no_request_is_refused(gateway: Gateway, name: str) -> None:
    body, code = BODIES[name]
    answer = await post(gateway, body)
    refused(answer, 400)
    assert code in ("", answer.code), answer


async def test_a_number_beyond_all_numbers_is_refused(gateway: Gateway) -> None:
    for number in (b"1e400", b"-1e400", b"1" + b"0" * 5_000):
        body = chat()[:-1] + b',"temperature":' + number + b"}"
        refused(await post(gateway, body), 400)
        refused(await post(gateway, chat()[:-1] + b',"logit_bias":{"5":' + number + b"}}"), 400)


@pytest.mark.parametrize("field", FIELDS)
async def test_a_wrong_value_is_refused_and_named(gateway: Gateway, field: str) -> None:
    for model in ("gpt", "claude", "gemini"):
        for value in FIELDS[field]:
            given = {"model": model, "messages": MESSAGES, field: value}
            answer = await post(gateway, json.dumps(given).encode())
            refused(answer, *((400, 404) if field == "model" else (400,)))
            assert (answer.param or "").startswith(field), (value, answer)


async def test_whatever_stands_in_a_field_is_never_a_server_error_even_if_forwarded(gateway: Gateway) -> None:
    for field in FIELDS:
        for value in WRONG:
            answer = await post(gateway, json.dumps({"model": "sim/echo", "messages": MESSAGES, field: value}).encode())
            assert answer.status < 500, (field, value, answer)


@pytest.mark.parametrize("field", ["api_base", "base_url", "api_key", "custom_llm_provider", "mock_response"])
async def test_a_body_does_not_steer_the_gateway(gateway: Gateway, field: str) -> None:
    answer = await post(gateway, chat(**{field: "http://127.0.0.1:1"}))
    refused(answer, 400)
    assert (answer.code, answer.param) == ("unsupported_field", field)


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "g\0pt"},
        {"user": "a\0b"},
        {"metadata": {"a": "b\0c"}},
        {"metadata": {"a\0b": "c"}},
        {"tools": [{"type": "function", "function": {"name": "a\0b"}}]},
    ],
    ids=str,
)
async def test_nul_in_what_is_stored_is_refused(gateway: Gateway, fields: dict[str, Any]) -> None:
    refused(await post(gateway, chat(**fields)), 400, 404)


async def test_nul_in_a_prompt_is_forwarded(gateway: Gateway) -> None:
    before = len(await gateway.rows())
    messages = [{"role": "system", "content": "s\0"}, {"role": "user", "content": "a\0b", "name": "n\0"}]
    answer = await post(gateway, json.dumps({"model": "sim/echo", "messages": messages}).encode())
    assert answer.status == 200
    assert json.loads(answer.body)["choices"][0]["message"]["content"] == "a\0b"
    async with asyncio.timeout(SECONDS):
        while len(await gateway.rows()) == before:
            await asyncio.sleep(0.1)


async def test_thirty_megabytes_are_too_many_declared_or_not(gateway: Gateway) -> None:
    body = b" " * 30_000_000
    [declared] = await send(gateway, whole(gateway, body))
    refused(declared, 413)
    chunked = b"".join(b"%x\r\n%b\r\n" % (1_000_000, body[:1_000_000]) for _ in range(30)) + b"0\r\n\r\n"
    [undeclared] = await send(gateway, head(gateway, "transfer-encoding: chunked") + chunked)
    refused(undeclared, 413)


@pytest.mark.parametrize("name", ["x-request-id", "x-strata-sim", "user-agent"])
async def test_headers_are_limited_in_size_and_number(gateway: Gateway, name: str) -> None:
    body = chat()
    for flood in ([f"{name}: {'x' * 200_000}"], [f"x-{number}: y" for number in range(5_000)]):
        [answer] = await send(gateway, whole(gateway, body, *flood))
        refused(answer, 431)


async def test_a_target_of_200_kb_is_refused(gateway: Gateway) -> None:
    for answer in await send(gateway, whole(gateway, chat(), target="/v1/" + "x" * 200_000)):
        refused(answer, 404, 414, 431, 400)


@pytest.mark.parametrize("name", FRAMINGS)
async def test_ambiguous_framing_is_refused_and_smuggles_nothing(gateway: Gateway, name: str) -> None:
    lines, rest = FRAMINGS[name]
    answers = await send(gateway, head(gateway, *lines) + rest, answers=2)
    assert len(answers) == 1, answers
    assert answers[0].status in (400, 413, 501)
    assert answers[0].headers.get("connection") == "close"


@pytest.mark.parametrize(
    "raw",
    [
        b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost:\r\ncontent-length: 2\r\n\r\n{}",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: a b\r\ncontent-length: 2\r\n\r\n{}",
        b"POST /v1/chat/completions HTTP/1.0\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/chat/completions HTTP/3.0\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}",
        b"POST /v1/chat/completions\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"GET /healthz HTTP/1.1\r\nhost: x\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n",
        b"GET /healthz HTTP/1.1\nhost: x\n\n",
        b"\x00" * 100,
        b"G" * 100_000,
    ],
)
async def test_what_is_not_our_http_is_refused_or_hung_up_on(gateway: Gateway, raw: bytes) -> None:
    answers = await send(gateway, raw, answers=2)
    assert len(answers) <= 1
    assert all(answer.status in range(400, 500) or answer.status in (501, 505) for answer in answers)


@pytest.mark.parametrize("target", TARGETS)
async def test_a_path_that_is_not_plain_leads_nowhere(gateway: Gateway, target: str) -> None:
    for answer in await send(gateway, whole(gateway, chat(), target=target)):
        refused(answer, 400, 404, 405)
    for answer in await send(gateway, head(gateway, target=target, method="GET")):
        refused(answer, 400, 404, 405)


@pytest.mark.parametrize(
    ("line", "statuses"),
    [
        ("content-encoding: gzip", (415,)),
        ("content-encoding: br", (415,)),
        ("content-encoding: gzip, identity", (415,)),
        ("expect: 200-ok", (417, 400, 200)),
    ],
)
async def test_a_coded_body_is_not_decoded(gateway: Gateway, line: str, statuses: tuple[int, ...]) -> None:
    body = b"{}" if 200 in statuses else chat()
    answer = await post(gateway, body, line)
    assert answer.status in statuses


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"])
async def test_another_content_type_is_refused(gateway: Gateway, kind: str) -> None:
    body = chat()
    raw = whole(gateway, body).replace(b"content-type: application/json", f"content-type: {kind}".encode())
    [answer] = await send(gateway, raw)
    refused(answer, 415)


@pytest.mark.parametrize(
    "credential",
    ["", "Bearer", "Bearer  ", "Basic dTpw", "Bearer ' OR '1'='1", "Bearer sk-strata-", "Bearer sk-strata-" + "a" * 43,
     "Bearer " + "x" * 8_000, "Bearer clé", "Bearer sk-proj-abcdefgh", "Token x", "Bearer a b"],
)  # fmt: skip
async def test_what_is_no_key_is_unauthenticated(gateway: Gateway, credential: str) -> None:
    body = chat()
    line = f"authorization: {credential}\r\n" if credential else ""
    raw = f"POST {PATH} HTTP/1.1\r\nhost: x\r\n{line}content-length: {len(body)}\r\n\r\n".encode("latin-1") + body
    [answer] = await send(gateway, raw)
    refused(answer, 401)
    assert credential.encode("latin-1")[-20:] not in answer.body or len(credential) < 30


async def test_credentials_that_differ_are_ambiguous(gateway: Gateway) -> None:
    for line in ("authorization: Bearer other", "x-api-key: other", "api-key: other"):
        answer = await post(gateway, chat(), line)
        refused(answer, 400)
        assert answer.code == "ambiguous_credentials"


async def test_a_key_in_the_url_is_no_key(gateway: Gateway) -> None:
    target = f"{PATH}?api_key={gateway.key}&key={gateway.key}"
    raw = f"POST {target} HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{{}}".encode()
    [answer] = await send(gateway, raw)
    refused(answer, 401)
    assert gateway.key not in gateway.log.read_text()


@pytest.mark.parametrize("part", ["nothing", "half a head", "half a body", "half a chunk"])
async def test_who_keeps_us_waiting_is_hung_up_on(gateway: Gateway, part: str) -> None:
    begun = {
        "nothing": b"",
        "half a head": b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-slow: ",
        "half a body": head(gateway, "content-length: 100") + b"{",
        "half a chunk": head(gateway, "transfer-encoding: chunked") + b"5\r\nab",
    }[part]
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(begun)
    async with asyncio.timeout(SECONDS):
        rest = await reader.read()
    writer.close()
    assert rest == b"" or rest.startswith(b"HTTP/1.1 408 ")


async def test_pipelined_requests_are_each_answered_under_their_own_key(gateway: Gateway) -> None:
    body = chat(model="nothing")
    theirs = gateway.create_key("piper", "--models", "sim/chat")
    ours = whole(gateway, body, "x-request-id: pipe-1")
    limited = whole(gateway, chat(), "x-request-id: pipe-2", key=theirs)
    stranger = whole(gateway, body, "x-request-id: pipe-3", key="sk-strata-nobody")
    answers = await send(gateway, ours + limited + stranger + ours, answers=4)
    assert [answer.status for answer in answers] == [404, 403, 401, 404]
    assert [answer.headers["x-request-id"] for answer in answers] == ["pipe-1", "pipe-2", "pipe-3", "pipe-1"]


async def test_every_request_of_a_kept_connection_is_judged_by_its_own_head(gateway: Gateway) -> None:
    body = chat(model="nothing")
    longer = chat(model="nothing at all")
    plain, again = whole(gateway, body), whole(gateway, longer)
    stranger = whole(gateway, body, key="sk-strata-nobody")
    doubled = whole(gateway, body, "host: evil")
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    async with asyncio.timeout(SECONDS):
        for data in (plain, plain, again[:-9], again[-9:] + stranger[:40], stranger[40:], again, doubled):
            writer.write(data)
            await asyncio.sleep(0.05)
        answered = await reader.read()
    writer.close()
    assert re.findall(rb"HTTP/1\.1 (\d+)", answered) == [b"404", b"404", b"404", b"401", b"404", b"400"]


async def test_ids_that_are_not_safe_are_replaced(gateway: Gateway) -> None:
    for sent in ("a b", "x" * 65, "é", "<script>", "a,b", '"'):
        answer = await post(gateway, b"{}", f"x-request-id: {sent}")
        assert answer.headers["x-request-id"].startswith("req_")
    kept = await post(gateway, b"{}", "x-request-id: Order_66-a.b")
    assert kept.headers["x-request-id"] == "Order_66-a.b"


async def test_a_hundred_thousand_messages_or_tools_are_too_many(gateway: Gateway) -> None:
    tool = {"type": "function", "function": {"name": "x"}}
    refused(await post(gateway, chat(messages=MESSAGES * 100_000)), 400, 413)
    refused(await post(gateway, chat(tools=[tool] * 100_000)), 400, 413)


def test_nothing_failed_behind_the_door(gateway: Gateway) -> None:
    assert "Traceback" not in gateway.log.read_text()
