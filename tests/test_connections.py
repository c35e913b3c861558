"""The pool of connections, against providers that do everything wrong. Real sockets."""

from __future__ import annotations

import asyncio
import gzip
import random
import time
import zlib
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.errors import StreamTruncated, UpstreamError
from proxy.upstream.connections import Origin, Pool
from proxy.upstream.wire import Connection
from tests import hostile_upstream as hostile
from tests.calling import BODY, HEAD, ask, both_loops, head, pooled, read_in_pieces, send, until
from tests.hostile_upstream import CHUNKED, END, OK, Behaviour, answering, chunk, coded, keeping, serving

SPLIT = tuple(bytes([byte]) for byte in head(b"Content-Length: 5") + b"hello")
MANY = tuple(b"X-%d: y" % number for number in range(201))
WIDE = tuple(b"X-%d: %b" % (number, b"y" * 3000) for number in range(100))

WHOLE: list[tuple[str, Behaviour, bytes, bool]] = [
    ("content-length", keeping(head(b"Content-Length: 5") + b"hello"), b"hello", True),
    ("byte by byte", keeping(SPLIT), b"hello", True),
    ("chunked", keeping(CHUNKED + chunk(b"hel") + chunk(b"lo") + END), b"hello", True),
    ("trailers are ignored", keeping(CHUNKED + chunk(b"hello") + b"0\r\nX-T: y\r\n\r\n"), b"hello", True),
    ("chunk extensions are ignored", keeping(CHUNKED + b"5;a=b\r\nhello\r\n" + END), b"hello", True),
    ("an empty body", keeping(head(b"Content-Length: 0")), b"", True),
    ("204", keeping(head(status=b"HTTP/1.1 204 No Content")), b"", True),
    ("304 that announces a body", keeping(head(b"Content-Length: 9", status=b"HTTP/1.1 304 Not Modified")), b"", True),
    ("interim answers", keeping(head(status=b"HTTP/1.1 103 Early Hints") * 3 + OK), b"{}", True),
    ("200 headers", keeping(head(*MANY[:199], b"Content-Length: 2") + b"ok"), b"ok", True),
    ("identity coding", keeping(coded(b"hello", coding=b"identity")), b"hello", True),
    ("gzip, unasked", keeping(coded(gzip.compress(b"hello"))), b"hello", True),
    ("deflate, unasked", keeping(coded(zlib.compress(b"hello"), coding=b"Deflate")), b"hello", True),
    ("closed at the end", answering(head(), b"hello"), b"hello", False),
    ("connection: close", keeping(head(b"Connection: close", b"Content-Length: 5") + b"hello"), b"hello", False),
    ("HTTP/1.0", keeping(head(b"Content-Length: 2", status=b"HTTP/1.0 200 OK") + b"ok"), b"ok", False),
    (
        "HTTP/1.0 that would keep alive",
        keeping(head(b"Connection: keep-alive", b"Content-Length: 2", status=b"HTTP/1.0 200 OK") + b"ok"),
        b"ok",
        False,
    ),
    ("more than content-length", keeping(OK + b"extra"), b"{}", False),
    ("a second answer that nobody asked for", keeping(OK + OK), b"{}", False),
    ("the beginning of a second answer", keeping(OK + b"HTTP/1.1 2"), b"{}", False),
    ("more after the last chunk", keeping(CHUNKED + chunk(b"hello") + END + b"extra"), b"hello", False),
    ("an early refusal", hostile.refuse_early, b"big", False),
]


@pytest.mark.parametrize(("behaviour", "body", "kept"), [case[1:] for case in WHOLE], ids=[case[0] for case in WHOLE])
@both_loops
async def test_a_whole_answer_is_read_whole_and_its_connection_kept_only_if_nothing_is_amiss(
    behaviour: Behaviour, body: bytes, kept: bool
) -> None:
    upload = b"x" * 8_000_000 if behaviour is hostile.refuse_early else BODY
    async with serving(behaviour) as upstream, pooled() as pool:
        assert await ask(pool, upstream.origin, upload) == body
        assert pool.idle == kept
        response = await send(pool, upstream.origin, upload)
        assert response.reused == kept
        assert await read_in_pieces(response) == (body, None)


