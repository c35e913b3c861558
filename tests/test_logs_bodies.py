"""What is asked and answered in the log: nothing unless the operator says so, and then what he said and no more."""

from __future__ import annotations

import asyncio
import io
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import CallerError
from proxy.exchange import Exchange
from proxy.hiding import Hiding
from proxy.telemetry.bodies import MAX_CHARS, Bodies
from proxy.telemetry.logs import Line, RequestLog
from tests.gateway import ROOT, Answer, Gateway
from tests.listening_provider import MESSAGE, ListeningProvider, Reply, answering, completion

PROMPT, ANSWER = "nightjar moth prompt of somebody", "swift gnat answer of a model"
SECRET = "sk-oracle-of-the-tests"
"""Of the configuration of every gateway here."""
PICTURE = "iVBORw0KGgoAAAANSUhEUgAAAAUA"
REFUSED = Reply(400, {"content-type": "application/json"}, b'{"error": {"message": "no such thing", "code": "odd"}}')
Mode = Literal["none", "errors", "redacted", "full"]


class House:
    """A gateway with one of the modes, before a provider that answers as the test says."""

    def __init__(self, home: Path, provider: ListeningProvider, mode: str) -> None:
        self.provider = provider
        self.gateway = Gateway(home, oracle=provider.url)
        if mode:
            text = self.gateway.config.read_text()
            assert "format: json}" in text
            self.gateway.config.write_text(text.replace("format: json}", f"format: json, bodies: {mode}}}"))
        self.gateway.start()
        self._asked = 0

    def ask(self, answer: Reply | None = None, key: str = "", **fields: Any) -> tuple[Answer, dict[str, Any] | None]:
        """The answer, and the line of its bodies if there is one once a later request's line has been written."""
        chat = {"model": "gpt", "messages": [{"role": "user", "content": PROMPT}], **fields}
        with answering(self.provider, lambda request: answer or whole()):
            got = self._send(self._name(), chat, key)
        last = self._name()
        self._send(last, chat, "sk-strata-" + "0" * 43)
        self._line("strata.access", last)
        return got, self._found("strata.bodies", got.headers["x-request-id"])

    def access_line(self, answer: Answer) -> dict[str, Any]:
        return self._line("strata.access", answer.headers["x-request-id"])

    def _name(self) -> str:
        self._asked += 1
        return f"bodies-{self._asked}"

    def _send(self, name: str, chat: dict[str, Any], key: str) -> Answer:
        headers = {"authorization": f"Bearer {key or self.gateway.key}", "content-type": "application/json"}
        headers["x-request-id"] = name
        return self.gateway.ask("POST", "/v1/chat/completions", headers, json.dumps(chat).encode())

    def _line(self, logger: str, id: str) -> dict[str, Any]:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            found = self._found(logger, id)
            if found is not None:
                return found
            time.sleep(0.05)
        raise AssertionError(f"no line of {logger} for {id}:\n{self.gateway.tail()}")

    def _found(self, logger: str, id: str) -> dict[str, Any] | None:
        lines = [json.loads(line) for line in self.gateway.log.read_text().splitlines() if line.startswith("{")]
        found = [line for line in lines if (line["logger"], line.get("request_id")) == (logger, id)]
        assert len(found) < 2
        return found[0] if found else None


def whole(**message: Any) -> Reply:
    said = {**MESSAGE, "content": ANSWER, **message}
    return completion(choices=[{"index": 0, "message": said, "finish_reason": "stop"}])


def stream(*chunks: dict[str, Any], usage: bool = True, breaks: bool = False) -> Reply:
    said: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": delta}]} for delta in chunks]
    if breaks:
        said.append({"error": {"message": "the model fell over", "code": "odd"}})
    else:
        said.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    if usage:
        said.append({"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 7, "total_tokens": 11}})
    events = "".join(f"data: {json.dumps({'id': 'c', 'object': 'chat.completion.chunk', **one})}\n\n" for one in said)
    return Reply(200, {"content-type": "text/event-stream"}, f"{events}data: [DONE]\n\n".encode())


def halves(text: str) -> list[dict[str, Any]]:
    return [{"content": text[:9]}, {"content": text[9:]}]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], House]]:
    """The house with a mode; each is built once."""
    houses: dict[str, House] = {}
    with ListeningProvider() as provider:

        def build(mode: str) -> House:
            if mode not in houses:
                houses[mode] = House(tmp_path_factory.mktemp("bodies") / "home", provider, mode)
            return houses[mode]

        yield build
        for one in houses.values():
            one.gateway.stop()


