"""What browsers are told: whose pages may call, on every kind of answer; and how to treat pages of our own."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from proxy.config.listeners import Cors
from proxy.edge.browsers import Origins
from proxy.errors import PolicyError
from tests.gateway import Answer, Gateway

APP = "https://app.example.com"
EVIL = "https://app.example.com.evil.example"
PATH = "/v1/chat/completions"
BODY = b'{"model":"sim/chat","messages":[{"role":"user","content":"hi"}]}'
STREAMED = BODY[:-1] + b',"stream":true}'


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    server = f'max_body: 10kB, body_timeout: 1s, cors: {{origins: ["{APP}"], max_age: 1h}}'
    running = Gateway(tmp_path_factory.mktemp("cors") / "home", server=server).start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One without a word about browsers."""
    running = Gateway(tmp_path_factory.mktemp("closed") / "home").start()
    yield running
    running.stop()


def post(gateway: Gateway, origin: str, body: bytes = BODY, key: str = "", **more: str) -> Answer:
    headers = {"authorization": f"Bearer {key or gateway.key}", "content-type": "application/json", **more}
    return gateway.ask("POST", PATH, headers | ({"origin": origin} if origin else {}), body)


def assert_open(answer: Answer, origin: str = APP) -> None:
    assert answer.headers["access-control-allow-origin"] == origin
    assert "x-request-id" in answer.headers["access-control-expose-headers"].split(", ")
    assert "access-control-allow-credentials" not in answer.headers
    assert answer.headers["vary"] == "Origin"


def assert_shut(answer: Answer) -> None:
    assert [name for name in answer.headers if name.startswith("access-control-")] == []


def test_a_page_that_may_call_reads_every_kind_of_answer(gateway: Gateway) -> None:
    whole, streamed = post(gateway, APP), post(gateway, APP, STREAMED)
    assert (whole.status, streamed.status) == (200, 200)
    assert streamed.body.endswith(b"data: [DONE]\n\n")
    limited = gateway.create_key("limited", "--rpm", "1")
    answers = {
        200: whole,
        400: post(gateway, APP, b"not json"),
        401: post(gateway, APP, key="sk-strata-nobody"),
        403: post(gateway, APP, key=gateway.create_key("elsewhere", "--models", "other")),
        404: post(gateway, APP, BODY.replace(b"sim/chat", b"nothing")),
        413: post(gateway, APP, BODY + b" " * 20_000),
        429: [post(gateway, APP, key=limited) for _ in range(2)][-1],
    }
    assert {status: answer.status for status, answer in answers.items()} == {status: status for status in answers}
    for answer in (streamed, *answers.values()):
        assert_open(answer)
    exposed = whole.headers["access-control-expose-headers"].split(", ")
    shown = {name for answer in (whole, *answers.values()) for name in answer.headers if name.startswith("x-")}
    assert shown and shown <= set(exposed)


def test_pages_that_are_not_hot_are_read_too(gateway: Gateway) -> None:
    key = {"authorization": f"Bearer {gateway.key}", "origin": APP}
    for path, status in (("/v1/models", 200), ("/healthz", 200), ("/api/audit", 403), ("/nowhere", 404), (PATH, 405)):
        answer = gateway.ask("GET", path, key)
        assert answer.status == status
        assert_open(answer)


def test_a_page_reads_where_a_list_in_csv_goes_on(gateway: Gateway) -> None:
    for model in (b"sim/chat", b"sim/echo"):
        assert post(gateway, APP, BODY.replace(b"sim/chat", model)).status == 200
    key = {"authorization": f"Bearer {gateway.key}", "origin": APP}
    deadline = time.monotonic() + 10
    while True:
        answer = gateway.ask("GET", "/api/usage?by=model&format=csv&limit=1", key)
        if "x-strata-next-cursor" in answer.headers:
            break
        assert answer.status == 200 and time.monotonic() < deadline
        time.sleep(0.05)
    assert "x-strata-next-cursor" in answer.headers["access-control-expose-headers"].split(", ")


def test_a_page_of_a_stranger_is_told_nothing(gateway: Gateway) -> None:
    for origin in (EVIL, "null", "http://app.example.com", APP + ":8443", APP.upper(), "*", "a, b"):
        for answer in (post(gateway, origin), gateway.ask("GET", "/v1/models", {"origin": origin})):
            assert_shut(answer)
            assert answer.headers["vary"] == "Origin"
    assert_shut(post(gateway, ""))


