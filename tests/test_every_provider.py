"""
A real gateway in front of every known provider's shape of answer, with OpenAI's own SDK before it: streamed or whole,
each answer leaves the same row in the ledger and says the same to the client.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from proxy.config.presets import PRESETS
from proxy.exchange import Usage
from tests.gateway import Gateway
from tests.golden import ROOT
from tests.providers.test_presets import SHAPES, stream_of, whole_of

NATIVE = {
    "mistral": (Usage(input=14, output=6), "Snowdon."),
    "cohere": (Usage(input=9, output=5), "Snowdon."),
}
"""Those whose API is their own answer as their golden cases `text` and `text-stream`: the bill, and the words."""
EXPECTED = {name: (shape.bill, "Hi") for name, shape in SHAPES.items()} | NATIVE
BUCKETS = ("input", "cache_read", "output", "reasoning")


class Upstream(BaseHTTPRequestHandler):
    """Every provider at once: the first step of the path says which."""

    protocol_version = "HTTP/1.1"
    asked: dict[str, list[tuple[str, dict[str, str]]]]
    bodies: list[Any]

    def do_POST(self) -> None:
        body = msgspec.json.decode(self.rfile.read(int(self.headers["content-length"])))
        _, name, *rest = self.path.split("/")
        self.asked.setdefault(name, []).append(("/" + "/".join(rest), {k.lower(): v for k, v in self.headers.items()}))
        self.bodies.append(body)
        tools = "tools" in body and body["messages"][-1]["role"] == "user"
        answer = call_of(bool(body.get("stream"))) if tools else self._answer(name, bool(body.get("stream")))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream" if body.get("stream") else "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def _answer(self, name: str, stream: bool) -> bytes:
        if name in SHAPES:
            return stream_of(SHAPES[name]) if stream else whole_of(SHAPES[name])
        file = "text-stream/3_upstream_response.sse" if stream else "text/3_upstream_response.json"
        answer = (ROOT / name / file).read_bytes()
        return answer.replace(b'"cached_tokens": 8', b'"cached_tokens": 0')

    def log_message(self, format: str, *args: Any) -> None: ...


def call_of(stream: bool) -> bytes:
    """A call after some thought, in DeepSeek's shape."""
    call = {"index": 0, "id": f"call_{stream}", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    usage = {"prompt_tokens": 9, "completion_tokens": 6, "total_tokens": 15}
    if not stream:
        message = {"role": "assistant", "content": "", "reasoning_content": "I will look.", "tool_calls": [call]}
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
        return msgspec.json.encode({"object": "chat.completion", "choices": [choice], "usage": usage})
    deltas = [{"reasoning_content": "I will"}, {"reasoning_content": " look."}, {"tool_calls": [call]}, {}]
    chunks: list[Any] = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    chunks[-1]["choices"][0]["finish_reason"] = "tool_calls"
    chunks[-1]["usage"] = usage
    return b"".join(b"data: %s\n\n" % msgspec.json.encode(chunk) for chunk in chunks) + b"data: [DONE]\n\n"


@pytest.fixture(scope="module")
def upstream() -> Iterator[ThreadingHTTPServer]:
    Upstream.asked, Upstream.bodies = {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def gateway(upstream: ThreadingHTTPServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    running = Gateway(tmp_path_factory.mktemp("every-provider") / "home")
    running.config.write_text(config(f"http://127.0.0.1:{upstream.server_port}"))
    try:
        yield running.start()
    finally:
        running.stop()


@pytest_asyncio.fixture
async def client(gateway: Gateway) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=gateway.base_url, api_key=gateway.key, max_retries=0) as client:
        yield client


def config(address: str) -> str:
    """A line a provider, and for each a model of its own name at the same price."""
    price = "{input: 1, cached_input: 0.5, output: 3}"
    providers = [f'  {name}: {{api_base: "{address}/{name}", api_key: k-of-{name}}}' for name in EXPECTED]
    prices = [f"    {name}/*: {price}" for name in EXPECTED]
    models = [f"  {name}: {name}/m" for name in EXPECTED]
    return "\n".join(["providers:", *providers, "models:", *models, "prices:", "  models:", *prices]) + "\n"


def test_every_known_provider_is_here_but_those_with_tests_like_this_of_their_own() -> None:
    elsewhere = {preset.api for preset in PRESETS.values()} - {"openai", "azure", *NATIVE}
    assert {name for name, preset in PRESETS.items() if preset.api not in elsewhere} == set(EXPECTED)


@pytest.mark.parametrize("name", sorted(EXPECTED))
async def test_streamed_or_whole_the_row_is_the_same(gateway: Gateway, client: AsyncOpenAI, name: str) -> None:
    bill, words = EXPECTED[name]
    ask: dict[str, Any] = {"model": name, "messages": [{"role": "user", "content": "Hello"}]}
    whole = await client.chat.completions.create(**ask, extra_headers={"x-request-id": f"whole-{name}"})
    parts = await client.chat.completions.create(
        **ask, stream=True, stream_options={"include_usage": True}, extra_headers={"x-request-id": f"stream-{name}"}
    )
    chunks = [chunk async for chunk in parts]

    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert (whole.choices[0].message.content, text) == (words, words)
    assert whole.usage is not None and chunks[-1].usage is not None
    nano_usd = bill.input * 1_000 + bill.cache_read * 500 + bill.completion * 3_000
    for id, usage in ((f"whole-{name}", whole.usage), (f"stream-{name}", chunks[-1].usage)):
        (row,) = await gateway.settled(id)
        assert {bucket: row[f"{bucket}_tokens"] for bucket in BUCKETS} == {
            bucket: getattr(bill, bucket) for bucket in BUCKETS
        }
        assert (row["source"], row["cost_nano_usd"], row["price_state"]) == ("provider", nano_usd, "priced")
        assert (usage.prompt_tokens, usage.completion_tokens) == (bill.prompt, bill.completion)
        assert getattr(usage, "cost", None) == nano_usd / 1_000_000_000


@pytest.mark.parametrize("name", sorted(EXPECTED))
async def test_the_key_goes_where_the_provider_wants_it(client: AsyncOpenAI, name: str) -> None:
    await client.chat.completions.create(model=name, messages=[{"role": "user", "content": "Hello"}])
    path, headers = Upstream.asked[name][-1]
    named = {"authorization": f"Bearer k-of-{name}"} if name != "azure" else {"api-key": "k-of-azure"}
    assert {header: headers.get(header) for header in named} == named
    ends = {"azure": "/openai/v1/chat/completions", "cohere": "/v2/chat"}
    assert urlsplit(path).path == ends.get(name, "/chat/completions")


def test_the_folder_of_a_provider_is_where_its_cases_are() -> None:
    assert all((Path(ROOT) / PRESETS[name].api / "text").is_dir() for name in EXPECTED)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("name", "field"), [("deepseek", "reasoning_content"), ("groq", "reasoning"), ("vllm", "")])
async def test_thoughts_that_a_client_drops_go_back_where_they_are_wanted(
    client: AsyncOpenAI, name: str, field: str, stream: bool
) -> None:
    tool: Any = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    user: Any = {"role": "user", "content": "Look."}
    answer: Any = await client.chat.completions.create(model=name, messages=[user], tools=[tool], stream=stream)
    if stream:
        chunks = [chunk async for chunk in answer]
        (call,) = [one for chunk in chunks for choice in chunk.choices for one in choice.delta.tool_calls or ()]
    else:
        (call,) = answer.choices[0].message.tool_calls
    function = {"name": call.function.name, "arguments": call.function.arguments or "{}"}
    said: Any = {"role": "assistant", "tool_calls": [{"id": call.id, "type": "function", "function": function}]}
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "nothing"}
    await client.chat.completions.create(model=name, messages=[user, said, result], tools=[tool])
    expected = {**said, **({field: "I will look."} if field else {})}
    assert Upstream.bodies[-1]["messages"][1] == expected
