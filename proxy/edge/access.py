"""
Who may use which route: one table, and nothing else decides it. docs/access.md is made of it, and a test walks it.

`own` and `team` are narrowed where the rows are, by the policies of row-level security (migrations/0006 and later).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from proxy.errors import PolicyError
from proxy.exchange import Caller

Right = Literal["no", "own", "team", "all"]


class Access(NamedTuple):
    """
    What each may do at one route. `no`: 401 without a credential, else 403. `own`: with what is theirs. `team`: with
    their team's, too. `all`: with everybody's, or there is nothing to narrow.
    """

    method: str
    path: str
    anonymous: Right
    key: Right
    viewer: Right
    member: Right
    admin: Right


#         method    path                          anonymous key    viewer  member  admin
ACCESS = (
    Access("POST", "/v1/chat/completions", "no", "all", "no", "all", "all"),
    Access("POST", "/chat/completions", "no", "all", "no", "all", "all"),
    Access("POST", "/v1/embeddings", "no", "all", "no", "all", "all"),
    Access("POST", "/embeddings", "no", "all", "no", "all", "all"),
    Access("GET", "/v1/models", "no", "all", "all", "all", "all"),
    Access("GET", "/models", "no", "all", "all", "all", "all"),
    Access("GET", "/v1/models/{id:path}", "no", "all", "all", "all", "all"),
    Access("GET", "/models/{id:path}", "no", "all", "all", "all", "all"),
    Access("GET", "/api/requests", "no", "own", "own", "own", "all"),
    Access("GET", "/api/requests/{id:path}", "no", "own", "own", "own", "all"),
    Access("GET", "/api/usage", "no", "own", "team", "team", "all"),
    Access("GET", "/api/keys/providers", "no", "no", "team", "team", "all"),
    Access("POST", "/api/keys/providers", "no", "no", "no", "own", "all"),
    Access("GET", "/api/keys/providers/{id}", "no", "no", "team", "team", "all"),
    Access("PATCH", "/api/keys/providers/{id}", "no", "no", "no", "own", "all"),
    Access("DELETE", "/api/keys/providers/{id}", "no", "no", "no", "own", "all"),
    Access("POST", "/api/keys/providers/{id}/validate", "no", "no", "no", "own", "all"),
    Access("POST", "/auth/register", "all", "all", "all", "all", "all"),
    Access("POST", "/auth/login", "all", "all", "all", "all", "all"),
    Access("POST", "/auth/refresh", "all", "all", "all", "all", "all"),
    Access("POST", "/auth/logout", "own", "no", "own", "own", "own"),  # anonymous: with a refresh token
    Access("GET", "/auth/me", "no", "own", "own", "own", "own"),
    Access("POST", "/auth/password", "no", "no", "own", "own", "own"),
    Access("GET", "/api/users", "no", "no", "team", "team", "all"),
    Access("GET", "/api/users/{id}", "no", "no", "team", "team", "all"),
    Access("PATCH", "/api/users/{id}", "no", "no", "no", "no", "all"),
    Access("POST", "/api/users/{id}/logout", "no", "no", "no", "no", "all"),
    Access("GET", "/api/teams", "no", "no", "team", "team", "all"),
    Access("POST", "/api/teams", "no", "no", "no", "no", "all"),
    Access("PATCH", "/api/teams/{id}", "no", "no", "no", "no", "all"),
    Access("GET", "/api/invitations", "no", "no", "no", "no", "all"),
    Access("POST", "/api/invitations", "no", "no", "no", "no", "all"),
    Access("DELETE", "/api/invitations/{id}", "no", "no", "no", "no", "all"),
    Access("GET", "/api/keys", "no", "no", "team", "team", "all"),
    Access("POST", "/api/keys", "no", "no", "no", "own", "all"),
    Access("GET", "/api/keys/{id}", "no", "no", "team", "team", "all"),
    Access("PATCH", "/api/keys/{id}", "no", "no", "no", "own", "all"),
    Access("DELETE", "/api/keys/{id}", "no", "no", "no", "own", "all"),
    Access("POST", "/api/keys/{id}/rotate", "no", "no", "no", "own", "all"),
    Access("GET", "/api/prices", "no", "no", "all", "all", "all"),
    Access("GET", "/api/alerts", "no", "no", "no", "no", "all"),
    Access("GET", "/api/audit", "no", "no", "no", "no", "all"),
    Access("GET", "/healthz", "all", "all", "all", "all", "all"),
    Access("GET", "/readyz", "all", "all", "all", "all", "all"),
    Access(
        "GET", "/metrics", "all", "all", "all", "all", "all"
    ),  # and its own token, if telemetry.metrics.token is set
)

_RIGHTS = {(access.method, access.path): access for access in ACCESS}


def right_of(caller: Caller, method: str, path: str) -> Right:
    """What the table says; `path` is the route's, with its braces. KeyError: the route is not in the table."""
    access = _RIGHTS["GET" if method == "HEAD" else method, path]
    right: Right = getattr(access, caller.role)
    return right


def require(caller: Caller, method: str, path: str) -> Right:
    """Like `right_of`; PolicyError 403 instead of `no`."""
    right = right_of(caller, method, path)
    if right == "no":
        raise PolicyError(
            f"{_who(caller)} may not use {method} {path}. {_who_may(method, path)}",
            status=403,
            code="forbidden",
            error_type="policy_forbidden",
        )
    return right


def _who(caller: Caller) -> str:
    return f'The key "{caller.name}"' if caller.role == "key" else f"A {caller.role}"


def _who_may(method: str, path: str) -> str:
    access = _RIGHTS["GET" if method == "HEAD" else method, path]
    if access.member == "no":
        return "Only an admin may: sign in as one, or use the master key (auth.master_key)."
    return "Sign in as a member or an admin." if access.viewer == "no" else "Sign in."
