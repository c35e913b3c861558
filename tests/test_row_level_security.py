"""Row-level security: every table, every verb, everybody who may ask; nobody sees what is not theirs."""

from __future__ import annotations

import uuid
from typing import Any, NamedTuple

import asyncpg
import pytest

from proxy.exchange import Caller
from proxy.storage.postgres import Connection, Database

TEAM, USER, KEY = ({who: str(uuid.uuid5(uuid.NAMESPACE_URL, f"{kind}/{who}")) for who in "ab"} for kind in "tuk")
MATE = str(uuid.uuid5(uuid.NAMESPACE_URL, "mate"))
"""Another one of team a."""


def caller(role: Any, who: str = "a", user_id: str | None = None) -> Caller:
    return Caller(KEY[who], who, "", user_id=user_id or USER[who], team_id=TEAM[who], role=role)


ASKERS = {
    "nobody": Caller(KEY["a"], "", "", role=""),  # type: ignore[arg-type]  # a mistake of ours: no role was said
    "key": Caller(KEY["a"], "a", "", user_id=USER["a"], team_id=TEAM["a"]),
    "viewer": caller("viewer"),
    "member": caller("member"),
    "mate": caller("member", user_id=MATE),
    "admin": caller("admin"),
}

ROWS = """
    INSERT INTO strata.teams (id, name) VALUES ('{team}', 'team {who}');
    INSERT INTO strata.users (id, email, team_id, subject) VALUES ('{user}', '{who}@example.com', '{team}', '{who}');
    INSERT INTO strata.keys (id, name, digest, pepper_id, display, user_id, team_id)
        VALUES ('{key}', '{who}', sha256('{who}'), 'p', 'sk…', '{user}', '{team}');
    INSERT INTO strata.provider_keys (scope, user_id, provider, name, host, sealed_key, sealed_dek, kek_id, last_four)
        VALUES ('user', '{user}', 'q', '{who}', 'h', '', '', 'k', 'abcd');
    INSERT INTO strata.budgets (scope, subject, limit_nano_usd) VALUES ('key', '{key}', 5);
    INSERT INTO strata.budget_periods (budget_id, starts_at) SELECT id, 'epoch' FROM strata.budgets
        WHERE subject = '{key}';
    INSERT INTO strata.leases SELECT budget_id, starts_at, '{key}', 1 FROM strata.budget_periods
        JOIN strata.budgets ON budget_id = id WHERE subject = '{key}';
    INSERT INTO strata.usage (request_id, attempt, started_at, worker_id, public_id, key_id, user_id, team_id, endpoint,
        model, deployment, provider, stream, status, outcome, source, cost_nano_usd, price_state)
        VALUES ('{key}', 1, now(), '{key}', '{who}', '{key}', '{user}', '{team}', 'chat', 'm', 'p/m', 'p', false, 200,
        'ok', 'provider', 1, 'priced');
    INSERT INTO strata.usage_hourly (bucket, key_id, user_id, team_id, model, deployment, provider)
        VALUES (now(), '{key}', '{user}', '{team}', 'm', 'p/m', 'p');
    INSERT INTO strata.usage_daily (bucket, key_id, user_id, team_id, model, deployment, provider)
        VALUES (now(), '{key}', '{user}', '{team}', 'm', 'p/m', 'p');
    INSERT INTO strata.requests (id, started_at, public_id, key_id, user_id, team_id, endpoint, model, stream, status,
        attempts, duration_ms)
        VALUES ('{key}', now(), '{who}', '{key}', '{user}', '{team}', 'chat', 'm', false, 200, 1, 1);
    INSERT INTO strata.price_lines (source, lines) VALUES ('{who}', '{{}}');
    INSERT INTO strata.alerts (id, rule, subject, period, threshold, title) VALUES ('{key}', 'r', '{who}', '', 1, '');
    INSERT INTO strata.alert_deliveries (alert_id, channel) VALUES ('{key}', 'c');
    INSERT INTO strata.sessions (id, user_id, token_version, expires_at) VALUES ('{key}', '{user}', 0, now());
    INSERT INTO strata.refresh_tokens (digest, session_id) VALUES (sha256('{who}'), '{key}');
    INSERT INTO strata.invitations (digest, role, expires_at) VALUES (sha256('{who}'), 'member', now());
    INSERT INTO strata.login_attempts (subject, failures, last_at) VALUES (sha256('{who}'), 1, now());
"""


class Table(NamedTuple):
    """`sees` and `changes`: how many of the two tenants' rows, by asker in the order of ASKERS; `x`: not even asked."""

    touch: str
    """What an UPDATE sets; nothing that means anything."""
    sees: str
    changes: str
    removes: str


