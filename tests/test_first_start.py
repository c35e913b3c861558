"""The first minute, as a person has it: a terminal, one command, a key that works, and the same key afterwards."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import openai
import pytest

from proxy import serving
from proxy.config import Config, Server
from proxy.errors import GatewayFault

pty = pytest.importorskip("pty", reason="no pseudo-terminals here")

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 60.0


class Terminal:
    """`strata` on a terminal, in an empty folder."""

    def __init__(self, folder: Path, port: int) -> None:
        self.text = ""
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.environ["PYTHONPATH"] = str(ROOT)
            os.execv(sys.executable, [sys.executable, "-m", "proxy", "--port", str(port)])

    def read_until(self, words: str) -> str:
        deadline = time.monotonic() + START_SECONDS
        while words not in self.text:
            assert time.monotonic() < deadline, self.text
            assert self._read(0.2), self.text
        return self.text

    def _read(self, seconds: float) -> bool:
        """False when the other side is gone."""
        try:
            if select.select([self._fd], [], [], seconds)[0]:
                self.text += os.read(self._fd, 65_536).decode()
        except OSError:
            return False
        return True

    def stop(self) -> int:
        os.kill(self.pid, signal.SIGTERM)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                os.close(self._fd)
                return os.waitstatus_to_exitcode(status)
            if not self._read(0.05):
                time.sleep(0.05)
        raise AssertionError("it did not stop")


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_one_command_gives_a_key_that_works_and_shows_it_once(tmp_path: Path) -> None:
    port = free_port()
    first = Terminal(tmp_path, port)
    text = first.read_until("Reachable from this machine only.")
    assert len(text.strip().splitlines()) <= 26
    [key, in_curl] = re.findall(r"sk-strata-\w{49}", text)
    assert key == in_curl
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key)
    answer = client.chat.completions.create(model="sim/chat", messages=[{"role": "user", "content": "Hello"}])
    assert answer.choices[0].message.content
    assert first.stop() == 0
    second = Terminal(tmp_path, port)
    text = second.read_until("Reachable from this machine only.")
    assert "1 key" in text and "sk-strata-" not in text
    assert client.models.list().data
    assert second.stop() == 0
    assert oct((tmp_path / ".strata" / "master.key").stat().st_mode)[-3:] == "600"


def test_a_taken_port_is_said_so_with_another_to_try(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = int(taken.getsockname()[1])
        terminal = Terminal(tmp_path, port)
        text = terminal.read_until("Fix:")
        assert f"Port {port} on 127.0.0.1 is in use." in text
        assert f"strata --port {port + 1}" in text
        assert "Traceback" not in text
        _, status = os.waitpid(terminal.pid, 0)
        assert os.waitstatus_to_exitcode(status) == 1


def test_a_port_that_cannot_be_had_is_said_with_what_helps() -> None:
    with socket.socket() as taken:
        with contextlib.suppress(OSError):  # somebody else has it: as good
            taken.bind(("127.0.0.1", 65_535))
            taken.listen()
        with pytest.raises(GatewayFault, match=r"is in use\. Start on another: strata --port 65534"):
            serving._listen(Config(server=Server(port=65_535)))
    for host in ("203.0.113.1", "no-such-name.invalid"):
        with pytest.raises(GatewayFault, match=r"this machine has no such address\. Set server\.host to one"):
            serving._listen(Config(server=Server(host=host, port=free_port())))


def test_a_port_that_only_root_has_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> socket.socket:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("proxy.serving.socket.create_server", refuse)
    with pytest.raises(GatewayFault, match="Choose one from 1024 on"):
        serving._listen(Config(server=Server(port=80)))


def test_a_database_that_cannot_be_used_is_said_with_its_cause_and_not_called_ready(
    tmp_path: Path, empty_database_dsn: str
) -> None:
    credentials = empty_database_dsn[: empty_database_dsn.index("@")]
    wrong = empty_database_dsn.replace(credentials, "postgresql://strata:mistaken")
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "DATABASE_URL": wrong}
    command = (sys.executable, "-m", "proxy", "--port", str(free_port()))
    with (tmp_path / "log").open("wb") as log:
        gateway = subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_SECONDS
        while "listening at" not in (said := (tmp_path / "log").read_text()):
            assert time.monotonic() < deadline and gateway.poll() is None, said
            time.sleep(0.05)
    finally:
        gateway.terminate()
        gateway.wait(START_SECONDS)
    assert "refuses the gateway's login. The operator can check DATABASE_URL. Trying again in" in said
    assert "and not ready" in said and "ready at" not in said
    assert "Traceback" not in said and "mistaken" not in said
