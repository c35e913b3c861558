"""
The vault's root in the database: what the pepper of virtual keys and all else that outlives a rotation is derived from.

It is sealed like a provider key, so opening it proves the master key. This is done before anything else with a
database; a wrong master key is said there, once and clearly, and not at somebody's first request.
"""

from __future__ import annotations

from proxy.errors import GatewayFault
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
            "that it had; during a rotation name both keys, the newest first. See docs/vault.md."
        ) from None


async def _plant(connection: Connection, vault: Vault) -> None:
    """Of several workers that find none, one is first; the others read what it planted."""
    peppers = await connection.fetch(KNOWN_PEPPERS)
    by_pepper = {pepper_id_of(root): root for root in vault.roots}
    root = next((by_pepper[row["pepper_id"]] for row in peppers if row["pepper_id"] in by_pepper), None)
    if root is None and peppers:
        raise WrongMasterKey(
            f"The {sum(row['keys'] for row in peppers)} virtual keys of this database were made under another master "
            f"key ({peppers[0]['pepper_id'][:16]}) and would not be recognised. Restore the {VARIABLE} or the "
            "master.key that it had; if that is lost, end them with: strata keys revoke NAME"
        )
    await connection.execute(PLANT_ROOT, *seal(vault, PLACE, vault.root if root is None else root))
