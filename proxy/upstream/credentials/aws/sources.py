"""
Where a machine's own AWS credentials come from, in the order in which AWS's own SDKs ask: web identity, the files of
the command line, the container's endpoint, the instance's metadata.

A source that is not there says None and the next is asked; one that is there and fails says why and ends the search.
Each answer is short, and each wait is bounded.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx2
import msgspec

from proxy.config.providers import is_loopback
from proxy.upstream.credentials.aws.profiles import Profile, read_profile
from proxy.upstream.credentials.aws.signing import Keys
from proxy.upstream.credentials.renewal import unauthorised

MAX_ANSWER_BYTES = 65_536
METADATA_SECONDS = 2.0
"""A machine without a metadata service often does not answer at all."""
STS_SECONDS = 8.0
REREAD_SECONDS = 600.0
"""Keys in a file may be replaced there at any time."""
METADATA = "http://169.254.169.254"
CONTAINER = "http://169.254.170.2"
CONTAINER_HOSTS = frozenset({"169.254.170.2", "169.254.170.23", "fd00:ec2::23"})
TOKEN_TTL_SECONDS = 21_600

Found = tuple[Keys, float | None]
"""Keys, and the moment of their end."""


class Machine(NamedTuple):
    """What the sources look at."""

    environ: Mapping[str, str]
    region: str
    now: float


async def search(machine: Machine) -> Found:
    """Raises UpstreamError with the fix where nothing is found."""
    for source in (web_identity, default_profile, container, instance):
        found = await source(machine)
        if found is not None:
            return found
    raise unauthorised(
        "There are no AWS credentials: set AWS_BEARER_TOKEN_BEDROCK, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
        "or name a profile. Web identity, a usable default profile, a container's or an instance's role: none is here."
    )


async def web_identity(machine: Machine) -> Found | None:
    """Kubernetes' service accounts, and others that AWS trusts to say who we are."""
    role, file = machine.environ.get("AWS_ROLE_ARN"), machine.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE")
    if not role or not file:
        return None
    return await assume_role(machine, role, file, machine.environ.get("AWS_ROLE_SESSION_NAME"))


async def assume_role(machine: Machine, role: str, token_file: str, session: str | None) -> Found:
    """https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html"""
    token = await _read_token(token_file)
    endpoint = machine.environ.get("AWS_ENDPOINT_URL_STS") or f"https://sts.{machine.region}.amazonaws.com"
    if not _private(endpoint):
        raise unauthorised("AWS_ENDPOINT_URL_STS must begin with https://: a token would travel unencrypted.")
    form = {"Action": "AssumeRoleWithWebIdentity", "Version": "2011-06-15", "RoleArn": role,
            "RoleSessionName": session or "strata", "WebIdentityToken": token}  # fmt: skip
    try:
        status, body = await _ask("POST", endpoint, seconds=STS_SECONDS, form=form)
    except (httpx2.HTTPError, TimeoutError) as error:
        raise unauthorised(f"AWS STS could not be reached ({type(error).__name__}).") from None
    text = body.decode("utf-8", "replace")
    if status != 200:
        code = re.search(r"<Code>([A-Za-z.]{1,64})</Code>", text)
        said = f": {code[1]}" if code else ""
        raise unauthorised(f"AWS STS refused the web identity ({status}{said}). Check the role's trust policy.")
    names = ("AccessKeyId", "SecretAccessKey", "SessionToken", "Expiration")
    values = {name: found[1] for name in names if (found := re.search(rf"<{name}>\s*([^<\s]+)\s*</{name}>", text))}
    return _keys(values, "AWS STS")


async def default_profile(machine: Machine) -> Found | None:
    """AWS_PROFILE, or `default`, which may be there for other reasons and then is passed over."""
    name = machine.environ.get("AWS_PROFILE", "").strip()
    if name:
        return await named_profile(machine, name)
    profile = await asyncio.to_thread(read_profile, "default", machine.environ)
    return await _of(profile, machine) if profile is not None else None


async def named_profile(machine: Machine, name: str) -> Found:
    """Raises UpstreamError where it is not there or holds nothing that can be used."""
    profile = await asyncio.to_thread(read_profile, name, machine.environ)
    if profile is None:
        raise unauthorised(f'There is no AWS profile "{name}" in ~/.aws/config or ~/.aws/credentials.')
    found = await _of(profile, machine)
    if found is None:
        raise unauthorised(profile.refusal())
    return found