@pytest.mark.parametrize("mode", ["", "none"])
def test_without_a_word_of_the_operator_no_text_is_in_the_log(house: Callable[[str], House], mode: str) -> None:
    one = house(mode)
    for answer, stream_it in ((whole(), False), (stream(*halves(ANSWER)), True), (REFUSED, False)):
        assert one.ask(answer, stream=stream_it)[1] is None
    logged = one.gateway.log.read_text()
    assert "strata.bodies" not in logged and PROMPT not in logged and ANSWER not in logged


def test_in_full_a_line_has_what_was_asked_and_answered(house: Callable[[str], House]) -> None:
    answer, line = house("full").ask(temperature=0.5, user="u-1")
    assert answer.status == 200 and line is not None
    assert line | {"ts": ""} == {
        "ts": "",
        "level": "info",
        "logger": "strata.bodies",
        "message": "bodies",
        "request_id": answer.headers["x-request-id"],
        "endpoint": "chat",
        "model": "gpt",
        "key": "t",
        "status": 200,
        "finish_reason": line["finish_reason"],
        "asked": {
            "parameters": {"temperature": 0.5, "user": "u-1"},
            "messages": [{"role": "user", "content": PROMPT}],
        },
        "answered": {"messages": [{"role": "assistant", "content": ANSWER}]},
    }
    assert not house("full").access_line(answer).keys() & {"asked", "answered"}


@pytest.mark.parametrize("usage", [True, False])
def test_a_stream_is_there_as_one_text(house: Callable[[str], House], usage: bool) -> None:
    answer, line = house("full").ask(stream(*halves(ANSWER), usage=usage), stream=True)
    assert answer.status == 200 and line is not None and line["stream"] is True
    assert line["answered"] == {"messages": [{"role": "assistant", "content": ANSWER}]}


def test_an_answer_of_another_api_is_there_too(house: Callable[[str], House]) -> None:
    content = [{"type": "text", "text": ANSWER}]
    usage = {"input_tokens": 3, "output_tokens": 2}
    said = {"id": "m", "type": "message", "role": "assistant", "model": "claude", "content": content, "usage": usage}
    reply = Reply(200, {"content-type": "application/json"}, json.dumps(said | {"stop_reason": "end_turn"}).encode())
    answer, line = house("full").ask(reply, model="claude", max_tokens=9)
    assert answer.status == 200 and line is not None
    assert line["answered"] == {"messages": [{"role": "assistant", "content": ANSWER}]}


def test_calls_of_tools_are_there_with_their_arguments(house: Callable[[str], House]) -> None:
    function = {"name": "weather", "arguments": '{"city": "Oslo"}'}
    calls = [{"id": "c1", "type": "function", "function": function}]
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    _, line = house("full").ask(whole(content=None, tool_calls=calls), tools=tools)
    assert line is not None and line["asked"]["tools"] == ["weather"]
    call = {"name": "weather", "arguments": '{"city": "Oslo"}'}
    assert line["answered"]["messages"] == [{"role": "assistant", "tool_calls": [call]}]


@pytest.mark.parametrize("mode", ["errors", "full"])
def test_an_error_is_there_as_the_client_was_told(house: Callable[[str], House], mode: str) -> None:
    answer, line = house(mode).ask(REFUSED)
    assert answer.status == 400 and line is not None
    assert (line["status"], line["error_type"]) == (400, house(mode).access_line(answer)["error_type"])
    assert line["asked"]["messages"] == [{"role": "user", "content": PROMPT}]
    assert line["answered"] == {"error": answer.error["message"]}


@pytest.mark.parametrize("usage", [True, False])
def test_of_a_stream_that_fails_there_is_as_much_as_came(house: Callable[[str], House], usage: bool) -> None:
    answer, line = house("errors").ask(stream(*halves(ANSWER), usage=usage, breaks=True), stream=True)
    assert answer.status == 200 and line is not None and line["error_type"]
    assert line["answered"]["messages"] == [{"role": "assistant", "content": ANSWER}]
    assert "the model fell over" in line["answered"]["error"]


def test_with_errors_only_what_went_well_is_not_there(house: Callable[[str], House]) -> None:
    assert house("errors").ask()[1] is None
    assert house("errors").ask(stream(*halves(ANSWER)), stream=True)[1] is None
    _, line = house("errors").ask(model="nobody-has-it")
    assert line is not None and line["error_type"] == "caller_model_not_found"


