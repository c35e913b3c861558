"""
Several gateways that count limits together in Redis: what they let pass, and what a request pays while Redis is frozen,
killed, evicting, or failing over to another.

Requests come at a steady pace, whatever becomes of those before. `added` is the 99th percentile of the seconds around a
fault less that of the seconds before it; an error is anything but an answer or a 429.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from tests.chaos.workers import Workers
from tests.gateway import Gateway
from tests.redis_server import RedisServer

BURST_SECONDS = 1
KEYS = 40
EARLY_SECONDS = 3.0
CALM_SECONDS = 4.0
AFTER_SECONDS = 4.0
ADDED_SECONDS = 0.060
OFF = 0.01
CONNECTIONS = 24
"""Kept open to each gateway."""
BACK_SECONDS = 20.0

_BODY = msgspec.json.encode({"model": "sim/echo", "max_tokens": 20, "messages": [{"role": "user", "content": "Hello"}]})


@dataclass
class Heard:
    """Of the requests of one stretch of time."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    passed_at: list[float] = field(default_factory=list)
    """When those were sent that passed, in seconds since the beginning."""

    @property
    def errors(self) -> int:
        return sum(count for status, count in self.statuses.items() if status not in ("200", "429"))

    def percentile(self, part: float) -> float:
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


class Line:
    """Connections to one gateway that stay open, each for one request at a time."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, key: str) -> str:
        """The status, or what broke."""
        try:
            reader, writer = self._free.pop() if self._free else await self._open()
            writer.write(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\n"
                b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (key.encode(), len(_BODY), _BODY)
            )
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            return type(error).__name__
        if len(self._free) < CONNECTIONS:
            self._free.append((reader, writer))
        else:
            writer.close()
        return head[9:12].decode()

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self._gateway.port)

    def close(self) -> None:
        for _, writer in self._free:
            writer.close()


class Load:
    """`pace` requests a second in all, in turn at each gateway with each key; `heard` may be exchanged at any time."""

    def __init__(self, gateways: Sequence[Gateway], keys: Sequence[str], pace: float) -> None:
        self.heard = Heard()
        self._lines = [Line(gateway) for gateway in gateways]
        self._keys = keys
        self._pace = pace
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, seconds: float) -> Heard:
        """The requests of so many seconds, when all are answered."""
        heard = self.heard = Heard()
        began = time.monotonic()
        number = 0
        while (now := time.monotonic()) - began < seconds:
            while number < (now - began) * self._pace:
                task = asyncio.create_task(self._one(number, heard, began))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                number += 1
            await asyncio.sleep(0.002)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=60)
        return heard

    async def _one(self, number: int, heard: Heard, start: float) -> None:
        line = self._lines[number % len(self._lines)]
        key = self._keys[number // len(self._lines) % len(self._keys)]
        began = time.monotonic()
        status = await line.ask(key)
        heard.seconds.append(time.monotonic() - began)
        heard.statuses[status] += 1
        if status == "200":
            heard.passed_at.append(began - start)

    def close(self) -> None:
        for line in self._lines:
            line.close()


class Servers:
    """A master, a replica and a sentinel that watches them."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("redis-server")
        if program is None:
            raise SystemExit("redis-server is not installed")
        self.master = RedisServer(program, folder / "master").start()
        self.replica = RedisServer(
            program, folder / "replica", "--replicaof", "127.0.0.1", str(self.master.port)
        ).start()
        watched = folder / "sentinel.conf"
        watched.write_text(
            f"sentinel monitor ours 127.0.0.1 {self.master.port} 1\nsentinel down-after-milliseconds ours 8000\n"
            "sentinel failover-timeout ours 5000\n"
        )
        self.sentinel = RedisServer(program, folder / "sentinel", str(watched), "--sentinel").start()

    def stop(self) -> None:
        for server in (self.sentinel, self.replica, self.master):
            server.stop()

    async def freeze(self) -> None:
        self.master.freeze()
        await asyncio.sleep(2.0)
        self.master.thaw()

    async def kill(self) -> None:
        self.master.kill()
        await asyncio.sleep(2.0)
        await asyncio.to_thread(self.master.start)

    async def evict(self) -> None:
        self.master.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        self.master.command("CONFIG", "SET", "maxmemory", "12mb")
        for number in range(500):
            await asyncio.to_thread(self.master.command, "SET", f"filler-{number}", "x" * 50_000)
        self.master.command("CONFIG", "SET", "maxmemory", "0")
        self.master.command("CONFIG", "SET", "maxmemory-policy", "noeviction")

    async def fail_over(self) -> None:
        said = self.sentinel.command("SENTINEL", "FAILOVER", "ours")
        deadline = time.monotonic() + BACK_SECONDS
        while b"master" not in self.replica.command("ROLE"):
            if time.monotonic() > deadline:
                raise AssertionError(f"no failover: {said!r}")
            await asyncio.sleep(0.1)


@dataclass(frozen=True)
class Promise:
    """What must hold."""

    off: float = OFF
    """How far from the limit, as a part of it."""
    added_seconds: float = ADDED_SECONDS


