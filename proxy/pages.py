"""
Wires the pages: every route that is not hot, with what it needs of the gateway. The rest of the wiring is `app`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from starlette.routing import Route

from proxy.admission.keyring import static_names
from proxy.edge.alerts import AlertsPage
from proxy.edge.audit import AuditPage
from proxy.edge.auth import AuthPage
from proxy.edge.callers import Callers
from proxy.edge.invitations import InvitationsPage
from proxy.edge.keys import KeysPage
from proxy.edge.models import Models
from proxy.edge.ops import Ops
from proxy.edge.prices import PricesPage
from proxy.edge.provider_keys import ProviderKeysPage
from proxy.edge.requests import Requests
from proxy.edge.usage import UsagePage
from proxy.edge.users import UsersPage
from proxy.metering.price_list import listed
from proxy.scrape import scrape
from proxy.storage.alerts import last_alerts
from proxy.storage.audit import note

if TYPE_CHECKING:
    from proxy.app import Gateway


def pages(gateway: Gateway) -> list[Route]:
    """The routes; nothing of the gateway is called before a request comes."""
    config, prices, database = gateway.config, gateway.prices, gateway.database
    callers = Callers(gateway.gate, gateway.tokens)
    models = Models(
        callers,
        gateway.gate,
        gateway.router,
        started_at=int(time.time()),
        served_by=lambda name: _served_by(gateway, name),
        context_window=prices.context_window,
        max_output_tokens=prices.max_output_tokens,
    )
    ops = Ops(
        ready=lambda: database.up or not gateway.keyring.stale,
        degraded=lambda: _degraded(gateway),
        scrape=lambda accept: scrape(gateway, accept),
        token=config.metrics.token,
    )
    alerts = AlertsPage(callers, config.alerts, lambda: last_alerts(database))
    price_list = PricesPage(callers, lambda: listed(config, prices), prices.date)
    requests = Requests(callers, database)
    own = ProviderKeysPage(callers, database, gateway.own_keys, gateway.accounts, config.source, note)
    routes = [
        Route("/api/alerts", alerts.show),
        Route("/api/audit", AuditPage(callers, database).list),
        *account_routes(
            AuthPage(callers, gateway.signing_in, gateway.tokens, database, config.auth),
            UsersPage(callers, database),
            InvitationsPage(callers, database),
        ),
        *provider_key_routes(own),
        *key_routes(KeysPage(callers, database, gateway.keyring, gateway.vault, config)),
        Route("/api/prices", price_list.show),
        Route("/api/requests", requests.list),
        Route("/api/requests/{id:path}", requests.show),
        Route("/api/usage", UsagePage(callers, database, static_names(config.keys.static)).show),
        Route("/healthz", ops.healthz),
        Route("/readyz", ops.readyz),
        Route("/v1/models", models.list),
        Route("/models", models.list),
        Route("/v1/models/{id:path}", models.retrieve),
        Route("/models/{id:path}", models.retrieve),
    ]
    if config.metrics.enabled:
        routes.append(Route(config.metrics.path, ops.metrics))
    return routes


def account_routes(auth: AuthPage, users: UsersPage, invitations: InvitationsPage) -> list[Route]:
    return [
        Route("/auth/register", auth.register, methods=["POST"]),
        Route("/auth/login", auth.log_in, methods=["POST"]),
        Route("/auth/refresh", auth.refresh, methods=["POST"]),
        Route("/auth/logout", auth.log_out, methods=["POST"]),
        Route("/auth/me", auth.me),
        Route("/auth/password", auth.password, methods=["POST"]),
        Route("/api/users", users.list),
        Route("/api/users/{id}", users.show),
        Route("/api/users/{id}", users.change, methods=["PATCH"]),
        Route("/api/users/{id}/logout", users.sign_out, methods=["POST"]),
        Route("/api/teams", users.list_teams),
        Route("/api/teams", users.create_team, methods=["POST"]),
        Route("/api/teams/{id}", users.rename_team, methods=["PATCH"]),
        Route("/api/invitations", invitations.list),
        Route("/api/invitations", invitations.create, methods=["POST"]),
        Route("/api/invitations/{id}", invitations.revoke, methods=["DELETE"]),
    ]


def provider_key_routes(page: ProviderKeysPage) -> list[Route]:
    """To stand before /api/keys/{id}, which would take `providers` for an id."""
    return [
        Route("/api/keys/providers", page.list),
        Route("/api/keys/providers", page.create, methods=["POST"]),
        Route("/api/keys/providers/{id}", page.show),
        Route("/api/keys/providers/{id}", page.change, methods=["PATCH"]),
        Route("/api/keys/providers/{id}", page.remove, methods=["DELETE"]),
        Route("/api/keys/providers/{id}/validate", page.validate, methods=["POST"]),
    ]


def key_routes(page: KeysPage) -> list[Route]:
    return [
        Route("/api/keys", page.list),
        Route("/api/keys", page.create, methods=["POST"]),
        Route("/api/keys/{id}", page.show),
        Route("/api/keys/{id}", page.change, methods=["PATCH"]),
        Route("/api/keys/{id}", page.remove, methods=["DELETE"]),
        Route("/api/keys/{id}/rotate", page.rotate, methods=["POST"]),
    ]


def _degraded(gateway: Gateway) -> list[str]:
    redis = gateway.redis
    away = (
        ("database", not gateway.database.up),
        ("redis", redis is not None and not redis.up),
        ("journal", gateway.journal.failing),
    )
    return [name for name, is_away in away if is_away]


def _served_by(gateway: Gateway, name: str) -> tuple[str, ...]:
    provider = gateway.config.providers.get(name)
    return () if provider is None else gateway.prices.models(provider)
