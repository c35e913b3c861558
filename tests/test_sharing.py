"""Workers that count together in a real Redis: never more than the limit and hardly less; and alone when it is gone."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from proxy.errors import PolicyError
from proxy.exchange import Limit
from tests.conftest import lack, needs
from tests.gateway import free_port
from tests.redis_server import RedisServer
from tests.sharing import answering, between, finished, workers

pytestmark = pytest.mark.needs("redis-server")

MODES = pytest.mark.parametrize("mode", ["shares", "strict"])
MOST_SECONDS = 0.5
"""Of a call, on a machine that others use too; what is promised is measured by `python -m tests.chaos limits`."""


@pytest.fixture(autouse=True)
def _no_pauses() -> Iterator[None]:
    """Collecting what thousands of tests before have left stops the loop for longer than Redis is waited for."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(needs("redis-server"), tmp_path / "redis").start()
    yield server
    server.stop()


@MODES
async def test_three_workers_together_let_pass_what_one_limit_allows(server: RedisServer, mode: str) -> None:
    limit = Limit("key:k", "key", rpm=300)
    async with workers(server.url, mode=mode) as made:
        began = time.monotonic()
        passed = 0
        for _ in range(200):
            passed += sum(await asyncio.gather(*(worker.passes(limit) for worker in made)))
        refilled = int((time.monotonic() - began) * 5) + 1
    assert 270 <= passed <= 300 + refilled  # an answer that comes late leaves a worker to its share for a moment


@MODES
@pytest.mark.parametrize("rpm", [1, 2, 5])
async def test_a_small_limit_is_exact_from_the_first_request(server: RedisServer, mode: str, rpm: int) -> None:
    async with workers(server.url, mode=mode) as made:
        passed = sum(await asyncio.gather(*(worker.passes(Limit("key:k", "key", rpm=rpm)) for worker in made * 4)))
    assert passed == rpm


@MODES
async def test_workers_whose_clocks_are_an_hour_apart_count_as_one(server: RedisServer, mode: str) -> None:
    limit = Limit("key:k", "key", rpm=600)
    async with workers(server.url, 3, mode=mode, clocks_off=3600.0) as made:
        began = time.monotonic()
        passed = sum([sum([await worker.passes(limit) for worker in made]) for _ in range(250)])
        refilled = int((time.monotonic() - began) * 10) + 1
        assert 540 <= passed <= 600 + refilled  # three times as many, or a third, if the clocks counted
        await asyncio.sleep(0.5)
        assert any([await worker.passes(limit) for worker in made])


@MODES
async def test_what_one_worker_does_not_use_the_others_get(server: RedisServer, mode: str) -> None:
    limit = Limit("key:k", "key", rpm=60)
    async with workers(server.url, mode=mode) as made:
        assert all([await worker.passes(limit) for worker in made])
        await asyncio.sleep(0.5)
        passed = sum([await made[0].passes(limit) for _ in range(80)])
    assert 57 <= passed <= 59


@MODES
async def test_tokens_that_were_not_used_are_given_back_to_all(server: RedisServer, mode: str) -> None:
    limit = Limit("key:k", "key", tpm=1000)
    async with workers(server.url, mode=mode) as made:
        turn = await made[0].take(limit, tokens=900)
        assert not await made[1].passes(limit, tokens=500)
        turn.end(finished(100))
        turn.end(finished(5000))
        await asyncio.sleep(0.5)
        assert await made[1].passes(limit, tokens=500)


@MODES
async def test_a_small_request_is_not_refused_for_the_sake_of_a_large_one(server: RedisServer, mode: str) -> None:
    limit = Limit("key:k", "key", tpm=1000)
    async with workers(server.url, mode=mode) as made:
        await made[0].take(limit, tokens=500)
        assert not await made[1].passes(limit, tokens=900)
        assert await made[1].passes(limit, tokens=100)
        assert not await made[1].passes(limit, tokens=900)


@MODES
async def test_tokens_used_beyond_what_was_taken_are_paid_by_all(server: RedisServer, mode: str) -> None:
    limit = Limit("key:k", "key", tpm=1000)
    async with workers(server.url, mode=mode) as made:
        (await made[0].take(limit, tokens=10)).end(finished(2000))
        await asyncio.sleep(0.5)
        with pytest.raises(PolicyError) as caught:
            await made[1].take(limit, tokens=10)
    assert 40 <= int(caught.value.headers["retry-after"]) <= 65


