"""Postgres and Redis: whether they answer, whether this gateway may use them as it must, and what they hold."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence

from proxy.commands.checkup.finding import Finding, count, fail, ok, some, warn
from proxy.config import Config
from proxy.errors import GatewayError
from proxy.storage.budget_settings import list_budgets
from proxy.storage.keys import KeyRow, list_keys
from proxy.storage.migrations import pending
from proxy.storage.postgres import Database, Unavailable
from proxy.storage.redis import Away, Redis, Script
from proxy.storage.root import READ_ROOT, unlock
from proxy.storage.rotation import unopened_provider_keys
from proxy.storage.standing import Standing, read_standing
from proxy.storage.vault import Vault

CLOCK_SECONDS = 1.0
FAR_OFF_SECONDS = 30.0
SLOW_ANSWER_SECONDS = 0.05
REDIS_SECONDS = 3.0
ANSWER = Script("return {1}")


async def look_at_database(config: Config, dsn: str, vault: Vault | None) -> AsyncIterator[Finding]:
    """Changes nothing in it. `vault`: None if there is no master key yet."""
    try:
        missing = await pending(dsn)
    except Unavailable as away:
        fix = " See whether it runs, and what DATABASE_URL says." if "DATABASE_URL" not in away.message else ""
        yield fail("database", away.message.replace("; try again in a second", "") + fix)
        return
    except GatewayError as error:
        yield fail("migrations", error.message)
        return
    if missing:
        many = f"{count(len(missing), 'migration')} ({some(missing)}) not applied"
        if config.database.auto_migrate:
            yield warn("migrations", f"{many}: the next start applies them, or now: strata migrate")
        else:
            yield fail("migrations", f"{many}, and database.auto_migrate is off: strata migrate")
        return
    yield ok("migrations", "the schema is this version's.")
    database = Database(dsn, size=1)
    try:
        await database.open()
        standing = await read_standing(database)
        for finding in judge_server(config, standing):
            yield finding
        if vault is not None:
            async for finding in _vault(database, vault):
                yield finding
        yield await _budgets(config, database)
    except GatewayError as error:
        yield fail("database", error.message)
    finally:
        await database.close()


def judge_server(config: Config, standing: Standing) -> Iterator[Finding]:
    about = f"Postgres {standing.version.split(' ')[0]}, answers in {standing.seconds * 1000:.1f} ms"
    if config.database.url is None:
        yield warn(
            "database",
            f"{about}: the embedded one, which lives on this machine's disk alone. Back the data folder up, or use a "
            "Postgres of your own with DATABASE_URL.",
        )
    elif standing.seconds > SLOW_ANSWER_SECONDS:
        yield warn("database", f"{about}, which is slow: budgets and keys wait for it. Move the gateway nearer to it.")
    else:
        yield ok("database", f"{about}.")
    if config.database.url is not None and standing.login_bypasses:
        yield warn(
            "database role",
            f'the gateway acts as strata_app, but its login "{standing.login}" passes by row-level security: use one '
            "that owns this database and is neither SUPERUSER nor BYPASSRLS.",
        )
    else:
        yield ok("database role", "strata_app, which row-level security binds.")
    off, told = abs(standing.ahead_seconds), f"{abs(standing.ahead_seconds):.2f} s off the database's"
    if off > CLOCK_SECONDS + standing.seconds:
        level = fail if off > FAR_OFF_SECONDS else warn
        yield level("clock", f"it is {told}, and budgets, tokens and expiries go by it: run NTP on both machines.")
    else:
        yield ok("clock", f"{told}.")


async def _vault(database: Database, vault: Vault) -> AsyncIterator[Finding]:
    if await database.fetchrow(READ_ROOT) is None:
        return  # nothing is sealed before the first start
    try:
        await unlock(database, vault)
    except GatewayError as error:
        yield fail("vault", error.message)
        return
    unopened = await unopened_provider_keys(database, vault)
    if unopened:
        yield fail("vault", f"{count(len(unopened), 'provider key')} cannot be opened: see strata vault status")
    else:
        yield ok("vault", "the master key is this database's, and opens every key in it.")


async def _budgets(config: Config, database: Database) -> Finding:
    now = time.time()
    without = [key.name for key in await list_keys(database) if _in_force(key, now) and not key.budgets]
    without += [key.name for key in config.keys.static if key.budget_nano_usd is None]
    if not without:
        return ok("budgets", "every key has one.")
    scopes = [budget.scope for budget in config.budgets] + [row.scope for row in await list_budgets(database)]
    has = f"{count(len(without), 'key')} without a budget ({some(without)})"
    if "global" in scopes:
        return ok("budgets", f"{has}, and one for everybody together.")
    return warn(
        "budgets", f"{has}, and none for everybody: what they may spend has no end. strata budgets set global 500/month"
    )


def _in_force(key: KeyRow, now: float) -> bool:
    return key.revoked_at is None and (key.expires_at is None or key.expires_at > now)


async def look_at_redis(config: Config) -> Sequence[Finding]:
    if config.redis.url is None:
        return [ok("redis", "not set, so each gateway counts limits for itself; right for one.")]
    up = asyncio.Event()
    redis = Redis(config.redis, changed=lambda is_up: up.set() if is_up else None)
    redis.start()
    try:
        async with asyncio.timeout(REDIS_SECONDS):
            await up.wait()
            began = time.monotonic()
            await redis.run(ANSWER, [], [])
        milliseconds = (time.monotonic() - began) * 1000
        return [ok("redis", f"answers in {milliseconds:.1f} ms; limits are counted together.")]
    except (TimeoutError, Away):
        return [
            fail(
                "redis",
                "it does not answer, so each gateway passes its part of the limits alone: see whether it runs, and "
                "what redis.url says.",
            )
        ]
    finally:
        await redis.close()
