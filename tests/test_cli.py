"""The command `strata`, as a process of its own in a folder of its own."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from proxy import __version__
from proxy.__main__ import run
from proxy.admission.keys import well_formed
from proxy.cli import main
from proxy.commands.keys import limits
from proxy.config import KeyDefaults
from proxy.config.problems import Wrong
from proxy.storage.binaries import find_binaries

ROOT = Path(__file__).resolve().parent.parent
USAGE_HELP = "Fix: strata usage --help\n"
HOLDER = """
import sys
from pathlib import Path
from proxy.storage.embedded import EmbeddedPostgres

server = EmbeddedPostgres(Path(sys.argv[1]))
server.start()
print("ready", flush=True)
sys.stdin.read()
server.stop()
"""


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "TMPDIR")}
    return {**kept, "PYTHONPATH": str(ROOT), **(more or {})}


def strata(folder: Path, *words: str, environ: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "proxy", *words],
        cwd=folder,
        env=environment(environ),
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )


def whole_key(output: str) -> str:
    """The one whole key in what was printed."""
    found = [word for word in output.replace('"', " ").split() if well_formed(word.encode())]
    assert len(found) == 1
    return found[0]


@contextmanager
def server_held_by_another_process(home: Path) -> Iterator[None]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(home)],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdin is not None and holder.stdout is not None
    try:
        assert holder.stdout.readline() == "ready\n"
        yield
    finally:
        holder.stdin.close()
        holder.wait(timeout=60)
        holder.stdout.close()


def test_the_version_is_printed(tmp_path: Path) -> None:
    done = strata(tmp_path, "--version")
    assert (done.returncode, done.stdout) == (0, f"strata {__version__}\n")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["chekc"], 'there is no command "chekc". Did you mean "check"?\nFix: strata --help\n'),
        (["keys", "create"], "the following arguments are required: NAME.\nFix: strata keys create --help\n"),
        (["--port", "0"], 'argument --port: "0" is not a port from 1 to 65535.\nFix: strata serve --help\n'),
        (
            ["keys", "create", "ci", "--budget", "five"],
            '--budget must be dollars like 5 or 0.25, not "five".\nFix: strata keys create --help\n',
        ),
        (
            ["users", "change", "ann@example.com"],
            "there is nothing to change: give --name, --role, --disable or --enable.\n"
            "Fix: strata users change --help\n",
        ),
        (
            ["users", "invite", "--days", "0"],
            'argument --days: "0" is not a number of days from 1 to 90.\nFix: strata users invite --help\n',
        ),
        (
            ["--host", ""],
            "argument --host: must be one line of text that is not empty.\nFix: strata serve --help\n",
        ),
        (
            ["keys", "create", "ci", "--bugdet", "5"],
            "unrecognized arguments: --bugdet 5.\nFix: strata keys create --help\n",
        ),
        (["usage", "--since", "2026-01-01", "--until", "2025-01-01"], "--since must be before until.\n" + USAGE_HELP),
        (
            ["demo", "--port", "99999"],
            'argument --port: "99999" is not a port from 1 to 65535.\nFix: strata demo --help\n',
        ),
    ],
)
def test_wrong_usage_is_two_lines_and_exit_code_2(
    words: list[str], error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = main(words, {})
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        code = stop.code
    assert (code, *capsys.readouterr()) == (2, "", error)


def test_a_wrong_configuration_stops_every_command_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("server: {prot: 1}\n")
    for words in (["serve"], ["keys", "list"], ["migrate"]):
        done = strata(tmp_path, *words)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == (
            'config.yaml:1:10 error    unknown key "prot" in server. Did you mean "port"?\n'
            "Fix: correct it and look again with: strata check\n"
        )
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.yaml"]


def test_check_tells_fine_from_warned_from_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("fine.yaml").write_text("models: {a: sim/chat}\n")
    Path("warned.yaml").write_text("models: {a: [sim/chat, openai/x]}\n")
    Path("wrong.yaml").write_text("models: {a: b}\n")
    Path("unspoken.yaml").write_text("providers: {x: {type: klingon, api_base: 'https://h/v1'}}\n")

    def run(*words: str) -> tuple[int, str]:
        return main(["check", *words], {}), capsys.readouterr().out

    assert run("fine.yaml", "--strict") == (0, "fine.yaml is fine: 12 models, 1 provider.\n")
    assert run() == (0, "no file: the environment is fine: 11 models, 1 provider.\n")
    code, text = run("warned.yaml")
    assert code == 0
    assert text.splitlines()[-1] == "1 warning. warned.yaml is fine: 12 models, 1 provider."
    assert run("warned.yaml", "--strict")[0] == 2
    code, text = run("wrong.yaml")
    assert (code, text.splitlines()[-1]) == (1, "1 error. A running gateway keeps its configuration.")
    assert run("unspoken.yaml")[1].startswith(
        'unspoken.yaml error    providers.x: nothing here speaks the type "klingon".'
    )
    Path("unspoken.yaml").write_text("providers: {x: {type: openai_compatable, api_base: 'https://h/v1'}}\n")
    assert 'Did you mean "openai_compatible"?' in run("unspoken.yaml")[1]


def test_check_speaks_to_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a,b.yaml").write_text("server: {prot: 1}\n")
    assert main(["check", "a,b.yaml", "--format", "github"], {}) == 1
    assert capsys.readouterr().out == (
        '::error file=a%2Cb.yaml,line=1,col=10::unknown key "prot" in server. Did you mean "port"?\n'
    )
    assert main(["check", "a,b.yaml", "--format", "json"], {}) == 1
    assert msgspec.json.decode(capsys.readouterr().out) == {
        "ok": False,
        "problems": [
            {
                "line": 1,
                "column": 10,
                "severity": "error",
                "message": 'unknown key "prot" in server. Did you mean "port"?',
                "file": "a,b.yaml",
            }
        ],
    }


def test_check_reads_standard_input(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "proxy", "check", "-"],
        cwd=tmp_path,
        env=environment(),
        input="server: {port: 1}\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "/dev/stdin is fine: 11 models, 1 provider.\n")


def test_the_limits_of_a_key_come_from_flags_and_else_from_the_configuration() -> None:
    defaults = KeyDefaults(models=("fast",), rpm=60, budget_nano_usd=1, budget_seconds=2, expires_seconds=3)
    assert limits(defaults, models=None, budget=None, rpm=None, expires=None) == defaults
    said = limits(defaults, models="a, b,a", budget="$0.10/1d", rpm="5", expires="2h")
    assert said == KeyDefaults(
        models=("a", "b"), rpm=5, budget_nano_usd=10**8, budget_seconds=86_400, expires_seconds=7_200
    )
    monthly = limits(defaults, models=None, budget="5/month", rpm=None, expires=None)
    assert (monthly.budget_seconds, monthly.budget_calendar) == (None, "month")
    assert limits(defaults, models=None, budget="5", rpm=None, expires=None).budget_seconds is None
    for wrong in ({"budget": "5/"}, {"budget": "-1"}, {"rpm": "0"}, {"expires": "soon"}, {"models": " ,"}):
        with pytest.raises(Wrong):
            limits(defaults, **{"models": None, "budget": None, "rpm": None, "expires": None, **wrong})


@pytest.fixture(scope="module")
def with_binaries() -> None:
    find_binaries(None)


@pytest.mark.usefixtures("with_binaries")
def test_keys_are_made_listed_and_revoked_with_no_gateway_running(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("models: {fast: sim/chat}\nkeys: {defaults: {expires: 90d}}\n")
    made = strata(tmp_path, "keys", "create", "ci", "--models", "fast,fsat", "--budget", "5/1d", "--rpm", "60")
    assert (made.returncode, made.stderr) == (0, "")
    key = whole_key(made.stdout)
    lines = made.stdout.splitlines()
    assert lines[1].startswith("  Name ci · models fast,fsat · $5.00 a day · 60 requests/min · expires ")
    assert lines[2].startswith("  Test it   curl -s http://127.0.0.1:4000/v1/models -H ")
    assert lines[3] == '  Note      no model is called "fsat" in config.yaml. Did you mean "fast"?'

    again = strata(tmp_path, "keys", "create", "ci")
    assert again.returncode == 1
    assert again.stderr == (
        'A key named "ci" is active already.\nFix: Choose another name, or revoke that one first.\n'
    )

    listed = strata(tmp_path, "keys", "list")
    assert key not in listed.stdout
    header, row = listed.stdout.splitlines()
    assert header.split()[:3] == ["NAME", "KEY", "MODELS"]
    assert row.split()[:3] == ["ci", f"{key[:14]}…{key[-4:]}", "fast,fsat"]
    assert row.endswith("active")

    ended = strata(tmp_path, "keys", "revoke", "ci", "--json")
    assert (ended.returncode, msgspec.json.decode(ended.stdout)["name"]) == (0, "ci")
    twice = strata(tmp_path, "keys", "revoke", "ci")
    assert (twice.returncode, twice.stderr) == (1, 'No key in force is called "ci".\nFix: See: strata keys list\n')
    assert strata(tmp_path, "keys", "list").stdout.splitlines()[1].endswith("revoked")
    assert not (tmp_path / ".strata/postgres/data/postmaster.pid").exists()
    for file in (tmp_path / ".strata").glob("*"):
        assert file.is_dir() or key not in file.read_text()


@pytest.mark.usefixtures("with_binaries")
def test_a_key_gets_a_new_secret_by_name_or_id(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("models: {fast: sim/chat}\n")
    made = msgspec.json.decode(strata(tmp_path, "keys", "create", "ci", "--json").stdout)
    said = strata(tmp_path, "keys", "rotate", "ci")
    assert said.returncode == 0, said.stderr
    assert "the old secret has ended" in said.stdout
    assert made["key"] not in said.stdout
    assert well_formed(said.stdout.split()[1].encode())
    again = msgspec.json.decode(strata(tmp_path, "keys", "rotate", made["id"], "--grace", "1h", "--json").stdout)
    assert (again["id"], again["name"]) == (made["id"], "ci")
    assert well_formed(again["key"].encode())
    assert again["old_secret_until"] > again["rotated_at"]
    nobody = strata(tmp_path, "keys", "rotate", "cj")
    assert (nobody.returncode, nobody.stderr) == (1, 'No key in force is called "cj".\nFix: See: strata keys list\n')
    long = strata(tmp_path, "keys", "rotate", "ci", "--grace", "8d")
    assert "--grace must be at most 7d" in long.stderr


def test_keys_commands_use_the_server_of_a_running_gateway(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with server_held_by_another_process(home):
        made = strata(tmp_path, "keys", "create", "ci", "--json", environ={"STRATA_HOME": str(home)})
        assert (made.returncode, made.stderr) == (0, "")
        answer = msgspec.json.decode(made.stdout)
        assert whole_key(made.stdout.replace(",", " ").replace(":", " ")) == answer["key"]
        assert (answer["models"], answer["rpm"], answer["budget_nano_usd"]) == (["*"], None, None)
        listed = strata(tmp_path, "keys", "list", "--json", "--home", str(home))
        assert [row["name"] for row in msgspec.json.decode(listed.stdout)] == ["ci"]
        assert answer["key"] not in listed.stdout
        assert strata(tmp_path, "migrate", "--home", str(home)).stdout == "The database is up to date.\n"


@pytest.mark.usefixtures("with_binaries")
def test_a_configured_database_and_the_files_own_keys_are_used(tmp_path: Path, empty_database_dsn: str) -> None:
    (tmp_path / "config.yaml").write_text(
        'keys: {static: [{name: ci, key: "${CI_KEY}", models: [sim/chat], max_budget: 5}]}\n'
    )
    environ = {"DATABASE_URL": empty_database_dsn, "CI_KEY": "sk-strata-" + "q7Zt2mVx9Lk4Wn8Rb3Hd6Jc5Pf1Ys0Ga"}
    migrated = strata(tmp_path, "migrate", "--json", environ=environ)
    assert migrated.returncode == 0, migrated.stderr
    assert len(msgspec.json.decode(migrated.stdout)["applied"]) >= 1
    listed = strata(tmp_path, "keys", "list", environ=environ)
    assert listed.stdout.splitlines()[1].split()[:3] == ["ci", "sk-strata-q7Zt…s0Ga", "sim/chat"]
    assert environ["CI_KEY"] not in listed.stdout
    for words in (["keys", "create", "ci"], ["keys", "revoke", "ci"], ["keys", "rotate", "ci"]):
        refused = strata(tmp_path, *words, environ=environ)
        assert refused.returncode == 1
        assert "belongs to" in refused.stderr and "Fix: " in refused.stderr
    assert not (tmp_path / ".strata/postgres").exists()


@pytest.mark.parametrize("words", [["serve"], ["demo"], ["keys", "list"], ["doctor"]])
@pytest.mark.parametrize("place", ["a file", "below a file"])
def test_a_data_folder_that_cannot_be_is_two_lines(words: list[str], place: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    done = strata(tmp_path, *words, "--home", str(file if place == "a file" else file / "home"))
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert str(file) in said and "Traceback" not in said
    assert words == ["doctor"] or ("cannot be used" in done.stderr and len(done.stderr.splitlines()) == 2)


def test_a_folder_of_somebody_elses_is_two_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "postgres" / "lock"))

    monkeypatch.setattr("proxy.storage.embedded.os.open", refuse)
    assert main(["keys", "list", "--home", str(tmp_path)], {}) == 1


def test_output_that_is_closed_or_full_is_no_fault_of_ours(tmp_path: Path) -> None:
    command = f"'{sys.executable}' -m proxy check /dev/null"
    for redirection, code in ((">&-", 0), (">/dev/full", 1)):
        done = subprocess.run(
            ["sh", "-c", f"{command} {redirection}"],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == code
        assert "Traceback" not in done.stderr


def test_ctrl_c_while_the_house_is_read_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(ModuleType):
        def __getattr__(self, name: str) -> object:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "proxy.cli", Interrupted("proxy.cli"))
    assert run() == 130


def test_a_database_that_is_away_is_two_lines(tmp_path: Path) -> None:
    away = strata(tmp_path, "keys", "list", environ={"DATABASE_URL": "postgresql://me:hush@127.0.0.1:1/db"})
    assert away.returncode == 1
    assert "Traceback" not in away.stderr and "hush" not in away.stderr
    assert len(away.stderr.splitlines()) <= 2
