"""A faster upstream and load generator in C, where a folder with `mock.c` and `lg.c` and a compiler are at hand."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec

from bench.load import request
from bench.machine import LOAD_CORE
from bench.targets import Target
from bench.upstream import CHUNKS


class Harness:
    """Both programs, built from `source` into `folder`. Raises RuntimeError if that cannot be done."""

    def __init__(self, source: Path, folder: Path) -> None:
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None or not (source / "lg.c").exists() or not (source / "mock.c").exists():
            raise RuntimeError(f"--harness needs a C compiler, and lg.c and mock.c in {source}")
        self.folder = folder
        for name in ("mock", "lg"):
            subprocess.run(
                [compiler, "-O2", "-o", str(folder / name), str(source / f"{name}.c"), "-lm"], check=True, timeout=120
            )
        self.upstream = [str(folder / "mock"), f"{{port}}:0:10000:{CHUNKS}"]

    def load(
        self, target: Target, model: str, *, stream: bool, connections: int, seconds: float, count: int, rate: float
    ) -> dict[str, Any]:
        body = self.folder / "body.json"
        body.write_bytes(request(model, "/", "", stream).partition(b"\r\n\r\n")[2])
        command = ["taskset", "-c", str(LOAD_CORE), str(self.folder / "lg"), "-p", str(target.port)]
        command += ["-u", target.path, "-b", str(body), "-H", f"Authorization: Bearer {target.key}"]
        command += ["-c", str(connections)]
        command += ["-n", str(count)] if count else ["-d", str(seconds)]
        command += ["-r", str(rate)] if rate else []
        command += ["-s", str(CHUNKS)] if stream else []
        done = subprocess.run(command, capture_output=True, check=True, timeout=seconds + 120)
        found = msgspec.json.decode(done.stdout)
        errors = sum(found.get(name, 0) for name in ("errs", "bad_status", "no_usage", "bad_chunks"))
        return {
            "done": found["done"],
            "chunks": found["done"] * CHUNKS if stream else 0,
            "errors": errors,
            "first_error": done.stderr.decode(errors="replace")[:300],
            "per_second": found["rps"],
            "latency_us": found["lat"],
            "delay_us": found.get("chunk", {}),
        }
