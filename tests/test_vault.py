"""The master key: one for all processes, never weak, never shown, and lost only with its file."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from proxy.errors import GatewayFault
from proxy.storage.vault import Vault

STRONG = "q8Zr2LxW0vT5nYb7KcJd3MfH6gPs9AeU"
NEWER = "vB3kT9wXz1QmN6hR4yJc8LdF2sGp7EuA"


def test_what_is_derived_is_hkdf_sha256_with_the_purpose_as_info(tmp_path: Path) -> None:
    vault = Vault.open(tmp_path, {"STRATA_MASTER_KEY": STRONG})
    expected = HKDF(SHA256(), 32, salt=b"strata-gateway/v1", info=b"sessions").derive(STRONG.encode())
    assert vault.derive("sessions") == expected


def test_no_two_purposes_share_a_key_and_each_is_the_same_on_every_start(tmp_path: Path) -> None:
    first, second = Vault.open(tmp_path, {}), Vault.open(tmp_path, {})
    made = {first.derive(purpose) for purpose in ("provider-keys", "sessions", "cache")} | {first.pepper}
    assert len(made) == 4
    assert all(len(key) == 32 for key in made)
    assert second.pepper == first.pepper
    assert second.pepper_id == first.pepper_id


def test_the_file_is_its_owner_s_alone_and_lies_in_a_folder_made_for_it(tmp_path: Path) -> None:
    home = tmp_path / "new" / "home"
    Vault.open(home, {})
    assert (home / "master.key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in home.iterdir()] == ["master.key"]


def test_the_environment_comes_before_the_file_and_writes_none(tmp_path: Path) -> None:
    given = Vault.open(tmp_path, {"STRATA_MASTER_KEY": f" {STRONG}\n"})
    assert given.pepper == Vault(STRONG.encode()).pepper
    assert not (tmp_path / "master.key").exists()
    assert Vault.open(tmp_path, {"STRATA_MASTER_KEY": " "}).pepper != given.pepper


def test_another_master_key_is_recognised_by_its_pepper_id(tmp_path: Path) -> None:
    one, other = Vault(STRONG.encode()), Vault(STRONG[::-1].encode())
    assert one.pepper_id != other.pepper_id
    assert len(one.pepper_id) == 8
    assert one.pepper_id not in one.pepper.hex()


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("sk-1234", "shorter than 32"),
        ("a" * 64, "almost all the same"),
        ("ab" * 32, "almost all the same"),
        ("your-master-key-goes-right-in-here", "a known example"),
        ("0123456789abcdef0123456789abcdef", "a known example"),
        ("changeme" * 4, "a known example"),
    ],
)
def test_a_weak_master_key_stops_the_start_and_the_message_has_the_fix(tmp_path: Path, key: str, reason: str) -> None:
    with pytest.raises(GatewayFault, match=reason) as caught:
        Vault.open(tmp_path, {"STRATA_MASTER_KEY": key})
    assert caught.value.code == "gateway_config"
    assert "openssl rand" in caught.value.message
    assert key not in caught.value.message


def test_an_emptied_file_stops_the_start_rather_than_being_replaced(tmp_path: Path) -> None:
    (tmp_path / "master.key").write_text("")
    with pytest.raises(GatewayFault, match="restore the one that it had"):
        Vault.open(tmp_path, {})
    assert (tmp_path / "master.key").read_text() == ""


def test_a_folder_that_cannot_be_written_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(GatewayFault, match="STRATA_MASTER_KEY"):
        Vault.open(tmp_path / "file", {})


def test_a_file_that_others_can_read_is_worth_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pepper = Vault.open(tmp_path, {}).pepper
    (tmp_path / "master.key").chmod(0o644)
    with caplog.at_level(logging.WARNING, "strata.storage"):
        assert Vault.open(tmp_path, {}).pepper == pepper
    assert "chmod 600" in caplog.text


def test_nothing_shows_the_key(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    vault = Vault.open(tmp_path, {})
    secret = (tmp_path / "master.key").read_text().strip()
    out, err = capfd.readouterr()
    assert secret not in repr(vault) + str(vault) + out + err
    assert vault.pepper.hex() not in repr(vault)


def test_threads_that_start_together_agree_on_one_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        peppers = set(pool.map(lambda _: Vault.open(tmp_path, {}).pepper, range(32)))
    assert len(peppers) == 1
    assert os.listdir(tmp_path) == ["master.key"]


@pytest.fixture
def starters(tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    code = (
        "import sys, pathlib; from proxy.storage.vault import Vault\n"
        "sys.stdin.readline(); print(Vault.open(pathlib.Path(sys.argv[1]), {}).pepper_id)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    running = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    yield running
    for process in running:
        process.communicate(timeout=30)


def test_processes_that_start_together_agree_on_one_key(starters: list[subprocess.Popen[str]], tmp_path: Path) -> None:
    for process in starters:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    ids = [process.stdout.readline().strip() for process in starters if process.stdout]
    assert ids == [Vault.open(tmp_path, {}).pepper_id] * 4


def test_of_two_master_keys_the_first_is_the_newest_and_what_is_derived_stays_the_older_ones() -> None:
    old = Vault(STRONG.encode())
    both = Vault(NEWER.encode(), STRONG.encode())
    assert both.pepper == old.pepper
    assert both.derive("sessions") == old.derive("sessions")
    assert both.kek_id != old.kek_id
    assert list(both.keks) == [both.kek_id, old.kek_id]
    assert both.kek_id == Vault(NEWER.encode()).kek_id


@pytest.mark.parametrize("text", [f"{NEWER},{STRONG}", f" {NEWER} , {STRONG} ,\n"])
def test_commas_stand_between_master_keys_in_the_environment_and_in_the_file(tmp_path: Path, text: str) -> None:
    expected = Vault(NEWER.encode(), STRONG.encode())
    (tmp_path / "master.key").write_text(text)
    (tmp_path / "master.key").chmod(0o600)
    for vault in (Vault.open(tmp_path, {"STRATA_MASTER_KEY": text}), Vault.open(tmp_path, {})):
        assert (list(vault.keks), vault.pepper) == (list(expected.keks), expected.pepper)


def test_a_single_key_with_a_comma_in_it_is_the_key_that_it_always_was(tmp_path: Path) -> None:
    key = f"{STRONG},short"
    assert Vault.open(tmp_path, {"STRATA_MASTER_KEY": key}).pepper == Vault(key.encode()).pepper


def test_each_of_several_keys_must_be_strong_and_stand_there_once(tmp_path: Path) -> None:
    for text, why in (
        (f"{NEWER},{'a' * 40}", "almost all the same"),
        (f"{NEWER},{NEWER}", "stands twice"),
        (",".join(f"{STRONG}{n}" for n in range(9)), "more than 8"),
    ):
        with pytest.raises(GatewayFault, match=why) as caught:
            Vault.open(tmp_path, {"STRATA_MASTER_KEY": text})
        assert NEWER not in caught.value.message
