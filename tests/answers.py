"""
One recorded or made-up answer, both ways it can take through the gateway: as it came, with a tap on it, and translated.
What is billed and what the client reads, as the relay would do it, without a socket.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from proxy.config import Deployment, Provider
from proxy.dialects.openai import DONE, Envelope, stamp_completion
from proxy.exchange import Attempt, Exchange, Usage
from proxy.providers import Json, Translator
from proxy.upstream.answers import WholeAnswer, read_fields, remember_usage
from proxy.upstream.framing import SSE
from proxy.upstream.readers import PassReader, Reader, TranslatedReader

COST = 0.25


class Outcome(NamedTuple):
    usage: Usage | None
    suspect: bool
    usage_raw: bytes
    tier: str
    finish: str
    shown: bytes
    """What the client gets."""


def whole(translator: Translator, body: bytes, *, passes: bool) -> Outcome:
    one, on = _attempt(), _exchange(stream=False)
    answer = WholeAnswer(one, read_fields(body), None) if passes else None
    if answer is None or not answer.is_regular():
        answer = WholeAnswer(one, None, translator.decode_response(body))
    one.service_tier = answer.read_service_tier()
    answer.take_usage(on)
    finish = next((choice.finish_reason or "" for choice in answer.choices()), "")
    if answer.completion is None:
        shown = answer.with_cost(COST)
    else:
        shown = stamp_completion(answer.completion, id="chatcmpl-1", created=1, model="m", cost=COST, notices=())
    return Outcome(one.usage, one.usage_suspect, one.usage_raw, one.service_tier, finish, shown)


def streamed(translator: Translator, stream: bytes, *, passes: bool) -> Outcome:
    """Raises UpstreamError where the stream is an error or was cut."""
    one, on = _attempt(), _exchange(stream=True)
    envelope = Envelope(id="chatcmpl-1", created=1, model="m")
    reader: Reader = (
        PassReader(one, envelope, True)
        if passes
        else TranslatedReader(translator.stream_decoder(), one, envelope, True, lambda details, calls: None)
    )
    framing = SSE()
    shown = b"".join(reader.feed(event) for event in [*framing.feed(stream), *framing.close()] if not reader.done)
    shown += b"" if reader.done else reader.close()
    if reader.usage is not None:
        remember_usage(on, one, reader.usage, reader.usage_raw)
    shown += reader.ending(COST)
    return Outcome(one.usage, one.usage_suspect, one.usage_raw, one.service_tier, reader.finish_reason, shown)


def check_for_clients(shown: bytes) -> list[Json]:
    """
    Raises where the types of OpenAI's own SDK would not take what a client reads, or a stream is not as clients rely on
    it. Gives back the completion, or the chunks.
    """
    if not shown.startswith(b"data: "):
        ChatCompletion.model_validate_json(shown)
        return [msgspec.json.decode(shown)]
    assert shown.endswith(DONE)
    lines = [line.removeprefix(b"data: ") for line in shown.removesuffix(DONE).split(b"\n\n") if line]
    chunks: list[Json] = [msgspec.json.decode(line) for line in lines]
    for line in lines:
        ChatCompletionChunk.model_validate_json(line)
    finishes = [choice["finish_reason"] for one in chunks for choice in one["choices"] if choice.get("finish_reason")]
    usages = [place for place, one in enumerate(chunks) if one.get("usage")]
    assert finishes and usages in ([], [len(chunks) - 1]), "a finish, and the usage last and once"
    if usages:
        assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["cost"] == COST
    return chunks


def total_of(native: Any) -> int | None:
    """What the provider's own usage says all tokens are."""
    return native.get("total_tokens") if isinstance(native, dict) else None


def _attempt() -> Attempt:
    provider = Provider(name="one", api_base="https://one.example/v1")
    return Attempt(number=1, deployment=Deployment(provider=provider, model="a"), started_ns=0)


def _exchange(*, stream: bool) -> Exchange:
    return Exchange(
        id=b"i" * 16, request_id="req_1", endpoint="chat", started_at_ms=1, started_ns=0, stream=stream, model="m"
    )
