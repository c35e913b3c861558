"""
Every golden case of every provider, by the same checks: nothing here knows a case by its name.
"""

from __future__ import annotations

import copy
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk
from pydantic import BaseModel

from proxy.dialects import openai as dialect
from proxy.providers import load
from tests.golden import CASES, STREAMS, Case, check_invariants, decode, fold, settle
from tests.providers import assembly

REQUIRED = {
    "anthropic": """text text-stream system image pdf tools tools-stream parallel-tools parallel-tools-stream
        tool-results tool-without-arguments-stream tool-choice-any json-schema stop reasoning reasoning-stream
        redacted-thinking signature-roundtrip cache-read cache-write cumulative-usage usage-in-message-delta
        refusal empty-content unicode-line-separator error-mid-stream overloaded truncated non-json-error
        rate-limited long-history
        json-schema-older json-schema-older-stream web-search-stream pause-turn""",
    "gemini": """text text-stream system image audio pdf tools tools-stream parallel-tools parallel-tools-stream
        tool-results tool-without-arguments-stream arguments-in-pieces tool-choice-any tool-choice-named json-schema
        json-object stop reasoning reasoning-stream signature-roundtrip cache-read cumulative-usage usage-by-modality
        refusal prompt-blocked prompt-blocked-stream malformed-call empty-content several-candidates logprobs grounding
        unicode-line-separator error-mid-stream refused-in-an-array overloaded truncated non-json-error rate-limited
        our-key-refused prompt-too-long""",
    "vertex": """text text-stream tools-stream claude claude-stream claude-tools-stream truncated claude-truncated
        claude-error-mid-stream our-account-refused model-not-found""",
    "bedrock": """text text-stream system image document tools tools-stream parallel-tools-stream tool-results
        tool-choice-any tool-choice-none json-schema json-schema-by-tool json-schema-by-tool-stream stop reasoning
        reasoning-stream redacted-thinking signature-roundtrip cache-read cache-write guardrail guardrail-stream
        citations citations-stream inference-profile exception-mid-stream error-mid-stream throttled not-json
        truncated every-parameter""",
    "openai": "text stream tools-stream error quirks usage-on-last-choice reasoning-field",
}

UNHAPPY = {
    "anthropic": """rate-limited api-error overloaded timeout billing overloaded-mid-stream overloaded-before-content
        overloaded-in-a-tool-call refusal-mid-stream guard-block guard-block-mid-stream malformed-event no-stop
        empty-answer gateway-page""",
    "openai": """rate-limited quota server-error overloaded error-mid-stream error-before-content refusal-mid-stream
        guard-block guard-block-mid-stream malformed-chunk empty-answer gateway-page""",
}
"""Failures that hardly anybody has recorded."""

PLAIN = {"stream", "tools-stream", "synthesised-refusal-mid-stream"}
"""Streams in OpenAI's shape that its own SDK can put together; the others have accents that only our decoder knows."""
ENDED = [
    case
    for case in STREAMS
    if case.api in assembly.WHOLE
    and (not case.translator.same_dialect or case.folder.name in PLAIN)
    and case.folder.name != "cut-by-length"  # in the middle of a tool's input, which then has no whole form
    and "error" not in decode(case.translator, [case.stream or b""])[-1]
]

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
every_stream = pytest.mark.parametrize("case", STREAMS, ids=lambda case: case.name)