@pytest.mark.parametrize("mode", ["errors", "full"])
def test_who_has_no_key_puts_nothing_into_the_log(house: Callable[[str], House], mode: str) -> None:
    answer, line = house(mode).ask(key="sk-strata-" + "1" * 43, messages=[{"role": "user", "content": "a stranger's"}])
    assert answer.status == 401 and line is None
    assert "a stranger's" not in house(mode).gateway.log.read_text()


def test_redacted_there_is_the_structure_and_no_text(house: Callable[[str], House]) -> None:
    one = house("redacted")
    parts = [
        {"type": "text", "text": PROMPT},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}},
    ]
    tools = [{"type": "function", "function": {"name": "weather", "description": PROMPT}}]
    more: dict[str, Any] = {"temperature": 0.5, "user": PROMPT, "reasoning_effort": "low", PROMPT: PROMPT}
    _, line = one.ask(
        messages=[{"role": "user", "content": parts}], tools=tools, response_format={"type": "text"}, **more
    )
    assert line is not None
    assert line["asked"] == {
        "parameters": {
            "response_format": {"entries": 1, "type": "text"},
            "temperature": 0.5,
            "user": {"chars": len(PROMPT)},
            "reasoning_effort": "low",
        },
        "other_parameters": 1,
        "tools": ["weather"],
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": {"chars": len(PROMPT)}},
                    {"type": "image_url", "chars": len(PICTURE) + 22, "kind": "image"},
                ],
            }
        ],
    }
    assert line["answered"] == {"messages": [{"role": "assistant", "content": {"chars": len(ANSWER)}}]}
    assert one.ask(stream(*halves(ANSWER)), stream=True)[1] is not None
    _, failed = one.ask(REFUSED)
    assert failed is not None and set(failed["answered"]["error"]) == {"chars"}
    logged = one.gateway.log.read_text()
    assert PROMPT not in logged and ANSWER not in logged and PICTURE not in logged


@pytest.mark.parametrize("streamed", [False, True])
def test_a_secret_is_hidden_in_what_is_asked_and_in_what_is_answered(
    house: Callable[[str], House], streamed: bool
) -> None:
    text = f"is {SECRET} or sk-1234567890abcdef a key"
    # in pieces that do not show it each
    reply = stream({"content": "it is sk-oracle-"}, {"content": "of-the-tests"}) if streamed else whole(content=text)
    more: dict[str, Any] = {"metadata": {"password": "hunter22"}, "stop": [SECRET]}
    _, line = house("full").ask(reply, messages=[{"role": "user", "content": text}], stream=streamed, **more)
    assert line is not None
    assert line["asked"]["messages"][0]["content"] == "is … or sk-… a key"
    assert line["asked"]["parameters"]["metadata"] == {"password": "…"}
    assert line["answered"]["messages"][0]["content"] == ("it is …" if streamed else "is … or sk-… a key")
    logged = house("full").gateway.log.read_text()
    assert SECRET not in logged and "hunter22" not in logged and "1234567890abcdef" not in logged


def test_pictures_and_files_are_never_there(house: Callable[[str], House]) -> None:
    link = "https://example.com/a-private-picture.png"
    parts = [
        {"type": "image_url", "image_url": {"url": link}},
        {"type": "input_audio", "input_audio": {"data": PICTURE, "format": "wav"}},
        {"type": "file", "file": {"filename": "salaries.pdf", "file_data": f"data:application/pdf;base64,{PICTURE}"}},
    ]
    _, line = house("full").ask(messages=[{"role": "user", "content": parts}], user=f"data:image/png;base64,{PICTURE}")
    assert line is not None
    assert line["asked"]["messages"][0]["content"] == [
        {"type": "image_url", "chars": len(link)},
        {"type": "input_audio", "chars": len(PICTURE)},
        {"type": "file", "chars": len(PICTURE) + 28, "kind": "application"},
    ]
    logged = house("full").gateway.log.read_text()
    assert PICTURE not in logged and "a-private-picture" not in logged and "salaries" not in logged


def line_of(mode: Mode, asked: dict[str, Any], answer: str = "", pretty: bool = False, error: str = "") -> str:
    out = io.StringIO()
    bodies = Bodies(mode, RequestLog(out, pretty=pretty, hide=Hiding([SECRET])))
    exchange = Exchange(bytes(16), "req_" + "a" * 20, "chat", 1_700_000_000_123, 0, status=200, asked=asked)
    exchange.answered = [{"role": "assistant", "content": answer}] if answer else []
    exchange.error = CallerError(error) if error else None
    for tell in bodies.listeners:
        tell(exchange)
    return out.getvalue()


