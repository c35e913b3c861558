"""How limits are counted: by this process alone, or through Redis together with others, in shares or strictly."""

from __future__ import annotations

from proxy.admission.limits import Limits
from proxy.admission.sharing import Shared
from proxy.admission.strict import Strict
from proxy.admission.turns import Turns
from proxy.config import Redis as Settings
from proxy.storage.redis import Redis


def turns_by(settings: Settings, limits: Limits, redis: Redis | None, worker_id: str) -> Turns:
    if redis is None:
        return Turns(limits)
    kind = Strict if settings.limits == "strict" else Shared
    return kind(limits, redis, worker_id, prefix=settings.prefix)
