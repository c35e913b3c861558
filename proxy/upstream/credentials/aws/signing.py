"""
Signature Version 4: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from typing import NamedTuple
from urllib.parse import quote

from proxy.upstream.credentials import Outgoing

ALGORITHM = "AWS4-HMAC-SHA256"
LARGE_BYTES = 262_144
"""A body above this is hashed in a thread: the loop is not to wait for it."""


class Keys(NamedTuple):
    access_key_id: str
    secret_access_key: str
    session_token: str = ""

    def __repr__(self) -> str:
        return "Keys(***)"


async def sign(request: Outgoing, keys: Keys, region: str, service: str, wall_seconds: float) -> dict[str, str]:
    """
    The headers that authorise a request without a query: the host, the time, the token and the translator's own headers
    are signed, and so is the body. What the connection adds is not, and need not be.
    """
    if len(request.body) > LARGE_BYTES:
        digest = await asyncio.to_thread(_sha256, request.body)
    else:
        digest = _sha256(request.body)
    moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(wall_seconds))
    ours = {"x-amz-date": moment}
    if keys.session_token:
        ours["x-amz-security-token"] = keys.session_token
    lines = sorted({"host": request.host, **request.headers, **ours}.items())
    names = ";".join(name for name, _ in lines)
    headers = "".join(f"{name}:{' '.join(value.split())}\n" for name, value in lines)
    # the path is escaped once more than on the wire, for every service but S3
    canonical = f"{request.method}\n{quote(request.path, safe='/~')}\n\n{headers}\n{names}\n{digest}"
    scope = f"{moment[:8]}/{region}/{service}/aws4_request"
    text = f"{ALGORITHM}\n{moment}\n{scope}\n{_sha256(canonical.encode())}"
    key = f"AWS4{keys.secret_access_key}".encode()
    for part in (moment[:8], region, service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    credential = f"{keys.access_key_id}/{scope}"
    authorization = f"{ALGORITHM} Credential={credential}, SignedHeaders={names}, Signature={signature}"
    return {**ours, "authorization": authorization}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
