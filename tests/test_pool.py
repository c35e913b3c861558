"""The life of the pool: lines, outages, clients that leave, TLS, names, and its end."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import random
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from proxy.errors import UpstreamError
from proxy.upstream import connections
from proxy.upstream.connections import Origin, Pool
from proxy.upstream.resolver import FRESH_SECONDS, MAX_NAMES, Resolver
from tests import hostile_upstream as hostile
from tests.calling import ask, both_loops, pooled, read_in_pieces, send, until
from tests.hostile_upstream import CHUNKED, Peer, answering, serving


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def black_hole() -> Iterator[tuple[socket.socket, list[socket.socket]]]:
    """A listener whose line is full: what else connects hears nothing at all, as behind a firewall."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    fillers = []
    for _ in range(4):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(listener.getsockname())
        fillers.append(filler)
    try:
        yield listener, fillers
    finally:
        for filler in fillers:
            filler.close()
        listener.close()


@both_loops
async def test_nothing_was_sent_where_nobody_listens() -> None:
    async with pooled() as pool:
        with pytest.raises(UpstreamError) as caught:
            await send(pool, Origin("http", "127.0.0.1", free_port()))
        error = caught.value
        assert (error.error_type, error.code, error.status) == ("provider_unreachable", "upstream_unreachable", 502)
        assert error.sent is False
        assert "refused" in error.message.lower()
        assert "secret" not in error.message


@both_loops
async def test_a_server_that_speaks_first_is_no_provider() -> None:
    async with serving(hostile.speak_first) as upstream, pooled() as pool:
        with pytest.raises(UpstreamError) as caught:
            await send(pool, upstream.origin)
        assert caught.value.error_type in ("provider_bad_response", "provider_unreachable")


@both_loops
async def test_a_deadline_in_the_past_sends_nothing() -> None:
    async with serving(hostile.healthy) as upstream, pooled() as pool:
        with pytest.raises(UpstreamError) as caught:
            await send(pool, upstream.origin, seconds=-1.0)
        assert (caught.value.error_type, caught.value.sent) == ("provider_timeout", False)
        assert upstream.connections == 0


@both_loops
async def test_requests_wait_in_line_and_are_served_in_order() -> None:
    served: list[bytes] = []

    async def behave(peer: Peer) -> None:
        while True:
            served.append((await peer.request())[-2:])
            await peer.send(hostile.OK)

    async with serving(behave) as upstream, pooled(max_connections=1) as pool:
        names = [b"%02d" % number for number in range(30)]
        await asyncio.gather(*(ask(pool, upstream.origin, name) for name in names))
        assert served == names
        assert upstream.connections == 1


@both_loops
async def test_a_wait_in_line_ends_at_the_deadline_with_nothing_sent() -> None:
    async with serving(hostile.never_answer) as upstream, pooled(max_connections=1) as pool:
        first = asyncio.create_task(send(pool, upstream.origin, seconds=1.2))
        await until(lambda: pool.active == 1)
        with pytest.raises(UpstreamError) as caught:
            await send(pool, upstream.origin, seconds=0.1)
        error = caught.value
        assert (error.error_type, error.status, error.sent) == ("provider_overloaded", 503, False)
        assert not error.rest, "we are full, not they"
        assert "max_connections" in error.message
        with pytest.raises(UpstreamError, match="did not begin an answer"):
            await first


@both_loops
async def test_the_line_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_WAITING", 2)
    async with serving(hostile.never_answer) as upstream, pooled(max_connections=1) as pool:
        calls = [asyncio.create_task(send(pool, upstream.origin, seconds=60)) for _ in range(3)]
        await until(lambda: (pool.active, pool.waiting) == (1, 2))
        with pytest.raises(UpstreamError) as caught:
            await send(pool, upstream.origin)
        assert (caught.value.error_type, caught.value.sent) == ("provider_overloaded", False)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


@both_loops
async def test_an_idle_connection_elsewhere_makes_room() -> None:
    async with serving(hostile.healthy) as one, serving(hostile.healthy) as two, pooled(max_connections=1) as pool:
        for upstream in (one, two, one):
            assert await ask(pool, upstream.origin) == b"{}"
            assert pool.idle == 1
        await until(lambda: two.open == 0 and one.open == 1)


