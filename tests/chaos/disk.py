"""
The journal's disk fails: every sync returns EIO (strace answers for the kernel), or there is no space left. New
requests are refused, those that run end well, and when the disk is back so is the gateway, without a restart or a gap.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from tests.chaos.traffic import ask_once
from tests.chaos.verdict import Verdict, judge
from tests.chaos.workers import Workers
from tests.gateway import ROWS, Gateway, OracleProcess

How = Literal["fsync", "full"]
DISK = "size=4m"
SETTINGS = "ledger: {segment_size: 100KB}\n"
PARALLEL = 8
LONG_STREAMS = 6
BACK_SECONDS = 15.0
SETTLE_SECONDS = 60.0
REFUSED = "503 metering_unavailable"


def missing(how: How) -> str:
    """What this machine lacks to play the fault; "" if nothing."""
    if os.geteuid() != 0:
        return "only root may watch another process or mount a disk"
    if how == "fsync" and shutil.which("strace") is None:
        return "strace is not installed"
    return ""


async def run(folder: Path, *, how: How, seconds: float) -> bool:
    """Prints who heard what; true if all was as promised."""
    if lack := missing(how):
        print(lack)
        return False
    oracle = OracleProcess(folder / "oracle")
    journal = folder / "home" / "journal"
    journal.mkdir(parents=True, mode=0o700)
    with contextlib.ExitStack() as undo:
        if how == "full":
            subprocess.run(["mount", "-t", "tmpfs", "-o", DISK, "tmpfs", str(journal)], check=True)
            undo.callback(subprocess.run, ["umount", "-l", str(journal)], check=True)
        cluster = Workers(folder, 1, oracle=oracle.url, more=SETTINGS)
        try:
            await cluster.start()
            return await _play(cluster, oracle, journal, how, seconds)
        finally:
            await cluster.stop()
            oracle.stop()


async def _play(cluster: Workers, oracle: OracleProcess, journal: Path, how: How, seconds: float) -> bool:
    gateway = cluster.first
    names = (f"disk-{number}" for number in itertools.count())
    before, meanwhile, after = Counter[str](), Counter[str](), Counter[str]()
    await _ask_for(1.0, gateway, names, before)
    # half of them end while the disk is away, half after it
    running = [
        asyncio.create_task(ask_once(gateway, gateway.key, f"long-{number}", stream=True, pieces=pieces, gap_ms=50))
        for number, pieces in enumerate([int(seconds * 15), int(seconds * 20) + 40] * (LONG_STREAMS // 2))
    ]
    await asyncio.sleep(0.5)
    with _broken(gateway, journal, how):
        await _ask_for(seconds, gateway, names, meanwhile)
        readiness = gateway.get("/readyz")
    broke = time.monotonic()
    while await ask_once(gateway, gateway.key, next(names)) != "served" and time.monotonic() < broke + BACK_SECONDS:
        await asyncio.sleep(0.1)
    back_seconds = time.monotonic() - broke
    endings = Counter(await asyncio.gather(*running))
    await _ask_for(1.0, gateway, names, after)
    await asyncio.to_thread(gateway.kill9)
    await asyncio.to_thread(gateway.start)
    verdict = await _settled(cluster, oracle)
    print(f"{'every sync of the journal failed' if how == 'fsync' else 'its disk was full'} for {seconds:g} s")
    print(f"  before: {dict(before)}\n  meanwhile: {dict(meanwhile)}\n  after: {dict(after)}")
    print(f"  streams that ran when it began: {dict(endings)}")
    print(f"  /readyz meanwhile: {readiness[0]} {readiness[1].decode()}")
    print(f"  served again {back_seconds:.1f} s after the disk was back, without a restart")
    print(f"  after a kill -9: rows {verdict.exact} equal to the bill, {verdict.estimated} estimates, lost "
          f"{len(verdict.lost)}, doubled {len(verdict.doubled)}, wrong {len(verdict.wrong)}")  # fmt: skip
    for sentence in (verdict.lost + verdict.doubled + verdict.wrong)[:10]:
        print(f"    {sentence}")
    served = set(before) == set(after) == set(endings) == {"served"}
    refused = set(meanwhile) <= {"served", REFUSED} and meanwhile[REFUSED] > 0 and b"journal" in readiness[1]
    right = served and refused and back_seconds < BACK_SECONDS and verdict.right and verdict.estimated == 0
    print("\nnothing was lost" if right else "\nSOMETHING IS WRONG", flush=True)
    return right


@contextlib.contextmanager
def _broken(gateway: Gateway, journal: Path, how: How) -> Iterator[None]:
    if how == "full":
        ballast = journal / "ballast"
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 4096)
        yield
        ballast.unlink()
        return
    assert gateway.process is not None
    fault = ("-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO")
    command = ("strace", "-f", "-qq", "-o", "/dev/null", *fault, "-p", str(gateway.process.pid))
    strace = subprocess.Popen(command, stderr=subprocess.PIPE)
    time.sleep(0.3)
    if strace.poll() is not None:
        raise AssertionError(f"strace did not attach: {strace.stderr.read().decode() if strace.stderr else ''}")
    try:
        yield
    finally:
        # it lets the gateway go on as if nothing had been
        strace.send_signal(signal.SIGINT)
        strace.wait(10)
        if strace.stderr is not None:
            strace.stderr.close()


async def _ask_for(seconds: float, gateway: Gateway, names: Iterator[str], heard: Counter[str]) -> None:
    until = time.monotonic() + seconds

    async def client() -> None:
        while time.monotonic() < until:
            heard[await ask_once(gateway, gateway.key, next(names))] += 1
            await asyncio.sleep(0.01)

    await asyncio.gather(*(client() for _ in range(PARALLEL)))


async def _settled(cluster: Workers, oracle: OracleProcess) -> Verdict:
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        verdict = judge(await cluster.sql(ROWS, None), oracle.items())
        if not verdict.lost or time.monotonic() > deadline:
            return verdict
        await asyncio.sleep(0.25)