#                                touch             nobody, key, viewer, member, mate, admin
TABLES = {
    "teams": Table("name = name", "001112", "000002", "xxxxxx"),
    "users": Table("name = name", "001112", "000002", "xxxxxx"),
    "keys": Table("name = name", "011112", "000102", "xxxxxx"),
    "provider_keys": Table("name = name", "001102", "000102", "000102"),
    "budgets": Table("limit_nano_usd = 5", "011112", "000102", "xxxxxx"),
    "budget_periods": Table("settled_nano_usd = 0", "011112", "xxxxxx", "xxxxxx"),
    "leases": Table("granted_nano_usd = 1", "xxxxxx", "xxxxxx", "xxxxxx"),
    "usage": Table("status = 200", "011102", "xxxxxx", "xxxxxx"),
    "usage_hourly": Table("errors = 0", "011112", "xxxxxx", "xxxxxx"),
    "usage_daily": Table("errors = 0", "011112", "xxxxxx", "xxxxxx"),
    "requests": Table("status = 200", "011102", "xxxxxx", "xxxxxx"),
    "price_lines": Table("lines = lines", "022222", "xxxxxx", "xxxxxx"),
    "alerts": Table("title = ''", "000002", "xxxxxx", "xxxxxx"),
    "alert_deliveries": Table("tries = 0", "000002", "xxxxxx", "xxxxxx"),
    "vault": Table("kek_id = kek_id", "xxxxxx", "xxxxxx", "xxxxxx"),
    "sessions": Table("token_version = 0", "001102", "xxxxxx", "xxxxxx"),
    "refresh_tokens": Table("used_at = NULL", "xxxxxx", "xxxxxx", "xxxxxx"),
    "invitations": Table("revoked_at = NULL", "000002", "000002", "xxxxxx"),
    "login_attempts": Table("failures = 1", "xxxxxx", "xxxxxx", "xxxxxx"),
    "audit": Table("actor = actor", "000000", "xxxxxx", "xxxxxx"),
}

ALL_TABLES = """
    SELECT c.relname AS name, c.relrowsecurity AS enabled, c.relforcerowsecurity AS forced, c.relispartition AS is_part,
        array(SELECT p.polname || ' ' || array_to_string(p.polroles::regrole[], ',') FROM pg_catalog.pg_policy p
            WHERE p.polrelid = c.oid ORDER BY 1) AS policies,
        has_table_privilege('strata_person', c.oid, 'SELECT') AS readable
    FROM pg_catalog.pg_class c
    WHERE c.relnamespace = 'strata'::regnamespace AND c.relkind IN ('r', 'p')
"""


@pytest.fixture
async def tenants(db: Database, database_dsn: str) -> Database:
    async with db.transaction() as connection:
        for who in "ab":
            statements = ROWS.format(who=who, team=TEAM[who], user=USER[who], key=KEY[who])
            await connection.execute(statements)
    return db


async def test_every_table_is_secured_and_has_its_line_here(db: Database) -> None:
    """A new table fails here until it has policies, and until it is said who sees and changes what."""
    tables = await db.fetch(ALL_TABLES)
    assert len(tables) > 14
    assert [row["name"] for row in tables if not (row["enabled"] and row["forced"])] == []
    without = [row["name"] for row in tables if not any(p.startswith("gateway strata_app") for p in row["policies"])]
    assert without == []
    assert {row["name"] for row in tables if not row["is_part"]} == TABLES.keys()
    assert [row["name"] for row in tables if row["is_part"] and row["readable"]] == []


async def count(connection: Connection, sql: str) -> str:
    """How many rows the statement found; `x`: it was not allowed at all."""
    savepoint = connection.transaction()
    await savepoint.start()
    try:
        return (await connection.execute(sql)).rpartition(" ")[2]
    except asyncpg.InsufficientPrivilegeError:
        return "x"
    finally:
        await savepoint.rollback()


@pytest.mark.parametrize("name", TABLES)
async def test_nobody_sees_changes_or_removes_what_is_not_theirs(tenants: Database, name: str) -> None:
    table, found = TABLES[name], []
    for asker in ASKERS.values():
        async with tenants.acting_as(asker) as connection:
            # what they touched must be theirs: counted as one of theirs, or as both tenants' for an admin
            found.append(
                [
                    await count(connection, f"SELECT 1 FROM strata.{name}"),
                    await count(connection, f"UPDATE strata.{name} SET {table.touch}"),
                    await count(connection, f"DELETE FROM strata.{name}"),
                ]
            )
    sees, changes, removes = ("".join(column) for column in zip(*found, strict=True))
    assert (sees, changes, removes) == (table.sees, table.changes, table.removes)


OWNERS = {
    "keys": "SELECT user_id::text FROM strata.keys",
    "provider_keys": "SELECT user_id::text FROM strata.provider_keys",
    "usage": "SELECT user_id::text FROM strata.usage",
    "requests": "SELECT user_id::text FROM strata.requests",
    "users": "SELECT id::text FROM strata.users",
}