async def _of(profile: Profile, machine: Machine) -> Found | None:
    settings = profile.settings
    key, secret = settings.get("aws_access_key_id"), settings.get("aws_secret_access_key")
    if key and secret:
        return Keys(key, secret, settings.get("aws_session_token", "")), machine.now + REREAD_SECONDS
    role, token_file = settings.get("role_arn"), settings.get("web_identity_token_file")
    if role and token_file:
        return await assume_role(machine, role, token_file, settings.get("role_session_name"))
    return None


async def container(machine: Machine) -> Found | None:
    """ECS tasks, EKS pod identity and Greengrass say where to ask."""
    environ = machine.environ
    relative, full = (environ.get(f"AWS_CONTAINER_CREDENTIALS_{kind}_URI") for kind in ("RELATIVE", "FULL"))
    if not relative and not full:
        return None
    url = f"{CONTAINER}{relative}" if relative else str(full)
    if not _private(url) and urlsplit(url).hostname not in CONTAINER_HOSTS:
        raise unauthorised("AWS_CONTAINER_CREDENTIALS_FULL_URI is neither https nor an address of this machine's host.")
    token = environ.get("AWS_CONTAINER_AUTHORIZATION_TOKEN", "").strip()
    if environ.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"):
        token = await _read_token(environ["AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"])
    try:
        status, body = await _ask("GET", url, headers={"authorization": token} if token else {})
    except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError) as error:
        raise unauthorised(f"The container's credentials endpoint did not answer ({type(error).__name__}).") from None
    if status != 200:
        raise unauthorised(f"The container's credentials endpoint answered {status}. Check the task's or pod's role.")
    return _keys(_decode(body), "The container's credentials endpoint")


async def instance(machine: Machine) -> Found | None:
    """Version 2 of EC2's metadata service: a token first, so that nobody can be tricked into asking for us."""
    environ = machine.environ
    if environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return None
    base = (environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or METADATA).rstrip("/")
    path = f"{base}/latest/meta-data/iam/security-credentials/"
    try:
        lifetime = {"x-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_TTL_SECONDS)}
        status, token = await _ask("PUT", f"{base}/latest/api/token", headers=lifetime)
        if status != 200:
            return None
        headers = {"x-aws-ec2-metadata-token": token.decode("ascii")}
        status, role = await _ask("GET", path, headers=headers)
        if status != 200 or not role.strip():
            return None
        status, body = await _ask("GET", path + role.decode().split()[0], headers=headers)
    except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError, UnicodeDecodeError):
        return None
    if status != 200:
        raise unauthorised(f"The instance's metadata service answered {status} for its role.")
    return _keys(_decode(body), "The instance's metadata service")


async def _ask(
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    form: Mapping[str, str] | None = None,
    seconds: float | None = None,
) -> tuple[int, bytes]:
    """Asks directly: no proxy of the environment may see what comes back."""
    seconds = seconds or METADATA_SECONDS
    async with (
        asyncio.timeout(seconds),
        httpx2.AsyncClient(timeout=seconds, trust_env=False, follow_redirects=False) as http,
        http.stream(method, url, headers=headers, data=form) as response,
    ):
        body = b""
        async for piece in response.aiter_bytes():
            body += piece
            if len(body) > MAX_ANSWER_BYTES:
                raise httpx2.DecodingError("too long to be credentials")
        return response.status_code, body


def _keys(said: Mapping[str, Any], who: str) -> Found:
    key, secret = said.get("AccessKeyId"), said.get("SecretAccessKey")
    token = said.get("Token") or said.get("SessionToken") or ""
    try:
        ends = datetime.fromisoformat(said["Expiration"]).timestamp() if said.get("Expiration") else None
    except (TypeError, ValueError):
        ends = 0.0
    if (
        not all(isinstance(value, str) and value for value in (key, secret))
        or not isinstance(token, str)
        or ends == 0.0
    ):
        raise unauthorised(f"{who} sent something that is no credentials.")
    return Keys(str(key), str(secret), token), ends


def _decode(body: bytes) -> dict[str, Any]:
    try:
        native = msgspec.json.decode(body)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return {}
    return native if isinstance(native, dict) else {}


async def _read_token(file: str) -> str:
    """Read anew each time: whoever wrote it renews it."""
    try:
        token = (await asyncio.to_thread(Path(file).read_text)).strip()
    except (OSError, ValueError) as error:
        raise unauthorised(f"The token file {file} cannot be read ({type(error).__name__}).") from None
    if not token.isprintable():
        raise unauthorised(f"The token file {file} holds more than one line.")
    return token


def _private(url: str) -> bool:
    """Nobody on the way can read along."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))
