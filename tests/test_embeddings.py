"""Embeddings from outside: the official SDK, a real gateway, and providers that answer in their own words."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

import msgspec
import openai
import pytest
from openai import OpenAI

from proxy.dialects import embeddings as dialect
from proxy.errors import CallerError
from tests.gateway import Gateway
from tests.listening_provider import ListeningProvider, Reply, Request, answering

VECTOR = [0.5, -0.25, 1.0]
PATHS = {
    "gpt-embed": "/v1/embeddings",
    "gemini-embedding-001": "/v1beta/models/gemini-embedding-001:batchEmbedContents",
    "vertex-text-005": "/v1/projects/oracle/locations/global/publishers/google/models/text-005:predict",
    "command-embed": "/v2/embed",
    "mistral-embed": "/mistral/v1/embeddings",
}
"""A model behind each API, and where its provider is asked."""


def reply(body: object, status: int = 200) -> Reply:
    return Reply(status, {"content-type": "application/json"}, json.dumps(body).encode())


def vectors(request: Request) -> Reply:
    """One vector for each text, in the words of whoever was asked."""
    asked = json.loads(request.body)
    if request.path.endswith(":batchEmbedContents"):
        return reply({"embeddings": [{"values": VECTOR} for _ in asked["requests"]]})
    if request.path.endswith(":predict"):
        one = {"embeddings": {"values": VECTOR, "statistics": {"token_count": 4}}}
        return reply({"predictions": [one for _ in asked["instances"]]})
    if request.path == "/v2/embed":
        billed = {"billed_units": {"input_tokens": 4 * len(asked["texts"])}}
        return reply({"embeddings": {"float": [VECTOR for _ in asked["texts"]]}, "meta": billed})
    texts = [asked["input"]] if isinstance(asked["input"], str) else asked["input"]
    data = [{"object": "embedding", "index": index, "embedding": VECTOR} for index, _ in enumerate(texts)]
    used = {"prompt_tokens": 4 * len(texts), "total_tokens": 4 * len(texts)}
    return reply({"object": "list", "data": data, "model": "theirs", "usage": used})


@pytest.fixture(scope="module")
def provider() -> Iterator[ListeningProvider]:
    with ListeningProvider() as listening:
        listening.answer = vectors
        yield listening


@pytest.fixture(scope="module")
def gateway(provider: ListeningProvider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    running = Gateway(tmp_path_factory.mktemp("embeddings") / "home", oracle=provider.url).start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def client(gateway: Gateway) -> Iterator[OpenAI]:
    with OpenAI(base_url=gateway.base_url, api_key=gateway.key, max_retries=0) as sdk:
        yield sdk


@pytest.mark.parametrize("model", PATHS)
async def test_the_sdk_gets_vectors_from_every_api_and_each_has_a_row(
    gateway: Gateway, client: OpenAI, provider: ListeningProvider, model: str
) -> None:
    """The SDK asks for base64 unless told otherwise, which none of these providers sends."""
    provider.requests.clear()
    raw = client.embeddings.with_raw_response.create(
        model=model, input=["one", "two"], extra_headers={"x-request-id": f"embed-{model}"}
    )
    answer = raw.parse()
    assert [(one.index, one.embedding) for one in answer.data] == [(0, VECTOR), (1, VECTOR)]
    [asked] = provider.requests
    assert asked.path.partition("?")[0] == PATHS[model]
    [row] = await gateway.settled(f"embed-{model}")
    assert (row["endpoint"], row["outcome"], row["stream"]) == ("embeddings", "ok", False)
    assert row["input_tokens"] == answer.usage.prompt_tokens == answer.usage.total_tokens
    assert row["output_tokens"] == 0
    assert row["cost_nano_usd"] == row["input_tokens"] * 250
    assert (answer.usage.model_extra or {})["cost"] == row["cost_nano_usd"] / 1e9
    counts = model == "gemini-embedding-001"  # the one that says nothing of tokens
    assert row["source"] == ("counted" if counts else "provider")
    assert ("usage: Counted by the gateway" in raw.headers.get("x-strata-warning", "")) == counts
    assert row["input_tokens"] == (3 if counts else 8)


def test_numbers_come_as_they_were_asked_for(client: OpenAI, provider: ListeningProvider) -> None:
    plain = client.embeddings.with_raw_response.create(model="gpt-embed", input="x", encoding_format="float")
    assert json.loads(plain.content)["data"][0]["embedding"] == VECTOR
    packed = {"object": "list", "data": [{"index": 0, "embedding": "AAAAPwAAgL4AAIA/"}], "usage": {"total_tokens": 1}}
    with answering(provider, lambda request: reply(packed)):
        same = client.embeddings.with_raw_response.create(model="gpt-embed", input="x", encoding_format="base64")
        numbers = client.embeddings.create(model="gpt-embed", input="x", encoding_format="float")
    assert json.loads(same.content)["data"][0]["embedding"] == "AAAAPwAAgL4AAIA/"
    assert numbers.data[0].embedding == VECTOR
    assert numbers.usage.prompt_tokens == 1


def test_many_vectors_are_packed_in_a_thread_and_are_right(client: OpenAI, provider: ListeningProvider) -> None:
    long = [index / 7 for index in range(1536)]
    data = [{"object": "embedding", "index": index, "embedding": long} for index in range(20)]
    with answering(provider, lambda request: reply({"data": data, "usage": {"prompt_tokens": 1, "total_tokens": 1}})):
        answer = client.embeddings.create(model="gpt-embed", input=["x"] * 20)
    exactly = list(struct.unpack("<1536f", struct.pack("<1536f", *long)))
    assert [one.embedding for one in answer.data] == [exactly] * 20


async def test_vectors_made_of_nothing_are_counted(
    gateway: Gateway, client: OpenAI, provider: ListeningProvider
) -> None:
    nothing = {"data": [{"index": 0, "embedding": VECTOR}], "usage": {"prompt_tokens": 0, "total_tokens": 0}}
    with answering(provider, lambda request: reply(nothing)):
        answer = client.embeddings.create(model="gpt-embed", input="x", extra_headers={"x-request-id": "embed-zero"})
    [row] = await gateway.settled("embed-zero")
    assert (row["source"], row["input_tokens"], answer.usage.prompt_tokens) == ("counted", 1, 1)


async def test_the_next_that_embeds_is_asked_and_one_that_does_not_is_left_out(
    gateway: Gateway, client: OpenAI, provider: ListeningProvider
) -> None:
    """`either` is Claude first, then one that embeds."""
    provider.requests.clear()
    answer = client.embeddings.create(model="either", input="x", extra_headers={"x-request-id": "embed-either"})
    assert answer.data[0].embedding == VECTOR
    [row] = await gateway.settled("embed-either")
    assert row["provider"] == "oai"


def test_who_makes_none_says_so_before_anything_is_sent(client: OpenAI, provider: ListeningProvider) -> None:
    provider.requests.clear()
    for model, said in (("claude", "makes no embeddings"), ("anthropic.claude-x", "are not known here")):
        with pytest.raises(openai.BadRequestError, match=said) as refused:
            client.embeddings.create(model=model, input="x")
        assert refused.value.param == "model"
    assert provider.requests == []


async def test_a_failure_is_tried_again_and_both_attempts_have_rows(
    gateway: Gateway, client: OpenAI, provider: ListeningProvider
) -> None:
    busy = [reply({"error": {"message": "busy"}}, 503)]

    def at_first_busy(request: Request) -> Reply:
        return busy.pop() if busy else vectors(request)

    with answering(provider, at_first_busy):
        client.embeddings.create(model="gpt-embed", input="x", extra_headers={"x-request-id": "embed-again"})
    first, second = await gateway.settled("embed-again", 2)
    assert (first["status"], first["cost_nano_usd"]) == (503, 0)
    assert (second["status"], second["input_tokens"]) == (200, 4)


@pytest.mark.parametrize(
    ("vectors", "said"),
    [([["x"]], "not a list of numbers"), (["%%"], "not a list of numbers"), ([], "0 embeddings for 1 texts")],
)
async def test_vectors_that_are_none_are_an_error_and_are_billed(
    gateway: Gateway, client: OpenAI, provider: ListeningProvider, vectors: list[Any], said: str
) -> None:
    data = [{"index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    bad = {"data": data, "usage": {"prompt_tokens": 4, "total_tokens": 4}}
    id = f"embed-bad-{len(said)}-{len(str(vectors))}"
    packing: Any = "float" if vectors == ["%%"] else "base64"
    with answering(provider, lambda request: reply(bad)), pytest.raises(openai.InternalServerError, match=said):
        client.embeddings.create(
            model="gpt-embed", input="x", encoding_format=packing, extra_headers={"x-request-id": id}
        )
    [row] = await gateway.settled(id)
    assert (row["outcome"], row["input_tokens"], row["cost_nano_usd"]) == ("provider_bad_response", 4, 1000)


def test_a_budget_holds_here_too(gateway: Gateway, provider: ListeningProvider) -> None:
    """An embedding has no output, so nothing is reserved for one: 100 bytes cost 25 micro-dollars at most."""
    key = gateway.create_key("small", "--budget", "0.00006/1d")
    with OpenAI(base_url=gateway.base_url, api_key=key, max_retries=0) as small:
        provider.requests.clear()
        assert small.embeddings.create(model="gpt-embed", input="x").data
        with pytest.raises(openai.RateLimitError) as refused:
            small.embeddings.create(model="gpt-embed", input="x" * 400)
        assert refused.value.code == "insufficient_quota"
        assert len(provider.requests) == 1


def test_what_is_left_out_is_told_or_refused(client: OpenAI) -> None:
    raw = client.embeddings.with_raw_response.create(
        model="mistral-embed", input="x", user="u", extra_body={"strata": {"notices": True}}
    )
    assert raw.headers["x-strata-warning"] == "user: Mistral has no user for embeddings; it was left out."
    assert json.loads(raw.content)["strata"]["notices"][0]["param"] == "user"
    with pytest.raises(openai.BadRequestError, match="This request is strict"):
        client.embeddings.create(model="mistral-embed", input="x", user="u", extra_body={"strata": {"strict": True}})


def test_the_simulated_model_embeds(client: OpenAI) -> None:
    same, other = client.embeddings.create(model="sim/embed", input=["one", "two"], dimensions=64).data
    again = client.embeddings.create(model="sim/embed", input="one", dimensions=64).data[0]
    assert len(same.embedding) == 64
    assert same.embedding == again.embedding != other.embedding


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"input": ""}, "input", "input is empty"),
    ({"input": []}, "input", "input is empty"),
    ({"input": None}, "input", "must be a string or an array"),
    ({"input": {}}, "input", "must be a string or an array"),
    ({"input": 7}, "input", "must be a string or an array"),
    ({"input": ["a", ""]}, "input[1]", "not empty"),
    ({"input": ["a", None]}, "input[1]", "not empty"),
    ({"input": [[1], []]}, "input[1]", "not empty"),
    ({"input": [1, "a"]}, "input[0]", "not empty"),
    ({"input": [1, -1]}, "input[0]", "not empty"),
    ({"input": [True]}, "input[0]", "not empty"),
    ({"input": [[1.5]]}, "input[0]", "not empty"),
    ({"input": "a", "dimensions": 0}, "dimensions", ">= 1"),
    ({"input": "a", "dimensions": "8"}, "dimensions", "an integer"),
    ({"input": "a", "encoding_format": "hex"}, "encoding_format", "does not know"),
    ({"input": "a", "stream": True}, "stream", "not streamed"),
    ({"input": "a", "model": ""}, "model", "length"),
    ({"input": "a", "api_base": "http://elsewhere"}, "api_base", "is not for a request body"),
    ({"input": "a", "user": "\0"}, "user", "NUL"),
    ({}, "input", "input is missing"),
]


@pytest.mark.parametrize(("body", "param", "said"), REFUSED)
def test_bad_input_is_refused_with_its_place(body: dict[str, Any], param: str, said: str) -> None:
    with pytest.raises(CallerError, match=said) as refused:
        dialect.decode(msgspec.json.encode({"model": "m", **body}).replace(b"\0", b"\\u0000"))
    assert (refused.value.status, refused.value.param) == (400, param)


@pytest.mark.parametrize(
    ("given", "text", "tokens"),
    [("one", "one", 0), (["one", "two"], "one\ntwo", 0), ([1, 2, 3], "", 3), ([[1, 2], [3]], "", 3)],
)
def test_what_nobody_counted_can_be_counted(given: Any, text: str, tokens: int) -> None:
    assert dialect.countable({"input": given}) == (text, tokens)
