"""`strata ledger`: a bill that is right is found right, and each way in which it can be wrong is found and named."""

from __future__ import annotations

import asyncio
import http.client
import json
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import pytest

from proxy.errors import CallerError
from proxy.metering.reconciliation import compare, read_export
from proxy.metering.segments import LOCK, SEGMENT, SHIPPED
from proxy.metering.verification import Journals, check_journals
from proxy.storage.budgets import read_period, take_lease
from proxy.storage.embedded import find_running
from proxy.storage.forfeits import forfeit, leases
from proxy.storage.ledger import ship
from proxy.storage.postgres import Database
from proxy.storage.verify import MAX_SHOWN, check_sums, sums_by_day
from tests.gateway import Gateway, OracleProcess
from tests.journal_worker import row as journal_row
from tests.shipping import Worker
from tests.test_storage_sql import NOON_MS, a_budget, assert_sums_hold, ledger_row

RATES = {"input": 250_000, "cache_read": 25_000, "output": 2_000_000, "reasoning": 2_000_000, "request": 0}
DAMAGE = [
    ("UPDATE strata.usage SET cost_nano_usd = cost_nano_usd + 7 WHERE public_id = 'b-1'", "journal against the ledger",
     "request b-1 attempt 1", "cost_nano_usd"),
    ("DELETE FROM strata.usage WHERE public_id = 'b-2'", "journal against the ledger", "request b-2 attempt 1",
     "the whole row"),
    ("UPDATE strata.budget_periods SET settled_nano_usd = settled_nano_usd + 3", "budget periods against the rows",
     "budget ", "settled"),
    ("INSERT INTO strata.leases SELECT budget_id, starts_at, gen_random_uuid(), 5 FROM strata.budget_periods",
     "budget periods against the rows", "budget ", "leased"),
    ("UPDATE strata.usage_hourly SET output_tokens = output_tokens + 1", "hourly sums against the rows", " by ",
     "output_tokens"),
    ("UPDATE strata.usage_daily SET cost_nano_usd = 0", "daily sums against the hourly", " by ", "cost_nano_usd"),
    ("DELETE FROM strata.usage_hourly", "hourly sums against the rows", " by ", "attempts"),
    ("UPDATE strata.price_lines SET lines = lines || '{\"output\": 1}'", "costs against stored price lines",
     "request b-", "cost_nano_usd"),
]  # fmt: skip


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Three requests, paid from a budget, shipped and noted as shipped."""
    oracle = OracleProcess(tmp_path_factory.mktemp("oracle"))
    made = Gateway(tmp_path_factory.mktemp("ledger") / "home", oracle=oracle.url).start()
    key = made.create_key("paying", "--budget", "5/1d")
    for number in range(3):
        connection = http.client.HTTPConnection("127.0.0.1", made.port, timeout=20)
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json", "x-request-id": f"b-{number}"}
        body = {"model": "gpt", "max_tokens": 50, "messages": [{"role": "user", "content": "Hello"}]}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        assert connection.getresponse().status == 200
        connection.close()
    made.stop()  # which leaves a journal that is noted as shipped to its end
    yield made.start()
    made.stop()
    oracle.stop()


def verify(gateway: Gateway, code: int = 0) -> dict[str, Any]:
    done = gateway.strata("ledger", "verify", "--json")
    assert done.returncode == code, done.stdout + done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


@pytest.fixture
async def owner(gateway: Gateway) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    dsn = find_running(gateway.home)
    assert dsn is not None
    connection = await asyncpg.connect(dsn, timeout=10)
    await connection.execute("SET session_replication_role = replica")
    yield connection
    await connection.close()


async def test_a_ledger_that_is_right_is_found_right(
    gateway: Gateway, owner: asyncpg.Connection[asyncpg.Record]
) -> None:
    missing = (
        "SELECT 1 FROM strata.usage u LEFT JOIN strata.price_lines l ON l.source = u.price_source "
        "WHERE l IS NULL LIMIT 1"
    )
    async with asyncio.timeout(20):
        while await owner.fetch(missing):
            await asyncio.sleep(0.1)
    done = gateway.strata("ledger", "verify")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "Everything agrees."
    checks = {one["name"]: one["compared"] for one in verify(gateway)["checks"]}
    assert checks["journal against the ledger"] >= 3
    assert checks["costs against stored price lines"] >= 3
    assert checks["budget periods against the rows"] == 1
    assert checks["rows whose price line is not stored"] == 0


@pytest.mark.parametrize(("sql", "check", "where", "what"), DAMAGE, ids=[line[3] for line in DAMAGE])
async def test_damage_is_found_and_named(
    gateway: Gateway, owner: asyncpg.Connection[asyncpg.Record], sql: str, check: str, where: str, what: str
) -> None:
    tables = ("usage", "usage_hourly", "usage_daily", "budget_periods", "leases", "price_lines")
    for table in tables:
        await owner.execute(f"CREATE TEMP TABLE kept_{table} AS SELECT * FROM strata.{table}")
    await owner.execute(
        "INSERT INTO strata.price_lines (source, lines) SELECT DISTINCT price_source, $1::jsonb FROM strata.usage "
        "ON CONFLICT DO NOTHING",
        json.dumps(RATES),
    )
    try:
        await owner.execute(sql)
        done = await asyncio.to_thread(gateway.strata, "ledger", "verify")
        said = verify(gateway, 1)
    finally:
        for table in tables:
            await owner.execute(f"DELETE FROM strata.{table}")
            await owner.execute(f"INSERT INTO strata.{table} SELECT * FROM kept_{table}")
    [found] = [one for one in said["checks"] if one["name"] == check]
    assert found["differences"] >= 1
    assert any(where in line["subject"] and what in line["what"] for line in found["shown"])
    assert done.returncode == 1
    assert any(check in line and where in line for line in done.stdout.splitlines()[8:])
    assert done.stdout.splitlines()[-1].startswith("The ledger does not agree with itself.")
    assert verify(gateway)["ok"]


def test_an_export_of_the_provider_is_compared(gateway: Gateway, tmp_path: Path) -> None:
    rows = gateway.strata("ledger", "reconcile", str(export(tmp_path, "day,model,cost_usd\n2024-01-01,gpt,0\n")))
    assert rows.returncode == 0
    assert "The provider and the ledger agree." in rows.stdout
    today = time.strftime("%Y-%m-%d", time.gmtime())
    sums = json.dumps([{"day": today, "model": "gpt", "key": "paying", "output_tokens": 1, "cost_usd": 0.5, "x": 1}])
    done = gateway.strata("ledger", "reconcile", str(export(tmp_path, sums)), "--json")
    said = json.loads(done.stdout)
    assert (done.returncode, said["ok"], said["ignored_columns"]) == (1, False, ["x"])
    cost = next(one for one in said["differences"] if one["of"] == "cost_usd")
    assert (cost["provider"], cost["key"], cost["side"]) == (500_000_000, "paying", "both")
    assert cost["difference"] == 500_000_000 - cost["ledger"] < 500_000_000
    shown = gateway.strata("ledger", "reconcile", str(export(tmp_path, sums)), "--provider", "claude")
    assert shown.returncode == 1
    assert "only the provider knows it" in shown.stdout
    assert "not read: x" in shown.stdout
    missing = gateway.strata("ledger", "reconcile", str(tmp_path / "none.csv"))
    assert (missing.returncode, "cannot be read" in missing.stderr) == (1, True)
    (tmp_path / "latin.csv").write_bytes(b"day,model\n\xff\xfe")
    assert "not UTF-8" in gateway.strata("ledger", "reconcile", str(tmp_path / "latin.csv")).stderr


def export(folder: Path, text: str) -> Path:
    path = folder / "export"
    path.write_text(text)
    return path


async def test_leases_of_a_lost_host_are_booked_once_and_only_with_yes(
    gateway: Gateway, owner: asyncpg.Connection[asyncpg.Record]
) -> None:
    lost = str(uuid.uuid4())
    await owner.execute("SET session_replication_role = origin")
    await owner.execute(
        "WITH p AS (UPDATE strata.budget_periods SET leased_nano_usd = leased_nano_usd + 1234 RETURNING *) "
        "INSERT INTO strata.leases SELECT budget_id, starts_at, $1::text::uuid, 1234 FROM p",
        lost,
    )
    listed = gateway.strata("ledger", "forfeit")
    assert lost in listed.stdout and "key paying" in listed.stdout
    asked = gateway.strata("ledger", "forfeit", "--worker", lost)
    assert (asked.returncode, "With --yes" in asked.stdout) == (0, True)
    assert len(json.loads(gateway.strata("ledger", "forfeit", "--worker", lost, "--json").stdout)["leases"]) == 1
    done = gateway.strata("ledger", "forfeit", "--worker", lost, "--yes")
    assert (done.returncode, "Booked as spent" in done.stdout) == (0, True)
    again = gateway.strata("ledger", "forfeit", "--worker", lost, "--yes")
    assert (again.returncode, again.stdout) == (0, "Nothing is leased.\n")
    rows = await owner.fetch("SELECT * FROM strata.usage WHERE public_id = $1", f"forfeit-{lost}")
    assert [(row["cost_nano_usd"], row["source"], row["attempt"], row["key_name"]) for row in rows] == [
        (1234, "adjustment", -1, "paying")
    ]
    assert verify(gateway)["ok"]
    bad = gateway.strata("ledger", "forfeit", "--worker", "x")
    assert (bad.returncode, bad.stderr.startswith("--worker must be an id")) == (2, True)
    alive = next((gateway.home / "journal").glob(f"*{LOCK}")).name.removesuffix(LOCK).rpartition("-")[2]
    kept = gateway.strata("ledger", "forfeit", "--worker", alive, "--yes")
    assert (kept.returncode, "Start the gateway here" in kept.stderr) == (1, True)


async def test_every_budget_of_a_lost_host_gets_its_row_and_a_debt_gets_none(db: Database) -> None:
    worker = str(uuid.uuid4())
    budgets = [msgspec.structs.replace(a_budget(10_000), scope=scope) for scope in ("key", "user", "team", "global")]
    for budget in budgets:
        await take_lease(db, budget, worker, 700, 700)
    await db.execute("UPDATE strata.leases SET granted_nano_usd = -5 WHERE budget_id = $1::text::uuid", budgets[1].id)
    await db.execute(
        "UPDATE strata.budget_periods SET leased_nano_usd = -5 WHERE budget_id = $1::text::uuid", budgets[1].id
    )
    assert len(await forfeit(db, worker)) == 4
    assert await leases(db, worker) == []
    assert await forfeit(db, worker) == []
    [noted] = await db.fetch("SELECT action, object, after::text FROM strata.audit")
    said = {"leases": 4, "nano_usd": 3 * 700 - 5}
    assert (noted["action"], noted["object"], msgspec.json.decode(noted["after"])) == ("ledger.forfeit", worker, said)
    for budget, settled in zip(budgets, (700, 0, 700, 700), strict=True):
        period = await read_period(db, budget)
        assert period is not None and (period.settled_nano_usd, period.leased_nano_usd) == (settled, 0)
    await assert_sums_hold(db)


async def test_journals_are_compared_as_far_as_they_are_shipped(db: Database, tmp_path: Path) -> None:
    worker = Worker(tmp_path, db)
    for number in range(620):
        worker.dispatch(number)
        worker.settle(number)
    await worker.shipper.ship_pending()
    worker.journal.note_shipped(worker.shipper._shipped_to)
    worker.settle(700)
    worker.dispatch(701)
    matched, waiting = await check_journals(db, tmp_path)
    assert (matched.compared, matched.differences, waiting.compared) == (620, 0, 1)
    # Adopted by somebody who then lost the last row, and never made one for the attempt that was not settled
    lock = next(tmp_path.glob(f"*{LOCK}"))
    shutil.copy(lock, lock.with_suffix(SHIPPED))
    lock.unlink()
    matched, waiting = await check_journals(db, tmp_path)
    assert (matched.compared, matched.differences, waiting.compared) == (622, 2, 0)
    assert [line.what for line in matched.shown] == ["the whole row", "the whole row"]


async def test_a_gateway_at_work_takes_away_what_is_just_being_compared(db: Database, tmp_path: Path) -> None:
    worker = Worker(tmp_path, db)
    for number in range(200):
        worker.settle(number)
    worker.journal.note_shipped(worker.journal.position)
    reading = Journals(tmp_path).rows()
    next(reading)
    segments = list(tmp_path.glob(f"*{SEGMENT}"))
    for path in segments:
        path.unlink()
    assert len(segments) > 2
    assert 0 < len(list(reading)) < 199


async def test_a_journal_that_is_finished_while_it_is_looked_for_is_read_as_one_that_is(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(tmp_path, db)
    worker.settle(1)
    lock, read_bytes = next(tmp_path.glob(f"*{LOCK}")), Path.read_bytes

    def finish(path: Path) -> bytes:
        lock.rename(lock.with_suffix(SHIPPED))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", finish)
    assert [exact for _, exact in Journals(tmp_path).rows()] == [True]


async def test_an_orphan_need_not_cost_what_was_feared(db: Database, tmp_path: Path) -> None:
    worker = Worker(tmp_path, db)
    worker.dispatch(1, cost_nano_usd=900)
    worker.settle(2)
    await worker.shipper.ship_pending()
    await ship(db, [journal_row(worker.me, 1, source="orphan", cost_nano_usd=5)])
    lock = next(tmp_path.glob(f"*{LOCK}"))
    lock.rename(lock.with_suffix(SHIPPED))
    [matched, _] = await check_journals(db, tmp_path)
    assert (matched.compared, matched.differences) == (2, 0)


async def test_many_differences_are_counted_and_the_first_are_shown(db: Database, database_dsn: str) -> None:
    await ship(db, [ledger_row(started_at_ms=NOON_MS + at * 3_600_000) for at in range(30)])
    connection = await asyncpg.connect(database_dsn)
    await connection.execute("UPDATE strata.usage_hourly SET errors = errors + 1")
    await connection.close()
    [_, hours, days, _, without] = await check_sums(db)
    assert (days.compared, days.differences) == (2, 2)
    assert (hours.compared, hours.differences, len(hours.shown)) == (30, 30, MAX_SHOWN)
    assert (hours.shown[0].what, hours.shown[0].expected, hours.shown[0].found) == ("errors", "0", "1")
    assert without.compared == 30


CSV = """\
\ufeffDay, Model,input_tokens,cached_tokens,output_tokens,cost_usd,project
2026-09-21,echo,10,4,5,"$1,000.000000001",x
2026-09-21,echo,2,,1,0.0000000005,
2026-09-22,other,1,1,1,0,
"""


def test_exports_are_read_and_summed_by_day_and_model() -> None:
    said = read_export(CSV.removeprefix("\ufeff"))
    assert said.numbers == ("input_tokens", "cached_tokens", "output_tokens", "cost_usd")
    assert (said.by_key, said.ignored, said.days) == (False, ("project",), ("2026-09-21", "2026-09-22"))
    assert said.sums["2026-09-21", "echo", ""] == {
        "input_tokens": 12, "cached_tokens": 4, "output_tokens": 6, "cost_usd": 1_000_000_000_002,
    }  # fmt: skip
    nested = read_export('{"data": [{"day": "2026-09-21T00:00:00Z", "model": "m", "key": null, "cost_usd": 1e-9}]}')
    assert nested.sums == {("2026-09-21", "m", ""): {"cost_usd": 1}}
    assert nested.by_key
    assert read_export('{"rows": [{"day": "2026-09-21", "model": "m", "requests": 2}]}').numbers == ("requests",)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no rows"),
        ("day,model\n2026-09-21,m\n", "lacks every number"),
        ("model,cost_usd\nm,1\n", "lacks day"),
        ("day,model,cost_usd\nyesterday,m,1\n", "Row 1: day"),
        ("day,model,cost_usd\n2026-09-21,,1\n", "Row 1: model"),
        ("day,model,cost_usd\n2026-09-21,m,much\n", "Row 1: cost_usd must be a number"),
        ("day,model,cost_usd\n2026-09-21,m,NaN\n", "Row 1: cost_usd"),
        ("day,model,cost_usd\n2026-09-21,m,1e99\n", "Row 1: cost_usd"),
        ("day,model,cost_usd\n2026-09-21,m,1e999999999\n", "Row 1: cost_usd must be a number"),
        ("day,model,input_tokens\n2026-09-21,m,1.5\n", "Row 1: input_tokens cannot be"),
        ("day,model,input_tokens\n2026-09-21,m,-1\n", "Row 1: input_tokens cannot be"),
        ("[1]", "array of objects"),
        ("{", "begins like JSON"),
        ('{"data": 1}', "array of objects"),
        ('[{"day": "2026-09-21", "model": 5, "cost_usd": 1}]', "Row 1: model"),
        ('day,model,cost_usd\n2026-09-21,m,"1\r\n' + "x" * 140_000, "is no CSV"),
    ],
)
def test_an_export_that_is_wrong_says_where(text: str, complaint: str) -> None:
    with pytest.raises(CallerError, match=complaint):
        read_export(text)


def test_an_export_has_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.metering.reconciliation.MAX_ROWS", 1)
    with pytest.raises(CallerError, match="more than 1 rows"):
        read_export("day,model,cost_usd\n2026-09-21,m,1\n2026-09-21,m,1\n")


async def test_sums_of_the_ledger_stand_against_the_export(db: Database) -> None:
    fields: dict[str, Any] = {"deployment": "sim/echo", "started_at_ms": NOON_MS}
    await ship(db, [ledger_row(**fields), ledger_row(**fields, source="counted", key_name="b")])
    await ship(db, [ledger_row(deployment="", provider="", attempt=-1, source="adjustment", started_at_ms=NOON_MS)])
    day = time.strftime("%Y-%m-%d", time.gmtime(NOON_MS / 1000))
    [one] = await sums_by_day(db, day, day, None, False)
    assert (one["model"], one["input_tokens"], one["cached_tokens"], one["output_tokens"]) == ("echo", 36, 10, 20)
    assert (one["cost_nano_usd"], one["estimated_nano_usd"], one["requests"]) == (2_000, 1_000, 2)
    assert [row["key"] for row in await sums_by_day(db, day, day, "sim", True)] == ["b", "ci"]
    assert await sums_by_day(db, day, day, "other", True) == []
    same = read_export(f"day,model,input_tokens,cost_usd\n{day},echo,36,0.000002\n")
    assert compare(same, [one]) == []
    other = read_export(f"day,model,input_tokens,cost_usd\n{day},echo,30,0.000002\n{day},new,1,0\n")
    found = compare(other, [one, {**one, "model": "ours"}])
    assert [(line.model, line.of, line.difference, line.side) for line in found] == [
        ("echo", "input_tokens", -6, "both"),
        ("new", "input_tokens", 1, "provider"),
        ("ours", "input_tokens", -36, "ledger"),
        ("ours", "cost_usd", -2_000, "ledger"),
    ]