def test_bodies_are_written_at_every_level_and_take_half_of_the_room_at_most() -> None:
    out = io.StringIO()
    log = RequestLog(out, access=False, limit_bytes=10_000)
    bodies = Bodies("full", log)
    asked = {"messages": [{"role": "user", "content": "a b " * 100}]}

    async def write_many() -> None:
        running = asyncio.create_task(log.run())
        await asyncio.sleep(0)
        for _ in range(100):
            bodies.note(Exchange(bytes(16), "req_" + "a" * 20, "chat", 1_700_000_000_123, 0, asked=asked))
        assert log.dropped > 80
        log.put(Line("", "info", "strata.access", "a request"))
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(write_many())
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["logger"] for line in lines] == ["strata.bodies"] * (100 - log.dropped) + ["strata.access"]
    assert 5_000 <= len(out.getvalue()) < 6_500


def test_what_is_long_is_cut_with_a_mark_and_a_secret_at_the_cut_is_hidden() -> None:
    for room in range(MAX_CHARS - 100, MAX_CHARS):
        text = "x " * (room // 2) + SECRET + " y" * 100
        said = json.loads(line_of("full", {"messages": [{"role": "user", "content": text}]}, text))
        for content in (said["asked"]["messages"][0]["content"], said["answered"]["messages"][0]["content"]):
            assert content.endswith("…") and len(content) <= MAX_CHARS + 1
            assert "sk-oracle" not in content


def test_of_many_messages_there_are_the_first_and_how_many_are_left_out() -> None:
    messages = [{"role": "user", "content": "hm"}] * 20_000
    for mode in ("redacted", "full"):
        shown = json.loads(line_of(mode, {"messages": messages}))["asked"]["messages"]
        assert len(shown) - 1 + shown[-1]["left_out"] == 20_000
        assert 100 < len(shown) < 1_000


def test_on_a_terminal_it_is_one_line_that_moves_no_cursor() -> None:
    said = line_of("full", {"messages": [{"role": "user", "content": "a\n\x1b[2Jb\u202e"}]}, "so\r", pretty=True)
    assert said.count("\n") == 1 and said.endswith("\n")
    assert not re.search("[\x00-\x09\x0b-\x1f\u202e]", said)
    assert "asked=" in said and "answered=" in said


MARK = "Ωword"
"""In every text that a client writes."""
words = st.text(max_size=20).map(lambda text: f"{MARK}{text}")
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(words | st.sampled_from(["type", "text"]), inner, max_size=4)
    ),
    max_leaves=12,
)
fields = st.sampled_from(
    ["role", "content", "name", "refusal", "tool_calls", "function_call", "reasoning_content", "audio"]
)
kinds = words | st.sampled_from(["text", "refusal", "image_url", "input_audio", "file"])
parts = st.fixed_dictionaries({"type": kinds}, optional={"text": words, "image_url": anything, "file": anything})
messages = st.lists(st.dictionaries(fields, anything | st.lists(parts, max_size=3), max_size=4), min_size=1, max_size=4)
chats = st.builds(
    lambda said, more: {**more, "messages": said},
    messages,
    st.dictionaries(words | st.sampled_from(["stop", "user", "metadata", "response_format"]), anything, max_size=4),
)


def without_names_of_calls(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: without_names_of_calls(one) for name, one in value.items() if name != "name" or isinstance(one, dict)
        }
    return [without_names_of_calls(one) for one in value] if isinstance(value, list) else value


@given(chats, words)
def test_whatever_a_client_writes_is_not_in_a_redacted_line(chat: dict[str, Any], answer: str) -> None:
    said = line_of("redacted", chat, answer, error=f"no: {answer}")
    assert said.count("\n") == 1
    assert MARK not in json.dumps(without_names_of_calls(json.loads(said)), ensure_ascii=False)


@given(chats, words)
def test_whatever_a_client_writes_is_a_line_of_json_and_bounded(chat: dict[str, Any], answer: str) -> None:
    chat["messages"] = chat["messages"] * 1_000
    said = line_of("full", chat, answer)
    assert said.count("\n") == 1
    assert json.loads(said)["answered"] == {"messages": [{"role": "assistant", "content": answer}]}
    assert len(said) < 20 * MAX_CHARS


def test_the_page_names_every_field_of_a_line_and_no_other() -> None:
    page = (ROOT / "docs" / "logs.md").read_text()
    table = page.partition("| field | meaning |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(Line.__struct_fields__)


def test_the_page_says_of_each_mode_what_it_is() -> None:
    page = (ROOT / "docs" / "logs.md").read_text()
    assert re.findall(r"^\| `(none|errors|redacted|full)` \|", page, re.MULTILINE) == [
        "none", "errors", "redacted", "full",
    ]  # fmt: skip
