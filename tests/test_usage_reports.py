"""Usage reports against the ledger's own rows, to the nano-dollar: any ledger, any question, page by page."""

from __future__ import annotations

import base64
import csv
import io
import json
import uuid
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.exchange import Caller
from proxy.metering.usage_questions import MAX_PERIODS, WORDS, Unanswerable, read_question
from proxy.metering.usage_report import COUNTS, Report, answer, dollars, next_cursor, to_csv, to_object
from proxy.storage.ledger import LedgerRow, ship
from proxy.storage.postgres import Database
from tests.test_storage_sql import assert_sums_hold, ledger_row, new_key

START = datetime(2026, 3, 20, tzinfo=UTC)
NOW = datetime(2026, 4, 20, tzinfo=UTC)
ZONES = ("UTC", "Europe/Berlin", "America/Los_Angeles", "Asia/Kolkata", "Asia/Tokyo")
KEYS = [str(uuid.UUID(int=number)) for number in (11, 12, 13)]
USERS = [str(uuid.UUID(int=number)) for number in (21, 22)]
TEAMS = [str(uuid.UUID(int=number)) for number in (31, 32)]
# each is given twice, and counts once
TAGS = {KEYS[0]: ["prod", "blue"], KEYS[1]: ["prod"], KEYS[2]: []}
ADMIN = Caller("k", "root", "", role="admin")
FIELDS = {"model": "model", "provider": "provider", "deployment": "deployment", "key": "key_id", "user": "user_id",
          "team": "team_id"}  # fmt: skip


def caller(role: str, user: str = "", team: str = "", key: str = "") -> Caller:
    return Caller(key or "k", "c", "", user_id=user or None, team_id=team or None, role=role)  # type: ignore[arg-type]


async def ask(db: Database, who: Any = ADMIN, now: Any = NOW, **words: Any) -> Report:
    question = read_question(words.get, now, 1_000)
    async with db.acting_as(who) as connection:
        return await answer(connection, question)


async def whole(db: Database, **words: Any) -> list[dict[str, Any]]:
    """All lines, page by page."""
    lines: list[dict[str, Any]] = []
    for _ in range(1_000):
        report = await ask(db, **words)
        lines += report.lines
        cursor = next_cursor(report)
        if cursor is None:
            return lines
        words["cursor"] = cursor
    raise AssertionError("no end")


async def owners(dsn: str, *statements: str) -> None:
    connection = await asyncpg.connect(dsn)
    for sql in statements:
        await connection.execute(sql)
    await connection.close()


TENANTS = [
    *(f"INSERT INTO strata.teams (id, name) VALUES ('{id}', 'team-{at}') ON CONFLICT DO NOTHING"
      for at, id in enumerate(TEAMS)),
    *(f"INSERT INTO strata.users (id, email, subject, team_id) VALUES ('{id}', 'U{at}@example.com', '{at}', "
      f"'{TEAMS[at]}') ON CONFLICT DO NOTHING" for at, id in enumerate(USERS)),
    *(f"INSERT INTO strata.keys (id, name, digest, pepper_id, display, user_id, team_id, tags) VALUES ('{id}', "
      f"'key-{at}', sha256('{at}'), 'p', 'sk…', '{USERS[at % 2]}', '{TEAMS[at % 2]}', "
      f"'{{{','.join(TAGS[id] * 2)}}}') ON CONFLICT DO NOTHING" for at, id in enumerate(KEYS)),
]  # fmt: skip
EMPTY = "TRUNCATE strata.usage, strata.usage_hourly, strata.usage_daily"


@st.composite
def rows(draw: st.DrawFn) -> LedgerRow:
    key = draw(st.integers(0, 2) | st.none())
    corrected = draw(st.integers(0, 9)) == 0
    minutes = draw(st.integers(0, 31 * 24 * 60 - 1))
    return ledger_row(
        attempt=-1 if corrected else 1,
        source="adjustment" if corrected else draw(st.sampled_from(["provider", "counted", "orphan"])),
        outcome=draw(st.sampled_from(["ok", "provider_error"])),
        price_state=draw(st.sampled_from(["priced", "unknown"])),
        started_at_ms=int((START + timedelta(minutes=minutes)).timestamp() * 1000),
        key_id=None if key is None else KEYS[key],
        user_id=None if key is None else USERS[key % 2],
        team_id=None if key is None else TEAMS[key % 2],
        model=draw(st.sampled_from(["fast", "smart"])),
        deployment=draw(st.sampled_from(["p/a", "q/b"])),
        provider=draw(st.sampled_from(["p", "q"])),
        input_tokens=draw(st.integers(0, 10**6)),
        cost_nano_usd=draw(st.integers(-(10**15) if corrected else 0, 10**15)),
    )


