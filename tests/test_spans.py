"""The header that carries a trace, and the spans of requests that went one way or another; no SDK is needed here."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config import Deployment, Provider
from proxy.config import Traces as Settings
from proxy.config.presets import PRESETS, genai_name
from proxy.edge.heads import read_head
from proxy.errors import CallerError, PolicyError, UpstreamError
from proxy.exchange import Attempt, Caller, Exchange, OwnKey, Trace, Usage
from proxy.telemetry import traceparent
from proxy.telemetry.logs import mask
from proxy.telemetry.spans import MAX_CONTENT_CHARS, PLAN, Span, spans_of
from proxy.telemetry.traces import Traces

TRACE = Trace(1 << 100, 1 << 50, 7, True, admitted_ns=1_100, limited_ns=1_200)
STARTED_MS = 1_700_000_000_000
SHIFT_NS = STARTED_MS * 1_000_000 - 1_000
ids = st.integers(1, (1 << 64) - 1)


def deployment(name: str = "p", api: str = "openai") -> Deployment:
    return Deployment(provider=Provider(name=name, api=api, api_base="https://api.example.com/v1"), model="m")


def attempt(number: int = 1, **fields: Any) -> Attempt:
    return Attempt(number, deployment(), 1_000 + 300 * number, **{"ended_ns": 1_200 + 300 * number, **fields})


def exchange(**fields: Any) -> Exchange:
    known = {"caller": Caller("k", "ci", "sk-strata-…"), "model": "fast", "status": 200, "attempts": [attempt()]}
    id = fields.pop("request_id", "req_" + "0" * 20)
    return Exchange(bytes(16), id, "chat", STARTED_MS, 1_000, **{**known, **fields})


def spans(one: Exchange, trace: Trace = TRACE) -> dict[str, Span]:
    made = spans_of(one, trace, 3_000, mask)
    named = {
        f"attempt {span.attributes['strata.attempt']}" if span.kind == "client" else span.name: span for span in made
    }
    assert len(named) == len(made) == len({span.span_id for span in made})
    for span in made:
        assert SHIFT_NS + 1_000 <= span.start_ns <= span.end_ns <= SHIFT_NS + 3_000
        assert span.parent_id == (trace.parent_id if span is made[0] else trace.span_id)
    return named


@given(st.integers(1, (1 << 128) - 1), ids, st.integers(0, 255))
def test_what_is_written_is_read(trace_id: int, span_id: int, flags: int) -> None:
    said = b"00-%032x-%016x-%02x" % (trace_id, span_id, flags)
    assert traceparent.read(said) == (trace_id, span_id, bool(flags & 1))


@given(st.binary(max_size=80) | st.from_regex(rb"[0-9a-f-]{50,60}"))
def test_nothing_that_is_sent_makes_reading_fail(said: bytes) -> None:
    found = traceparent.read(said)
    assert found is None or re.match(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}", said)


def test_a_later_version_may_say_more_and_this_one_may_not() -> None:
    said = b"%b-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01%b"
    assert traceparent.read(said % (b"01", b"-what.comes")) is not None
    assert traceparent.read(said % (b"00", b"-what.comes")) is None
    assert traceparent.read(said % (b"ff", b"")) is None
    assert traceparent.read(said % (b"00", b" \t")) is not None  # what may stand at the end of any header line


def test_said_twice_it_says_nothing() -> None:
    said = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"
    for names in (["traceparent"], ["traceparent"] * 2, ["traceparent"] * 3):
        head = read_head([(b"host", b"x"), *[(name.encode(), said.encode()) for name in names]], 1_000)
        assert (traceparent.read(head.traceparent) is None) is (len(names) > 1)


@given(st.integers(1, (1 << traceparent.SPAN_ID_BITS) - 1), st.integers(1, PLAN))
def test_what_a_provider_is_told_is_the_id_of_the_span_that_is_made(span_id: int, number: int) -> None:
    trace = Trace(5, span_id, sampled=True)
    told = traceparent.read(traceparent.header_line(trace, number).removeprefix(b"traceparent: ").strip())
    assert told == (5, traceparent.child_id(trace, number), True)
    assert 0 < traceparent.child_id(trace, number) < 1 << 64
    assert traceparent.child_id(trace, number) != span_id


@pytest.mark.parametrize("sample", [0.0, 0.1, 0.5, 1.0])
def test_so_many_are_sampled_as_was_said(sample: float) -> None:
    begin = Traces(Settings(endpoint="http://c", sample=sample)).begin
    assert begin is not None
    made = [begin(b"") for _ in range(4_000)]
    part = sum(trace is not None and trace.sampled for trace in made) / len(made)
    assert abs(part - sample) < 0.04 and (part == sample or 0 < sample < 1)
    assert len({trace.trace_id for trace in made if trace is not None}) == len(made)


def test_without_an_endpoint_nothing_is_begun() -> None:
    off = Traces(Settings())
    assert (off.begin, off.listeners, off.totals) == (None, (), (0, 0))
    passing = Traces(Settings(pass_on=True))
    assert passing.begin is not None and passing.listeners == ()
    assert passing.begin(b"") is None and passing.begin(b"none") is None


def test_stages_follow_each_other() -> None:
    made = spans(exchange())
    assert list(made) == ["chat", "admission", "limits", "plan", "attempt 1"]
    chain = [made[name] for name in ("admission", "limits", "plan", "attempt 1")]
    assert [(one.start_ns - SHIFT_NS, one.end_ns - SHIFT_NS) for one in chain] == [
        (1_000, 1_100), (1_100, 1_200), (1_200, 1_300), (1_300, 1_500),
    ]  # fmt: skip


REFUSALS = [
    (CallerError("x"), Trace(1, 2), ["chat", "admission"]),
    (
        PolicyError("x", status=429, code="rate", error_type="policy_rate_limited"),
        Trace(1, 2, admitted_ns=1_100),
        ["chat", "admission", "limits"],
    ),
    (
        PolicyError("x", status=402, code="money", error_type="policy_budget_exceeded"),
        Trace(1, 2, admitted_ns=1_100),
        ["chat", "admission", "plan"],
    ),
]


@pytest.mark.parametrize(("error", "trace", "names"), REFUSALS)
def test_a_refused_request_ends_in_the_stage_that_refused_it(error: Any, trace: Trace, names: list[str]) -> None:
    made = spans(exchange(error=error, status=error.status, attempts=[], caller=None), trace)
    assert list(made) == names
    *passed, last = [made[name] for name in names[1:]]
    assert last.failed and last.attributes == {"error.type": error.error_type}
    assert last.end_ns == made["chat"].end_ns
    assert not any(one.failed or one.attributes for one in passed)
    assert made["chat"].attributes["strata.error.code"] == error.code
    assert "strata.key" not in made["chat"].attributes


def test_a_client_that_left_is_told_of() -> None:
    made = spans(exchange(client_left=True, attempts=[attempt(outcome="caller_cancelled", status=200)]))
    assert made["chat"].attributes["error.type"] == "caller_cancelled"
    assert made["chat"].attributes["strata.client_left"] is True
    assert made["attempt 1"].failed and not made["chat"].failed


def test_words_of_a_provider_are_in_no_span() -> None:
    error = UpstreamError("the prompt", code="the prompt", error_type="provider_error", param="the prompt")
    made = spans(exchange(error=error, status=502, attempts=[attempt(outcome="provider_error", error="the prompt")]))
    assert made["chat"].failed
    assert "the prompt" not in repr(made)


def test_an_id_that_looks_like_a_key_is_masked() -> None:
    made = spans(exchange(request_id="sk-proj-Zq8vT3nKx5Lw9Rb2Hd7Jc4Mf"))
    assert made["chat"].attributes["strata.request_id"] == "sk-…"


def test_tokens_are_sums_and_their_parts() -> None:
    usage = Usage(10, 20, 3, 4, output=5, reasoning=6)
    own = OwnKey("id", "mine", "user", "1234")
    attributes = spans(exchange(attempts=[attempt(usage=usage, own_key=own, status=200)]))["attempt 1"].attributes
    assert {name: value for name, value in attributes.items() if "usage." in name} == {
        "gen_ai.usage.input_tokens": 37,
        "gen_ai.usage.output_tokens": 11,
        "gen_ai.usage.cache_read.input_tokens": 20,
        "gen_ai.usage.cache_creation.input_tokens": 7,
        "gen_ai.usage.reasoning.output_tokens": 6,
    }
    assert (attributes["server.address"], attributes["server.port"]) == ("api.example.com", 443)
    assert attributes["strata.own_key"] is True
    assert "1234" not in repr(attributes)


def test_what_is_wanted_of_content_is_bounded() -> None:
    asked: list[dict[str, Any]] = [{"role": "assistant", "content": None, "tool_calls": [{}]}]
    asked += [{"role": "user", "content": "word " * 1_000}] * 100
    one = exchange()
    one.asked, one.answered = {"messages": asked}, [{"role": "assistant", "content": "word " * 100_000}]
    attributes = spans(one, Trace(1, 2, sampled=True, content=True, admitted_ns=1_100))["attempt 1"].attributes
    for name in ("gen_ai.input.messages", "gen_ai.output.messages"):
        assert len(str(attributes[name])) == MAX_CONTENT_CHARS


@pytest.mark.parametrize("name", PRESETS)
def test_every_known_provider_has_a_name_in_the_conventions(name: str) -> None:
    provider = Provider(name=name, api=PRESETS[name].api, api_base="http://x")
    assert re.fullmatch(r"[a-z_]+(\.[a-z_]+)*", genai_name(provider))


def test_the_conventions_names_are_theirs() -> None:
    names = {genai_name(Provider(name="x", api=preset.api, api_base="http://x")) for preset in PRESETS.values()}
    assert names == {
        "x", "anthropic", "aws.bedrock", "azure.ai.openai", "cohere", "gcp.gemini", "gcp.vertex_ai", "mistral_ai",
    }  # fmt: skip