@pytest.mark.parametrize("path", [PATH, "/chat/completions", "/v1/models", "/api/requests", "/nowhere"])
def test_a_browser_that_asks_before_it_sends_is_answered_without_a_key(gateway: Gateway, path: str) -> None:
    wanted = "authorization, content-type, x-stainless-retry-count"
    asked = {"access-control-request-method": "POST", "access-control-request-headers": wanted}
    answer = gateway.ask("OPTIONS", path, {"origin": APP, **asked})
    assert (answer.status, answer.body) == (204, b"")
    assert_open(answer)
    assert answer.headers["access-control-allow-headers"] == wanted
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert answer.headers["access-control-max-age"] == "3600"
    stranger = gateway.ask("OPTIONS", path, {"origin": EVIL, **asked})
    assert (stranger.status, stranger.error["code"]) == (403, "origin_not_allowed")
    assert_shut(stranger)


def test_names_of_headers_that_are_none_are_not_repeated(gateway: Gateway) -> None:
    asked = {"origin": APP, "access-control-request-method": "POST", "access-control-request-headers": "a b;c"}
    answer = gateway.ask("OPTIONS", PATH, asked)
    assert answer.headers["access-control-allow-headers"] == "authorization, content-type"


def test_an_answer_in_the_middle_of_a_body_is_read_too(gateway: Gateway) -> None:
    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\norigin: {APP}\r\ncontent-length: 100\r\n\r\n{{"
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=20) as raw:
        raw.sendall(head.encode())
        answer = raw.recv(10_000).decode()
    assert answer.startswith("HTTP/1.1 408 ")
    assert f"access-control-allow-origin: {APP}\r\n" in answer


def test_without_a_word_in_the_file_no_page_may_call(closed: Gateway) -> None:
    asked = {"origin": APP, "access-control-request-method": "POST"}
    for path, status in ((PATH, 405), ("/v1/models", 405)):
        answer = closed.ask("OPTIONS", path, asked)
        assert answer.status == status
        assert_shut(answer)
    answer = post(closed, APP)
    assert_shut(answer)
    assert "vary" not in answer.headers


def test_anybodys_page_is_anybodys_and_gets_no_credentials() -> None:
    anybody = dict(Origins(Cors(origins=("*",))).headers(EVIL.encode()))
    assert anybody[b"access-control-allow-origin"] == b"*"
    assert b"access-control-allow-credentials" not in anybody
    # the configuration is refused before; and here it is safe once more
    both = Origins(Cors(origins=("*", APP), credentials=True))
    assert dict(both.headers(EVIL.encode())) == {b"vary": b"Origin"}
    with pytest.raises(PolicyError):
        both.preflight(EVIL.encode(), b"")


@given(
    origin=st.one_of(
        st.binary(max_size=40), st.sampled_from([APP[:-1], APP + ".", APP + "/", "*", "null"]).map(str.encode)
    )
)
def test_no_origin_is_named_back_that_is_not_in_the_file(origin: bytes) -> None:
    for credentials in (True, False):
        named = Origins(Cors(origins=(APP,), credentials=credentials))
        assume(origin != APP.encode())
        assert named.headers(origin) == [(b"vary", b"Origin")]
        assert named.lines(origin) == b"vary: Origin\r\n"
        with pytest.raises(PolicyError):
            named.preflight(origin, b"")


@given(wanted=st.binary(max_size=60))
def test_what_a_browser_wants_to_send_cannot_break_a_head(wanted: bytes) -> None:
    told = dict(Origins(Cors(origins=(APP,))).preflight(APP.encode(), wanted))
    assert not set(told[b"access-control-allow-headers"]) & set(b"\r\n\0:;")


def test_credentials_are_for_named_origins() -> None:
    named = Origins(Cors(origins=(APP,), credentials=True))
    assert (b"access-control-allow-credentials", b"true") in named.headers(APP.encode())
    assert b"access-control-allow-credentials: true\r\n" in named.lines(APP.encode())
    assert named.lines(EVIL.encode()) == named.lines(b"") == b"vary: Origin\r\n"


def test_pages_tell_browsers_to_be_careful(closed: Gateway) -> None:
    for path in ("/healthz", "/v1/models", "/api/audit", "/nowhere", "/auth/nothing"):
        answer = closed.ask("GET", path)
        headers = answer.headers
        assert headers["x-request-id"].startswith("req_")
        assert headers.get("www-authenticate") == ("Bearer" if answer.status == 401 else None)
        assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")
        assert headers.get("cache-control") == ("no-store" if path.startswith(("/api", "/auth")) else None)
        assert "strict-transport-security" not in headers
