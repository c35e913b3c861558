"""
`python -m bench.usage`: how long questions of usage take where a year has ten million attempts.

It fills an embedded Postgres of its own with the sums of such a year (100 keys of 50 people in 10 teams, 3 models at 4
deployments), and asks as an admin and as a member: from the words of a question to the bytes of its answer. Of several
repeats the least counts; beside it what the database computed, which busy neighbours change less.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import msgspec

from bench.machine import cpu
from proxy.exchange import Caller
from proxy.metering.usage_questions import read_question
from proxy.metering.usage_report import answer, to_object
from proxy.storage.embedded import EmbeddedPostgres
from proxy.storage.migrations import migrate
from proxy.storage.postgres import Database

NOW = datetime(2026, 11, 1, tzinfo=UTC)
YEAR = {"since": "2025-11-01", "until": "2026-11-01"}
FILL = (
    "SELECT setseed(0.5)",
    "INSERT INTO strata.teams (id, name) SELECT md5('t' || i)::uuid, 'team-' || i FROM generate_series(0, 9) i",
    """INSERT INTO strata.users (id, email, subject, team_id)
    SELECT md5('u' || i)::uuid, 'person-' || i || '@example.com', i, md5('t' || i % 10)::uuid
    FROM generate_series(0, 49) i""",
    """INSERT INTO strata.keys (id, name, digest, pepper_id, display, user_id, team_id, tags)
    SELECT md5('k' || i)::uuid, 'key-' || i, sha256(i::text::bytea), 'p', 'sk…', md5('u' || i % 50)::uuid,
        md5('t' || i % 10)::uuid, ARRAY[(ARRAY['prod', 'dev', 'test'])[1 + i % 3], 'cost-centre-' || i % 7]
    FROM generate_series(0, 99) i""",
    """INSERT INTO strata.usage_hourly (bucket, key_id, user_id, team_id, model, deployment, provider, attempts, errors,
        input_tokens, cached_tokens, output_tokens, reasoning_tokens, cost_nano_usd)
    SELECT h, md5('k' || k)::uuid, md5('u' || k % 50)::uuid, md5('t' || k % 10)::uuid, m.model, m.deployment,
        m.provider, 1 + (random() * 17)::int, (random() * 1.02)::int, (random() * 50000)::int, (random() * 9000)::int,
        (random() * 9000)::int, (random() * 900)::int, (random() * 1e9)::bigint
    FROM generate_series('2025-11-01T00:00Z'::timestamptz, '2026-10-31T23:00Z', '1 hour') h
    CROSS JOIN generate_series(0, 99) k
    CROSS JOIN (VALUES (0, 'fast', 'openai/gpt-5-mini', 'openai'),
        (1, 'smart', 'anthropic/claude-sonnet-5', 'anthropic'), (2, 'smart', 'openai/gpt-5', 'openai'),
        (3, 'cheap', 'gemini/gemini-3-flash', 'gemini'))
        m(i, model, deployment, provider)
    WHERE (k + m.i) % 2 = 0 AND random() < CASE WHEN extract(hour FROM h) BETWEEN 7 AND 18 THEN 0.8 ELSE 0.45 END""",
    """INSERT INTO strata.usage_daily (bucket, key_id, user_id, team_id, model, deployment, provider, attempts, errors,
        input_tokens, cached_tokens, output_tokens, reasoning_tokens, cost_nano_usd)
    SELECT date_trunc('day', bucket, 'UTC'), key_id, user_id, team_id, model, deployment, provider, sum(attempts),
        sum(errors), sum(input_tokens), sum(cached_tokens), sum(output_tokens), sum(reasoning_tokens),
        sum(cost_nano_usd)
    FROM strata.usage_hourly GROUP BY 1, 2, 3, 4, 5, 6, 7""",
    "VACUUM ANALYZE strata.usage_hourly",
    "VACUUM ANALYZE strata.usage_daily",
    "ANALYZE strata.keys, strata.users, strata.teams",
)
COUNTED = """
    SELECT (SELECT sum(attempts) FROM strata.usage_hourly)::bigint AS attempts,
        (SELECT count(*) FROM strata.usage_hourly) AS hours, (SELECT count(*) FROM strata.usage_daily) AS days
