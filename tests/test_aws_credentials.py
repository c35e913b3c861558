"""Where AWS credentials come from, against endpoints on real sockets; when they are renewed; what is said without."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import msgspec
import pytest

from proxy.config import Provider, Secret
from proxy.errors import UpstreamError
from proxy.providers import Target
from proxy.upstream.accounts import Account
from proxy.upstream.credentials import Credential, Outgoing, Surroundings, authorise
from proxy.upstream.credentials.aws import sources
from proxy.upstream.credentials.renewal import EARLY_SECONDS, FETCH_SECONDS, PAUSE_SECONDS, Renewal, unauthorised
from tests.place import Place, opened

REQUEST = Outgoing("POST", "bedrock-runtime.eu-west-1.amazonaws.com", "/model/m/converse", {}, b"{}")
SECRET = "wJalrXUtnFEMI-a-secret"


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    async with opened() as found:
        yield found


def document(key: str = "ASIA1", *, seconds: float = 3_600, **more: Any) -> bytes:
    ends = datetime.fromtimestamp(time.time() + seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    said = {"Code": "Success", "AccessKeyId": key, "SecretAccessKey": SECRET, "Token": "tok", "Expiration": ends}
    return msgspec.json.encode(said | more)


def credential(environ: dict[str, str], *, profile: str = "", clock: Any = time.time, **secrets: str) -> Credential:
    provider = Provider(
        name="aws",
        api="bedrock",
        api_base="https://bedrock-runtime.eu-west-1.amazonaws.com",
        options={"region": "eu-west-1"} | ({"profile": profile} if profile else {}),
        secrets={name: Secret(value) for name, value in secrets.items()},
    )
    nowhere = {"AWS_EC2_METADATA_DISABLED": "true", "HOME": "/nonexistent"}
    found = authorise("aws", provider, Surroundings(environ=nowhere | environ, wall_clock=clock))
    assert not isinstance(found, Mapping)
    return found


async def signer(one: Credential) -> tuple[str, str]:
    """Whose key signs, and with which token."""
    headers = await one.headers(REQUEST)
    await one.close()
    whose = headers["authorization"].partition("Credential=")[2].partition("/")[0]
    assert "/eu-west-1/bedrock/aws4_request" in headers["authorization"]
    return whose, headers.get("x-amz-security-token", "")


async def refusal(one: Credential) -> str:
    with pytest.raises(UpstreamError) as refused:
        await one.headers(REQUEST)
    await one.close()
    error = refused.value
    assert (error.error_type, error.code, error.sent) == ("provider_auth", "provider_auth", False)
    assert SECRET not in error.message and "tok" not in error.message.split()
    return error.message


def test_a_bearer_key_is_a_header_made_once() -> None:
    for fields in ({"api_key": Secret("bedrock-key")}, {"secrets": {"api_key": Secret("bedrock-key")}}):
        provider = Provider(name="aws", api="bedrock", api_base="https://h", **fields)
        assert authorise("aws", provider, Surroundings(environ={})) == {"authorization": "Bearer bedrock-key"}


async def test_a_key_pair_of_the_configuration_signs() -> None:
    pair = {"access_key_id": "AKIA1", "secret_access_key": SECRET}
    assert await signer(credential({}, **pair)) == ("AKIA1", "")
    assert await signer(credential({}, **pair, session_token="tok")) == ("AKIA1", "tok")


@pytest.mark.parametrize(
    ("half", "missing"), [("access_key_id", "secret_access_key"), ("secret_access_key", "access_key_id")]
)
async def test_half_a_pair_is_told_apart(half: str, missing: str) -> None:
    assert f"{missing} is missing" in await refusal(credential({}, **{half: SECRET}))


async def test_with_nothing_at_all_the_fix_is_told() -> None:
    assert "set AWS_BEARER_TOKEN_BEDROCK, or AWS_ACCESS_KEY_ID" in await refusal(credential({}))


FILES = {
    "config": """
[default]
region = us-west-1
s3 =
  max_concurrent_requests = 20
