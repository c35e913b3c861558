"""From a token to a person: what is remembered, what is asked anew, and people whom another issuer sends."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import jwt
import pytest

from proxy.admission.accounts.people import MAX_CHANGED, RECHECK_SECONDS, STALE_SECONDS, People
from proxy.admission.accounts.signing_keys import SharedSecret
from proxy.admission.accounts.tokens import Tokens
from proxy.admission.accounts.verifiers import Verifier, Verifiers
from proxy.admission.gate import Gate
from proxy.admission.keyring import Keyring
from proxy.admission.limits import Limits
from proxy.config import Issuer, SharedLimit
from proxy.errors import Unauthenticated
from proxy.exchange import Budget
from proxy.storage.postgres import Database, Unavailable
from proxy.storage.sessions import end_all_sessions, open_session

ISSUER = "https://id.example.com"
SECRET = b"a-secret-of-an-issuer-outside-0123456789"
SESSION = "11111111-1111-4111-8111-111111111111"
CLAIMS = Issuer(issuer=ISSUER, audience="strata", role_claim="app.role", team_claim="team")
TOKENS = Tokens(lambda: bytes(32))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def new_user(db: Database) -> str:
    row = await db.fetchrow(
        "INSERT INTO strata.users (email, subject) VALUES ('ann@example.com', 'a') RETURNING id::text"
    )
    assert row is not None
    async with db.transaction() as connection:
        await open_session(connection, session_id=SESSION, user_id=row[0], digest=bytes(32), ttl_seconds=3600.0)
    return str(row[0])


def ours(db: Database, clock: Clock) -> People:
    return People(db, Verifiers([TOKENS.verifier()]), clock=clock)


def access(user_id: str, version: int = 0, at: float | None = None) -> bytes:
    return TOKENS.access(user_id, SESSION, version, time.time() if at is None else at).encode()


def outside(db: Database, **more: Any) -> People:
    return People(db, Verifiers([Verifier(ISSUER, "strata", SharedSecret(SECRET))]), CLAIMS, **more)


def sent(subject: str = "s-1", **more: Any) -> bytes:
    now = int(time.time())
    said = {"iss": ISSUER, "aud": "strata", "sub": subject, "iat": now, "exp": now + 600, **more}
    return jwt.encode(said, SECRET, "HS256").encode()


async def refused(people: People, token: bytes) -> str:
    with pytest.raises(Unauthenticated) as caught:
        await people.find(token)
    return str(caught.value.code)


async def test_a_known_person_is_the_same_object_until_something_changes(db: Database) -> None:
    clock = Clock()
    people = ours(db, clock)
    user_id = await new_user(db)
    token = access(user_id)
    first = await people.find(token)
    assert (first.id, first.name, first.role) == (user_id, "ann@example.com", "member")
    clock.now += RECHECK_SECONDS + 1
    assert await people.find(token) is first
    await db.execute("UPDATE strata.users SET role = 'viewer'")
    assert await people.find(token) is first
    people.forget(user_id)
    assert (await people.find(token)).role == "viewer"


async def test_many_requests_with_one_token_ask_once(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    people = ours(db, Clock())
    token = access(await new_user(db))
    asked = 0
    whole = db.fetchrow

    async def counted(*args: Any, **more: Any) -> Any:
        nonlocal asked
        asked += 1
        return await whole(*args, **more)

    monkeypatch.setattr(db, "fetchrow", counted)
    found = await asyncio.gather(*(people.find(token) for _ in range(50)))
    assert len({id(one) for one in found}) == 1
    assert asked == 1


async def test_what_has_ended_is_refused(db: Database) -> None:
    clock = Clock()
    people = ours(db, clock)
    user_id = await new_user(db)
    token = access(user_id)
    await people.find(token)
    assert await refused(people, access(user_id, version=1)) == "session_ended"
    assert await refused(people, TOKENS.access("no-uuid", SESSION, 0, time.time()).encode()) == "session_ended"
    assert await refused(people, TOKENS.access(user_id, "no-uuid", 0, time.time()).encode()) == "session_ended"
    async with db.transaction() as connection:
        await end_all_sessions(connection, user_id)
    people.forget(user_id)
    assert await refused(people, token) == "session_ended"
    assert await refused(people, token) == "session_ended"


async def test_a_remembered_token_expires_when_it_says(db: Database) -> None:
    user_id = await new_user(db)
    now = time.time()
    moment = [now]
    people = People(db, Verifiers([TOKENS.verifier()]), wall_clock=lambda: moment[0])
    token = access(user_id)
    await people.find(token)
    moment[0] = now + 931
    assert await refused(people, token) == "token_expired"


async def test_a_token_of_a_clock_that_is_behind_is_as_good_the_second_time(db: Database) -> None:
    now = int(time.time())
    people, token = outside(db), sent(iat=now - 600, exp=now - 10)
    assert await people.find(token) is await people.find(token)


async def test_while_postgres_is_away_the_known_go_on_unless_they_were_changed(db: Database) -> None:
    clock = Clock()
    people = ours(db, clock)
    user_id = await new_user(db)
    token = access(user_id)
    known = await people.find(token)
    await db.close()
    clock.now += RECHECK_SECONDS + 1
    assert await people.find(token) is known
    people.forget("somebody else")
    assert await people.find(token) is known
    with pytest.raises(Unavailable):
        await people.find(access(user_id, at=time.time() - 60))
    clock.now += STALE_SECONDS
    with pytest.raises(Unavailable):
        await people.find(token)


async def test_while_postgres_is_away_nobody_who_was_changed_goes_on(db: Database) -> None:
    clock = Clock()
    people = ours(db, clock)
    user_id = await new_user(db)
    token = access(user_id)
    await people.find(token)
    people.forget(user_id)
    await db.close()
    with pytest.raises(Unavailable):
        await people.find(token)
    for number in range(MAX_CHANGED + 1):  # more than are kept in mind: all are forgotten, none is let in
        people.forget(str(number))
    with pytest.raises(Unavailable):
        await people.find(token)


async def test_somebody_from_outside_appears_as_a_member_and_is_kept_up_to_date(db: Database) -> None:
    people = outside(db)
    first = await people.find(sent(email="ann@example.com"))
    assert (first.name, first.role, first.team_id) == ("ann@example.com", "member", None)
    second = await people.find(sent(email="ann@example.org", app={"role": "viewer"}, team="blue"))
    assert (second.id, second.name, second.role) == (first.id, "ann@example.org", "viewer")
    rows = await db.fetch("SELECT id::text, name FROM strata.teams")
    assert [(row["id"], row["name"]) for row in rows] == [(second.team_id, "blue")]
    # what is not said stays
    assert (await people.find(sent())).role == "viewer"
    actions = [row["action"] for row in await db.fetch("SELECT action FROM strata.audit ORDER BY seq")]
    assert actions == ["user.appear", "user.change"]


async def test_a_claim_is_found_by_a_name_that_is_an_address(db: Database) -> None:
    claim = "https://strata.example.com/role"
    issuer = Issuer(issuer=ISSUER, audience="strata", role_claim=claim)
    people = People(db, Verifiers([Verifier(ISSUER, "strata", SharedSecret(SECRET))]), issuer)
    assert (await people.find(sent(**{claim: "viewer"}))).role == "viewer"


async def test_an_admin_elsewhere_is_one_here_only_by_the_claim(db: Database) -> None:
    people = outside(db)
    assert (await people.find(sent(role="admin", strata_role="admin"))).role == "member"
    assert (await people.find(sent(app={"role": "admin"}))).role == "admin"
    assert await refused(people, sent(app={"role": "root"})) == "invalid_token"
    assert await refused(people, sent(team="x" * 65)) == "invalid_token"


async def test_two_with_one_address_are_two(db: Database) -> None:
    people = outside(db)
    one = await people.find(sent("s-1", email="ann@example.com"))
    other = await people.find(sent("s-2", email="ANN@example.com"))
    assert one.id != other.id
    assert other.name == "s-2"


async def test_twenty_who_appear_at_once_are_one(db: Database) -> None:
    tokens = [sent(email="ann@example.com", team="blue", jti=str(number)) for number in range(20)]
    found = await asyncio.gather(*(outside(db).find(token) for token in tokens))
    assert len({one.id for one in found}) == 1
    assert len(await db.fetch("SELECT 1 FROM strata.users")) == 1


async def test_who_is_unknown_or_disabled_stays_outside(db: Database) -> None:
    assert await refused(outside(db, may_appear=False), sent()) == "account_unknown"
    await outside(db).find(sent())
    assert (await outside(db, may_appear=False).find(sent())).name == "s-1"
    await db.execute("UPDATE strata.users SET disabled_at = now()")
    assert await refused(outside(db), sent()) == "account_disabled"


async def test_budgets_of_a_person_and_the_team_bind_without_a_key(db: Database) -> None:
    people = outside(db)
    person = await people.find(sent(team="blue"))
    await db.execute(
        "INSERT INTO strata.budgets (scope, subject, limit_nano_usd) VALUES ('user', $1, 5), ('team', $2, 7)",
        person.id,
        person.team_id,
    )
    people.forget(person.id)
    bound = (await people.find(sent(team="blue", jti="another"))).budgets
    assert sorted((budget.scope, budget.limit_nano_usd) for budget in bound) == [("team", 7), ("user", 5)]


async def test_the_gate_admits_a_person_with_what_binds_each_key(db: Database) -> None:
    each = SharedLimit(scope="key", rpm=7)
    everybody = Budget("b", "global", "", 9)
    gate = Gate(
        Keyring(db, bytes(32), pepper_id="p"),
        Limits([each]),
        bytes(32),
        everybody=(everybody,),
        people=ours(db, Clock()),
    )
    user_id = await new_user(db)
    token = access(user_id)
    caller = await gate.admit([(b"authorization", b"Bearer " + token)])
    assert (caller.role, caller.user_id, caller.key_id, caller.name) == ("member", user_id, user_id, "ann@example.com")
    assert [(limit.id, limit.rpm) for limit in caller.limits] == [(f"key:{user_id}", 7)]
    assert caller.budgets == (everybody,)
    assert await gate.admit([(b"authorization", b"Bearer " + token)]) is caller
    assert await gate.admit([(b"x-api-key", access(user_id, at=time.time() - 60))]) is caller
    await db.execute("UPDATE strata.users SET role = 'admin'")
    assert (await gate.admit([(b"x-api-key", access(user_id, at=time.time() - 30))])).role == "admin"
