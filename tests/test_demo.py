"""`strata demo`: a gateway that has something to show, and leaves nothing running."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gateway import ROOT, free_port


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    home = tmp_path_factory.mktemp("demo") / "home"
    words = ("demo", "--minutes", "0.25", "--home", str(home), "--port", str(free_port()), "--stop")
    command = (sys.executable, "-m", "proxy", *words)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=150, check=False)
    return home, done


def test_traffic_is_played_and_ends(played: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    _, done = played
    assert done.returncode == 0, done.stderr
    assert "The traffic is over." in done.stdout
    assert "sk-demo-" not in done.stdout + done.stderr


def test_there_is_money_of_several_providers_and_keys_to_look_at(
    played: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    home, _ = played
    words = ("usage", "--by", "provider,key", "--json", "--home", str(home), "--config", str(home / "demo.yaml"))
    told = subprocess.run(
        (sys.executable, "-m", "proxy", *words), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    said = json.loads(told.stdout)
    assert said["totals"]["cost_nano_usd"] > 0
    assert said["totals"]["errors"] > 0  # the outage
    assert said["totals"]["unpriced"] == 0
    assert {line["provider"] for line in said["data"]} == {"north", "south", "west"}
    assert {"website", "support"} <= {line["key"] for line in said["data"]}


def test_its_configuration_is_for_its_owner_only(played: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    home, _ = played
    assert (home / "demo.yaml").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("minutes", ["0", "-1", "soon", "nan"])
def test_a_time_that_is_none_is_refused(minutes: str) -> None:
    command = (sys.executable, "-m", "proxy", "demo", "--minutes", minutes)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "minutes" in done.stderr
