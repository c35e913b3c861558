"""
Provider keys that are not the operator's: a user's, a team's, or everybody's, in this order before the operator's own.

A snapshot of the sealed rows, so that a request waits for nobody: heard of within milliseconds, looked for every few
seconds in case that was missed. A key is opened here, when it is first used, for the host it was saved for, and goes
nowhere else. One that cannot be opened is not passed over: its owner's requests fail and say so, for else they would be
on the operator's bill.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Literal, NamedTuple, cast
from urllib.parse import urlsplit

import msgspec

from proxy.config import Provider, Secret
from proxy.errors import UpstreamError
from proxy.exchange import Caller, OwnKey
from proxy.storage.postgres import Database, Unavailable
from proxy.storage.provider_keys import CHANNEL, MAX_ROWS, SealedKey, read_all, read_state
from proxy.storage.rotation import provider_key_place
from proxy.storage.sealing import CannotOpen, Sealed, seal, unseal
from proxy.storage.snapshots import keep_fresh
from proxy.storage.vault import Vault
from proxy.upstream.accounts import Account
from proxy.upstream.elsewhere import Elsewhere

MAX_CALLERS = 100_000
MAX_OPENED = 1_000
POLL_SECONDS = 5.0
SETTLE_SECONDS = 0.05
"""A rotation says something with every batch: what comes so close together is read once."""
AT_ONCE = 50
"""Keys tried between two turns of the loop."""

KEY_FAULTS = {
    "provider_auth": "The provider refused {key}. Its owner can check or replace it under /api/keys/providers.",
    "provider_quota": "The account behind {key} has no credit left at the provider. Its owner can add some there.",
    "provider_rate_limited": "The provider limits the rate of {key}; try again later.",
}
"""What is the key's fault says nothing about the deployment, which goes on for everybody else."""
WHOSE = {"user": "your own key", "team": "your team's key", "global": "this gateway's key"}

log = logging.getLogger("strata.upstream")


class _Chosen(NamedTuple):
    caller: Caller
    by_provider: Mapping[str, SealedKey]


