"""What the machine gives: the master key, a disk for the journal, descriptors, cores. Nothing is made that was not."""

from __future__ import annotations

import os
import resource
import secrets
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from proxy.commands.checkup.finding import Finding, count, fail, ok, warn
from proxy.config import Config
from proxy.errors import GatewayFault
from proxy.metering.adoption import find_dead
from proxy.metering.segments import LOCK
from proxy.storage.vault import FILE_NAME, VARIABLE, Vault

LEAST_FREE_BYTES = 500_000_000
GOOD_FREE_BYTES = 5_000_000_000
SLOW_FSYNC_SECONDS = 0.05
OWN_DESCRIPTORS = 200
"""For the database, segments, logs and providers at rest."""
IN_MEMORY = ("tmpfs", "ramfs")
MOUNTS = Path("/proc/self/mounts")


def look_at_machine(config: Config, home: Path, environ: Mapping[str, str]) -> Iterator[Finding]:
    yield look_at_master_key(home, environ)
    yield from _journal(home / "journal")
    yield _descriptors(config)
    yield from _cores(config, home / "journal")


def look_at_master_key(home: Path, environ: Mapping[str, str]) -> Finding:
    path = home / FILE_NAME
    if not environ.get(VARIABLE, "").strip() and not path.exists():
        return warn(
            "master key",
            f"the first start will make one in {path}: set {VARIABLE} instead (openssl rand -base64 32), and keep a "
            "copy where the database is not.",
        )
    try:
        vault = Vault.open(home, environ)
    except GatewayFault as fault:
        return fail("master key", fault.message)
    if environ.get(VARIABLE, "").strip():
        more = f" and {len(vault.keks) - 1} older" if len(vault.keks) > 1 else ""
        return ok("master key", f"{vault.kek_id}{more}, from {VARIABLE}. Keep a copy where the database is not.")
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return warn("master key", f"others on this machine may read {path}: chmod 600 {path}")
    return warn(
        "master key",
        f"{vault.kek_id}, the generated one in {path}: without a copy of it a lost disk takes every key with it. Keep "
        f"one where the database is not, and hand it over in {VARIABLE}.",
    )


def _journal(folder: Path) -> Iterator[Finding]:
    place = next(one for one in (folder, *folder.resolve().parents) if one.exists())
    if not place.is_dir():
        yield fail("journal", f"{place} is no folder, and the data folder is to be there: choose another with --home.")
        return
    probe = place / f".strata-doctor-{secrets.token_hex(8)}"
    try:
        seconds = _write(probe)
        free = shutil.disk_usage(place).free
    except OSError as error:
        yield fail(
            "journal",
            f"nothing can be written in {place} ({error.strerror}), and without a journal no request is served: make "
            "it writable, or choose another folder with --home.",
        )
        return
    finally:
        probe.unlink(missing_ok=True)
    yield judge_place(place, file_system(place.resolve(), MOUNTS), seconds)
    yield judge_room(place, free)


def judge_place(place: Path, kind: str, seconds: float) -> Finding:
    """`kind`: of its file system; `seconds`: how long it takes to keep a record."""
    if kind in IN_MEMORY:
        return warn("journal", f"{place} is in memory ({kind}) and gone with the power: put the data folder on a disk.")
    if kind == "overlay":
        return warn("journal", f"{place} is the container's own and gone with it: mount a volume for the data folder.")
    milliseconds = seconds * 1000
    if seconds > SLOW_FSYNC_SECONDS:
        return warn(
            "journal",
            f"{place} takes {milliseconds:.0f} ms to keep a record, and each request waits: use a faster disk.",
        )
    return ok("journal", f"{place} keeps what is written there, in {milliseconds:.1f} ms.")


def judge_room(place: Path, free_bytes: int) -> Finding:
    gigabytes = f"{free_bytes / 10**9:.1f} GB"
    if free_bytes < LEAST_FREE_BYTES:
        return fail("disk", f"{gigabytes} are free at {place}, and a full disk stops the gateway: make room.")
    if free_bytes < GOOD_FREE_BYTES:
        return warn("disk", f"{gigabytes} are free at {place}, little while the database is away for long: make room.")
    return ok("disk", f"{gigabytes} are free at {place}.")


def _write(probe: Path) -> float:
    """How long a record takes to be safe, in seconds: the fastest of three, the first of which makes the file."""
    descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        taken = []
        for _ in range(3):
            began = time.monotonic()
            os.write(descriptor, b"strata doctor\n")
            os.fsync(descriptor)
            taken.append(time.monotonic() - began)
        return min(taken)
    finally:
        os.close(descriptor)


def file_system(place: Path, mounts: Path) -> str:
    """Of the mount that holds the place, the deepest one; "" where no list of mounts is."""
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    found, depth = "", -1
    for line in lines:
        fields = line.split(" ")
        if len(fields) > 2:
            mount = Path(fields[1].replace("\\040", " "))
            if place.is_relative_to(mount) and len(mount.parts) >= depth:
                found, depth = fields[2], len(mount.parts)
    return found


def _descriptors(config: Config) -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * config.server.max_in_flight + OWN_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < needed:
        return warn(
            "open files",
            f"a process started here may open {soft}, and {config.server.max_in_flight} requests at once "
            f"(server.max_in_flight) need about {needed}: ulimit -n {needed}, or LimitNOFILE= of the service.",
        )
    return ok("open files", f"enough for {config.server.max_in_flight} requests at once.")


def _cores(config: Config, journal: Path) -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    running = live_gateways(journal)
    if running > cores:
        yield warn(
            "cores",
            f"{running} gateways run on this data folder and share {count(cores, 'core')}: one for each is enough.",
        )
    else:
        yield ok("cores", f"{count(cores, 'core')}; a gateway uses one of them, and {running or 'none'} runs here now.")
    if running > 1 and config.redis.url is None:
        yield warn(
            "limits",
            f"{running} gateways count requests and tokens each for itself, so limits are {running} times what they "
            "say: set REDIS_URL.",
        )


def live_gateways(journal: Path) -> int:
    """Each holds the lock of a journal of its own here."""
    if not os.access(journal, os.R_OK | os.W_OK):
        return 0
    return sum(1 for _ in journal.glob(f"*{LOCK}")) - len(find_dead(journal, ""))
