"""`strata vault`: the master key is replaced while everything goes on, and a rotation may die at any moment."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import uuid
from pathlib import Path

import asyncpg
import pytest

from proxy.errors import GatewayFault
from proxy.storage.postgres import Database
from proxy.storage.provider_keys import SealedKey, insert, read_all
from proxy.storage.root import WrongMasterKey, unlock
from proxy.storage.rotation import COLUMNS, count_by_kek, place_of, provider_key_place, rewrap_batch
from proxy.storage.sealing import CannotOpen, Sealed, seal, unseal
from proxy.storage.vault import Vault
from tests.gateway import ROOT, Gateway

OLD, NEW = "q8Zr2LxW0vT5nYb7KcJd3MfH6gPs9AeU", "vB3kT9wXz1QmN6hR4yJc8LdF2sGp7EuA"
HOST = "https://api.openai.com"


async def save(db: Database, vault: Vault, count: int = 1) -> list[str]:
    """Provider keys for everybody; the secret of the nth is `sk-provider-key-n`."""
    ids = []
    async with db.transaction(timeout_seconds=30) as connection:
        for number in range(count):
            id, provider = str(uuid.uuid4()), f"p{uuid.uuid4().hex}"
            place = provider_key_place(id, "global", None, provider, HOST)
            sealed = seal(vault, place, f"sk-provider-key-{number}".encode())
            key = SealedKey(id, "global", None, provider, "n", "", HOST, "0123", 0, sealed)
            await insert(connection, key, status="valid", detail="")
            ids.append(id)
    return ids


async def opened(db: Database, vault: Vault) -> set[bytes]:
    places = [(provider_key_place(k.id, k.scope, k.owner_id, k.provider, k.host), k.sealed) for k in await read_all(db)]
    return {unseal(vault, place, sealed) for place, sealed in places}


SCHEMA = """
    SELECT c.relname AS table, a.attname AS column FROM pg_catalog.pg_attribute a
    JOIN pg_catalog.pg_class c ON c.oid = a.attrelid
    WHERE c.relnamespace = 'strata'::regnamespace AND c.relkind IN ('r', 'p') AND NOT c.relispartition
        AND a.attnum > 0 AND NOT a.attisdropped AND (a.attname ~ '^sealed_' OR a.attname IN ('kek_id', 'dek'))
