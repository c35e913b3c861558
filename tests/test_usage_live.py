"""Usage of a real gateway, over HTTP and on a terminal: by people, keys and strangers, as JSON, CSV and a table."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from proxy.metering.usage_questions import MAX_LIMIT
from proxy.storage.embedded import find_running
from proxy.storage.ledger import ship
from proxy.storage.postgres import Database
from tests.gateway import Gateway
from tests.test_accounts import GOOD, MASTER, Site
from tests.test_storage_sql import ledger_row

CONFIG = f"""\
auth: {{master_key: {MASTER}}}
models: {{dear: sim/chat}}
prices: {{models: {{sim/chat: {{input: 1000, output: 2000}}}}}}
"""
ROWS = """
    SELECT count(*) AS attempts, sum(cost_nano_usd)::bigint AS cost_nano_usd FROM strata.usage
    WHERE $1::text IS NULL OR user_id::text = $1
"""


class Office:
    """Ann is the admin; Bob and Vera are blue, Rob is nobody's. `=1+1` is a key of no person."""

    def __init__(self, site: Site) -> None:
        self.site = site
        first = site.ask("POST", "/auth/register", {"email": "ann@example.com", "password": GOOD}, token=MASTER)
        self.ann = site.admin = first.body["access_token"]
        team = site.ask("POST", "/api/teams", {"name": "blue"}, token=self.ann).body["id"]
        bob = site.invited("bob@example.com", team_id=team).body
        self.bob, self.bob_id = bob["access_token"], bob["user"]["id"]
        self.vera = site.invited("vera@example.com", "viewer", team_id=team).body["access_token"]
        self.rob = site.invited("rob@example.com").body["access_token"]
        self.key = site.gateway.create_key("=1+1")
        asked = [site.chat(who, "dear") for who in (self.bob, self.bob, self.rob, self.key, self.key, self.key)]
        for answer in asked:
            assert answer.status == 200, answer.body
            asyncio.run(site.gateway.settled(answer.headers["x-request-id"]))

    def usage(self, token: str, query: str = "") -> dict[str, Any]:
        answer = self.site.ask("GET", f"/api/usage?{query}", token=token)
        assert answer.status == 200, answer.body
        said: dict[str, Any] = answer.body
        return said

    def ledger(self, user_id: str | None = None) -> dict[str, Any]:
        async def read() -> asyncpg.Record:
            dsn = find_running(self.site.gateway.home)
            assert dsn is not None
            connection = await asyncpg.connect(dsn, timeout=10)
            try:
                [row] = await connection.fetch(ROWS, user_id)
                return row
            finally:
                await connection.close()

        return dict(asyncio.run(read()))


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    gateway = Gateway(tmp_path_factory.mktemp("usage") / "home")
    gateway.config.write_text(CONFIG)
    yield Office(Site(gateway.start()))
    gateway.stop()


def test_the_totals_are_the_ledgers(office: Office) -> None:
    said, ledger = office.usage(office.ann, "by=user,key"), office.ledger()
    assert {name: said["totals"][name] for name in ledger} == ledger
    assert ledger["cost_nano_usd"] > 0
    assert [line["attempts"] for line in said["data"]] == [3, 2, 1]
    assert sum(line["cost_nano_usd"] for line in said["data"]) == ledger["cost_nano_usd"]
    assert said["data"][0]["key"] == "=1+1"
    assert (said["tz"], said["granularity"], said["has_more"], said["notice"]) == ("UTC", None, False, None)


def test_people_see_their_own_and_their_teams_and_a_key_its_own(office: Office) -> None:
    bobs = office.ledger(office.bob_id)
    for token in (office.bob, office.vera):
        said = office.usage(token, "by=user,team")
        assert {name: said["totals"][name] for name in bobs} == bobs
        assert [(line["user"], line["team"]) for line in said["data"]] == [("bob@example.com", "blue")]
    assert office.usage(office.rob)["totals"]["attempts"] == 1
    assert [line["key"] for line in office.usage(office.key, "by=key")["data"]] == ["=1+1"]
    assert office.usage(office.site.gateway.key)["totals"]["attempts"] == 0
    assert office.usage(office.rob, f"user={office.bob_id}&by=user")["data"] == []
    assert office.site.ask("GET", "/api/usage").status == 401


def test_pages_of_json_and_csv_are_read_with_a_cursor(office: Office) -> None:
    query = "by=user,key&granularity=hour&limit=1"
    lines, cursor = [], ""
    for _ in range(9):
        said = office.usage(office.ann, query + cursor)
        lines += said["data"]
        if not said["has_more"]:
            break
        cursor = f"&cursor={said['next_cursor']}"
    assert len(lines) >= 3
    assert len({(line["start"], line["key_id"], line["user_id"]) for line in lines}) == len(lines)
    gateway, written, cursor = office.site.gateway, [], ""
    for _ in range(9):
        answer = gateway.ask("GET", f"/api/usage?{query}&format=csv{cursor}", {"authorization": f"Bearer {office.ann}"})
        assert (answer.status, answer.headers["content-type"]) == (200, "text/csv; charset=utf-8")
        assert "attachment" in answer.headers["content-disposition"]
        written += list(csv.DictReader(io.StringIO(answer.body.decode())))
        if "x-strata-next-cursor" not in answer.headers:
            break
        cursor = f"&cursor={answer.headers['x-strata-next-cursor']}"
    assert [line["cost_usd"] for line in written] == [line["cost_usd"] for line in lines]
    assert "'=1+1" in {line["key"] for line in written}


