"""
AWS: a bearer key, or keys that sign each request.

They come, whole, from the first of: the profile that the configuration names; a bearer key; a key pair; and where the
configuration and the usual variables have none of these, what the machine has (`sources`). What expires is renewed
before it does.
"""

from __future__ import annotations

from collections.abc import Mapping

from proxy.config import Provider
from proxy.upstream.credentials import Credential, Outgoing, Surroundings
from proxy.upstream.credentials.aws.signing import Keys, sign
from proxy.upstream.credentials.aws.sources import Found, Machine, named_profile, search
from proxy.upstream.credentials.renewal import Renewal, unauthorised


def credential(provider: Provider, surroundings: Surroundings) -> Mapping[str, str] | Credential:
    key = provider.api_key or provider.secrets.get("api_key")
    if key is not None and not provider.options.get("profile"):
        return {"authorization": f"Bearer {key.reveal()}"}
    return Signer(provider, surroundings)


class Signer:
    def __init__(self, provider: Provider, surroundings: Surroundings) -> None:
        self._region = provider.options.get("region", "")
        self._profile = provider.options.get("profile", "")
        self._service = provider.api
        """AWS signs for a service, and what it calls the service is what the API is called here."""
        self._secrets = {name: secret.reveal() for name, secret in provider.secrets.items()}
        self._environ = surroundings.environ
        self._wall_clock = surroundings.wall_clock
        self._keys = Renewal(self._find, surroundings.wall_clock)

    async def headers(self, request: Outgoing) -> Mapping[str, str]:
        keys = await self._keys.current()
        return await sign(request, keys, self._region, self._service, self._wall_clock())

    async def close(self) -> None:
        await self._keys.close()

    async def _find(self) -> Found:
        machine = Machine(self._environ, self._region, self._wall_clock())
        if self._profile:
            return await named_profile(machine, self._profile)
        key, secret = self._secrets.get("access_key_id"), self._secrets.get("secret_access_key")
        if key and secret:
            return Keys(key, secret, self._secrets.get("session_token", "")), None
        if key or secret:
            missing = "secret_access_key" if key else "access_key_id"
            raise unauthorised(f"An AWS key pair has two halves, and {missing} is missing: set it beside the other.")
        return await search(machine)
