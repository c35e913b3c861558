"""
What a provider may answer beside an answer: each becomes a clear error or passes as it came, has one row in the ledger
for each time the provider was asked, and leaves the gateway as it was.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from tests.bad_inputs import chat
from tests.gateway import Gateway
from tests.listening_provider import USAGE, ListeningProvider, Reply, Request, answering, completion
from tests.strangers import SECONDS, at_rest, post, shipped, whole

TIMES = "timeout: 4s, stream_timeout: 1s, idle_timeout: 1s"
MORE = f"defaults: {{allowed_fails: 1000000, num_retries: 1, {TIMES}}}\n"
JSON = {"content-type": "application/json"}
Answer = Callable[[Request], Reply]


@pytest.fixture(scope="module")
def provider() -> Iterator[ListeningProvider]:
    with ListeningProvider() as running:
        yield running


@pytest.fixture(scope="module")
def gateway(provider: ListeningProvider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    running = Gateway(tmp_path_factory.mktemp("hostile") / "home", oracle=provider.url)
    config = running.config.read_text()
    running.config.write_text(re.sub(r"^defaults:.*\n", MORE, config, flags=re.MULTILINE))
    running.start()
    yield running
    running.stop()


@pytest.fixture(autouse=True)
async def one_row_each(gateway: Gateway, provider: ListeningProvider) -> AsyncIterator[None]:
    before, asked_before = await shipped(gateway), provider.asked
    yield
    assert gateway.alive()
    await at_rest(gateway)
    assert await shipped(gateway) == before + provider.asked - asked_before
    assert "Traceback" not in gateway.log.read_text()


def plain(status: int, body: bytes = b"", **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()} or JSON
    return lambda request: Reply(status, named, body)


def said(**fields: object) -> Answer:
    return lambda request: completion(**fields)


LIMITED = b'{"error":{"message":"slow down"}}'
DEEP = b"[" * 100_000 + b"]" * 100_000

WHOLE: dict[str, tuple[Answer, int, str | None, str]] = {
    # what it answers: status, code of the error, where the row's numbers come from
    "usage below zero": (said(usage={"prompt_tokens": -5, "completion_tokens": 2}), 200, None, "provider"),
    "usage in fractions": (said(usage={"prompt_tokens": 1.5, "completion_tokens": 2}), 200, None, "provider"),
    "usage without end": (said(usage={"prompt_tokens": 10**18, "completion_tokens": 10**18}), 200, None, "counted"),
    "usage in words": (said(usage={"prompt_tokens": "5", "completion_tokens": []}), 200, None, "counted"),
    "usage null": (said(usage=None), 200, None, "counted"),
    "usage in a list": (said(usage=[1]), 502, "bad_response", "counted"),
    "sums that do not add up": (said(usage={**USAGE, "total_tokens": 99}), 200, None, "provider"),
    "another model and id": (said(model="other", id="theirs\r\nset-cookie: a=b"), 200, None, "provider"),
    "a web page": (plain(200, b"<html>", content_type="text/html"), 502, "bad_response", "counted"),
    "no content": (plain(204), 502, "bad_response", "counted"),
    "nothing": (plain(200), 502, "bad_response", "counted"),
    "no end of arrays": (plain(200, b"[" * 100_000), 502, "bad_response", "counted"),
    "deep choices": (plain(200, b'{"choices":' + DEEP + b"}"), 502, "bad_response", "counted"),
    "deep content": (
        plain(200, b'{"choices":[{"message":{"content":' + DEEP + b"}}]}"), 502, "bad_response", "counted",
    ),
    "no UTF-8": (plain(200, b'{"choices":[{"message":{"content":"\xff"}}]}'), 502, "bad_response", "counted"),
    "choices that are none": (said(choices=[1]), 502, "bad_response", "counted"),
    "an error of 200": (plain(200, b'{"error":{"message":"no"}}'), 502, "provider_error", "counted"),
    "a refused key": (plain(401, b'{"error":{"message":"no"}}'), 502, "provider_auth", "none"),
    "a forbidden key": (plain(403, b"no", content_type="text/plain"), 502, "provider_auth", "none"),
    "limited for a day": (plain(429, LIMITED, retry_after="86400"), 429, "rate_limit_exceeded", "none"),
    "limited below zero": (plain(429, LIMITED, retry_after="-5"), 429, "rate_limit_exceeded", "none"),
    "limited till a date": (
        plain(429, LIMITED, retry_after="Wed, 21 Oct 2099 07:28:00 GMT"), 429, "rate_limit_exceeded", "none",
    ),
    "limited for infinity": (plain(429, LIMITED, retry_after="inf"), 429, "rate_limit_exceeded", "none"),
    "limited for no number": (plain(429, LIMITED, retry_after="nan"), 429, "rate_limit_exceeded", "none"),
    "a failure in half characters": (plain(500, rb'{"error":{"message":"\ud800"}}'), 502, "provider_error", "none"),
    "a status of nobody": (plain(999, b"x" * 100_000), 502, "provider_error", "none"),
    **{
        f"moved ({status})": (plain(status, location="http://169.254.169.254/"), 502, "provider_error", "none")
        for status in (301, 302, 303, 307, 308)
    },
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
async def test_whatever_comes_whole_is_an_answer_or_a_clear_error(
    gateway: Gateway, provider: ListeningProvider, name: str
) -> None:
    answer, status, code, source = WHOLE[name]
    id = f"whole-{list(WHOLE).index(name)}"
    with answering(provider, answer) as requests:
        got = await post(gateway, chat(), f"x-request-id: {id}")
        assert got.status == status, got
        if code is not None:
            assert got.code == code
        if "retry-after" in got.headers:
            assert 1 <= int(got.headers["retry-after"]) <= 60
        rows = await gateway.settled(id, len(requests))
    assert {row["source"] for row in rows} == {source}
    if name.startswith("usage") and status == 200 and "null" not in name:
        assert rows[0]["usage_suspect"]
    assert all(0 <= row["cost_nano_usd"] < 10**9 for row in rows)


THEIRS = {
    **JSON,
    "set-cookie": "theirs=1",
    "server": "theirs",
    "openai-organization": "org-theirs",
    "openai-version": "theirs",
    "x-request-id": "theirs",
    "x-strata-cost-usd": "99",
    "access-control-allow-origin": "*",
    "location": "http://theirs/",
    "x-anything": "theirs",
    "www-authenticate": "theirs",
}


async def test_nothing_of_a_providers_head_reaches_the_client_or_the_next_request(
    gateway: Gateway, provider: ListeningProvider
) -> None:
    for status in (200, 500):
        with answering(provider, lambda request, status=status: completion()._replace(status=status, headers=THEIRS)):  # type: ignore[misc]
            got = await post(gateway, chat())
        assert "theirs" not in str(got.headers)
        assert not {"set-cookie", "server", "location", "access-control-allow-origin"} & got.headers.keys()
        assert got.headers.get("x-strata-cost-usd") != "99"
    with answering(provider, said()) as requests:
        assert (await post(gateway, chat())).status == 200
    assert "cookie" not in {name.lower() for name, _ in requests[0].headers}


def events(*said: object) -> Answer:
    data = b"".join(b"data: " + (one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n\n" for one in said)
    return lambda request: Reply(200, {"content-type": "text/event-stream"}, data)


def chunk(text: str = "hi", finish: str | None = None, **more: object) -> dict[str, object]:
    return {"id": "c", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}], **more}


def usage_of(**usage: object) -> dict[str, object]:
    return {"id": "c", "choices": [], "usage": usage}


END = b"[DONE]"
FORGED = '\n\ndata: [DONE]\n\nevent: error\r\u2028data: {"error":{}}'
CUT = "upstream_incomplete"
OVERLOADED = {"error": {"type": "overloaded_error", "message": "x"}}
STREAMS: dict[str, tuple[Answer, str, str]] = {
    # what it streams: what the client finds last in it, or the code in place of it; where the numbers come from
    "no end": (events(chunk()), "error", "counted"),
    "no end at all": (events(), CUT, "counted"),
    "junk after two events": (events(chunk(), chunk(), b"{nope"), "error", "counted"),
    "an error first": (events(OVERLOADED), "provider_overloaded", "counted"),
    "an error in the middle": (events(chunk(), {"error": {"message": "x"}}), "error", "counted"),
    "text that forges an end": (events(chunk(FORGED, "stop"), END), "whole", "counted"),
    "usage twice": (
        events(chunk(), usage_of(prompt_tokens=1), usage_of(**USAGE), chunk("", "stop"), END), "whole", "provider",
    ),
    "usage late": (events(chunk(), chunk("", "stop"), usage_of(**USAGE), END), "whole", "provider"),
    "usage that cannot be": (
        events(chunk(), usage_of(prompt_tokens=-1, completion_tokens=10**300), chunk("", "stop"), END),
        "whole", "counted",
    ),
    "a hundred thousand events": (events(*[chunk()] * 100_000, chunk("", "stop"), END), "whole", "counted"),
    "an event of two megabytes": (events(chunk("x" * 2_000_000, "stop"), END), "upstream_event_too_large", "counted"),
    "half a surrogate": (events(rb'{"choices":[{"delta":{"content":"\ud800"}}]}', END), CUT, "counted"),
    "no UTF-8": (events(b'{"choices":[{"delta":{"content":"\xff"}}]}', END), CUT, "counted"),
    "no UTF-8 later": (events(chunk(), b'{"choices":[{"delta":{"content":"\xff"}}]}', END), "error", "counted"),
    "a deep event": (events(b'{"choices":[{"delta":{"content":' + DEEP + b"}}]}"), CUT, "counted"),
    "choices that are none": (events({"choices": 5}, END), CUT, "counted"),
    "a web page": (plain(200, b"<html>", content_type="text/html"), CUT, "counted"),
}  # fmt: skip


@pytest.mark.parametrize("name", STREAMS)
async def test_whatever_is_streamed_ends_as_what_it_is(
    gateway: Gateway, provider: ListeningProvider, name: str
) -> None:
    answer, end, source = STREAMS[name]
    id = f"stream-{list(STREAMS).index(name)}"
    with answering(provider, answer) as requests:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(whole(gateway, chat(stream=True), f"x-request-id: {id}", "connection: close"))
        async with asyncio.timeout(SECONDS):
            got = await reader.read()
        writer.close()
        rows = await gateway.settled(id, len(requests))
    assert {row["source"] for row in rows} == {source}
    ends = len(re.findall(rb"^data: \[DONE\]\n", got, re.MULTILINE))
    errors = len(re.findall(rb'^data: {"error":', got, re.MULTILINE))
    if end == "whole":
        assert got.startswith(b"HTTP/1.1 200 ")
        assert (ends, errors) == (1, 0)
    elif end == "error":
        assert got.startswith(b"HTTP/1.1 200 ")
        assert (ends, errors) == (0, 1)
    else:
        assert got.startswith(b"HTTP/1.1 50")
        assert json.loads(got.partition(b"\r\n\r\n")[2])["error"]["code"] == end
    if source == "provider":
        assert rows[0]["output_tokens"] == USAGE["completion_tokens"]


def dripping(piece: bytes, seconds: float) -> Iterator[bytes]:
    while True:
        yield piece
        time.sleep(seconds)


ENDLESS = {
    # what comes again and again, after which beginning, how often in a second; what the client finds last
    "comments": (b"", b": ping\n\n", "upstream_timeout"),
    "comments after an event": (b"data: " + json.dumps(chunk()).encode() + b"\n\n", b": ping\n\n", "error"),
    "half an event": (b"data: ", b"x", "upstream_timeout"),
    "empty events": (b"", b"data: " + json.dumps({"choices": []}).encode() + b"\n\n", "upstream_timeout"),
    "a word at a time": (b"", b"data: " + json.dumps(chunk()).encode() + b"\n\n", "error"),
}


@pytest.mark.parametrize("name", ENDLESS)
async def test_what_never_ends_is_ended(gateway: Gateway, provider: ListeningProvider, name: str) -> None:
    begin, piece, end = ENDLESS[name]
    head = {"content-type": "text/event-stream"}
    id = f"endless-{list(ENDLESS).index(name)}"
    with answering(provider, lambda request: Reply(200, head, begin, dripping(piece, 0.2))) as requests:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(whole(gateway, chat(stream=True), f"x-request-id: {id}", "connection: close"))
        async with asyncio.timeout(SECONDS):
            got = await reader.read()
        writer.close()
        rows = await gateway.settled(id, len(requests))
    assert {row["source"] for row in rows} <= {"counted", "ambiguous"}
    assert b"data: [DONE]" not in got
    if end == "error":
        assert got.count(b'data: {"error":') == 1
    else:
        assert got.startswith(b"HTTP/1.1 504 ")
        assert json.loads(got.partition(b"\r\n\r\n")[2])["error"]["code"] == end