def sums(row: LedgerRow) -> Counter[str]:
    real = row.attempt > 0
    cache_write = row.cache_write_5m_tokens + row.cache_write_1h_tokens
    return Counter(
        attempts=int(real),
        errors=int(real and row.outcome != "ok"),
        estimated=int(row.source in ("counted", "ambiguous", "orphan")),
        unpriced=int(row.price_state == "unknown"),
        input_tokens=row.input_tokens + row.cache_read_tokens + cache_write + row.audio_input_tokens,
        cached_tokens=row.cache_read_tokens,
        cache_write_tokens=cache_write,
        output_tokens=row.output_tokens + row.reasoning_tokens + row.audio_output_tokens,
        reasoning_tokens=row.reasoning_tokens,
        cost_nano_usd=row.cost_nano_usd,
    )


def period_of(moment: datetime, granularity: str | None, tz: str) -> date | datetime | None:
    """Said in another way than the gateway says it: by the local date of the hour."""
    hour = moment.replace(minute=0, second=0, microsecond=0)
    if granularity is None:
        return None
    if granularity == "hour":
        return hour
    day = hour.astimezone(ZoneInfo(tz)).date()
    if granularity == "week":
        return day - timedelta(days=day.weekday())
    return day.replace(day=1) if granularity == "month" else day


def expected(ledger: list[LedgerRow], words: Mapping[str, str], tz: str) -> dict[tuple[Any, ...], Counter[str]]:
    by = words["by"].split(",") if "by" in words else []
    found: dict[tuple[Any, ...], Counter[str]] = {}
    nothing: list[Any] = [None]
    for row in ledger:
        moment = datetime.fromtimestamp(row.started_at_ms / 1000, UTC)
        if "team" in words and row.team_id != TEAMS[0]:
            continue
        for tag in (TAGS.get(row.key_id or "") or nothing) if "tag" in by else nothing:
            group = tuple(tag if name == "tag" else getattr(row, FIELDS[name]) for name in by)
            place = (period_of(moment, words.get("granularity"), tz), *group)
            found.setdefault(place, Counter()).update(sums(row))
    return {place: one for place, one in found.items() if any(one.values())}


def told(lines: list[dict[str, Any]], words: Mapping[str, str], tz: str) -> dict[tuple[Any, ...], Counter[str]]:
    by = words["by"].split(",") if "by" in words else []
    found = {}
    for line in lines:
        granularity = words.get("granularity")
        start = datetime.fromisoformat(line["start"]).astimezone(UTC) if granularity else START
        # a period of a zone with half an hour begins within the hour that counts to the one before
        start += timedelta(minutes=30 if granularity not in (None, "hour") and start.minute else 0)
        group = tuple(line["tag"] if name == "tag" else line[FIELDS[name]] for name in by)
        place = (period_of(start, granularity, tz), *group)
        assert place not in found
        found[place] = Counter({name: line[name] for name in COUNTS})
        assert line["cost_usd"] == dollars(line["cost_nano_usd"])
    return found