@pytest.mark.parametrize(
    "query", ["colour=red", "by=colour", "tz=Nowhere", "since=x", "format=xml", "limit=0", "cursor=x", "by=key&by=key"]
)
def test_what_is_not_understood_is_refused_by_name(office: Office, query: str) -> None:
    answer = office.site.ask("GET", f"/api/usage?{query}", token=office.ann)
    assert (answer.status, answer.code) == (400, "invalid_value")
    assert answer.body["error"]["param"] == query.partition("=")[0]


async def test_reports_that_wait_for_the_database_hold_up_nobody_else(office: Office) -> None:
    """One at a time; who waits too long is told so, and whatever else the gateway does goes on."""
    dsn = find_running(office.site.gateway.home)
    assert dsn is not None
    owner = await asyncpg.connect(dsn, timeout=10)
    async with owner.transaction():
        await owner.execute("LOCK TABLE strata.usage_daily IN ACCESS EXCLUSIVE MODE")
        asked = [asyncio.to_thread(office.site.ask, "GET", "/api/usage", token=office.ann) for _ in range(6)]
        waiting = asyncio.gather(*asked)
        await asyncio.sleep(0.2)
        other = await asyncio.to_thread(office.site.ask, "GET", "/api/requests", token=office.ann)
        assert other.status == 200
        answers = await waiting
    await owner.close()
    assert sorted({(answer.status, answer.code) for answer in answers}) == [
        (503, "db_unavailable"),
        (503, "gateway_overloaded"),
    ]
    assert office.usage(office.ann)["totals"]["attempts"] == 6


def test_the_command_shows_a_table_csv_and_json(office: Office) -> None:
    gateway, ledger = office.site.gateway, office.ledger()
    shown = gateway.strata("usage", "--by", "key,model")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "KEY" in shown.stdout and "=1+1" in shown.stdout
    assert f"for {ledger['attempts']} attempts, 0 in error" in shown.stdout
    series = gateway.strata("usage", "--granularity", "hour", "--tz", "Asia/Kolkata", "--since", "24h", "--limit", "1")
    assert "HOUR" in series.stdout and "(Asia/Kolkata)" in series.stdout and "in which it begins" not in series.stdout
    cut = gateway.strata("usage", "--granularity", "month", "--tz", "Asia/Kolkata")
    assert "MONTH" in cut.stdout and "in which it begins" in cut.stdout
    days = gateway.strata("usage", "--granularity", "day", "--by", "user", "--limit", "1").stdout
    assert "and more: --limit" in days and "DAY" in days
    assert "$0.00 for 0 attempts" in gateway.strata("usage", "--model", "none", "--by", "key").stdout
    written = list(csv.DictReader(io.StringIO(gateway.strata("usage", "--by", "key", "--csv").stdout)))
    assert sum(int(line["cost_nano_usd"]) for line in written) == ledger["cost_nano_usd"]
    assert "'=1+1" in {line["key"] for line in written}
    said = json.loads(gateway.strata("usage", "--json").stdout)
    assert said["totals"]["cost_nano_usd"] == ledger["cost_nano_usd"]


@pytest.mark.parametrize(
    "words", [("--tz", "Nowhere"), ("--by", "colour"), ("--csv", "--json"), ("--since", "tomorrow")]
)
def test_the_command_says_what_it_does_not_understand(office: Office, words: tuple[str, ...]) -> None:
    done = office.site.gateway.strata("usage", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(words[0])
    assert "Fix: strata usage" in done.stderr


async def test_the_command_writes_csv_to_the_end_and_says_what_is_not_sure(office: Office) -> None:
    dsn = find_running(office.site.gateway.home)
    assert dsn is not None
    database = Database(dsn)
    await database.open()
    moment_ms = int(datetime(2025, 1, 15, tzinfo=UTC).timestamp() * 1000)
    doubtful = {"started_at_ms": moment_ms, "source": "counted", "price_state": "unknown"}
    await ship(database, [ledger_row(model=f"m{number:04}", **doubtful) for number in range(MAX_LIMIT + 50)])
    await database.close()
    asked = ("usage", "--since", "2025-01-01", "--until", "2025-02-01", "--by", "model")
    written = await asyncio.to_thread(office.site.gateway.strata, *asked, "--csv")
    assert [line["model"] for line in csv.DictReader(io.StringIO(written.stdout))] == [
        f"m{number:04}" for number in range(MAX_LIMIT + 50)
    ]
    shown = await asyncio.to_thread(office.site.gateway.strata, *asked)
    assert "1,050 had no price" in shown.stdout
    assert "1,050 are estimated" in shown.stdout
