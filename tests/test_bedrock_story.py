"""Requests to Bedrock through a whole gateway: the official client in front, AWS's wire behind, rows in the ledger."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from openai import APIError, AsyncOpenAI, RateLimitError

from tests.eventstream import event, exception
from tests.gateway import Gateway
from tests.place import Place, opened

CONFIG = """\
providers:
  bedrock:
    {{region: us-east-1, access_key_id: AKIDTHESTORY, secret_access_key: a-key-of-a-story, api_base: "{url}"}}
models:
  "bedrock/*": bedrock/*
prices: {{models: {{"bedrock/*": {{input: 1, output: 5, cached_input: 0.1, cache_write: 1.25}}}}}}
"""
MODEL = "bedrock/us.anthropic.claude-haiku-4-5-20251001-v1:0"
PATH = "POST /model/us.anthropic.claude-haiku-4-5-20251001-v1%3A0"
USAGE = {
    "inputTokens": 7,
    "outputTokens": 4,
    "totalTokens": 111,
    "cacheReadInputTokens": 100,
    "cacheWriteInputTokens": 0,
}
PIECES = [
    event("messageStart", {"role": "assistant"}),
    event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "A"}}),
    event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "hoy"}}),
    event("contentBlockStop", {"contentBlockIndex": 0}),
    event("messageStop", {"stopReason": "end_turn"}),
    event("metadata", {"usage": USAGE, "metrics": {"latencyMs": 9}}),
]


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    async with opened() as found:
        yield found


@pytest.fixture
async def gateway(place: Place, tmp_path: Path) -> AsyncIterator[Gateway]:
    found = Gateway(tmp_path / "home")
    found.config.write_text(CONFIG.format(url=place.url))
    await asyncio.to_thread(found.start)
    yield found
    await asyncio.to_thread(found.stop)


async def test_answers_streams_and_failures_go_through(place: Place, gateway: Gateway) -> None:
    client = AsyncOpenAI(base_url=gateway.base_url, api_key=gateway.key, max_retries=0)

    async def say(*, stream: bool, id: str) -> str:
        asked = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hi"}], stream=stream, extra_headers={"x-request-id": id}
        )
        answer = await asked
        if not stream:
            return answer.choices[0].message.content or ""  # type: ignore[union-attr]
        return "".join([chunk.choices[0].delta.content or "" async for chunk in answer if chunk.choices])  # type: ignore[union-attr]

    message = {"role": "assistant", "content": [{"text": "Ahoy"}]}
    whole = {"output": {"message": message}, "stopReason": "end_turn", "usage": USAGE, "metrics": {"latencyMs": 9}}
    place.answers[f"{PATH}/converse"] = (200, msgspec.json.encode(whole))
    place.answers[f"{PATH}/converse-stream"] = (200, b"".join(PIECES))
    async with client:
        assert await say(stream=False, id="whole") == "Ahoy"
        assert await say(stream=True, id="stream") == "Ahoy"
        damaged = bytearray(b"".join(PIECES))
        damaged[len(b"".join(PIECES[:3])) + 40] ^= 1
        place.answers[f"{PATH}/converse-stream"] = (200, bytes(damaged))
        with pytest.raises(APIError, match="damaged"):
            await say(stream=True, id="damaged")
        cut = [*PIECES[:3], exception("throttlingException", {"message": "Slow down."})]
        place.answers[f"{PATH}/converse-stream"] = (200, b"".join(cut))
        with pytest.raises(APIError, match="Slow down"):
            await say(stream=True, id="cut")
        place.answers[f"{PATH}/converse-stream"] = (429, b'{"message": "Too many requests."}')
        with pytest.raises(RateLimitError):
            await say(stream=True, id="refused")
    for line, headers, _ in place.asked:
        assert line.startswith(PATH)
        assert headers["authorization"].startswith("AWS4-HMAC-SHA256 Credential=AKIDTHESTORY/")
    for id in ("whole", "stream"):
        [row] = await gateway.settled(id)
        assert (row["input_tokens"], row["cache_read_tokens"], row["output_tokens"]) == (7, 100, 4)
        assert row["cost_nano_usd"] == 7 * 1000 + 100 * 100 + 4 * 5000
        assert row["source"] == "provider"
    for id in ("damaged", "cut"):
        [row] = await gateway.settled(id)
        assert row["source"] == "counted" and row["output_tokens"] > 0
    assert "a-key-of-a-story" not in gateway.log.read_text() and "AKIDTHESTORY" not in gateway.log.read_text()