[profile work]
region = eu-west-1
[profile sso]
sso_session = corp
[profile program]
credential_process = /usr/bin/true
[profile chained]
role_arn = arn:aws:iam::123456789012:role/r
source_profile = work
[profile empty]
region = eu-west-1
""",
    "credentials": f"[work]\naws_access_key_id = AKIAWORK\naws_secret_access_key = {SECRET}\naws_session_token = tok\n",
}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / ".aws").mkdir()
    for name, text in FILES.items():
        (tmp_path / ".aws" / name).write_text(text)
    return tmp_path


async def test_a_profile_of_the_configuration_comes_before_everything_else(home: Path) -> None:
    environ = {"HOME": str(home), "AWS_PROFILE": "sso"}
    one = credential(environ, profile="work", api_key="bedrock-key", access_key_id="AKIA1", secret_access_key=SECRET)
    assert await signer(one) == ("AKIAWORK", "tok")


async def test_the_profile_of_the_environment_and_the_default_one_come_last(home: Path) -> None:
    assert await signer(credential({"HOME": str(home), "AWS_PROFILE": "work"})) == ("AKIAWORK", "tok")
    other = home / "elsewhere"
    other.write_text(f"[default]\naws_access_key_id = AKIADEF\naws_secret_access_key = {SECRET}\n")
    environ = {"HOME": str(home), "AWS_SHARED_CREDENTIALS_FILE": str(other)}
    assert await signer(credential(environ)) == ("AKIADEF", "")


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        ("sso", "needs a sign-in (SSO)"),
        ("program", "runs a program"),
        ("chained", "assumes a role by another profile"),
        ("empty", "holds no access key"),
        ("nobody", "There is no AWS profile"),
    ],
)
async def test_a_profile_that_cannot_be_used_says_why(home: Path, profile: str, said: str) -> None:
    message = await refusal(credential({"HOME": str(home)}, profile=profile))
    assert said in message and f'"{profile}"' in message


async def test_a_default_profile_without_keys_is_passed_over(home: Path) -> None:
    assert "There are no AWS credentials" in await refusal(credential({"HOME": str(home)}))


async def test_a_broken_file_is_named(home: Path) -> None:
    (home / ".aws" / "credentials").write_text(f"aws_secret_access_key = {SECRET}\n")
    assert "credentials cannot be read (MissingSectionHeaderError)" in await refusal(
        credential({"HOME": str(home)}, profile="work")
    )


STS = """<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>
<AccessKeyId>ASIASTS</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey><SessionToken>tok</SessionToken>
<Expiration>{ends}</Expiration></Credentials></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"""


def identity(place: Place, folder: Path, *, token: str = "jwt.of.ours\n") -> dict[str, str]:
    (folder / "token").write_text(token)
    return {
        "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/gateway",
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(folder / "token"),
        "AWS_ENDPOINT_URL_STS": place.url,
    }


async def test_a_web_identity_becomes_a_role(place: Place, tmp_path: Path) -> None:
    place.answers["POST /"] = (200, STS.format(secret=SECRET, ends="2099-01-01T00:00:00Z").encode())
    assert await signer(credential(identity(place, tmp_path))) == ("ASIASTS", "tok")
    ((_, headers, body),) = place.asked
    form = parse_qs(body.decode())
    assert form["Action"] == ["AssumeRoleWithWebIdentity"] and form["WebIdentityToken"] == ["jwt.of.ours"]
    assert form["RoleSessionName"] == ["strata"] and "authorization" not in headers


async def test_a_profile_may_name_a_web_identity(place: Place, home: Path) -> None:
    place.answers["POST /"] = (200, STS.format(secret=SECRET, ends="2099-01-01T00:00:00Z").encode())
    environ = identity(place, home)
    role, file = environ.pop("AWS_ROLE_ARN"), environ.pop("AWS_WEB_IDENTITY_TOKEN_FILE")
    with (home / ".aws" / "config").open("a") as config:
        config.write(f"[profile pod]\nrole_arn = {role}\nweb_identity_token_file = {file}\n")
    assert await signer(credential({**environ, "HOME": str(home)}, profile="pod")) == ("ASIASTS", "tok")


async def test_what_sts_refuses_is_told_by_its_code(place: Place, tmp_path: Path) -> None:
    place.answers["POST /"] = (403, b"<Error><Code>AccessDenied</Code><Message>secret things</Message></Error>")
    message = await refusal(credential(identity(place, tmp_path)))
    assert "(403: AccessDenied)" in message and "secret things" not in message


@pytest.mark.parametrize("answer", [b"", b"<x/>", STS.format(secret=SECRET, ends="tomorrow").encode(), b"x" * 70_000])
async def test_an_answer_that_is_no_credentials_is_none(place: Place, tmp_path: Path, answer: bytes) -> None:
    place.answers["POST /"] = (200, answer)
    assert "AWS STS" in await refusal(credential(identity(place, tmp_path)))


async def test_a_token_goes_nowhere_in_the_open(place: Place, tmp_path: Path) -> None:
    environ = identity(place, tmp_path) | {"AWS_ENDPOINT_URL_STS": "http://sts.example.com"}
    assert "must begin with https://" in await refusal(credential(environ))
    two_lines = identity(place, tmp_path, token="one\ntwo")
    assert "more than one line" in await refusal(credential(two_lines))
    gone = identity(place, tmp_path) | {"AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "gone")}
    assert "cannot be read (FileNotFoundError)" in await refusal(credential(gone))
    assert place.asked == []


async def test_a_container_asks_its_endpoint(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place.answers["GET /v2/creds"] = (200, document())
    (tmp_path / "token").write_text("pod-token")
    full = {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{place.url}/v2/creds"}
    file = {"AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(tmp_path / "token")}
    assert await signer(credential({**full, **file})) == ("ASIA1", "tok")
    assert await signer(credential({**full, "AWS_CONTAINER_AUTHORIZATION_TOKEN": "ours"})) == ("ASIA1", "tok")
    monkeypatch.setattr(sources, "CONTAINER", place.url)
    assert await signer(credential({"AWS_CONTAINER_CREDENTIALS_RELATIVE_URI": "/v2/creds"})) == ("ASIA1", "tok")
    assert [headers.get("authorization") for _, headers, _ in place.asked] == ["pod-token", "ours", None]


async def test_a_container_whose_endpoint_fails_says_so(place: Place) -> None:
    full = "AWS_CONTAINER_CREDENTIALS_FULL_URI"
    assert "answered 404" in await refusal(credential({full: f"{place.url}/gone"}))
    assert "neither https nor" in await refusal(credential({full: "http://example.com/creds"}))
    place.answers["GET /v2/creds"] = (200, b"[]")
    assert "no credentials" in await refusal(credential({full: f"{place.url}/v2/creds"}))
    assert "did not answer" in await refusal(credential({full: "http://127.0.0.1:1/creds"}))


IMDS = "/latest/meta-data/iam/security-credentials/"


def instance(place: Place, role: bytes = b"gateway-role") -> dict[str, str]:
    place.answers["PUT /latest/api/token"] = (200, b"metadata-token")
    place.answers[f"GET {IMDS}"] = (200, role)
    place.answers[f"GET {IMDS}gateway-role"] = (200, document())
    return {"AWS_EC2_METADATA_DISABLED": "false", "AWS_EC2_METADATA_SERVICE_ENDPOINT": place.url}


async def test_an_instance_asks_its_metadata_with_a_token(place: Place) -> None:
    assert await signer(credential(instance(place))) == ("ASIA1", "tok")
    put, *gets = place.asked
    assert put[1]["x-aws-ec2-metadata-token-ttl-seconds"] == "21600"
    assert [headers["x-aws-ec2-metadata-token"] for _, headers, _ in gets] == ["metadata-token"] * 2


async def test_an_instance_without_a_role_is_none_and_a_broken_one_says_so(place: Place) -> None:
    assert "There are no AWS credentials" in await refusal(credential(instance(place, role=b"")))
    environ = instance(place)
    place.answers[f"GET {IMDS}gateway-role"] = (500, b"")
    assert "answered 500" in await refusal(credential(environ))
    place.answers["PUT /latest/api/token"] = (403, b"")
    assert "There are no AWS credentials" in await refusal(credential(environ))


async def test_a_metadata_service_that_never_answers_is_not_waited_for(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "METADATA_SECONDS", 0.2)
    place.silent = True
    began = time.monotonic()
    assert "There are no AWS credentials" in await refusal(credential(instance(place)))
    assert time.monotonic() - began < 2


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Tokens:
    """Something that gives a new token each time, for an hour; or fails."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.given = 0
        self.lifetime: float | None = 3_600.0
        self.error: Exception | None = None
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()

    async def fetch(self) -> tuple[int, float | None]:
        self.given += 1
        given = self.given
        await self.may_go_on.wait()
        if self.error is not None:
            raise self.error
        return given, None if self.lifetime is None else self.clock.now + self.lifetime


