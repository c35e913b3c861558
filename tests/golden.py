"""
The golden cases of the providers: tests/providers/<api>/<case>/, files numbered in the order in which they happen.

    0_target.json               what the gateway knows of the deployment, if it is more than the model's name
    1_client_request.json       given
    2_upstream_request.json     ours: path, headers, body, notices; or the error that refuses it
    3_upstream_response.sse     given; or .json: the body, or {status, headers, body}; or .txt: a body that is no JSON;
                                or .eventstream.jsonl: an AWS event a line ({event, exception or error, data}), to be
                                framed here
    4_client_response.jsonl     ours: a chunk a line, an error last; or .json: the completion, or the error

A case whose name begins with `synthesised-` is traffic that nobody has recorded: made from what a provider's
documentation and SDKs say of its failures. Figures about real traffic leave it out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from proxy.errors import GatewayError, UpstreamError
from proxy.providers import Chunk, Completion, Json, Target, Translator, load
from proxy.upstream.answers import FRAMINGS
from tests.eventstream import framed

ROOT = Path(__file__).parent / "providers"
ORDER = {"role": 0, "content": 1, "refusal": 2}


@dataclass(frozen=True)
class Case:
    folder: Path

    @property
    def api(self) -> str:
        return self.folder.parent.name

    @property
    def name(self) -> str:
        return f"{self.api}/{self.folder.name}"

    @property
    def synthesised(self) -> bool:
        return self.folder.name.startswith("synthesised-")

    @property
    def translator(self) -> Translator:
        return load(self.api)

    @property
    def client_request(self) -> Json:
        return self._json("1_client_request.json")

    @property
    def target(self) -> Target:
        given = self._json("0_target.json") if (self.folder / "0_target.json").exists() else {}
        return Target(**{"model": self.client_request["model"], **given})

    @property
    def stream(self) -> bytes | None:
        """The provider's stream, or None where it answered whole."""
        events = self.folder / "3_upstream_response.eventstream.jsonl"
        if events.exists():
            return b"".join(framed(msgspec.json.decode(line)) for line in events.read_bytes().splitlines())
        path = self.folder / "3_upstream_response.sse"
        return path.read_bytes() if path.exists() else None

    def upstream_request(self) -> Json:
        try:
            request = self.translator.encode_request(self.client_request, self.target)
        except GatewayError as error:
            return told(error)
        written: Json = {"path": request.path, "headers": dict(request.headers), "body": request.body}
        if request.notices:
            written["notices"] = [{"param": notice.param, "message": notice.message} for notice in request.notices]
        return written

    def answer(self) -> Json | None:
        """What a whole answer becomes; None where the case is a stream or ends with the request."""
        text, whole = self.folder / "3_upstream_response.txt", self.folder / "3_upstream_response.json"
        if text.exists():
            status, _, body = text.read_bytes().partition(b"\n")
            return self._read(body) if int(status) < 300 else told(self.translator.decode_error(int(status), {}, body))
        if not whole.exists():
            return None
        given = self._json(whole.name)
        if "status" in given:
            body = msgspec.json.encode(given["body"])
            return told(self.translator.decode_error(given["status"], given.get("headers", {}), body))
        return self._read(whole.read_bytes())

    def _read(self, body: bytes) -> Json:
        try:
            return self.translator.decode_response(body)
        except UpstreamError as error:
            return told(error)

    def _json(self, name: str) -> Json:
        decoded: Json = msgspec.json.decode((self.folder / name).read_bytes())
        return decoded


CASES = [Case(path) for path in sorted(ROOT.glob("*/*")) if (path / "1_client_request.json").exists()]
STREAMS = [case for case in CASES if case.stream is not None]


def told(error: GatewayError) -> Json:
    """All that an error says and decides."""
    fields: Json = {"status": error.status, "error_type": error.error_type, **error.body()}
    if isinstance(error, UpstreamError):
        fields |= {"retryable": error.retryable, "rest": error.rest, "upstream_status": error.upstream_status}
        fields |= {"retry_after_seconds": error.retry_after_seconds}
    return fields


def decode(translator: Translator, pieces: Iterable[bytes]) -> list[Json]:
    """The chunks of a stream that arrives in these pieces; an error is the last of them."""
    framing, decoder = FRAMINGS[translator.framing](), translator.stream_decoder()
    chunks: list[Chunk] = []
    try:
        for piece in pieces:
            for event in framing.feed(piece):
                chunks += decoder.feed(event)
        for event in framing.close():
            chunks += decoder.feed(event)
        chunks += decoder.close()
    except UpstreamError as error:
        chunks.append(told(error))
    return chunks


