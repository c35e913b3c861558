"""Whose key a provider sees: the user's, the team's, everybody's, the operator's, in this order; and what it breaks."""

from __future__ import annotations

import asyncio
import http.client
import json
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from proxy.storage.postgres import Database
from tests.conftest import run_sql
from tests.gateway import Gateway
from tests.oracle import Oracle, marker
from tests.oracle.server import key_of

MASTER = "q7Zt2mVx9Lk4Wn8Rb3Hd6Jc5Pf1Ys0Ga"
OPERATORS, USERS, OTHERS = "sk-oracle-of-the-tests", "sk-users-key-00002222", "sk-others-key-00003333"
TEAMS, EVERYBODYS, LIMITED = "sk-teams-key-00004444", "sk-everybodys-key-0005555", "sk-limited-key-0006666"
SERVED = (OPERATORS, USERS, OTHERS, TEAMS, EVERYBODYS)
KEYS = {**dict.fromkeys(SERVED, (200, "")), LIMITED: (429, "Rate limit reached.")}
SECRETS = (*SERVED, LIMITED)
PATH = "/api/keys/providers"


class House:
    """A gateway as a process, with an oracle that knows keys; people and their virtual keys are in its database."""

    def __init__(self, folder: Path, dsn: str, db: Database, oracle: Oracle) -> None:
        self.db, self.oracle = db, oracle
        more = f"auth: {{master_key: {MASTER}}}\n"
        self.gateway = Gateway(folder / "home", oracle=oracle.url, database_url=dsn, more=more)
        self.team = str(uuid.uuid4())

    async def start(self) -> None:
        await self.db.execute("INSERT INTO strata.teams (id, name) VALUES ($1::text::uuid, 't')", self.team)
        await asyncio.to_thread(self.gateway.start)

    async def person(self, name: str, *, team: bool = False) -> tuple[str, str]:
        """The id of a new user, and a virtual key of his."""
        user = str(uuid.uuid4())
        key = await asyncio.to_thread(self.gateway.create_key, name)
        team_id = self.team if team else None
        await self.db.execute(
            "INSERT INTO strata.users (id, subject, team_id) VALUES ($1::text::uuid, $1, $2::text::uuid)", user, team_id
        )
        await self.db.execute(
            "UPDATE strata.keys SET user_id = $1::text::uuid, team_id = $2::text::uuid WHERE name = $3",
            user,
            team_id,
            name,
        )
        await asyncio.sleep(0.5)
        return user, key

    async def call(self, method: str, path: str, key: str = MASTER, body: object = None) -> tuple[int, Any, Any]:
        def work() -> tuple[int, Any, Any]:
            connection = http.client.HTTPConnection("127.0.0.1", self.gateway.port, timeout=30)
            headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            answer = connection.getresponse()
            data = answer.read()
            connection.close()
            return answer.status, json.loads(data), answer.headers

        return await asyncio.to_thread(work)

    async def save(self, api_key: str, provider: str = "oai", **fields: object) -> str:
        """The id of the saved key, as soon as the worker has heard of it."""
        body = {"provider": provider, "api_key": api_key, "save_anyway": True, **fields}
        status, said, _ = await self.call("POST", PATH, body=body)
        assert status == 201, said
        await asyncio.sleep(0.5)
        return str(said["id"])

    async def ask(self, key: str, model: str = "gpt", text: str = "Hello") -> tuple[int, str, str]:
        """The status, the code of the error or "", and the key that the provider saw last ("": it was not asked)."""
        before = len(self.oracle.received)
        body = {"model": model, "messages": [{"role": "user", "content": text}]}
        status, said, _ = await self.call("POST", "/v1/chat/completions", key, body)
        seen = key_of(self.oracle.received[-1][0]) if len(self.oracle.received) > before else ""
        return status, (said.get("error") or {}).get("code", ""), seen

    async def ledger(self, count: int) -> list[dict[str, Any]]:
        deadline = time.monotonic() + 20
        while True:
            rows = await self.db.fetch("SELECT *, provider_key_id::text AS paid FROM strata.usage ORDER BY started_at")
            if len(rows) >= count or time.monotonic() > deadline:
                assert len(rows) == count
                return [dict(row) for row in rows]
            await asyncio.sleep(0.1)