@both_loops
async def test_an_origin_whose_last_connection_has_ended_is_forgotten() -> None:
    async def twice(peer: Peer) -> None:
        await peer.request()
        await peer.send(hostile.OK)
        await peer.request()
        await peer.send(hostile.OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))

    async with serving(twice) as upstream, serving(hostile.healthy) as other, pooled() as pool:
        assert await ask(pool, other.origin) == b"{}"
        assert [await ask(pool, upstream.origin) for _ in range(2)] == [b"{}"] * 2
        await until(lambda: list(pool._idle) == [other.origin])


@both_loops
async def test_clients_that_leave_in_the_middle_leave_no_place_taken() -> None:
    dice = random.Random(30)
    async with (
        serving(hostile.stream_for_ever) as upstream,
        serving(hostile.healthy) as other,
        pooled(max_connections=20) as pool,
    ):

        async def leave(number: int) -> None:
            response = await send(pool, upstream.origin, seconds=60)
            for _ in range(dice.randrange(3)):
                assert await response.read(time.monotonic() + 5)
            response.close()

        calls = [asyncio.create_task(leave(number)) for number in range(200)]
        for call in dice.sample(calls, 60):
            await asyncio.sleep(0.002)
            call.cancel()
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert all(end is None or isinstance(end, asyncio.CancelledError) for end in ends)
        assert (pool.active, pool.waiting, pool.idle) == (0, 0, 0)
        await until(lambda: upstream.open == 0)
        assert await asyncio.gather(*(ask(pool, other.origin) for _ in range(40))) == [b"{}"] * 40


@both_loops
async def test_the_pool_survives_a_provider_that_swallows_connects_while_it_is_full() -> None:
    with black_hole() as (listener, fillers):
        origin = Origin("http", "127.0.0.1", listener.getsockname()[1])
        async with serving(hostile.healthy) as other, pooled(max_connections=4) as pool:

            async def call(number: int) -> str:
                connect = 0.01 * (1 + number % 5)
                with pytest.raises(UpstreamError) as caught:
                    await pool.send(
                        origin, b"GET / HTTP/1.1\r\n\r\n", b"", connect_seconds=connect, deadline=time.monotonic() + 0.3
                    )
                assert not caught.value.sent
                return caught.value.error_type

            kinds = await asyncio.gather(*(call(number) for number in range(120)))
            assert set(kinds) <= {"provider_unreachable", "provider_overloaded", "provider_timeout"}
            assert {"provider_unreachable", "provider_overloaded"} <= set(kinds)
            assert (pool.active, pool.waiting) == (0, 0)
            assert await ask(pool, other.origin) == b"{}"

            for filler in fillers:
                filler.close()
            listener.listen(100)
            async with serving(hostile.healthy, listener=listener) as upstream:
                answers = [ask(pool, upstream.origin._replace(port=origin.port)) for _ in range(40)]
                assert await asyncio.gather(*answers) == [b"{}"] * 40
                assert pool.active == 0


@both_loops
async def test_a_caller_cancelled_while_it_connects_leaves_nothing_behind() -> None:
    with black_hole() as (listener, _):
        origin = Origin("http", "127.0.0.1", listener.getsockname()[1])
        async with pooled(max_connections=3) as pool:
            calls = [asyncio.create_task(send(pool, origin, seconds=60)) for _ in range(6)]
            await until(lambda: pool.active == 3 and pool.waiting == 3)
            for call in calls:
                call.cancel()
            ends = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(end, asyncio.CancelledError) for end in ends)
            assert (pool.active, pool.waiting) == (0, 0)


@both_loops
async def test_chaos_never_costs_a_place() -> None:
    dice = random.Random(49)
    behaviours = [
        hostile.healthy,
        hostile.never_answer,
        hostile.reset_before_first_byte,
        hostile.die_on_the_second,
        hostile.stream_for_ever,
        answering(CHUNKED, b"5\r\nhel"),
        answering(b"garbage"),
    ]

    async def behave(peer: Peer) -> None:
        await dice.choice(behaviours)(peer)

    async with serving(behave) as upstream, serving(hostile.healthy) as other, pooled(max_connections=8) as pool:

        async def call() -> None:
            try:
                response = await send(pool, upstream.origin, seconds=0.2)
                if dice.random() < 0.3:
                    response.close()
                elif dice.random() < 0.3:
                    response.release()
                else:
                    await response.read_all(time.monotonic() + 0.2)
            except UpstreamError:
                pass

        calls = [asyncio.create_task(call()) for _ in range(200)]
        for task in dice.sample(calls, 40):
            await asyncio.sleep(0.002)
            task.cancel()
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert all(end is None or isinstance(end, asyncio.CancelledError) for end in ends)
        await until(lambda: pool.active == 0)
        assert pool.waiting == 0
        assert await asyncio.gather(*(ask(pool, other.origin) for _ in range(20))) == [b"{}"] * 20