"""


async def unknown_columns(db: Database) -> set[tuple[str, str]]:
    """Sealed columns of the schema that no rotation knows."""
    known = {(c.table, name) for c in COLUMNS for name in (c.column, "sealed_dek", "kek_id")}
    return {(row["table"], row["column"]) for row in await db.fetch(SCHEMA)} ^ known


async def test_the_rotation_knows_every_sealed_column_of_the_schema(db: Database) -> None:
    assert await unknown_columns(db) == set()


@pytest.mark.parametrize(
    "sql",
    [
        "ALTER TABLE strata.users ADD COLUMN sealed_token bytea",
        "CREATE TABLE strata.more (sealed_value bytea, sealed_dek bytea, kek_id text)",
        "ALTER TABLE strata.provider_keys RENAME COLUMN sealed_key TO sealed_secret",
    ],
)
async def test_a_sealed_column_that_the_rotation_would_forget_is_found(
    db: Database, database_dsn: str, sql: str
) -> None:
    owner = await asyncpg.connect(database_dsn)
    await owner.execute(sql)
    await owner.close()
    assert await unknown_columns(db) != set()


async def test_the_pepper_stays_when_a_key_is_added_in_front_and_when_the_old_one_is_gone(db: Database) -> None:
    first = Vault(OLD.encode())
    pepper = first.pepper
    await unlock(db, first)
    both = Vault(NEW.encode(), OLD.encode())
    await unlock(db, both)
    for column in COLUMNS:
        assert (await rewrap_batch(db, both, column, None)).unopened == ()
    only_new = Vault(NEW.encode())
    assert only_new.pepper != pepper
    await unlock(db, only_new)
    assert [first.pepper, both.pepper, only_new.pepper] == [pepper] * 3
    assert only_new.derive("sessions") == first.derive("sessions")


@pytest.mark.parametrize("given", [(OLD, NEW), (NEW, OLD)])
async def test_a_database_of_an_earlier_release_keeps_the_pepper_of_its_keys_whatever_is_in_front(
    db: Database, given: tuple[str, str]
) -> None:
    old = Vault(OLD.encode())
    await make_virtual_key(db, old)
    both = Vault(*(key.encode() for key in given))  # said in the wrong order, even
    await unlock(db, both)
    assert both.pepper == old.pepper


async def test_a_wrong_master_key_is_said_with_the_ids_and_nothing_is_planted(db: Database) -> None:
    await make_virtual_key(db, Vault(OLD.encode()))
    with pytest.raises(WrongMasterKey, match="1 virtual keys of this database were made under another master key"):
        await unlock(db, Vault(NEW.encode()))
    await unlock(db, Vault(OLD.encode()))
    with pytest.raises(WrongMasterKey, match=Vault(OLD.encode()).kek_id) as caught:
        await unlock(db, Vault(NEW.encode()))
    assert isinstance(caught.value, GatewayFault) and caught.value.code == "gateway_config"
    assert OLD not in caught.value.message and NEW not in caught.value.message


async def make_virtual_key(db: Database, vault: Vault) -> None:
    await db.execute(
        "INSERT INTO strata.keys (name, digest, pepper_id, display) VALUES ('ci', sha256('x'), $1, 'sk')",
        vault.pepper_id,
    )


async def test_a_rotation_touches_the_wrapped_dek_and_its_kek_and_nothing_else(db: Database) -> None:
    old, both = Vault(OLD.encode()), Vault(NEW.encode(), OLD.encode())
    await save(db, old, 3)
    before = [dict(row) for row in await db.fetch("SELECT * FROM strata.provider_keys ORDER BY id")]
    assert (await rewrap_batch(db, both, COLUMNS[0], None)).rewrapped == 3
    after = [dict(row) for row in await db.fetch("SELECT * FROM strata.provider_keys ORDER BY id")]
    changed = {name for one, other in zip(before, after, strict=True) for name in one if one[name] != other[name]}
    assert changed == {"sealed_dek", "kek_id"}
    assert await opened(db, Vault(NEW.encode())) == {b"sk-provider-key-0", b"sk-provider-key-1", b"sk-provider-key-2"}


async def test_what_somebody_else_holds_is_skipped_and_what_does_not_open_is_named_and_left(db: Database) -> None:
    old, both = Vault(OLD.encode()), Vault(NEW.encode(), OLD.encode())
    held, broken, good = sorted(await save(db, old, 3))
    await db.execute("UPDATE strata.provider_keys SET host = 'https://evil.example' WHERE id = $1::text::uuid", broken)
    async with db.transaction() as connection:
        await connection.execute("SELECT 1 FROM strata.provider_keys WHERE id = $1::text::uuid FOR UPDATE", held)
        batch = await rewrap_batch(db, both, COLUMNS[0], None)
        assert (batch.rewrapped, batch.unopened, batch.last_id) == (1, (broken,), good)
    assert (await rewrap_batch(db, both, COLUMNS[0], None)).rewrapped == 1
    counts = (await count_by_kek(db))["provider_keys"]
    assert counts == {both.kek_id: 2, old.kek_id: 1}


@pytest.mark.parametrize(
    "moved",
    [
        "UPDATE strata.provider_keys SET host = 'https://evil.example'",
        "UPDATE strata.provider_keys SET provider = 'another'",
        "UPDATE strata.provider_keys SET scope = 'team', team_id = '00000000-0000-0000-0000-00000000000a'",
        "UPDATE strata.provider_keys SET id = gen_random_uuid()",
        "UPDATE strata.provider_keys SET kek_id = 'ffffffff'",
    ],
)
async def test_a_ciphertext_moved_to_another_row_owner_or_host_does_not_open(db: Database, moved: str) -> None:
    vault = Vault(OLD.encode())
    await db.execute("INSERT INTO strata.teams (id, name) VALUES ('00000000-0000-0000-0000-00000000000a', 'a')")
    await save(db, vault)
    assert await opened(db, vault) == {b"sk-provider-key-0"}
    await db.execute(moved)
    with pytest.raises(CannotOpen):
        await opened(db, vault)


async def test_one_row_s_ciphertext_in_another_row_does_not_open(db: Database) -> None:
    vault = Vault(OLD.encode())
    mine, yours = await save(db, vault, 2)
    await db.execute(
        "UPDATE strata.provider_keys a SET sealed_key = b.sealed_key, sealed_dek = b.sealed_dek "
        "FROM strata.provider_keys b WHERE a.id = $1::text::uuid AND b.id = $2::text::uuid",
        yours,
        mine,
    )
    row = next(
        row for row in await db.fetch("SELECT *, NULL AS owner_id FROM strata.provider_keys") if str(row["id"]) == yours
    )
    fields = {**dict(row), "id": yours}
    with pytest.raises(CannotOpen):
        unseal(vault, place_of(fields), Sealed(row["sealed_key"], row["sealed_dek"], row["kek_id"]))  # type: ignore[arg-type]


class Command:
    """`strata vault …` as a process, on a database of its own."""

    def __init__(self, folder: Path, dsn: str) -> None:
        self.folder = folder
        (folder / "config.yaml").write_text("{}\n")
        self.environ = {"PATH": "/usr/bin:/bin", "DATABASE_URL": dsn}

    def start(self, action: str, keys: str) -> subprocess.Popen[str]:
        words = (sys.executable, "-m", "proxy", "vault", action, "--json", "--home", str(self.folder))
        return subprocess.Popen(
            (*words, "--config", str(self.folder / "config.yaml")),
            cwd=ROOT,
            env={**self.environ, "STRATA_MASTER_KEY": keys},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, action: str, keys: str) -> tuple[int, dict[str, object]]:
        out, err = (process := self.start(action, keys)).communicate(timeout=120)
        assert out, err
        return process.returncode, json.loads(out)


async def test_a_rotation_that_is_killed_in_the_middle_is_finished_by_the_next(
    db: Database, database_dsn: str, tmp_path: Path
) -> None:
    """Each row takes its time, so that the kill comes in the middle of a batch's transaction."""
    count, old = 350, Vault(OLD.encode())
    new_id = Vault(NEW.encode()).kek_id
    await unlock(db, old)
    await save(db, old, count)
    owner = await asyncpg.connect(database_dsn)
    await owner.execute(
        "CREATE FUNCTION strata.slow() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_sleep(0.005); RETURN NEW; END $$; "
        "CREATE TRIGGER slow BEFORE UPDATE ON strata.provider_keys FOR EACH ROW EXECUTE FUNCTION strata.slow()"
    )
    command = Command(tmp_path, database_dsn)
    process = command.start("rotate", f"{NEW},{OLD}")
    deadline = time.monotonic() + 60
    done = 0
    while not 0 < done < count and time.monotonic() < deadline:
        done = (await count_by_kek(db))["provider_keys"].get(new_id, 0)
    process.kill()
    process.communicate(timeout=30)
    await owner.execute("DROP TRIGGER slow ON strata.provider_keys")
    await owner.close()
    assert 0 < done < count
    half = (await count_by_kek(db))["provider_keys"]
    assert half[old.kek_id] > 0 and sum(half.values()) == count
    assert len(await opened(db, Vault(NEW.encode(), OLD.encode()))) == count

    code, said = command.run("rotate", f"{NEW},{OLD}")
    assert (code, said["left"], said["unopened_provider_keys"]) == (0, 0, [])
    assert said["rows"] == {"provider_keys": {new_id: count}, "vault": {new_id: 1}}
    assert len(await opened(db, Vault(NEW.encode()))) == count
    assert command.run("status", NEW)[0] == 0


