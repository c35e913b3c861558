"""
Wires the hot routes: what clients ask of providers, with what it takes of the gateway. The rest of the wiring is `app`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING

from proxy.edge.chat import Chat
from proxy.edge.desk import Desk
from proxy.edge.embeddings import Embeddings
from proxy.edge.lane import Story
from proxy.upstream.accounts import Account
from proxy.upstream.relay import Relay
from proxy.upstream.remote_files import RemoteFiles
from proxy.upstream.reserve import Reserve

if TYPE_CHECKING:
    from proxy.app import Gateway

CHAT_PATHS = (b"/v1/chat/completions", b"/chat/completions")
EMBEDDINGS_PATHS = (b"/v1/embeddings", b"/embeddings")
HOT_PATHS = CHAT_PATHS + EMBEDDINGS_PATHS


def stories(gateway: Gateway) -> dict[bytes, Story]:
    """Each hot path's story. The gateway has its accounts."""
    config = gateway.config
    full_headers = config.server.response_headers == "full"
    block_unpriced = config.prices.on_missing == "block"
    reserve = Reserve(gateway.prices, gateway.budgets.hold, gateway.bindings.providers, block_unpriced=block_unpriced)
    embedding = {
        name: account for name, one in gateway.accounts.items() if (account := one.for_embeddings()) is not None
    }
    chat = Chat(
        gateway.gate,
        _desk(gateway, "chat"),
        gateway.turns.limits,
        gateway.router,
        _relay(gateway, gateway.accounts, reserve, gateway.files),
        gateway.meter,
        keep_bodies=gateway.bodies.wanted,
        full_headers=full_headers,
    )
    embeddings = Embeddings(
        gateway.gate,
        _desk(gateway, "embeddings"),
        gateway.router,
        _relay(gateway, embedding, reserve),
        gateway.meter,
        embedding,
        full_headers=full_headers,
    )
    told: dict[bytes, Story] = dict.fromkeys(CHAT_PATHS, chat.serve)
    told |= dict.fromkeys(EMBEDDINGS_PATHS, embeddings.serve)
    return told


def _desk(gateway: Gateway, endpoint: str) -> Desk:
    return Desk(
        gateway.turns,
        gateway.meter,
        endpoint,
        started=gateway.metrics.request_started,
        begin_trace=gateway.traces.begin,
    )


def _relay(
    gateway: Gateway, accounts: Mapping[str, Account], reserve: Reserve, files: RemoteFiles | None = None
) -> Relay:
    return Relay(
        accounts,
        gateway.meter,
        gateway.prices,
        gateway.resting,
        reserve,
        gateway.metrics,
        dice=random.random,
        files=files,
        own_keys=gateway.own_keys,
    )
