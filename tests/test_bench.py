"""The benchmark measures what it says: its upstream sends what its load generator counts."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from array import array
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.load import Connection, Run, request
from bench.machine import cpu, free_port, memory, tree
from bench.report import SCENARIOS, Row, lines
from bench.timing import Taken, altered, compared, near
from bench.upstream import CHUNKS, serve
from proxy.admission.keys import new_key, well_formed

ROOT = Path(__file__).parent.parent


@pytest.fixture
async def upstream() -> AsyncIterator[int]:
    port = free_port()
    task = asyncio.create_task(serve(port))
    for _ in range(200):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            await asyncio.sleep(0.01)
        else:
            writer.close()
            await writer.wait_closed()
            break
    yield port
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def load(port: int, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.load", "--port", str(port), "--seconds", "30", *options]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    found: dict[str, Any] = msgspec.json.decode(output)
    return found


async def test_whole_answers_are_counted_one_by_one(upstream: int) -> None:
    found = await load(upstream, "--count", "50", "--connections", "4")
    assert (found["done"], found["errors"], found["chunks"]) == (50, 0, 0)
    assert 0 < found["latency_us"]["p50"] <= found["latency_us"]["p99"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_every_chunk_of_a_stream_is_seen(upstream: int, path: str) -> None:
    found = await load(upstream, "--count", "2", "--connections", "2", "--stream", "--path", path)
    assert (found["done"], found["errors"], found["chunks"]) == (2, 0, 2 * CHUNKS)
    assert found["delay_us"]["p50"] > 0


@pytest.mark.parametrize("size", [1, 2, 3, 7, 19, 1000])
def test_a_stamp_split_over_two_reads_is_counted_once(size: int) -> None:
    run = Run(b"", stream=True, count=1, until_ns=0)
    connection = Connection(run)
    events = b"".join(b'{"content":"@T=%016d..."}\n' % number for number in range(CHUNKS))
    answer = b"HTTP/1.1 200 OK\r\n\r\n" + events + b"0\r\n\r\n"
    connection.started_ns = 1
    run.busy = 1
    connection.data_received(answer[:20])
    for start in range(20, len(answer), size):
        connection.data_received(answer[start : start + size])
    assert (run.done, run.chunks, run.errors) == (1, CHUNKS, 0)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 500 Oops\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
    ],
)
def test_an_answer_that_is_none_is_an_error(answer: bytes) -> None:
    run = Run(b"", stream=False, count=1, until_ns=0)
    connection = Connection(run)
    connection.started_ns, run.busy = 1, 1
    connection.data_received(answer)
    assert (run.done, run.errors) == (1, 1)


def test_a_request_looks_like_an_sdk_s() -> None:
    head, _, body = request("fast", "/v1/chat/completions", "sk-1", True).partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
    assert f"content-length: {len(body)}".encode() in head
    assert msgspec.json.decode(body)["stream"] is True


def test_a_process_tree_has_used_time_and_memory() -> None:
    assert os.getpid() in tree(os.getpid())
    assert cpu(os.getpid()).own_ns > 0
    assert memory(os.getpid()).own > 1_000_000


def test_the_report_gives_medians_and_the_ratio_to_nginx() -> None:
    rows = [
        Row("ns64", target, number, 10, 0, "", 100.0, us + number, 1.0, 50.0, 90.0, 10.0)
        for number in range(3)
        for target, us in (("direct", 0.0), ("nginx", 29.0), ("gateway", 89.0))
    ]
    text = "\n".join(lines(rows, SCENARIOS[:1]))
    assert "90.0 (89.0…91.0)" in text
    assert " 3.00 " in text


def taken(dice: random.Random, slower_ns: int, guesses: int = 200, of_guess_ns: float = 50.0) -> Taken:
    """Samples of a made-up kind: each guess has a time of its own, some are held up, and all are so much slower."""
    own = [dice.gauss(5000, of_guess_ns) for _ in range(guesses)]
    found = Taken(array("i"), array("q"))
    for number in range(guesses * 50):
        guess = number % guesses
        late = dice.choice([0] * 19 + [100_000])
        found.guess.append(guess)
        found.nanoseconds.append(int(dice.gauss(own[guess], 200)) + slower_ns + late)
    return found


def test_a_kind_that_is_slower_is_found_and_guesses_that_differ_among_themselves_are_not_one() -> None:
    alike = [compared(taken(random.Random(seed), 0), taken(random.Random(100 + seed), 0)) for seed in range(20)]
    assert not any(found.differs for found in alike)
    slower = compared(taken(random.Random(1), 40), taken(random.Random(2), 0))
    assert slower.differs
    assert 20 < slower.apart_ns < 60


def test_a_guess_near_a_key_has_a_checksum_that_is_right() -> None:
    key = new_key()
    for place in (len("sk-strata-"), -1):
        guess = near(key, place)
        assert well_formed(guess.encode())
        assert sum(one != other for one, other in zip(guess[:-6], key[:-6], strict=True)) == 1
    assert not well_formed(altered(key, -1).encode())
