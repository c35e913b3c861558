"""/api/keys/providers: what comes in, who may, what the provider says, and that no key ever comes out again."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from proxy.admission.accounts.tokens import Tokens
from proxy.config import Provider, Secret
from proxy.edge.callers import Callers
from proxy.edge.provider_keys import ProviderKeysPage
from proxy.edge.site import site
from proxy.errors import CallerError
from proxy.exchange import Caller
from proxy.pages import provider_key_routes
from proxy.storage.postgres import Connection, Database
from proxy.storage.vault import Vault
from proxy.upstream.accounts import Account
from proxy.upstream.elsewhere import Elsewhere
from proxy.upstream.own_keys import OwnKeys
from tests.oracle import Oracle

OPERATORS, GOOD, OTHER, BAD = (
    "sk-operators-00001111",
    "sk-users-key-00002222",
    "sk-users-key-00003333",
    "sk-bad-0000444",
)
LIMITED, BROKE, ODD = "sk-limited-0005555", "sk-broke-00006666", "sk-odd-000077777"
KEYS = {
    OPERATORS: (200, ""),
    GOOD: (200, ""),
    OTHER: (200, ""),
    LIMITED: (429, "Rate limit reached."),
    BROKE: (402, "Insufficient balance."),
    ODD: (500, f"Something broke for {ODD} and Bearer {ODD}."),
}
TEAM, USER, MATE, STRANGER = (str(uuid.uuid5(uuid.NAMESPACE_URL, name)) for name in ("t", "u", "m", "s"))
PEOPLE = {
    "admin": Caller("", "root", "", role="admin"),
    "member": Caller("", "u", "", role="member", user_id=USER, team_id=TEAM),
    "mate": Caller("", "m", "", role="member", user_id=MATE, team_id=TEAM),
    "viewer": Caller("", "v", "", role="viewer", user_id=MATE, team_id=TEAM),
    "stranger": Caller("", "s", "", role="member", user_id=STRANGER),
    "key": Caller(str(uuid.uuid4()), "k", "", user_id=USER, team_id=TEAM),
}
PATH = "/api/keys/providers"


class Admits:
    """A gate that takes a name for a credential."""

    async def admit(self, credentials: list[tuple[bytes, bytes]]) -> Caller:
        return PEOPLE[credentials[0][1].decode()]


class House:
    def __init__(self, db: Database, oracle: Oracle, vault: Vault) -> None:
        self.db, self.oracle, self.vault = db, oracle, vault
        provider = Provider(name="oai", api_base=f"{oracle.url}/v1", api_key=Secret(OPERATORS))
        bare = Provider(name="gpu", api_base="http://127.0.0.1:9/v1")
        signed = Provider(name="cloud", api="vertex", api_base="https://aiplatform.googleapis.com")
        claude = Provider(name="claude", api="anthropic", api_base=oracle.url, api_key=Secret(OPERATORS))
        self.accounts = {one.name: Account(one) for one in (provider, bare, signed, claude)}
        self.own_keys = OwnKeys(db, vault, self.accounts, Elsewhere(lookup=self._look_up))
        page = ProviderKeysPage(
            Callers(Admits(), Tokens(lambda: bytes(32))),  # type: ignore[arg-type]  # all that is asked of the gate
            db,
            self.own_keys,
            self.accounts,
            "/etc/strata/config.yaml",
            self._note,
        )
        self.noted: list[dict[str, Any]] = []
        self.app = site(provider_key_routes(page), [], None)
        self.addresses = {"inside.example": ["10.0.0.7"], "both.example": ["93.184.215.14", "127.0.0.1"]}

    async def _look_up(self, host: str) -> list[str]:
        if host == "nowhere.example":
            raise OSError("no such name")
        return self.addresses.get(host, [host if host[0].isdigit() else "93.184.215.14"])

    async def _note(self, connection: Connection, **change: Any) -> None:
        assert await connection.fetchval("SELECT pg_current_xact_id_if_assigned() IS NOT NULL")
        self.noted.append(change)

    async def close(self) -> None:
        await self.own_keys.close()
        for account in self.accounts.values():
            await account.close()

    async def ask(
        self,
        who: str,
        method: str,
        path: str = "",
        body: object = None,
        query: str = "",
        kind: bytes = b"application/json",
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
            "path": PATH + path,
            "raw_path": (PATH + path).encode(),
            "query_string": query.encode(),
            "headers": [(b"authorization", who.encode()), (b"content-type", kind)],
        }
        await self.app(scope, receive, send)
        answer = b"".join(message.get("body", b"") for message in sent)
        return sent[0]["status"], json.loads(answer)

    async def save(self, who: str = "member", **fields: object) -> dict[str, Any]:
        status, said = await self.ask(who, "POST", body={"provider": "oai", "api_key": GOOD, **fields})
        assert status == 201, said
        return dict(said)


@pytest.fixture
async def house(db: Database) -> AsyncIterator[House]:
    await db.execute("INSERT INTO strata.teams (id, name) VALUES ($1::text::uuid, 't')", TEAM)
    for user, team in ((USER, TEAM), (MATE, TEAM), (STRANGER, None)):
        await db.execute(
            "INSERT INTO strata.users (id, subject, team_id) VALUES ($1::text::uuid, $1, $2::text::uuid)", user, team
        )
    async with Oracle(keys=KEYS) as oracle:
        made = House(db, oracle, Vault(b"q8Zr2LxW0vT5nYb7KcJd3MfH6gPs9AeU"))
        await made.own_keys.start()
        yield made
        await made.close()


async def test_a_key_is_tried_saved_and_shown_as_its_last_four(house: House) -> None:
    said = await house.save(name="mine")
    assert (said["provider"], said["name"], said["scope"], said["user_id"]) == ("oai", "mine", "user", USER)
    assert (said["last_four"], said["masked"]) == ("2222", "••••••••2222")
    assert said["status"] == "valid" and said["detail"].startswith("2 models, answered in ")
    assert said["last_validated_at"] is not None and said["api_base"] == ""
    assert house.oracle.listed == 2  # with the key, and once without, which is refused
    assert (await house.ask("member", "GET", f"/{said['id']}")) == (200, said)
    everything = json.dumps([await house.ask(who, "GET") for who in ("admin", "member", "viewer")])
    assert GOOD not in everything and OPERATORS not in everything


@pytest.mark.parametrize(
    ("key", "status", "words"),
    [
        (BAD, "invalid", "401: Incorrect API key provided"),
        (LIMITED, "rate limited", "429: Rate limit reached."),
        (BROKE, "no quota", "402: Insufficient balance."),
        (ODD, "unreachable", "500: Something broke for"),
    ],
)
async def test_a_key_that_the_provider_refuses_is_saved_only_if_one_insists(
    house: House, key: str, status: str, words: str
) -> None:
    body = {"provider": "oai", "api_key": key}
    answered, said = await house.ask("member", "POST", body=body)
    assert answered == 400
    assert said["error"]["code"] == "provider_key_" + status.replace(" ", "_")
    assert status in said["error"]["message"] and words in said["error"]["message"]
    assert key not in json.dumps(said)
    assert await house.db.fetch("SELECT 1 FROM strata.provider_keys") == []
    answered, said = await house.ask("member", "POST", body=body, query="save_anyway=true")
    assert (answered, said["status"]) == (201, status)
    assert words in said["detail"] and key not in json.dumps(said)
    answered, said = await house.ask("stranger", "POST", body={**body, "save_anyway": True})
    assert (answered, said["status"]) == (201, status)


async def test_a_provider_that_is_not_there_is_unreachable_and_one_that_asks_for_no_key_proves_nothing(
    house: House,
) -> None:
    answered, said = await house.ask("member", "POST", body={"provider": "gpu", "api_key": GOOD})
    assert (answered, said["error"]["code"]) == (400, "provider_key_unreachable")
    house.oracle.keys = None
    said = await house.save()
    assert (said["status"], said["detail"]) == ("not checked", "The provider lists its models without a key too.")


async def test_a_saved_key_is_tried_again_on_demand_and_when_it_was_is_remembered(house: House) -> None:
    first = await house.save()
    house.oracle.keys = {}
    status, said = await house.ask("member", "POST", f"/{first['id']}/validate")
    assert (status, said["status"]) == (200, "invalid")
    assert said["last_validated_at"] > first["last_validated_at"]
    house.oracle.keys = KEYS
    assert (await house.ask("admin", "POST", f"/{first['id']}/validate"))[1]["status"] == "valid"


async def test_the_operators_keys_are_listed_read_only_and_only_an_admin_sees_their_last_four(house: House) -> None:
    listed = {one["id"]: one for one in (await house.ask("member", "GET"))[1]["data"]}
    assert listed.keys() == {"config:oai", "config:gpu", "config:cloud", "config:claude"}
    oai = listed["config:oai"]
    assert (oai["read_only"], oai["source"], oai["masked"], oai["last_four"]) == (True, "config.yaml", "••••••••", "")
    assert listed["config:gpu"]["masked"] == ""
    assert (await house.ask("admin", "GET", "/config:oai"))[1]["masked"] == "••••••••1111"
    for method in ("PATCH", "DELETE"):
        assert (await house.ask("admin", method, "/config:oai", {}))[1]["error"]["code"] == "read_only"
    assert (await house.ask("member", "POST", "/config:oai/validate"))[0] == 403
    assert (await house.ask("admin", "POST", "/config:oai/validate"))[1]["status"] == "valid"
    assert (await house.ask("admin", "POST", "/config:gpu/validate"))[1]["status"] == "unreachable"
    assert (await house.ask("member", "GET", "/config:oai"))[1]["status"] == "valid"


async def test_who_sees_and_changes_which_keys(house: House) -> None:
    mine = await house.save()
    teams = await house.save("admin", scope="team", team_id=TEAM)
    everybodys = await house.save("admin", scope="global")
    sees = {
        who: {one["id"] for one in (await house.ask(who, "GET"))[1]["data"] if not one["read_only"]}
        for who in PEOPLE
        if who != "key"
    }
    assert sees == {
        "admin": {mine["id"], teams["id"], everybodys["id"]},
        "member": {mine["id"], teams["id"]},
        "mate": {teams["id"]},
        "viewer": {teams["id"]},
        "stranger": set(),
    }
    for who, expected in (("mate", 404), ("stranger", 404), ("viewer", 403), ("key", 403)):
        for method, path in (("PATCH", ""), ("DELETE", ""), ("POST", "/validate")):
            assert (await house.ask(who, method, f"/{mine['id']}{path}", {"name": "x"}))[0] == expected
    assert (await house.ask("mate", "DELETE", f"/{teams['id']}"))[0] == 403
    assert (await house.ask("key", "GET"))[0] == 403
    for body in ({"scope": "team"}, {"scope": "global"}, {"scope": "user", "user_id": MATE}):
        status, said = await house.ask("stranger", "POST", body={"provider": "oai", "api_key": GOOD, **body})
        assert (status, said["error"]["code"]) == (403, "forbidden")
    assert (await house.ask("admin", "DELETE", f"/{teams['id']}"))[1]["deleted"] is True
    assert (await house.ask("member", "DELETE", f"/{mine['id']}"))[0] == 200
    assert (await house.ask("member", "GET", f"/{mine['id']}"))[0] == 404


async def test_a_key_is_renamed_or_replaced_and_the_replacement_is_tried_first(house: House) -> None:
    saved = await house.save(name="old")
    path = f"/{saved['id']}"
    assert (await house.ask("member", "PATCH", path, {"name": "new"}))[1] == {**saved, "name": "new"}
    assert (await house.ask("member", "PATCH", path, {"api_key": BAD}))[0] == 400
    assert (await house.ask("member", "GET", path))[1]["last_four"] == "2222"
    said = (await house.ask("member", "PATCH", path, {"api_key": OTHER}))[1]
    assert (said["name"], said["last_four"], said["status"]) == ("new", "3333", "valid")
    [row] = await house.db.fetch("SELECT sealed_key, sealed_dek FROM strata.provider_keys")
    assert OTHER.encode() not in row["sealed_key"] + row["sealed_dek"]
    status, said = await house.ask("member", "PATCH", path, {"api_base": "https://api.example.com"})
    assert (status, said["error"]["param"]) == (400, "api_base")


async def test_every_change_is_noted_in_its_own_transaction_and_without_the_key(house: House) -> None:
    saved = await house.save(name="old")
    path = f"/{saved['id']}"
    await house.ask("member", "PATCH", path, {"name": "new"})
    await house.ask("admin", "PATCH", path, {"api_key": OTHER})
    await house.ask("member", "PATCH", path, {"api_key": BAD})
    await house.ask("mate", "DELETE", path)
    await house.ask("admin", "DELETE", path)
    actions = [(one["action"].partition(".")[2], one["actor"], one["object"]) for one in house.noted]
    id = saved["id"]
    assert actions == [("create", USER, id), ("rename", USER, id), ("replace", "root", id), ("delete", "root", id)]
    created, renamed, replaced, deleted = house.noted
    assert created["before"] is None and deleted["after"] is None
    assert (renamed["before"]["name"], renamed["after"]["name"]) == ("old", "new")
    assert (replaced["before"]["last_four"], replaced["after"]["last_four"]) == ("2222", "3333")
    assert all(one["request_id"].startswith("req_") for one in house.noted)
    assert not any(key in json.dumps(house.noted) for key in (GOOD, OTHER, BAD))


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"not json", None),
        (b"[]", None),
        ({}, None),
        ({"provider": "oai"}, None),
        ({"provider": 7, "api_key": GOOD}, "provider"),
        ({"provider": "oai", "api_key": GOOD, "colour": "red"}, None),
        ({"provider": "oia", "api_key": GOOD}, "provider"),
        ({"provider": "sim", "api_key": GOOD}, "provider"),
        ({"provider": "cloud", "api_key": GOOD}, "provider"),
        ({"provider": "oai", "api_key": "a b c d e f g"}, "api_key"),
        ({"provider": "oai", "api_key": "sk-evil\r\nhost: x"}, "api_key"),
        ({"provider": "oai", "api_key": ""}, "api_key"),
        ({"provider": "oai", "api_key": "x" * 4097}, "api_key"),
        ({"provider": "oai", "api_key": GOOD, "name": "n" * 65}, "name"),
        ({"provider": "oai", "api_key": GOOD, "name": "a\u0000b"}, "name"),
        ({"provider": "oai", "api_key": GOOD, "scope": "planet"}, "scope"),
        ({"provider": "oai", "api_key": GOOD, "scope": "team"}, "team_id"),
        ({"provider": "oai", "api_key": GOOD, "scope": "user"}, "user_id"),
        ({"provider": "oai", "api_key": GOOD, "scope": "user", "user_id": "me"}, "user_id"),
        ({"provider": "oai", "api_key": GOOD, "user_id": str(uuid.UUID(int=5))}, "user_id"),
    ],
)
async def test_bad_input_is_refused_with_its_name_before_the_provider_is_asked(
    house: House, body: object, param: str | None
) -> None:
    status, said = await house.ask("admin", "POST", body=body)
    assert (status, said["error"]["param"]) == (400, param), said
    known = isinstance(body, dict) and body.get("user_id") == str(uuid.UUID(int=5))
    assert house.oracle.listed == (2 if known else 0)  # that there is no such user, the database says at last


async def test_a_body_that_does_not_call_itself_json_or_is_endless_is_refused(house: House) -> None:
    id = (await house.save())["id"]
    for method, path in (("POST", ""), ("PATCH", f"/{id}")):
        said = await house.ask("member", method, path, {"name": "new"}, kind=b"text/plain")
        assert (said[0], said[1]["error"]["code"]) == (415, "unsupported_media_type")
        said = await house.ask("member", method, path, {"name": "n" * 200_000})
        assert (said[0], said[1]["error"]["code"]) == (413, "request_too_large")


async def test_there_is_one_key_for_one_owner_and_provider(house: House) -> None:
    await house.save()
    status, said = await house.ask("member", "POST", body={"provider": "oai", "api_key": OTHER})
    assert (status, said["error"]["code"]) == (409, "provider_key_exists")
    await house.save("member", provider="claude")
    await house.save("stranger")


@pytest.mark.parametrize(
    ("api_base", "code"),
    [
        ("http://api.example.com/v1", "api_base_forbidden"),
        ("https://inside.example/v1", "api_base_forbidden"),
        ("https://both.example/v1", "api_base_forbidden"),
        ("https://127.0.0.1/v1", "api_base_forbidden"),
        ("https://169.254.169.254/latest", "api_base_forbidden"),
        ("https://api.example.com:22/v1", "api_base_forbidden"),
        ("https://nowhere.example/v1", "invalid_value"),
        ("https://user:pass@api.example.com/v1", "invalid_value"),
        ("https://api.example.com/v1?x=1", "invalid_value"),
        ("https://api.example.com/\r\nx: y", "invalid_value"),
        ("ftp://api.example.com", "api_base_forbidden"),
        ("https://[::1]/v1", "api_base_forbidden"),
        ("nonsense", "invalid_value"),
    ],
)
async def test_a_users_address_must_be_public_and_the_error_says_so(house: House, api_base: str, code: str) -> None:
    house.addresses["::1"] = ["::1"]
    body = {"provider": "oai", "api_key": GOOD, "api_base": api_base, "save_anyway": True}
    status, said = await house.ask("member", "POST", body=body)
    assert (status, said["error"]["code"], said["error"]["param"]) == (400, code, "api_base")
    assert "public https addresses only" in said["error"]["message"]
    assert house.oracle.listed == 0


@pytest.mark.parametrize(
    "host", ["127.1", "0x7f.1", "0177.0.0.1", "2130706433", "0", "localhost", "[::ffff:127.0.0.1]"]
)
async def test_no_spelling_of_an_address_inside_gets_past_the_systems_own_resolver(host: str) -> None:
    elsewhere = Elsewhere()
    with pytest.raises(CallerError) as caught:
        await elsewhere.admit(f"https://{host}/v1", "https://api.openai.com/v1")
    assert (caught.value.code, caught.value.param) == ("api_base_forbidden", "api_base")
    await elsewhere.close()


async def test_the_operators_own_address_is_allowed_for_it_is_his(house: House) -> None:
    said = await house.save(api_base=f"{house.oracle.url}/v1/")
    assert (said["api_base"], said["status"]) == ("", "valid")


async def test_an_address_that_changes_its_mind_after_it_was_saved_is_not_asked(house: House) -> None:
    """Saved while it was public; then its name leads into this machine, where somebody listens."""
    connected: list[object] = []

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.append(writer)
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    inside = Elsewhere(lookup=house._look_up, public=lambda _: True)
    house.addresses["turns.example"] = ["127.0.0.1"]
    first, house.own_keys.elsewhere = house.own_keys.elsewhere, inside
    saved = await house.save(api_base=f"https://turns.example:{port}/v1", save_anyway=True)
    assert (saved["api_base"], saved["status"]) == (f"https://turns.example:{port}/v1", "unreachable")
    assert len(connected) == 1
    house.own_keys.elsewhere = first
    said = (await house.ask("member", "POST", f"/{saved['id']}/validate"))[1]
    assert said["status"] == "unreachable"
    assert len(connected) == 1
    server.close()
    await inside.close()


async def test_a_key_that_cannot_be_opened_needs_attention_until_it_is_replaced(house: House) -> None:
    saved = await house.save()
    await house.db.execute("UPDATE strata.provider_keys SET host = 'https://evil.example'")
    await house.own_keys.refresh()
    said = (await house.ask("member", "GET", f"/{saved['id']}"))[1]
    assert said["status"] == "needs attention"
    assert "it was saved for https://evil.example" in said["detail"]
    status, refused = await house.ask("member", "POST", f"/{saved['id']}/validate")
    assert (status, refused["error"]["code"]) == (409, "provider_key_unusable")
    assert (await house.ask("member", "PATCH", f"/{saved['id']}", {"api_key": GOOD}))[0] == 200
    await house.own_keys.refresh()
    assert (await house.ask("member", "GET", f"/{saved['id']}"))[1]["status"] == "valid"


async def test_every_worker_hears_of_a_key_and_of_its_end_within_a_second(house: House) -> None:
    another = OwnKeys(house.db, house.vault, house.accounts, Elsewhere(), poll_seconds=600)
    await another.start()
    await asyncio.sleep(0.3)  # until it listens
    saved = await house.save()
    async with asyncio.timeout(1):
        while not another.held:
            await asyncio.sleep(0.005)
    assert another.account_for(PEOPLE["member"], house.accounts["oai"]).own_key is not None
    await house.ask("member", "DELETE", f"/{saved['id']}")
    async with asyncio.timeout(1):
        while another.held:
            await asyncio.sleep(0.005)
    assert another.account_for(PEOPLE["member"], house.accounts["oai"]) is house.accounts["oai"]
    await another.close()


async def test_a_change_of_one_key_leaves_the_open_accounts_of_the_others_as_they_are(house: House) -> None:
    mine, strangers = await house.save(), await house.save("stranger")
    await house.own_keys.refresh()
    operators = house.accounts["oai"]
    before = [house.own_keys.account_for(PEOPLE[who], operators) for who in ("member", "stranger")]
    assert (await house.ask("member", "PATCH", f"/{mine['id']}", {"api_key": OTHER}))[0] == 200
    await house.own_keys.refresh()
    after = [house.own_keys.account_for(PEOPLE[who], operators) for who in ("member", "stranger")]
    keys = [account.provider.api_key.reveal() for account in (*before, *after) if account.provider.api_key]
    assert keys == [GOOD, GOOD, OTHER, GOOD]
    assert after[1] is before[1]
    assert (await house.ask("stranger", "DELETE", f"/{strangers['id']}"))[0] == 200
    await house.own_keys.refresh()
    assert house.own_keys.account_for(PEOPLE["stranger"], operators) is operators


async def test_embeddings_are_paid_with_the_callers_own_key_too(house: House) -> None:
    await house.save()
    await house.own_keys.refresh()
    operators = house.accounts["oai"].for_embeddings()
    assert operators is not None
    mine = house.own_keys.account_for(PEOPLE["member"], operators)
    assert (mine.embeds, mine.own_key is not None, mine.pool is operators.pool) == (True, True, True)
    assert mine.provider.api_key is not None
    assert mine.provider.api_key.reveal() == GOOD
    assert house.own_keys.account_for(PEOPLE["stranger"], operators) is operators
    assert house.own_keys.account_for(PEOPLE["member"], house.accounts["oai"]).embeds is False


async def test_a_notice_that_was_missed_is_made_good_by_looking(house: House, database_dsn: str) -> None:
    owner = await asyncpg.connect(database_dsn)
    await owner.execute("CREATE OR REPLACE FUNCTION pg_catalog.pg_notify(text, text) RETURNS void LANGUAGE sql AS ''")
    deaf = OwnKeys(house.db, house.vault, house.accounts, Elsewhere(), poll_seconds=0.05)
    await deaf.start()
    saved = await house.save()
    async with asyncio.timeout(10):
        while not deaf.held:
            await asyncio.sleep(0.01)
    await house.ask("member", "DELETE", f"/{saved['id']}")
    async with asyncio.timeout(10):
        while deaf.held:
            await asyncio.sleep(0.01)
    await deaf.close()
    await owner.close()
    assert deaf.failures_total == 0
