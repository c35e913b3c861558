"""
Log lines: JSON where a machine reads, short ones on a terminal. One line a request, written off the path.

A line never spans two, never holds a control character, and never a secret: whatever looks like a key is masked here,
as the last thing before it is written. Writing happens in a thread that nobody waits for at the end, so that a reader
that has stopped reading costs lines (counted), and never a request, nor a stop.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Literal, TextIO

import msgspec

from proxy.exchange import Exchange

FIELDS = (
    "request_id",
    "endpoint",
    "model",
    "deployment",
    "provider",
    "key",
    "status",
    "error_type",
    "worker_id",
    "table",
)
"""What a call may add with `extra={…}`; anything else is left out."""

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_LIMIT_BYTES = 8_000_000
_INTERVAL_SECONDS = 0.1
_PATIENCE_SECONDS = 1.0
"""How long a flush waits for a stream that takes nothing; until it takes something again no other waits at all."""

_SECRET = re.compile(
    r"""
      (?P<url>://[^\s:/@]*:)[^\s@/]+@
    | (?P<scheme>\b(?:bearer|basic)\s+)[^\s"',…]{6,}
    | (?P<name>\b(?:x-)?(?:api[-_]?key|authorization|passwd|password|secret|(?:access|refresh)[-_]token)["']?
      \s*[:=]\s*["']?)(?!(?:bearer|basic)\s)[^\s"',&;…]{4,}
    | (?P<query>[?&](?:key|token|sig|signature)=)[^\s"'&]+
    | (?P<sk>\bsk-)(?![\w-]{0,24}…)[\w-]{6,}
    | \b(?:AKIA|ASIA|AIza|gsk_|xai-|hf_|pplx-|ghp_|github_pat_)[\w-]{12,}
    | (?P<long>(?<![\w+/-])[\w+/-]{32,}={0,2})
    """,
    re.VERBOSE | re.IGNORECASE,
)
_HEX = re.compile(r"[0-9a-f]{64,}", re.IGNORECASE)


def _masked(match: re.Match[str]) -> str:
    kind = match.lastgroup
    if kind == "long":
        text = match["long"]
        mixed = any(c.isdigit() for c in text) and any(c.isupper() for c in text) and any(c.islower() for c in text)
        return "…" if mixed or _HEX.fullmatch(text) else text
    if kind == "url":
        return f"{match['url']}…@"
    return f"{match[kind]}…" if kind else "…"


def mask(text: str) -> str:
    """`text` without anything that looks like a credential."""
    return _SECRET.sub(_masked, text)


def escape(text: str) -> str:
    """`text` on one line, with nothing that moves a cursor or turns writing around."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class Line(msgspec.Struct, omit_defaults=True):
    """One log line. The names of its fields are what a log search may rely on."""

    ts: str
    level: str
    logger: str
    message: str
    request_id: str = ""
    endpoint: str = ""
    model: str = ""
    deployment: str = ""
    provider: str = ""
    key: str = ""
    status: int = 0
    error_type: str = ""
    worker_id: str = ""
    table: str = ""
    stream: bool = False
    client_left: bool = False
    attempts: int = 0
    duration_ms: float = -1.0
    first_token_ms: float = -1.0
    overhead_ms: float = -1.0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_nano_usd: int = 0
    finish_reason: str = ""
    client: str = ""
    trace_id: str = ""
    exception: str = ""
    asked: Any = None
    answered: Any = None
    """The bodies, on lines of `strata.bodies` only; built, bounded and masked there."""


class RequestLog:
    """
    Where every line goes. `access` notes a finished request; `run` writes what has gathered, ten times a second, until
    it is cancelled; without it every line is written at once. `dropped` counts lines that found no room.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        pretty: bool = False,
        access: bool = True,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        limit_bytes: int = _LIMIT_BYTES,
        hide: Callable[[str], str] = lambda text: text,
    ) -> None:
        self.enabled = access
        self.dropped = 0
        self._stream = stream
        self._descriptor = _descriptor(stream)
        self._pretty = pretty
        self._clock_ns = clock_ns
        self._limit_bytes = limit_bytes
        self._hide = hide
        self._waiting = bytearray()
        """Finished lines. Bytes in one place: thousands of waiting objects would push what is hot out of the caches."""
        self._gathering = threading.Lock()
        self._writing = threading.Lock()
        self._stuck = False
        self._running = False
        self._encode = msgspec.json.Encoder().encode

    def access(self, exchange: Exchange) -> None:
        """Notes a request whose answer has ended. Costs about two microseconds; it is written later."""
        if not self.enabled:
            return
        duration_ns = self._clock_ns() - exchange.started_ns
        caller, error, attempts = exchange.caller, exchange.error, exchange.attempts
        provider = deployment = ""
        first_token_ms, input_tokens, output_tokens, cost_nano_usd = -1.0, 0, 0, 0
        if attempts:
            last = attempts[-1]
            provider = last.deployment.provider.name
            deployment = last.deployment.model
            cost_nano_usd = last.cost_nano_usd if len(attempts) == 1 else sum(a.cost_nano_usd for a in attempts)
            if last.first_event_ns:
                first_token_ms = (last.first_event_ns - exchange.started_ns) // 1000 / 1000
            if last.usage is not None:
                input_tokens, output_tokens = last.usage.prompt, last.usage.completion
        # By position: one call costs a third of what naming or setting each field does.
        line = Line(
            timestamp(exchange.started_at_ms),
            "info",
            "strata.access",
            "request",
            exchange.request_id,
            exchange.endpoint,
            exchange.model,
            deployment,
            provider,
            caller.name if caller is not None else "",
            exchange.status,
            error.error_type if error is not None else "",
            "",
            "",
            exchange.stream,
            exchange.client_left,
            len(attempts),
            duration_ns // 1000 / 1000,
            first_token_ms,
            (duration_ns - exchange.upstream_wait_ns) // 1000 / 1000,
            input_tokens,
            output_tokens,
            cost_nano_usd,
            exchange.finish_reason,
            exchange.client,
            f"{exchange.trace.trace_id:032x}" if exchange.trace is not None else "",
        )
        self.put(line)

    def masked(self, text: str) -> str:
        """Without the secrets that are known, and without what looks like one."""
        return mask(self._hide(text))

    def put(self, line: Line) -> None:
        # bodies are long, and must not take the room of what matters more
        if len(self._waiting) >= (self._limit_bytes if line.asked is None else self._limit_bytes // 2):
            self.dropped += 1
            return
        text = self._text(line)
        with self._gathering:
            self._waiting += text
        if not self._running:
            self.flush()

    def flush(self) -> None:
        """Writes all that is waiting, and waits for the stream, but not for one that nobody reads."""
        if self._writing.acquire(timeout=0.0 if self._stuck else _PATIENCE_SECONDS):
            self._writing.release()
            try:
                writer = self._start_writing()
            except RuntimeError:  # the process has no thread to give, or is about to end
                self._write()
                return
            writer.join(_PATIENCE_SECONDS)
            self._stuck = writer.is_alive()
        else:
            self._stuck = True

    async def run(self) -> None:
        """Writes in a thread until cancelled; then what is left, at once."""
        self._running = True
        try:
            while True:
                await asyncio.sleep(_INTERVAL_SECONDS)
                if self._waiting and not self._writing.locked():
                    self._start_writing()
        finally:
            self._running = False
            self.flush()

    def _start_writing(self) -> threading.Thread:
        """A thread of its own, for the end of the process waits for those of an executor."""
        writer = threading.Thread(target=self._write, name="strata-log", daemon=True)
        writer.start()
        return writer

    def _write(self) -> None:
        with self._writing:
            with self._gathering:
                waiting, self._waiting = self._waiting, bytearray()
            if not waiting:
                return
            try:
                self._put_out(waiting)
            except (OSError, ValueError):  # nobody reads any more, or the stream is closed
                self.dropped += waiting.count(b"\n")

    def _put_out(self, waiting: bytearray) -> None:
        if self._descriptor is None:
            self._stream.write(waiting.decode())
            self._stream.flush()
            return
        # Past the stream: Python aborts if a thread is in the middle of one when the process ends
        left = memoryview(waiting)
        while left:
            left = left[os.write(self._descriptor, left) :]

    def _text(self, line: Line) -> bytes:
        if line.logger == "strata.access":
            # the only field of these that a client may have written
            if not (line.request_id.startswith("req_") and len(line.request_id) == 24):
                line.request_id = self.masked(line.request_id)
            if line.provider:
                line.deployment = f"{line.provider}/{line.deployment}"
            return f"{_pretty_access(line)}\n".encode() if self._pretty else self._json(line)
        line.message = self.masked(line.message)
        line.exception = self.masked(line.exception)
        return f"{_pretty(line)}\n".encode("utf-8", "replace") if self._pretty else self._json(line)

    def _json(self, line: Line) -> bytes:
        encoded = self._encode(line)
        # JSON has escaped every other control character of ASCII; `in` would cost ten times what `find` does
        if not encoded.isascii() or encoded.find(b"\x7f") >= 0:
            encoded = _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", encoded.decode()).encode()
        return encoded + b"\n"


def _descriptor(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError):  # it is in memory, or closed
        return None


class _Handler(logging.Handler):
    """Turns what the house and its libraries log into lines."""

    def __init__(self, log: RequestLog) -> None:
        super().__init__()
        self.log = log
        self._exceptions = logging.Formatter()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = Line(
                timestamp(int(record.created * 1000)), record.levelname.lower(), record.name, record.getMessage()
            )
            for field in FIELDS:
                value = record.__dict__.get(field)
                if value is not None:
                    setattr(line, field, value if isinstance(value, int) else self.log.masked(str(value)))
            if record.exc_info:
                line.exception = self._exceptions.formatException(record.exc_info)
            self.log.put(line)
        except Exception:  # a log call never breaks its caller: logging's own rule
            text = f"a log line could not be built from {record.msg!r}"
            self.log.put(Line(timestamp(int(record.created * 1000)), "error", record.name, text))


def configure(
    level: str = "info",
    format: Literal["auto", "json", "pretty"] = "auto",
    stream: TextIO | None = None,
    hide: Callable[[str], str] = lambda text: text,
) -> RequestLog:
    """
    Sends all of stdlib logging to `stream` (stderr): JSON lines, or short ones if it is a terminal. Called again, it
    replaces what it set up before. `hide` takes out of a text what is known to be secret. The caller holds `run()` of
    what it returns as a task.
    """
    target = stream if stream is not None else sys.stderr
    number = _LEVELS[level]
    pretty = format == "pretty" or (format == "auto" and target.isatty())
    log = RequestLog(target, pretty=pretty, access=number <= logging.INFO, hide=hide)
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _Handler)]:
        root.removeHandler(handler)
    root.addHandler(_Handler(log))
    root.setLevel(number)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = name != "uvicorn.access"  # our own line says more
        logger.setLevel(max(number, logging.WARNING))
    for name in ("httpx2", "httpcore2"):  # they log addresses, and what comes back
        logging.getLogger(name).setLevel(max(number, logging.WARNING))
    return log


@functools.lru_cache(maxsize=4)
def _second(seconds: int) -> str:
    """Changes once a second, and costs more than the rest of a line."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def timestamp(at_ms: int) -> str:
    """RFC 3339 in UTC, with milliseconds."""
    seconds, ms = divmod(at_ms, 1000)
    return f"{_second(seconds)}.{ms:03d}Z"


def _pretty(line: Line) -> str:
    extra = "".join(f" {field}={getattr(line, field)}" for field in FIELDS if getattr(line, field))
    for field, body in (("asked", line.asked), ("answered", line.answered)):
        extra += f" {field}={msgspec.json.encode(body).decode()}" if body else ""
    text = f"{line.ts[11:23]} {line.level:<7} {escape(line.message + extra)}"
    for row in line.exception.splitlines():
        text += f"\n    {escape(row)}"
    return text


def _pretty_access(line: Line) -> str:
    parts = [line.ts[11:23], "request", str(line.status), line.endpoint, line.model or "-"]
    if line.deployment and line.deployment != line.model:
        parts.append(f"→ {line.deployment}")
    parts.append(f"{line.duration_ms:.0f}ms")
    if line.input_tokens or line.output_tokens:
        parts.append(f"{line.input_tokens}+{line.output_tokens} tokens")
    if line.cost_nano_usd:
        dollars, nanos = divmod(line.cost_nano_usd, 1_000_000_000)
        parts.append(f"${dollars}.{nanos:09d}".rstrip("0"))
    parts += [part for part in (line.error_type, line.key, line.request_id) if part]
    return escape(" ".join(parts))
