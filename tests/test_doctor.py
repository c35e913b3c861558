"""`strata doctor`: what it finds in a set-up, what it leaves as it was, and what it never says."""

from __future__ import annotations

import asyncio
import fcntl
import http.server
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import asyncpg
import msgspec
import pytest

from proxy.cli import main
from proxy.commands.checkup.edges import valid_until
from proxy.commands.checkup.machine import file_system, judge_place, judge_room
from proxy.commands.checkup.stores import judge_server
from proxy.config import Config, Database, Secret
from proxy.config.listeners import Tls
from proxy.storage.migrations import migrate
from proxy.storage.standing import Standing
from tests.certificates import client_of, write_certificate
from tests.conftest import needs, run_sql
from tests.gateway import Gateway, free_port
from tests.redis_server import RedisServer
from tests.test_cli import strata

MASTER = "q7Zt2mVx9Lk4Wn8Rb3Hd6Jc5Pf1Ys0Ga"
OTHER = "Xw3Tn9Qe7Ru5Yi1Op4As6Df8Gh2Jk0Lz"
PROVIDER_KEY = "sk-proj-Zq8vT3nKx5Lw9Rb2Hd7Jc4Mf"
TOKEN = "metrics-Vb6Nm1Qa3Ws5Ed7Rf9Tg"
MACHINES = {"journal", "disk", "open files", "cores"}
"""What the machine gives on which the tests run."""


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Doctor:
    """Runs it on a configuration, in a folder of its own."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.code = 0
        self.text = ""
        """All that it printed the last time."""

    def __call__(self, text: str, environ: Mapping[str, str], *words: str) -> dict[str, tuple[str, str]]:
        """By what each finding is about: its level and message."""
        Path("config.yaml").write_text(text)
        self._capsys.readouterr()
        self.code = main(["doctor", "--json", *words], environ)
        self.text = "".join(self._capsys.readouterr())
        said = msgspec.json.decode(self.text)
        assert said["ok"] == (self.code == 0)
        return {finding["about"]: (finding["level"], finding["message"]) for finding in said["findings"]}


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Doctor:
    return Doctor(capsys)


@pytest.fixture
def hosted_dsn(migrated_template: str) -> Iterator[str]:
    """A migrated database whose login owns it, and is no superuser."""
    make = (
        "CREATE ROLE doctors LOGIN CREATEROLE PASSWORD 'hush-hush-hush'",
        "GRANT strata_app TO doctors",
        "CREATE DATABASE doctors OWNER doctors",
    )
    asyncio.run(run_sql(migrated_template, *make))
    credentials = migrated_template[: migrated_template.index("@")]
    dsn = migrated_template.replace(credentials, "postgresql://doctors:hush-hush-hush")
    dsn = dsn.replace("/postgres?", "/doctors?")
    asyncio.run(migrate(dsn))
    yield dsn
    asyncio.run(run_sql(migrated_template, "DROP DATABASE doctors WITH (FORCE)", "DROP ROLE doctors"))


def fit(dsn: str) -> dict[str, str]:
    port = str(free_port())
    return {
        "DATABASE_URL": dsn,
        "STRATA_MASTER_KEY": MASTER,
        "OPENAI_API_KEY": PROVIDER_KEY,
        "STRATA_SERVER__PORT": port,
    }


def test_a_set_up_that_is_fit_has_nothing_to_be_told(doctor: Doctor, hosted_dsn: str) -> None:
    found = doctor("", fit(hosted_dsn), "--production")
    wrong = {about: said for about, said in found.items() if said[0] != "ok" and about not in MACHINES}
    assert wrong == {}
    assert {"configuration", "reach", "metrics", "master key", "migrations", "database", "database role"} <= set(found)
    assert {"clock", "budgets", "redis", "providers", "gateway", *MACHINES} <= set(found)
    assert found["database"][1].startswith("Postgres ")


@pytest.mark.parametrize(
    ("text", "more", "about", "words"),
    [
        ("server: {host: 0.0.0.0}", {}, "reach", "keys travel in the clear: set server.tls"),
        ("server: {host: 0.0.0.0}", {}, "metrics", "set telemetry.metrics.token"),
        ("server: {admin: {host: 0.0.0.0, port: 4999}}", {}, "reach", "server.admin.host is 0.0.0.0 without TLS"),
        ("", {"OPENAI_API_KEY": ""}, "providers", "none is on but the simulated one"),
        ("", {"STRATA_MASTER_KEY": ""}, "master key", "the first start will make one"),
        ("models: {dark: openai/nobody-knows}", {}, "configuration", "openai/nobody-knows has no price"),
        ("server: {max_in_flight: 1000000}", {}, "open files", "ulimit -n 2000200"),
        ("keys: {static: [{name: ci, key: '${OPENAI_API_KEY}'}]}", {}, "budgets", "1 key without a budget (ci)"),
        ("logging: {bodies: full}", {}, "bodies", "the log holds prompts and answers of every request; set it to none"),
    ],
)
def test_what_is_not_fit_for_others_is_a_warning_and_in_production_a_failure(
    doctor: Doctor, hosted_dsn: str, text: str, more: dict[str, str], about: str, words: str
) -> None:
    level, message = doctor(text, fit(hosted_dsn) | more)[about]
    assert (level, doctor.code) == ("warn", 0), message
    assert words in message
    assert doctor(text, fit(hosted_dsn) | more, "--production")[about] == ("fail", message)
    assert doctor.code == 1


@pytest.mark.parametrize(
    ("text", "about"),
    [
        ("server: {host: 0.0.0.0, trusted_proxies: [10.0.0.0/8]}", "reach"),
        ("server: {host: 0.0.0.0}\ntelemetry: {metrics: {token: '${TOKEN}'}}", "metrics"),
        ("server: {host: 0.0.0.0}\ntelemetry: {metrics: {enabled: false}}", "metrics"),
        ("server: {host: 0.0.0.0, admin: {port: 4999, metrics: true}}", "metrics"),
        (
            "budgets: [{scope: global, max_budget: 5, budget_duration: month}]\n"
            "keys: {static: [{name: ci, key: '${OPENAI_API_KEY}'}]}",
            "budgets",
        ),
        ("keys: {static: [{name: ci, key: '${OPENAI_API_KEY}', max_budget: 5}]}", "budgets"),
    ],
)
def test_there_is_more_than_one_way_to_be_fit(doctor: Doctor, hosted_dsn: str, text: str, about: str) -> None:
    level, message = doctor(text, fit(hosted_dsn) | {"TOKEN": TOKEN})[about]
    assert level == "ok", message


def test_a_configuration_that_is_wrong_is_all_there_is_to_say(doctor: Doctor) -> None:
    found = doctor("server: {prot: 1}", {})
    assert found == {
        "configuration": ("fail", 'config.yaml:1:10: unknown key "prot" in server. Did you mean "port"?'),
    }
    assert doctor.code == 1


def test_nothing_is_made_that_was_not_there(doctor: Doctor, tmp_path: Path) -> None:
    found = doctor("", {"STRATA_SERVER__PORT": str(free_port())})
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.yaml"]
    assert found["database"][0] == found["master key"][0] == "warn"


async def tables(dsn: str) -> int:
    connection = await asyncpg.connect(dsn, timeout=10)
    try:
        count: int = await connection.fetchval(
            "SELECT count(*) FROM pg_tables WHERE schemaname IN ('public', 'strata')"
        )
        return count
    finally:
        await connection.close()


def test_a_schema_that_is_behind_is_told_and_left_alone(doctor: Doctor, empty_database_dsn: str) -> None:
    environ = fit(empty_database_dsn)
    level, message = doctor("", environ)["migrations"]
    assert level == "warn" and "0001_initial" in message and "the next start applies them" in message
    level, message = doctor("database: {auto_migrate: false}", environ)["migrations"]
    assert level == "fail" and message.endswith("strata migrate")
    assert asyncio.run(tables(empty_database_dsn)) == 0


def test_a_schema_that_is_ahead_is_a_failure(doctor: Doctor, database_dsn: str) -> None:
    asyncio.run(run_sql(database_dsn, "INSERT INTO public.strata_migrations (name, sha256) VALUES ('9999_new', 'x')"))
    level, message = doctor("", fit(database_dsn))["migrations"]
    assert level == "fail" and "Upgrade Strata" in message


def test_a_database_that_is_away_is_a_failure_and_its_password_stays_secret(doctor: Doctor) -> None:
    level, message = doctor("", fit("postgresql://me:hush-hush-hush@127.0.0.1:1/db"))["database"]
    assert (level, doctor.code) == ("fail", 1)
    assert message == "The database cannot be reached at the moment. See whether it runs, and what DATABASE_URL says."
    assert "hush" not in doctor.text


def test_what_it_says_is_a_line_each_and_nothing_else(tmp_path: Path) -> None:
    Path("config.yaml").write_text("")
    environ = {"STRATA_SERVER__PORT": str(free_port()), "REDIS_URL": "redis://127.0.0.1:1/0"}
    done = strata(tmp_path, "doctor", environ=environ)
    assert (done.returncode, done.stderr) == (1, "")
    *lines, last = done.stdout.splitlines()
    assert {line.split()[0] for line in lines} == {"ok", "warn", "FAIL"}
    assert all(line.endswith((".", "strata migrate")) for line in lines)
    assert last.strip().startswith("1 failure, ")


def test_a_login_that_passes_by_row_level_security_is_told(doctor: Doctor, database_dsn: str) -> None:
    level, message = doctor("", fit(database_dsn))["database role"]
    assert level == "warn" and "neither SUPERUSER nor BYPASSRLS" in message


def test_another_databases_master_key_is_a_failure(doctor: Doctor, database_dsn: str) -> None:
    environ = fit(database_dsn)
    assert "vault" not in doctor("", environ)  # nothing is sealed yet, and looking seals nothing
    assert main(["keys", "create", "ci", "--budget", "5/1d"], environ) == 0
    assert main(["vault", "status"], environ) == 0
    assert doctor("", environ)["vault"][0] == "ok"
    level, message = doctor("", environ | {"STRATA_MASTER_KEY": OTHER})["vault"]
    assert level == "fail" and "does not open this database's vault" in message
    assert MASTER not in doctor.text and OTHER not in doctor.text


def test_keys_of_the_database_without_a_budget_are_named(
    doctor: Doctor, database_dsn: str, capsys: pytest.CaptureFixture[str]
) -> None:
    environ = fit(database_dsn)
    for words in (["one"], ["two"], ["bound", "--budget", "5/1d"], ["ended"]):
        assert main(["keys", "create", *words], environ) == 0
    assert main(["keys", "revoke", "ended"], environ) == 0
    made = capsys.readouterr().out
    level, message = doctor("", environ)["budgets"]
    assert level == "warn" and message.startswith("2 keys without a budget (two, one), and none for everybody")
    assert not any(word in doctor.text for word in made.split() if word.startswith("sk-strata-"))
    assert main(["budgets", "set", "global", "500/month"], environ) == 0
    capsys.readouterr()
    assert doctor("", environ)["budgets"][0] == "ok"


def test_the_generated_master_key_is_worth_a_copy(doctor: Doctor, hosted_dsn: str) -> None:
    environ = fit(hosted_dsn) | {"STRATA_MASTER_KEY": "", "STRATA_HOME": "data"}
    Path("data").mkdir()
    key = Path("data/master.key")
    key.write_text(MASTER + "\n")
    key.chmod(0o600)
    level, message = doctor("", environ)["master key"]
    assert level == "warn" and "the generated one in data/master.key" in message
    key.chmod(0o644)
    assert "chmod 600 data/master.key" in doctor("", environ)["master key"][1]
    key.write_text("short")
    assert doctor("", environ)["master key"][0] == "fail"


def test_no_secret_is_ever_printed(doctor: Doctor, hosted_dsn: str, capsys: pytest.CaptureFixture[str]) -> None:
    static = "sk-strata-" + OTHER
    text = f"""\