@pytest.fixture
async def house(tmp_path: Path, database_dsn: str, db: Database) -> AsyncIterator[House]:
    async with Oracle(keys=KEYS) as oracle:
        made = House(tmp_path, database_dsn, db, oracle)
        try:
            await made.start()
            yield made
        finally:
            await asyncio.to_thread(made.gateway.stop)


async def test_a_users_key_comes_before_the_teams_before_everybodys_before_the_operators(house: House) -> None:
    user, key = await house.person("ann", team=True)
    _, mates = await house.person("bob", team=True)
    _, strangers = await house.person("eve")
    assert await house.ask(key) == (200, "", OPERATORS)
    ids = {
        "user": await house.save(USERS, scope="user", user_id=user),
        "team": await house.save(TEAMS, scope="team", team_id=house.team),
        "global": await house.save(EVERYBODYS, scope="global"),
    }
    expected = {key: USERS, mates: TEAMS, strangers: EVERYBODYS, MASTER: EVERYBODYS}
    for who, seen in expected.items():
        assert await house.ask(who) == (200, "", seen)
    assert await house.ask(key, "claude") == (200, "", OPERATORS)  # it was given for one provider
    for scope, then in (("user", TEAMS), ("team", EVERYBODYS), ("global", OPERATORS)):
        assert (await house.call("DELETE", f"{PATH}/{ids[scope]}"))[0] == 200
        await asyncio.sleep(0.5)
        assert await house.ask(key) == (200, "", then)

    rows = await house.ledger(9)
    paid = [row["paid"] for row in rows]
    assert paid == [
        None,
        ids["user"],
        ids["team"],
        ids["global"],
        ids["global"],
        None,
        ids["team"],
        ids["global"],
        None,
    ]
    assert (
        len({row["cost_nano_usd"] for row in rows if row["deployment"] == "oai/gpt"}) == 1
    )  # its price is tracked alike


async def test_a_key_never_goes_out_with_another_ones_request_over_the_shared_connections(house: House) -> None:
    """Four callers at once over one pool, streamed or not: whoever asks is written in the prompt, and compared."""
    ann, anns = await house.person("ann")
    eve, eves = await house.person("eve")
    _, bobs = await house.person("bob")
    await house.save(USERS, scope="user", user_id=ann)
    await house.save(OTHERS, scope="user", user_id=eve)
    expected = {anns: USERS, eves: OTHERS, bobs: OPERATORS, house.gateway.key: OPERATORS}

    def ask_often(key: str) -> list[int]:
        connection, statuses = http.client.HTTPConnection("127.0.0.1", house.gateway.port, timeout=60), []
        for number in range(60):
            text = f"owner={expected[key]} {'@@' + json.dumps({'gap_ms': 1}) + '@@' if number % 3 else ''}"
            body = {"model": "gpt", "messages": [{"role": "user", "content": text}], "stream": number % 2 == 0}
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"authorization": f"Bearer {key}"})
            answer = connection.getresponse()
            answer.read()
            statuses.append(answer.status)
        connection.close()
        return statuses

    done = await asyncio.gather(*(asyncio.to_thread(ask_often, key) for key in (*expected, *expected)))
    assert {status for statuses in done for status in statuses} == {200}
    pairs = [(key_of(headers), body["messages"][0]["content"].split()[0]) for headers, body in house.oracle.received]
    assert len(pairs) == 480
    assert [(key, text) for key, text in pairs if text != f"owner={key}"] == []


