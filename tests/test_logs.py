"""Log lines: one line each, a closed set of fields, no secret, and no request ever waits for a reader."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy.config import Deployment, Provider
from proxy.errors import UpstreamError
from proxy.exchange import Attempt, Caller, Exchange, Usage
from proxy.telemetry import logs
from proxy.telemetry.logs import Line, RequestLog, configure, escape, mask

SECOND = 1_000_000_000
ROOT = Path(__file__).parents[1]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


def exchange_of(request_id: str = "req_" + "a" * 20) -> Exchange:
    exchange = Exchange(
        id=bytes(16),
        request_id=request_id,
        endpoint="chat",
        started_at_ms=1_700_000_000_123,
        started_ns=10 * SECOND,
        model="fast",
        stream=True,
        status=200,
        upstream_wait_ns=SECOND // 2,
        finish_reason="stop",
        caller=Caller(key_id="1", name="ci", display="sk-strata-Jm3v…f9Tc"),
    )
    provider = Provider(name="acme", api_base="http://127.0.0.1:1")
    exchange.attempts.append(
        Attempt(
            number=1,
            deployment=Deployment(provider=provider, model="a-1"),
            started_ns=exchange.started_ns,
            first_event_ns=exchange.started_ns + SECOND // 4,
            usage=Usage(input=10, output=20, reasoning=2),
            cost_nano_usd=1_500,
        )
    )
    return exchange


def rows(stream: io.StringIO) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in stream.getvalue().splitlines()]


def test_a_request_is_one_json_line_with_known_fields() -> None:
    stream = io.StringIO()
    RequestLog(stream, clock_ns=lambda: 11 * SECOND).access(exchange_of())
    assert rows(stream) == [
        {
            "ts": "2023-11-14T22:13:20.123Z",
            "level": "info",
            "logger": "strata.access",
            "message": "request",
            "request_id": "req_" + "a" * 20,
            "endpoint": "chat",
            "model": "fast",
            "deployment": "acme/a-1",
            "provider": "acme",
            "key": "ci",
            "status": 200,
            "stream": True,
            "attempts": 1,
            "duration_ms": 1000.0,
            "first_token_ms": 250.0,
            "overhead_ms": 500.0,
            "input_tokens": 10,
            "output_tokens": 22,
            "cost_nano_usd": 1500,
            "finish_reason": "stop",
        }
    ]


def test_a_request_refused_early_says_why() -> None:
    stream = io.StringIO()
    exchange = exchange_of()
    exchange.attempts.clear()
    exchange.caller = None
    exchange.status, exchange.error = 502, UpstreamError("no answer", error_type="provider_unreachable")
    RequestLog(stream, clock_ns=lambda: 11 * SECOND).access(exchange)
    row = rows(stream)[0]
    assert (row["status"], row["error_type"]) == (502, "provider_unreachable")
    assert not row.keys() & {"key", "provider", "deployment", "first_token_ms", "cost_nano_usd"}


def test_all_attempts_of_a_request_count_towards_its_cost() -> None:
    stream = io.StringIO()
    exchange = exchange_of()
    exchange.attempts *= 2
    RequestLog(stream, clock_ns=lambda: 11 * SECOND).access(exchange)
    assert (rows(stream)[0]["attempts"], rows(stream)[0]["cost_nano_usd"]) == (2, 3000)


def test_on_a_terminal_a_request_is_short_and_readable() -> None:
    stream = Terminal()
    log = configure(stream=stream)
    log.access(exchange_of())
    text = stream.getvalue()
    assert text.startswith("22:13:20.123 request 200 chat fast → acme/a-1 ")
    assert text.endswith("ms 10+22 tokens $0.0000015 ci req_aaaaaaaaaaaaaaaaaaaa\n")


@pytest.mark.parametrize(
    ("format", "stream", "is_json"),
    [
        ("auto", io.StringIO(), True),
        ("auto", Terminal(), False),
        ("json", Terminal(), True),
        ("pretty", io.StringIO(), False),
    ],
)
def test_the_format_follows_the_reader_unless_told(format: Any, stream: io.StringIO, is_json: bool) -> None:
    configure(format=format, stream=stream)
    logging.getLogger("strata.storage").warning("the database is away")
    assert stream.getvalue().startswith("{") == is_json
    assert "the database is away" in stream.getvalue()


def test_the_level_decides_what_is_written_and_whether_requests_are() -> None:
    stream = io.StringIO()
    log = configure("warning", "json", stream)
    logging.getLogger("strata.edge").info("not this")
    log.access(exchange_of())
    logging.getLogger("strata.edge").warning("this")
    assert [row["message"] for row in rows(stream)] == ["this"]


def test_configuring_again_replaces_and_does_not_double() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure(stream=first)
    configure(stream=second)
    logging.getLogger("strata.edge").warning("once")
    assert (first.getvalue(), len(rows(second))) == ("", 1)


def test_only_known_extra_fields_come_through() -> None:
    stream = io.StringIO()
    configure(stream=stream)
    logging.getLogger("strata.routing").warning("rests", extra={"provider": "acme", "status": 529, "prompt": "private"})
    assert rows(stream)[0] | {"ts": ""} == {
        "ts": "",
        "level": "warning",
        "logger": "strata.routing",
        "message": "rests",
        "provider": "acme",
        "status": 529,
    }


@pytest.mark.parametrize("format", ["json", "pretty"])
def test_an_exception_is_part_of_its_line_and_masked(format: Any) -> None:
    stream = io.StringIO()
    configure(format=format, stream=stream)
    try:
        raise ValueError("refused: Bearer abcdefgh12345678\x1b[31m")
    except ValueError:
        logging.getLogger("strata.edge").exception("failed")
    text = stream.getvalue()
    assert "ValueError: refused" in text
    assert "abcdefgh" not in text
    assert "\x1b" not in text
    if format == "json":
        assert "Traceback" in rows(stream)[0]["exception"]


HOSTILE = st.text(st.characters(codec="utf-8") | st.sampled_from('\r\n\x1b\x00\x7f\x9b\u2028\u202e"\\'), max_size=40)


@given(HOSTILE, HOSTILE)
@example("", "\x7f")
def test_no_text_makes_a_second_line_or_moves_the_cursor(message: str, request_id: str) -> None:
    for pretty in (False, True):
        stream = io.StringIO()
        log = RequestLog(stream, pretty=pretty, clock_ns=lambda: 11 * SECOND)
        log.put(Line("2023-11-14T22:13:20.123Z", "info", "strata.edge", message, request_id=request_id))
        log.access(exchange_of(request_id))
        lines = stream.getvalue().split("\n")
        assert len(lines) == 3 and lines[2] == ""
        assert all(line == escape(line) for line in lines)
        if not pretty:
            assert all(msgspec.json.decode(line)["logger"].startswith("strata.") for line in lines[:2])


@pytest.mark.parametrize(
    "text",
    [
        "key {secret} refused",
        "Authorization: Bearer {secret}",
        "authorization: basic {secret}",
        'headers {{"x-api-key": "{secret}"}}',
        "GET /v1/models?key={secret}&x=1",
        "api_key={secret}",
        "postgres://strata:{secret}@db:5432/strata is away",
        "password = {secret}",
    ],
)
@pytest.mark.parametrize(
    "secret",
    [
        "sk-strata-" + "Jm3vQx7Rt" * 4 + "AbCdEfG",
        "sk-proj-abc_DEF-1234567890",
        "AKIAIOSFODNN7EXAMPLEKEY1",
        "AIzaSyA1234567890abcdefghijklmnopqrstuv",
        "dGhpcyBpcyBhIHNlY3JldCB0aGF0IGlzIGxvbmcgMTIz",
        "0123456789abcdef" * 4,
    ],
)
def test_a_secret_never_reaches_the_line(text: str, secret: str) -> None:
    stream = io.StringIO()
    configure(stream=stream)
    logging.getLogger("strata.edge").warning(text.format(secret=secret), extra={"request_id": secret})
    assert secret not in stream.getvalue()
    assert secret[8:20] not in stream.getvalue()


@given(st.integers(24, 96))
def test_random_credentials_are_masked_whatever_their_length(size: int) -> None:
    token = secrets.token_bytes(size)
    text = base64.urlsafe_b64encode(token).decode().rstrip("=")
    if any(c.isdigit() for c in text):  # a 32-letter run without one digit is taken for words
        assert text not in mask(f"token {text} was refused")
    assert f"sk-{text}" not in mask(f"sk-{text}")


@pytest.mark.parametrize(
    "text",
    [
        "sk-strata-Jm3v…f9Tc is over its budget",
        "max_tokens: 100000 is above the model's 4096",
        "0193a5b2-7c4d-7e8f-9a0b-1c2d3e4f5a6b was adopted",
        "/usr/lib/python3/site-packages/starlette/applications.py, line 7",
        "config 9f86d081884c7d65 loaded from config.yaml",
    ],
)
def test_what_helps_to_find_a_fault_stays_readable(text: str) -> None:
    assert mask(text) == text


def test_a_key_sent_as_a_request_id_is_masked_in_the_request_line() -> None:
    stream = io.StringIO()
    RequestLog(stream).access(exchange_of("sk-strata-abcdefgh12345678"))
    assert rows(stream)[0]["request_id"] == "sk-…"


class Stuck(io.StringIO):
    """A pipe whose reader has stopped reading, until released."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.release = threading.Event()

    def write(self, text: str) -> int:
        self.entered.set()
        self.release.wait(20)
        return super().write(text)


