"""Every parameter that the official SDK knows is mapped, emulated, refused or left out with a notice; never lost."""

from __future__ import annotations

import pytest

from tests.compatibility import MEANT_FOR_US, PROBES, TARGET, apis, fate, parameters, table


def test_every_parameter_of_the_official_sdk_has_a_probe() -> None:
    assert sorted({*PROBES, *MEANT_FOR_US}) == parameters()


@pytest.mark.parametrize("api", apis())
def test_nothing_is_lost_silently(api: str) -> None:
    assert [parameter for parameter in parameters() if fate(api, parameter) == "lost"] == []


def test_the_table_in_the_docs_is_what_the_translators_do() -> None:
    assert TARGET.read_text() == table(), "write it anew with: python -m tests.compatibility"