@pytest.mark.parametrize("key", ["sk-refused-key-00007777", LIMITED])
async def test_a_users_bad_key_makes_no_deployment_rest_and_is_told_to_him_alone(house: House, key: str) -> None:
    user, anns = await house.person("ann")
    await house.save(key, scope="user", user_id=user)
    for _ in range(4):
        status, code, _ = await house.ask(anns)
        assert (status, code) in ((502, "provider_auth"), (429, "rate_limit_exceeded"))
    status, said, _ = await house.call(
        "POST", "/v1/chat/completions", anns, {"model": "gpt", "messages": [{"role": "user", "content": "Hello"}]}
    )
    assert f'your own key "oai" (…{key[-4:]})' in said["error"]["message"]
    assert key not in json.dumps(said) and "this gateway's" not in said["error"]["message"]
    assert await house.ask(house.gateway.key) == (200, "", OPERATORS)
    assert await house.ask(anns, "either") == (200, "", OPERATORS)  # claude, for which he has no key
    assert house.gateway.gauge("strata_deployment_cooldowns_total") == 0
    rows = await house.db.fetch("SELECT DISTINCT status FROM strata.usage WHERE provider_key_id IS NOT NULL")
    assert {row["status"] for row in rows} <= {401, 429}


@pytest.mark.parametrize(("own", "rests"), [(True, 0), (False, 1)])
async def test_what_breaks_in_the_middle_of_a_stream_is_the_keys_alone_too(house: House, own: bool, rests: int) -> None:
    user, key = await house.person("ann")
    if own:
        await house.save(USERS, scope="user", user_id=user)
    text = marker(error=2, code="insufficient_quota", message="You exceeded your current quota.")

    def stream() -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", house.gateway.port, timeout=30)
        body = {"model": "gpt", "messages": [{"role": "user", "content": text}], "stream": True}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"authorization": f"Bearer {key}"})
        data = connection.getresponse().read()
        connection.close()
        return data

    said = await asyncio.to_thread(stream)
    assert b"provider_quota" in said and b"[DONE]" not in said
    assert (b"your own key" in said) == own
    assert house.gateway.gauge("strata_deployment_cooldowns_total") == rests


async def test_provider_keys_go_on_through_a_whole_rotation(house: House) -> None:
    old, new = "q8Zr2LxW0vT5nYb7KcJd3MfH6gPs9AeU", "vB3kT9wXz1QmN6hR4yJc8LdF2sGp7EuA"
    gateway = house.gateway
    config = gateway.config.read_text()
    await asyncio.to_thread(gateway.stop)
    await run_sql(gateway.environ["DATABASE_URL"], "DELETE FROM strata.vault", "DELETE FROM strata.keys")

    async def restart(keys: str) -> None:
        await asyncio.to_thread(gateway.stop)
        gateway.config.write_text(config.replace(MASTER, f'"{keys}"'))
        await asyncio.to_thread(gateway.start)

    gateway.key = ""
    await restart(old)
    status, _, _ = await house.call(
        "POST", PATH, old, {"provider": "oai", "api_key": USERS, "scope": "global", "save_anyway": True}
    )
    assert status == 201
    for keys in (f"{old},{new}", f"{new},{old}"):
        await restart(keys)
        assert await house.ask(gateway.key) == (200, "", USERS)
    rotated = await asyncio.to_thread(gateway.strata, "vault", "rotate")
    assert rotated.returncode == 0, rotated.stderr
    assert await house.ask(gateway.key) == (200, "", USERS)
    await restart(new)
    assert await house.ask(gateway.key) == (200, "", USERS)
    assert (await house.call("GET", PATH, old))[0] == 401
    assert (await house.call("GET", PATH, new))[0] == 200


async def test_a_users_good_key_does_not_wake_a_deployment_whose_operators_key_is_bad(house: House) -> None:
    user, anns = await house.person("ann")
    await house.save(USERS, scope="user", user_id=user)
    assert house.oracle.keys is not None
    house.oracle.keys[OPERATORS] = (401, "Incorrect API key provided.")
    assert (await house.ask(house.gateway.key))[1] == "provider_auth"
    assert house.gateway.gauge("strata_deployment_cooldowns_total") == 1
    await house.ask(anns)
    lines = house.gateway.get("/metrics")[1].decode().splitlines()
    up = [line.rpartition(" ")[2] for line in lines if line.startswith('strata_deployment_up{deployment="oai/gpt"')]
    assert up == ["0"]


