"""
Whether a provider takes a key: its list of models is asked for, over the connections that requests take, which costs
nothing. Where the list answers without a key as well, it proves nothing, and the key stays `not checked`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, NamedTuple

import msgspec

from proxy.errors import GatewayError, UpstreamError
from proxy.providers import Target, UpstreamRequest
from proxy.providers.faults import clean, words_of
from proxy.upstream.accounts import Account

CHECK_SECONDS = 5.0
MAX_DETAIL_CHARACTERS = 300

Status = Literal["not checked", "valid", "invalid", "no quota", "rate limited", "unreachable"]

STATUSES: dict[str, Status] = {
    "provider_auth": "invalid",
    "provider_quota": "no quota",
    "provider_rate_limited": "rate limited",
    "provider_overloaded": "unreachable",
    "provider_error": "unreachable",
    "provider_timeout": "unreachable",
    "provider_unreachable": "unreachable",
    "provider_bad_response": "unreachable",
}
"""By the error's type; any other refusal says nothing of the key."""
NO_LIST = frozenset({404, 405, 501})


class Checked(NamedTuple):
    status: Status
    detail: str
    """What the provider said, in one short line without the key."""


class _Listed(msgspec.Struct):
    data: list[msgspec.Raw] | None = None
    models: list[msgspec.Raw] | None = None


async def check(
    account: Account, *, seconds: float = CHECK_SECONDS, clock: Callable[[], float] = time.monotonic
) -> Checked:
    """Asks the provider, for so long at most. What goes wrong is the answer, never an exception."""
    list_models = getattr(account.translator, "list_models", None)
    if list_models is None:
        return Checked("not checked", "This API has no list of models to try a key with.")
    provider = account.provider
    request: UpstreamRequest = list_models(Target("", provider.quirks, provider.options))
    began = clock()
    deadline = began + seconds
    try:
        status, body = await _ask(account, request, deadline, with_key=True)
        milliseconds = round((clock() - began) * 1000)
        if not 200 <= status < 300:
            return _refused(account, status, body)
        if (await _ask(account, request, deadline, with_key=False))[0] < 300:
            return Checked("not checked", "The provider lists its models without a key too.")
    except UpstreamError as error:
        return Checked(STATUSES.get(error.error_type, "unreachable"), _told(account, error.message))
    except GatewayError as error:
        return Checked("not checked", _told(account, error.message))
    return Checked("valid", f"{_models(body)}answered in {milliseconds} ms")


async def _ask(account: Account, request: UpstreamRequest, deadline: float, *, with_key: bool) -> tuple[int, bytes]:
    response = await account.get(request, with_key=with_key, deadline=deadline)
    try:
        return response.status, await response.read_all(deadline)
    finally:
        response.close()


def _refused(account: Account, status: int, body: bytes) -> Checked:
    if status in NO_LIST:
        return Checked("not checked", f"{status}: there is no list of models at this address.")
    body = account.hide.in_bytes(body)
    error = account.translator.decode_error(status, {}, body)
    found = STATUSES.get(error.error_type, "not checked")
    return Checked(found, _told(account, f"{status}: {words_of(body) or 'it did not say why'}"))


def _told(account: Account, text: str) -> str:
    """Providers quote in their errors what they were sent."""
    return clean(account.hide(text))[:MAX_DETAIL_CHARACTERS]


def _models(body: bytes) -> str:
    try:
        listed = msgspec.json.decode(body, type=_Listed)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return ""
    found = listed.data if listed.data is not None else listed.models
    return f"{len(found)} models, " if found is not None else ""
