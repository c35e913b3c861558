"""
What is said when the gateway takes connections: the banner on a terminal, one log line elsewhere.

A key is made and shown only on a terminal, and only when there is none: a log is no place for a secret.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from proxy.admission import keys
from proxy.banner import address_of, banner
from proxy.errors import GatewayError
from proxy.storage.keys import KeyRow, insert_key, list_keys

if TYPE_CHECKING:
    from proxy.app import Gateway

log = logging.getLogger("strata")

FIRST_BUDGET_NANO_USD = 1_000_000_000
FIRST_BUDGET_SECONDS = 86_400


async def greet(gateway: Gateway, home: Path, *, embedded: bool, seconds: float) -> None:
    config = gateway.config
    server = config.server
    url = address_of(server, server.host, server.port)
    terminal = sys.stderr.isatty()
    for warning in config.warnings:
        if not (terminal and " is off: " in warning):  # the banner says so too
            log.warning("%s", warning)
    if not terminal:
        if gateway.database_ready.is_set():
            log.info("ready at %s/v1 after %.2f s", url, seconds)
        else:
            log.warning("listening at %s/v1 after %.2f s, and not ready: the database is not", url, seconds)
        if server.admin is not None:
            log.info("the admin's pages are at %s alone", address_of(server, server.admin.host, server.admin.port))
        return
    first_key, known = await _first_key(gateway)
    gateway.request_log.flush()
    data = str(home) if embedded else "the database of DATABASE_URL"
    used = max((row.last_used_at for row in known if row.last_used_at), default=None)
    text = banner(
        config,
        ready_seconds=seconds,
        data=data,
        first_key=first_key,
        key_count=len(known) if gateway.database_ready.is_set() else None,
        last_used=f"{int((time.time() - used) / 3600)} h ago" if used else None,
    )
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


async def _first_key(gateway: Gateway) -> tuple[str | None, Sequence[KeyRow]]:
    if not gateway.database_ready.is_set():
        return None, ()
    known = await list_keys(gateway.database)
    if known:
        return None, known
    key = keys.new_key(gateway.config.keys.prefix)
    vault = gateway.vault
    try:
        await insert_key(
            gateway.database,
            name="first",
            digest=keys.digest(key, vault.pepper),
            pepper_id=vault.pepper_id,
            display=keys.display(key),
            models=("*",),
            rpm=None,
            expires_at=None,
            budget_limit_nano_usd=FIRST_BUDGET_NANO_USD,
            budget_window_seconds=FIRST_BUDGET_SECONDS,
        )
    except GatewayError:
        return None, known  # another gateway on the same database was faster
    return key, known