async def test_a_key_that_cannot_be_opened_is_refused_aloud_and_not_paid_by_the_operator(house: House) -> None:
    user, anns = await house.person("ann")
    id = await house.save(USERS, scope="user", user_id=user)
    await house.db.execute("UPDATE strata.provider_keys SET sealed_key = sealed_key || '\\x00'")
    await asyncio.sleep(0.5)
    assert await house.ask(anns) == (502, "provider_key_unusable", "")
    assert await house.ask(house.gateway.key) == (200, "", OPERATORS)
    assert (await house.call("GET", f"{PATH}/{id}"))[1]["status"] == "needs attention"
    deadline = time.monotonic() + 5
    while house.gateway.gauge('strata_provider_keys{state="attention"}') != 1 and time.monotonic() < deadline:
        await asyncio.sleep(0.1)
    assert house.gateway.gauge('strata_provider_keys{state="attention"}') == 1
    assert house.gateway.gauge("strata_deployment_cooldowns_total") == 0
    assert f"The provider key {id} for oai needs attention" in house.gateway.tail(200)


async def test_the_story_of_a_request_says_whose_key_paid(house: House) -> None:
    user, anns = await house.person("ann")
    id = await house.save(USERS, scope="user", user_id=user, name="mine")
    _, said, headers = await house.call(
        "POST", "/v1/chat/completions", anns, {"model": "gpt", "messages": [{"role": "user", "content": "Hello"}]}
    )
    assert said["choices"]
    request = headers["x-request-id"]
    await house.ledger(1)
    await asyncio.sleep(1)  # the history is written now and then
    told = (await house.call("GET", f"/api/requests/{request}"))[1]
    assert [one["own_key"] for one in told["attempts"]] == ["mine (…2222)"]
    await house.db.execute("UPDATE strata.requests SET public_id = 'other', id = gen_random_uuid()")
    told = (await house.call("GET", f"/api/requests/{request}"))[1]
    assert [one["own_key"] for one in told["attempts"]] == [id]
    shown = await asyncio.to_thread(house.gateway.strata, "request", "show", request)
    assert f"paid by the provider key {id}, not by the operator's" in shown.stdout


async def test_a_key_handed_to_another_user_takes_its_new_owners_provider_key_at_once(house: House) -> None:
    ann, anns = await house.person("ann")
    eve, _ = await house.person("eve")
    await house.save(USERS, scope="user", user_id=ann)
    await house.save(OTHERS, scope="user", user_id=eve)
    assert await house.ask(anns) == (200, "", USERS)
    await house.db.execute("UPDATE strata.keys SET user_id = $1::text::uuid WHERE name = 'ann'", eve)
    await asyncio.sleep(0.5)
    assert await house.ask(anns) == (200, "", OTHERS)


async def test_no_secret_is_in_a_log_a_metric_or_the_database(house: House) -> None:
    user, anns = await house.person("ann")
    await house.save(USERS, scope="user", user_id=user)
    await house.save("sk-refused-key-00007777", scope="global")
    await house.ask(anns)
    await house.ask(house.gateway.key)
    await house.ask(anns, text=marker(status=500, message=f"echo {USERS}"))
    await house.ledger(len(house.oracle.received))
    await asyncio.sleep(1)
    tables = await house.db.fetch(
        "SELECT relname FROM pg_catalog.pg_class WHERE relnamespace = 'strata'::regnamespace "
        "AND relkind IN ('r', 'p') AND NOT relispartition"
    )
    stored = ""
    for table in tables:
        stored += str([dict(row) for row in await house.db.fetch(f"SELECT * FROM strata.{table['relname']}")])
    everywhere = stored + house.gateway.log.read_text() + house.gateway.get("/metrics")[1].decode()
    for folder in house.gateway.home.rglob("*"):
        everywhere += folder.read_bytes().decode("latin-1") if folder.is_file() and folder.name != "master.key" else ""
    assert "provider_key" in everywhere or "usage" in everywhere
    for secret in (USERS, "sk-refused-key-00007777"):
        assert secret not in everywhere
