"""Spans as a collector gets them from a real gateway, and what a gateway does whose collector is away."""

from __future__ import annotations

import http.client
import itertools
import json
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from tests.canaries import CANARIES, hits
from tests.collector import Collector, Seen
from tests.gateway import Answer, Gateway
from tests.listening_provider import MESSAGE, ListeningProvider, Reply, Request, answering, completion

PATH = "/v1/chat/completions"
PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, NOT_SAMPLED = (f"00-{PARENT[0]}-{PARENT[1]}-{flags}" for flags in ("01", "00"))
OVERLOADED = Reply(503, {"content-type": "application/json"}, b'{"error": {"message": "busy", "code": "overloaded"}}')
REFUSED = Reply(400, {"content-type": "application/json"}, b'{"error": {"message": "no", "code": "odd"}}')
names = (f"trace-{number}" for number in itertools.count())


class House(NamedTuple):
    gateway: Gateway
    provider: ListeningProvider
    collector: Collector

    def ask(self, name: str, model: str = "gpt", key: str = "", traceparent: str = "", **fields: Any) -> Answer:
        return ask(self.gateway, name, model, key, traceparent, **fields)

    def spans(self, count: int, **asked: Any) -> tuple[Answer, list[Seen]]:
        name = next(names)
        answer = self.ask(name, **asked)
        return answer, self.collector.of_request(name, count)


def ask(gateway: Gateway, name: str, model: str = "gpt", key: str = "", traceparent: str = "", **fields: Any) -> Answer:
    chat = {"model": model, "messages": [{"role": "user", "content": CANARIES["prompt"]}], **fields}
    headers = {"authorization": f"Bearer {key or gateway.key}", "content-type": "application/json"}
    headers |= {"x-request-id": name} | ({"traceparent": traceparent} if traceparent else {})
    return gateway.ask("POST", PATH, headers, json.dumps(chat).encode())


def traces(collector: str, *more: str) -> str:
    settings = ", ".join((f'endpoint: "{collector}"', *more))
    return f"telemetry: {{traces: {{{settings}}}}}\n"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with Collector() as collector, ListeningProvider() as provider:
        key = CANARIES["token of the metrics"]
        settings = traces(collector.url, "sample: 1", f'headers: {{X-Key: "Bearer {key}"}}')
        home = tmp_path_factory.mktemp("traces") / "home"
        gateway = Gateway(home, oracle=provider.url, more=settings).start()
        yield House(gateway, provider, collector)
        gateway.stop()


@pytest.fixture
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Gateway]]:
    """Makes gateways with other settings."""
    started = []

    def make(provider: ListeningProvider, more: str) -> Gateway:
        home = tmp_path_factory.mktemp("traces") / "home"
        started.append(Gateway(home, oracle=provider.url, more=more).start())
        return started[-1]

    yield make
    for gateway in started:
        gateway.stop()


def sent_to(provider: ListeningProvider) -> list[str]:
    return [value for request in provider.requests for value in request.headers_named("traceparent")]


def stream(*texts: str) -> Reply:
    chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in texts]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    usage = {"prompt_tokens": 40, "completion_tokens": 7, "total_tokens": 47}
    usage["prompt_tokens_details"] = {"cached_tokens": 32}  # type: ignore[assignment]
    usage["completion_tokens_details"] = {"reasoning_tokens": 5}  # type: ignore[assignment]
    chunks.append({"choices": [], "usage": usage})
    events = "".join(f"data: {json.dumps({'id': 'c', 'object': 'chat.completion.chunk', **one})}\n\n" for one in chunks)
    return Reply(200, {"content-type": "text/event-stream"}, f"{events}data: [DONE]\n\n".encode())


