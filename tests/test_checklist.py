"""The checklist is whole, every test that it names is one that pytest collects, and its document is up to date."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest

from tests.checklist import ROWS, SOURCE, TARGET, Row, count, document, rows
from tests.test_house import PACKAGE, ROOT, tracked

ALL = rows(SOURCE.read_text())
KINDS = {".py", ".sql", ".json", ".lua", ".txt", ".gz", ".md", ".typed", ".js", ".css", ".html", ".svg"}
MAY_LACK = 6
"""So few rows may be about what does not exist yet."""


def test_there_is_a_row_for_each_number_of_each_part() -> None:
    numbers = [f"{part}{number:02}" for part, size in ROWS.items() for number in range(1, size + 1)]
    assert [row.id for row in ALL] == numbers
    assert len(ALL) == 146


@pytest.mark.parametrize("row", ALL, ids=[row.id for row in ALL])
def test_every_row_says_what_happens_and_where_that_is_tested(row: Row) -> None:
    assert row.what
    assert row.part.startswith(row.id[0])
    assert bool(row.lacking) != bool(row.tests), "either tests, or the reason why there are none"
    assert bool(row.expected) == bool(row.tests)
    assert len(set(row.tests)) == len(row.tests)


def test_few_rows_are_about_what_does_not_exist() -> None:
    assert sum(1 for row in ALL if row.lacking) <= MAY_LACK


def test_every_named_test_is_collected() -> None:
    named = {name for row in ALL for name in row.tests}
    files = sorted({name.partition("::")[0] for name in named})
    command = (
        sys.executable,
        "-m",
        "pytest",
        "--collect-only",
        "-o",
        "addopts=",
        "-q",
        "-p",
        "no:cacheprovider",
        *files,
    )
    collected = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True).stdout
    ids = {line for line in collected.splitlines() if "::" in line}
    functions = Counter(id.partition("[")[0] for id in ids)
    missing = {name for name in named if name not in ids and not (name in functions and "[" not in name)}
    assert missing == set()


def test_a_line_that_says_nothing_is_noticed() -> None:
    for text in ("nonsense", "  test_x.py::test_y", "# A\n\nA1 too short", "A01 what\n= not indented"):
        with pytest.raises(ValueError, match="belongs to none"):
            rows(text)


def test_the_document_is_the_table() -> None:
    assert TARGET.read_text() == document(ALL), "write it anew with: python -m tests.checklist"
    assert count(ALL) in TARGET.read_text()


def test_what_is_shipped_is_source_and_data_and_nothing_that_runs_by_itself() -> None:
    shipped = [path for path in tracked() if PACKAGE in path.parents]
    kinds = {path.suffix or path.name for path in shipped}
    assert ".pth" not in {path.suffix for path in tracked()}
    assert kinds <= {
        ".py",
        ".sql",
        ".json",
        ".lua",
        ".txt",
        ".gz",
        ".md",
        "py.typed",
        ".typed",
        ".js",
        ".css",
        ".html",
        ".svg",
    }
    assert not {"sitecustomize.py", "usercustomize.py"} & {path.name for path in tracked()}