SPLITTABLE = [
    head(*MANY[:9], b"Content-Length: 5") + b"hello",
    CHUNKED + chunk(b"hel") + chunk(b"lo" * 50) + b"0\r\nX-T: y\r\n\r\n",
    head(status=b"HTTP/1.1 100 Continue") * 3 + head(b"Connection: close", b"Content-Length: 2") + b"{}",
    head(b"Transfer-Encoding: identity") + b"hello",
    head(b"X: y") + b"hello" * 20,
    CHUNKED + chunk(b"hello") + b"zz\r\n",
    coded(gzip.compress(random.Random(2).randbytes(200), mtime=0)),
    coded(gzip.compress(b"hello" * 20, mtime=0)[:-3]),
    CHUNKED + chunk(b"x" * 250) * 4 + chunk(b"x") + END,
    OK + b"HTTP/1.1 200 OK",
]


class Wire(asyncio.Transport):
    """A transport without a socket."""

    aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None:
        self.aborted = True


BAD, CUT, LARGE = "provider_bad_response", "provider_stream_cut", "upstream_response_too_large"
BROKEN: list[tuple[str, Behaviour, str, bytes]] = [
    ("content-length too long", answering(head(b"Content-Length: 9"), b"hello"), CUT, b"hello"),
    ("a chunk cut", answering(CHUNKED, b"9\r\nhello"), CUT, b"hello"),
    ("no last chunk", answering(CHUNKED, chunk(b"hello")), CUT, b"hello"),
    ("no end of the trailers", answering(CHUNKED, chunk(b"hello"), b"0\r\n"), CUT, b"hello"),
    ("reset in the body", answering(CHUNKED, chunk(b"hello"), pause_seconds=0.05, then=hostile.reset), CUT, b"hello"),
    ("reset, no length", answering(head(), b"hello", pause_seconds=0.05, then=hostile.reset), CUT, b"hello"),
    ("a bad chunk size", answering(CHUNKED, chunk(b"hello"), b"zz\r\n", then=hostile.stay), BAD, b"hello"),
    ("gzip cut", answering(coded(gzip.compress(b"hello" * 9)[:-9]), then=hostile.stay), CUT, b"hello" * 9),
    ("not gzip", answering(coded(b"not gzip at all"), then=hostile.stay), BAD, b""),
    ("a gzip bomb", answering(hostile.gzip_bomb(), then=hostile.stay), BAD, b""),
    ("trailers without end", hostile.flood_trailers, BAD, b"x"),
    ("a chunk extension without end", hostile.flood_chunk_extension, BAD, b""),
]  # fmt: skip


@pytest.mark.parametrize(("behaviour", "error_type", "got"), [c[1:] for c in BROKEN], ids=[c[0] for c in BROKEN])
@both_loops
async def test_a_broken_body_gives_what_came_and_then_its_error(
    behaviour: Behaviour, error_type: str, got: bytes
) -> None:
    async with serving(behaviour) as upstream, serving(hostile.healthy) as other, pooled() as pool:
        response = await send(pool, upstream.origin)
        assert response.status == 200
        data, error = await read_in_pieces(response)
        assert error is not None
        assert error.error_type == error_type
        assert isinstance(error, StreamTruncated) == (error_type == CUT)
        assert error.sent and error.status == 502
        assert got.startswith(data), "what had not been read when it broke may be lost, nothing is made up"
        assert pool.idle == 0
        with pytest.raises(UpstreamError):
            await (await send(pool, upstream.origin)).read_all(time.monotonic() + 5)
        assert await ask(pool, other.origin) == b"{}"