def test_a_stream_is_one_request_with_its_stages_and_one_attempt(house: House) -> None:
    with answering(house.provider, lambda request: stream("Hel", "lo")):
        answer, spans = house.spans(4, stream=True)
    assert answer.status == 200
    root, admission, plan, attempt = spans
    assert [span.name for span in spans] == ["chat", "admission", "plan", "chat gpt"]
    assert [span.kind for span in spans] == ["server", "internal", "internal", "client"]
    assert len({span.trace_id for span in spans}) == 1 and len({span.span_id for span in spans}) == 4
    assert root.parent_id == "" and {span.parent_id for span in spans[1:]} == {root.span_id}
    assert root.start_ns == admission.start_ns < admission.end_ns == plan.start_ns
    assert plan.end_ns == attempt.start_ns < attempt.end_ns <= root.end_ns
    assert abs(root.start_ns / 1e9 - time.time()) < 60
    assert not any(span.failed for span in spans)
    assert root.attributes == {
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "gpt",
        "strata.request_id": answer.headers["x-request-id"],
        "strata.key": "t",
        "strata.stream": True,
        "strata.attempts": 1,
        "strata.cost_nano_usd": 16_800,
    }
    first = attempt.attributes.pop("gen_ai.response.time_to_first_chunk")
    assert isinstance(first, float) and 0 < first <= (attempt.end_ns - attempt.start_ns) / 1e9
    assert attempt.attributes == {
        "server.address": "127.0.0.1",
        "server.port": int(house.provider.url.rpartition(":")[2]),
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "oai",
        "gen_ai.request.model": "gpt",
        "gen_ai.request.stream": True,
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 40,
        "gen_ai.usage.output_tokens": 7,
        "gen_ai.usage.cache_read.input_tokens": 32,
        "gen_ai.usage.reasoning.output_tokens": 5,
        "strata.provider": "oai",
        "strata.attempt": 1,
        "strata.cost_nano_usd": 16_800,
        "strata.price_state": "priced",
        "strata.usage_source": "provider",
        "strata.own_key": False,
    }


def test_a_retry_is_two_attempts_of_one_request(house: House) -> None:
    replies = iter((OVERLOADED, completion()))
    with answering(house.provider, lambda request: next(replies)):
        answer, spans = house.spans(5)
        told = sent_to(house.provider)
    root, _, _, first, second = spans
    assert answer.status == 200 and root.attributes["strata.attempts"] == 2 and not root.failed
    assert (first.failed, second.failed) == (True, False)
    assert first.attributes["error.type"] == "provider_overloaded"
    assert first.attributes["http.response.status_code"] == 503
    assert "error.type" not in second.attributes
    assert [span.attributes["strata.attempt"] for span in (first, second)] == [1, 2]
    assert first.end_ns <= second.start_ns
    assert told == [f"00-{root.trace_id}-{span.span_id}-01" for span in (first, second)]


def test_the_provider_of_an_api_has_its_name_in_the_conventions(house: House) -> None:
    with answering(house.provider, lambda request: REFUSED):
        for model, name in (("claude", "anthropic"), ("gemini", "gcp.gemini"), ("vertex-1", "gcp.vertex_ai")):
            _, spans = house.spans(4, model=model)
            assert spans[-1].attributes["gen_ai.provider.name"] == name


def test_an_error_is_its_kind_and_never_its_words(house: House) -> None:
    with answering(house.provider, lambda request: REFUSED):
        answer, (root, _, _, attempt) = house.spans(4)
    assert answer.status == 400
    assert (root.failed, root.attributes["error.type"]) == (False, "caller_invalid_request")  # the caller's fault
    assert (attempt.failed, attempt.attributes["error.type"]) == (True, "caller_invalid_request")
    with answering(house.provider, lambda request: OVERLOADED):
        answer, spans = house.spans(6)
    assert answer.status == 503
    assert (spans[0].failed, spans[0].attributes["error.type"]) == (True, "provider_overloaded")
    assert "strata.error.code" not in spans[0].attributes
    assert all(span.words == "" for span in house.collector.spans)


def test_a_stream_that_is_cut_has_failed_though_its_status_was_good(house: House) -> None:
    whole = stream("Hello")
    with answering(house.provider, lambda request: whole._replace(body=whole.body.partition(b"\n\n")[0] + b"\n\n")):
        answer, (root, _, _, attempt) = house.spans(4, stream=True)
    assert answer.status == 200
    assert root.failed and attempt.failed
    assert root.attributes["error.type"] == attempt.attributes["error.type"] == "provider_stream_cut"
    assert attempt.attributes["strata.usage_source"] == "counted"


def test_a_request_that_is_not_let_in_ends_there(house: House) -> None:
    answer, (root, admission) = house.spans(2, model="none-such")
    assert answer.status == 404
    assert (admission.failed, admission.end_ns) == (True, root.end_ns)
    assert root.attributes["error.type"] == admission.attributes["error.type"] == "caller_model_not_found"
    assert root.attributes["strata.error.code"] == "model_not_found"
    assert "gen_ai.request.model" not in root.attributes