database: {{url: "{hosted_dsn}"}}
auth: {{master_key: {MASTER}}}
providers: {{openai: {{api_key: {PROVIDER_KEY}}}}}
telemetry: {{metrics: {{token: {TOKEN}}}}}
redis: {{url: "redis://:hush-redis@127.0.0.1:1/0"}}
keys: {{static: [{{name: ci, key: {static}}}]}}
alerts: {{channels: {{pager: {{type: webhook, url: "https://hooks.example.com/hush-url", secret: hush-signature}}}}}}
"""
    secrets = (MASTER, PROVIDER_KEY, TOKEN, static, "hush")
    for words in ((), ("--production",)):
        doctor(text, {}, *words)
        assert not any(secret in doctor.text for secret in secrets)
    assert main(["doctor", "--production"], {}) == 1
    printed = "".join(capsys.readouterr())
    assert "  FAIL  redis " in printed and printed.rstrip().endswith("failures.")
    assert not any(secret in printed for secret in secrets)


@pytest.mark.needs("redis-server")
def test_redis_is_asked_if_it_is_set(doctor: Doctor, hosted_dsn: str, tmp_path: Path) -> None:
    server = RedisServer(needs("redis-server"), tmp_path / "redis").start()
    environ = fit(hosted_dsn) | {"REDIS_URL": server.url}
    try:
        assert doctor("", environ)["redis"][0] == "ok"
    finally:
        server.stop()
    level, message = doctor("", environ)["redis"]
    assert level == "fail" and "each gateway passes its part of the limits alone" in message


class Ready(http.server.BaseHTTPRequestHandler):
    """A gateway that lacks something, as far as /readyz tells."""

    answer: ClassVar[tuple[int, bytes]] = (200, b"")

    def do_GET(self) -> None:
        status, body = self.answer
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@contextmanager
def serving(kind: type[http.server.BaseHTTPRequestHandler]) -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "level", "words"),
    [
        (200, b'{"status":"ready","degraded":[]}', "ok", "is ready"),
        (200, b'{"status":"ready","degraded":["redis"]}', "warn", "runs without its redis"),
        (503, b'{"status":"unavailable","degraded":["database"]}', "fail", "cannot serve, for it lacks database"),
        (200, b"<html>", "fail", "somebody else's"),
        (200, b'{"status":"ready"}', "fail", "somebody else's"),
    ],
)
def test_a_gateway_that_lacks_something_is_told(
    doctor: Doctor, hosted_dsn: str, status: int, body: bytes, level: str, words: str
) -> None:
    Ready.answer = (status, body)
    with serving(Ready) as port:
        found = doctor("", fit(hosted_dsn) | {"STRATA_SERVER__PORT": str(port)})["gateway"]
    assert found[0] == level and words in found[1]


class Listing(http.server.BaseHTTPRequestHandler):
    """A provider that lists its models to whoever has its key."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        known = self.headers["authorization"] == f"Bearer {PROVIDER_KEY}"
        body = b'{"data": [{"id": "a"}]}' if known else b'{"error": {"message": "no such key"}}'
        self.send_response(200 if known else 401)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def supplier() -> Iterator[str]:
    Listing.asked.clear()
    with serving(Listing) as port:
        yield f"http://127.0.0.1:{port}/v1"


