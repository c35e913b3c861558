"""
One connection to Redis for all that this worker asks of it: what is asked in one turn of the event loop goes out in one
write, and the answers come back in order.

redis-py finds the server (TLS, AUTH, Sentinel, Cluster) and speaks its protocol; its pool, locks and timeouts, which
cost 80 to 180 µs a call, are left out. An answer that is late ends the connection: everybody who waits hears `Away` at
once, and nobody asks again before a new connection has answered in time.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from proxy.config import Redis as Settings

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

ANSWER_SECONDS = 0.045
LATE_SECONDS = 0.005
"""When our own loop was late by more than this, the answer may be there unread: then it gets as long again, …"""
GRACES = 3
"""… so many times."""
CONNECT_SECONDS = 2.0
FIRST_RETRY_SECONDS = 0.25
LAST_RETRY_SECONDS = 2.0
REJECTED_SECONDS = 1.0
"""For so long nobody asks a Redis that answers with errors: it is out of memory, or has another kind of value there."""
SENTINEL_PORT = 26_379

log = logging.getLogger("strata.redis")


class Away(Exception):
    """Redis is not there, or not in time, or not able."""


class Script:
    """Lua that runs inside Redis, known to it by its digest."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.digest = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


class _Asked(NamedTuple):
    answer: asyncio.Future[object]
    at: float


class Redis:
    """`up` says whether to ask at all. `changed(up)` hears of every change."""

    def __init__(
        self,
        settings: Settings,
        *,
        changed: Callable[[bool], None] = lambda _: None,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        self.up = False
        self._settings = settings
        self._changed = changed
        self._answer_seconds = answer_seconds
        self._connection: AbstractConnection | None = None
        self._pack: Callable[[tuple[int | str, ...]], bytes] = _no_packer
        self._asked: deque[_Asked] = deque()
        self._out: list[bytes] = []
        self._something_to_write = asyncio.Event()
        self._broken = asyncio.Event()
        self._watch: asyncio.TimerHandle | None = None
        self._graces = 0
        self._task: asyncio.Task[None] | None = None
        self._pause_seconds = FIRST_RETRY_SECONDS
        self._told = False
        """That it is away stands in the log already."""
        self._rejecting = False
        """It is there, and said no to the last script."""
        self.late_total = 0
        """Connections ended because an answer did not come in time."""

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep_connected(), name="redis")

    async def close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def run(self, script: Script, keys: Sequence[str], arguments: Sequence[int | str]) -> list[int]:
        """What the script returns: whole numbers. Raises Away."""
        # Not at the top: importing redis takes half a second, and most gateways have none
        from redis.exceptions import NoScriptError, ResponseError  # noqa: PLC0415 (lazily, see above)

        try:
            try:
                answer = await self._send("EVALSHA", script.digest, len(keys), *keys, *arguments)
            except NoScriptError:  # it was restarted, or its scripts were flushed
                answer = await self._send("EVAL", script.source, len(keys), *keys, *arguments)
        except ResponseError as error:
            self._reject(error)
            raise Away from error
        if not isinstance(answer, list) or not all(type(number) is int for number in answer):
            self._reject(ValueError("an answer of another kind"))
            raise Away
        self._rejecting = False
        return answer

    def _send(self, *command: int | str) -> asyncio.Future[object]:
        if self._connection is None:
            raise Away
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[object] = loop.create_future()
        now = loop.time()
        self._asked.append(_Asked(answer, now))
        self._out.append(self._pack(command))
        self._something_to_write.set()
        if self._watch is None:
            self._watch_until(now + self._answer_seconds)
        return answer

    async def _keep_connected(self) -> None:
        while True:
            connection: AbstractConnection | None = None
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    connection = await _connect(self._settings)
                await self._serve(connection)
            except Exception as error:
                # Every kind of failure of a library, an address or a server means the same: it is away
                if not self._told:
                    log.warning("Redis is away (%s): each process counts by itself.", _plain(error))
                self._told = True
            finally:
                self._set_up(False)
                self._forget()
                if connection is not None:
                    with contextlib.suppress(OSError):
                        await connection.disconnect(nowait=True)
            await asyncio.sleep(self._pause_seconds)
            self._pause_seconds = min(2 * self._pause_seconds, LAST_RETRY_SECONDS)

    async def _serve(self, connection: AbstractConnection) -> None:
        """Until the connection breaks, or an answer is late. Up when the first answer was there in time."""
        from hiredis import pack_command  # noqa: PLC0415 (lazily, see `run`)

        self._pack = pack_command  # type: ignore[assignment]  # it takes any number of words
        self._connection = connection
        self._broken.clear()
        self._something_to_write.clear()
        tasks = [
            asyncio.create_task(self._write(connection), name="redis write"),
            asyncio.create_task(self._read(connection), name="redis read"),
            asyncio.create_task(self._broken.wait(), name="redis watch"),
        ]
        try:
            await self._send("PING")
            log.info("Redis is there: limits are shared.")
            self._pause_seconds, self._told = FIRST_RETRY_SECONDS, False
            self._set_up(True)
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        for outcome in ended:
            if isinstance(outcome, Exception):
                raise outcome
        raise Away("an answer was late")

    async def _write(self, connection: AbstractConnection) -> None:
        while True:
            await self._something_to_write.wait()
            self._something_to_write.clear()
            out, self._out = self._out, []
            await connection.send_packed_command(out, check_health=False)

    async def _read(self, connection: AbstractConnection) -> None:
        from redis.exceptions import MovedError, ReadOnlyError, ResponseError  # noqa: PLC0415 (lazily, see `run`)

        while True:
            answer: object
            try:
                answer = await connection.read_response(disconnect_on_error=False)
            except (ReadOnlyError, MovedError):
                raise  # it is no longer the master: another one must be found
            except ResponseError as error:
                answer = error
            if self._connection is not connection or not self._asked:
                return  # given up while this was on its way
            waiting = self._asked.popleft().answer
            if waiting.done():
                continue
            if isinstance(answer, Exception):
                waiting.set_exception(answer)
            else:
                waiting.set_result(answer)

    def _watch_until(self, due: float) -> None:
        self._watch = asyncio.get_running_loop().call_at(due, self._look, due)

    def _look(self, due: float) -> None:
        """Whether the oldest answer is late; and it, not we."""
        self._watch = None
        now = asyncio.get_running_loop().time()
        if not self._asked:
            self._graces = 0
            return
        in_time_until = self._asked[0].at + self._answer_seconds
        if now < in_time_until:
            self._graces = 0
            self._watch_until(in_time_until)
        elif now - due > LATE_SECONDS and self._graces < GRACES:
            self._graces += 1
            self._watch_until(now + LATE_SECONDS)
        else:
            self._graces = 0
            self.late_total += 1
            self._set_up(False)
            self._forget()
            self._broken.set()

    def _forget(self) -> None:
        """Whoever still waits hears that Redis is away."""
        self._connection = None
        asked, self._asked, self._out = self._asked, deque(), []
        for waiting, _ in asked:
            if not waiting.done():
                waiting.set_exception(Away())
                waiting.exception()  # nobody may be waiting any more

    def _reject(self, error: Exception) -> None:
        if self.up:
            if not self._rejecting:
                log.warning("Redis cannot count (%s): each process counts by itself.", _plain(error))
            self._rejecting = True
            self._set_up(False)
            asyncio.get_running_loop().call_later(REJECTED_SECONDS, self._try_again)

    def _try_again(self) -> None:
        if self._connection is not None:
            self._set_up(True)

    def _set_up(self, up: bool) -> None:
        if self.up != up:
            self.up = up
            self._changed(up)