@pytest.fixture
def update(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden", default=False))


def pretty(written: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(written), indent=2) + b"\n"


def plain(value: Any) -> Any:
    """Out of the SDK's models, and without what only they have: places in lists, and arguments once more as parsed."""
    if isinstance(value, list):
        return [plain(entry) for entry in value]
    found = value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value
    if not isinstance(found, dict):
        return found
    extra = (
        {"parsed_arguments"} if str(found.get("type", "")).startswith("reasoning.") else {"parsed_arguments", "index"}
    )
    return {name: plain(inner) for name, inner in found.items() if name not in extra}


def lines(chunks: list[dict[str, object]]) -> bytes:
    return b"".join(msgspec.json.encode(chunk) + b"\n" for chunk in chunks)


@every_case
def test_a_request_is_encoded_as_the_golden_file_says(case: Case, update: bool) -> None:
    settle(case.folder / "2_upstream_request.json", pretty(case.upstream_request()), update=update)


@every_case
def test_an_answer_is_decoded_as_the_golden_file_says(case: Case, update: bool) -> None:
    if case.stream is not None:
        written = lines(decode(case.translator, [case.stream]))
        settle(case.folder / "4_client_response.jsonl", written, update=update)
    elif (answer := case.answer()) is not None:
        settle(case.folder / "4_client_response.json", pretty(answer), update=update)
    else:
        assert "error" in case.upstream_request(), "a case without an answer is a request that is refused"


@every_case
def test_encoding_leaves_the_request_untouched(case: Case) -> None:
    """It is encoded again for each deployment that is tried."""
    chat = case.client_request
    before = copy.deepcopy(chat)
    first = case.upstream_request()
    try:
        case.translator.encode_request(chat, case.target)
        encoded = case.translator.encode_request(chat, case.target)
    except Exception:
        assert "error" in first
    else:
        assert msgspec.json.encode(encoded.body) == msgspec.json.encode(first["body"])
    assert chat == before


@every_stream
def test_a_stream_decodes_the_same_however_it_arrives(case: Case) -> None:
    """Byte by byte, in random pieces, and, where it has lines, with every kind of line end."""
    assert case.stream is not None
    whole = decode(case.translator, [case.stream])
    dice = random.Random(case.name)
    variants = [(case.stream, 50)]
    if case.translator.framing == "sse":
        variants += [(case.stream.replace(b"\n", b"\r\n"), 10), (case.stream.replace(b"\n", b"\r"), 10)]
    for data, splits in variants:
        assert decode(case.translator, [data]) == whole
        assert decode(case.translator, [data[i : i + 1] for i in range(len(data))]) == whole
        for _ in range(splits):
            cuts = sorted({0, len(data), *(dice.randrange(len(data) + 1) for _ in range(dice.randrange(12)))})
            assert decode(case.translator, [data[a:b] for a, b in pairwise(cuts)]) == whole


@every_stream
def test_a_cut_stream_is_never_taken_for_a_whole_one(case: Case) -> None:
    """Wherever it is cut, it ends in an error, unless nothing that a client sees was in the part that is missing."""
    assert case.stream is not None
    whole = decode(case.translator, [case.stream])
    for cut in range(len(case.stream)):
        chunks = decode(case.translator, [case.stream[:cut]])
        assert chunks == whole or "error" in chunks[-1], cut


@every_stream
def test_a_stream_keeps_what_clients_rely_on(case: Case) -> None:
    assert case.stream is not None
    chunks = decode(case.translator, [case.stream])
    if "error" in chunks[-1]:
        assert not any(choice["finish_reason"] for chunk in chunks[:-1] for choice in chunk["choices"])
        assert not any("usage" in chunk for chunk in chunks[:-1])
    else:
        check_invariants(chunks)


@pytest.mark.parametrize("case", ENDED, ids=lambda case: case.name)
def test_a_stream_says_what_the_same_answer_says_whole(case: Case) -> None:
    """The message, why it ended and the usage; what both cost is in test_same_bill."""
    assert case.stream is not None
    folded = fold(decode(case.translator, [case.stream]))
    whole = case.translator.decode_response(msgspec.json.encode(assembly.WHOLE[case.api](case.stream)))
    assert assembly.comparable(folded) == assembly.comparable(whole)


@every_stream
def test_openais_sdk_puts_a_stream_together_as_it_was_said(case: Case) -> None:
    """It joins strings and places list entries by their `index`: a second `format` or an unnumbered citation breaks."""
    assert case.stream is not None
    chunks = decode(case.translator, [case.stream])
    whole = [chunk for chunk in chunks if "error" not in chunk]
    envelope = dialect.Envelope(id="chatcmpl-1", created=1, model="m")
    state: ChatCompletionStreamState[None] = ChatCompletionStreamState()
    for chunk in whole:
        state.handle_chunk(ChatCompletionChunk.model_validate_json(envelope.encode(chunk)[6:]))
    if not any(chunk["choices"] for chunk in whole):
        assert chunks[:-1] == []
        return
    choices = {choice.index: choice for choice in state.current_completion_snapshot.choices}
    for index, choice in choices.items():
        mine = [one for one in whole if one["choices"] and one["choices"][0]["index"] == index]
        expected = fold(mine, finished=chunks == whole)["choices"][0]
        assert choice.finish_reason == expected.get("finish_reason")
        for name, value in expected["message"].items():
            told = getattr(choice.message, name)
            assert (plain(told) or None) == (value or None), name


@pytest.mark.parametrize("api", sorted(REQUIRED))
def test_every_provider_has_the_cases_others_have_paid_for(api: str) -> None:
    assert set(REQUIRED[api].split()) <= {case.folder.name for case in CASES if case.api == api}


@pytest.mark.parametrize("api", sorted(UNHAPPY))
def test_every_provider_has_been_seen_to_fail(api: str) -> None:
    made = {case.folder.name for case in CASES if case.api == api and case.synthesised}
    assert {f"synthesised-{name}" for name in UNHAPPY[api].split()} <= made


@pytest.mark.parametrize("name", ["", "_x", "os.path", "chunks", "faults", "quirks", "nobody"])
def test_a_module_that_speaks_no_api_is_none(name: str) -> None:
    with pytest.raises(LookupError, match="no API"):
        load(name)


def test_translators_know_no_world() -> None:
    """No socket, clock, dice, log or identifier: their output depends on their input alone."""
    forbidden = ("asyncio", "socket", "time", "os", "random", "logging", "uuid", "datetime", "secrets")
    room = Path(__file__).parent.parent / "proxy" / "providers"
    for path in room.rglob("*.py"):
        for line in path.read_text().splitlines():
            words = line.split()
            if words[:1] in (["import"], ["from"]):
                assert words[1].split(".")[0] not in forbidden, f"{path.name}: {line}"
