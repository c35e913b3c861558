"""A real `redis-server` on a free port of the loopback, for tests that stop, freeze, fill and kill it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

from tests.gateway import free_port

START_SECONDS = 10.0


class RedisServer:
    """Keeps nothing on disk. `start` may be called again after `kill` or `stop`."""

    def __init__(self, program: str, folder: Path, *options: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self._program = program
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> RedisServer:
        command = [self._program]
        if self._options and not self._options[0].startswith("--"):
            command.append(self._options[0])
        command += ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        command += ["--dir", str(self._folder), *(one for one in self._options if one != command[1])]
        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return self
            time.sleep(0.02)
        raise AssertionError(f"redis-server did not start: {(self._folder / 'redis.log').read_text()[-2000:]}")

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait(10)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.thaw()
            self._process.kill()
            self._process.wait(10)

    def command(self, *words: str, password: str = "") -> bytes:
        """The answer's raw bytes, as far as they come in one read."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            if password:
                connection.sendall(_packed("AUTH", password))
                connection.recv(100)
            connection.sendall(_packed(*words))
            return connection.recv(65_536)

    def _signal(self, sign: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, sign)


def _packed(*words: str) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word.encode()), word.encode()) for word in words)