def test_providers_are_asked_only_if_one_says_so(doctor: Doctor, hosted_dsn: str, supplier: str) -> None:
    text = f"""\
providers:
  good: {{type: openai_compatible, api_base: "{supplier}", api_key: {PROVIDER_KEY}}}
  bad: {{type: openai_compatible, api_base: "{supplier}", api_key: sk-of-nobody-0123456789}}
  gone: {{type: openai_compatible, api_base: "http://127.0.0.1:1/v1", api_key: sk-of-nobody-0123456789}}
"""
    environ = fit(hosted_dsn) | {"OPENAI_API_KEY": ""}
    assert doctor(text, environ)["providers"] == (
        "ok", "3 providers on (good, bad, gone); --providers asks each of them."
    )  # fmt: skip
    assert Listing.asked == []
    found = doctor(text, environ, "--providers")
    assert found["good"][0] == "ok" and found["good"][1].startswith("valid: 1 models, answered in ")
    assert found["bad"] == (
        "fail", "invalid: 401: no such key: put the right key into its variable, or under providers."
    )  # fmt: skip
    assert found["gone"][0] == "fail" and found["gone"][1].startswith("unreachable: ")
    assert doctor.code == 1
    assert PROVIDER_KEY not in doctor.text and "sk-of-nobody" not in doctor.text


