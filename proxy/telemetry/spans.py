"""
The spans of one request, made from what the exchange knows when it is over: nothing is started or ended on the path.

The request, below it admission, limits and plan, and one span for each attempt, in the words of OpenTelemetry's
conventions for HTTP and generative AI where they have some. An error is its `error_type`, never its message, for those
quote what was sent. Text of prompts and answers is in here only if the operator wants it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from proxy.config import Provider
from proxy.config.presets import genai_name
from proxy.errors import UpstreamError
from proxy.exchange import Attempt, Exchange, Trace
from proxy.telemetry.traceparent import child_id

ADMISSION, LIMITS, PLAN = 1 << 20, (1 << 20) + 1, (1 << 20) + 2
"""Numbers of the stages' spans, beyond those of attempts."""
MAX_CONTENT_CHARS = 32_768
"""Of a prompt, and of an answer."""
MAX_PARTS = 100
"""Of one message."""

Value = str | bool | int | float | tuple[str, ...]


class Span(msgspec.Struct, frozen=True):
    """Times are Unix nanoseconds. `parent_id` 0: the trace begins here."""

    name: str
    kind: Literal["server", "client", "internal"]
    span_id: int
    parent_id: int
    start_ns: int
    end_ns: int
    attributes: dict[str, Value]
    failed: bool = False


def spans_of(exchange: Exchange, trace: Trace, ended_ns: int, masked: Callable[[str], str]) -> list[Span]:
    """`ended_ns` is of the exchange's own clock; `masked` takes out of a text what looks like a secret."""
    shift_ns = exchange.started_at_ms * 1_000_000 - exchange.started_ns
    error = exchange.error
    error_type = error.error_type if error is not None else "caller_cancelled" if exchange.client_left else ""
    request = Span(
        exchange.endpoint,
        "server",
        trace.span_id,
        trace.parent_id,
        exchange.started_ns + shift_ns,
        ended_ns + shift_ns,
        _of_request(exchange, error_type, masked),
        error is not None and (exchange.status >= 500 or exchange.status < 400),
    )
    return [
        request,
        *_stages(exchange, trace, ended_ns, shift_ns, error_type),
        *[_of_attempt(exchange, trace, one, ended_ns, shift_ns, masked) for one in exchange.attempts],
    ]


def _of_request(exchange: Exchange, error_type: str, masked: Callable[[str], str]) -> dict[str, Value]:
    id, error = exchange.request_id, exchange.error
    said: dict[str, Value] = {
        "http.request.method": "POST",
        "http.response.status_code": exchange.status,
        "gen_ai.operation.name": exchange.endpoint,
        # clients may bring their own
        "strata.request_id": id if id.startswith("req_") and len(id) == 24 else masked(id),
        "strata.stream": exchange.stream,
        "strata.attempts": len(exchange.attempts),
        "strata.cost_nano_usd": sum([one.cost_nano_usd for one in exchange.attempts]),
    }
    if exchange.model:
        said["gen_ai.request.model"] = exchange.model
    if exchange.caller is not None:
        said["strata.key"] = exchange.caller.name
    if error_type:
        said["error.type"] = error_type
    if error is not None and error.code and not isinstance(error, UpstreamError):  # a provider's code is its own text
        said["strata.error.code"] = error.code
    if exchange.client_left:
        said["strata.client_left"] = True
    return said


def _stages(exchange: Exchange, trace: Trace, ended_ns: int, shift_ns: int, error_type: str) -> Iterator[Span]:
    """One after the other; the request failed in the first that has no end."""
    first_ns = exchange.attempts[0].started_ns if exchange.attempts else 0
    limits = (LIMITS, "limits", trace.limited_ns)
    stages = [(ADMISSION, "admission", trace.admitted_ns), (PLAN, "plan", first_ns)]
    if trace.limited_ns or error_type == "policy_rate_limited":
        stages.insert(1, limits)
    began_ns = exchange.started_ns
    for number, name, reached_ns in stages:
        failed = not reached_ns
        attributes: dict[str, Value] = {"error.type": error_type} if failed and error_type else {}
        yield Span(
            name,
            "internal",
            child_id(trace, number),
            trace.span_id,
            began_ns + shift_ns,
            (reached_ns or ended_ns) + shift_ns,
            attributes,
            failed,
        )
        if failed:
            return
        began_ns = reached_ns


