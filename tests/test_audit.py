"""The audit log: one chain, whoever writes to it; whatever is done to a row of it is found."""

from __future__ import annotations

import asyncio
import http.client
import json
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from proxy.exchange import Caller
from proxy.storage.audit import list_audit, note, verify_chain
from proxy.storage.budget_settings import end_budgets, set_budget
from proxy.storage.keys import insert_key, revoke_key
from proxy.storage.postgres import Database
from tests.conftest import run_sql
from tests.gateway import Gateway

ADMIN = Caller("", "master", "", role="admin")


async def write(db: Database, count: int, start: int = 0) -> None:
    for number in range(start, start + count):
        async with db.transaction() as connection:
            after = {"name": f"n{number}", "rpm": number}
            await note(connection, actor="cli:me", action="key.create", object=f"k{number}", after=after)


async def test_fifty_writers_at_once_make_one_chain_without_gaps(db: Database) -> None:
    async def change(number: int) -> None:
        async with db.acting_as(ADMIN) if number % 2 else db.transaction() as connection:
            await note(connection, actor=f"a{number}", action="x", object="o", before={"n": number}, after=None)

    await asyncio.gather(*map(change, range(50)))
    verdict = await verify_chain(db)
    assert (verdict.rows, verdict.broken_at) == (50, None)
    assert len(verdict.head) == 64


async def test_a_change_that_is_rolled_back_leaves_no_note(db: Database) -> None:
    with pytest.raises(ZeroDivisionError):
        async with db.transaction() as connection:
            await note(connection, actor="a", action="x", object="o")
            raise ZeroDivisionError
    await write(db, 1)
    assert (await verify_chain(db)).rows == 1


TAMPERED = {
    "seq": "seq = 99",
    "at": "at = at + interval '1 microsecond'",
    "actor": "actor = 'cli:you'",
    "action": "action = 'key.revoke'",
    "object": "object = 'k9'",
    "before": "before = '{}'",
    "a null that is another": "before = 'null'",
    "after": """after = '{"name": "n2", "rpm": 3}'""",
    "request_id": "request_id = 'r'",
    "prev_hash": "prev_hash = hash",
    "hash": "hash = prev_hash",
}


@pytest.mark.parametrize("change", TAMPERED.values(), ids=TAMPERED)
async def test_a_row_that_was_changed_is_found(db: Database, database_dsn: str, change: str) -> None:
    await write(db, 5)
    await tamper(database_dsn, f"UPDATE strata.audit SET {change} WHERE seq = 3")
    assert (await verify_chain(db)).broken_at == 3


@pytest.mark.parametrize("seq", [0, -7])
async def test_a_row_before_the_first_is_found(db: Database, database_dsn: str, seq: int) -> None:
    await write(db, 2)
    forged = "INSERT INTO strata.audit (seq, actor, action, object, prev_hash, hash) OVERRIDING SYSTEM VALUE"
    await run_sql(database_dsn, f"{forged} VALUES ({seq}, 'cli:eve', 'key.create', 'k', '', '')")
    assert (await verify_chain(db)).broken_at == 1


async def tamper(dsn: str, sql: str) -> None:
    """As the owner can, who may do all."""
    await run_sql(
        dsn,
        "ALTER TABLE strata.audit DISABLE TRIGGER append_only",
        "ALTER TABLE strata.audit ALTER seq DROP IDENTITY IF EXISTS",
        sql,
    )


async def test_a_row_that_is_missing_is_found_and_at_the_end_by_who_knows_the_head(
    db: Database, database_dsn: str
) -> None:
    await write(db, 5)
    whole = await verify_chain(db)
    await tamper(database_dsn, "DELETE FROM strata.audit WHERE seq = 5")
    shorter = await verify_chain(db, whole.head)
    assert (shorter.rows, shorter.broken_at, shorter.held) == (4, None, False)
    await write(db, 3, start=10)
    assert (await verify_chain(db, shorter.head)).held, "a head of the past is still in the chain"
    await run_sql(database_dsn, "DELETE FROM strata.audit WHERE seq = 2")
    assert (await verify_chain(db)).broken_at == 2


