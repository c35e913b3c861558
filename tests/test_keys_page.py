"""/api/keys: who makes, sees and changes which keys, how much a member may give, and that a key is told once."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from proxy.admission import key_rules
from proxy.admission.accounts.tokens import Tokens
from proxy.admission.gate import Gate
from proxy.admission.keyring import Keyring
from proxy.admission.keys import digest, well_formed
from proxy.admission.limits import Limits
from proxy.config.load import load
from proxy.edge.callers import Callers
from proxy.edge.keys import KeysPage
from proxy.edge.site import site
from proxy.errors import Unauthenticated
from proxy.exchange import Caller
from proxy.pages import key_routes
from proxy.storage.budget_settings import set_budget
from proxy.storage.keys import find_key, insert_key
from proxy.storage.postgres import Database
from proxy.storage.vault import Vault

NOW = 1_900_000_000.0
DAY = 86_400
TEAM, OTHERS, USER, MATE, STRANGER, ROOT = (str(uuid.uuid5(uuid.NAMESPACE_URL, name)) for name in "towmsr")
PEOPLE = {
    "master": Caller("", "master", "", role="admin"),
    "admin": Caller("", "root", "", role="admin", user_id=ROOT),
    "member": Caller("", "u", "", role="member", user_id=USER, team_id=TEAM),
    "mate": Caller("", "m", "", role="member", user_id=MATE, team_id=TEAM),
    "viewer": Caller("", "v", "", role="viewer", user_id=MATE, team_id=TEAM),
    "stranger": Caller("", "s", "", role="member", user_id=STRANGER),
    "key": Caller(str(uuid.uuid4()), "k", "", user_id=USER, team_id=TEAM),
}
CONFIG = """\
models: {fast: sim/chat, smart: sim/chat, "lab/*": sim/*}
keys:
  defaults: {models: [fast, "lab/*"], rpm: 60, max_budget: 5, budget_duration: 1d, expires: 90d}
  static: [{name: ci, key: "${CI_KEY}", models: [fast], rpm: 5, max_budget: 7}]
limits:
  - {scope: key, name: batch, rpm: 1000}
"""
JSON = b"application/json"
STATIC = "a-static-key-of-the-configuration-0123456789"


class Admits:
    """A gate that takes a name for a credential."""

    async def admit(self, credentials: list[tuple[bytes, bytes]]) -> Caller:
        return PEOPLE[credentials[0][1].decode()]


class House:
    def __init__(self, db: Database, folder: Path) -> None:
        (folder / "config.yaml").write_text(CONFIG)
        config = load(folder / "config.yaml", {"STRATA_HOME": str(folder), "CI_KEY": STATIC})
        self.db = db
        self.now = NOW
        self.vault = Vault.open(folder, {})
        self.keyring = Keyring(db, self.vault.pepper, static=config.keys.static, wall_clock=lambda: self.now)
        page = KeysPage(
            Callers(Admits(), Tokens(lambda: bytes(32))),  # type: ignore[arg-type]  # all that is asked of the gate
            db,
            self.keyring,
            self.vault,
            config,
            wall_clock=lambda: self.now,
        )
        self.app = site(key_routes(page), [], None)

    async def ask(
        self, who: str, method: str, path: str = "", body: object = None, query: str = "", kind: bytes = JSON
    ) -> tuple[int, Any]:
        sent: list[Any] = []
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()

        async def receive() -> Any:
            return {"type": "http.request", "body": data, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": method,
            "path": f"/api/keys{path}",
            "raw_path": f"/api/keys{path}".encode(),
            "query_string": query.encode(),
            "headers": [(b"authorization", who.encode()), (b"content-type", kind)],
        }
        await self.app(scope, receive, send)
        self.headers = dict(sent[0]["headers"])
        return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent))

    async def make(self, who: str = "member", name: str = "mine", **fields: object) -> dict[str, Any]:
        status, said = await self.ask(who, "POST", body={"name": name, **fields})
        assert status == 201, said
        made: dict[str, Any] = said
        return made

    async def refused(self, who: str, method: str, path: str = "", body: object = None) -> tuple[int, str, str | None]:
        status, said = await self.ask(who, method, path, body)
        return status, said["error"]["code"], said["error"]["param"]

    async def go_by_the_database(self) -> float:
        """From now on its clock counts, by which the end of a grace is reckoned."""
        row = await self.db.fetchrow("SELECT extract(epoch FROM now())::float8")
        assert row is not None
        self.now = row[0]
        return self.now

    async def audit(self) -> list[Any]:
        return await self.db.fetch(
            "SELECT actor, action, object, before::text, after::text FROM strata.audit ORDER BY seq"
        )


@pytest.fixture
async def house(db: Database, tmp_path: Path) -> House:
    for team, name in ((TEAM, "a team"), (OTHERS, "others")):
        await db.execute("INSERT INTO strata.teams (id, name) VALUES ($1::text::uuid, $2)", team, name)
    for user, owner in ((USER, TEAM), (MATE, TEAM), (STRANGER, None), (ROOT, None)):
        await db.execute(
            "INSERT INTO strata.users (id, team_id, subject) VALUES ($1::text::uuid, $2::text::uuid, $1)", user, owner
        )
    return House(db, tmp_path)


@pytest.fixture
async def gate(house: House) -> AsyncIterator[Gate]:
    await house.keyring.start()
    yield Gate(house.keyring, Limits(), house.vault.pepper, wall_clock=lambda: house.now)
    await house.keyring.close()


async def admitted(gate: Gate, key: str) -> Caller:
    return await gate.admit([(b"authorization", b"Bearer " + key.encode())])


async def said_of(gate: Gate, key: str, awaited: str) -> str:
    """The code of the refusal as soon as it is this one ("": it is let in); after a while, what it is instead."""
    said = ""
    for _ in range(2000):
        try:
            await admitted(gate, key)
            said = ""
        except Unauthenticated as error:
            said = error.code or ""
        if said == awaited:
            break
        await asyncio.sleep(0.005)
    return said


async def until_refused(gate: Gate, key: str) -> str:
    async with asyncio.timeout(15):
        while True:
            try:
                await admitted(gate, key)
            except Unauthenticated as error:
                return error.code or ""
            await asyncio.sleep(0.005)


# Making


async def test_a_key_is_told_once_and_is_stored_as_a_digest_only(house: House) -> None:
    made = await house.make(tags=["ci"], metadata={"cost_centre": 7})
    assert house.headers[b"cache-control"] == b"no-store"
    assert well_formed(made["key"].encode())
    row = await find_key(house.db, digest(made["key"], house.vault.pepper))
    assert row is not None
    assert (row.id, row.user_id, row.team_id) == (made["id"], USER, TEAM)
    for path in ("", f"/{made['id']}"):
        status, said = await house.ask("admin", "GET", path)
        assert status == 200
        assert made["key"] not in json.dumps(said)
    assert all(made["key"] not in str(dict(line)) for line in await house.audit())


async def test_a_new_key_gets_what_the_defaults_say(house: House) -> None:
    made = await house.make()
    assert (made["models"], made["rpm"], made["tpm"], made["state"]) == (["fast", "lab/*"], 60, None, "active")
    assert [budget["limit"] for budget in made["budgets"]] == ["5/1d"]
    assert made["expires_at"].startswith("2030-06-15")
    assert not made["limited_by_admin"]


async def test_an_admin_says_all_there_is_to_say(house: House) -> None:
    made = await house.make(
        "master",
        models=["*"],
        budgets=["0.25/1h", "100/month", "1000"],
        rpm=None,
        tpm=10,
        max_parallel=3,
        expires="2031-01-01T00:00:00+02:00",
        user_id=USER,
    )
    assert [budget["limit"] for budget in made["budgets"]] == ["0.25/1h", "100/month", "1000"]
    assert [budget["spent_nano_usd"] for budget in made["budgets"]] == [0, 0, 0]
    assert (made["rpm"], made["tpm"], made["max_parallel"], made["models"]) == (None, 10, 3, ["*"])
    assert made["expires_at"] == "2030-12-31T22:00:00Z"
    assert (made["user_id"], made["team_id"]) == (USER, TEAM), "his team's budgets bind him with this key, too"
    assert made["limited_by_admin"]


@pytest.mark.parametrize(
    ("who", "said", "owner"),
    [
        ("master", {}, (None, None)),
        ("admin", {}, (ROOT, None)),
        ("admin", {"user_id": None}, (None, None)),
        ("admin", {"team_id": TEAM}, (None, TEAM)),
        ("admin", {"user_id": MATE, "team_id": None}, (MATE, None)),
        ("member", {}, (USER, TEAM)),
        ("member", {"user_id": USER, "team_id": TEAM}, (USER, TEAM)),
        ("stranger", {}, (STRANGER, None)),
    ],
)
async def test_whose_a_key_is(
    house: House, who: str, said: dict[str, Any], owner: tuple[str | None, str | None]
) -> None:
    made = await house.make(who, **said)
    assert (made["user_id"], made["team_id"]) == owner


@pytest.mark.parametrize(
    ("who", "said", "answer"),
    [
        ("member", {"user_id": MATE}, (403, "forbidden", None)),
        ("member", {"user_id": None}, (403, "forbidden", None)),
        ("member", {"team_id": OTHERS}, (403, "forbidden", None)),
        ("member", {"team_id": None}, (403, "forbidden", None)),
        ("member", {"models": ["smart"]}, (403, "beyond_your_limits", None)),
        ("member", {"models": ["fast", "*"]}, (403, "beyond_your_limits", None)),
        ("member", {"rpm": 61}, (403, "beyond_your_limits", None)),
        ("member", {"rpm": None}, (403, "beyond_your_limits", None)),
        ("member", {"budgets": []}, (403, "beyond_your_limits", None)),
        ("member", {"budgets": ["5.000000001/1d"]}, (403, "beyond_your_limits", None)),
        ("member", {"budgets": ["5/2d"]}, (403, "beyond_your_limits", None)),
        ("member", {"expires": "91d"}, (403, "beyond_your_limits", None)),
        ("member", {"expires": None}, (403, "beyond_your_limits", None)),
        ("member", {"name": "batch"}, (403, "name_reserved", None)),
        ("viewer", {}, (403, "forbidden", None)),
        ("key", {}, (403, "forbidden", None)),
        ("admin", {"user_id": str(uuid.uuid4())}, (400, "user_not_found", "user_id")),
        ("admin", {"team_id": str(uuid.uuid4())}, (400, "team_not_found", "team_id")),
        ("admin", {"user_id": "somebody"}, (400, "invalid_value", "user_id")),
        ("admin", {"models": ["fsat"]}, (400, "invalid_value", "models")),
        ("admin", {"models": []}, (400, "invalid_value", "models")),
        ("admin", {"rpm": 0}, (400, "invalid_value", "rpm")),
        ("admin", {"rpm": True}, (400, "invalid_value", "rpm")),
        ("admin", {"rpm": 10**12}, (400, "invalid_value", "rpm")),
        ("admin", {"budgets": ["five"]}, (400, "invalid_value", "budgets")),
        ("admin", {"budgets": ["-5/1d"]}, (400, "invalid_value", "budgets")),
        ("admin", {"budgets": ["5/1d", "6/24h"]}, (400, "invalid_value", "budgets")),
        ("admin", {"expires": "soon"}, (400, "invalid_value", "expires")),
        ("admin", {"expires": "2001-01-01"}, (400, "invalid_value", "expires")),
        ("admin", {"expires": "0001-01-01T00:00:00+14:00"}, (400, "invalid_value", "expires")),
        ("admin", {"expires": "9999-12-31T23:59:59-14:00"}, (400, "invalid_value", "expires")),
        ("admin", {"expires": "9999-12-31T23:59:59.999999Z"}, (400, "invalid_value", "expires")),
        ("admin", {"tags": [" ci"]}, (400, "invalid_value", "tags")),
        ("admin", {"tags": ["t"] * 17}, (400, "invalid_value", "tags")),
        ("admin", {"metadata": []}, (400, "invalid_value", "metadata")),
        ("admin", {"metadata": {"a": "\0"}}, (400, "invalid_value", "metadata")),
        ("admin", {"metadata": {"\0": 1}}, (400, "invalid_value", "metadata")),
        ("admin", {"metadata": {"a": [{"b": ["\0"]}]}}, (400, "invalid_value", "metadata")),
        ("admin", {"metadata": {"a": "x" * 5000}}, (400, "invalid_value", "metadata")),
        ("admin", {"metadata": {"a": [[[[[[[[[]]]]]]]]]}}, (400, "invalid_value", "metadata")),
        ("admin", {"name": " x"}, (400, "invalid_value", "name")),
        ("admin", {"name": ""}, (400, "invalid_value", "name")),
        ("admin", {"name": "x" * 65}, (400, "invalid_value", "name")),
        ("admin", {"name": "two\nlines"}, (400, "invalid_value", "name")),
        ("admin", {"name": "ci"}, (400, "name_taken", "name")),
        ("admin", {"name": None}, (400, "invalid_value", "name")),
        ("admin", {"key": "sk-strata-mine"}, (400, "invalid_value", None)),
        ("admin", {"limited_by_admin": False}, (400, "invalid_value", None)),
    ],
)
async def test_what_may_not_be_is_refused_and_leaves_nothing(
    house: House, who: str, said: dict[str, Any], answer: tuple[int, str, str | None]
) -> None:
    assert await house.refused(who, "POST", body={"name": "new", **said}) == answer
    row = await house.db.fetchrow("SELECT (SELECT count(*) FROM strata.keys), (SELECT count(*) FROM strata.audit)")
    assert row is not None
    assert tuple(row) == (0, 0)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"null", b'{"name": "a"', b'{"name": "\xff"}'])
async def test_a_body_that_is_none_is_refused(house: House, body: bytes) -> None:
    status, said = await house.ask("admin", "POST", body=body)
    assert (status, said["error"]["type"]) == (400, "invalid_request_error")


async def test_a_body_that_does_not_call_itself_json_is_refused_and_a_rotation_needs_none(house: House) -> None:
    form = b"application/x-www-form-urlencoded"
    made = await house.make()
    for method, path in (("POST", ""), ("PATCH", f"/{made['id']}"), ("POST", f"/{made['id']}/rotate")):
        assert (await house.ask("member", method, path, {"name": "new"}, kind=form))[0] == 415
    assert (await house.ask("member", "POST", f"/{made['id']}/rotate", kind=b""))[0] == 200


async def test_a_key_without_a_name_and_one_whose_name_is_taken_are_refused(house: House) -> None:
    assert (await house.refused("admin", "POST", body={}))[1:] == ("missing_required_parameter", "name")
    await house.make(name="one")
    assert (await house.refused("admin", "POST", body={"name": "one"}))[1:] == ("name_taken", "name")


async def test_a_member_has_so_many_keys_and_no_more(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.edge.keys.MAX_KEYS_OF_A_MEMBER", 2)
    first = await house.make(name="one")
    await house.make(name="two")
    assert await house.refused("member", "POST", body={"name": "three"}) == (409, "too_many_keys", None)
    await house.ask("member", "DELETE", f"/{first['id']}")
    await house.make(name="three")
    await house.make("mate", name="four")


async def test_keys_asked_for_at_once_are_counted_one_after_the_other(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.edge.keys.MAX_KEYS_OF_A_MEMBER", 2)
    asked = (house.ask("member", "POST", body={"name": f"k{number}"}) for number in range(8))
    statuses = [status for status, _ in await asyncio.gather(*asked)]
    assert sorted(statuses) == [201, 201, *[409] * 6]


# Seeing


async def test_who_sees_which_keys(house: House) -> None:
    for who in ("member", "stranger", "master"):
        await house.make(who, name=f"of {who}")
    seen = {}
    for who in ("admin", "member", "mate", "viewer", "stranger"):
        seen[who] = [one["name"] for one in (await house.ask(who, "GET"))[1]["data"]]
    assert seen == {
        "admin": ["ci", "of master", "of stranger", "of member"],
        "member": ["of member"],
        "mate": ["of member"],
        "viewer": ["of member"],
        "stranger": ["of stranger"],
    }
    assert (await house.refused("key", "GET"))[0] == 403


async def test_pages_follow_each_other_without_gaps(house: House) -> None:
    for number in range(5):
        await house.make("master", name=f"k{number}")
    await house.db.execute("UPDATE strata.keys SET created_at = '2020-01-01Z' WHERE name <> 'k4'")
    names, query = [], "limit=2"
    while True:
        _, said = await house.ask("admin", "GET", query=query)
        names.append([one["name"] for one in said["data"]])
        if not said["has_more"]:
            break
        query = f"limit=2&cursor={said['next_cursor']}"
    assert [len(page) for page in names] == [3, 2, 1], "the key of the file stands on the first page, besides"
    assert sorted(name for page in names for name in page) == ["ci", "k0", "k1", "k2", "k3", "k4"]
    assert said["next_cursor"] is None


async def test_the_list_is_narrowed_by_state_owner_and_tag(house: House) -> None:
    await house.make("member", name="tagged", tags=["ci", "eu"])
    gone = await house.make("member", name="gone")
    await house.ask("member", "DELETE", f"/{gone['id']}")
    await house.make("master", name="old")
    await house.db.execute("UPDATE strata.keys SET expires_at = now() - interval '1 s' WHERE name = 'old'")
    found = {}
    for query in ("state=active", "state=expired", "state=revoked", f"user_id={USER}", f"team_id={TEAM}", "tag=eu"):
        _, said = await house.ask("admin", "GET", query=query)
        found[query.partition("=")[0] + "=" + query.partition("=")[2][:7]] = [one["name"] for one in said["data"]]
    assert list(found.values()) == [
        ["ci", "tagged"],
        ["old"],
        ["gone"],
        ["gone", "tagged"],
        ["gone", "tagged"],
        ["tagged"],
    ]


@pytest.mark.parametrize("query", ["state=alive", "user_id=me", "cursor=AAAA", "limit=0", "limit=201", "sort=name"])
async def test_a_parameter_that_means_nothing_is_refused(house: House, query: str) -> None:
    status, said = await house.ask("admin", "GET", query=query)
    assert (status, said["error"]["code"]) == (400, "invalid_value")


async def test_keys_of_the_configuration_are_read_only_and_for_admins(house: House) -> None:
    [static] = (await house.ask("admin", "GET"))[1]["data"]
    assert (static["source"], static["read_only"], static["rpm"]) == ("config.yaml", True, 5)
    assert static["budgets"][0]["limit"] == "7"
    assert STATIC not in json.dumps(static)
    path = f"/{static['id']}"
    assert (await house.ask("admin", "GET", path))[1] == static
    assert (await house.ask("member", "GET", path))[0] == 404
    for method, where in (("PATCH", path), ("DELETE", path), ("POST", f"{path}/rotate")):
        status, said = await house.ask("admin", method, where, {"rpm": 1})
        assert (status, said["error"]["code"]) == (409, "read_only")
        assert "config.yaml" in said["error"]["message"]
        assert (await house.refused("member", method, where, {"rpm": 1} if method == "PATCH" else {}))[0] == 404


@pytest.mark.parametrize("id", [str(uuid.uuid4()), "mine", "providers", "0", "%00", "x" * 500])
@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
async def test_a_key_that_is_not_there_is_404(house: House, method: str, id: str) -> None:
    assert (await house.refused("admin", method, f"/{id}", {"rpm": 1}))[:2] == (404, "key_not_found")


# Changing


async def test_what_is_said_changes_and_the_rest_stays(house: House) -> None:
    made = await house.make("master", rpm=5, tags=["a"], metadata={"a": 1}, user_id=USER)
    status, said = await house.ask("master", "PATCH", f"/{made['id']}", {"name": "new", "metadata": {"b": None}})
    assert status == 200
    del made["key"]
    assert said == {**made, "name": "new", "metadata": {"b": None}}
    changes = {"models": ["smart"], "rpm": None, "tpm": 9, "max_parallel": 2, "expires": None, "tags": []}
    _, said = await house.ask("master", "PATCH", f"/{made['id']}", changes)
    assert {name: said[name] for name in ("models", "rpm", "tpm", "max_parallel", "tags")} == {
        name: changes[name] for name in ("models", "rpm", "tpm", "max_parallel", "tags")
    }
    assert said["expires_at"] is None


async def test_a_budget_that_is_raised_keeps_what_is_spent_and_one_left_out_ends(house: House) -> None:
    made = await house.make("master", budgets=["5/1d", "100/month"])
    first = made["budgets"][0]["id"]
    await house.db.execute(
        "INSERT INTO strata.budget_periods SELECT $1::text::uuid, w.starts_at, w.ends_at, 3, 0 "
        "FROM strata.period_at(86400, NULL, now()) w",
        first,
    )
    _, said = await house.ask("master", "PATCH", f"/{made['id']}", {"budgets": ["7/24h", "1/1h"]})
    assert [(one["limit"], one["spent_nano_usd"]) for one in said["budgets"]] == [("1/1h", 0), ("7/1d", 3)]
    assert said["budgets"][1]["id"] == first
    row = await find_key(house.db, digest(made["key"], house.vault.pepper))
    assert row is not None
    assert {budget.limit_nano_usd for budget in row.budgets} == {7 * 10**9, 10**9}


MEMBERS = [
    ({"rpm": 61}, 403),
    ({"rpm": None}, 403),
    ({"rpm": 60}, 200),
    ({"models": ["smart"]}, 403),
    ({"models": ["lab/*"]}, 200),
    ({"models": ["lab/one"]}, 200),
    ({"budgets": []}, 403),
    ({"budgets": ["4/1d", "9/1h"]}, 200),
    ({"expires": None}, 403),
    ({"expires": "1d"}, 200),
    ({"tags": ["x"]}, 200),
    ({"name": "batch"}, 403),
    ({"name": "other"}, 200),
]


@pytest.mark.parametrize(("change", "status"), MEMBERS)
async def test_a_member_changes_his_own_key_within_the_defaults(
    house: House, change: dict[str, Any], status: int
) -> None:
    made = await house.make(rpm=10)
    assert (await house.ask("member", "PATCH", f"/{made['id']}", change))[0] == status


GRANTED = [
    ({"rpm": 10}, 200),
    ({"rpm": 9}, 200),
    ({"rpm": 11}, 403),
    ({"rpm": None}, 403),
    ({"tpm": 1000}, 200),
    ({"models": ["smart"]}, 200),
    ({"models": ["fast"]}, 403),
    ({"budgets": ["2/1d"]}, 200),
    ({"budgets": ["3/1d"]}, 403),
    ({"budgets": []}, 403),
    ({"budgets": ["2/1h"]}, 403),
    ({"expires": "2d"}, 403),
    ({"expires": None}, 403),
    ({"expires": "1h"}, 200),
    ({"tags": ["x"], "name": "new"}, 200),
]


@pytest.mark.parametrize("set_by", ["making", "changing", "budget command"])
@pytest.mark.parametrize(("change", "status"), GRANTED)
async def test_what_an_admin_has_set_its_owner_only_tightens(
    house: House, set_by: str, change: dict[str, Any], status: int
) -> None:
    limits: dict[str, Any] = {"rpm": 10, "models": ["smart"], "budgets": ["2/1d"], "expires": "1d"}
    if set_by == "making":
        made = await house.make("admin", user_id=USER, **limits)
    elif set_by == "changing":
        made = await house.make()
        await house.ask("admin", "PATCH", f"/{made['id']}", limits)
    else:
        made = await house.make()
        await house.ask("admin", "PATCH", f"/{made['id']}", limits)
        await house.db.execute("UPDATE strata.keys SET limited_by_admin = false")
        await set_budget(house.db, "key", "mine", 2 * 10**9, DAY, None)
    assert (await house.ask("member", "PATCH", f"/{made['id']}", change))[0] == status


async def test_a_key_with_a_name_that_the_limits_know_keeps_it(house: House) -> None:
    made = await house.make("admin", name="batch", user_id=USER)
    assert (await house.refused("member", "PATCH", f"/{made['id']}", {"name": "free"}))[1] == "name_reserved"
    assert (await house.ask("admin", "PATCH", f"/{made['id']}", {"name": "free"}))[0] == 200


@pytest.mark.parametrize(
    ("method", "where", "body"), [("PATCH", "", {"rpm": 1}), ("DELETE", "", None), ("POST", "/rotate", None)]
)
async def test_nobody_changes_the_key_of_another(house: House, method: str, where: str, body: object) -> None:
    path = f"/{(await house.make())['id']}{where}"
    answers = {}
    for who in ("mate", "viewer", "stranger", "key"):
        answers[who] = (await house.refused(who, method, path, body))[0]
    assert answers == {"mate": 403, "viewer": 403, "stranger": 404, "key": 403}
    assert [line["action"] for line in await house.audit()] == ["key.create"]
    assert (await house.ask("admin", method, path, body))[0] == 200


@pytest.mark.parametrize("body", [{"user_id": MATE}, {"team_id": OTHERS}, {"revoked_at": None}, {"id": "x"}, {}])
async def test_who_owns_a_key_and_whether_it_lives_is_no_field(house: House, body: object) -> None:
    path = f"/{(await house.make())['id']}"
    assert (await house.refused("admin", "PATCH", path, body))[0] == 400


async def test_who_has_gone_to_another_team_still_ends_what_he_made_before(house: House) -> None:
    path = f"/{(await house.make())['id']}"
    moved = msgspec.structs.replace(PEOPLE["member"], team_id=OTHERS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PEOPLE, "member", moved)
        for method, where, body in (
            ("PATCH", "", {"budgets": ["1/1d"]}),
            ("POST", "/rotate", None),
            ("DELETE", "", None),
        ):
            status, said = await house.ask("member", method, f"{path}{where}", body)
            assert (status, said["team_id"]) == (200, TEAM)


METADATA = (
    b'{"a": 9007199254740992, "b": 1e15, "c": -0.0, "d": 0.1, "e": 3e-15, "f": true, "g": 123456.789012345}',
    b'{"a": 9007199254740993}',
    b'{"a": [1e308]}',
    b'{"a": 1e-300}',
    b'{"\\u0000": 1}',
    b'{"a": "\\ud83d\\ude00"}',
    b'{"a": "\\ud83d"}',
    b'{"a": 1e999}',
    b'{"a": NaN}',
    b'{"a": "\xff"}',
    b'{"a": ' + b"[" * 2000 + b"]" * 2000 + b"}",
    b'{"a": ' + b"9" * 3000 + b"}",
)


@pytest.mark.parametrize("metadata", METADATA)
async def test_metadata_is_kept_as_it_is_or_refused(house: House, metadata: bytes) -> None:
    status, said = await house.ask("master", "POST", body=b'{"name": "odd", "metadata": %b}' % metadata)
    if status == 201:
        assert said["metadata"] == json.loads(metadata)
        _, later = await house.ask("master", "PATCH", f"/{said['id']}", {"rpm": 1})
        assert later["metadata"] == said["metadata"]
    else:
        assert (status, said["error"]["type"]) == (400, "invalid_request_error")


async def test_two_changes_at_once_lose_neither(house: House) -> None:
    path = f"/{(await house.make())['id']}"
    changes = [{"rpm": 7}, {"tags": ["x"]}, {"metadata": {"a": 1}}]
    assert {
        status for status, _ in await asyncio.gather(*(house.ask("member", "PATCH", path, c) for c in changes))
    } == {200}
    _, said = await house.ask("member", "GET", path)
    assert (said["rpm"], said["tags"], said["metadata"]) == (7, ["x"], {"a": 1})


# Ending and rotating


async def test_a_revoked_key_is_refused_and_stays_in_the_list(house: House, gate: Gate) -> None:
    made = await house.make()
    assert (await admitted(gate, made["key"])).user_id == USER
    status, said = await house.ask("member", "DELETE", f"/{made['id']}")
    assert (status, said["state"]) == (200, "revoked")
    assert await until_refused(gate, made["key"]) == "key_revoked"
    assert (await house.ask("member", "DELETE", f"/{made['id']}"))[1] == said, "the second time nothing happens"
    assert [line["action"] for line in await house.audit()] == ["key.create", "key.revoke"]
    for method, where in (("PATCH", ""), ("POST", "/rotate")):
        body = {"rpm": 1} if method == "PATCH" else None
        assert (await house.refused("member", method, f"/{made['id']}{where}", body))[:2] == (409, "key_revoked")


async def test_a_rotated_key_has_one_secret_and_is_the_same_key(house: House, gate: Gate) -> None:
    made = await house.make()
    before = await admitted(gate, made["key"])
    status, said = await house.ask("member", "POST", f"/{made['id']}/rotate")
    assert status == 200
    assert house.headers[b"cache-control"] == b"no-store"
    assert said["id"] == made["id"]
    assert said["budgets"] == made["budgets"]
    assert said["display"] != made["display"]
    assert said["old_secret_until"] is None
    assert await until_refused(gate, made["key"]) == "key_rotated"
    after = await admitted(gate, said["key"])
    assert (after.key_id, after.budgets) == (before.key_id, before.budgets)


async def test_during_a_grace_both_secrets_are_good_and_then_one(house: House, gate: Gate) -> None:
    made = await house.make()
    now = await house.go_by_the_database()
    _, said = await house.ask("member", "POST", f"/{made['id']}/rotate", {"grace": "1h"})
    assert said["old_secret_until"] is not None
    assert (await admitted(gate, said["key"])).key_id == made["id"]
    house.now = now + 3590
    assert (await admitted(gate, made["key"])).key_id == made["id"]
    assert (await admitted(gate, said["key"])).key_id == made["id"]
    house.now = now + 3700
    assert await until_refused(gate, made["key"]) == "key_rotated"
    assert (await admitted(gate, said["key"])).key_id == made["id"]


async def test_a_second_rotation_ends_the_first_secret_whatever_its_grace(house: House, gate: Gate) -> None:
    await house.go_by_the_database()
    secrets = [(made := await house.make())["key"]]
    path = f"/{made['id']}/rotate"
    await admitted(gate, secrets[0])
    for _ in range(2):
        secrets.append((await house.ask("member", "POST", path, {"grace": "7d"}))[1]["key"])
    assert await until_refused(gate, secrets[0]) == "invalid_api_key"
    assert [(await admitted(gate, secret)).key_id for secret in secrets[1:]] == [made["id"]] * 2


async def test_revoking_ends_the_old_secret_too(house: House, gate: Gate) -> None:
    await house.go_by_the_database()
    made = await house.make()
    _, said = await house.ask("member", "POST", f"/{made['id']}/rotate", {"grace": "7d"})
    await admitted(gate, made["key"])
    await house.ask("member", "DELETE", f"/{made['id']}")
    assert await until_refused(gate, made["key"]) == "key_revoked"
    assert await until_refused(gate, said["key"]) == "key_revoked"


async def test_the_grace_of_a_secret_ends_with_its_key(house: House, gate: Gate) -> None:
    await house.go_by_the_database()
    made = await house.make("master", expires="1h")
    _, said = await house.ask("master", "POST", f"/{made['id']}/rotate", {"grace": "7d"})
    await admitted(gate, said["key"])
    await admitted(gate, made["key"])
    house.now += 3601
    assert await until_refused(gate, said["key"]) == "key_expired"
    assert await until_refused(gate, made["key"]) == "key_rotated"


@pytest.mark.parametrize("grace", ["8d", "0", "soon", "-1h", "", 5, "1h 1h"])
async def test_a_grace_has_bounds(house: House, grace: object) -> None:
    made = await house.make()
    answer = await house.refused("member", "POST", f"/{made['id']}/rotate", {"grace": grace})
    assert answer == (400, "invalid_value", "grace")


async def test_keys_of_somebody_who_is_disabled_are_refused_until_he_is_enabled(house: House, gate: Gate) -> None:
    made, mates = await house.make(), await house.make("mate", name="mates")
    rotated = (await house.ask("member", "POST", f"/{made['id']}/rotate"))[1]
    await admitted(gate, rotated["key"])
    for disabled, answer in (("now()", "owner_disabled"), ("NULL", "")):
        async with house.db.acting_as(PEOPLE["admin"]) as connection:
            await connection.execute(f"UPDATE strata.users SET disabled_at = {disabled} WHERE id = '{USER}'")
        assert await said_of(gate, rotated["key"], answer) == answer
        state = (await house.ask("admin", "GET", f"/{made['id']}"))[1]["state"]
        assert state == ("disabled" if answer else "active")
        await admitted(gate, mates["key"])


# Writing down


async def test_every_change_is_written_down_with_before_and_after_and_without_secrets(house: House) -> None:
    made = await house.make(metadata={"api_key": "hush", "deep": [{"token": "hush"}]})
    path = f"/{made['id']}"
    await house.ask("member", "PATCH", path, {"rpm": 7, "budgets": ["1/1d"]})
    rotated = (await house.ask("member", "POST", f"{path}/rotate", {"grace": "1h"}))[1]
    await house.ask("admin", "DELETE", path)
    lines = await house.audit()
    assert [(line["actor"], line["action"]) for line in lines] == [
        (USER, "key.create"),
        (USER, "key.change"),
        (USER, "key.rotate"),
        (ROOT, "key.revoke"),
    ]
    assert {line["object"] for line in lines} == {made["id"]}
    before, after = (json.loads(lines[1][name]) for name in ("before", "after"))
    assert (before["rpm"], after["rpm"]) == (60, 7)
    assert (before["budgets"][0]["limit_nano_usd"], after["budgets"][0]["limit_nano_usd"]) == (5 * 10**9, 10**9)
    assert json.loads(lines[2]["before"])["display"] == made["display"]
    assert json.loads(lines[3]["before"])["revoked_at"] is None
    assert json.loads(lines[3]["after"])["revoked_at"] is not None
    everything = str([dict(line) for line in lines])
    for secret in ("hush", made["key"], rotated["key"], digest(made["key"], house.vault.pepper).hex()):
        assert secret not in everything


async def test_rules_cover_every_bound_that_can_be_said() -> None:
    free = {"name", "tags", "metadata"}
    assert set(key_rules.Said.__struct_fields__) == {*key_rules.BOUNDS, *free}


async def test_a_key_made_on_the_command_line_is_changed_here(house: House) -> None:
    row = await insert_key(
        house.db,
        name="cli",
        digest=b"d" * 32,
        pepper_id="",
        display="",
        models=["*"],
        rpm=None,
        expires_at=None,
        budget_limit_nano_usd=None,
        budget_window_seconds=None,
    )
    status, said = await house.ask("admin", "PATCH", f"/{row.id}", {"budgets": ["5/week"]})
    assert (status, said["budgets"][0]["limit"]) == (200, "5/week")
