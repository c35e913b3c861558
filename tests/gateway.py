"""
A real gateway and a real oracle, each a process of its own, for tests that look from outside.

`Gateway` writes its config file, starts `python -m proxy serve`, waits until it is ready, and can be killed. The ledger
is read from its database; a row is found by the `x-request-id` that the client sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import asyncpg
import msgspec

from proxy.storage.embedded import find_running
from tests.oracle import Item, read_bill

START_SECONDS = 90.0
STOP_SECONDS = 60.0
LEDGER_SECONDS = 30.0
ROOT = Path(__file__).resolve().parent.parent

ROWS = """
SELECT * FROM strata.usage WHERE $1::text IS NULL OR public_id = $1 ORDER BY started_at, request_id, attempt
"""

PRICES = "{input: 0.25, output: 2, cached_input: 0.025, cache_write: 0.5, cache_write_1h: 0.5}"

CONFIG = """\
server: {{shutdown_grace: 5s, {server}}}
providers:
  oai: {{type: openai_compatible, api_base: "{oracle}/v1", api_key: sk-oracle-of-the-tests}}
  claude: {{type: anthropic, api_base: "{oracle}", api_key: sk-oracle-of-the-tests}}
  aws: {{type: bedrock, api_base: "{oracle}", region: eu-west-1, access_key_id: AKID, secret_access_key: sk-oracle}}
  command: {{type: cohere, api_base: "{oracle}", api_key: sk-oracle-of-the-tests}}
  mistral: {{type: mistral, api_base: "{oracle}/mistral/v1", api_key: sk-oracle-of-the-tests}}
  gemini: {{api_base: "{oracle}/v1beta", api_key: AIza-oracle-of-the-tests}}
  vertex: {{project: oracle, region: global, access_token: ya29-oracle-of-the-tests, api_base: "{oracle}"}}
