"""
A stock OpenAI client in front of Gemini and of Claude on Vertex: a real gateway, real sockets, and Google's part played
by a server that refuses what Google refuses.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.gateway import Gateway

SIGNATURE = "CtwBAb4+9vtzaWduZWQ="
CONFIG = """\
providers:
  gemini: {{api_base: "{google}/v1beta", api_key: AIza-of-the-tests}}
  vertex: {{project: birds, region: global, access_token: ya29-of-the-tests, api_base: "{google}"}}
models:
  gem: gemini/gemini-3-pro-preview
  claude: vertex/claude-sonnet-4-5
  "gemini/*": gemini/*
prices: {{models: {{gemini/*: {{input: 1, output: 10}}}}}}
logging: {{level: info, format: json}}
"""
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
]
HELLO: list[Any] = [{"role": "user", "content": "Bonn?"}]


class Google(BaseHTTPRequestHandler):
    """Calls the tool first; then wants its signature back, as Gemini 3 does."""

    asked: list[tuple[str, dict[str, str], Any]] = []  # noqa: RUF012  # the server makes a new instance for each request

    def log_message(self, *_: object) -> None: ...

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.asked.append((self.path, headers, body))
        if "anthropic" in self.path:
            return self.reply(200, _claudes())
        if headers.get("x-goog-api-key") != "AIza-of-the-tests":
            return self.reply(
                400, {"error": {"code": 400, "message": "API key not valid.", "status": "INVALID_ARGUMENT"}}
            )
        calls = [part for turn in body["contents"] for part in turn["parts"] if "functionCall" in part]
        if any(part.get("thoughtSignature") != SIGNATURE for part in calls):
            told = "Function call is missing a thought_signature in functionCall parts."
            return self.reply(400, {"error": {"code": 400, "message": told, "status": "INVALID_ARGUMENT"}})
        call = {"functionCall": {"name": "weather", "args": {}}, "thoughtSignature": SIGNATURE}
        answer = _answer({"text": "Clear."} if calls else call)
        if self.path.endswith(":streamGenerateContent?alt=sse"):
            return self.send(200, "text/event-stream", b"data: " + json.dumps(answer).encode() + b"\r\n\r\n")
        return self.reply(200, answer)

    def reply(self, status: int, body: Any) -> None:
        self.send(status, "application/json", json.dumps(body).encode())

    def send(self, status: int, kind: str, data: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _answer(part: Any) -> Any:
    usage = {"promptTokenCount": 100, "candidatesTokenCount": 10, "thoughtsTokenCount": 40, "totalTokenCount": 150}
    candidate = {"content": {"role": "model", "parts": [part]}, "finishReason": "STOP", "index": 0}
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "gemini-3-pro-preview"}


def _claudes() -> Any:
    usage = {"input_tokens": 9, "output_tokens": 4}
    content = [{"type": "text", "text": "A wren."}]
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "content": content,
        "stop_reason": "end_turn",
        "usage": usage,
    }


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    google = ThreadingHTTPServer(("127.0.0.1", 0), Google)
    threading.Thread(target=google.serve_forever, daemon=True).start()
    running = Gateway(tmp_path_factory.mktemp("google") / "home")
    running.config.write_text(CONFIG.format(google=f"http://127.0.0.1:{google.server_port}"))
    yield running.start()
    running.stop()
    google.shutdown()
    google.server_close()


@pytest.fixture
def client(gateway: Gateway) -> Iterator[OpenAI]:
    Google.asked.clear()
    with OpenAI(base_url=gateway.base_url, api_key=gateway.key, max_retries=0) as sdk:
        yield sdk


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_drops_signatures_still_works_with_tools(
    gateway: Gateway, client: OpenAI, stream: bool
) -> None:
    if stream:
        chunks = client.chat.completions.create(model="gem", messages=HELLO, tools=TOOLS, stream=True)
        (call,) = [call for chunk in chunks for choice in chunk.choices for call in choice.delta.tool_calls or ()]
        id = call.id
    else:
        answer = client.chat.completions.create(model="gem", messages=HELLO, tools=TOOLS)
        assert answer.choices[0].finish_reason == "tool_calls"
        calls = answer.choices[0].message.tool_calls
        assert calls is not None
        id = calls[0].id
    plain = {"id": id, "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    again = [
        *HELLO,
        {"role": "assistant", "tool_calls": [plain]},
        {"role": "tool", "tool_call_id": id, "content": "clear"},
    ]
    raw = client.chat.completions.with_raw_response.create(model="gem", messages=again, tools=TOOLS)
    assert json.loads(raw.content)["choices"][0]["message"]["content"] == "Clear."
    assert "x-strata-warning" not in raw.headers
    (row,) = await gateway.settled(raw.headers["x-request-id"])
    assert (row["input_tokens"], row["output_tokens"], row["reasoning_tokens"]) == (100, 10, 40)
    assert raw.headers["x-strata-cost-usd"] == "0.0006"


def test_a_tier_without_a_price_is_no_way_around_a_budget(gateway: Gateway, client: OpenAI) -> None:
    """Gemini says the tier under a name of its own; what is set aside goes by it all the same."""
    poor = client.with_options(api_key=gateway.create_key("poor", "--budget", "1/1d"))
    poor.chat.completions.create(model="gem", messages=HELLO, max_tokens=500)
    with pytest.raises(openai.PermissionDeniedError, match='no price for the service tier "priority"'):
        poor.chat.completions.create(model="gem", messages=HELLO, max_tokens=500, service_tier="priority")
    assert [body.get("serviceTier") for _, _, body in Google.asked] == [None]


def test_no_key_is_in_an_address(client: OpenAI) -> None:
    client.chat.completions.create(model="gem", messages=HELLO)
    client.chat.completions.create(model="claude", messages=HELLO, max_tokens=9)
    (gemini, _, _), (claude, headers, body) = Google.asked
    assert gemini == "/v1beta/models/gemini-3-pro-preview:generateContent"
    assert claude == "/v1/projects/birds/locations/global/publishers/anthropic/models/claude-sonnet-4-5:rawPredict"
    assert headers["authorization"] == "Bearer ya29-of-the-tests"
    assert (body["anthropic_version"], "model" in body) == ("vertex-2023-10-16", False)


def test_a_model_that_is_an_address_reaches_nobody(client: OpenAI) -> None:
    raw = client.with_options(max_retries=0).chat.completions.with_raw_response
    for name in ("gemini/../../admin", "gemini/a:generateContent?x=1#"):
        with pytest.raises(openai.NotFoundError):
            raw.create(model=name, messages=HELLO)
    assert Google.asked == []
