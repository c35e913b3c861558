"""
`strata demo`: a gateway of its own, in a folder of its own, under traffic that looks like somebody's day: so that the
boards have something to show before anybody has a provider's key.

The providers are the simulated one under three names, with prices. One of them fails for a while, and one key's budget
runs out.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import httpx2

from proxy.commands.flags import Commands, Parser, Shared, port
from proxy.config.presets import SIM_API_BASE
from proxy.errors import GatewayFault

START_SECONDS = 60.0
STOP_SECONDS = 40.0
REQUEST_SECONDS = 60.0
TOLD_SECONDS = 10.0
MAX_UNDER_WAY = 200
BUSIEST_PER_SECOND = 6.0

CONFIG = """\
# Made by strata demo. The providers are simulated: nothing leaves this machine, and the money is not real.
providers:
  north: {{type: openai_compatible, api_base: "{sim}", api_key: none, quirks: {{forward: [x-strata-sim]}}}}
  south: {{type: openai_compatible, api_base: "{sim}", api_key: none}}
  west: {{type: openai_compatible, api_base: "{sim}", api_key: none}}
models:
  fast: [north/chat, south/chat]
  smart: [south/reasoning, west/chat]
  tools: [west/tools, north/tools]
  shaky: west/flaky
prices:
  models:
    north/*: {{input: 0.25, output: 2}}
    south/chat: {{input: 0.3, output: 2.5}}
    south/*: {{input: 3, output: 15}}
    west/*: {{input: 1.25, output: 10}}
keys:
  static:
    - {{name: website, key: "{website}"}}
    - {{name: support, key: "{support}", max_budget: 50, budget_duration: 1d}}
    - {{name: reports, key: "{reports}", max_budget: {runs_out}, budget_duration: 1d}}
    - {{name: intern, key: "{intern}", rpm: 20}}
logging: {{level: warning}}
"""
WEIGHTS = {"website": 10, "support": 6, "reports": 3, "intern": 2}
MODELS = {"fast": 10, "smart": 4, "tools": 2, "shaky": 1, "fats": 0.1}
"""By how often each is asked; the last is a mistake of somebody's."""
QUESTIONS = (
    "Where is my order?",
    "Write a friendly answer to a customer who waits for a refund since Monday.",
    "Summarise this month's figures in three sentences, and say what changed most against the month before.",
    "Which of these two contracts ends first, and what does it cost to end it early?",
)
FAILS_FROM, FAILS_UNTIL = 0.45, 0.6
"""Of the time: when north answers 503 to everything."""


class Told(NamedTuple):
    requests: int
    failed: int


def add_parser(commands: Commands[Parser], _flags: Shared) -> None:
    demo = commands.add_parser(
        "demo",
        help="a gateway under simulated traffic, to look at",
        description="Starts a gateway on simulated providers in a folder of its own, and plays traffic at it: with an "
        "outage, a budget that runs out, and a mistake here and there. It serves until Ctrl-C.",
    )
    demo.add_argument("--minutes", type=_minutes, default=10.0, help="how long the traffic lasts; default: 10")
    demo.add_argument("--home", metavar="DIR", default=".strata-demo", help="the data folder; default: .strata-demo")
    demo.add_argument("--port", type=port, default=4000, help="default: 4000")
    demo.add_argument("--stop", action="store_true", help="end when the traffic is over")
    demo.set_defaults(run=_run)


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not 0.05 <= minutes <= 1_440:
        raise argparse.ArgumentTypeError(f'"{text}" is not a number of minutes from 0.05 to 1440')
    return minutes


def _run(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    home = Path(args.home)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    keys = {name: f"sk-demo-{secrets.token_hex(24)}" for name in WEIGHTS}
    config = home / "demo.yaml"
    # What the budget of one key is spent at depends on how long the traffic lasts
    text = CONFIG.format(sim=SIM_API_BASE, runs_out=f"{0.01 * args.minutes:.6f}", **keys)
    config.touch(mode=0o600)
    config.write_text(text)
    url = f"http://127.0.0.1:{args.port}"
    command = (sys.executable, "-m", "proxy", "serve", "--config", str(config), "--home", str(home))
    ours = {
        name: value for name, value in environ.items() if not name.startswith(("STRATA_", "DATABASE_URL", "REDIS_URL"))
    }
    gateway = subprocess.Popen((*command, "--port", str(args.port)), env=ours)
    try:
        asyncio.run(_play(url, keys, args.minutes * 60, gateway))
        print(f"The traffic is over. See: strata usage --by key,model --config {config} --home {home}", flush=True)
        if not args.stop:
            print(f"The gateway goes on at {url} until Ctrl-C.", flush=True)
            gateway.wait()
    except KeyboardInterrupt:
        pass
    finally:
        _stop(gateway)
    return 0


def _stop(gateway: subprocess.Popen[bytes]) -> None:
    gateway.terminate()
    try:
        gateway.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        gateway.kill()
        gateway.wait()


async def _play(url: str, keys: Mapping[str, str], seconds: float, gateway: subprocess.Popen[bytes]) -> None:
    """Raises GatewayFault if the gateway does not start, or ends."""
    dice = random.Random(2026)
    limits = httpx2.Limits(max_connections=MAX_UNDER_WAY)
    async with httpx2.AsyncClient(base_url=url, timeout=REQUEST_SECONDS, limits=limits, trust_env=False) as client:
        await _wait_until_ready(client, gateway)
        print(f"Serving at {url}/v1; metrics at {url}/metrics. Traffic for {seconds / 60:g} minutes.", flush=True)
        began = told_at = time.monotonic()
        under_way: set[asyncio.Task[bool]] = set()
        told = Told(0, 0)
        while (passed := (time.monotonic() - began) / seconds) < 1:
            if gateway.poll() is not None:
                raise GatewayFault("The gateway has ended. See what it said above.", code="gateway_config")
            if len(under_way) < MAX_UNDER_WAY:
                under_way.add(asyncio.create_task(_ask(client, keys, passed, dice)))
            # Few in the morning, most at noon
            busy = BUSIEST_PER_SECOND * (0.15 + 0.85 * (1 - abs(2 * passed - 1)))
            await asyncio.sleep(dice.expovariate(busy))
            told, under_way = _count(told, under_way)
            if time.monotonic() - told_at >= TOLD_SECONDS:
                told_at = time.monotonic()
                print(f"{passed:4.0%}  {told.requests} requests, {told.failed} of them refused or failed", flush=True)
        await asyncio.wait(under_way, timeout=REQUEST_SECONDS) if under_way else None
        told, _ = _count(told, under_way)
        print(f"{told.requests} requests, {told.failed} of them refused or failed", flush=True)


def _count(told: Told, under_way: set[asyncio.Task[bool]]) -> tuple[Told, set[asyncio.Task[bool]]]:
    done = {task for task in under_way if task.done()}
    failed = sum(not task.result() for task in done)
    return Told(told.requests + len(done), told.failed + failed), under_way - done


async def _ask(client: httpx2.AsyncClient, keys: Mapping[str, str], passed: float, dice: random.Random) -> bool:
    """Whether it was answered."""
    [name] = dice.choices(list(WEIGHTS), list(WEIGHTS.values()))
    [model] = dice.choices(list(MODELS), list(MODELS.values()))
    question = " ".join(dice.choices(QUESTIONS, k=dice.randint(1, 4)))
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": dice.randint(30, 250),
        "stream": dice.random() < 0.6,
    }
    headers = {"authorization": f"Bearer {keys[name]}"}
    if FAILS_FROM <= passed < FAILS_UNTIL:
        headers["x-strata-sim"] = "status=503"
    leaves = dice.random() < 0.02
    with contextlib.suppress(httpx2.HTTPError):
        async with client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
            async for _ in answer.aiter_bytes():
                if leaves:
                    break
            return answer.status_code == 200
    return False


async def _wait_until_ready(client: httpx2.AsyncClient, gateway: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and gateway.poll() is None:
        with contextlib.suppress(httpx2.HTTPError):
            if (await client.get("/readyz")).status_code == 200:
                return
        await asyncio.sleep(0.1)
    raise GatewayFault("The gateway did not start. See what it said above.", code="gateway_config")