@given(
    st.lists(rows(), max_size=25),
    st.lists(st.sampled_from([*FIELDS, "tag"]), unique=True, max_size=3),
    st.sampled_from([None, "hour", "day", "week", "month"]),
    st.sampled_from(ZONES),
    st.booleans(),
    st.integers(1, 4),
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_a_report_is_the_sum_of_the_ledgers_rows_to_the_nano_dollar(
    database_dsn: str,
    ledger: list[LedgerRow],
    by: list[str],
    granularity: str | None,
    tz: str,
    of_team: bool,
    size: int,
) -> None:
    await owners(database_dsn, EMPTY, *TENANTS)
    words = {"since": START.isoformat(), "tz": tz}
    words |= {"by": ",".join(by)} if by else {}
    words |= {"granularity": granularity} if granularity else {}
    words |= {"team": "team-0"} if of_team else {}
    db = Database(database_dsn)
    await db.open()
    try:
        await ship(db, ledger)
        await assert_sums_hold(db)
        lines = await whole(db, limit=str(size * 3), **words)
        report = await ask(db, **words)
    finally:
        await db.close()
    assert told(lines, words, tz) == expected(ledger, words, tz)
    assert report.lines == lines
    total = expected(ledger, {"team": ""} if of_team else {}, tz).get((None,), Counter())
    assert {name: report.totals[name] for name in COUNTS} == {name: total[name] for name in COUNTS}
    if granularity is None:
        costs = [line["cost_nano_usd"] for line in lines]
        assert costs == sorted(costs, reverse=True)


def at(text: str, **fields: Any) -> LedgerRow:
    return ledger_row(started_at_ms=int(datetime.fromisoformat(text).timestamp() * 1000), **fields)


async def test_days_have_the_hours_that_the_clocks_give_them(db: Database) -> None:
    """One attempt an hour: on the day of the change to summer there are 23, to winter 25."""
    for first, hours in (("2026-03-28T23:00+00:00", 23), ("2026-10-24T22:00+00:00", 25)):
        start = datetime.fromisoformat(first)
        await ship(db, [at((start + timedelta(hours=hour)).isoformat()) for hour in range(-1, hours + 1)])
        day = (start + timedelta(hours=12)).date().isoformat()
        words = {"since": day, "until": (date.fromisoformat(day) + timedelta(days=1)).isoformat()}
        report = await ask(db, granularity="day", tz="Europe/Berlin", **words)
        assert [line["attempts"] for line in report.lines] == [hours]
        assert report.lines[0]["start"][:10] == day
        by_hour = await ask(db, granularity="hour", tz="Europe/Berlin", **words)
        assert len({line["start"] for line in by_hour.lines}) == hours


async def test_an_hour_that_a_half_hour_zone_cuts_is_in_the_day_in_which_it_begins(db: Database) -> None:
    await ship(db, [at("2026-03-31T18:10+00:00"), at("2026-03-31T18:50+00:00"), at("2026-03-31T19:00+00:00")])
    report = await ask(db, granularity="day", tz="Asia/Kolkata", since="2026-03-31", until="2026-04-02")
    said = to_object(report)
    assert [(line["start"], line["attempts"]) for line in said["data"]] == [
        ("2026-03-31T00:00:00+05:30", 2),
        ("2026-04-01T00:00:00+05:30", 1),
    ]
    assert "in which it begins" in said["notice"]
    assert to_object(await ask(db, granularity="day", tz="Europe/Berlin"))["notice"] is None


async def test_pages_of_a_series_lose_and_double_nothing_while_rows_arrive(db: Database) -> None:
    models = [f"m{number}" for number in range(7)]
    await ship(db, [at("2026-04-01T10:00+00:00", model=model) for model in models])
    words = {"granularity": "day", "by": "model", "since": "2026-03-31", "limit": "2"}
    first = await ask(db, **words)
    await ship(db, [at("2026-04-01T11:00+00:00", model=model, cost_nano_usd=10**9) for model in reversed(models)])
    cursor = next_cursor(first)
    assert cursor is not None
    rest = await whole(db, **words, cursor=cursor)
    assert [line["model"] for line in [*first.lines, *rest]] == models
    assert to_csv(first).startswith("start,end,model,attempts,")
    assert (first.totals["attempts"], (await ask(db, **words, cursor=cursor)).totals["attempts"]) == (7, 14)


async def test_the_last_thirty_days_are_the_same_on_every_page(db: Database) -> None:
    await ship(db, [at(f"2026-04-{day:02d}T10:00+00:00") for day in range(1, 20)])
    first = await ask(db, granularity="day", limit="5")
    cursor = next_cursor(first)
    assert cursor is not None
    later = await ask(db, now=NOW + timedelta(days=25), granularity="day", limit="99", cursor=cursor)
    assert len([*first.lines, *later.lines]) == 19
    assert (first.question.since, first.question.until) == (later.question.since, later.question.until)


async def test_a_cell_is_never_a_formula(db: Database) -> None:
    """Names, models and tags are whatever somebody chose; a cost below zero is a number all the same."""
    bad = ["=1+1", "+cmd|' /C calc'!A0", "@SUM(A1)", "-2+3", "\t=1", "＝1+1", " =1+1"]
    made = [await new_key(db, name=name) for name in bad]
    ledger = [at("2026-04-01T10:00+00:00", key_id=key.id, model=key.name) for key in made]
    await ship(db, [*ledger, at("2026-04-01T11:00+00:00", attempt=-1, source="adjustment", cost_nano_usd=-(10**12))])
    report = await ask(db, by="key,model")
    lines = list(csv.DictReader(io.StringIO(to_csv(report))))
    assert len(lines) == len(bad) + 1
    assert {line["key"] for line in lines} == {*(f"'{name}" for name in bad), ""}
    assert {line["model"] for line in lines} == {*(f"'{name}" for name in bad), "fast"}
    [corrected] = [line for line in lines if line["key"] == ""]
    assert (corrected["cost_nano_usd"], corrected["cost_usd"]) == ("-1000000000000", "-1000.000000000")
    assert {line["key"] for line in report.lines} == {*bad, None}


async def test_everybody_sees_what_is_theirs_and_no_sign_of_the_rest(db: Database, database_dsn: str) -> None:
    await owners(database_dsn, *TENANTS)
    theirs = [dict(key_id=KEYS[n], user_id=USERS[n % 2], team_id=TEAMS[n % 2], cost_nano_usd=10**n) for n in range(3)]
    await ship(db, [at("2026-04-01T10:00+00:00", **fields) for fields in theirs])

    async def seen(who: Any, **words: Any) -> list[tuple[Any, ...]]:
        report = await ask(db, who, by="key,user,team,tag", **words)
        assert report.totals["cost_nano_usd"] == sum(
            {line["key_id"]: line["cost_nano_usd"] for line in report.lines}.values()
        )
        return sorted((line["key"], line["user"], line["team"], line["tag"] or "") for line in report.lines)

    blue = [("key-0", "U0@example.com", "team-0", "blue"), ("key-0", "U0@example.com", "team-0", "prod"),
            ("key-2", "U0@example.com", "team-0", "")]  # fmt: skip
    red = [("key-1", "U1@example.com", "team-1", "prod")]
    for role in ("member", "viewer"):
        assert await seen(caller(role, USERS[0], TEAMS[0])) == blue
        assert await seen(caller(role, USERS[1], TEAMS[1])) == red
        assert await seen(caller(role, str(uuid.UUID(int=99)))) == []
        for words in ({"key": "key-1"}, {"key": KEYS[1]}, {"user": "U1@example.com"}, {"team": TEAMS[1]}):
            assert await seen(caller(role, USERS[0], TEAMS[0]), **words) == []
    assert await seen(caller("key", key=KEYS[1])) == [("key-1", None, None, "prod")]
    assert await seen(caller("key", key=str(uuid.UUID(int=98)))) == []
    assert await seen(ADMIN) == sorted([*blue, *red])
    for words in ({"key": "key-1"}, {"user": "u1@EXAMPLE.com"}, {"user": USERS[1]}, {"team": "team-1"}):
        assert await seen(ADMIN, **words) == red
    assert [line[0] for line in await seen(ADMIN, tag="blue")] == ["key-0", "key-0"]


async def test_other_filters_narrow_too_and_nothing_gives_zeros(db: Database) -> None:
    await ship(db, [at("2026-04-01T10:00+00:00", model=m, deployment=f"{p}/x", provider=p) for m in "ab" for p in "pq"])
    for words in ({"model": "a"}, {"provider": "p"}, {"deployment": "q/x"}):
        assert (await ask(db, **words)).totals["attempts"] == 2
    nothing = await ask(db, model="none", granularity="day")
    assert (nothing.lines, nothing.totals["cost_usd"]) == ([], "0.000000000")
    assert [line["attempts"] for line in (await ask(db)).lines] == [4]


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("tz", {"tz": "Mars/Olympus"}), ("granularity", {"granularity": "minute"}), ("by", {"by": "model,colour"}),
        ("by", {"by": "key,key"}), ("limit", {"limit": "0"}), ("limit", {"limit": "1001"}),
        ("limit", {"limit": "ten"}),
        ("since", {"since": "monday"}), ("since", {"since": "0h"}), ("since", {"since": "1999-01-01"}),
        ("since", {"since": "9999w"}), ("until", {"until": "2100-01-01"}), ("until", {"until": "30d"}),
        ("since", {"since": "2026-02-01", "until": "2026-01-01"}), ("since", {"since": "0001-01-01T00:00+14:00"}),
        ("granularity", {"since": "60d", "granularity": "hour"}),
        ("granularity", {"since": "1050d", "granularity": "day"}),
        ("model", {"model": "\udcff"}), ("key", {"key": "\0"}),
        ("cursor", {"cursor": "?"}), ("cursor", {"cursor": "AAAA"}), ("cursor", {"cursor": "é"}),
    ],
)  # fmt: skip
def test_a_question_that_cannot_be_answered_names_its_word(word: str, words: dict[str, str]) -> None:
    with pytest.raises(Unanswerable) as caught:
        read_question(words.get, NOW, 100)
    assert caught.value.word == word