async def test_a_token_is_fetched_once_however_many_wait() -> None:
    clock = Clock()
    tokens = Tokens(clock)
    renewal = Renewal(tokens.fetch, clock)
    assert await asyncio.gather(*(renewal.current() for _ in range(20))) == [1] * 20
    clock.now += 3_600 - EARLY_SECONDS - 1
    assert await renewal.current() == 1
    assert tokens.given == 1


async def test_it_is_renewed_early_and_nobody_waits() -> None:
    clock = Clock()
    tokens = Tokens(clock)
    renewal = Renewal(tokens.fetch, clock)
    await renewal.current()
    clock.now += 3_600 - EARLY_SECONDS + 1
    tokens.may_go_on.clear()
    assert [await renewal.current() for _ in range(5)] == [1] * 5, "the old one is still good"
    await asyncio.sleep(0)
    assert tokens.given == 2, "and one fetch is under way"
    tokens.may_go_on.set()
    await renewal.close()
    assert await renewal.current() == 2


async def test_nothing_is_used_to_its_last_second() -> None:
    clock = Clock()
    tokens = Tokens(clock)
    renewal = Renewal(tokens.fetch, clock)
    await renewal.current()
    clock.now += 3_600 - 1
    assert await renewal.current() == 2


async def test_a_failed_renewal_is_tried_again_after_a_pause_and_then_told() -> None:
    clock = Clock()
    tokens = Tokens(clock)
    renewal = Renewal(tokens.fetch, clock)
    await renewal.current()
    tokens.error = unauthorised("No.")
    clock.now += 3_600 - EARLY_SECONDS + 1
    for _ in range(3):
        assert await renewal.current() == 1
        await renewal.close()
    assert tokens.given == 2, "within the pause nobody asks again"
    clock.now += PAUSE_SECONDS
    assert await renewal.current() == 1
    await renewal.close()
    assert tokens.given == 3
    clock.now += EARLY_SECONDS
    with pytest.raises(UpstreamError, match=r"No\."):
        await renewal.current()
    tokens.error = None
    assert await renewal.current() == 5