REFUSED: list[tuple[str, Behaviour]] = [
    ("not HTTP", answering(b"220 mail.example.com ESMTP\r\n", then=hostile.stay)),
    ("HTML without a head", answering(b"<html>Bad gateway</html>", then=hostile.stay)),
    ("an HTTP/2 preface", answering(b"\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0d", then=hostile.stay)),
    ("one header of 300 KB", answering(head(b"X: " + b"y" * 300_000, b"Content-Length: 2") + b"ok", then=hostile.stay)),
    ("300 KB of headers", answering(head(*WIDE, b"Content-Length: 2") + b"ok", then=hostile.stay)),
    ("a header without end", hostile.flood_header),
    ("201 headers", answering(head(*MANY, b"Content-Length: 2") + b"ok", then=hostile.stay)),
    ("interim answers without end", hostile.flood_interim),
    ("101", answering(head(b"Connection: Upgrade", b"Upgrade: x", status=b"HTTP/1.1 101 S"), then=hostile.stay)),
    ("101 without a word of an upgrade", answering(head(status=b"HTTP/1.1 101 S"), then=hostile.stay)),
    ("a status below 100", answering(head(status=b"HTTP/1.1 099 S"), then=hostile.stay)),
    ("two lengths", answering(head(b"Content-Length: 2", b"Content-Length: 3") + b"ok!", then=hostile.stay)),
    ("length and chunks", answering(head(b"Content-Length: 5", b"Transfer-Encoding: chunked"), END)),
    ("a transfer coding", answering(head(b"Transfer-Encoding: gzip, chunked") + END, then=hostile.stay)),
    ("brotli", answering(coded(b"hello", coding=b"br"), then=hostile.stay)),
    ("a folded header", answering(head(b"X: y", b" z", b"Content-Length: 2") + b"ok", then=hostile.stay)),
    ("closed before the first byte", answering()),
    ("reset before the first byte", hostile.reset_before_first_byte),
    ("closed in the head", answering(b"HTTP/1.1 200 OK\r\nContent-")),
]  # fmt: skip


@pytest.mark.parametrize("behaviour", [case[1] for case in REFUSED], ids=[case[0] for case in REFUSED])
@both_loops
async def test_what_is_no_answer_is_an_error_that_says_where_and_keeps_secrets(behaviour: Behaviour) -> None:
    async with serving(behaviour) as upstream, serving(hostile.healthy) as other, pooled() as pool:
        with pytest.raises(UpstreamError) as caught:
            await send(pool, upstream.origin)
        error = caught.value
        assert (error.error_type, error.status, error.sent) == (BAD, 502, True)
        assert f"127.0.0.1:{upstream.origin.port}" in error.message
        assert "secret" not in error.message
        assert upstream.connections == 1, "nothing that may have been billed is sent twice"
        assert pool.idle == 0
        assert await ask(pool, other.origin) == b"{}"


@pytest.mark.parametrize("answer", SPLITTABLE, ids=range(len(SPLITTABLE)))
@given(cuts=st.lists(st.integers(0, 400), max_size=12))
@settings(max_examples=60)
def test_any_split_of_an_answer_is_the_same_answer(answer: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(answer)) for cut in cuts), len(answer)]
    pieces = [answer[a:b] for a, b in pairwise(edges)]

    async def outcome(*pieces: bytes) -> tuple[object, ...]:
        pool = Pool()
        transport = Wire()
        connection = Connection(pool, Origin("http", "x", 80), 1000, asyncio.get_running_loop())
        connection.connection_made(transport)
        response = connection.begin(HEAD % 0, b"", reused=False)
        for piece in pieces:
            if piece and not transport.aborted:
                connection.data_received(piece)
        kept = not transport.aborted
        connection.connection_lost(None)
        got, error = await read_in_pieces(response)
        code = error.code if error else None
        return response.status, response.headers, got if code is None else b"", code, kept

    whole = asyncio.run(outcome(answer))
    assert asyncio.run(outcome(*pieces)) == whole


@both_loops
async def test_the_request_arrives_as_given_and_nothing_of_an_answer_comes_back_with_the_next_one() -> None:
    answer = head(
        b"Set-Cookie: tenant=a", b"Location: http://127.0.0.1:1/", b"Content-Length: 2", status=b"HTTP/1.1 302 Found"
    )
    async with serving(keeping(answer + b"{}")) as upstream, pooled() as pool:
        for _ in range(2):
            response = await send(pool, upstream.origin)
            assert response.status == 302
            assert await response.read_all(time.monotonic() + 5) == b"{}"
        assert upstream.requests == [HEAD % len(BODY) + BODY] * 2


