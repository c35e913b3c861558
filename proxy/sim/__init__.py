"""
The simulated provider: OpenAI's API on loopback, free, always there, the same answer for the same prompt.

It is a real server behind a real socket, so that `sim/*` passes through the pool, the framing, the retries and the
meter like any other provider. `SimServer.start()` gives the port to put into its `api_base`.
"""

from __future__ import annotations

from proxy.sim.server import SimServer

__all__ = ["SimServer"]
