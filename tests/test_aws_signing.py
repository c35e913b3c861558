"""Our signatures are those of AWS's own library, bit by bit."""

from __future__ import annotations

import datetime

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.providers.bedrock.requests import escaped
from proxy.upstream.credentials import Outgoing
from proxy.upstream.credentials.aws.signing import LARGE_BYTES, Keys, sign

ARN = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/q1w2e3r4t5y6"
REGION, SERVICE, NOW = "eu-west-1", "bedrock", 1_780_000_000.25


def of_aws(request: Outgoing, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The headers that botocore adds to the same request."""
    moment = datetime.datetime.fromtimestamp(int(NOW), datetime.UTC)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda *_: moment.replace(tzinfo=None))
    headers = {"host": request.host, **request.headers}
    signed = AWSRequest("POST", f"https://{request.host}{request.path}", headers=headers, data=request.body)
    credentials = Credentials(keys.access_key_id, keys.secret_access_key, keys.session_token or None)
    botocore.auth.SigV4Auth(credentials, SERVICE, REGION).add_auth(signed)
    return {name.lower(): value for name, value in signed.headers.items() if name.lower() not in headers}


models = st.sampled_from([ARN, "us.anthropic.claude-haiku-4-5-20251001-v1:0", "m"]) | st.text(min_size=1, max_size=20)
plain = st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=30)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    model=models,
    host=st.sampled_from(["bedrock-runtime.eu-west-1.amazonaws.com", "127.0.0.1:9900"]),
    headers=st.dictionaries(
        st.sampled_from(["x-amzn-trace", "accept", "content-type"]), plain.map(lambda text: f"{text}  b"), max_size=2
    ),
    body=st.binary(max_size=200),
    keys=st.builds(Keys, plain, plain, st.just("") | plain),
)
async def test_a_signature_is_what_aws_own_library_makes(
    model: str, host: str, headers: dict[str, str], body: bytes, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    if model in (".", ".."):
        return
    request = Outgoing("POST", host, f"/model/{escaped(model)}/converse-stream", headers, body)
    assert await sign(request, keys, REGION, SERVICE, NOW) == of_aws(request, keys, monkeypatch)


async def test_a_large_body_is_signed_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = Keys("AKIDEXAMPLE", "secret")
    request = Outgoing("POST", "h", "/model/m/converse", {}, b"x" * (LARGE_BYTES + 1))
    assert await sign(request, keys, REGION, SERVICE, NOW) == of_aws(request, keys, monkeypatch)


def test_keys_do_not_show_themselves() -> None:
    assert "secret" not in repr(Keys("AKIDEXAMPLE", "secret", "secret")) + str(Keys("a", "secret"))
