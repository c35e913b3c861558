"""
What all connections of a gateway have in common: where the hot routes lead, what a client may take, and who is here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from proxy.edge.addresses import TrustedProxies
from proxy.edge.browsers import Origins
from proxy.edge.heads import Header
from proxy.edge.hosts import Hosts
from proxy.edge.lane import Story

if TYPE_CHECKING:
    from proxy.edge.protocol import GatewayProtocol

TICK_SECONDS = 0.5


@dataclass
class Door:
    hot: dict[bytes, Story] = field(default_factory=dict)
    max_body_bytes: int = 20_000_000
    max_in_flight: int = 1000
    header_timeout_seconds: float = 10.0
    body_timeout_seconds: float = 30.0
    write_timeout_seconds: float = 30.0
    idle_timeout_seconds: float = 75.0
    keepalive_seconds: float = 15.0
    proxies: TrustedProxies | None = None
    origins: Origins | None = None
    hosts: Hosts | None = None
    recognise: Callable[[Sequence[Header]], object] = lambda credentials: None
    """Raises GatewayError for credentials that are certainly none."""
    in_flight: int = 0
    max_bodies_bytes: int = 500_000_000
    bodies_bytes: int = 0
    """Of all bodies that are here, or on their way, and are not small."""
    connections: set[GatewayProtocol] = field(default_factory=set)

    def tick(self, now: float) -> None:
        """Called every TICK_SECONDS: one pass over the connections instead of a timer for each."""
        for connection in list(self.connections):
            connection.check_deadlines(now)