def test_limits_are_a_stage_where_there_are_some(house: House) -> None:
    key = house.gateway.create_key("slow", "--rpm", "1")
    answer, spans = house.spans(5, key=key)
    assert answer.status == 200
    assert [span.name for span in spans] == ["chat", "admission", "limits", "plan", "chat gpt"]
    answer, spans = house.spans(3, key=key)
    assert answer.status == 429
    assert [span.name for span in spans] == ["chat", "admission", "limits"]
    assert spans[2].attributes["error.type"] == "policy_rate_limited"


def test_a_trace_goes_on_through_the_gateway(house: House) -> None:
    with answering(house.provider, lambda request: completion()):
        _, (root, *_, attempt) = house.spans(4, traceparent=SAMPLED)
        assert (root.trace_id, root.parent_id) == PARENT
        assert sent_to(house.provider) == [f"00-{PARENT[0]}-{attempt.span_id}-01"]
        line = next(line for line in house.gateway.log.read_text().splitlines() if root.trace_id in line)
    assert json.loads(line)["trace_id"] == PARENT[0]
    assert json.loads(line)["request_id"] == root.attributes["strata.request_id"]


def test_a_parent_that_is_not_sampled_is_obeyed(house: House) -> None:
    silent, heard = next(names), next(names)
    with answering(house.provider, lambda request: completion()):
        house.ask(silent, traceparent=NOT_SAMPLED)
        [told] = sent_to(house.provider)
    assert told.startswith(f"00-{PARENT[0]}-") and told.endswith("-00") and PARENT[1] not in told
    house.ask(heard)
    house.collector.of_request(heard, 4)  # what was asked before it would have come before it
    assert not [span for span in house.collector.spans if span.attributes.get("strata.request_id") == silent]


@pytest.mark.parametrize("said", ["00-0-0-01", SAMPLED.upper(), f"{SAMPLED}-more", f"ff{SAMPLED[2:]}", "x", "00"])
def test_a_traceparent_that_is_none_begins_a_new_trace(house: House, said: str) -> None:
    _, (root, *_) = house.spans(4, traceparent=said)
    assert root.parent_id == "" and root.trace_id != PARENT[0]


def test_the_collector_sees_its_headers_and_who_sends(house: House) -> None:
    house.spans(4)
    assert house.collector.headers[-1]["x-key"] == f"Bearer {CANARIES['token of the metrics']}"
    assert house.collector.resources[-1] == {"service.name": "strata", "service.version": "0.1.0"}
    house.collector.until(lambda: house.gateway.gauge("strata_trace_spans_sent_total") >= 4)
    assert house.gateway.gauge("strata_trace_spans_dropped_total") == 0


def test_no_prompt_answer_or_key_is_in_a_span(house: House) -> None:
    def echo(request: Request) -> Reply:
        text = f"{dict(request.headers)} {request.body.decode()} {CANARIES['answer']}"
        error = {"message": text, "code": CANARIES["prompt"], "type": text, "param": text}
        return Reply(400, {"content-type": "application/json", "x-said": "x"}, json.dumps({"error": error}).encode())

    said = completion(choices=[{"index": 0, "message": {**MESSAGE, "content": CANARIES["answer"]}}])
    for reply in (echo, lambda request: said, lambda request: stream(CANARIES["answer"])):
        with answering(house.provider, reply):
            for model in ("gpt", "claude"):
                house.spans(4, model=model, stream=reply(Request("", "", [], b"")).body.startswith(b"data"))
    house.ask("refused", key=CANARIES["junk credential"])
    house.spans(4)
    secrets = {"virtual key": house.gateway.key, "provider key": "sk-oracle-of-the-tests", **CANARIES}
    assert hits({"spans": b"".join(house.collector.bodies)}, secrets) == []
    assert hits({"log": house.gateway.log.read_bytes()}, {"it": CANARIES["token of the metrics"]}) == []


