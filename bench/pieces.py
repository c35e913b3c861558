"""
`python -m bench.pieces`: what single pieces of the path cost, in this process alone: a price, a ceiling, the digest of
a key, a turn at its limits, a request in the metrics and their page, a trace, and for each API a request translated, an
answer and a chunk translated back.

The least of several repeats counts: everything above it is the machine's noise. Requests and answers are the golden
cases of the tests.
"""

from __future__ import annotations

import itertools
import os
import re
import time
import timeit
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from proxy.admission.keys import digest, new_key
from proxy.admission.limits import Limits, Standing
from proxy.admission.turns import Turn, Turns, wanted_tokens
from proxy.config import Config, Deployment, Model, Provider
from proxy.config import Metrics as MetricsConfig
from proxy.config import Traces as TraceSettings
from proxy.dialects.openai import Envelope, stamp_completion
from proxy.edge.replies import limit_lines
from proxy.errors import GatewayError, UpstreamError
from proxy.exchange import Attempt, Caller, Exchange, Limit, Usage
from proxy.metering.price_lines import price_of
from proxy.metering.prices import PriceBook
from proxy.providers import ChatRequest
from proxy.telemetry.logs import RequestLog
from proxy.telemetry.metrics import Metrics
from proxy.telemetry.spans import spans_of
from proxy.telemetry.traceparent import header_line
from proxy.telemetry.traces import Traces
from proxy.upstream.answers import FRAMINGS
from proxy.upstream.readers import TranslatedReader
from tests.golden import CASES, Case

REPEATS = 7
SECONDS = 0.02
LONG = 200
"""Chunks of text in a long stream."""
TEXT = re.compile(rb'"content":"[^"]')
ENDPOINTS = ("chat", "completions", "embeddings", "messages")
OUTCOMES = ("", "provider_error", "provider_timeout", "provider_stream_cut", "caller_cancelled")
NOW_MS = 1_790_000_000_000
OPENAI = Deployment(provider=Provider(name="openai", api_base="https://api.openai.com/v1"), model="gpt-5-mini")


class Piece(NamedTuple):
    name: str
    microseconds: float
    note: str = ""


def cost_us(work: Callable[[], object]) -> float:
    """Microseconds a call, the least of several repeats."""
    timer = timeit.Timer(work)
    once = max(timer.timeit(1), 1e-7)
    number = max(1, int(SECONDS / once))
    return min(timer.repeat(REPEATS, number)) / number * 1e6


def money() -> Iterator[Piece]:
    book = PriceBook()
    usage = Usage(input=800, cache_read=200, output=300, reasoning=100)
    line = book.current_lines(OPENAI)[""][0]
    yield Piece("a price, its line known", cost_us(lambda: price_of(line, usage)))
    yield Piece("a price, by deployment", cost_us(lambda: book.cost(OPENAI, usage, NOW_MS)))
    yield Piece("a ceiling", cost_us(lambda: book.ceiling(OPENAI, 1000, 4096)))
    key, pepper = new_key().encode(), b"p" * 32
    yield Piece("the digest of a key", cost_us(lambda: digest(key, pepper)))


def limits() -> Iterator[Piece]:
    """A request's turn: taken, and given back with what it used."""
    chat: ChatRequest = {"model": "fast", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 100}
    done = Exchange(bytes(16), "req_1", "chat", 0, 0, attempts=[Attempt(1, OPENAI, 0, usage=Usage(20, output=30))])
    for name, own in (
        ("requests", Limit("key:k", "key", rpm=6 * 10**7)),
        ("requests, tokens, parallel", Limit("key:k", "key", 6 * 10**7, 10**9, 10**9)),
    ):
        turns, caller = Turns(Limits()), Caller("k", "ci", "sk-strata-…", limits=(own,))

        def take(turns: Turns = turns, caller: Caller = caller) -> Turn | None:
            bound = turns.binding(caller, "fast", "fast")
            return turns.take_now(caller, bound, "fast", "fast", wanted_tokens(chat, 200))

        def whole(take: Callable[[], Turn | None] = take) -> None:
            turn = take()
            assert turn is not None
            limit_lines(turn.standing() or Standing())
            turn.end(done)

        yield Piece(f"limits: {name}", cost_us(take), "a turn taken")
        yield Piece(f"limits: {name}", cost_us(whole), "taken, told in headers, ended")