async def test_a_reader_that_stops_reading_costs_lines_and_never_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_INTERVAL_SECONDS", 0.001)
    stream = Stuck()
    one_line = io.StringIO()
    RequestLog(one_line, clock_ns=lambda: 11 * SECOND).access(exchange_of())
    log = RequestLog(stream, limit_bytes=100 * len(one_line.getvalue()), clock_ns=lambda: 11 * SECOND)
    task = asyncio.create_task(log.run())
    await asyncio.sleep(0)
    log.access(exchange_of())
    while not stream.entered.is_set():
        await asyncio.sleep(0.001)
    for _ in range(250):
        log.access(exchange_of())
    assert log.dropped == 150
    stream.release.set()
    while len(stream.getvalue().splitlines()) < 101:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(rows(stream)) == 101


ENDS_UNREAD = """
import asyncio, contextlib, logging
from proxy.telemetry.logs import configure

async def main():
    log = configure(format="json")
    task = asyncio.create_task(log.run())
    await asyncio.sleep(0)
    for number in range(2_000):
        logging.getLogger("strata").warning("line %d that nobody reads", number)
    await asyncio.sleep(0.5)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    logging.getLogger("strata").warning("after the end")
    log.flush()

asyncio.run(main())
"""


def test_a_process_whose_log_nobody_reads_ends_all_the_same() -> None:
    process = subprocess.Popen([sys.executable, "-c", ENDS_UNREAD], stderr=subprocess.PIPE, cwd=ROOT)
    try:
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


async def test_what_is_queued_is_written_when_the_task_ends() -> None:
    stream = io.StringIO()
    log = RequestLog(stream, clock_ns=lambda: 11 * SECOND)
    task = asyncio.create_task(log.run())
    await asyncio.sleep(0)
    log.access(exchange_of())
    assert stream.getvalue() == ""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(rows(stream)) == 1


def test_a_closed_stream_is_counted_and_raises_nothing() -> None:
    stream = io.StringIO()
    log = RequestLog(stream, clock_ns=lambda: 11 * SECOND)
    stream.close()
    log.access(exchange_of())
    assert log.dropped == 1


def test_a_broken_log_call_does_not_break_its_caller_and_is_reported() -> None:
    stream = io.StringIO()
    logging.getLogger().handlers.clear()  # the test runner's own raises
    configure(stream=stream)
    logging.getLogger("strata.edge").warning("%d keys", "no number")
    logging.getLogger("strata.edge").warning("next")
    assert [row["message"] for row in rows(stream)] == ["a log line could not be built from '%d keys'", "next"]