"""
QUESTIONS: Sequence[tuple[str, Mapping[str, str]]] = (
    ("the last 30 days, in all", {}),
    ("the last 30 days, by key and model", {"by": "key,model"}),
    ("the last 30 days, each day of Berlin, by model", {"granularity": "day", "tz": "Europe/Berlin", "by": "model"}),
    ("30 days, each hour", {"granularity": "hour", "since": "30d"}),
    ("a year, in all", YEAR),
    ("a year, by model", {**YEAR, "by": "model"}),
    ("a year, by key, user, team, model and deployment", {**YEAR, "by": "key,user,team,model,deployment"}),
    ("a year, by tag", {**YEAR, "by": "tag"}),
    ("a year of one key, each day of Berlin", {**YEAR, "key": "key-7", "granularity": "day", "tz": "Europe/Berlin"}),
    ("a year, each day, by model", {**YEAR, "granularity": "day", "by": "model"}),
    ("a year, each month of Berlin, by team", {**YEAR, "granularity": "month", "tz": "Europe/Berlin", "by": "team"}),
    ("a year, each day of Berlin, by model", {**YEAR, "granularity": "day", "tz": "Europe/Berlin", "by": "model"}),
    ("a year, each day of India, by model", {**YEAR, "granularity": "day", "tz": "Asia/Kolkata", "by": "model"}),
    ("a year, each day of Los Angeles, by model",
     {**YEAR, "granularity": "day", "tz": "America/Los_Angeles", "by": "model"}),
    ("a year, each day of Tokyo, by model", {**YEAR, "granularity": "day", "tz": "Asia/Tokyo", "by": "model"}),
)  # fmt: skip


async def fill(dsn: str) -> asyncpg.Record:
    await migrate(dsn)
    connection = await asyncpg.connect(dsn)
    try:
        for sql in FILL:
            await connection.execute(sql)
        [row] = await connection.fetch(COUNTED)
        return row
    finally:
        await connection.close()


async def ask(database: Database, caller: Caller, words: Mapping[str, str]) -> bytes:
    question = read_question(words.get, NOW, 100)
    async with database.acting_as(caller, timeout_seconds=30.0) as connection:
        report = await answer(connection, question)
    return msgspec.json.encode(to_object(report))


async def bench(dsn: str, repeats: int) -> None:
    made = await fill(dsn)
    print(f"{made['attempts']:,} attempts in {made['hours']:,} sums by the hour and {made['days']:,} by the day\n")
    database = Database(dsn, size=1)
    await database.open()
    [person] = await database.fetch("SELECT id::text, team_id::text FROM strata.users WHERE email LIKE 'person-7@%'")
    callers = (
        Caller("", "admin", "", role="admin"),
        Caller("", "member", "", user_id=person["id"], team_id=person["team_id"], role="member"),
    )
    print(f"{'':<52}{'admin':>9}{'(CPU)':>9}{'member':>9}   milliseconds")
    for name, words in QUESTIONS:
        found = []
        for caller in callers:
            times, computed = [], []
            for _ in range(repeats):
                before, began = cpu(os.getpid()), time.perf_counter()
                await ask(database, caller, words)
                times.append((time.perf_counter() - began) * 1e3)
                computed.append(cpu(os.getpid()).since(before).postgres_ns / 1e6)
            found.append((min(times), min(computed)))
        (admin, admin_cpu), (member, _) = found
        print(f"{name:<52}{admin:>9.0f}{admin_cpu:>9.0f}{member:>9.0f}")
    await database.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.usage", description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)  # the embedded database server may run as another user
        server = EmbeddedPostgres(folder / "home")
        try:
            asyncio.run(bench(server.start(), options.repeats))
        finally:
            server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
