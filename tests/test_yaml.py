"""YAML by the rules of 1.2, and files that mean harm."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.config.problems import Mark
from proxy.config.yaml import MAX_BYTES, Kind, ScalarNode, kind_of, parse
from tests.configs import look


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        *((word, "text") for word in ("no", "on", "off", "Yes", "12:30", "0b1", "1_000", "2026-11-23", "tRue")),
        *((word, "integer") for word in ("010", "-3", "+7", "0x1F", "0o17")),
        *((word, "number") for word in ("1e3", ".5", "1.", "-2.5E-3", ".inf", "-.INF", ".nan")),
        *((word, "boolean") for word in ("true", "False", "TRUE")),
        *((word, "null") for word in ("null", "~", "NULL")),
    ],
)
def test_plain_scalars_mean_what_yaml_1_2_says(text: str, kind: Kind) -> None:
    node = parse(text.encode(), "f")
    assert isinstance(node, ScalarNode)
    assert (node.kind, kind_of(text)) == (kind, kind)
    quoted = parse(f'"{text}"'.encode(), "f")
    assert isinstance(quoted, ScalarNode) and quoted.kind == "text"


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join([f'*{chr(97 + n)}'] * 10)}]\n" for n in range(9)
)
CHAIN = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 3_000))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (LAUGHS.encode(), "the file has more than 50000 values once its aliases are written out."),
        (CHAIN.encode(), "this is nested more than 40 deep."),
        (b"[" * 200_000, "this is nested more than 40 deep."),
        (b"#" * (MAX_BYTES + 1), "the file has 1000001 bytes; 1000000 are allowed."),
        (b"server: \xff", "the file is not UTF-8 text."),
        (b"server:\n\tport: 1", "there is a tab, and YAML is indented by spaces only: replace it."),
        (b"server: '\x00'", "there is a control character, which YAML does not allow."),
    ],
)
def test_a_hostile_file_is_refused_before_it_grows(data: bytes, message: str) -> None:
    assert [one.message for one in look(data).problems] == [message]


def test_a_mark_without_a_line_is_the_file() -> None:
    assert (str(Mark("f")), str(Mark("f", 3)), str(Mark("f", 3, 4))) == ("f", "f:3", "f:3:4")
