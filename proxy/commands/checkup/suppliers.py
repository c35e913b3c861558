"""The providers: which are on, and, only if asked to ask them, whether they take the keys that they would be sent."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from proxy.commands.checkup.finding import Finding, Level, count, ok, some, warn
from proxy.config import Config, Provider
from proxy.config.presets import SIM_API_BASE
from proxy.upstream.accounts import Account
from proxy.upstream.key_checks import check

AT_ONCE = 8
LEVELS: dict[str, Level] = {"valid": "ok", "not checked": "ok", "rate limited": "warn"}
"""Whatever else comes of a check is a failure."""
FIXES = {
    "invalid": "put the right key into its variable, or under providers",
    "no quota": "pay its bill, or take it out of the models",
    "rate limited": "look again in a minute",
    "unreachable": "see whether this machine gets to its address",
}


async def look_at_providers(config: Config, *, ask: bool) -> Sequence[Finding]:
    real = [provider for provider in config.providers.values() if provider.api_base != SIM_API_BASE]
    if not real:
        return [warn("providers", "none is on but the simulated one: set a key, such as OPENAI_API_KEY.")]
    if not ask:
        names = some([provider.name for provider in real], 8)
        return [ok("providers", f"{count(len(real), 'provider')} on ({names}); --providers asks each of them.")]
    few = asyncio.Semaphore(AT_ONCE)

    async def asked(provider: Provider) -> Finding:
        async with few:
            return await _ask(provider)

    return await asyncio.gather(*(asked(provider) for provider in real))


async def _ask(provider: Provider) -> Finding:
    account = Account(provider)
    try:
        checked = await check(account)
    finally:
        await account.close()
    fix = FIXES.get(checked.status)
    detail = checked.detail.rstrip(".")
    message = f"{checked.status}: {detail}{f': {fix}' if fix else ''}."
    return Finding(LEVELS.get(checked.status, "fail"), provider.name, message)
