"""The SQL of a look at the database itself: which Postgres it is, what its clock says, and as whom we come."""

from __future__ import annotations

import time
from typing import NamedTuple

from proxy.storage.postgres import Database

READ_STANDING = """
    SELECT current_setting('server_version') AS version, extract(epoch FROM clock_timestamp())::float8 AS now,
        session_user::text AS login,
        (SELECT rolsuper OR rolbypassrls FROM pg_catalog.pg_roles WHERE rolname = session_user) AS login_bypasses
"""


class Standing(NamedTuple):
    version: str
    login: str
    login_bypasses: bool
    """The login itself passes by row-level security, whatever role the gateway takes after it."""
    seconds: float
    """How long one question takes."""
    ahead_seconds: float
    """By how much the database's clock is ahead of ours, to within `seconds`."""


async def read_standing(db: Database) -> Standing:
    await db.fetchrow(READ_STANDING)  # the first has to be prepared, and would take longer
    before, began = time.time(), time.monotonic()
    row = await db.fetchrow(READ_STANDING)
    seconds = time.monotonic() - began
    assert row is not None
    ahead = row["now"] - (before + seconds / 2)
    return Standing(row["version"], row["login"], bool(row["login_bypasses"]), seconds, ahead)