async def test_two_rotations_at_once_share_the_work(db: Database, database_dsn: str, tmp_path: Path) -> None:
    old = Vault(OLD.encode())
    await unlock(db, old)
    await save(db, old, 500)
    command = Command(tmp_path, database_dsn)
    both = [command.start("rotate", f"{NEW},{OLD}") for _ in range(2)]
    said = [json.loads(process.communicate(timeout=120)[0]) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum(one["rewrapped"] for one in said) == 501
    assert [one["left"] for one in said] == [0, 0]


async def test_the_status_says_what_is_left_and_a_key_that_is_missing(
    db: Database, database_dsn: str, tmp_path: Path
) -> None:
    old = Vault(OLD.encode())
    await unlock(db, old)
    await save(db, old, 2)
    command = Command(tmp_path, database_dsn)
    code, said = command.run("status", f"{NEW},{OLD}")
    assert (code, said["left"], said["given"]) == (0, 3, [said["newest"], old.kek_id])
    [lost] = await save(db, Vault(b"a third key, that nobody has any more"))
    code, said = command.run("rotate", f"{NEW},{OLD}")
    assert (code, said["rewrapped"], said["left"], said["unopened_provider_keys"]) == (1, 3, 1, [lost])
    process = command.start("status", OLD)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and out == ""
    assert "The master key does not open this database's vault" in err and "Fix:" in err


def test_the_rotation_says_that_provider_keys_must_go_too_if_the_master_key_leaked(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path / "home")
    done = gateway.strata("vault", "rotate")
    assert "If a master key has leaked, this is not enough" in done.stdout, done.stderr
    assert "Replace these at the providers" in done.stdout
    assert "newest" in gateway.strata("vault", "status").stdout


def test_a_gateway_with_a_wrong_master_key_ends_at_its_start_and_says_why(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path / "home")
    gateway.environ["STRATA_MASTER_KEY"] = OLD
    gateway.start().stop()
    gateway.environ["STRATA_MASTER_KEY"] = NEW
    with pytest.raises(AssertionError, match="the gateway did not start"):
        gateway.start()
    assert "The master key does not open this database's vault" in gateway.tail()
    assert "Fix: Restore the STRATA_MASTER_KEY" in gateway.tail()
    assert "Traceback" not in gateway.tail(200)


async def test_a_lost_master_key_can_be_given_up_and_only_a_lost_one(
    db: Database, database_dsn: str, tmp_path: Path
) -> None:
    old, new = Vault(OLD.encode()), Vault(NEW.encode())
    await make_virtual_key(db, old)
    await unlock(db, old)
    await save(db, old, 2)
    command = Command(tmp_path, database_dsn)

    def reset(key: str, *flags: str) -> subprocess.CompletedProcess[str]:
        words = (sys.executable, "-m", "proxy", "vault", "reset", *flags, "--home", str(tmp_path))
        environ = {**command.environ, "STRATA_MASTER_KEY": key}
        return subprocess.run(words, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False)

    assert reset(NEW).returncode == 2
    refused = reset(OLD, "--lost")
    assert (refused.returncode, "There is nothing to reset" in refused.stderr + refused.stdout) == (1, True)
    assert len(await read_all(db)) == 2
    done = reset(NEW, "--lost")
    assert "1 virtual keys were revoked and 2 provider keys removed" in done.stdout, done.stderr
    await unlock(db, new)
    assert await read_all(db) == []
    [noted] = await db.fetch("SELECT after FROM strata.audit WHERE action = 'vault.reset'")
    assert '"provider_keys_removed": 2' in noted["after"]
    with pytest.raises(WrongMasterKey, match="strata vault reset --lost"):
        await unlock(db, old)


def test_virtual_keys_go_on_through_a_whole_rotation(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path / "home")
    for keys_given, rotate in ((OLD, False), (f"{OLD},{NEW}", False), (f"{NEW},{OLD}", True), (NEW, False)):
        gateway.environ["STRATA_MASTER_KEY"] = keys_given
        gateway.start()
        assert gateway.get("/v1/models", gateway.key)[0] == 200
        if rotate:
            assert gateway.strata("vault", "rotate").returncode == 0
            assert gateway.get("/v1/models", gateway.create_key("after"))[0] == 200
        gateway.stop()
