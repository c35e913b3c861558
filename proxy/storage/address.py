"""
Where the database is, and whether a pooler stands before it that hands each transaction to another session.

Behind such a pooler nothing of a session lasts: no prepared statement, no SET, no LISTEN. It is known by Supabase's
port for it or by `pgbouncer=true`, the word that other clients have for it:
https://supabase.com/docs/guides/database/connecting-to-postgres
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit

SUPABASE_TRANSACTION_PORT = 6543
FLAG = "pgbouncer"


class Address(NamedTuple):
    dsn: str
    pooled: bool
    """By the transaction."""


def read_address(dsn: str) -> Address:
    """The DSN as Postgres takes it. Anything that is no URL passes as it is: asyncpg says what is wrong with it."""
    try:
        parts = urlsplit(dsn)
        port = parts.port
    except ValueError:
        return Address(dsn, False)
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    flagged = any(name == FLAG and value.lower() in ("true", "1", "on", "yes") for name, value in pairs)
    kept = [(name, value) for name, value in pairs if name != FLAG]
    if len(kept) < len(pairs):
        dsn = parts._replace(query=urlencode(kept)).geturl()
    return Address(dsn, flagged or port == SUPABASE_TRANSACTION_PORT)
