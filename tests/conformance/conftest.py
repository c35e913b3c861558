"""One gateway for all clients, with a clever oracle behind it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance import CLEVER
from tests.gateway import Gateway, OracleProcess


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder: Path = tmp_path_factory.mktemp("conformance")
    oracle = OracleProcess(folder, *[word for name in CLEVER for word in ("--script", f'{name}={{"clever":true}}')])
    running = Gateway(folder / "home", oracle=oracle.url).start()
    yield running
    running.stop()
    oracle.stop()