def settle(path: Path, written: bytes, *, update: bool) -> None:
    """Compares with the golden file, or rewrites it."""
    if update:
        path.write_bytes(written)
    assert path.exists(), f"{path} is missing; run pytest with --update-golden and review it"
    assert written.decode() == path.read_text(), f"{path} differs; run pytest with --update-golden and review the diff"


def check_invariants(chunks: Sequence[Chunk]) -> None:
    """What every OpenAI client relies on, for a stream that ended well."""
    *parts, last = chunks if chunks and not chunks[-1]["choices"] else [*chunks, {"choices": [], "usage": None}]
    assert all(chunk["choices"] and "usage" not in chunk for chunk in parts), "usage comes once, last, without choices"
    if last["usage"] is not None:
        usage = last["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    by_choice: dict[int, list[Json]] = {}
    for chunk in parts:
        (choice,) = chunk["choices"]
        by_choice.setdefault(choice["index"], []).append(choice)
    assert by_choice, "an answer has a choice"
    for choices in by_choice.values():
        check_choice(choices)


def check_choice(choices: Sequence[Json]) -> None:
    assert choices[0]["delta"].get("role") == "assistant", "the role comes first"
    assert all("role" not in choice["delta"] for choice in choices[1:]), "and once"
    assert [bool(choice["finish_reason"]) for choice in choices] == [False] * (len(choices) - 1) + [True]
    assert choices[-1]["delta"] == {}
    assert choices[-1]["finish_reason"] in {"stop", "length", "tool_calls", "content_filter", "function_call"}
    fragments = [call for choice in choices for call in choice["delta"].get("tool_calls", ())]
    seen: list[int] = []
    for call in fragments:
        if call["index"] not in seen:
            seen.append(call["index"])
            assert call["type"] == "function"
            assert "name" in call["function"]
        else:
            assert "id" not in call and "name" not in call["function"], "one id and one name for each call"
    assert seen == list(range(len(seen))), "tool calls are numbered from 0 in order of appearance"
    assert (choices[-1]["finish_reason"] == "tool_calls") <= bool(seen), "no tool_calls without a call"


def fold(chunks: Sequence[Chunk], *, finished: bool = True) -> Completion:
    """The completion that a client puts together from a stream with one choice, whether or not it `finished`."""
    message: Json = {"role": "assistant", "content": None, "refusal": None}
    completion: Completion = {"choices": []}
    for chunk in chunks:
        if not chunk["choices"]:
            completion["usage"] = chunk["usage"]
            continue
        (choice,) = chunk["choices"]
        for name, value in choice["delta"].items():
            if name == "tool_calls":
                calls = message.setdefault("tool_calls", [])
                for call in value:
                    _fold_call(calls, call)
            elif name == "reasoning_details":
                _fold_details(message.setdefault(name, []), value)
            elif isinstance(value, list):
                _fold_entries(message.setdefault(name, []), value)
            elif name != "role" and value:
                message[name] = (message.get(name) or "") + value
        if choice["finish_reason"] or not finished:
            rest = {name: value for name, value in choice.items() if name != "delta"}
            completion["choices"] = [{**rest, "message": message}]
    return completion


def _fold_call(calls: list[Json], call: Json) -> None:
    if call["index"] == len(calls):
        calls.append(
            {name: value for name, value in call.items() if name != "index"} | {"function": {**call["function"]}}
        )
    else:
        calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]


def _fold_entries(entries: list[Json], pieces: list[Json]) -> None:
    """Objects that come whole; their place is the stream's alone."""
    for piece in pieces:
        assert piece["index"] == len(entries), "SDKs put lists together by `index`"
        entries.append({name: value for name, value in piece.items() if name != "index"})


def _fold_details(details: list[Json], fragments: list[Json]) -> None:
    for fragment in fragments:
        known = next((detail for detail in details if detail["index"] == fragment["index"]), None)
        assert known is None or not {"format", "id"} & fragment.keys() & known.keys(), (
            "SDKs join strings, so this would double"
        )
        if known is None:
            details.append(dict(fragment))
            continue
        text: Any = known.get("text", "") + fragment.get("text", "")
        known.update(fragment)
        if text:
            known["text"] = text
