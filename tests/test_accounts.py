"""People at a real gateway: the first is the admin, the others are invited; what they may; and that it ends at once."""

from __future__ import annotations

import asyncio
import http.client
import json
import subprocess
import time
from collections.abc import Iterator, Mapping
from http.cookies import SimpleCookie
from typing import Any, NamedTuple

import pytest

from tests.gateway import Gateway

MASTER = "q7Zt2mVx9Lk4Wn8Rb3Hd6Jc5Pf1Ys0Ga"
GOOD = "correct horse battery"
CONFIG = f"auth: {{master_key: {MASTER}}}\n"
SOON_SECONDS = 5.0


class Answer(NamedTuple):
    status: int
    body: Any
    headers: Mapping[str, str]
    cookies: dict[str, str]

    @property
    def code(self) -> str:
        return str(self.body["error"]["code"])


class Site:
    """One gateway; `admin` is the access token of its first account."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.admin = ""

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        token: str = "",
        headers: Mapping[str, str] | None = None,
        cookies: Mapping[str, str] | None = None,
    ) -> Answer:
        sent = {"content-type": "application/json", **(headers or {})}
        if token:
            sent["authorization"] = f"Bearer {token}"
        if cookies:
            sent["cookie"] = "; ".join(f"{name}={value}" for name, value in cookies.items())
        connection = http.client.HTTPConnection("127.0.0.1", self.gateway.port, timeout=20)
        connection.request(method, path, body=None if body is None else json.dumps(body), headers=sent)
        answer = connection.getresponse()
        data = answer.read()
        jar = SimpleCookie()
        for name, value in answer.getheaders():
            if name.lower() == "set-cookie":
                jar.load(value)
        connection.close()
        found = json.loads(data) if data else None
        return Answer(answer.status, found, dict(answer.getheaders()), {name: jar[name].value for name in jar})

    def invited(self, email: str, role: str = "member", **more: object) -> Answer:
        made = self.ask("POST", "/api/invitations", {"email": email, "role": role, **more}, token=self.admin)
        assert made.status == 201, made.body
        return self.ask(
            "POST", "/auth/register", {"email": email, "password": GOOD, "invitation": made.body["invitation"]}
        )

    def chat(self, token: str, model: str = "sim/echo") -> Answer:
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
        return self.ask("POST", "/v1/chat/completions", body, token=token)

    def soon(self, status: int, path: str, token: str) -> bool:
        deadline = time.monotonic() + SOON_SECONDS
        while time.monotonic() < deadline:
            if self.ask("GET", path, token=token).status == status:
                return True
            time.sleep(0.02)
        return False


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    gateway = Gateway(tmp_path_factory.mktemp("accounts") / "home")
    gateway.config.write_text(CONFIG)
    made = Site(gateway.start())
    yield made
    gateway.stop()


@pytest.fixture(scope="module", autouse=True)
def admin(site: Site) -> str:
    """The first account, made with the master key."""
    first = {"email": "Ann@example.com", "password": GOOD, "name": "Ann"}
    for token in ("", site.gateway.key):
        early = site.ask("POST", "/auth/register", first, token=token)
        assert (early.status, early.code) == (403, "registration_closed")
    made = site.ask("POST", "/auth/register", first, token=MASTER)
    assert made.status == 201, made.body
    assert made.body["user"]["role"] == "admin"
    site.admin = made.body["access_token"]
    return site.admin


def test_a_second_one_is_no_admin_and_nobody(site: Site) -> None:
    again = site.ask("POST", "/auth/register", {"email": "b@example.com", "password": GOOD}, token=MASTER)
    assert (again.status, again.code) == (403, "registration_closed")


def test_a_log_in_answers_with_tokens_and_the_user(site: Site) -> None:
    said = site.ask("POST", "/auth/login", {"email": "ann@example.com", "password": GOOD})
    assert said.status == 200
    assert said.body.keys() == {"access_token", "refresh_token", "token_type", "expires_in", "user"}
    assert (said.body["expires_in"], said.body["token_type"]) == (900, "bearer")
    me = site.ask("GET", "/auth/me", token=said.body["access_token"])
    assert me.body == said.body["user"]
    assert (me.body["email"], me.body["name"], me.body["role"]) == ("Ann@example.com", "Ann", "admin")


def test_an_invited_member_asks_models_and_is_billed_by_name(site: Site) -> None:
    made = site.invited("mia@example.com")
    assert (made.status, made.body["user"]["role"]) == (201, "member")
    token = made.body["access_token"]
    answered = site.chat(token)
    assert answered.status == 200
    [row] = asyncio.run(site.gateway.settled(answered.headers["x-request-id"]))
    assert (row["key_name"], str(row["user_id"])) == ("mia@example.com", made.body["user"]["id"])


def test_an_invitation_is_good_once_and_for_its_address(site: Site) -> None:
    made = site.ask("POST", "/api/invitations", {"email": "ivy@example.com"}, token=site.admin)
    text = {"invitation": made.body["invitation"], "password": GOOD}
    assert site.ask("POST", "/auth/register", {**text, "email": "eve@example.com"}).code == "invitation_refused"
    assert site.ask("POST", "/auth/register", {**text, "email": "IVY@example.com"}).status == 201
    assert site.ask("POST", "/auth/register", {**text, "email": "ivy@example.com"}).code == "invitation_refused"
    listed = site.ask("GET", "/api/invitations", token=site.admin).body["data"]
    [mine] = [one for one in listed if one["id"] == made.body["id"]]
    assert mine["accepted_at"] is not None
    assert "invitation" not in mine


def test_an_address_is_the_same_on_every_keyboard(site: Site) -> None:
    composed, apart = "jos\u00e9@example.com", "JOSE\u0301@example.com"
    assert site.invited(apart).body["user"]["email"] == "JOS\u00c9@example.com"
    for email in (composed, apart):
        assert site.ask("POST", "/auth/login", {"email": email, "password": GOOD}).status == 200
    assert site.invited(composed).code == "account_exists"
    made = site.ask("POST", "/api/invitations", {"email": "zo\u00eb@example.com"}, token=site.admin).body
    given = {"invitation": made["invitation"], "password": GOOD, "email": "zoe\u0308@example.com"}
    assert site.ask("POST", "/auth/register", given).status == 201
    grows = {"email": "\u0958" * 300 + "@b.c", "password": GOOD}
    assert site.ask("POST", "/auth/login", grows).code == "invalid_value"


def test_a_revoked_invitation_is_good_no_more(site: Site) -> None:
    made = site.ask("POST", "/api/invitations", {}, token=site.admin).body
    assert site.ask("DELETE", f"/api/invitations/{made['id']}", token=site.admin).status == 204
    assert site.ask("DELETE", f"/api/invitations/{made['id']}", token=site.admin).status == 404
    said = {"email": "x@example.com", "password": GOOD, "invitation": made["invitation"]}
    assert site.ask("POST", "/auth/register", said).code == "invitation_refused"


def test_a_viewer_sees_and_asks_no_model(site: Site) -> None:
    token = site.invited("vic@example.com", "viewer").body["access_token"]
    assert site.ask("GET", "/v1/models", token=token).status == 200
    refused = site.chat(token)
    assert (refused.status, refused.code) == (403, "forbidden")
    assert site.ask("POST", "/api/invitations", {}, token=token).status == 403
    assert [one["email"] for one in site.ask("GET", "/api/users", token=token).body["data"]] == ["vic@example.com"]


def test_a_refresh_token_is_good_once_and_shown_twice_ends_the_session(site: Site) -> None:
    first = site.invited("ron@example.com").body
    second = site.ask("POST", "/auth/refresh", {"refresh_token": first["refresh_token"]})
    assert second.status == 200
    assert site.ask("GET", "/auth/me", token=second.body["access_token"]).status == 200
    assert site.ask("POST", "/auth/refresh", {"refresh_token": first["refresh_token"]}).code == "session_ended"
    assert site.ask("POST", "/auth/refresh", {"refresh_token": second.body["refresh_token"]}).code == "session_ended"
    assert site.soon(401, "/auth/me", second.body["access_token"])


def test_logging_out_ends_this_session_and_everywhere_all(site: Site) -> None:
    one = site.invited("lou@example.com").body
    two, three = (
        site.ask("POST", "/auth/login", {"email": "lou@example.com", "password": GOOD}).body for _ in range(2)
    )
    assert site.ask("POST", "/auth/logout", {}, token=one["access_token"]).status == 204
    assert site.soon(401, "/auth/me", one["access_token"])
    assert site.ask("GET", "/auth/me", token=two["access_token"]).status == 200
    assert site.ask("POST", "/auth/logout", {"refresh_token": two["refresh_token"], "everywhere": True}).status == 204
    for token in (two["access_token"], three["access_token"]):
        assert site.soon(401, "/auth/me", token)
    assert site.ask("POST", "/auth/logout", {}).status == 401


def test_a_new_password_ends_the_sessions_of_the_old_one(site: Site) -> None:
    before = site.invited("pat@example.com").body
    wrong = {"current_password": "wrong horse battery", "new_password": "another long passphrase"}
    assert site.ask("POST", "/auth/password", wrong, token=before["access_token"]).code == "wrong_credentials"
    weak = {"current_password": GOOD, "new_password": "short"}
    assert site.ask("POST", "/auth/password", weak, token=before["access_token"]).code == "weak_password"
    changed = site.ask("POST", "/auth/password", {**wrong, "current_password": GOOD}, token=before["access_token"])
    assert changed.status == 200
    assert site.soon(401, "/auth/me", before["access_token"])
    assert site.ask("GET", "/auth/me", token=changed.body["access_token"]).status == 200
    old = site.ask("POST", "/auth/login", {"email": "pat@example.com", "password": GOOD})
    assert old.code == "wrong_credentials"


def test_whoever_is_disabled_is_out_at_once_and_comes_back_by_signing_in(site: Site) -> None:
    made = site.invited("dan@example.com").body
    path = f"/api/users/{made['user']['id']}"
    assert site.ask("PATCH", path, {"disabled": True}, token=site.admin).body["disabled"] is True
    assert site.soon(401, "/auth/me", made["access_token"])
    assert site.ask("POST", "/auth/login", {"email": "dan@example.com", "password": GOOD}).code == "wrong_credentials"
    assert site.ask("PATCH", path, {"disabled": False}, token=site.admin).status == 200
    assert site.ask("GET", "/auth/me", token=made["access_token"]).status == 401
    assert site.ask("POST", "/auth/login", {"email": "dan@example.com", "password": GOOD}).status == 200


def test_a_role_is_what_it_is_now_and_not_what_a_token_was_made_with(site: Site) -> None:
    made = site.invited("rob@example.com").body
    assert site.chat(made["access_token"]).status == 200
    site.ask("PATCH", f"/api/users/{made['user']['id']}", {"role": "viewer"}, token=site.admin)
    deadline = time.monotonic() + SOON_SECONDS
    while site.chat(made["access_token"]).status != 403:
        assert time.monotonic() < deadline


def test_the_last_admin_stays_one(site: Site) -> None:
    me = site.ask("GET", "/auth/me", token=site.admin).body["id"]
    for change in ({"role": "member"}, {"disabled": True}):
        assert site.ask("PATCH", f"/api/users/{me}", change, token=site.admin).code == "last_admin"


def test_people_of_one_team_see_each_other_and_nobody_else(site: Site) -> None:
    team = site.ask("POST", "/api/teams", {"name": "blue"}, token=site.admin)
    assert team.status == 201
    assert site.ask("POST", "/api/teams", {"name": "blue"}, token=site.admin).code == "name_taken"
    one = site.invited("t1@example.com", team_id=team.body["id"]).body
    site.invited("t2@example.com", team_id=team.body["id"])
    seen = site.ask("GET", "/api/users", token=one["access_token"]).body["data"]
    assert {user["email"] for user in seen} == {"t1@example.com", "t2@example.com"}
    [mine] = site.ask("GET", "/api/teams", token=one["access_token"]).body["data"]
    assert (mine["name"], mine["members"]) == ("blue", 2)
    assert site.ask("POST", "/api/teams", {"name": "red"}, token=one["access_token"]).status == 403
    renamed = site.ask("PATCH", f"/api/teams/{team.body['id']}", {"name": "navy"}, token=site.admin)
    assert renamed.body["name"] == "navy"


def test_a_team_is_named_by_its_id_as_it_is_written_here(site: Site) -> None:
    team = site.ask("POST", "/api/teams", {"name": "violet"}, token=site.admin).body["id"]
    user = site.invited("una@example.com").body["user"]["id"]
    for said in ("", team.upper(), team.replace("-", ""), f"{{{team}}}"):
        refused = site.ask("PATCH", f"/api/users/{user}", {"team_id": said}, token=site.admin)
        assert (refused.status, refused.code, refused.body["error"]["param"]) == (400, "invalid_value", "team_id")
    assert site.ask("PATCH", f"/api/users/{user}", {"team_id": team}, token=site.admin).body["team_id"] == team


def test_everybody_is_listed_page_by_page(site: Site) -> None:
    seen, cursor = list[str](), ""
    while True:
        page = site.ask("GET", f"/api/users?limit=3{cursor and '&cursor=' + cursor}", token=site.admin).body
        seen += [user["id"] for user in page["data"]]
        cursor = page["next_cursor"]
        if not page["has_more"]:
            break
    assert len(seen) == len(set(seen)) > 3


def test_the_console_s_cookies_read_and_change_nothing_without_the_page_s_token(site: Site) -> None:
    said = site.ask("POST", "/auth/login", {"email": "ann@example.com", "password": GOOD, "session": "cookie"})
    assert "access_token" not in said.body
    assert said.cookies.keys() == {"strata_access", "strata_refresh"}
    raw = said.headers["set-cookie"]
    assert "HttpOnly" in raw
    assert "SameSite=strict" in raw
    assert "Secure" not in raw  # this is http
    me = site.ask("GET", "/auth/me", cookies=said.cookies)
    assert me.body["csrf_token"] == said.body["csrf_token"]
    body = {"name": "made by a cookie"}
    assert site.ask("POST", "/api/teams", body, cookies=said.cookies).code == "csrf_token_missing"
    other = {"x-csrf-token": "0" * 64}
    assert site.ask("POST", "/api/teams", body, cookies=said.cookies, headers=other).code == "csrf_token_missing"
    right = {"x-csrf-token": said.body["csrf_token"]}
    assert site.ask("POST", "/api/teams", body, cookies=said.cookies, headers=right).status == 201
    again = site.ask("POST", "/auth/refresh", {}, cookies=said.cookies)
    assert again.cookies.keys() == said.cookies.keys()
    assert again.body["csrf_token"] == said.body["csrf_token"]
    out = site.ask("POST", "/auth/logout", {}, cookies=again.cookies, headers=right)
    assert (out.status, set(out.cookies.values())) == (204, {""})
    chat = site.ask("POST", "/v1/chat/completions", {"model": "sim/echo", "messages": []}, cookies=again.cookies)
    assert chat.code == "missing_api_key"


def test_the_console_signs_out_when_its_access_token_has_expired(site: Site) -> None:
    said = site.ask("POST", "/auth/login", {"email": "ann@example.com", "password": GOOD, "session": "cookie"})
    late = {**said.cookies, "strata_access": "eyJhbGciOiJIUzI1NiJ9.eyJleHAiOjF9.expired"}
    assert site.ask("POST", "/auth/logout", {}, cookies=late).code == "csrf_token_missing"
    out = site.ask("POST", "/auth/logout", {}, cookies=late, headers={"x-csrf-token": said.body["csrf_token"]})
    assert (out.status, set(out.cookies.values())) == (204, {""})
    assert site.ask("POST", "/auth/refresh", {}, cookies=said.cookies).code == "session_ended"


def test_a_form_of_another_site_is_not_json(site: Site) -> None:
    form = site.ask("POST", "/auth/login", {"email": "a@b", "password": "x"}, headers={"content-type": "text/plain"})
    assert (form.status, form.code) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    "body",
    [
        {"email": "nobody", "password": GOOD},
        {"email": "a\0@b.c", "password": GOOD},
        {"email": "a@b.c\n", "password": GOOD},
        {"email": "a@b.c", "password": ""},
        {"email": "a@b.c", "password": "x" * 1025},
        {"email": "a@b.c" + "x" * 320, "password": GOOD},
        {"email": "a@b.c"},
        {"email": "a@b.c", "password": GOOD, "admin": True},
        ["a@b.c"],
        None,
        "\ud800",
        {"email": "\ud800@b.c", "password": GOOD},
    ],
)
def test_what_is_no_log_in_is_refused_before_anything_is_looked_up(site: Site, body: object) -> None:
    said = site.ask("POST", "/auth/login", body)
    assert (said.status, said.body["error"]["type"]) == (400, "invalid_request_error")


def test_what_people_change_is_in_the_audit_log_without_a_secret(site: Site) -> None:
    made = site.invited("zoe@example.com").body
    site.ask("PATCH", f"/api/users/{made['user']['id']}", {"name": "Zoe"}, token=site.admin)
    rows = site.ask("GET", f"/api/audit?object={made['user']['id']}", token=site.admin).body["data"]
    assert [row["action"] for row in rows] == ["user.change", "user.create"]
    assert rows[0]["before"]["name"] == ""
    assert rows[0]["after"]["name"] == "Zoe"
    everything = json.dumps(site.ask("GET", "/api/audit?limit=200", token=site.admin).body)
    assert GOOD not in everything
    assert "argon2" not in everything


def test_a_key_knows_itself_and_no_users(site: Site) -> None:
    assert site.ask("GET", "/auth/me", token=site.gateway.key).body["role"] == "key"
    assert site.ask("GET", "/api/users", token=site.gateway.key).status == 403
    assert site.ask("GET", "/auth/me", token=MASTER).body["object"] == "master_key"
    assert site.ask("POST", "/auth/password", {"current_password": "x", "new_password": GOOD}, token=MASTER).code == (
        "no_password"
    )


def test_the_operator_makes_changes_and_shuts_out_people_on_the_machine(site: Site) -> None:
    def strata(*words: str, typed: str = "") -> subprocess.CompletedProcess[str]:
        return site.gateway.strata("users", *words, typed=typed)

    made = strata("create", "olga@example.com", "--role", "viewer", "--json", typed=f"{GOOD}\n")
    assert made.returncode == 0, made.stderr
    assert "already" in strata("create", "OLGA@example.com", typed=f"{GOOD}\n").stderr
    assert "characters" in strata("create", "otto@example.com", typed="short\n").stderr
    assert "no e-mail address" in strata("create", "otto", typed=f"{GOOD}\n").stderr
    first = site.ask("POST", "/auth/login", {"email": "olga@example.com", "password": GOOD})
    assert first.body["user"]["role"] == "viewer"
    assert strata("change", "olga@example.com", "--role", "member", "--name", "Olga").returncode == 0
    assert strata("sign-out", json.loads(made.stdout)["id"]).returncode == 0
    assert site.soon(401, "/auth/me", first.body["access_token"])
    assert strata("password", "olga@example.com", typed="another long passphrase\n").returncode == 0
    assert site.ask("POST", "/auth/login", {"email": "olga@example.com", "password": GOOD}).status == 401
    right = {"email": "olga@example.com", "password": "another long passphrase"}
    assert site.ask("POST", "/auth/login", right).body["user"] == {
        **first.body["user"],
        "role": "member",
        "name": "Olga",
    }
    assert strata("change", "olga@example.com", "--disable").returncode == 0
    assert site.ask("POST", "/auth/login", right).status == 401
    listed = strata("list").stdout
    assert "olga@example.com" in listed
    assert "disabled" in listed
    invitation = json.loads(strata("invite", "--role", "viewer", "--json").stdout)["invitation"]
    came = site.ask("POST", "/auth/register", {"email": "o2@example.com", "password": GOOD, "invitation": invitation})
    assert came.body["user"]["role"] == "viewer"
    assert "nobody" in strata("sign-out", "nobody@example.com").stderr
    assert GOOD not in json.dumps(site.ask("GET", "/api/audit?limit=200", token=site.admin).body)