async def run(
    folder: Path,
    *,
    workers: int,
    pace: float,
    rpm: int,
    seconds: float,
    modes: Sequence[str],
    promise: Promise = Promise(),
) -> bool:
    """Prints a table for each mode; true if all is as promised."""
    right = True
    for mode in modes:
        print(f"{mode}: {workers} gateways, {pace:g} requests/s, limit {rpm} a minute for all", flush=True)
        right = await _one(folder / mode, workers, pace, rpm, seconds, mode, promise) and right
    print(
        "\nlimits hold, and Redis costs nobody anything" if right else f"\nA LIMIT IS WRONG; see {folder}", flush=True
    )
    return right


async def _one(folder: Path, workers: int, pace: float, rpm: int, seconds: float, mode: str, promise: Promise) -> bool:
    servers = Servers(folder / "redis")
    keys = [f"sk-static-of-the-limits-chaos-{number:04}" for number in range(KEYS + 1)]
    cluster = Workers(folder, workers, oracle="http://127.0.0.1:9", more=_config(servers, keys, rpm, mode))
    try:
        await cluster.start()
        await _all_up(cluster.gateways)
        off, counting_errors = await _count(cluster.gateways, keys[0], pace, rpm, seconds)
        # One after the other, since each leaves Redis as it should be; the failover ends it all
        faults: tuple[tuple[str, Callable[[], Awaitable[None]]], ...] = (
            ("frozen", servers.freeze),
            ("killed", servers.kill),
            ("evicting", servers.evict),
            ("failing over", servers.fail_over),
        )
        print(
            f"{'Redis':>14}{'answered':>10}{'refused':>10}{'errors':>8}{'p99 ms':>9}{'added':>8}{'worst':>8}",
            flush=True,
        )
        outcomes = [await _fault(cluster.gateways, keys[1:], pace / 3, *fault) for fault in faults]
        kept = all(errors == 0 and added <= promise.added_seconds for errors, added in outcomes)
        return abs(off) <= promise.off and not counting_errors and kept
    finally:
        await cluster.stop()
        servers.stop()


def _config(servers: Servers, keys: Sequence[str], rpm: int, mode: str) -> str:
    listed = "".join(f"    - {{name: k{number}, key: {key}}}\n" for number, key in enumerate(keys))
    return (
        f'redis: {{url: "{servers.sentinel.url}", sentinel_master: ours, limits: {mode}}}\n'
        f"keys:\n  static:\n{listed}"
        "limits:\n"
        f"  - {{scope: key, name: k0, rpm: {rpm}, burst: {BURST_SECONDS}s}}\n"
        "  - {scope: key, rpm: 6000, tpm: 10000000, max_parallel_requests: 1000}\n"
    )


async def _count(gateways: Sequence[Gateway], key: str, pace: float, rpm: int, seconds: float) -> tuple[float, int]:
    """More than the limit allows: by which part what passes is off, and errors."""
    load = Load(gateways, [key], pace)
    try:
        heard = await load.run(EARLY_SECONDS + seconds)
    finally:
        load.close()
    # What comes early spends the burst; from then on what refills is all there is.
    passed = sum(EARLY_SECONDS <= at < EARLY_SECONDS + seconds for at in heard.passed_at)
    allowed = rpm * seconds / 60
    off = passed / allowed - 1
    print(
        f"  in {seconds:g} s {passed} passed of {pace * seconds:g}; the limit allows {allowed:g}: {off * 100:+.2f} %; "
        f"errors {heard.errors}; p99 {heard.percentile(0.99) * 1000:.1f} ms; "
        f"{sum(gateway.gauge('strata_limits_alone_total') for gateway in gateways):g} passed without Redis",
        flush=True,
    )
    return off, heard.errors


async def _fault(
    gateways: Sequence[Gateway], keys: Sequence[str], pace: float, name: str, happens: Callable[[], Awaitable[None]]
) -> tuple[int, float]:
    """Requests that failed or were refused, and the seconds that were added."""
    load = Load(gateways, keys, pace)
    try:
        calm = await load.run(CALM_SECONDS)
        running = asyncio.create_task(load.run(AFTER_SECONDS))
        await asyncio.sleep(0.5)
        await happens()
        heard = await running
    finally:
        load.close()
    await _all_up(gateways)
    added = heard.percentile(0.99) - calm.percentile(0.99)
    print(
        f"{name:>14}{heard.statuses['200']:>10}{heard.statuses['429']:>10}{heard.errors:>8}"
        f"{heard.percentile(0.99) * 1000:>9.1f}{added * 1000:>8.1f}{max(heard.seconds) * 1000:>8.1f}",
        flush=True,
    )
    if heard.errors:
        print(f"    {dict(heard.statuses)}", flush=True)
    return heard.errors + heard.statuses["429"], added


async def _all_up(gateways: Sequence[Gateway]) -> None:
    """Until each has Redis again."""
    deadline = time.monotonic() + BACK_SECONDS
    for gateway in gateways:
        while True:
            with contextlib.suppress(OSError):
                if b'"redis"' not in (await asyncio.to_thread(gateway.get, "/readyz"))[1]:
                    break
            if time.monotonic() > deadline:
                raise AssertionError(f"Redis is not used again:\n{gateway.tail()}")
            await asyncio.sleep(0.1)
