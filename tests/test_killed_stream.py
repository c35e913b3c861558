"""
A gateway that is killed in a long stream bills it by how far it had come, and not by the most it could have cost; one
that is stopped tells those who wait, and bills what it had sent.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx2
import pytest
from openai import APIError, AsyncOpenAI

from tests.bad_inputs import chat
from tests.gateway import Gateway, OracleProcess
from tests.oracle import marker
from tests.strangers import post, whole

GAP_MS = 50


@pytest.mark.parametrize("model", ["gpt", "claude", "gemini"])
async def test_a_killed_stream_is_billed_by_its_last_second(tmp_path: Path, model: str) -> None:
    oracle = OracleProcess(tmp_path / "oracle")
    gateway = Gateway(tmp_path / "home", oracle=oracle.url).start()
    try:
        prompt = f"nonce=killed {marker(pieces=1000, gap_ms=GAP_MS)} Go on."
        pieces = 0
        async with AsyncOpenAI(base_url=gateway.base_url, api_key=gateway.key, max_retries=0) as client:
            stream = await client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": prompt}],
                stream=True,
                max_tokens=4000,
                extra_headers={"x-request-id": "killed"},
            )
            began = time.monotonic()
            with pytest.raises((APIError, httpx2.TransportError, ConnectionError)):
                async for chunk in stream:
                    pieces += bool(chunk.choices and chunk.choices[0].delta.content)
                    if gateway.process is not None and time.monotonic() - began > 2.5:
                        await asyncio.to_thread(gateway.kill9)
                        gateway.process = None
                raise ConnectionError("the stream ended with its connection")
        gateway.start()
        [row] = await gateway.settled("killed")
        [item] = oracle.items("killed")
        assert row["source"] == "orphan"
        assert pieces - 1.6 / (GAP_MS / 1000) <= row["output_tokens"] <= pieces * 8 < 4000
        assert row["output_tokens"] <= item.output_tokens * 8
        assert row["cost_nano_usd"] < 4000 * 2_000
    finally:
        gateway.stop()
        oracle.stop()


async def test_whoever_still_waits_when_a_gateway_stops_is_told_so_and_what_was_sent_is_billed(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path / "home")
    gateway.config.write_text(gateway.config.read_text().replace("shutdown_grace: 5s", "shutdown_grace: 1s"))
    gateway.start()
    try:
        waiting = asyncio.create_task(post(gateway, chat(model="sim/slow"), "x-request-id: waiting"))
        body = chat(model="sim/echo", messages=[{"role": "user", "content": "word " * 1000}], stream=True)
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(whole(gateway, body, "x-request-id: reading"))
        began = await reader.readuntil(b"data: ")
        await asyncio.sleep(0.5)
        await asyncio.to_thread(gateway.stop)
        answer, streamed = await waiting, await reader.read()
        writer.close()
        assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "gateway_stopping", "1")
        assert began.startswith(b"HTTP/1.1 200 ")
        assert b"gateway_stopping" in streamed and b"[DONE]" not in streamed
        gateway.start()
        sources = [(await gateway.settled(id))[0]["source"] for id in ("waiting", "reading")]
        assert sources == ["ambiguous", "counted"]
    finally:
        gateway.stop()
