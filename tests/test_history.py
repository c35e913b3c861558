"""The request history explains what the ledger bills, and may have gaps."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from datetime import UTC, datetime
from typing import Any

import asyncpg
import msgspec
import pytest

from proxy.admission.limits import Standing
from proxy.config import Deployment, Model, Provider
from proxy.config import History as Settings
from proxy.errors import PolicyError, UpstreamError
from proxy.exchange import Attempt, Budget, Caller, Exchange, Hold, Limit
from proxy.metering.history import BATCH_ROWS, MAX_ERROR_CHARS, Detail, History, encode_row
from proxy.providers import Notice
from proxy.routing.plan import Plan, Step
from proxy.storage.ledger import make_partitions, ship
from proxy.storage.postgres import Database, Unavailable
from proxy.storage.requests import Filters, find_request, forget_requests, list_requests
from tests.test_storage_sql import ledger_row

KEY_ID = str(uuid.UUID(int=5))
BUDGET = Budget(str(uuid.UUID(int=6)), "key", KEY_ID, 5_000_000_000, 86_400)
CALLER = Caller(KEY_ID, "ci", "sk-strata-…", limits=(Limit("key:k", "key", rpm=60),), budgets=(BUDGET,))
NOW_MS = int(time.time() * 1000)
SECRET = "sk-proj-Zq8vT3nKx5Lw9Rb2Hd7Jc4Mf"


def deployment(name: str = "m", provider: str = "p") -> Deployment:
    return Deployment(provider=Provider(name=provider, api_base="http://127.0.0.1:9"), model=name)


def attempt(number: int = 1, **fields: Any) -> Attempt:
    given = {"dispatched": True, "settled": True, "status": 200, "outcome": "ok", "cost_nano_usd": 1_000}
    timed = {"ended_ns": 2_900_000_000, "price_state": "priced"}
    return Attempt(number, deployment(), 2_000_000_000, **{**given, **timed, **fields})


def exchange(**fields: Any) -> Exchange:
    given: dict[str, Any] = {"id": uuid.uuid4().bytes, "request_id": "req_1", "started_at_ms": NOW_MS}
    given |= {"caller": CALLER, "model": "fast", "status": 200, "attempts": [attempt()]}
    return Exchange(endpoint="chat", started_ns=1_000_000_000, **{**given, **fields})


def detail_of(one: Exchange) -> Detail:
    return explain_row(json.loads(encode_row(one, 3_000_000_000)))


def explain_row(row: list[Any]) -> Detail:
    return msgspec.convert(row[19], Detail)


def test_a_row_has_everything_that_explains_the_request() -> None:
    model = Model(name="fast", deployments=(deployment(),))
    steps = (Step(model, deployment(), False), Step(model, deployment("n"), True))
    one = exchange(
        plan=Plan(steps, 3, asleep=1),
        rate=Standing(60, 58, 2.0),
        notices=[Notice("user", "it was left out.")],
        attempts=[
            attempt(status=503, outcome="provider_overloaded", error="full", cost_nano_usd=0, price_state="free"),
            attempt(2, hold=Hold(9_000, (BUDGET.id,), (0,)), first_event_ns=2_500_000_000),
        ],
        finish_reason="stop",
        upstream_wait_ns=1_700_000_000,
    )
    row = json.loads(encode_row(one, 3_000_000_000))
    assert row[1:9] == [NOW_MS, "req_1", KEY_ID, "ci", None, None, "chat", "fast"]
    assert row[9:18] == ["p/m", "p", False, 200, "", 2, 2_000, 1_500, 1_000]
    assert [(notice["param"], notice["message"]) for notice in row[18]] == [("user", "it was left out.")]
    detail = explain_row(row)
    assert detail.rate is not None and (detail.rate.limit, detail.rate.remaining, detail.rate.refused) == (
        60,
        58,
        False,
    )
    assert detail.budgets == (BUDGET,)
    assert [(step.deployment, step.fallback, step.resting) for step in detail.plan] == [
        ("p/m", False, False),
        ("p/n", True, True),
    ]
    first, second = detail.attempts
    assert (first.status, first.outcome, first.error, first.held_nano_usd) == (503, "provider_overloaded", "full", None)
    assert (second.held_nano_usd, second.started_ms, second.first_event_ms, second.ended_ms) == (
        9_000,
        1000,
        1500,
        1900,
    )
    assert (detail.max_attempts, detail.finish_reason, detail.wait_ms, detail.error) == (3, "stop", 1_700, None)


def test_a_refused_request_says_by_which_limit_and_why() -> None:
    refused = PolicyError("Too many.", status=429, code="rate_limit_exceeded", error_type="policy_rate_limited")
    one = exchange(error=refused, status=429, attempts=[])
    row = json.loads(encode_row(one, 1_001_000_000))
    assert row[9:18] == ["", "", False, 429, "policy_rate_limited", 0, 1, None, None]
    detail = explain_row(row)
    assert detail.rate is not None and (detail.rate.remaining, detail.rate.refused) == (None, True)
    assert detail.error is not None
    assert (detail.error.code, detail.error.message) == ("rate_limit_exceeded", "Too many.")
    other = detail_of(exchange(error=UpstreamError("No.")))
    assert other.rate is not None and not other.rate.refused
    assert detail_of(exchange(caller=Caller(KEY_ID, "free", "sk-…"))).rate is None


def test_what_a_provider_says_is_cut_and_shows_no_key() -> None:
    told = explain_row(
        json.loads(encode_row(exchange(attempts=[attempt(error=f"bad key {SECRET}\ud800" + "x y" * 900)]), 2))
    )
    assert SECRET not in told.attempts[0].error
    assert len(told.attempts[0].error) == MAX_ERROR_CHARS
    assert told.attempts[0].error.endswith("…")


@pytest.mark.parametrize(
    ("fields", "error_type", "cost"),
    [
        ({"client_left": True}, "caller_cancelled", 1_000),
        ({"attempts": [attempt(price_state="unknown")]}, "", None),
        ({"attempts": [attempt(price_state="unknown"), attempt(2)]}, "", 1_000),
        ({"attempts": [attempt(dispatched=False, cost_nano_usd=0, ended_ns=0)]}, "", None),
    ],
)
def test_the_cost_is_what_is_known_of_it(fields: dict[str, Any], error_type: str, cost: int | None) -> None:
    row = json.loads(encode_row(exchange(**fields), 3_000_000_000))
    assert (row[13], row[17]) == (error_type, cost)


async def test_requests_of_known_callers_are_written_and_others_are_not(db: Database) -> None:
    history = History(db)
    one, stranger = exchange(), exchange(caller=None)
    history.note(one)
    history.note(stranger)
    assert history.queue_depth == 1
    await history.ship()
    assert (history.queue_depth, history.written_total, history.dropped_total) == (0, 1, 0)
    (row,) = await db.fetch("SELECT id, key_name, detail->'attempts'->0->>'deployment' AS by FROM strata.requests")
    assert (row["id"].bytes, row["key_name"], row["by"]) == (one.id, "ci", "p/m")
    off = History(db, Settings(enabled=False))
    off.note(exchange())
    assert off.queue_depth == 0


async def test_nul_and_long_batches_and_sending_twice_do_no_harm(db: Database) -> None:
    history = History(db)
    for number in range(450):
        history.note(exchange(finish_reason="a\0b" if number == 7 else ""))
    same = exchange()
    history.note(same)
    history.note(same)
    await history.ship()
    (row,) = await db.fetch("SELECT count(*) AS n, max(detail->>'finish_reason') AS f FROM strata.requests")
    assert (row["n"], row["f"]) == (451, "a\ufffdb")


async def test_what_postgres_will_never_take_does_not_hold_up_the_rest(db: Database) -> None:
    history = History(db)
    history.note(exchange(status=99_999))
    history.note(exchange())
    history.note(exchange(id="this is no id"))
    await history.ship()
    assert (history.written_total, history.dropped_total, history.queue_depth) == (1, 2, 0)


async def test_what_cannot_be_encoded_is_dropped_and_counted(db: Database) -> None:
    history = History(db)
    history.note(exchange(finish_reason="\ud800"))
    history.note(exchange())
    await history.ship()
    assert (history.written_total, history.dropped_total) == (1, 1)


async def test_without_room_and_without_postgres_requests_are_dropped_and_counted(db: Database) -> None:
    history = History(db, max_waiting_rows=5)
    await db.close()
    for _ in range(7):
        history.note(exchange())
    assert (history.queue_depth, history.dropped_total) == (5, 2)
    with pytest.raises(Unavailable):
        await history.ship()
    await history.close()
    assert history.dropped_total == 7
    await db.open()
    await history.close()
    assert (history.queue_depth, history.written_total) == (0, 5)
    small = History(db, max_waiting_bytes=10)
    small.note(exchange())
    await small.ship()
    assert (small.dropped_total, small.written_total) == (1, 0)


async def test_a_full_batch_does_not_wait_for_its_time(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.metering.history.INTERVAL_SECONDS", 3_600.0)
    history = History(db)
    running = asyncio.create_task(history.run())
    async with asyncio.timeout(30):
        for batches in (1, 2):
            await asyncio.sleep(0.05)
            for _ in range(BATCH_ROWS):
                history.note(exchange())
            while history.written_total < batches * BATCH_ROWS:
                await asyncio.sleep(0.005)
    assert history.queue_depth == 0
    running.cancel()


async def test_the_task_ships_goes_on_without_postgres_and_forgets_once_an_hour(db: Database) -> None:
    pauses: list[int] = []
    now_ns = 0

    async def sleep(_: float) -> None:
        pauses.append(history.written_total)
        history.note(exchange())
        if len(pauses) == 2:
            await db.close()
        elif len(pauses) == 3:
            await db.open()
        elif len(pauses) == 5:
            raise asyncio.CancelledError

    history = History(db, Settings(retention_seconds=3_600), clock_ns=lambda: now_ns, sleep=sleep)
    history.note(exchange(started_at_ms=NOW_MS - 7_200_000))
    with pytest.raises(asyncio.CancelledError):
        await history.run()
    assert pauses == [1, 2, 2, 4, 5]
    assert await db.fetch("SELECT 1 FROM strata.requests WHERE started_at < now() - interval '1 hour'") == []
    late = exchange(started_at_ms=NOW_MS - 7_200_000)
    history.note(late)
    await history.ship()
    await history._forget()
    assert len(await db.fetch("SELECT 1 FROM strata.requests WHERE id = $1", uuid.UUID(bytes=late.id))) == 1
    now_ns = 3_600_000_000_001
    await history._forget()
    assert await db.fetch("SELECT 1 FROM strata.requests WHERE id = $1", uuid.UUID(bytes=late.id)) == []


async def test_forgetting_drops_whole_months_and_deletes_the_rest(db: Database, database_dsn: str) -> None:
    owner = await asyncpg.connect(database_dsn)
    await owner.execute(
        "CREATE TABLE strata.requests_2024_02 PARTITION OF strata.requests "
        "FOR VALUES FROM ('2024-02-01 00:00:00+00') TO ('2024-03-01 00:00:00+00')"
    )
    history = History(db)
    february, march = datetime(2024, 2, 20, tzinfo=UTC), datetime(2024, 3, 2, tzinfo=UTC)
    for moment in (february, march, datetime.now(UTC)):
        history.note(exchange(started_at_ms=int(moment.timestamp() * 1000)))
    await history.ship()
    age = (datetime.now(UTC) - datetime(2024, 2, 25, tzinfo=UTC)).total_seconds()
    assert await forget_requests(db, age) == 1
    assert await owner.fetchval("SELECT to_regclass('strata.requests_2024_02')") is not None
    age = (datetime.now(UTC) - datetime(2024, 3, 10, tzinfo=UTC)).total_seconds()
    assert await forget_requests(db, age) == 1
    assert await forget_requests(db, age) == 0
    assert await owner.fetchval("SELECT to_regclass('strata.requests_2024_02')") is None
    assert len(await db.fetch("SELECT 1 FROM strata.requests")) == 1
    await make_partitions(db)
    await owner.close()


async def test_pages_follow_each_other_and_filters_narrow_them(db: Database) -> None:
    history = History(db)
    made = [exchange(started_at_ms=NOW_MS - at // 2, model="slow" if at % 3 else "fast") for at in range(10)]
    for one in made:
        history.note(one)
    await history.ship()
    seen: list[str] = []
    after = None
    async with db.transaction() as connection:
        while page := await list_requests(connection, Filters(), 4, after):
            seen += [row["id"] for row in page]
            after = (page[-1]["started_at"], page[-1]["id"])
        assert len(seen) == len(set(seen)) == 10
        assert len(await list_requests(connection, Filters(model="fast"), 50)) == 4
        narrow = Filters(key="ci", status=200, deployment="p/m", error_type="")
        assert len(await list_requests(connection, narrow, 50)) == 10
        moment = datetime.fromtimestamp((NOW_MS - 2) / 1000, UTC)
        assert len(await list_requests(connection, Filters(since=moment), 50)) == 6
        assert len(await list_requests(connection, Filters(until=moment), 50)) == 4
    async with db.acting_as(Caller(str(uuid.UUID(int=9)), "other", "")) as connection:
        assert await list_requests(connection, Filters(), 50) == []


async def find(db: Database, name: str, key_id: str = KEY_ID) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    async with db.acting_as(Caller(key_id, "ci", "")) as connection:
        return await find_request(connection, name)


async def test_one_request_is_found_by_its_id_or_ours_and_only_by_its_key(db: Database) -> None:
    history = History(db)
    one = exchange(request_id="mine", attempts=[attempt(), attempt(2)])
    history.note(one)
    await history.ship()
    fields: dict[str, Any] = {"request_id": one.id, "public_id": "mine", "started_at_ms": NOW_MS, "key_id": KEY_ID}
    await ship(db, [ledger_row(**fields), ledger_row(**{**fields, "attempt": 2})])
    for name in ("mine", str(uuid.UUID(bytes=one.id)), one.id.hex()):
        row, bill = await find(db, name)
        assert row is not None and row["public_id"] == "mine"
        assert [line["attempt"] for line in bill] == [1, 2]
        assert await find(db, name, str(uuid.UUID(int=8))) == (None, [])
    await ship(db, [ledger_row(**{**fields, "request_id": uuid.uuid4().bytes, "public_id": "gap"})])
    row, bill = await find(db, "gap")
    assert row is None and len(bill) == 1
    assert await find(db, "neither") == (None, [])
