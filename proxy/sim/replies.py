"""
From a request to a script of its reply. Pure: what to send, when to wait and where to break, without a socket.

`decide` is the whole behaviour of the provider; the server only plays the steps it gets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from proxy.sim import embeddings, faults, frames
from proxy.sim.answers import BadRequest, answer
from proxy.sim.faults import Faults

DONE = b"data: [DONE]\n\n"


class Call(msgspec.Struct, frozen=True):
    """One HTTP request, as far as it matters here."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class Step(msgspec.Struct, frozen=True):
    """One event of a stream: how long the provider thinks first, then its bytes."""

    wait_seconds: float
    data: bytes


class Reply(msgspec.Struct, frozen=True):
    """
    An answer to play: `body` as a whole, or `steps` one by one. `cut`: the connection drops where the bytes end, before
    their proper end.
    """

    status: int
    body: bytes = b""
    steps: Iterator[Step] | None = None
    delay_seconds: float = 0.0
    headers: Mapping[str, str] = {}
    cut: bool = False


def decide(call: Call, *, ordinal: int, created: int) -> Reply:
    """The reply to the `ordinal`-th call (from 1) of its model. Never raises for what a client may send."""
    path = "/" + call.path.partition("?")[0].strip("/").removeprefix("v1/")
    if path == "/models" and call.method == "GET":
        return _json(200, {"object": "list", "data": [_model(name, created) for name in faults.MODELS]})
    if path not in ("/chat/completions", "/embeddings"):
        return _json(404, frames.error(404, code="unknown_url", message=f"There is no {call.method} {path[:64]} here."))
    if call.method != "POST":
        return _json(405, frames.error(405, message="Use POST."))
    request = _decode(call.body)
    if request is None:
        return _json(400, frames.error(400, message="The body is not a JSON object."))
    name = model_of(request)
    preset = faults.MODELS.get(name)
    if preset is None:
        known = ", ".join(faults.MODELS)
        message = f"There is no simulated model {name[:64]!r}. There are: {known}."
        return _json(404, frames.error(404, code="model_not_found", message=message, param="model"))
    try:
        fault = faults.parse(call.headers.get(faults.HEADER, ""), preset)
        if path == "/embeddings":
            return _embeddings(name, request, fault, ordinal)
        return _chat(name, request, fault, ordinal, created)
    except faults.BadFault as error:
        return _json(400, frames.error(400, code="bad_fault", message=str(error)))
    except BadRequest as error:
        return _json(400, frames.error(400, code="invalid_value", message=str(error), param=error.param))


def model_of(request: Mapping[str, Any]) -> str:
    """`chat` for both `chat` and `sim/chat`."""
    name = request.get("model")
    return name.removeprefix("sim/") if isinstance(name, str) else ""


def model_in(body: bytes) -> str:
    """The model a body asks for; "" if it is none that can be read."""
    return model_of(_decode(body) or {})


def _decode(body: bytes) -> dict[str, Any] | None:
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return decoded if isinstance(decoded, dict) else None


def _embeddings(name: str, request: Mapping[str, Any], fault: Faults, ordinal: int) -> Reply:
    if refused := _refusal(fault, ordinal):
        return refused
    body = embeddings.embed(name, request)
    if fault.usage != "exact":
        del body["usage"]
    return _json(200, body, fault)


def _chat(name: str, request: Mapping[str, Any], fault: Faults, ordinal: int, created: int) -> Reply:
    streamed = request.get("stream") is True
    later = streamed and fault.error_after is not None
    if not later and (refused := _refusal(fault, ordinal)):
        return refused
    said = answer(name, request)
    if not streamed:
        return _json(200, frames.completion(said, name, created, usage=fault.usage != "none"), fault)
    options = request.get("stream_options")
    asked = isinstance(options, Mapping) and options.get("include_usage") is True
    events = frames.chunks(said, name, created, include_usage=asked)
    usage = frames.usage_chunk(said, name, created) if asked else None
    return Reply(
        200,
        steps=_steps(events, usage, fault),
        delay_seconds=fault.delay_seconds,
        headers={"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"},
        cut=fault.cut is not None,
    )


def _steps(events: Iterator[tuple[int, dict[str, Any]]], usage: dict[str, Any] | None, fault: Faults) -> Iterator[Step]:
    spoken = 0
    for weight, chunk in events:
        if fault.cut is not None and spoken >= fault.cut and weight:
            return
        if fault.error_after is not None and spoken >= fault.error_after and weight:
            break
        yield Step(weight / fault.speed if fault.speed else 0.0, event(chunk))
        spoken += weight > 0
    if fault.cut is not None:
        return
    if fault.error_after is not None:
        yield Step(0.0, event(frames.error(fault.status or 500, code=fault.code)))
        return
    if usage is not None and fault.usage == "exact":
        yield Step(0.0, event(usage))
    yield Step(0.0, DONE)
    if usage is not None and fault.usage == "late":
        yield Step(0.0, event(usage))


def _refusal(fault: Faults, ordinal: int) -> Reply | None:
    if not fault.status and fault.error != "midstream":
        return None
    if ordinal % fault.every:
        return None
    status = fault.status or 500
    headers = {"content-type": "application/json"}
    if fault.retry_after_seconds is not None:
        headers["retry-after"] = f"{fault.retry_after_seconds:g}"
    body = msgspec.json.encode(frames.error(status, code=fault.code))
    return Reply(status, body, delay_seconds=fault.delay_seconds, headers=headers)


def event(body: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


def _json(status: int, body: dict[str, Any], fault: Faults | None = None) -> Reply:
    return Reply(
        status,
        msgspec.json.encode(body),
        delay_seconds=fault.delay_seconds if fault else 0.0,
        headers={"content-type": "application/json"},
        cut=fault is not None and fault.cut is not None,
    )


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "sim"}
