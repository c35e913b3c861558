"""The table of who may use which route, asked of a real gateway by real people, keys and strangers."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator

import pytest

from proxy.edge.access import ACCESS, Access
from tests.gateway import Gateway
from tests.test_accounts import GOOD, MASTER, Answer, Site

CONFIG = f"""\
auth: {{master_key: {MASTER}}}
providers:
  gpu: {{type: openai_compatible, api_base: "http://127.0.0.1:9/v1", api_key: sk-of-the-operator}}
"""
NOBODY = str(uuid.UUID(int=1, version=4))
REFUSED = {"missing_api_key", "forbidden"}
UNASKED = {("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/metrics")}
"""These answer in plain text, to everybody."""


class Tenants:
    """`tokens` by role; `other` is a member of nothing that is `member`'s."""

    def __init__(self, site: Site) -> None:
        self.site = site
        first = site.ask("POST", "/auth/register", {"email": "a@example.com", "password": GOOD}, token=MASTER)
        site.admin = first.body["access_token"]
        team = site.ask("POST", "/api/teams", {"name": "blue"}, token=site.admin).body["id"]
        self.tokens = {"admin": site.admin, "key": site.gateway.key, "anonymous": ""}
        for role in ("viewer", "member"):
            made = site.invited(f"{role}@example.com", role, team_id=team)
            self.tokens[role] = made.body["access_token"]
        self.member_id = made.body["user"]["id"]
        self.other = site.invited("other@example.com").body["access_token"]

    def ask(self, access: Access, token: str, id: str = NOBODY) -> Answer:
        path = access.path.replace("{id:path}", id).replace("{id}", id)
        return self.site.ask(access.method, path, None if access.method == "GET" else {}, token=token)


@pytest.fixture(scope="module")
def tenants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tenants]:
    gateway = Gateway(tmp_path_factory.mktemp("access") / "home")
    gateway.config.write_text(CONFIG)
    yield Tenants(Site(gateway.start()))
    gateway.stop()


@pytest.mark.parametrize("access", ACCESS, ids=[f"{access.method} {access.path}" for access in ACCESS])
def test_a_route_lets_in_whom_the_table_names_and_nobody_else(tenants: Tenants, access: Access) -> None:
    if (access.method, access.path) in UNASKED:
        status = tenants.site.gateway.get(access.path)[0]
        assert status == 200
        return
    for role, token in tenants.tokens.items():
        if access.path == "/auth/logout" and token:
            continue  # it would end the session that the others need
        answer = tenants.ask(access, token)
        code = answer.body["error"]["code"] if isinstance(answer.body, dict) and "error" in answer.body else None
        may = getattr(access, role) != "no" and not (role == "anonymous" and access.path == "/auth/logout")
        if may:
            assert code not in REFUSED, (role, answer)
        else:
            assert code in REFUSED, (role, answer)
            assert answer.status == (401 if role == "anonymous" else 403)


def test_what_is_one_s_own_is_not_there_for_another_tenant(tenants: Tenants) -> None:
    site, mine = tenants.site, tenants.tokens["member"]
    chat = site.chat(mine)
    asyncio.run(site.gateway.settled(chat.headers["x-request-id"]))
    kept = {"provider": "gpu", "api_key": "sk-one-of-my-own", "save_anyway": True}
    key = site.ask("POST", "/api/keys/providers", kept, token=mine)
    assert key.status == 201, key.body
    paths = (
        f"/api/users/{tenants.member_id}",
        f"/api/keys/providers/{key.body['id']}",
        f"/api/requests/{chat.headers['x-request-id']}",
    )
    for path in paths:
        for token in (mine, tenants.tokens["admin"]):
            answer = site.ask("GET", path, token=token)
            assert answer.status == 200, answer
        answer = site.ask("GET", path, token=tenants.other)
        assert answer.status == 404, answer
    assert tenants.tokens["viewer"] != tenants.other
    seen = site.ask("GET", paths[0], token=tenants.tokens["viewer"])  # of the same team
    assert seen.status == 200
    for method, body in (("PATCH", {"name": "theirs"}), ("DELETE", None)):
        assert site.ask(method, paths[1], body, token=tenants.other).status == 404
        assert site.ask(method, paths[1], body, token=tenants.tokens["viewer"]).status == 403
    assert site.ask("DELETE", paths[1], token=mine).status == 200