SAID = st.one_of(
    st.text(max_size=40),
    st.from_regex(r"[0-9]{1,4}[hdw]", fullmatch=True),
    st.datetimes().map(datetime.isoformat),
    st.sampled_from([*ZONES, "model,key", "day", "hour", "7"]),
)


@given(st.dictionaries(st.sampled_from(WORDS), SAID, max_size=6))
def test_whatever_is_asked_is_a_question_or_names_the_word_that_is_none(words: dict[str, str]) -> None:
    try:
        question = read_question(words.get, NOW, 100)
    except Unanswerable as error:
        assert error.word in {*words, "since"}
    else:
        assert question.since < question.until
        assert 1 <= len(question.periods()) <= MAX_PERIODS


def forged(mark: str, *more: object) -> str:
    return base64.urlsafe_b64encode(json.dumps([mark, *more]).encode()).decode()


def test_a_cursor_is_good_for_its_question_only() -> None:
    mark = read_question({"by": "model"}.get, NOW, 100).mark
    good = forged(mark, 490_000, 490_100, 0, -5, ["a", "", "", "", "", "", ""])
    assert read_question({"by": "model", "cursor": good}.get, NOW, 100).after.descending == -5
    bad = [
        forged("x", 490_000, 490_100, 0, -5, [""] * 7),
        forged(mark, 490_100, 490_100, 0, -5, [""] * 7),
        forged(mark, 490_000, 490_100, 0, -5, ["\0", *[""] * 6]),
        forged(mark, 490_000, 490_100, 0, -5, [""] * 6),
        forged(mark, 490_000, 490_100, 0, 2**64, [""] * 7),
        forged(mark, 490_000, 490_100, 10**6, 0, [""] * 7),
        forged(mark, 0, 1_200_000, 0, 0, [""] * 7),
    ]
    for cursor in bad:
        with pytest.raises(Unanswerable):
            read_question({"by": "model", "cursor": cursor}.get, NOW, 100)
    with pytest.raises(Unanswerable):
        read_question({"by": "key", "cursor": good}.get, NOW, 100)