@pytest.mark.parametrize("name", OWNERS)
@pytest.mark.parametrize("role", ["viewer", "member"])
async def test_the_one_row_that_is_seen_is_ones_own(tenants: Database, name: str, role: str) -> None:
    for who in "ab":
        async with tenants.acting_as(caller(role, who)) as connection:
            assert [row[0] for row in await connection.fetch(OWNERS[name])] == [USER[who]]


NEW_KEY = (
    "INSERT INTO strata.keys (name, digest, pepper_id, display, user_id, team_id) VALUES ('n', sha256('n'), 'p', '', "
)


def provider_key(scope: str, user: str = "NULL", team: str = "NULL") -> str:
    columns = "scope, user_id, team_id, provider, name, host, sealed_key, sealed_dek, kek_id, last_four"
    values = f"'{scope}', {user}, {team}, 'p', 'n', 'h', '', '', 'k', ''"
    return f"INSERT INTO strata.provider_keys ({columns}) VALUES ({values})"


def budget(scope: str, subject: str = "", source: str = "database") -> str:
    columns = "scope, subject, limit_nano_usd, window_seconds, source"
    return f"INSERT INTO strata.budgets ({columns}) VALUES ('{scope}', '{subject}', 1, 60, '{source}')"


INSERTS = {
    "a key of one's own": (f"{NEW_KEY} '{USER['a']}', '{TEAM['a']}')", "xxx1x1"),
    "a key of another": (f"{NEW_KEY} '{USER['b']}', NULL)", "xxxxx1"),
    "a key of nobody": (f"{NEW_KEY} NULL, NULL)", "xxxxx1"),
    "a key of one's own for another team": (f"{NEW_KEY} '{USER['a']}', '{TEAM['b']}')", "xxxxx1"),
    "a key of one's own for no team": (f"{NEW_KEY} '{USER['a']}', NULL)", "xxxxx1"),
    "a provider key of one's own": (provider_key("user", user=f"'{USER['a']}'"), "xxx1x1"),
    "a provider key of the team": (provider_key("team", team=f"'{TEAM['a']}'"), "xxxxx1"),
    "a provider key for all": (provider_key("global"), "xxxxx1"),
    "a budget of one's own key": (budget("key", KEY["a"]), "xxx1x1"),
    "a budget of another's key": (budget("key", KEY["b"]), "xxxxx1"),
    "a budget of everybody": (budget("global"), "xxxxx1"),
    "a budget in the name of the file": (budget("key", KEY["a"], "config"), "xxxxx1"),
    "a team": ("INSERT INTO strata.teams (name) VALUES ('new')", "xxxxx1"),
    "a user": ("INSERT INTO strata.users (email, role) VALUES ('new@example.com', 'admin')", "xxxxx1"),
    "a row of the ledger": ("INSERT INTO strata.usage SELECT * FROM strata.usage", "xxxxxx"),
}


@pytest.mark.parametrize(("sql", "expected"), INSERTS.values(), ids=INSERTS)
async def test_nobody_makes_what_would_not_be_theirs(tenants: Database, sql: str, expected: str) -> None:
    found = ""
    for asker in ASKERS.values():
        async with tenants.acting_as(asker) as connection:
            found += await count(connection, sql)
    assert found == expected


@pytest.mark.parametrize("role", ["member", "admin"])
@pytest.mark.parametrize("column", ["user_id", "team_id", "previous_digest", "created_at"])
async def test_a_key_cannot_be_given_away_or_taken_out_of_its_team(tenants: Database, role: str, column: str) -> None:
    async with tenants.acting_as(caller(role)) as connection:
        assert await count(connection, f"UPDATE strata.keys SET {column} = NULL") == "x"


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT digest FROM strata.keys",
        "SELECT previous_digest FROM strata.keys",
        "SELECT sealed_key FROM strata.provider_keys",
        "SELECT sealed_dek FROM strata.provider_keys",
        "SELECT password_hash FROM strata.users",
        "SELECT digest FROM strata.invitations",
        "SELECT digest FROM strata.refresh_tokens",
        "SELECT subject FROM strata.login_attempts",
        "SELECT * FROM strata.bound_keys",
        "SELECT * FROM public.strata_migrations",
        "SELECT strata.make_partitions(1)",
        "SELECT strata.forget_requests(now())",
        "SELECT strata.secure('strata.keys')",
    ],
)
async def test_not_even_an_admin_reads_secrets_or_does_the_gateways_work(tenants: Database, sql: str) -> None:
    async with tenants.acting_as(caller("admin")) as connection:
        assert await count(connection, sql) == "x"


async def test_who_asks_is_forgotten_with_the_transaction(tenants: Database) -> None:
    async with tenants.acting_as(caller("admin")) as connection:
        assert await connection.fetchval("SELECT strata.person_role()") == "admin"
        assert await connection.fetchval("SELECT current_user") == "strata_person"
    row = await tenants.fetchrow("SELECT current_user AS who, strata.person_role() AS role, strata.person_id() AS id")
    assert row is not None
    assert (row["who"], row["role"], row["id"]) == ("strata_app", "", None)