@both_loops
async def test_closing_the_pool_ends_everything_and_says_why() -> None:
    with black_hole() as (listener, _):
        async with (
            serving(hostile.never_answer) as silent,
            serving(answering(CHUNKED, then=hostile.stay)) as stalling,
            serving(hostile.healthy) as well,
        ):
            pool = Pool(max_connections=4)
            assert await ask(pool, well.origin) == b"{}"
            response = await send(pool, stalling.origin)
            left_over = await send(pool, stalling.origin)
            hole = Origin("http", "127.0.0.1", listener.getsockname()[1])
            waits = [
                asyncio.create_task(response.read(time.monotonic() + 60)),
                asyncio.create_task(send(pool, silent.origin)),
                asyncio.create_task(send(pool, hole)),
                asyncio.create_task(send(pool, well.origin)),
            ]
            await until(lambda: (pool.active, pool.waiting) == (4, 1) and bool(silent.requests))
            await pool.close()
            assert (pool.active, pool.waiting, pool.idle) == (0, 0, 0)
            errors = await asyncio.gather(*waits, return_exceptions=True)
            assert [getattr(error, "error_type", error) for error in errors] == ["provider_unreachable"] * 4
            assert [getattr(error, "sent", None) for error in errors] == [True, True, False, False]
            _, error = await read_in_pieces(left_over)
            assert error is not None
            with pytest.raises(UpstreamError, match="shutting down"):
                await send(pool, well.origin)
            await until(lambda: silent.open + stalling.open + well.open == 0)
            await pool.close()


@both_loops
async def test_names_are_looked_up_once_and_the_last_good_answer_outlives_a_dead_resolver() -> None:
    now, lookups, broken = 0.0, 0, False

    async def lookup(host: str) -> list[str]:
        nonlocal lookups
        lookups += 1
        await asyncio.sleep(0)
        if broken:
            raise socket.gaierror(socket.EAI_AGAIN, "try again")
        return ["127.0.0.1", "127.0.0.1"]

    resolver = Resolver(lambda: now, lookup)
    found = await asyncio.gather(*(resolver.resolve("api.example") for _ in range(20)))
    assert found == [("127.0.0.1",)] * 20
    assert lookups == 1
    now += FRESH_SECONDS - 1
    await resolver.resolve("api.example")
    assert lookups == 1
    now += 2
    broken = True
    assert await resolver.resolve("api.example") == ("127.0.0.1",)
    assert lookups == 2
    with pytest.raises(OSError, match="try again"):
        await resolver.resolve("other.example")
    broken = False
    for number in range(MAX_NAMES):
        await resolver.resolve(f"{number}.example")
    broken = True
    with pytest.raises(OSError, match="try again"):
        await resolver.resolve("api.example")


@both_loops
async def test_a_resolver_that_hangs_is_not_waited_for_when_an_old_answer_is_there() -> None:
    now = 0.0
    hang = asyncio.Event()

    async def lookup(host: str) -> list[str]:
        if now:
            await hang.wait()
        return ["127.0.0.1"] if host != "empty.example" else []

    resolver = Resolver(lambda: now, lookup)
    assert await resolver.resolve("api.example") == ("127.0.0.1",)
    with pytest.raises(OSError, match="no address"):
        await resolver.resolve("empty.example")
    now += FRESH_SECONDS
    assert await resolver.resolve("api.example") == ("127.0.0.1",)
    waiting = asyncio.create_task(resolver.resolve("new.example"))
    await asyncio.sleep(0)
    await resolver.close()
    with pytest.raises(OSError, match="called off"):
        await waiting


@both_loops
async def test_an_address_that_works_is_remembered_before_those_that_do_not() -> None:
    lookups = count()

    async def lookup(host: str) -> list[str]:
        next(lookups)
        return ["127.0.0.9", "127.0.0.1"]

    async with serving(hostile.healthy) as upstream:
        resolver = Resolver(time.monotonic, lookup)
        async with pooled(resolver=resolver) as pool:
            origin = upstream.origin._replace(host="api.example")
            assert await ask(pool, origin) == b"{}"
            assert await resolver.resolve("api.example") == ("127.0.0.1", "127.0.0.9")
            assert next(lookups) == 1