def metrics() -> Iterator[Piece]:
    """What a request costs to count, and for how long a scrape of the reference site holds the event loop at once."""
    site = reference_site()
    kept = Metrics(site)
    done = _served(site, "model-0", 0, "chat", "")

    def count() -> None:
        kept.request_started("chat")
        kept.record_attempt(done, done.attempts[0])
        kept.record(done)
        kept.request_ended("chat")

    yield Piece("metrics: a stream counted", cost_us(count), "begun, its attempt, its end")
    with Path(os.devnull).open("w") as nowhere:
        log = RequestLog(nowhere)
        yield Piece("log: a line", cost_us(lambda: log.access(done)), "written at once; many together are cheaper")
    for endpoint, name, at, error_type in itertools.product(ENDPOINTS, site.models, (0, 1), OUTCOMES):
        done = _served(site, name, at, endpoint, error_type)
        kept.record_attempt(done, done.attempts[0])
        kept.record(done)
    for at in range(500):
        done.caller = Caller(f"k{at}", f"key-{at}", "sk-strata-…")
        kept.record_attempt(done, done.attempts[0])
        kept.record(done)
    for name, accept in (("text", ""), ("OpenMetrics", "application/openmetrics-text")):
        first = _longest_slice_us(kept, accept)
        lines = sum(part.count(b"\n") for part in kept.pages(accept)[0])
        longest = min(_longest_slice_us(kept, accept) for _ in range(REPEATS))
        note = f"{lines} lines; the longest slice {longest:.0f} µs, of the first page {first:.0f} µs"
        yield Piece(f"metrics: a page as {name}", cost_us(partial(_whole_page, kept, accept)), note)


def reference_site() -> Config:
    """Twenty models, each on two of thirty deployments' providers, and five hundred keys."""
    providers = {f"p{at}": Provider(name=f"p{at}", api_base="http://127.0.0.1:1") for at in range(15)}
    models = {}
    for at in range(20):
        pair = (providers[f"p{at % 15}"], providers[f"p{(at + 7) % 15}"])
        deployments = tuple(Deployment(provider=one, model=f"m{at}") for one in pair)
        models[f"model-{at}"] = Model(name=f"model-{at}", deployments=deployments)
    return Config(providers=providers, models=models, metrics=MetricsConfig(max_keys=500))


def _served(site: Config, name: str, at: int, endpoint: str, error_type: str) -> Exchange:
    model = site.models[name]
    usage = Usage(800, cache_read=200, output=300, reasoning=100)
    attempt = Attempt(1, model.deployments[at], 0, outcome=error_type or "ok", usage=usage, price_state="priced")
    attempt.first_event_ns, attempt.ended_ns = 350_000_000, 900_000_000
    exchange = Exchange(bytes(16), "req_0123456789abcdef0123", endpoint, NOW_MS, 0, model=name, resolved=model)
    exchange.attempts, exchange.status, exchange.stream = [attempt], 502 if error_type else 200, True
    exchange.error = UpstreamError("x", error_type=error_type) if error_type else None
    exchange.caller = Caller("k", "ci", "sk-strata-…")
    return exchange


def _whole_page(kept: Metrics, accept: str) -> list[bytes]:
    return list(kept.pages(accept)[0])


def _longest_slice_us(kept: Metrics, accept: str) -> float:
    longest, began = 0, time.thread_time_ns()
    for _ in kept.pages(accept)[0]:
        ended = time.thread_time_ns()
        longest, began = max(longest, ended - began), ended
    return longest / 1e3


