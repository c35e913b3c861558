"""Who is calling: every way to present a key, and what is said to those who present none that counts."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.admission import gate as gates
from proxy.admission import keys
from proxy.admission.gate import MASTER, Gate, KeptDigest, covers, permits
from proxy.admission.keyring import Keyring
from proxy.admission.limits import Limits
from proxy.config import Secret, SharedLimit, StaticKey
from proxy.errors import CallerError, GatewayError, PolicyError, Unauthenticated
from proxy.exchange import Budget, Caller
from proxy.storage.key_changes import StoredSecret
from proxy.storage.keys import KeyRow, insert_key, replace_secret, revoke_key
from proxy.storage.postgres import Database, Unavailable

PEPPER = b"p" * 32
KEY = keys.new_key(entropy=lambda n: bytes(range(n)))
OTHER = keys.new_key(entropy=lambda n: bytes(range(1, n + 1)))
BEARER = (b"authorization", b"Bearer " + KEY.encode())
MASTER_KEY = "sk-strata-admin-ünlikely"


class Clock:
    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def away() -> Database:
    return Database("postgresql://127.0.0.1:1/nowhere")


def gate_over(keyring: Keyring, clock: Clock | None = None) -> Gate:
    clock = clock or Clock()
    return Gate(
        keyring,
        Limits(),
        PEPPER,
        master_key=Secret(MASTER_KEY),
        wall_clock=clock,
    )


@pytest.fixture
def gate() -> Gate:
    """Knows one key, which the configuration owns; Postgres is away."""
    static = StaticKey(name="ci", key=Secret(KEY), models=("fast", "sim/*"), rpm=2, budget_nano_usd=5)
    return gate_over(Keyring(away(), PEPPER, static=(static,)))


async def refused(gate: Gate, *credentials: tuple[bytes, bytes]) -> GatewayError:
    with pytest.raises(GatewayError) as caught:
        await gate.admit(credentials)
    error = caught.value
    assert len(error.message) <= 200
    for _, value in credentials:
        secret = value.rpartition(b" ")[2].decode("utf-8", "replace")
        assert len(secret) < 12 or secret not in error.message
    return error


@pytest.mark.parametrize(
    "credentials",
    [
        [BEARER],
        [(b"authorization", b"bearer   " + KEY.encode() + b" ")],
        [(b"authorization", b"BEARER " + KEY.encode())],
        [(b"x-api-key", KEY.encode())],
        [(b"api-key", KEY.encode())],
        [BEARER, (b"x-api-key", KEY.encode()), (b"api-key", b"")],
    ],
)
async def test_a_key_is_found_in_every_header_that_clients_use(
    gate: Gate, credentials: list[tuple[bytes, bytes]]
) -> None:
    caller = await gate.admit(credentials)
    assert (caller.name, caller.models, caller.admin) == ("ci", ("fast", "sim/*"), False)
    assert [(limit.scope, limit.rpm, limit.tpm) for limit in caller.limits] == [("key", 2, None)]
    assert await gate.admit(credentials) is caller


@pytest.mark.parametrize(
    "credentials",
    [
        [BEARER, BEARER],
        [BEARER, (b"authorization", b"")],
        [BEARER, (b"x-api-key", OTHER.encode())],
        [(b"x-api-key", OTHER.encode()), BEARER],
        [(b"x-api-key", KEY.encode()), (b"api-key", OTHER.encode())],
        [(b"x-api-key", KEY.encode()), (b"x-api-key", OTHER.encode())],
        [(b"x-api-key", KEY.encode()), (b"authorization", b"Basic eDp5")],
    ],
)
async def test_two_credentials_are_refused_whichever_comes_first(
    gate: Gate, credentials: list[tuple[bytes, bytes]]
) -> None:
    error = await refused(gate, *credentials)
    assert isinstance(error, CallerError)
    assert (error.status, error.code) == (400, "ambiguous_credentials")


@pytest.mark.parametrize("credentials", [[], [(b"authorization", b"Bearer")], [(b"x-api-key", b" ")]])
async def test_no_key_is_told_how_to_send_one(gate: Gate, credentials: list[tuple[bytes, bytes]]) -> None:
    error = await refused(gate, *credentials)
    assert (error.status, error.code) == (401, "missing_api_key")
    assert 'Send "Authorization: Bearer sk-strata-…"' in error.message
    assert error.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("value", [b"Basic eDp5", KEY.encode(), b"Token " + KEY.encode()])
async def test_an_authorization_that_is_no_bearer_is_told_the_form(gate: Gate, value: bytes) -> None:
    error = await refused(gate, (b"authorization", value))
    assert (error.status, error.code) == (401, "invalid_api_key")
    assert "Bearer KEY" in error.message


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        ("sk-proj-" + "a" * 120, "That looks like an OpenAI key (sk-proj-…)"),
        ("sk-ant-api03-" + "a" * 80, "That looks like an Anthropic key (sk-ant-…)"),
        ("sk-or-v1-" + "a" * 64, "That looks like an OpenRouter key"),
        ("sk-" + "a" * 48, "the OpenAI key belongs in config.yaml under providers"),
        ("gsk_" + "a" * 50, "That looks like a Groq key"),
        ("xai-" + "a" * 50, "That looks like an xAI key"),
        ("AIza" + "a" * 35, "That looks like a Google key"),
        ("letmein-letmein", "This key is not known here. Keys of another gateway"),
        ("' OR '1'='1", "not known here"),
        ("x" * 8192, "not known here"),
        (KEY[:-1], "its checksum does not match"),
        (KEY[:-1] + "!", "its checksum does not match"),
        ("sk-strata-" + "x" * 9000, "its checksum does not match"),
    ],
)
async def test_what_cannot_be_a_key_is_refused_without_asking_postgres(gate: Gate, sent: str, says: str) -> None:
    error = await refused(gate, (b"x-api-key", sent.encode()))
    assert (error.status, error.code) == (401, "invalid_api_key")
    assert says in error.message


@given(st.binary(max_size=600))
def test_no_bytes_upset_the_gate(junk: bytes) -> None:
    gate = gate_over(Keyring(away(), PEPPER))
    for header in ((b"x-api-key", junk), (b"authorization", b"Bearer " + junk), (b"authorization", junk)):
        with pytest.raises(Unauthenticated):
            asyncio.run(gate.admit([header]))


async def test_the_stored_digest_of_a_key_is_no_key(gate: Gate) -> None:
    digest = keys.digest(KEY, PEPPER)
    for form in (digest, digest.hex().encode()):
        assert (await refused(gate, (b"x-api-key", form))).status == 401


async def test_the_master_key_is_an_admin_who_is_limited_by_nothing(gate: Gate) -> None:
    caller = await gate.admit([(b"authorization", b"Bearer " + MASTER_KEY.encode())])
    assert caller is MASTER
    assert (caller.admin, caller.budgets, caller.limits) == (True, (), ())
    gate.allow(caller, "anything/at/all")


async def test_what_limits_everybody_limits_the_master_key_too() -> None:
    everybody = Limits((SharedLimit(scope="global", rpm=5),))
    gate = Gate(Keyring(away(), PEPPER), everybody, PEPPER, master_key=Secret(MASTER_KEY))
    caller = await gate.admit([(b"authorization", b"Bearer " + MASTER_KEY.encode())])
    assert [(limit.id, limit.rpm) for limit in caller.limits] == [("global", 5)]
    assert gate.named == (), "nobody is limited by name"


async def test_callers_are_made_anew_when_it_is_known_who_is_behind_a_name() -> None:
    static = StaticKey(name="ci", key=Secret(KEY), rpm=2)
    gate = gate_over(Keyring(away(), PEPPER, static=(static,)))
    first = await gate.admit([BEARER])
    gate.bind_named({("team", "research"): "t"})
    assert await gate.admit([BEARER]) is not first
    second = await gate.admit([BEARER])
    gate.bind_named({("team", "research"): "t"})
    assert await gate.admit([BEARER]) is second


async def test_while_one_master_key_replaces_the_other_both_are_the_admins() -> None:
    newer = "sk-strata-admin-" + "n3wer" * 8
    older = "sk-strata-admin-" + "0ld3r" * 8
    both = Secret(f"{newer},{older}")
    gate = Gate(Keyring(away(), PEPPER), Limits(), PEPPER, master_key=both)
    for key in (newer, older):
        assert await gate.admit([(b"authorization", b"Bearer " + key.encode())]) is MASTER
    assert (await refused(gate, (b"x-api-key", both.reveal().encode()))).status == 401


async def test_without_a_master_key_there_is_no_admin() -> None:
    gate = Gate(Keyring(away(), PEPPER), Limits(), PEPPER, prefix="acme_")
    assert (await refused(gate, (b"x-api-key", b"None"))).status == 401
    assert "acme_…" in (await refused(gate)).message


async def test_an_unknown_key_while_postgres_is_away_is_a_503_and_never_a_401(gate: Gate) -> None:
    error = await refused(gate, (b"x-api-key", OTHER.encode()))
    assert isinstance(error, Unavailable)
    assert (error.status, error.headers["retry-after"]) == (503, "1")


async def test_a_known_key_does_not_make_the_request_wait(gate: Gate) -> None:
    with pytest.raises(StopIteration) as ended:
        gate.admit([BEARER]).send(None)
    assert ended.value.value.name == "ci"


async def test_a_key_of_the_configuration_has_one_identity_on_every_replica(gate: Gate) -> None:
    static = StaticKey(name="ci", key=Secret(OTHER), budget_nano_usd=7, budget_seconds=60)
    rotated = gate_over(Keyring(away(), PEPPER, static=(static,)))
    before, after = await gate.admit([BEARER]), await rotated.admit([(b"x-api-key", OTHER.encode())])
    assert before.key_id == after.key_id
    assert before.budgets == (Budget(before.budgets[0].id, "key", before.key_id, 5, None),)
    assert after.budgets == (Budget(before.budgets[0].id, "key", before.key_id, 7, 60),)


async def add_key(db: Database, key: str, name: str = "ci", expires_at: float | None = None) -> KeyRow:
    return await insert_key(
        db,
        name=name,
        digest=keys.digest(key, PEPPER),
        pepper_id="12345678",
        display=keys.display(key),
        models=["*"],
        rpm=None,
        expires_at=expires_at,
        budget_limit_nano_usd=10,
        budget_window_seconds=None,
    )


async def test_keys_in_postgres_are_admitted_until_they_are_revoked(db: Database) -> None:
    row = await add_key(db, KEY)
    gate = gate_over(Keyring(db, PEPPER))
    caller = await gate.admit([BEARER])
    assert (caller.key_id, caller.budgets[0].limit_nano_usd) == (row.id, 10)
    await revoke_key(db, "ci")
    fresh = gate_over(Keyring(db, PEPPER))
    error = await refused(fresh, BEARER)
    assert error.code == "key_revoked"
    now = time.gmtime()
    assert error.message.startswith('The key "ci" was revoked on ') and str(now.tm_year) in error.message


async def test_a_kept_digest_says_nothing_of_what_its_key_is_worth_now(db: Database) -> None:
    clock, kept = Clock(), KeptDigest()
    await add_key(db, KEY, expires_at=clock.now + 1)
    gate = gate_over(Keyring(db, PEPPER), clock)
    for _ in range(2):
        assert (await gate.admit([BEARER], kept)).name == "ci"
    assert kept.digest == keys.digest(KEY, PEPPER)
    clock.now += 1
    with pytest.raises(Unauthenticated, match="expired"):
        await gate.admit([BEARER], kept)


async def test_a_kept_digest_is_made_anew_when_the_pepper_changes() -> None:
    keyring, kept = Keyring(away(), PEPPER, static=[StaticKey(name="ci", key=Secret(KEY))]), KeptDigest()
    gate = gate_over(keyring)
    assert (await gate.admit([BEARER], kept)).name == "ci"
    keyring.use_pepper(b"q" * 32, "other")
    gate.use_pepper(b"q" * 32)
    assert (await gate.admit([BEARER], kept)).name == "ci"


async def test_a_kept_digest_does_not_let_a_stranger_in(gate: Gate) -> None:
    kept = KeptDigest()
    for _ in range(2):
        with pytest.raises(Unauthenticated, match="checksum"):
            await gate.admit([(b"x-api-key", KEY[:-1].encode() + b"!")], kept)
    with pytest.raises(Unauthenticated, match="No API key"):
        await gate.admit([], KeptDigest())


async def test_the_master_key_is_known_again(gate: Gate) -> None:
    kept, credentials = KeptDigest(), [(b"authorization", f"Bearer {MASTER_KEY}".encode())]
    assert [await gate.admit(credentials, kept) for _ in range(2)] == [MASTER, MASTER]


async def test_an_expired_key_is_refused_from_the_second_on_in_which_it_expires(db: Database) -> None:
    clock = Clock()
    await add_key(db, KEY, expires_at=clock.now + 1)
    gate = gate_over(Keyring(db, PEPPER), clock)
    assert (await gate.admit([BEARER])).name == "ci"
    clock.now += 1
    error = await refused(gate, BEARER)
    assert error.code == "key_expired"
    assert error.message.startswith('The key "ci" expired on 14 Nov 2023.')


async def test_a_key_that_postgres_does_not_know_is_named_by_its_display_form(db: Database) -> None:
    error = await refused(gate_over(Keyring(db, PEPPER)), (b"x-api-key", OTHER.encode()))
    assert error.code == "invalid_api_key"
    assert error.message.startswith(f"This key is not known here: {keys.display(OTHER)}. ")


async def test_callers_are_remembered_up_to_a_bound(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "MAX_CALLERS", 1)
    static = [StaticKey(name=name, key=Secret(key)) for name, key in (("a", KEY), ("b", OTHER))]
    gate = gate_over(Keyring(away(), PEPPER, static=static))
    first = await gate.admit([BEARER])
    await gate.admit([(b"x-api-key", OTHER.encode())])
    assert await gate.admit([BEARER]) == first
    assert len(gate._callers) == 1


def caller(*models: str) -> Caller:
    return Caller("k", "ci", "sk-strata-…", models=models)


@pytest.mark.parametrize(
    ("models", "model", "allowed"),
    [
        (("*",), "anything", True),
        (("fast",), "fast", True),
        (("fast",), "faster", False),
        (("fast",), "Fast", False),
        (("sim/*",), "sim/echo", True),
        (("sim/*",), "sim/a/b", True),
        (("sim/*",), "sim", False),
        (("sim/*",), "xsim/echo", False),
        (("*-mini",), "gpt-5-mini", True),
        (("*-mini",), "gpt-5-mini-2", False),
        (("gpt-*-mini",), "gpt-5-mini", True),
        (("gpt-*-mini",), "gpt-mini", False),
        (("a*b*c",), "aXbYc", True),
        (("a*b*c",), "aXYc", False),
        (("ab*ba",), "aba", False),
        (("a?c",), "abc", False),
        ((), "fast", False),
        (("fast", "sim/*"), "sim/echo", True),
    ],
)
def test_patterns_know_only_the_star(models: tuple[str, ...], model: str, allowed: bool) -> None:
    assert permits(caller(*models), model) is allowed


@pytest.mark.parametrize(
    ("models", "listed"),
    [
        ((), "no model"),
        (("fast",), "fast"),
        (("fast", "smart", "sim/*"), "fast, smart and sim/*"),
        (tuple("abcdefg"), "a, b, c, d, e and 2 more"),
    ],
)
def test_a_model_that_is_not_allowed_is_refused_with_those_that_are(
    gate: Gate, models: tuple[str, ...], listed: str
) -> None:
    with pytest.raises(PolicyError) as caught:
        gate.allow(caller(*models), "m" * 100)
    error = caught.value
    assert (error.status, error.code, error.type) == (403, "model_not_allowed", "permission_error")
    assert error.message == f'The key "ci" may use {listed}, not "{"m" * 63}…". Ask its owner to add it.'


def test_a_pattern_covers_another_only_if_it_covers_all_of_it() -> None:
    assert covers(("sim/*",), "sim/*")
    assert covers(("sim/*",), "sim/a*b")
    assert covers(("*a*",), "ba*")
    assert covers(("*",), "**")
    assert not covers(("sim/a*",), "sim/*")
    assert not covers(("a*b",), "a*")
    assert not covers(("a",), "a*")
    assert not covers((), "*")


@given(st.lists(st.text("ab*", max_size=5), max_size=3), st.text("ab*", max_size=5), st.text("ab", max_size=6))
def test_what_a_covered_pattern_lets_through_the_covering_ones_let_through(
    patterns: list[str], pattern: str, model: str
) -> None:
    if covers(tuple(patterns), pattern) and covers((pattern,), model):
        assert covers(tuple(patterns), model)


async def test_uses_are_gathered_until_somebody_takes_them(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    caller = await gate.admit([BEARER])
    await refused(gate, (b"authorization", b"Bearer " + OTHER.encode()))
    assert gate.take_uses() == {caller.key_id: Clock.now}
    assert gate.take_uses() == {}
    gate.put_back({caller.key_id: 1.0, "other": 2.0})
    await gate.admit([BEARER])
    assert gate.take_uses() == {caller.key_id: Clock.now, "other": 2.0}
    monkeypatch.setattr(gates, "MAX_CALLERS", 0)
    await gate.admit([BEARER])
    assert gate.take_uses() == {}


async def test_during_a_rotation_both_secrets_are_the_same_caller(db: Database) -> None:
    keyring = Keyring(db, PEPPER)
    clock = Clock()
    row = await insert_key(
        db,
        name="k",
        digest=keys.digest(KEY, PEPPER),
        pepper_id="",
        display="",
        models=["*"],
        rpm=None,
        expires_at=None,
        budget_limit_nano_usd=5,
        budget_window_seconds=None,
    )
    changed = await replace_secret(db, "k", StoredSecret(keys.digest(OTHER, PEPPER), "", "sk"), 3600)
    assert changed is not None
    clock.now = changed.rotated_at or 0.0
    gate = gate_over(keyring, clock)
    callers = [await gate.admit([(b"x-api-key", key.encode())]) for key in (KEY, OTHER, KEY, OTHER)]
    assert {caller.key_id for caller in callers} == {row.id}
    assert callers[0] == callers[1]
    assert callers[0] is callers[2]
    clock.now += 3601
    assert (await refused(gate, BEARER)).code == "key_rotated"