class OwnKeys:
    """
    `held` is the same dict for life, and empty while there are no such keys at all: who serves requests looks into it
    before anything else. `elsewhere` has the connections to addresses that users named.
    """

    def __init__(
        self,
        db: Database,
        vault: Vault,
        accounts: Mapping[str, Account],
        elsewhere: Elsewhere,
        *,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._db = db
        self._vault = vault
        self._accounts = accounts
        self.elsewhere = elsewhere
        self._poll_seconds = poll_seconds
        self._state = (0, 0)
        self._chosen: dict[str, _Chosen] = {}
        self._opened: dict[str, tuple[SealedKey, Account]] = {}
        self._heard = asyncio.Event()
        self._reload = True
        self._refresher: asyncio.Task[None] | None = None
        self.held: dict[tuple[str, str | None], dict[str, SealedKey]] = {}
        """By scope and owner, then by provider."""
        self.attention: dict[str, str] = {}
        """Keys that cannot be opened, by id, and why."""
        self.failures_total = 0
        """Refreshes that failed."""

    def __len__(self) -> int:
        return sum(map(len, self.held.values()))

    async def start(self) -> None:
        """Loads the snapshot and keeps it fresh. Raises Unavailable: then nothing was begun. May be called again."""
        await self.refresh()
        if self._refresher is not None:
            return
        await self._db.listen(CHANNEL, self._on_notice)
        freshness = keep_fresh(
            self.refresh, self._heard, self._poll_seconds, self._failed, settle_seconds=SETTLE_SECONDS
        )
        self._refresher = asyncio.create_task(freshness, name="provider keys")

    async def close(self) -> None:
        if self._refresher is not None:
            self._refresher.cancel()
            await asyncio.gather(self._refresher, return_exceptions=True)
        await self.elsewhere.close()

    def account_for(self, caller: Caller | None, operators: Account) -> Account:
        """
        The account of the caller's own key at this provider, else the operator's. UpstreamError if his key cannot be
        opened: another provider may still serve.
        """
        if caller is None:
            return operators
        chosen = self._chosen.get(caller.key_id)
        if chosen is None or chosen.caller is not caller:
            chosen = self._choose(caller)
        if not chosen.by_provider:
            return operators
        key = chosen.by_provider.get(operators.provider.name)
        if key is None:
            return operators
        account = self._account_of(key)
        return account if not operators.embeds else account.for_embeddings() or account

    def _account_of(self, key: SealedKey) -> Account:
        known = self._opened.get(key.id)
        if known is not None and known[0] is key:
            return known[1]
        try:
            account = self.open(key)
        except CannotOpen as error:
            self._note_attention(key, str(error))
            raise _unusable(key) from None
        if len(self._opened) >= MAX_OPENED:
            self._opened.clear()
        self._opened[key.id] = (key, account)
        return account

    def open(self, key: SealedKey) -> Account:
        """Raises CannotOpen."""
        operators = self._accounts.get(key.provider)
        if operators is None:
            raise CannotOpen(f'no provider is called "{key.provider}" in the configuration any more')
        host = host_of(key.api_base or operators.provider.api_base)
        if host != key.host:
            raise CannotOpen(f"it was saved for {key.host}, and the provider is at {host} now")
        place = provider_key_place(key.id, key.scope, key.owner_id, key.provider, host)
        return self.account_with(key, unseal(self._vault, place, key.sealed).decode())

    def account_with(self, key: SealedKey, secret: str) -> Account:
        """With a key in hand, sealed or not yet. Raises CannotOpen if this provider takes no plain key."""
        operators = self._accounts[key.provider]
        scope = cast(Literal["user", "team", "global"], key.scope)
        account = Account(
            _with_key(operators.provider, secret, key.api_base),
            pool=self.elsewhere.pool if key.api_base else operators.pool,
            own_key=OwnKey(key.id, key.name, scope, key.last_four, bool(key.api_base)),
        )
        if account.signs:
            raise CannotOpen("requests to this provider are signed, and a key alone does not do that")
        return account

    def sealed(self, key: SealedKey, secret: str) -> SealedKey:
        place = provider_key_place(key.id, key.scope, key.owner_id, key.provider, key.host)
        return msgspec.structs.replace(key, sealed=seal(self._vault, place, secret.encode()))

    async def refresh(self) -> None:
        """Raises Unavailable. Reads all again if anything has changed, and while something does not open."""
        self._heard.clear()
        reload, self._reload = self._reload, False
        try:
            state = await read_state(self._db)
            if reload or self.attention or state != self._state:
                await self._take(await read_all(self._db))
                self._state = state
        except BaseException:
            self._reload = True
            raise

    async def _take(self, keys: list[SealedKey]) -> None:
        if len(keys) > MAX_ROWS:
            log.error("There are more than %d provider keys: the others are not used.", MAX_ROWS)
            keys = keys[:MAX_ROWS]
        held: dict[tuple[str, str | None], dict[str, SealedKey]] = {}
        before = {key.id: key for by_provider in self.held.values() for key in by_provider.values()}
        kept, attention = dict[str, SealedKey](), dict[str, str]()
        for number, key in enumerate(keys, 1):
            known = before.get(key.id)
            key = known if known is not None and known == key else key
            held.setdefault((key.scope, key.owner_id), {})[key.provider] = kept[key.id] = key
            if key is not known or key.id in self.attention:
                try:
                    self.open(key)
                except CannotOpen as error:
                    attention[key.id] = str(error)
            if number % AT_ONCE == 0:
                await asyncio.sleep(0)
        for key in keys:
            if key.id in attention and key.id not in self.attention:
                log.error("%s", _needs_attention(key, attention[key.id]))
        self.attention = attention
        self.held.clear()
        self.held.update(held)
        self._chosen.clear()
        self._opened = {id: opened for id, opened in self._opened.items() if kept.get(id) is opened[0]}

    def _choose(self, caller: Caller) -> _Chosen:
        """A user's own before the team's, the team's before everybody's."""
        by_provider = {
            **self.held.get(("global", None), {}),
            **(self.held.get(("team", caller.team_id), {}) if caller.team_id else {}),
            **(self.held.get(("user", caller.user_id), {}) if caller.user_id else {}),
        }
        if len(self._chosen) >= MAX_CALLERS:
            self._chosen.clear()
        chosen = self._chosen[caller.key_id] = _Chosen(caller, by_provider)
        return chosen

    def _note_attention(self, key: SealedKey, why: str) -> None:
        if key.id not in self.attention:
            self.attention[key.id] = why
            log.error("%s", _needs_attention(key, why))

    def _on_notice(self, _: str) -> None:
        """A key changed; or the connection is new and anything may have been missed."""
        self._reload = True
        self._heard.set()

    def _failed(self, error: Exception) -> None:
        self.failures_total += 1
        if not isinstance(error, Unavailable):
            log.error("The provider keys could not be read; the next poll tries again.", exc_info=error)


def host_of(api_base: str) -> str:
    """What a key is bound to: scheme, host and port, without the path."""
    url = urlsplit(api_base)
    return f"{url.scheme}://{url.netloc.lower()}"


def blame(error: UpstreamError, own: OwnKey) -> None:
    """What a failure with somebody's own key means for everybody else, and for whom its message is."""
    sentence = KEY_FAULTS.get(error.error_type)
    if own.elsewhere or sentence is not None:
        error.rest = False
    if sentence is not None:
        error.message = sentence.format(key=_named(own.scope, own.name, own.last_four))


def _named(scope: str, name: str, last_four: str) -> str:
    return f'{WHOSE[scope]} "{name}" (…{last_four})'


def _with_key(provider: Provider, secret: str, api_base: str) -> Provider:
    """Nothing of the operator's that authorises; and to another address nothing of his headers either."""
    with_key = msgspec.structs.replace(provider, api_key=Secret(secret), secrets={})
    return msgspec.structs.replace(with_key, api_base=api_base, headers={}) if api_base else with_key


def _unusable(key: SealedKey) -> UpstreamError:
    return UpstreamError(
        f"{_named(key.scope, key.name, key.last_four)} for {key.provider} cannot be opened and was not used. "
        "Replace or delete it under /api/keys/providers.",
        code="provider_key_unusable",
        error_type="provider_auth",
        rest=False,
        sent=False,
    )


def _needs_attention(key: SealedKey, why: str) -> str:
    return f"The provider key {key.id} for {key.provider} needs attention and is not used: {why}."


EMPTY = Sealed(b"", b"", "")
"""Of a key that is not sealed yet."""
