"""
The rules of the image and of the compose file, and what the compose file's scripts do when they are run.

No engine is needed: the files are read, and real programs run the scripts. What the image holds: test_built_package.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import time
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import yaml

import proxy
from proxy.storage import embedded
from proxy.storage.binaries import find_binaries
from proxy.storage.embedded import EmbeddedPostgres
from proxy.storage.migrations import known_migrations, migrate
from tests.conftest import lack, needs, on_database, scratch_folder
from tests.dockerfile import LAST, dockerfile, environment, health_command, said
from tests.gateway import ROOT, Gateway, free_port

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
REQUIRED = frozenset(re.findall(r"\$\{([A-Z_]+):\?", (ROOT / "compose.yaml").read_text()))
SECRET = re.compile(r"KEY|TOKEN|PASSWORD|SECRET|CREDENTIAL")


# The image ------------------------------------------------------------------------------------------------------------


def test_the_image_has_one_pinned_base_and_a_stage_for_building() -> None:
    assert said("FROM") == ["${PYTHON} AS build", "${PYTHON}"]
    base = next(text for text in said("ARG", 0) if text.startswith("PYTHON="))
    assert re.fullmatch(r"PYTHON=python:3\.\d+\.\d+-slim-[a-z]+(@sha256:[0-9a-f]{64})?", base)
    minor = re.search(r"python:(3\.\d+)", base)
    assert minor is not None
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"Programming Language :: Python :: {minor[1]}" in project["classifiers"]
    assert f"/python{minor[1]}/" in " ".join(said("RUN", LAST))


def test_the_image_runs_as_a_user_who_owns_nothing_but_the_data() -> None:
    assert said("USER", LAST) == ["10001:10001"]
    words = [one.word for one in dockerfile()]
    assert words.index("USER") > max(place for place, word in enumerate(words) if word == "RUN")
    runs = " ".join(said("RUN", LAST))
    assert "--uid 10001" in runs and "install -d -o 10001 -g 10001 -m 0700 /data" in runs
    assert said("VOLUME") == ['["/data"]'] and environment()["STRATA_HOME"] == "/data"
    assert not any("--chown" in text for text in said("COPY"))


def test_the_image_installs_what_the_constraints_say_and_nothing_by_the_way() -> None:
    runs = " ".join(said("RUN"))
    assert "ADD" not in {one.word for one in dockerfile()}
    assert not re.search(r"\b(apt|apt-get|apk|curl|wget|sudo|gcc|build-essential)\b", runs)
    for command in re.findall(r"\bpip\b[^&|]*\binstall\b[^&|]*", runs):
        assert "-c constraints.txt" in command and "--no-cache-dir" in command, command
    assert "--only-binary :all:" in runs
    assert not any(re.search(r"latest", one.text) for one in dockerfile())


def test_the_image_holds_no_secret_and_copies_only_what_it_is_made_of() -> None:
    settings = [*said("ENV"), *said("ARG")]
    names = [part.partition("=")[0] for text in settings for part in shlex.split(text)]
    assert [name for name in names if SECRET.search(name)] == []
    copied = [part for text in said("COPY", 1) for part in text.split()[:-1]]
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    kept = [line[1:] for line in ignored if line.startswith("!")]
    assert next(line for line in ignored if line and not line.startswith("#")) == "*"
    assert sorted(kept) == sorted(copied)
    assert all((ROOT / name).exists() for name in copied)


def test_the_image_says_what_it_is_how_it_is_and_where_it_listens() -> None:
    labels = dict(part.split("=", 1) for text in said("LABEL") for part in shlex.split(text))
    assert labels["org.opencontainers.image.version"] == proxy.__version__
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["strata.sbom"] in " ".join(said("RUN", 1))
    assert said("EXPOSE") == ["4000"] and environment()["STRATA_SERVER__HOST"] == "0.0.0.0"
    assert said("ENTRYPOINT") == ['["strata"]']
    assert "/readyz" in health_command(said("HEALTHCHECK")[0])[-1]


# compose.yaml --------------------------------------------------------------------------------------------------------


def test_compose_has_the_five_services_each_pinned_watched_and_bounded() -> None:
    assert SERVICES.keys() == {"strata", "postgres", "redis", "prometheus", "grafana"}
    for name, service in SERVICES.items():
        assert re.search(r":v?\d+\.\d+(\.\d+)?(-[a-z]+)?$", service["image"]), name
        assert service["healthcheck"]["test"], name
        limits = service["deploy"]["resources"]["limits"]
        assert limits.keys() == {"cpus", "memory", "pids"}, name
    assert SERVICES["strata"]["image"] == f"strata-gateway:{proxy.__version__}"


def test_compose_takes_every_right_away_that_is_not_needed() -> None:
    for name, service in SERVICES.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.keys() & {"privileged", "network_mode", "pid", "ipc", "devices"}, name
        assert not any("docker.sock" in volume for volume in service.get("volumes", [])), name
        assert service.keys().isdisjoint({"cap_add"}) or name == "postgres", name
        assert all(volume.endswith(":ro") for volume in service.get("volumes", []) if volume.startswith(".")), name


def test_compose_waits_until_what_is_needed_is_healthy() -> None:
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"} and other in SERVICES, name
    assert SERVICES["strata"]["depends_on"].keys() == {"postgres", "redis"}
    assert SERVICES["grafana"]["depends_on"].keys() == {"strata", "prometheus"}


def test_only_strata_and_grafana_can_be_reached_and_by_default_from_this_machine() -> None:
    ports = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert ports.keys() == {"strata", "grafana"}
    assert all(re.match(r"\$\{[A-Z_]+:-127\.0\.0\.1\}:", port) for these in ports.values() for port in these)
    assert COMPOSE["networks"]["inside"]["internal"] is True
    outside = {name for name, service in SERVICES.items() if "outside" in service["networks"]}
    assert outside == ports.keys()


def test_what_is_written_is_kept_in_named_volumes() -> None:
    mounted = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    assert {one for one in mounted if not one.startswith(".")} == COMPOSE["volumes"].keys()
    assert all((ROOT / one).exists() for one in mounted if one.startswith("."))


def test_nothing_starts_with_a_secret_that_others_know() -> None:
    text = (ROOT / "compose.yaml").read_text()
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if SECRET.search(name) or re.search(r"://[^/]*:[^/]*@", value):
                assert re.search(r"\$\{[A-Z_]+:\?[^}]+\}|^\$\{[A-Z_]+:-\}$", value), name
    defaults = dict(re.findall(r"\$\{([A-Z_]+):-([^}]*)\}", text))
    assert {name: value for name, value in defaults.items() if SECRET.search(name) and value} == {}


def test_the_example_fills_itself_with_secrets_of_its_own(tmp_path: Path) -> None:
    example = (ROOT / ".env.example").read_text()
    recipe = "\n".join(line.removeprefix("#   ") for line in example.splitlines() if line.startswith("#   "))
    (tmp_path / ".env.example").write_text(example)
    subprocess.run(["sh", "-euc", recipe], cwd=tmp_path, check=True, timeout=30)
    made = dict(line.split("=", 1) for line in (tmp_path / ".env").read_text().splitlines() if re.match("[A-Z]", line))
    assert made.keys() == REQUIRED
    assert all(re.fullmatch(r"[0-9a-f]{64}", value) for value in made.values())
    assert len(set(made.values())) == len(made)
    assert (tmp_path / ".env").stat().st_mode & 0o077 == 0
    assert re.search(r"^\.env$", (ROOT / ".gitignore").read_text(), re.MULTILINE)


def script_of(service: str, key: str) -> str:
    """The shell script that a service runs, as the container gets it."""
    shell, option, script = SERVICES[service][key]
    assert (shell, option) == ("sh", "-c")
    return str(script).replace("$$", "$")


@contextlib.contextmanager
def redis_of_the_compose_file(folder: Path, port: int, password: str) -> Iterator[subprocess.Popen[bytes]]:
    program = needs("redis-server")
    script = script_of("redis", "command").replace("redis-server -", f"{program} - --port {port} --bind 127.0.0.1", 1)
    environ = {"REDIS_PASSWORD": password, "PATH": os.environ["PATH"]}
    process = subprocess.Popen(["sh", "-c", script], cwd=folder, env=environ, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(10)


@pytest.mark.needs("redis-server")
def test_redis_asks_for_its_password_which_stands_on_no_command_line(tmp_path: Path) -> None:
    port = free_port()
    with redis_of_the_compose_file(tmp_path, port, "of-the-tests") as process:
        answers = asyncio.run(talk_to_redis(port))
        command_line = Path(f"/proc/{process.pid}/cmdline")
        if command_line.exists():
            words = command_line.read_bytes()
            assert b"redis-server" in words and b"of-the-tests" not in words
    assert answers[0].startswith("-NOAUTH") and answers[1:] == ["+OK", "+PONG"]


async def talk_to_redis(port: int) -> list[str]:
    for _ in range(200):
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            break
        await asyncio.sleep(0.05)
    else:
        raise AssertionError("redis-server did not start")
    answers = []
    for line in (b"PING\r\n", b"AUTH of-the-tests\r\n", b"PING\r\n"):
        writer.write(line)
        answers.append((await asyncio.wait_for(reader.readline(), 5)).decode().strip())
    writer.close()
    await writer.wait_closed()
    return answers


def test_prometheus_reads_the_rules_that_are_there() -> None:
    [path] = yaml.safe_load((ROOT / "grafana/prometheus.yaml").read_text())["rule_files"]
    assert "./grafana:/etc/strata:ro" in SERVICES["prometheus"]["volumes"]
    assert (ROOT / "grafana" / path.removeprefix("/etc/strata/")).is_file()


def test_prometheus_finds_the_token_where_its_configuration_looks_for_it(tmp_path: Path) -> None:
    scrape = yaml.safe_load((ROOT / "grafana/prometheus.yaml").read_text())["scrape_configs"][0]
    place = scrape["authorization"]["credentials_file"]
    script = script_of("prometheus", "entrypoint")
    assert place in script and "--config.file=/etc/strata/prometheus.yaml" in script
    assert any(one.startswith(f"{Path(place).parent}:") for one in SERVICES["prometheus"]["tmpfs"])
    script = script.replace(place, str(tmp_path / "token")).replace("exec /bin/prometheus", "env; :")
    done = subprocess.run(
        ["sh", "-euc", script], env={"METRICS_TOKEN": "of-the-tests", "PATH": os.environ["PATH"]}, check=True,
        capture_output=True, timeout=30, text=True,
    )  # fmt: skip
    assert (tmp_path / "token").read_text() == "of-the-tests"
    assert (tmp_path / "token").stat().st_mode & 0o077 == 0
    assert "of-the-tests" not in done.stdout
    assert scrape["static_configs"][0]["targets"] == ["strata:4000"] and scrape["metrics_path"] == "/metrics"
    assert "STRATA_TELEMETRY__METRICS__TOKEN" in SERVICES["strata"]["environment"]


def test_grafana_knows_both_sources_and_reads_the_ledger_as_the_role_that_only_reads() -> None:
    folder = ROOT / "grafana" / "provisioning"
    sources = {
        one["uid"]: one for one in yaml.safe_load((folder / "datasources/strata.yaml").read_text())["datasources"]
    }
    ledger, prometheus = sources["strata-ledger"], sources["strata-prometheus"]
    assert ledger["user"] == "strata_grafana" and ledger["url"] == "postgres:5432"
    variable = ledger["secureJsonData"]["password"].removeprefix("$")
    assert {variable, "GF_PATHS_PROVISIONING"} <= SERVICES["grafana"]["environment"].keys()
    assert prometheus["url"] == "http://prometheus:9090" and prometheus["isDefault"]
    boards = yaml.safe_load((folder / "dashboards/strata.yaml").read_text())["providers"][0]
    mounted = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"])
    assert boards["options"]["path"] == f"{mounted['./grafana']}/dashboards"
    assert SERVICES["grafana"]["environment"]["GF_PATHS_PROVISIONING"] == f"{mounted['./grafana']}/provisioning"


async def test_the_logins_of_the_compose_file_can_migrate_and_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "OWNER", "postgres")  # as in the image: "strata" is not the superuser's name there
    home = scratch_folder()
    server = EmbeddedPostgres(home / "home")
    try:
        dsn = server.start()
        psql = find_binaries(None) / "psql"
        if not psql.exists():
            lack("psql is not installed beside the Postgres of the tests")
        passwords = {"STRATA_DATABASE_PASSWORD": "a" * 64, "GRAFANA_DATABASE_PASSWORD": "b" * 64}
        subprocess.run(
            [psql, "--no-psqlrc", "-v", "ON_ERROR_STOP=1", "-f", ROOT / "grafana/postgres/logins.sql", "-d", dsn],
            env={**os.environ, **passwords},
            check=True,
            capture_output=True,
            timeout=60,
        )
        place = on_database(dsn, "strata").partition("@")[2]
        database = f"postgresql://strata:{'a' * 64}@{place}"
        assert await migrate(database) == [migration.name for migration in known_migrations()]
        owner = await asyncpg.connect(dsn, timeout=10)
        rows = await owner.fetch(
            "SELECT rolname, rolsuper, rolpassword LIKE 'SCRAM-SHA-256$%' FROM pg_authid"
            " WHERE rolname IN ('strata', 'strata_grafana') ORDER BY 1"
        )
        await owner.close(timeout=5)
        assert [tuple(row) for row in rows] == [("strata", False, True), ("strata_grafana", False, True)]
        reader = await asyncpg.connect(f"postgresql://strata_grafana:{'b' * 64}@{place}", timeout=10)
        assert await reader.fetch("SELECT * FROM grafana.usage") == []
        assert await reader.fetchval("SHOW default_transaction_read_only") == "on"
        await reader.close(timeout=5)
    finally:
        server.stop()
        shutil.rmtree(home)


def filled(value: str, secrets: Mapping[str, str]) -> str:
    """As Compose fills in a value, where nothing but the secrets is set."""
    required = re.sub(r"\$\{([A-Z_]+):\?[^}]*\}", lambda match: secrets[match[1]], value)
    return re.sub(r"\$\{[A-Z_]+:-([^}]*)\}", r"\1", required)


@pytest.mark.needs("redis-server")
def test_the_environment_of_the_compose_file_makes_a_gateway_that_has_everything(
    tmp_path: Path, database_dsn: str
) -> None:
    secrets = {name: f"{name.lower()}-of-the-tests-and-long-enough" for name in REQUIRED}
    environ = {name: filled(value, secrets) for name, value in SERVICES["strata"]["environment"].items()}
    assert environ["DATABASE_URL"].endswith("-of-the-tests-and-long-enough@postgres:5432/strata")
    port = free_port()
    with redis_of_the_compose_file(tmp_path, port, secrets["REDIS_PASSWORD"]):
        places = {
            "DATABASE_URL": database_dsn,
            "REDIS_URL": environ["REDIS_URL"].replace("redis:6379", f"127.0.0.1:{port}"),
        }
        gateway = Gateway(tmp_path / "home")
        gateway.environ = environ | places
        try:
            gateway.start()
            token = {"authorization": f"Bearer {secrets['METRICS_TOKEN']}", "host": "strata:4000"}
            deadline = time.monotonic() + 30
            while (
                b'strata_dependency_up{dependency="redis"} 1'
                not in (metrics := gateway.ask("GET", "/metrics", token)).body
            ):
                assert metrics.status == 200 and time.monotonic() < deadline, metrics.body.decode() + gateway.tail()
                time.sleep(0.1)  # it is measured twice a second
            ready = gateway.ask("GET", "/readyz", {"host": "127.0.0.1:4000"})
            assert (ready.status, json.loads(ready.body)) == (200, {"status": "ready", "degraded": []})
            assert gateway.ask("GET", "/metrics", {"host": "strata:4000"}).status == 401
            assert gateway.ask("GET", "/v1/models", {"host": "localhost:4000"}).status == 401
            assert gateway.ask("GET", "/v1/models", {"host": "elsewhere.example.com"}).status == 421
            admin = {"authorization": f"Bearer {secrets['STRATA_MASTER_KEY']}", "host": "localhost:4000"}
            assert gateway.ask("GET", "/api/prices", admin).status == 200
        finally:
            gateway.stop()