models:
  gpt: oai/gpt
  claude: claude/claude
  gemini: gemini/gemini
  gemini-on-vertex: vertex/gemini
  claude-on-vertex: vertex/claude
  either: [claude/claude, oai/gpt]
  "gpt-*": oai/gpt-*
  "claude-*": claude/claude-*
  "anthropic.*": aws/anthropic.*
  "us.anthropic.*": aws/us.anthropic.*
  "command-*": command/command-*
  "mistral-*": mistral/mistral-*
  "gemini-*": gemini/gemini-*
  "vertex-*": vertex/*
defaults: {{allowed_fails: 1000000}}
prices:
  models:
    oai/*: {prices}
    claude/*: {prices}
    aws/*: {prices}
    command/*: {prices}
    mistral/*: {prices}
    gemini/*: {prices}
    vertex/*: {prices}
logging: {{level: {level}, format: json}}
"""

LEVEL = os.environ.get("STRATA_TESTS_LOG_LEVEL", "info")
"""`debug`: the whole suite with everything logged."""
SECRETS = ("sk-oracle-of-the-tests", "AIza-oracle-of-the-tests", "ya29-oracle-of-the-tests")
"""What no gateway of any test may have logged when it ends; nor the key that it was asked with."""


class OracleProcess:
    """`python -m tests.oracle`, with its bill in `folder`."""

    def __init__(self, folder: Path, *options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.bill = folder / "bill.jsonl"
        command = (sys.executable, "-m", "tests.oracle", "--bill", str(self.bill), *options)
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert self.process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self.process.stdout.readline())}"

    def items(self, nonce: str | None = None) -> list[Item]:
        """In the order of the attempts."""
        found = read_bill(self.bill)
        return sorted((item for item in found if nonce in (None, item.nonce)), key=lambda item: item.ordinal)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(STOP_SECONDS)
        if self.process.stdout is not None:
            self.process.stdout.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        error: dict[str, Any] = msgspec.json.decode(self.body)["error"]
        return error


class Gateway:
    """
    A gateway in `home`. `start` may be called again after `stop` or `kill9`. Several may share a home, with names of
    their own and one `database_url`. `more` is added to the configuration.
    """

    def __init__(
        self,
        home: Path,
        *,
        oracle: str = "http://127.0.0.1:9",
        server: str = "max_body: 20MB",
        name: str = "",
        database_url: str = "",
        more: str = "",
        wrapper: Sequence[str] = (),
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.home = home
        self.port = free_port()
        self.config = home.with_name(f"{name or home.name}.yaml")
        self.log = home.with_name(f"{name or home.name}.log")
        self.environ = {"DATABASE_URL": database_url} if database_url else {}
        self.wrapper = wrapper
        """A command that runs the server as its child, such as strace."""
        self.tls = tls
        """What a client believes, if the configuration has `server.tls`."""
        home.parent.mkdir(parents=True, exist_ok=True)
        self.config.write_text(CONFIG.format(oracle=oracle, prices=PRICES, server=server, level=LEVEL) + more)
        self.process: subprocess.Popen[bytes] | None = None
        self.key = ""

    @property
    def base_url(self) -> str:
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}/v1"

    def start(self) -> Gateway:
        with self.log.open("ab") as log:
            command = (*self.wrapper, *self._command("serve", "--port", str(self.port)))
            self.process = subprocess.Popen(command, cwd=ROOT, env=self._environment(), stdout=log, stderr=log)
        self._wait_until_ready()
        if not self.key:
            self.key = self.create_key("t")
        return self

    def serve_for(self, seconds: float) -> None:
        """Runs one that need not become ready, and ends it."""
        with self.log.open("ab") as log:
            command = self._command("serve", "--port", str(self.port))
            process = subprocess.Popen(command, cwd=ROOT, env=self._environment(), stdout=log, stderr=log)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        process.terminate()
        process.wait(STOP_SECONDS)

    def create_key(self, name: str, *options: str) -> str:
        command = self._command("keys", "create", name, "--json", *options)
        made = subprocess.run(command, cwd=ROOT, env=self._environment(), capture_output=True, timeout=60, check=False)
        if made.returncode:
            raise AssertionError(f"no key: {made.stderr.decode()}\n{self.tail()}")
        key: str = msgspec.json.decode(made.stdout)["key"]
        return key

    def strata(self, *words: str, typed: str = "") -> subprocess.CompletedProcess[str]:
        """Runs a command on this gateway's configuration and data. `typed`: its standard input."""
        command = self._command(*words)
        return subprocess.run(
            command,
            cwd=ROOT,
            env=self._environment(),
            input=typed,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def get(self, path: str, key: str = "") -> tuple[int, bytes]:
        answer = self.ask("GET", path, {"authorization": f"Bearer {key}"} if key else {})
        return answer.status, answer.body

    def ask(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes | None = None, port: int = 0
    ) -> Answer:
        """One request on a connection of its own; `port` if not the usual one."""
        place = ("127.0.0.1", port or self.port)
        connection = (
            http.client.HTTPConnection(*place, timeout=10)
            if self.tls is None
            else http.client.HTTPSConnection(*place, timeout=10, context=self.tls)
        )
        try:
            connection.request(method, path, body, headers=dict(headers or {}))
            answer = connection.getresponse()
            return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None and self.get("/healthz")[0] == 200

    def stop(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill9()
            raise AssertionError(f"the gateway did not end on SIGTERM:\n{self.tail()}") from None
        logged = self.log.read_text(errors="replace")
        assert not [secret for secret in (*SECRETS, self.key) if secret and secret in logged], "a secret is in the log"

    def kill9(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(STOP_SECONDS)

    async def rows(self, public_id: str | None = None) -> list[asyncpg.Record]:
        """Ledger rows of one request, attempt by attempt, or of all."""
        dsn = find_running(self.home)
        assert dsn is not None, self.tail()
        connection = await asyncpg.connect(dsn, timeout=10)
        try:
            return await connection.fetch(ROWS, public_id, timeout=10)
        finally:
            await connection.close()

    async def settled(self, public_id: str, count: int = 1) -> list[asyncpg.Record]:
        """The rows of one request as soon as there are `count`; fails with what there is if they do not come."""
        deadline = time.monotonic() + LEDGER_SECONDS
        while True:
            rows = await self.rows(public_id)
            if len(rows) >= count:
                assert len(rows) == count, [dict(row) for row in rows]
                return rows
            if time.monotonic() > deadline:
                raise AssertionError(f"{public_id}: {len(rows)} of {count} ledger rows\n{self.tail()}")
            await asyncio.sleep(0.1)

    def gauge(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = self.get("/metrics")[1].decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))

    def tail(self, lines: int = 30) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def _environment(self) -> dict[str, str]:
        """Ours without what would configure a gateway, and what this one is given."""
        unwanted = ("STRATA_", "OPENAI_", "ANTHROPIC_", "DATABASE_URL", "REDIS_URL")
        return {name: value for name, value in os.environ.items() if not name.startswith(unwanted)} | self.environ

    def _command(self, *words: str) -> Sequence[str]:
        return (sys.executable, "-m", "proxy", *words, "--home", str(self.home), "--config", str(self.config))

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process is None or self.process.poll() is not None:
                raise AssertionError(f"the gateway did not start:\n{self.tail()}")
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.get("/readyz")[0] == 200:
                    return
            time.sleep(0.1)
        raise AssertionError(f"the gateway was not ready in {START_SECONDS:g} s:\n{self.tail()}")


class Row(Protocol):
    """A ledger row by column name: a record of asyncpg, or a dict."""

    def __getitem__(self, name: str, /) -> Any: ...


def equal(row: Row, item: Item) -> dict[str, tuple[Any, Any]]:
    """Where a ledger row and the provider's own bill differ: field -> (ledger, bill). Empty: they agree."""
    pairs: dict[str, tuple[Any, Any]] = {
        "status": (row["status"], item.status),
        "model": (row["deployment"].partition("/")[2], item.model),
        "stream": (row["stream"], item.stream),
        "input": (row["input_tokens"], item.input_tokens),
        "cache_read": (row["cache_read_tokens"], item.cache_read_tokens),
        "cache_write_5m": (row["cache_write_5m_tokens"], item.cache_write_5m_tokens),
        "cache_write_1h": (row["cache_write_1h_tokens"], item.cache_write_1h_tokens),
        "output": (row["output_tokens"] + row["reasoning_tokens"], item.output_tokens),
        "nano_usd": (row["cost_nano_usd"], item.nano_usd),
    }
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