@pytest.mark.parametrize(("days", "level"), [(90, "ok"), (5, "warn"), (-2, "fail")])
def test_a_certificate_that_ends_is_told_in_time(doctor: Doctor, hosted_dsn: str, days: int, level: str) -> None:
    certificate, key = write_certificate(Path("tls"), days=days)
    found = doctor(f"server: {{tls: {{certificate: {certificate}, key: {key}}}}}", fit(hosted_dsn))
    assert found["certificate"][0] == level
    assert (valid_until(Tls(certificate=str(certificate), key=str(key))) is None) == (level == "fail")


@pytest.mark.parametrize(
    ("ahead_seconds", "level"),
    [(0.2, "ok"), (-0.9, "ok"), (2.0, "warn"), (-2.0, "warn"), (45.0, "fail"), (-45.0, "fail")],
)
def test_clocks_that_differ_are_told(ahead_seconds: float, level: str) -> None:
    config = Config(database=Database(url=Secret("postgresql://h/d")))
    found = {one.about: one for one in judge_server(config, Standing("18.1", "me", False, 0.001, ahead_seconds))}
    assert found["clock"].level == level
    assert f"{abs(ahead_seconds):.2f} s off" in found["clock"].message


def test_a_database_that_is_slow_is_told() -> None:
    config = Config(database=Database(url=Secret("postgresql://h/d")))
    found = {one.about: one for one in judge_server(config, Standing("18.1", "me", False, 0.2, 0.1))}
    assert (found["database"].level, found["clock"].level) == ("warn", "ok")