def traces() -> Iterator[Piece]:
    """On the event loop; encoding and sending are a thread's."""
    begin = Traces(TraceSettings(endpoint="http://127.0.0.1:9", sample=0)).begin
    assert begin is not None
    trace = begin(b"")
    assert trace is not None
    done = Attempt(1, OPENAI, 3, outcome="ok", status=200, usage=Usage(20, output=30), ended_ns=4)
    exchange = Exchange(bytes(16), "req_1", "chat", 0, 0, model="fast", attempts=[done], trace=trace)
    trace.admitted_ns, trace.limited_ns = 1, 2
    yield Piece("traces: begun", cost_us(lambda: begin(b"")))
    yield Piece("traces: told to a provider", cost_us(lambda: header_line(trace, 1)))
    yield Piece("traces: spans of a request", cost_us(lambda: spans_of(exchange, trace, 5, str)), "if it is sampled")


def translation(api: str, cases: list[Case]) -> Iterator[Piece]:
    """What the translator of one API costs, over its golden cases that end well."""
    requests = [cost_us(work) for work in filter(None, map(_encoding, cases))]
    answers = [cost_us(work) for work in filter(None, map(_decoding, cases))]
    for name, spent in (("a request", requests), ("a whole answer", answers)):
        if spent:
            yield Piece(f"{api}: {name}", sum(spent) / len(spent), f"{len(spent)} cases, the dearest {max(spent):.1f}")
    chunks = [spent for spent in map(_a_chunk_us, cases) if spent is not None]
    if chunks:
        yield Piece(f"{api}: a chunk of text", min(chunks), f"{len(chunks)} streams, the dearest {max(chunks):.1f}")


def _encoding(case: Case) -> Callable[[], object] | None:
    translator, chat, target = case.translator, case.client_request, case.target
    return _if_good(lambda: translator.encode_request(chat, target))


def _decoding(case: Case) -> Callable[[], object] | None:
    path = case.folder / "3_upstream_response.json"
    if not path.exists():
        return None
    translator, body = case.translator, path.read_bytes()

    def decode() -> bytes:
        completion = translator.decode_response(body)
        return stamp_completion(completion, id="chatcmpl-1", created=1, model="m", cost=0.1, notices=())

    return _if_good(decode)


def _a_chunk_us(case: Case) -> float | None:
    """What one more chunk of text costs a stream that is long already: from a framed event to the client's bytes."""
    stream = case.stream
    if stream is None:
        return None
    translator = case.translator
    framing = FRAMINGS[translator.framing]()
    arrived = [*framing.feed(stream), *framing.close()]

    def reader() -> TranslatedReader:
        envelope = Envelope(id="chatcmpl-1", created=1, model="m")
        attempt = Attempt(1, OPENAI, 0)
        return TranslatedReader(translator.stream_decoder(), attempt, envelope, True, lambda details, calls: None)

    trial = reader()
    try:
        shown = [trial.feed(event) for event in arrived]
    except GatewayError:
        return None
    text = next((at for at, data in enumerate(shown) if TEXT.search(data) and b'finish_reason":"' not in data), None)
    if text is None:
        return None

    def decode(times: int) -> Callable[[], object]:
        events = [*arrived[: text + 1], *[arrived[text]] * times]

        def work() -> bytes:
            made = reader()
            return b"".join([made.feed(event) for event in events])

        return work

    return (cost_us(decode(LONG)) - cost_us(decode(0))) / LONG


def _if_good(work: Callable[[], object]) -> Callable[[], object] | None:
    """None for a case that is about an error."""
    try:
        work()
    except GatewayError:
        return None
    return work


def main() -> None:
    by_api: dict[str, list[Case]] = {}
    for case in CASES:
        by_api.setdefault(case.api, []).append(case)
    for piece in [
        *money(),
        *limits(),
        *metrics(),
        *traces(),
        *(piece for api, cases in by_api.items() for piece in translation(api, cases)),
    ]:
        print(f"{piece.name:32} {piece.microseconds:8.2f} µs   {piece.note}".rstrip())


if __name__ == "__main__":
    main()