@both_loops
@pytest.mark.parametrize("host", ["nowhere.example", "a" * 300, "a..b", ""])
async def test_a_name_without_address_is_unreachable(host: str) -> None:
    async def lookup(host: str) -> list[str]:
        host.encode("idna")
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async with pooled(resolver=Resolver(time.monotonic, lookup)) as pool:
        with pytest.raises(UpstreamError, match="could not be resolved") as caught:
            await send(pool, Origin("http", host, 80))
        assert (caught.value.error_type, caught.value.sent) == ("provider_unreachable", False)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The certificate of an authority of our own, and a file with a server's chain and key for localhost."""
    folder = tmp_path_factory.mktemp("tls")
    now = datetime.datetime.now(datetime.UTC)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("Test authority", "localhost")]
    made = []
    for index, (key, name) in enumerate(zip(keys, names, strict=True)):
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(names[0])
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=index == 0, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(keys[0].public_key()), critical=False)
        )
        if index:
            alternatives = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.9"))]
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        made.append(builder.sign(keys[0], hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    (folder / "authority.pem").write_bytes(made[0])
    key_pem = keys[1].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "server.pem").write_bytes(made[1] + key_pem)
    return folder / "authority.pem", folder / "server.pem"


def server_context(authority: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority[1])
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


@both_loops
async def test_tls_is_served_and_kept_where_the_certificate_is_trusted(authority: tuple[Path, Path]) -> None:
    trusting = ssl.create_default_context(cafile=str(authority[0]))
    async with (
        serving(hostile.healthy, tls=server_context(authority)) as upstream,
        pooled(ssl_context=trusting) as pool,
    ):
        for _ in range(3):
            assert await ask(pool, upstream.origin, b"x" * 300_000) == b"{}"
        assert upstream.connections == 1


@both_loops
async def test_tls_streams_are_held_back_cut_and_closed_as_plain_ones(authority: tuple[Path, Path]) -> None:
    trusting = ssl.create_default_context(cafile=str(authority[0]))
    big = b"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n" + b"x" * 9_000_000
    async with (
        serving(hostile.keeping(big), tls=server_context(authority)) as upstream,
        serving(answering(CHUNKED, b"5\r\nhel"), tls=server_context(authority)) as cutting,
        serving(hostile.stream_for_ever, tls=server_context(authority)) as endless,
        pooled(ssl_context=trusting) as pool,
    ):
        response = await send(pool, upstream.origin)
        await asyncio.sleep(0.1)
        assert response.unread < 1_000_000
        assert len(await response.read_all(time.monotonic() + 20)) == 9_000_000
        _, error = await read_in_pieces(await send(pool, cutting.origin))
        assert error is not None and error.error_type == "provider_stream_cut"
        response = await send(pool, endless.origin)
        assert await response.read(time.monotonic() + 5)
        response.close()
        await until(lambda: endless.open == 0)


@both_loops
async def test_tls_is_refused_where_the_certificate_is_not_trusted_or_for_another_host(
    authority: tuple[Path, Path],
) -> None:
    trusting = ssl.create_default_context(cafile=str(authority[0]))
    async with serving(hostile.healthy, tls=server_context(authority)) as upstream:
        for context, host in ((None, "localhost"), (trusting, "127.0.0.1")):
            async with pooled(ssl_context=context) as pool:
                with pytest.raises(UpstreamError, match="TLS certificate that is not trusted") as caught:
                    await send(pool, upstream.origin._replace(host=host))
                assert (caught.value.error_type, caught.value.sent) == ("provider_unreachable", False)
        assert upstream.requests == []


@both_loops
async def test_tls_to_a_server_that_speaks_none_is_unreachable() -> None:
    for behaviour in (hostile.speak_first, hostile.never_read):
        async with serving(behaviour) as upstream, pooled() as pool:
            origin = upstream.origin._replace(scheme="https")
            with pytest.raises(UpstreamError) as caught:
                await pool.send(origin, b"", b"", connect_seconds=0.5, deadline=time.monotonic() + 5)
            assert (caught.value.error_type, caught.value.sent) == ("provider_unreachable", False)
