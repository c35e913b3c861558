"""When keys were last used: gathered beside the requests, written once in a while, never earlier than it was."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from proxy import rounds
from proxy.admission.gate import Gate
from proxy.admission.keyring import Keyring
from proxy.admission.limits import Limits
from proxy.rounds import write_all_uses
from proxy.storage.keys import KeyRow, insert_key, list_keys, write_uses
from proxy.storage.postgres import Database, Unavailable
from tests.gateway import Gateway

PEPPER = b"p" * 32
NOW = 1_900_000_000.0


async def add(db: Database, number: int) -> KeyRow:
    return await insert_key(
        db,
        name=f"key {number}",
        digest=number.to_bytes(32, "big"),
        pepper_id="",
        display="",
        models=["*"],
        rpm=None,
        expires_at=None,
        budget_limit_nano_usd=None,
        budget_window_seconds=None,
    )


def gate_with(db: Database, used_at: dict[str, float]) -> Gate:
    gate = Gate(Keyring(db, PEPPER), Limits(), PEPPER)
    gate.put_back(used_at)
    return gate


async def test_uses_are_written_in_batches_and_change_no_version(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "USES_BATCH", 2)
    rows = [await add(db, number) for number in range(5)]
    static = {"6f1f0c34-7a8e-5d55-9a3f-0f6f6c7d2b11": NOW}
    gate = gate_with(db, {row.id: NOW + number for number, row in enumerate(rows)} | static)
    await write_all_uses(db, gate)
    stored = {row.id: row for row in await list_keys(db)}
    assert [stored[row.id].last_used_at for row in rows] == [NOW + number for number in range(5)]
    assert [stored[row.id].version for row in rows] == [row.version for row in rows], "no worker need read them again"
    assert gate.take_uses() == {}


async def test_an_earlier_use_never_replaces_a_later_one(db: Database) -> None:
    row = await add(db, 1)
    for moment in (NOW, NOW - 5, NOW + 1):
        await write_uses(db, {row.id: moment})
        [stored] = await list_keys(db)
        assert stored.last_used_at == max(NOW, moment)


async def test_what_cannot_be_written_is_kept_for_the_next_time() -> None:
    nowhere = Database("postgresql://127.0.0.1:1/nowhere")
    gate = gate_with(nowhere, {"6f1f0c34-7a8e-5d55-9a3f-0f6f6c7d2b11": NOW})
    with pytest.raises(Unavailable):
        await write_all_uses(nowhere, gate)
    assert gate.take_uses() == {"6f1f0c34-7a8e-5d55-9a3f-0f6f6c7d2b11": NOW}


def test_a_gateway_that_stops_writes_what_it_has_gathered(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path / "home").start()
    try:
        [before] = msgspec.json.decode(gateway.strata("keys", "list", "--json").stdout)
        assert before["last_used_at"] is None
        assert gateway.get("/v1/models", gateway.key)[0] == 200
    finally:
        gateway.stop()
    [after] = msgspec.json.decode(gateway.strata("keys", "list", "--json").stdout)
    assert after["last_used_at"] >= after["created_at"]