async def _connect(settings: Settings) -> AbstractConnection:
    from redis.asyncio import ConnectionPool  # noqa: PLC0415 (lazily, see `Redis.run`)
    from redis.asyncio.retry import Retry  # noqa: PLC0415 (lazily)
    from redis.backoff import NoBackoff  # noqa: PLC0415 (lazily)

    url = settings.url.reveal() if settings.url is not None else ""
    if settings.sentinel_master:
        url = await _ask_sentinels(url, settings.sentinel_master)
    elif settings.cluster:
        url = await _ask_cluster(url, limit_tag(settings.prefix))
    pool = ConnectionPool.from_url(
        url, socket_timeout=None, socket_connect_timeout=CONNECT_SECONDS, retry=Retry(NoBackoff(), 0), protocol=2
    )
    connection: AbstractConnection = pool.make_connection()  # type: ignore[no-untyped-call]
    try:
        await connection.connect()  # type: ignore[no-untyped-call]
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
    return connection


async def _ask_sentinels(url: str, master: str) -> str:
    from redis.asyncio.sentinel import Sentinel  # noqa: PLC0415 (lazily, see `Redis.run`)

    hosts = urlsplit(url).netloc.rpartition("@")[2].split(",")
    places = [
        (host or "127.0.0.1", int(port or SENTINEL_PORT)) for host, _, port in (one.partition(":") for one in hosts)
    ]
    secured = {"ssl": True} if url.startswith("rediss://") else {}
    options = {"socket_timeout": CONNECT_SECONDS, **secured}
    sentinel = Sentinel(places, sentinel_kwargs=options)  # type: ignore[no-untyped-call]
    try:
        host, port = await sentinel.discover_master(master)
    finally:
        for one in sentinel.sentinels:
            await one.aclose()
    return _at(url, host, port)


async def _ask_cluster(url: str, key: str) -> str:
    from redis.asyncio.cluster import RedisCluster  # noqa: PLC0415 (lazily, see `Redis.run`)

    cluster = RedisCluster.from_url(url, socket_timeout=CONNECT_SECONDS)
    try:
        await cluster.initialize()
        node = cluster.get_node_from_key(key)
        if node is None:
            raise Away("the cluster has nobody for our keys")
        return _at(url, node.host, node.port)
    finally:
        await cluster.aclose()


def limit_tag(prefix: str) -> str:
    """How every key of limits begins. What is in braces decides where a cluster keeps it: all in one place."""
    return f"{{{prefix}-limits}}:"


def _at(url: str, host: str, port: int | str) -> str:
    parts = urlsplit(url)
    login, at, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{login}{at}{f'[{host}]' if ':' in host else host}:{port}"))


def _no_packer(_: tuple[int | str, ...]) -> bytes:
    raise Away


def _plain(error: BaseException) -> str:
    """Without what a library may have put into it of an address with its password."""
    return type(error).__name__