def test_the_deepest_mount_that_holds_a_folder_says_what_it_is_on(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    lines = [
        "overlay / overlay rw 0 0",
        "tmpfs /run tmpfs rw 0 0",
        "/dev/sda1 /data ext4 rw 0 0",
        "tmpfs /data/my\\040disk tmpfs rw 0 0",
        "broken",
    ]
    mounts.write_text("\n".join(lines))
    for place, kind in {"/srv": "overlay", "/run/x": "tmpfs", "/data/x/y": "ext4", "/data/my disk/x": "tmpfs"}.items():
        assert file_system(Path(place), mounts) == kind
    assert file_system(Path("/datax"), mounts) == "overlay"
    assert file_system(Path("/srv"), tmp_path / "none") == ""


@pytest.mark.parametrize(
    ("kind", "seconds", "level", "words"),
    [
        ("ext4", 0.002, "ok", "in 2.0 ms"),
        ("", 0.002, "ok", "in 2.0 ms"),
        ("ext4", 0.08, "warn", "takes 80 ms"),
        ("tmpfs", 0.00001, "warn", "gone with the power"),
        ("overlay", 0.002, "warn", "mount a volume"),
    ],
)
def test_a_place_that_keeps_nothing_is_told(kind: str, seconds: float, level: str, words: str) -> None:
    found = judge_place(Path("/data"), kind, seconds)
    assert found.level == level and words in found.message


@pytest.mark.parametrize(("free", "level"), [(10**11, "ok"), (2 * 10**9, "warn"), (10**8, "fail")])
def test_a_disk_that_fills_is_told(free: int, level: str) -> None:
    assert judge_room(Path("/data"), free).level == level


def test_a_folder_that_takes_nothing_is_a_failure(doctor: Doctor, hosted_dsn: str) -> None:
    level, message = doctor("", fit(hosted_dsn), "--home", "/proc/strata")["journal"]
    assert level == "fail" and message.startswith("nothing can be written in /proc (")


def test_gateways_that_count_each_for_itself_are_told(doctor: Doctor, hosted_dsn: str, tmp_path: Path) -> None:
    journal = tmp_path / "data" / "journal"
    journal.mkdir(parents=True)
    environ = fit(hosted_dsn)
    cores = len(os.sched_getaffinity(0))
    with ExitStack() as held:
        for number in range(cores + 1):
            lock = held.enter_context((journal / f"worker-{number}.lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        (journal / "worker-dead.lock").touch()
        found = doctor("", environ, "--home", "data")
    assert found["cores"][0] == "warn" and f"{cores + 1} gateways run on this data folder" in found["cores"][1]
    assert found["limits"][0] == "warn" and "set REDIS_URL" in found["limits"][1]
    found = doctor("", environ, "--home", "data")
    assert found["cores"][0] == "ok" and "limits" not in found


def test_a_gateway_that_runs_is_found_and_counted(tmp_path: Path) -> None:
    certificate, key = write_certificate(tmp_path / "tls")
    gateway = Gateway(
        tmp_path / "home", server=f"tls: {{certificate: {certificate}, key: {key}}}", tls=client_of(certificate)
    )
    gateway.environ["STRATA_SERVER__PORT"] = str(gateway.port)

    def look() -> dict[str, str]:
        said = msgspec.json.decode(gateway.strata("doctor", "--json").stdout)
        return {finding["about"]: f"{finding['level']} {finding['message']}" for finding in said["findings"]}

    gateway.start()
    try:
        found = look()
        assert found["gateway"] == f"ok it runs on port {gateway.port}, and is ready."
        assert found["cores"].endswith("and 1 runs here now.")
        assert found["vault"].startswith("ok ")
        assert "the embedded one" in found["database"]
    finally:
        gateway.stop()
    found = look()
    assert found["gateway"].startswith("ok none answers on port ")
    assert found["cores"].endswith("and none runs here now.")
    assert found["vault"].startswith("ok ")