async def test_what_never_ends_is_never_fetched_again() -> None:
    clock = Clock()
    tokens = Tokens(clock)
    tokens.lifetime = None
    renewal = Renewal(tokens.fetch, clock)
    await renewal.current()
    clock.now += 10**9
    assert await renewal.current() == 1


async def test_a_fetch_is_bounded_and_its_bugs_are_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.upstream.credentials.renewal.FETCH_SECONDS", 0.05)
    clock = Clock()
    tokens = Tokens(clock)
    tokens.may_go_on.clear()
    with pytest.raises(UpstreamError, match="did not come within"):
        await Renewal(tokens.fetch, clock).current()
    tokens.may_go_on.set()
    tokens.error = KeyError(SECRET)
    with pytest.raises(UpstreamError, match=r"could not be fetched \(KeyError\)"):
        await Renewal(tokens.fetch, clock).current()
    assert FETCH_SECONDS > sources.METADATA_SECONDS * 3, "an instance has to be asked three times"


async def test_a_waiter_that_leaves_takes_nobody_with_it() -> None:
    clock = Clock()
    tokens = Tokens(clock)
    tokens.may_go_on.clear()
    renewal = Renewal(tokens.fetch, clock)
    leaving, staying = asyncio.create_task(renewal.current()), asyncio.create_task(renewal.current())
    await asyncio.sleep(0)
    leaving.cancel()
    tokens.may_go_on.set()
    assert await staying == 1


async def test_an_account_signs_what_it_sends(place: Place) -> None:
    place.answers["POST /model/m%3A1/converse"] = (200, b"{}")
    pair = {"access_key_id": Secret("AKIA1"), "secret_access_key": Secret(SECRET)}
    provider = Provider(name="aws", api="bedrock", api_base=place.url, options={"region": "eu-west-1"}, secrets=pair)
    account = Account(provider, surroundings=Surroundings(environ={}))
    request = account.translator.encode_request(
        {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}, Target("m:1")
    )
    deadline = time.monotonic() + 5
    response = await account.send(request, msgspec.json.encode(request.body), {}, connect_seconds=2, deadline=deadline)
    assert await response.read_all(deadline) == b"{}"
    await account.close()
    ((line, headers, _),) = place.asked
    assert line == "POST /model/m%3A1/converse"
    assert headers["authorization"].startswith("AWS4-HMAC-SHA256 Credential=AKIA1/")
    assert "SignedHeaders=host;x-amz-date," in headers["authorization"] and headers["x-amz-date"].endswith("Z")
