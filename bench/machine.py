"""Processes and what they use, from /proc: CPU nanoseconds, memory, who belongs to whom. Linux only."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

LOAD_CORE = min(os.sched_getaffinity(0))
SERVER_CORE = max(os.sched_getaffinity(0))


class Used(NamedTuple):
    """CPU nanoseconds since a process tree began: its own, and those of the Postgres below it."""

    own_ns: int
    postgres_ns: int

    def since(self, earlier: Used) -> Used:
        return Used(self.own_ns - earlier.own_ns, self.postgres_ns - earlier.postgres_ns)


class Resident(NamedTuple):
    """Memory in bytes: resident of the processes themselves, proportional of Postgres (it shares most of it)."""

    own: int
    postgres: int


def pinned(
    core: int, command: Sequence[str], log: Path, environ: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Starts `command` on one core, in a session of its own; its output goes to `log`."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=dict(environ) if environ is not None else None,
        )
    os.sched_setaffinity(process.pid, {core})
    return process


def stop(process: subprocess.Popen[bytes], grace_seconds: float = 15.0) -> None:
    """Asks it to end, then makes it. What it started itself ends with it."""
    below = [pid for pid in tree(process.pid) if pid != process.pid]
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)
    until = time.monotonic() + 5
    while time.monotonic() < until and any(Path(f"/proc/{pid}").exists() for pid in below):
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def tree(root: int) -> list[int]:
    """`root` and everything it started that still lives."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            stat = _read(entry / "stat")
            if stat:
                children.setdefault(int(stat[stat.rindex(")") + 2 :].split()[1]), []).append(int(entry.name))
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo += children.get(pid, [])
    return found


def cpu(root: int) -> Used:
    own = postgres = 0
    for pid in tree(root):
        spent = 0
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                schedstat = _read(task / "schedstat")
                spent += int(schedstat.split()[0]) if schedstat else 0
        except OSError:
            continue
        if _is_postgres(pid):
            postgres += spent
        else:
            own += spent
    return Used(own, postgres)


def memory(root: int) -> Resident:
    own = postgres = 0
    for pid in tree(root):
        fields = {}
        for line in _read(Path(f"/proc/{pid}/smaps_rollup")).splitlines():
            name, _, rest = line.partition(":")
            if rest.strip().endswith("kB"):
                fields[name] = int(rest.split()[0]) * 1024
        if _is_postgres(pid):
            postgres += fields.get("Pss", 0)
        else:
            own += fields.get("Rss", 0)
    return Resident(own, postgres)


def calibration_ms() -> float:
    """A fixed piece of work on the server's core; its spread says how quiet the machine is."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {SERVER_CORE})
    try:
        began = time.perf_counter()
        total = 0
        for number in range(300_000):
            total += number & 7
        return (time.perf_counter() - began) * 1e3
    finally:
        os.sched_setaffinity(0, before)


def _is_postgres(pid: int) -> bool:
    return _read(Path(f"/proc/{pid}/comm")).startswith("postgres")


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
