"""
The vault's root in the database: what the pepper of virtual keys and all else that outlives a rotation is derived from.

It is sealed like a provider key, so opening it proves the master key. This is done before anything else with a
database; a wrong master key is said there, once and clearly, and not at somebody's first request.
"""

from __future__ import annotations

from typing import NamedTuple

from proxy.errors import GatewayFault
from proxy.storage.audit import note
from proxy.storage.postgres import Connection, Database
from proxy.storage.sealing import CannotOpen, Place, Sealed, seal, unseal
from proxy.storage.vault import VARIABLE, Vault, pepper_id_of

PLACE = Place("vault", "sealed_value", "root")

READ_ROOT = "SELECT sealed_value, sealed_dek, kek_id FROM strata.vault WHERE name = 'root'"

PLANT_ROOT = """
    INSERT INTO strata.vault (name, sealed_value, sealed_dek, kek_id) VALUES ('root', $1, $2, $3)
    ON CONFLICT DO NOTHING
"""

# Whichever release made them: a database may have keys from before it had a root.
KNOWN_PEPPERS = """
    SELECT pepper_id, count(*)::bigint AS keys FROM strata.keys WHERE revoked_at IS NULL
    GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT 100
"""


class WrongMasterKey(GatewayFault):
    def __init__(self, message: str) -> None:
        super().__init__(message, status=500, code="gateway_config", error_type="gateway_config")


async def unlock(db: Database, vault: Vault) -> None:
    """
    Has the vault derive from this database's root, which is planted if there is none yet. Raises WrongMasterKey, or
    Unavailable.
    """
    async with db.transaction() as connection:
        row = await connection.fetchrow(READ_ROOT)
        if row is None:
            await _plant(connection, vault)
            row = await connection.fetchrow(READ_ROOT)
    assert row is not None
    try:
        vault.adopt(unseal(vault, PLACE, Sealed(*row)))
    except CannotOpen as error:
        raise WrongMasterKey(
            f"The master key does not open this database's vault: {error}. Restore the {VARIABLE} or the master.key "
            "that it had; during a rotation name both keys, the newest first. If it is lost: strata vault reset --lost"
        ) from None


REPLANT_ROOT = """
    INSERT INTO strata.vault (name, sealed_value, sealed_dek, kek_id) VALUES ('root', $1, $2, $3)
    ON CONFLICT (name) DO UPDATE SET sealed_value = excluded.sealed_value, sealed_dek = excluded.sealed_dek,
        kek_id = excluded.kek_id
"""

REVOKE_UNKNOWN = """
    WITH ended AS (
        UPDATE strata.keys SET revoked_at = now() WHERE revoked_at IS NULL AND pepper_id <> $1 RETURNING 1
    ) SELECT count(*)::bigint FROM ended
"""

REMOVE_UNOPENED = """
    WITH removed AS (
        DELETE FROM strata.provider_keys WHERE NOT kek_id = ANY($1::text[]) RETURNING 1
    ) SELECT count(*)::bigint FROM removed
"""


class Lost(NamedTuple):
    virtual_keys: int
    provider_keys: int


async def begin_anew(db: Database, vault: Vault, actor: str = "gateway") -> Lost:
    """
    Gives the database a root of this vault's own. What hung on the lost master key ends: virtual keys are revoked,
    provider keys that cannot be opened any more are removed. For when `unlock` raises WrongMasterKey, and never else.
    """
    async with db.transaction() as connection:
        await connection.execute(REPLANT_ROOT, *seal(vault, PLACE, vault.root))
        virtual = await connection.fetchval(REVOKE_UNKNOWN, vault.pepper_id)
        lost = Lost(virtual, await connection.fetchval(REMOVE_UNOPENED, list(vault.keks)))
        after = {"virtual_keys_revoked": lost.virtual_keys, "provider_keys_removed": lost.provider_keys}
        await note(connection, actor=actor, action="vault.reset", object=vault.kek_id, after=after)
        return lost


async def _plant(connection: Connection, vault: Vault) -> None:
    """Of several workers that find none, one is first; the others read what it planted."""
    peppers = await connection.fetch(KNOWN_PEPPERS)
    by_pepper = {pepper_id_of(root): root for root in vault.roots}
    root = next((by_pepper[row["pepper_id"]] for row in peppers if row["pepper_id"] in by_pepper), None)
    if root is None and peppers:
        raise WrongMasterKey(
            f"The {sum(row['keys'] for row in peppers)} virtual keys of this database were made under another master "
            f"key ({peppers[0]['pepper_id'][:16]}) and would not be recognised. Restore the {VARIABLE} or the "
            "master.key that it had; if that is lost: strata vault reset --lost"
        )
    await connection.execute(PLANT_ROOT, *seal(vault, PLACE, vault.root if root is None else root))
