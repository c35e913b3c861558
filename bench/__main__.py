"""
`python -m bench`: interleaved rounds of every scenario against the upstream itself, nginx and the gateway.

Prints CPU time a request (or a chunk), latency added, memory after 10,000 requests and the time to start. Ends what it
started and removes what it wrote, whatever happens.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from bench.harness import Harness
from bench.machine import LOAD_CORE, SERVER_CORE, Used, calibration_ms, cpu, memory, stop
from bench.report import SCENARIOS, Row, Scenario, lines
from bench.targets import ROOT, Target, start_gateway, start_nginx, start_upstream

WARM_REQUESTS = 10_000
Load = Callable[..., dict[str, Any]]


def load(
    target: Target, model: str, *, stream: bool, connections: int, seconds: float, count: int = 0, rate: float = 0.0
) -> dict[str, Any]:
    """Runs the load generator on its core. Raises CalledProcessError with its output."""
    command = ["taskset", "-c", str(LOAD_CORE), sys.executable, "-m", "bench.load", "--port", str(target.port)]
    command += [
        "--path",
        target.path,
        "--key",
        target.key,
        "--model",
        model,
        "--connections",
        str(connections),
        "--seconds",
        str(seconds),
    ]
    command += ["--count", str(count), "--rate", str(rate), *(["--stream"] if stream else [])]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=seconds + 120)
    found: dict[str, Any] = msgspec.json.decode(done.stdout)
    return found


def measure(target: Target, scenario: Scenario, number: int, seconds: float, run: Load) -> Row:
    calibration = calibration_ms()
    before = cpu(target.process.pid) if target.process else Used(0, 0)
    found = run(
        target,
        target.models[scenario.dialect],
        stream=scenario.stream,
        connections=scenario.connections,
        seconds=seconds,
        count=0,
        rate=scenario.rate,
    )
    time.sleep(0.05)
    used = cpu(target.process.pid).since(before) if target.process else Used(0, 0)
    units = found["chunks"] if scenario.stream else found["done"]
    timing = found["delay_us"] if scenario.stream else found["latency_us"]
    return Row(
        scenario=scenario.name,
        target=target.name,
        round=number,
        units=units,
        errors=found["errors"],
        first_error=found["first_error"] if found["errors"] else "",
        per_second=units / found["done"] * found["per_second"] if found["done"] else 0.0,
        cpu_us=used.own_ns / 1e3 / max(units, 1),
        postgres_us=used.postgres_ns / 1e3 / max(units, 1),
        p50_us=timing.get("p50", 0.0),
        p99_us=timing.get("p99", 0.0),
        calibration_ms=calibration,
    )


def bench(options: argparse.Namespace, folder: Path, started: list[subprocess.Popen[bytes]]) -> None:
    scenarios = [scenario for scenario in SCENARIOS if scenario.name in options.scenarios.split(",")]
    harness = Harness(options.harness, folder) if options.harness else None
    run: Load = harness.load if harness else load
    anthropic_port, process = start_upstream(folder)
    started.append(process)
    port = anthropic_port
    if harness:
        port, process = start_upstream(folder, harness.upstream)
        started.append(process)
    targets = [
        Target("direct", port, "", {"openai": "bench"}),
        Target("direct", anthropic_port, "", {"anthropic": "bench"}, path="/v1/messages"),
    ]
    wanted = options.targets.split(",")
    for name in wanted:
        target = start_nginx(folder, port) if name == "nginx" else start_gateway(folder, port, anthropic_port)
        if target is not None and target.process is not None:
            targets.append(target)
            started.append(target.process)

    print(f"cores: load and upstream {LOAD_CORE}, server {SERVER_CORE}; start to first answer:", end=" ")
    print(", ".join(f"{target.name} {target.start_seconds:.2f} s" for target in targets if target.process))
    for target in targets:
        warm = run(target, "bench", stream=False, connections=64, seconds=120.0, count=WARM_REQUESTS, rate=0.0)
        if warm["errors"]:
            raise RuntimeError(f"{target.name}: {warm['errors']} errors while warming up: {warm['first_error']}")
        if target.process:
            used = memory(target.process.pid)
            postgres = f", Postgres {used.postgres / 1e6:.0f} MB" if used.postgres else ""
            print(f"memory after {WARM_REQUESTS} requests: {target.name} {used.own / 1e6:.0f} MB{postgres}")

    rows: list[Row] = []
    for number in range(options.rounds):
        for scenario in scenarios:
            for target in targets:
                if scenario.dialect in target.models:
                    rows.append(measure(target, scenario, number, options.seconds, run))
    for line in lines(rows, scenarios):
        print(line)
    pace = sorted(row.calibration_ms for row in rows)
    print(f"\nthe machine: a fixed piece of work took {pace[0]:.1f}…{pace[-1]:.1f} ms; below 1.2 × apart is quiet")
    if options.json:
        options.json.write_bytes(msgspec.json.encode(rows))
    if any(row.errors for row in rows):
        raise RuntimeError("there were errors: the figures do not count")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--scenarios", default=",".join(scenario.name for scenario in SCENARIOS))
    parser.add_argument("--targets", default="nginx,gateway", help="besides the upstream itself")
    parser.add_argument("--harness", type=Path, help="a folder with lg.c and mock.c, to be used instead of our own")
    parser.add_argument("--json", type=Path, help="write every measurement here")
    options = parser.parse_args()
    started: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)  # the embedded database server may run as another user
        try:
            bench(options, folder, started)
        except RuntimeError as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
        finally:
            for process in reversed(started):
                stop(process)
    return 0


if __name__ == "__main__":
    sys.exit(main())