@MODES
async def test_no_more_run_at_once_than_may_on_all_workers_together(server: RedisServer, mode: str) -> None:
    limit = Limit("key:k", "key", max_parallel=4)
    async with workers(server.url, mode=mode) as made:
        outcomes = await asyncio.gather(*(worker.take(limit) for worker in made * 4), return_exceptions=True)
        running = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
        refused = [outcome for outcome in outcomes if isinstance(outcome, PolicyError)]
        assert (len(running), len(refused)) == (4, 8)
        for turn in running:
            turn.end(finished(1))
        await asyncio.sleep(0.5)
        again = await asyncio.gather(*(made[2].take(limit) for _ in range(5)), return_exceptions=True)
        assert sum(isinstance(outcome, PolicyError) for outcome in again) == 1


@MODES
async def test_a_dead_worker_s_requests_count_no_more_when_its_lease_has_lapsed(
    server: RedisServer, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.storage.redis_limits.SLOTS_MS", 600)
    limit = Limit("key:k", "key", max_parallel=1)
    async with workers(server.url, 2, mode=mode) as (dying, living):
        await dying.take(limit)
        assert not await living.passes(limit)
        assert dying._run is not None
        dying._run.cancel()
        await dying.redis.close()
        await asyncio.sleep(0.9)
        assert await living.passes(limit)


@MODES
async def test_all_limits_of_a_request_or_none(server: RedisServer, mode: str) -> None:
    wide, narrow = Limit("team:t", "team", rpm=50), Limit("key:k", "key", rpm=1)
    async with workers(server.url, 2, mode=mode) as made:
        assert await made[0].passes(wide, narrow)
        for worker in made * 10:
            assert not await worker.passes(wide, narrow)
        await asyncio.sleep(0.5)
        passed = sum([await made[1].passes(wide) for _ in range(60)])
    assert 48 <= passed <= 51


@MODES
async def test_the_headers_say_how_the_limit_stands_for_all(server: RedisServer, mode: str) -> None:
    limit = Limit("key:k", "key", rpm=100, tpm=10_000)
    async with workers(server.url, 2, mode=mode) as made:
        for _ in range(10):
            await made[0].passes(limit, tokens=100)
        await asyncio.sleep(0.5)
        standing = (await made[1].take(limit, tokens=100)).standing()
    assert standing is not None
    assert (standing.limit, standing.token_limit) == (100, 10_000)
    assert 87 <= standing.remaining <= 91
    assert 8_700 <= standing.tokens_remaining <= 9_100


@MODES
async def test_without_redis_each_worker_counts_alone_and_what_it_let_pass_is_owed_to_all(
    tmp_path: Path, mode: str
) -> None:
    server = RedisServer(needs("redis-server"), tmp_path / "redis")
    limit = Limit("key:k", "key", rpm=5)
    async with workers(server.url, 1, mode=mode, up=False) as (worker,):
        assert [await worker.passes(limit) for _ in range(6)] == [True] * 5 + [False]
        assert worker.turns.alone_total == 5
        server.start()
        try:
            await worker.until_up()
            await asyncio.sleep(0.3)
            assert not await worker.passes(limit)
            assert await worker.passes(Limit("key:other", "key", rpm=5))
        finally:
            server.stop()


@MODES
async def test_a_frozen_redis_costs_nobody_an_error_and_afterwards_it_counts_again(
    server: RedisServer, mode: str
) -> None:
    limit = Limit("key:k", "key", rpm=3000)
    async with workers(server.url, 3, mode=mode) as made:
        assert all([await worker.passes(limit) for worker in made])
        server.freeze()
        began = time.monotonic()
        assert all(await asyncio.gather(*(worker.passes(limit) for worker in made * 20)))
        assert time.monotonic() - began < MOST_SECONDS
        await asyncio.sleep(0.3)
        began = time.monotonic()
        assert all([await worker.passes(limit) for worker in made])
        assert time.monotonic() - began < MOST_SECONDS
        server.thaw()
        for worker in made:
            await worker.until_up()
        assert all([await worker.passes(limit) for worker in made])


@MODES
async def test_a_part_of_the_limit_holds_while_redis_is_gone(server: RedisServer, mode: str) -> None:
    limit = Limit("key:k", "key", rpm=30, max_parallel=3)
    async with workers(server.url, 3, mode=mode) as made:
        server.kill()
        for worker in made:
            await worker.until_up(False)
        passed = [sum([await worker.passes(limit) for _ in range(20)]) for worker in made]
        assert passed == [10, 10, 10]
        await asyncio.gather(*(worker.take(Limit("key:p", "key", max_parallel=3)) for worker in made))
        assert not any([await worker.passes(Limit("key:p", "key", max_parallel=3)) for worker in made])


@MODES
async def test_what_was_used_before_it_went_is_not_had_again(server: RedisServer, mode: str) -> None:
    limit = Limit("key:k", "key", rpm=30)
    async with workers(server.url, 3, mode=mode) as made:
        used = 0
        async with asyncio.timeout(20):  # who asks while the others lease may be told to come again
            while used < 30:
                used += sum(await asyncio.gather(*(worker.passes(limit) for worker in made)))
        assert used <= 32
        await asyncio.sleep(0.2)
        server.kill()
        for worker in made:
            await worker.until_up(False)
        assert not any([await worker.passes(limit) for worker in made])


@MODES
async def test_after_a_restart_the_scripts_are_brought_again(server: RedisServer, mode: str) -> None:
    limit = Limit("key:k", "key", rpm=100)
    async with workers(server.url, 2, mode=mode) as made:
        assert all([await worker.passes(limit) for worker in made])
        server.kill()
        for worker in made:
            await worker.until_up(False)
        server.start()
        for worker in made:
            await worker.until_up()
        assert all([await worker.passes(limit) for worker in made])
        server.command("SCRIPT", "FLUSH")
        alone = made[0].turns.alone_total
        assert all([await worker.passes(limit) for worker in made * 5])
        assert made[0].turns.alone_total == alone


@MODES
async def test_a_full_redis_is_as_good_as_none(server: RedisServer, mode: str) -> None:
    limit = Limit("key:k", "key", rpm=600)
    async with workers(server.url, 2, mode=mode) as made:
        server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
        server.command("CONFIG", "SET", "maxmemory", "1mb")
        assert all(await asyncio.gather(*(worker.passes(limit) for worker in made * 20)))
        server.command("CONFIG", "SET", "maxmemory", "0")
        for worker in made:
            await worker.until_up()
        assert all([await worker.passes(limit) for worker in made])


@MODES
async def test_a_redis_that_forgets_under_pressure_begins_anew(server: RedisServer, mode: str) -> None:
    limit = Limit("key:k", "key", rpm=600)
    async with workers(server.url, 2, mode=mode) as made:
        server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        for _ in range(5):
            server.command("FLUSHALL")
            assert all(await asyncio.gather(*(worker.passes(limit) for worker in made * 10)))


@MODES
async def test_what_somebody_else_has_put_there_is_no_error(server: RedisServer, mode: str) -> None:
    limit = Limit("key:k", "key", rpm=600)
    async with workers(server.url, 1, mode=mode) as (worker,):
        server.command("SET", "{strata-limits}:key:k", "junk")
        assert await worker.passes(limit)
        server.command("DEL", "{strata-limits}:key:k")
        await worker.until_up()
        assert await worker.passes(limit)


@MODES
async def test_a_slow_redis_is_not_waited_for(server: RedisServer, mode: str) -> None:
    limit = Limit("key:k", "key", rpm=600)
    async with (
        between(server.port, 0.2) as port,
        workers(f"redis://127.0.0.1:{port}/0", 1, mode=mode, up=False) as (worker,),
    ):
        await asyncio.sleep(1.0)
        began = time.monotonic()
        assert all([await worker.passes(limit) for _ in range(20)])
        assert time.monotonic() - began < MOST_SECONDS
        assert not worker.redis.up
        assert worker.turns.alone_total == 20


@MODES
@pytest.mark.parametrize("answer", [b":1\r\n", b"*1\r\n:7\r\n", b"+OK\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"\0\xff"])
async def test_what_is_no_redis_is_as_good_as_none(answer: bytes, mode: str) -> None:
    limit = Limit("key:k", "key", rpm=600, tpm=6000, max_parallel=9)
    async with (
        answering(answer) as port,
        workers(f"redis://127.0.0.1:{port}/0", 1, mode=mode, up=False) as (worker,),
    ):
        for _ in range(5):
            assert await worker.passes(limit)
            await asyncio.sleep(0.1)
        assert worker.turns.alone_total == 5


@pytest.mark.parametrize(("password", "up"), [("right-password", True), ("wrong-password", False)])
async def test_a_password_opens_and_a_wrong_one_leaves_each_worker_alone(
    tmp_path: Path, password: str, up: bool, caplog: pytest.LogCaptureFixture
) -> None:
    server = RedisServer(needs("redis-server"), tmp_path / "redis", "--requirepass", "right-password").start()
    try:
        url = server.url.replace("redis://", f"redis://:{password}@")
        async with workers(url, 1, up=up) as (worker,):
            await asyncio.sleep(0.3)
            assert worker.redis.up is up
            assert await worker.passes(Limit("key:k", "key", rpm=5))
            assert (worker.turns.alone_total == 0) is up
    finally:
        server.stop()
    assert "password" not in caplog.text


async def test_who_leaves_while_asking_loses_nothing_that_was_granted(server: RedisServer) -> None:
    limit = Limit("key:k", "key", rpm=1)
    async with workers(server.url, 1) as (worker,):
        asking = asyncio.create_task(worker.take(limit))
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert await worker.passes(limit)


async def test_a_worker_that_ends_gives_back_what_it_has_leased(server: RedisServer) -> None:
    limit = Limit("key:k", "key", rpm=1000, max_parallel=100)
    async with workers(server.url, 1) as (worker,):
        assert await worker.passes(limit)
    fields = server.command("HGETALL", "{strata-limits}:key:k")
    owed = int(fields.split(b"\r\nr\r\n")[1].split(b"\r\n")[1])
    assert owed <= 60_000
    assert b"w:worker" not in fields


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (folder / "cert.pem").write_bytes(signed.public_bytes(pem))
    (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return folder / "cert.pem", folder / "key.pem"


async def test_tls_is_spoken_and_an_unknown_certificate_is_not_believed(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    port = free_port()
    options: tuple[str, ...] = ("--tls-port", str(port), "--tls-cert-file", str(cert), "--tls-key-file", str(key))
    options += ("--tls-ca-cert-file", str(cert), "--tls-auth-clients", "no")
    server = RedisServer(needs("redis-server"), tmp_path / "redis", *options)
    try:
        server.start()
    except AssertionError as error:
        if "Bad directive" not in str(error):
            raise
        lack("redis-server is built without TLS")
    limit = Limit("key:k", "key", rpm=5)
    try:
        async with workers(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={cert}", 1) as (worker,):
            assert await worker.passes(limit)
            assert worker.turns.alone_total == 0
        async with workers(f"rediss://127.0.0.1:{port}/0", 1, up=False) as (worker,):
            await asyncio.sleep(0.3)
            assert await worker.passes(limit)
            assert not worker.redis.up
    finally:
        server.stop()


async def test_a_cluster_is_asked_where_our_keys_are(tmp_path: Path) -> None:
    options = ("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    server = RedisServer(needs("redis-server"), tmp_path / "redis", *options).start()
    limits = (Limit("key:k", "key", rpm=5), Limit("team:t", "team", rpm=50))
    try:
        server.command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        async with asyncio.timeout(10):
            while b"cluster_state:ok" not in server.command("CLUSTER", "INFO"):
                await asyncio.sleep(0.05)
        for mode in ("shares", "strict"):
            async with workers(server.url, 2, mode=mode, cluster=True, prefix=mode) as made:
                assert sum(await asyncio.gather(*(worker.passes(*limits) for worker in made * 6))) == 5
                assert [worker.turns.alone_total for worker in made] == [0, 0]
    finally:
        server.stop()


async def test_after_a_failover_the_new_master_is_asked(tmp_path: Path) -> None:
    program = needs("redis-server")
    master = RedisServer(program, tmp_path / "master").start()
    replica = RedisServer(program, tmp_path / "replica", "--replicaof", "127.0.0.1", str(master.port)).start()
    watched = tmp_path / "sentinel.conf"
    watched.write_text(
        f"sentinel monitor ours 127.0.0.1 {master.port} 1\nsentinel down-after-milliseconds ours 500\n"
        "sentinel failover-timeout ours 3000\n"
    )
    sentinel = RedisServer(program, tmp_path / "sentinel", str(watched), "--sentinel").start()
    limit = Limit("key:k", "key", rpm=600)
    try:
        async with asyncio.timeout(20):
            while str(replica.port).encode() not in sentinel.command("SENTINEL", "replicas", "ours"):
                await asyncio.sleep(0.1)
        async with workers(sentinel.url, 2, sentinel_master="ours") as made:
            assert all([await worker.passes(limit) for worker in made])
            master.kill()
            served = []
            async with asyncio.timeout(30):
                while not all(worker.redis.up for worker in made) or b"master" not in replica.command("ROLE"):
                    served += [await worker.passes(limit) for worker in made]
                    await asyncio.sleep(0.1)
            assert served and all(served)
            assert all([await worker.passes(limit) for worker in made])
            await asyncio.sleep(0.3)
            assert b"{strata-limits}" in replica.command("KEYS", "*")
    finally:
        for server in (sentinel, replica, master):
            server.stop()
