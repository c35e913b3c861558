"""POST /v1/embeddings in each API's own words, and their answers as OpenAI's list."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from proxy.errors import CallerError, UpstreamError
from proxy.providers import Notice, Target, Translator, UpstreamRequest, load
from proxy.providers.embeddings import embedder

TWO = {"model": "ours", "input": ["one", "two"]}
ALL = {**TWO, "dimensions": 256, "encoding_format": "base64", "user": "u", "strata": {"notices": True}}
VERTEX = Target("text-embedding-005", options={"project": "p", "region": "r"})
IN_VERTEX = "/v1/projects/p/locations/r/publishers/google/models/"
GUESSED = "Set to search_document; for a query send input_type search_query in the body."


def made(api: str) -> Translator:
    found = embedder(load(api))
    assert found is not None
    return found


def encoded(api: str, asked: dict[str, Any], model: str | Target = "m") -> UpstreamRequest:
    before = json.dumps(asked)
    request = made(api).encode_request(asked, model if isinstance(model, Target) else Target(model))
    assert json.dumps(asked) == before, "what the client asked was changed"
    return request


def decoded(api: str, native: Any) -> dict[str, Any]:
    raw = native if isinstance(native, bytes) else json.dumps(native).encode()
    answer: dict[str, Any] = json.loads(msgspec.json.encode(made(api).decode_response(raw)))
    return answer


def names(request: UpstreamRequest) -> list[tuple[str, bool]]:
    return [(notice.param, notice.lost) for notice in request.notices]


def test_claude_makes_none() -> None:
    assert embedder(load("anthropic")) is None
    with pytest.raises(CallerError, match="Claude makes no embeddings"):
        encoded("vertex", TWO, Target("claude-sonnet-4-5", options={"project": "p", "region": "r"}))


def test_openai_gets_everything_but_what_is_ours() -> None:
    request = encoded("openai", {**ALL, "new_field": 1}, "text-embedding-3-small")
    assert request.path == "/embeddings"
    wanted = {**ALL, "new_field": 1, "model": "text-embedding-3-small"}
    del wanted["strata"]
    assert request.body == wanted
    assert request.notices == ()


@pytest.mark.parametrize(
    ("version", "path"),
    [("2024-10-21", "/openai/deployments/m/embeddings?api-version=2024-10-21"), ("", "/openai/v1/embeddings")],
)
def test_azure_has_addresses_of_its_own(version: str, path: str) -> None:
    assert encoded("azure", TWO, Target("m", options={"api_version": version})).path == path


def test_gemini_gets_a_batch() -> None:
    request = encoded("gemini", {**ALL, "task_type": "RETRIEVAL_QUERY"}, "gemini-embedding-001")
    assert request.path == "/models/gemini-embedding-001:batchEmbedContents"
    one = {
        "model": "models/gemini-embedding-001",
        "content": {"parts": [{"text": "one"}]},
        "outputDimensionality": 256,
        "taskType": "RETRIEVAL_QUERY",
    }
    assert request.body == {"requests": [one, {**one, "content": {"parts": [{"text": "two"}]}}]}
    assert names(request) == [("user", True)]


def test_vertex_predicts_and_must_not_cut_texts_off() -> None:
    request = encoded("vertex", {**ALL, "task_type": "CLUSTERING"}, VERTEX)
    assert request.path == f"{IN_VERTEX}text-embedding-005:predict"
    instances = [{"content": text, "task_type": "CLUSTERING"} for text in ("one", "two")]
    assert request.body == {
        "instances": instances,
        "parameters": {"autoTruncate": False, "outputDimensionality": 256},
    }
    assert names(request) == [("user", True)]


def test_the_newest_on_vertex_embed_one_text_at_a_time() -> None:
    target = Target("gemini-embedding-2", options=VERTEX.options)
    request = encoded("vertex", {"model": "x", "input": ["one"], "dimensions": 8}, target)
    assert request.path == f"{IN_VERTEX}gemini-embedding-2:embedContent"
    assert request.body == {
        "content": {"parts": [{"text": "one"}]},
        "embedContentConfig": {"outputDimensionality": 8, "autoTruncate": False},
    }
    with pytest.raises(CallerError, match="one text in a request, not 2"):
        encoded("vertex", TWO, target)


def test_cohere_is_told_what_a_text_is_for() -> None:
    request = encoded("cohere", ALL, "embed-v4.0")
    assert request.path == "/v2/embed"
    assert request.body == {
        "model": "embed-v4.0",
        "texts": ["one", "two"],
        "input_type": "search_document",
        "embedding_types": ["float"],
        "truncate": "NONE",
        "output_dimension": 256,
    }
    assert request.notices[0] == Notice("input_type", GUESSED, lost=False)
    assert names(request)[1:] == [("user", True)]
    own = encoded("cohere", {**TWO, "input_type": "search_query", "truncate": "END"})
    assert (own.body["input_type"], own.body["truncate"], own.notices) == ("search_query", "END", ())


def test_mistral_calls_dimensions_otherwise() -> None:
    request = encoded("mistral", ALL, "codestral-embed")
    assert request.path == "/embeddings"
    assert request.body == {"model": "codestral-embed", "input": ["one", "two"], "output_dimension": 256}
    assert names(request) == [("user", True)]


@pytest.mark.parametrize(
    ("model", "asked", "body", "noticed"),
    [
        (
            "amazon.titan-embed-text-v2:0",
            {"dimensions": 256, "normalize": False},
            {"inputText": "one", "dimensions": 256, "normalize": False},
            [],
        ),
        ("amazon.titan-embed-text-v1", {"dimensions": 256}, {"inputText": "one"}, [("dimensions", True)]),
        (
            "us.cohere.embed-v4:0",
            {"dimensions": 256, "user": "u"},
            {
                "texts": ["one"],
                "input_type": "search_document",
                "embedding_types": ["float"],
                "truncate": "NONE",
                "output_dimension": 256,
            },
            [("input_type", False), ("user", True)],
        ),
    ],
)
def test_bedrock_speaks_to_each_family(model: str, asked: Any, body: Any, noticed: Any) -> None:
    request = encoded("bedrock", {"model": "x", "input": ["one"], **asked}, model)
    assert request.path == f"/model/{model.replace(':', '%3A')}/invoke"
    assert (request.body, names(request)) == (body, noticed)


def test_bedrock_refuses_what_it_cannot_say() -> None:
    with pytest.raises(CallerError, match="one text in a request, not 2"):
        encoded("bedrock", TWO, "amazon.titan-embed-text-v2:0")
    with pytest.raises(CallerError, match="are not known here"):
        encoded("bedrock", TWO, "anthropic.claude-sonnet-4-5-20250929-v1:0")
    with pytest.raises(CallerError, match="Bedrock has no model"):
        encoded("bedrock", TWO, "amazon.titan-embed/../x y")


@pytest.mark.parametrize("api", ["gemini", "vertex", "cohere", "mistral"])
@pytest.mark.parametrize("given", [[1, 2], [[1], [2]], ["one", [2]]])
def test_token_numbers_mean_nothing_to_another_vocabulary(api: str, given: Any) -> None:
    with pytest.raises(CallerError, match="takes texts, not token numbers") as refused:
        encoded(api, {"model": "x", "input": given}, VERTEX)
    assert refused.value.param == "input"


DATA = [
    {"object": "embedding", "index": 0, "embedding": [0.5, -1e-7]},
    {"object": "embedding", "index": 1, "embedding": [0.25]},
]
COUNTED = {"prompt_tokens": 7, "total_tokens": 7}
PREDICTION = {"embeddings": {"values": [0.5, -1e-7], "statistics": {"token_count": 3.0, "truncated": False}}}
SECOND = {"embeddings": {"values": [0.25], "statistics": {"token_count": 4}}}


@pytest.mark.parametrize(
    ("api", "native", "answer"),
    [
        ("openai", {"object": "list", "data": DATA, "model": "m", "usage": COUNTED}, {"model": "m", "usage": COUNTED}),
        ("openai", {"data": DATA, "usage": {"total_tokens": 7}}, {"usage": COUNTED}),  # Voyage
        ("openai", {"data": DATA}, {}),
        ("mistral", {"id": "1", "data": DATA, "usage": COUNTED}, {"id": "1", "usage": COUNTED}),
        ("gemini", {"embeddings": [{"values": [0.5, -1e-7]}, {"values": [0.25]}]}, {}),
        (
            "gemini",
            {
                "embeddings": [{"values": [0.5, -1e-7]}, {"values": [0.25]}],
                "usageMetadata": {"promptTokenCount": 7},
            },
            {"usage": COUNTED},
        ),
        ("vertex", {"predictions": [PREDICTION, SECOND]}, {"usage": COUNTED}),
        ("vertex", {"predictions": [PREDICTION, {"embeddings": {"values": [0.25]}}]}, {}),
        (
            "cohere",
            {"embeddings": {"float": [[0.5, -1e-7], [0.25]]}, "meta": {"billed_units": {"input_tokens": 7}}},
            {"usage": COUNTED},
        ),
        ("bedrock", {"embeddings": {"float": [[0.5, -1e-7], [0.25]]}}, {}),
        ("bedrock", {"embeddings": [[0.5, -1e-7], [0.25]], "response_type": "embeddings_floats"}, {}),
    ],
)
def test_answers_are_lists_in_the_order_of_the_texts(api: str, native: Any, answer: Any) -> None:
    assert decoded(api, native) == {"data": DATA, **answer}


def test_one_vector_is_a_list_of_one() -> None:
    one = {"data": DATA[:1], "usage": COUNTED}
    assert decoded("bedrock", {"embedding": [0.5, -1e-7], "inputTextTokenCount": 7}) == one
    cloud = {"embedding": {"values": [0.5, -1e-7]}, "usageMetadata": {"promptTokenCount": 7}}
    assert decoded("vertex", cloud) == one


@pytest.mark.parametrize("api", ["openai", "azure", "mistral", "gemini", "vertex", "cohere", "bedrock"])
@pytest.mark.parametrize("native", [b"", b"[]", b"{", b'{"data": 5, "embeddings": 5, "predictions": 5}', b"\xff"])
def test_what_is_no_answer_is_an_error_of_the_provider(api: str, native: bytes) -> None:
    with pytest.raises(UpstreamError) as failed:
        decoded(api, native)
    assert failed.value.code == "bad_response"


@pytest.mark.parametrize("api", ["gemini", "vertex", "cohere", "bedrock"])
def test_an_answer_without_vectors_is_none(api: str) -> None:
    with pytest.raises(UpstreamError, match="holds no embeddings"):
        decoded(api, b"{}")


def test_an_error_inside_an_answer_is_one() -> None:
    with pytest.raises(UpstreamError, match="busy"):
        decoded("openai", {"error": {"message": "busy", "code": "overloaded"}})
    with pytest.raises(UpstreamError, match="an embedding is missing"):
        decoded("openai", {"data": [{"index": 0}]})


def test_nobody_streams_embeddings() -> None:
    with pytest.raises(NotImplementedError):
        made("openai").stream_decoder()