def _of_attempt(
    exchange: Exchange, trace: Trace, attempt: Attempt, ended_ns: int, shift_ns: int, masked: Callable[[str], str]
) -> Span:
    deployment = attempt.deployment
    said: dict[str, Value] = {
        **_server(deployment.provider),
        "gen_ai.operation.name": exchange.endpoint,
        "gen_ai.request.model": deployment.model,
        "gen_ai.request.stream": exchange.stream,
        "strata.provider": deployment.provider.name,
        "strata.attempt": attempt.number,
        "strata.cost_nano_usd": attempt.cost_nano_usd,
        "strata.price_state": attempt.price_state,
        "strata.usage_source": attempt.source,
        "strata.own_key": attempt.own_key is not None,
    }
    if attempt.status:
        said["http.response.status_code"] = attempt.status
    failed = attempt.outcome not in ("", "ok")
    if failed:
        said["error.type"] = attempt.outcome
    if exchange.stream and attempt.first_event_ns:
        said["gen_ai.response.time_to_first_chunk"] = (attempt.first_event_ns - attempt.started_ns) / 1e9
    _add_usage(said, attempt)
    if attempt is exchange.attempts[-1]:
        if exchange.finish_reason and not failed:
            said["gen_ai.response.finish_reasons"] = (exchange.finish_reason,)
        _add_content(said, exchange, trace, masked)
    return Span(
        f"{exchange.endpoint} {deployment.model}",
        "client",
        child_id(trace, attempt.number),
        trace.span_id,
        attempt.started_ns + shift_ns,
        (attempt.ended_ns or ended_ns) + shift_ns,
        said,
        failed,
    )


def _add_usage(said: dict[str, Value], attempt: Attempt) -> None:
    usage = attempt.usage
    if usage is None:
        return
    said["gen_ai.usage.input_tokens"] = usage.prompt
    said["gen_ai.usage.output_tokens"] = usage.completion
    for name, tokens in (
        ("cache_read.input_tokens", usage.cache_read),
        ("cache_creation.input_tokens", usage.cache_write_5m + usage.cache_write_1h),
        ("reasoning.output_tokens", usage.reasoning),
    ):
        if tokens:
            said[f"gen_ai.usage.{name}"] = tokens


def _add_content(said: dict[str, Value], exchange: Exchange, trace: Trace, masked: Callable[[str], str]) -> None:
    """Only what was kept, and only if it is wanted here: the log may want it too."""
    if not trace.content or exchange.asked is None:
        return
    said["gen_ai.input.messages"] = _shortened(_beginning(exchange.asked["messages"]), masked)
    texts = [one["content"] for one in exchange.answered if isinstance(one.get("content"), str)]
    answer = "\n".join(texts)
    if answer:
        said["gen_ai.output.messages"] = _shortened([{"role": "assistant", "parts": _parts(answer)}], masked)


def _beginning(messages: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    """As many as may be shown: a prompt of megabytes must not be searched for secrets on the event loop."""
    shown: list[dict[str, object]] = []
    chars = 0
    for message in messages:
        parts = _parts(message.get("content"))
        shown.append({"role": message.get("role"), "parts": parts})
        chars += 40 + sum([20 + len(part.get("content", "")) for part in parts])
        if chars > MAX_CONTENT_CHARS:
            break
    return shown


def _parts(content: object) -> list[dict[str, str]]:
    """Text as it is; of anything else (images, files, sound) only what it is."""
    if isinstance(content, str):
        return [{"type": "text", "content": content[:MAX_CONTENT_CHARS]}]
    parts = [part for part in content if isinstance(part, Mapping)] if isinstance(content, list) else []
    return [
        {"type": "text", "content": str(part.get("text"))[:MAX_CONTENT_CHARS]}
        if part.get("type") == "text"
        else {"type": str(part.get("type"))}
        for part in parts[:MAX_PARTS]
    ]


def _shortened(messages: list[dict[str, object]], masked: Callable[[str], str]) -> str:
    """JSON, of which a part too long is only the beginning, and no JSON any more."""
    text = masked(msgspec.json.encode(messages).decode())
    return text if len(text) <= MAX_CONTENT_CHARS else text[: MAX_CONTENT_CHARS - 1] + "…"


def _server(provider: Provider) -> dict[str, Value]:
    return _address(provider.api_base) | {"gen_ai.provider.name": genai_name(provider)}


@lru_cache(maxsize=256)
def _address(api_base: str) -> dict[str, Value]:
    url = urlsplit(api_base)
    return {"server.address": url.hostname or "", "server.port": url.port or (443 if url.scheme == "https" else 80)}