@pytest.mark.parametrize("role", ["key", "viewer", "member", "admin"])
async def test_nobody_adds_a_row_but_by_the_one_function(db: Database, role: Any) -> None:
    sql = "INSERT INTO strata.audit (actor, action, object, prev_hash, hash) VALUES ('a', 'b', 'c', '', '')"
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        async with db.acting_as(Caller("", "", "", role=role)) as connection:
            await connection.execute(sql)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await db.execute(sql)
    assert (await verify_chain(db)).rows == 0


async def test_secrets_are_masked_whatever_is_passed(db: Database) -> None:
    async with db.transaction() as connection:
        said = {"api_key": "sk-1", "password": "p", "key": None, "token_version": 3, "display": "sk…", "models": ["*"]}
        await note(connection, actor="a", action="x", object="o", after=said)
        (row,) = await list_audit(connection, limit=5)
    masked = {"api_key": "…", "password": "…", "key": None, "token_version": "…"}
    assert row["after"] == {**masked, "display": "sk…", "models": ["*"]}


async def test_keys_and_budgets_are_noted_with_who_did_it(db: Database) -> None:
    wanted: dict[str, Any] = {"models": ("*",), "rpm": 5, "expires_at": None, "pepper_id": "p", "display": "sk…"}
    budget: dict[str, Any] = {"budget_limit_nano_usd": 7, "budget_window_seconds": 60}
    row = await insert_key(db, name="ci", digest=b"d" * 32, **wanted, **budget, actor="cli:me")
    await revoke_key(db, "ci", "cli:you")
    await set_budget(db, "global", "", 9, 60, None, "cli:me")
    await set_budget(db, "global", "", 11, 60, None, "cli:me")
    await end_budgets(db, "global", "", "cli:you")
    async with db.transaction() as connection:
        rows = (await list_audit(connection, limit=9))[::-1]
    assert [(one["actor"], one["action"]) for one in rows] == [
        ("cli:me", "key.create"),
        ("cli:you", "key.revoke"),
        ("cli:me", "budget.set"),
        ("cli:me", "budget.set"),
        ("cli:you", "budget.end"),
    ]
    assert [rows[2]["before"], rows[3]["before"]["limit_nano_usd"], rows[3]["after"]["limit_nano_usd"]] == [None, 9, 11]
    assert (rows[0]["object"], rows[0]["after"]["rpm"]) == (row.id, 5)
    assert rows[0]["after"]["budgets"][0]["limit_nano_usd"] == 7
    assert "digest" not in rows[0]["after"]


MASTER = "q7Zt2mVx9Lk4Wn8Rb3Hd6Jc5Pf1Ys0Ga"


def test_admins_read_it_page_by_page_and_the_command_verifies_it(tmp_path: Path) -> None:
    gateway = Gateway(tmp_path / "home")
    gateway.config.write_text(f"auth: {{master_key: {MASTER}}}\n")
    gateway.start()
    try:
        for name in ("one", "two", "three"):
            gateway.strata("keys", "create", name)
        first = get(gateway, "/api/audit?limit=2&action=key.create")
        assert [row["after"]["name"] for row in first["data"]] == ["three", "two"]
        rest = get(gateway, f"/api/audit?limit=2&cursor={first['next_cursor']}&action=key.create")
        assert rest["data"][0]["after"]["name"] == "one"
        assert get(gateway, "/api/audit?colour=red")["error"]["param"] == "colour"
        assert get(gateway, "/api/audit?limit=0")["error"]["param"] == "limit"
        told = json.loads(gateway.strata("audit", "verify", "--json").stdout)
        assert told["right"]
        assert "The audit log is whole" in gateway.strata("audit", "verify", "--head", told["head"]).stdout
        assert "key.create" in gateway.strata("audit", "list", "--last", "2").stdout
        assert gateway.key not in gateway.strata("audit", "list", "--json").stdout
    finally:
        gateway.stop()


def get(gateway: Gateway, path: str) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=20)
    connection.request("GET", path, headers={"authorization": f"Bearer {MASTER}"})
    body = json.loads(connection.getresponse().read())
    connection.close()
    return body


async def test_a_person_is_written_down_as_himself_whatever_is_said(db: Database) -> None:
    ann = Caller("", "ann", "", role="admin", user_id="11111111-1111-4111-8111-111111111111")
    async with db.acting_as(ann) as connection:
        await note(connection, actor="somebody else", action="x", object="o")
    async with db.transaction() as connection:
        [row] = await list_audit(connection, limit=1)
    assert row["actor"] == ann.user_id