@both_loops
async def test_a_response_tells_its_head() -> None:
    answer = head(b"X-Twice: a", b"X-TWICE: b", b"Content-Length: 2", b"Retry-After:  7 ", status=b"HTTP/1.1 429 Slow")
    async with serving(keeping(answer + b"{}")) as upstream, pooled() as pool:
        first = await send(pool, upstream.origin)
        assert (first.status, first.delimited, first.reused) == (429, True, False)
        assert first.headers == {"x-twice": "b", "content-length": "2", "retry-after": "7"}
        second = await send(pool, upstream.origin)
        assert (second.reused, upstream.connections) == (True, 1)


@both_loops
async def test_an_end_that_proves_nothing_says_so() -> None:
    async with serving(answering(head(), b"data: {}\n\n")) as upstream, pooled() as pool:
        response = await send(pool, upstream.origin)
        assert response.delimited is False
        assert await response.read_all(time.monotonic() + 5) == b"data: {}\n\n"


@both_loops
async def test_head_requests_have_no_body_whatever_their_answer_announces() -> None:
    async with serving(answering(head(b"Content-Length: 99"), then=hostile.stay)) as upstream, pooled() as pool:
        response = await send(pool, upstream.origin, b"", head=b"HEAD / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert await response.read_all(time.monotonic() + 5) == b""
        assert response.headers["content-length"] == "99"
        assert pool.idle == 0


@pytest.mark.parametrize("behaviour", [hostile.die_on_the_second, hostile.reset_on_the_second])
@both_loops
async def test_a_kept_connection_found_dead_is_replaced_by_a_fresh_one(behaviour: Behaviour) -> None:
    async with serving(behaviour) as upstream, pooled() as pool:
        for _ in range(4):
            assert await ask(pool, upstream.origin) == b"{}"
        assert upstream.connections >= 2


@both_loops
async def test_a_dead_connection_is_replaced_only_once() -> None:
    async def behave(peer: hostile.Peer) -> None:
        if peer.number == 1:
            await hostile.die_on_the_second(peer)
        else:
            await peer.request()

    async with serving(behave) as upstream, pooled() as pool:
        assert await ask(pool, upstream.origin) == b"{}"
        with pytest.raises(UpstreamError) as caught:
            await send(pool, upstream.origin)
        assert caught.value.code == "upstream_disconnected"
        assert caught.value.sent
        assert upstream.connections == 2


@both_loops
async def test_a_kept_connection_that_dies_within_its_answer_is_not_replaced() -> None:
    async with serving(hostile.die_in_the_second_head) as upstream, pooled() as pool:
        assert await ask(pool, upstream.origin) == b"{}"
        with pytest.raises(UpstreamError, match="closed the connection before it answered"):
            await send(pool, upstream.origin)
        assert upstream.connections == 1


@both_loops
async def test_a_kept_connection_that_is_closed_or_speaks_out_of_turn_is_dropped_at_once() -> None:
    async with (
        serving(answering(OK)) as closes,
        serving(answering(OK, pause_seconds=0.1, then=lambda peer: peer.send(OK, pause_seconds=9))) as speaks,
        pooled() as pool,
    ):
        for upstream in (closes, speaks):
            response = await send(pool, upstream.origin)
            assert await response.read_all(time.monotonic() + 5) == b"{}"
            assert pool.idle == 1 or upstream is closes
            await until(lambda: pool.idle == 0)


@both_loops
async def test_kept_connections_are_closed_when_nobody_used_them_for_a_while() -> None:
    async with serving(hostile.healthy) as upstream, pooled(idle_seconds=0.3) as pool:
        await asyncio.gather(*(ask(pool, upstream.origin) for _ in range(5)))
        assert 1 <= pool.idle <= 5
        await until(lambda: upstream.open == 0)
        assert pool.idle == 0
        assert await ask(pool, upstream.origin) == b"{}"


@both_loops
async def test_the_newest_kept_connection_is_used_first() -> None:
    async with serving(hostile.healthy) as upstream, pooled() as pool:
        await asyncio.gather(*(ask(pool, upstream.origin) for _ in range(5)))
        opened = upstream.connections
        for _ in range(5):
            assert (await send(pool, upstream.origin)).reused
        assert upstream.connections == opened


@both_loops
async def test_a_silent_provider_is_a_timeout_and_may_have_been_billed() -> None:
    for behaviour in (hostile.never_answer, hostile.never_read):
        async with serving(behaviour) as upstream, pooled() as pool:
            with pytest.raises(UpstreamError) as caught:
                await send(pool, upstream.origin, seconds=0.1)
            error = caught.value
            assert (error.status, error.error_type, error.sent) == (504, "provider_timeout", True)


@both_loops
async def test_a_stream_that_stalls_is_a_timeout_after_what_it_said() -> None:
    async with serving(answering(CHUNKED, chunk(b"hello"), then=hostile.stay)) as upstream, pooled() as pool:
        data, error = await read_in_pieces(await send(pool, upstream.origin), seconds=0.3)
        assert data == b"hello"
        assert error is not None
        assert (error.status, error.error_type, error.sent) == (504, "provider_timeout", True)
        await until(lambda: upstream.open == 0)


@both_loops
async def test_a_trickle_cannot_outlast_the_deadline_of_the_whole() -> None:
    async with serving(hostile.ping_for_ever) as upstream, pooled() as pool:
        response = await send(pool, upstream.origin)
        with pytest.raises(UpstreamError) as caught:
            await response.read_all(time.monotonic() + 0.3)
        assert caught.value.error_type == "provider_timeout"


@both_loops
async def test_hasten_brings_a_waiting_read_forward() -> None:
    async with serving(answering(CHUNKED, then=hostile.stay)) as upstream, pooled() as pool:
        response = await send(pool, upstream.origin)
        reading = asyncio.create_task(response.read(time.monotonic() + 3600))
        await asyncio.sleep(0)
        response.hasten(time.monotonic())
        with pytest.raises(UpstreamError, match="stopped sending"):
            await reading


@pytest.mark.parametrize("size", [100_001, 100_000])
@both_loops
async def test_an_answer_above_the_limit_is_refused_however_it_is_read(size: int) -> None:
    for answer in (head(b"Content-Length: %d" % size) + b"x" * size, CHUNKED + chunk(b"x" * size) + END):
        async with (
            serving(answering(answer, then=hostile.stay)) as upstream,
            pooled(max_response_bytes=100_000) as pool,
        ):
            if size > 100_000:
                with pytest.raises(UpstreamError) as caught:
                    await ask(pool, upstream.origin)
                assert caught.value.code == LARGE
                assert caught.value.error_type == BAD
                _, error = await read_in_pieces(await send(pool, upstream.origin))
                assert error is not None and error.code == LARGE
            else:
                assert len(await ask(pool, upstream.origin)) == size


@both_loops
async def test_compressed_answers_are_limited_by_what_they_become() -> None:
    answer = coded(gzip.compress(b"0123456789" * 50_000))
    async with serving(keeping(answer)) as upstream:
        async with pooled(max_response_bytes=100_000) as pool:
            with pytest.raises(UpstreamError) as caught:
                await ask(pool, upstream.origin)
            assert caught.value.code == LARGE
        async with pooled() as pool:
            assert await ask(pool, upstream.origin) == b"0123456789" * 50_000


@both_loops
async def test_a_reader_that_pauses_holds_the_provider_back_and_loses_nothing() -> None:
    total, sent = 60_000_000, 0

    async def behave(peer: hostile.Peer) -> None:
        nonlocal sent
        await peer.request()
        await peer.send(head(b"Content-Length: %d" % total))
        while sent < total:
            await peer.send(b"x" * 100_000)
            sent += 100_000
        await hostile.stay(peer)

    async with serving(behave) as upstream, pooled() as pool:
        response = await send(pool, upstream.origin)
        await asyncio.sleep(0.3)
        assert sent < total / 2, "the socket's buffers are full and ours is bounded"
        assert response.unread < 1_000_000
        got = len(await response.read(time.monotonic() + 5))
        got += len(await response.read_all(time.monotonic() + 30))
        assert got == total
        assert pool.idle == 1


@both_loops
async def test_large_requests_arrive_whole() -> None:
    async with serving(hostile.healthy) as upstream, pooled() as pool:
        body = random.Random(1).randbytes(3_000_000)
        assert await ask(pool, upstream.origin, body) == b"{}"
        assert upstream.requests[0].endswith(body)


@both_loops
async def test_a_released_stream_keeps_its_connection_if_it_ends_at_once() -> None:
    async def behave(peer: hostile.Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + chunk(b"data: [DONE]\n\n"), pause_seconds=0.1)
        await peer.send(chunk(b": bye\n\n"), END, pause_seconds=0.05)
        await hostile.healthy(peer)

    async with serving(behave) as upstream, pooled() as pool:
        response = await send(pool, upstream.origin)
        assert await response.read(time.monotonic() + 5) == b"data: [DONE]\n\n"
        response.release()
        await until(lambda: pool.idle == 1)
        response.release()
        assert await ask(pool, upstream.origin) == b"{}"
        assert upstream.connections == 1


@pytest.mark.parametrize(
    "behaviour",
    [
        answering(CHUNKED, chunk(b"data: [DONE]\n\n"), then=hostile.stay),
        answering(CHUNKED, chunk(b"x" * 900_000), chunk(b"y" * 9_000_000), then=hostile.stay),
        answering(head(), b"data: [DONE]\n\n", then=hostile.stay),
        hostile.stream_for_ever,
    ],
    ids=["never ends", "too much", "not delimited", "goes on"],
)
@both_loops
async def test_a_released_stream_that_does_not_end_is_closed(behaviour: Behaviour) -> None:
    async with serving(behaviour) as upstream, pooled() as pool:
        response = await send(pool, upstream.origin)
        assert await response.read(time.monotonic() + 5)
        response.release()
        await until(lambda: upstream.open == 0)
        assert pool.idle == 0


@both_loops
async def test_closing_a_response_ends_its_connection_and_the_read_that_waits() -> None:
    async with serving(answering(CHUNKED, then=hostile.stay)) as upstream, pooled() as pool:
        response = await send(pool, upstream.origin)
        reading = asyncio.create_task(response.read(time.monotonic() + 3600))
        await asyncio.sleep(0)
        response.close()
        response.close()
        with pytest.raises(StreamTruncated, match="hung up"):
            await reading
        await until(lambda: upstream.open == 0)


@both_loops
async def test_an_answer_that_nobody_reads_or_closes_is_taken_back_in_the_end() -> None:
    now = 1000.0
    async with (
        serving(answering(CHUNKED, chunk(b"hello"), then=hostile.stay)) as upstream,
        pooled(clock=lambda: now) as pool,
    ):
        await pool.send(upstream.origin, HEAD % 0, b"", connect_seconds=2.0, deadline=1010.0)
        now = 1600.0
        await asyncio.sleep(0.6)
        assert pool.active == 1, "its reader may only be slow"
        now = 1700.0
        await until(lambda: pool.active == 0)


@both_loops
async def test_cancelled_callers_take_their_connection_with_them_and_no_place() -> None:
    async with (
        serving(hostile.never_answer) as silent,
        serving(answering(CHUNKED, then=hostile.stay)) as stalling,
        pooled(max_connections=2) as pool,
    ):
        for origin in (silent.origin, stalling.origin):
            asking = [asyncio.create_task(ask(pool, origin, seconds=60)) for _ in range(5)]
            await until(lambda: pool.active == 2 and pool.waiting == 3)
            for task in asking:
                task.cancel()
            done = await asyncio.gather(*asking, return_exceptions=True)
            assert all(isinstance(result, asyncio.CancelledError) for result in done)
            await until(lambda: silent.open + stalling.open == 0)
            assert (pool.active, pool.waiting) == (0, 0)
        reading = asyncio.create_task((await send(pool, stalling.origin)).read(time.monotonic() + 60))
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading


@both_loops
async def test_a_caller_cancelled_in_the_moment_of_its_turn_passes_the_turn_on() -> None:
    async with (
        serving(answering(CHUNKED, then=hostile.stay)) as stalling,
        serving(hostile.healthy) as upstream,
        pooled(max_connections=1) as pool,
    ):
        holder = await send(pool, stalling.origin)
        second = asyncio.create_task(ask(pool, upstream.origin))
        third = asyncio.create_task(ask(pool, upstream.origin))
        await until(lambda: pool.waiting == 2)
        holder.close()  # calls the second, which is cancelled before it can run
        second.cancel()
        assert await third == b"{}"
        with pytest.raises(asyncio.CancelledError):
            await second
