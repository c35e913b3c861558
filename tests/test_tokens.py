"""Tokens: which are believed, and every way in which one is not. The issuer outside is a real server on loopback."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from proxy.admission.accounts.signing_keys import PublishedKeys, SharedSecret, read_keys
from proxy.admission.accounts.tokens import Tokens, new_refresh, read_refresh
from proxy.admission.accounts.verifiers import Verifier, Verifiers
from proxy.errors import GatewayFault, Unauthenticated

ISSUER = "https://id.example.com"
PROJECT = "https://abc.supabase.co/auth/v1"
PERSON = "3f0c8f7e-8a53-4a5b-9a63-0d6c3a1b2c3d"
EC_KEY = ec.generate_private_key(ec.SECP256R1())
RSA_KEY = rsa.generate_private_key(65537, 2048)
OTHER_KEY = ec.generate_private_key(ec.SECP256R1())
PEM = RSA_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
LEGACY = b"a-legacy-secret-of-a-project-1234567890"


def public(key: Any, kid: str, **more: Any) -> dict[str, Any]:
    algorithm = "ES256" if isinstance(key, ec.EllipticCurvePrivateKey) else "RS256"
    shape: dict[str, Any] = jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key(), as_dict=True)
    return {**shape, "kid": kid, "use": "sig", **more}


class Issuer:
    """Serves its keys; `answer` is what the next fetches get."""

    def __init__(self) -> None:
        self.answer = b""
        self.fetches = 0
        self.publish(public(EC_KEY, "e"), public(RSA_KEY, "r"))

    def publish(self, *keys: dict[str, Any]) -> None:
        body = json.dumps({"keys": keys}).encode()
        self.answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.fetches += 1
        writer.write(self.answer)
        await writer.drain()
        writer.close()


class World:
    """The verifiers of a gateway that believes three issuers, and the clock of their keys."""

    def __init__(self, issuer: Issuer, url: str, http: httpx2.AsyncClient) -> None:
        self.issuer = issuer
        self.now = 1000.0
        self.keys = PublishedKeys(url, lambda: http, lambda: self.now)
        self.tokens = Tokens(lambda: bytes(range(32)))
        outside = Verifier(ISSUER, "strata", self.keys)
        project = Verifier(PROJECT, "authenticated", SharedSecret(LEGACY), supabase=True)
        self.verifiers = Verifiers([self.tokens.verifier(), outside, project])

    async def refused(self, token: str | bytes) -> str:
        with pytest.raises(Unauthenticated) as caught:
            await self.verifiers.verify(token if isinstance(token, bytes) else token.encode())
        assert caught.value.status == 401
        return str(caught.value.code)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    issuer = Issuer()
    server = await asyncio.start_server(issuer.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/jwks.json"
    async with httpx2.AsyncClient(trust_env=False) as http:
        yield World(issuer, url, http)
    server.close()


def claims(**more: Any) -> dict[str, Any]:
    now = int(time.time())
    said = {"iss": ISSUER, "aud": "strata", "sub": "ann", "iat": now, "exp": now + 600, **more}
    return {name: value for name, value in said.items() if value is not None}


def signed(key: Any = EC_KEY, algorithm: str = "ES256", kid: Any = "e", head: Any = None, **more: Any) -> str:
    return jwt.encode(claims(**more), key, algorithm, {**({"kid": kid} if kid is not None else {}), **(head or {})})


def pieces(head: dict[str, Any], said: Any, signature: bytes = b"") -> str:
    parts = (json.dumps(head).encode(), json.dumps(said).encode(), signature)
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def forged_with_the_public_key() -> str:
    import hmac  # noqa: PLC0415  (only what a forger needs)

    body = pieces({"alg": "HS256", "typ": "JWT", "kid": "r"}, claims()).rpartition(".")[0]
    seal = base64.urlsafe_b64encode(hmac.digest(PEM, body.encode(), "sha256")).rstrip(b"=").decode()
    return f"{body}.{seal}"


# made when a test begins: a token made while tests are collected is out of date when a long run comes to it
BAD: dict[str, Callable[[], str]] = {
    "alg none": lambda: pieces({"alg": "none", "kid": "e"}, claims()),
    "alg None in capitals": lambda: pieces({"alg": "NONE", "kid": "e"}, claims()),
    "HMAC with the public key": lambda: forged_with_the_public_key(),
    "HMAC under an elliptic key's id": lambda: signed(b"x" * 32, "HS256"),
    "another's key under a known id": lambda: signed(OTHER_KEY),
    "RSA under an elliptic key's id": lambda: signed(RSA_KEY, "RS256", "e"),
    "another algorithm of the same key": lambda: signed(RSA_KEY, "RS384", "r"),
    "an id that is a path": lambda: signed(kid="../../dev/null"),
    "an id that is SQL": lambda: signed(kid="' UNION SELECT 'x"),
    "an empty id": lambda: signed(kid=""),
    "no id, where there are two keys": lambda: signed(kid=None),
    "a key of its own": lambda: signed(OTHER_KEY, kid="own", head={"jwk": public(OTHER_KEY, "own")}),
    "an address of keys of its own": lambda: signed(OTHER_KEY, kid="own", head={"jku": "http://127.0.0.1:9/"}),
    "a critical extension": lambda: signed(head={"crit": ["b64"], "b64": True}),
    "another issuer": lambda: signed(iss="https://evil.example.com"),
    "our issuer, their key": lambda: signed(iss="strata"),
    "the issuer with a slash": lambda: signed(iss=f"{ISSUER}/"),
    "no issuer": lambda: signed(iss=None),
    "another audience": lambda: signed(aud="other"),
    "no audience": lambda: signed(aud=None),
    "expired": lambda: signed(iat=int(time.time()) - 900, exp=int(time.time()) - 60),
    "no expiry": lambda: signed(exp=None),
    "an expiry that is text": lambda: signed(exp="soon"),
    "good for two days": lambda: signed(exp=int(time.time()) + 2 * 86_400),
    "made in the future": lambda: signed(iat=int(time.time()) + 600, exp=int(time.time()) + 900),
    "no time of making": lambda: signed(iat=None),
    "not yet valid": lambda: signed(nbf=int(time.time()) + 600),
    "no subject": lambda: signed(sub=None),
    "an empty subject": lambda: signed(sub=""),
    "a subject with NUL": lambda: signed(sub="a\0b"),
    "a subject of 300 characters": lambda: signed(sub="x" * 300),
    "oversize": lambda: signed(pad="x" * 9000),
    "not JSON": lambda: "e30.e30.e30",
    "claims that are a list": lambda: pieces({"alg": "ES256", "kid": "e"}, []),
    "two parts": lambda: "a.b",
    "no ASCII": lambda: "é.é.é",
    "a signature cut off": lambda: signed().rpartition(".")[0] + ".",
}


@pytest.mark.parametrize("kind", BAD)
async def test_a_bad_token_is_refused(world: World, kind: str) -> None:
    code = await world.refused(BAD[kind]())
    assert code == ("token_expired" if kind == "expired" else "invalid_token")


async def test_a_good_token_is_believed_for_either_kind_of_key(world: World) -> None:
    for token in (signed(), signed(RSA_KEY, "RS256", "r"), signed(aud=["other", "strata"])):
        found = await world.verifiers.verify(token.encode())
        assert (found.issuer, found.subject) == (ISSUER, "ann")
    assert world.issuer.fetches == 1


async def test_without_an_id_the_only_key_counts(world: World) -> None:
    world.issuer.publish(public(EC_KEY, "e"))
    assert (await world.verifiers.verify(signed(kid=None).encode())).subject == "ann"


async def test_a_token_that_is_changed_by_one_bit_is_refused(world: World) -> None:
    token = bytearray(signed().encode())
    for place in (5, len(token) // 2, len(token) - 20):
        changed = bytearray(token)
        changed[place] = ord("A") if changed[place] != ord("A") else ord("B")
        assert await world.refused(bytes(changed)) == "invalid_token"


def supabase(**more: Any) -> str:
    said = claims(iss=PROJECT, aud="authenticated", role="authenticated", sub=PERSON)
    merged = {name: value for name, value in {**said, **more}.items() if value is not None}
    return jwt.encode(merged, LEGACY, "HS256")


NOBODY = {
    "the anon key": {"role": "anon"},
    "the service key": {"role": "service_role"},
    "no role": {"role": None},
    "an anonymous sign-in": {"is_anonymous": True},
    "a subject that is no UUID": {"sub": "ann"},
    "another audience": {"aud": "anon"},
}


@pytest.mark.parametrize("more", NOBODY.values(), ids=NOBODY)
async def test_supabase_tokens_of_nobody_are_refused(world: World, more: dict[str, Any]) -> None:
    assert await world.refused(supabase(**more)) == "invalid_token"
    assert (await world.verifiers.verify(supabase().encode())).subject == PERSON


async def test_unknown_keys_bring_about_one_fetch_in_ten_seconds(world: World) -> None:
    await world.verifiers.verify(signed().encode())
    stranger = signed(OTHER_KEY, kid="new")
    world.now += 10
    await asyncio.gather(*(world.refused(stranger) for _ in range(20)))
    assert world.issuer.fetches == 2
    world.issuer.publish(public(OTHER_KEY, "new"))
    world.now += 9
    assert await world.refused(stranger) == "invalid_token"
    world.now += 1
    assert (await world.verifiers.verify(stranger.encode())).subject == "ann"
    assert await world.refused(signed()) == "invalid_token"  # its key is no longer published
    assert world.issuer.fetches == 3


MISCHIEF = {
    "an error": b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n",
    "a redirect": b"HTTP/1.1 302 Go\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n",
    "no JSON": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nno",
    "no keys": b'HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n{"keys":[]}',
    "far too much": b"HTTP/1.1 200 OK\r\ncontent-length: 400000\r\n\r\n" + b" " * 400_000,
    "nothing": b"",
}


@pytest.mark.parametrize("answer", MISCHIEF.values(), ids=MISCHIEF)
async def test_the_last_good_keys_stay_for_an_hour(world: World, answer: bytes) -> None:
    await world.verifiers.verify(signed().encode())
    world.issuer.answer = answer
    world.now += 3600
    await world.keys.refresh()
    assert world.keys.failures_total == 1
    assert (await world.verifiers.verify(signed().encode())).subject == "ann"
    world.now += 11
    with pytest.raises(GatewayFault) as caught:
        await world.verifiers.verify(signed().encode())
    assert (caught.value.status, caught.value.code) == (503, "issuer_unavailable")


def test_secrets_and_weak_keys_in_a_key_set_are_not_used() -> None:
    weak = rsa.generate_private_key(65537, 1024)
    secret = {"kty": "oct", "k": "c2VjcmV0", "kid": "o", "alg": "HS256"}
    mixed = [public(EC_KEY, "e"), secret, public(weak, "w"), public(RSA_KEY, "enc", use="enc"),
             public(RSA_KEY, "hs", alg="HS256"), 5, {"kty": []}]  # fmt: skip
    assert list(read_keys(json.dumps({"keys": mixed}).encode())) == ["e"]


async def test_our_own_tokens_are_believed_by_their_key_only(world: World) -> None:
    token = world.tokens.access(PERSON, "s", 3, time.time())
    found = await world.verifiers.verify(token.encode())
    assert (found.subject, found.all["sid"], found.all["ver"]) == (PERSON, "s", 3)
    assert await world.refused(Tokens(lambda: bytes(32)).access(PERSON, "s", 3, time.time())) == "invalid_token"
    assert await world.refused(world.tokens.access(PERSON, "s", 3, time.time() - 1000)) == "token_expired"


def test_a_refresh_token_is_read_back_and_anything_else_is_not() -> None:
    made = new_refresh(PERSON)
    assert read_refresh(made.text) == made
    assert made.digest not in made.text.encode()
    for wrong in ("", made.text[:-1], made.text + "x", made.text.upper(), f" {made.text}", "a.b.c"):
        assert read_refresh(wrong) is None


def test_the_token_against_forged_requests_is_one_sessions() -> None:
    tokens = Tokens(lambda: bytes(32))
    assert tokens.same_forgery("s", tokens.forgery("s"))
    for wrong in ("", tokens.forgery("t"), "é", "\ud800", Tokens(lambda: bytes(31) + b"x").forgery("s")):
        assert not tokens.same_forgery("s", wrong)