@pytest.mark.parametrize(
    ("words", "since", "until"),
    [
        ({}, "2026-03-21T00:00+00:00", "2026-04-20T11:00+00:00"),
        ({"since": "24h"}, "2026-04-19T11:00+00:00", "2026-04-20T11:00+00:00"),
        ({"since": "0d", "tz": "Europe/Berlin"}, "2026-04-19T22:00+00:00", "2026-04-20T11:00+00:00"),
        ({"since": "2w"}, "2026-04-06T00:00+00:00", "2026-04-20T11:00+00:00"),
        ({"since": "2026-04-01", "until": "2026-04-02", "tz": "Asia/Tokyo"}, "2026-03-31T15:00+00:00",
         "2026-04-01T15:00+00:00"),
        ({"since": "2026-04-01T10:20", "tz": "Europe/Berlin"}, "2026-04-01T09:00+00:00", "2026-04-20T11:00+00:00"),
        ({"since": "2026-04-01T10:00:00Z"}, "2026-04-01T10:00+00:00", "2026-04-20T11:00+00:00"),
    ],
)  # fmt: skip
def test_a_span_is_of_hours_that_begin_in_it(words: dict[str, str], since: str, until: str) -> None:
    question = read_question(words.get, NOW + timedelta(hours=10, minutes=12), 100)
    assert (question.since, question.until) == (datetime.fromisoformat(since), datetime.fromisoformat(until))


async def test_a_key_of_the_configuration_has_its_name_and_is_found_by_it(db: Database) -> None:
    of_file, of_database = str(uuid.uuid4()), str(uuid.uuid4())
    names = {of_file: "ci"}
    at = int(START.timestamp() * 1000)
    await ship(
        db,
        [ledger_row(key_id=id, cost_nano_usd=cost, started_at_ms=at) for id, cost in ((of_file, 3), (of_database, 5))],
    )
    found = []
    for words in ({"by": "key"}, {"by": "key", "key": "ci"}):
        question = read_question(words.get, NOW, 1_000)
        async with db.transaction() as connection:
            lines = (await answer(connection, question, names)).lines
        found.append([(line["key"], line["cost_nano_usd"]) for line in lines])
    assert found == [[(None, 5), ("ci", 3)], [("ci", 3)]]