def test_what_is_asked_and_answered_is_there_if_the_operator_wants_it(other: Callable[..., Gateway]) -> None:
    with Collector() as collector, ListeningProvider() as provider:
        gateway = other(provider, traces(collector.url, "sample: 1", "content: true"))
        picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
        asked = [{"role": "user", "content": [{"type": "text", "text": "What is sk-1234567890abcdef?"}, picture]}]
        for name, reply, streamed in (("whole", completion(), False), ("streamed", stream("Hello ", "there"), True)):
            with answering(provider, lambda request, reply=reply: reply):  # type: ignore[misc]
                ask(gateway, name, messages=asked, stream=streamed)
            attempt = collector.of_request(name, 4)[-1]
            [question] = json.loads(str(attempt.attributes["gen_ai.input.messages"]))
            assert question["parts"] == [{"type": "text", "content": "What is sk-…?"}, {"type": "image_url"}]
            [said] = json.loads(str(attempt.attributes["gen_ai.output.messages"]))
            assert said == {"role": "assistant", "parts": [{"type": "text", "content": "Hello there"}]}


def test_nothing_is_exported_of_what_is_not_sampled(other: Callable[..., Gateway]) -> None:
    with Collector() as collector, ListeningProvider() as provider:
        gateway = other(provider, traces(collector.url, "sample: 0"))
        for _ in range(20):
            assert ask(gateway, next(names)).status == 200
        assert all(told.endswith("-00") for told in sent_to(provider))
        ask(gateway, "asked-for", traceparent=SAMPLED)
        collector.of_request("asked-for", 4)
        assert {span.trace_id for span in collector.spans} == {PARENT[0]}
        gateway.stop()
        assert len(collector.spans) == 4


def flood(gateway: Gateway, requests: int) -> None:
    chat = json.dumps({"model": "sim/echo", "messages": [{"role": "user", "content": "Hi"}]}).encode()
    headers = {"authorization": f"Bearer {gateway.key}", "content-type": "application/json"}
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=10)
    for _ in range(requests):
        connection.request("POST", PATH, chat, headers)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
    connection.close()


@pytest.mark.parametrize("status", [400, 503])
def test_spans_that_nobody_takes_are_dropped_and_counted(other: Callable[..., Gateway], status: int) -> None:
    with Collector(status) as collector, ListeningProvider() as provider:
        gateway = other(provider, traces(collector.url, "sample: 1"))
        flood(gateway, 20)
        collector.until(lambda: gateway.gauge("strata_trace_spans_dropped_total") >= 80)
        assert gateway.gauge("strata_trace_spans_sent_total") == 0
        collector.status = 200
        ask(gateway, "after")
        assert len(collector.of_request("after", 4)) == 4
        collector.until(lambda: "takes spans again" in gateway.log.read_text())


def test_a_collector_that_is_not_there_costs_its_spans_and_no_request(other: Callable[..., Gateway]) -> None:
    with ListeningProvider() as provider:
        gateway = other(provider, traces("http://127.0.0.1:9", "sample: 1"))
        flood(gateway, 50)
        assert gateway.alive()
        gateway.stop()  # in time, and with a word
        assert "spans are dropped" in gateway.log.read_text() or "takes no spans" in gateway.log.read_text()


def test_a_collector_that_hangs_fills_a_queue_of_bounded_length(other: Callable[..., Gateway]) -> None:
    with Collector() as collector, ListeningProvider() as provider:
        collector.free.clear()
        gateway = other(provider, traces(collector.url, "sample: 1"))
        flood(gateway, 1_200)
        collector.until(lambda: gateway.gauge("strata_trace_spans_dropped_total") >= 1_200 * 4 - 4_096)
        assert collector.asked >= 1 and not collector.spans
        gateway.stop()
        assert "spans are dropped at the end" in gateway.log.read_text()


def test_without_traces_providers_are_told_nothing_unless_it_is_passed_on(other: Callable[..., Gateway]) -> None:
    with ListeningProvider() as provider:
        silent, passing = other(provider, ""), other(provider, "telemetry: {traces: {pass_on: true}}\n")
        for gateway, told in ((silent, []), (passing, [SAMPLED])):
            provider.requests.clear()
            assert ask(gateway, next(names), traceparent=SAMPLED).status == 200
            assert ask(gateway, next(names), traceparent="none").status == 200
            assert ask(gateway, next(names)).status == 200
            assert sent_to(provider) == told
            assert ("trace_id" in gateway.log.read_text()) is bool(told)
