"""What is measured: the upstream itself (direct), nginx in front of it, and the gateway."""

from __future__ import annotations

import http.client
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from bench.load import request
from bench.machine import LOAD_CORE, SERVER_CORE, free_port, pinned, stop

ROOT = Path(__file__).parent.parent
NGINX_KEY = "sk-bench-nginx"

_GATEWAY = """\
server: {{max_in_flight: 10000}}
providers:
  passed: {{type: openai_compatible, api_base: "http://127.0.0.1:{port}/v1", api_key: sk-upstream}}
  translated: {{type: anthropic, api_base: "http://127.0.0.1:{anthropic_port}", api_key: sk-upstream}}
models:
  bench: passed/bench-1
  bench-translated: translated/bench-1
prices:
  models:
    passed/bench-1: {{input: 0.15, output: 0.60}}
    translated/bench-1: {{input: 0.15, output: 0.60}}
"""
_NGINX = """\
worker_processes 1; daemon off; pid nginx.pid; error_log nginx.err warn; worker_rlimit_nofile 65535;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 100000000; client_body_buffer_size 128k; tcp_nodelay on;
  client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;
  upstream up {{ server 127.0.0.1:{port}; keepalive 512; keepalive_requests 100000000; }}
  map $http_authorization $known {{ default 0; "Bearer {key}" 1; }}
  server {{
    listen 127.0.0.1:{listen} backlog=4096;
    location / {{
      if ($known = 0) {{ return 401; }}
      proxy_pass http://up; proxy_http_version 1.1; proxy_buffering off;
      proxy_set_header Connection ""; proxy_set_header Authorization "Bearer sk-upstream";
    }}
  }}
}}
"""


class Target:
    """
    Something that listens: where, with which key, which models by the dialect behind them, and its process (None: the
    upstream itself).
    """

    def __init__(
        self,
        name: str,
        port: int,
        key: str,
        models: dict[str, str],
        process: subprocess.Popen[bytes] | None = None,
        path: str = "/v1/chat/completions",
    ) -> None:
        self.path = path
        self.name = name
        self.port = port
        self.key = key
        self.models = models
        self.process = process
        self.start_seconds = 0.0


def start_upstream(folder: Path, command: list[str] | None = None) -> tuple[int, subprocess.Popen[bytes]]:
    port = free_port()
    words = command or [sys.executable, "-m", "bench.upstream", "--port", "{port}"]
    process = pinned(LOAD_CORE, [word.replace("{port}", str(port)) for word in words], folder / "upstream.log", _env())
    _wait(process, port, "", "bench", folder / "upstream.log")
    return port, process


def start_nginx(folder: Path, port: int) -> Target | None:
    """None if it is not installed."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        return None
    listen = free_port()
    home = folder / "nginx"
    home.mkdir()
    (home / "nginx.conf").write_text(_NGINX.format(port=port, listen=listen, key=NGINX_KEY))
    process = pinned(SERVER_CORE, [program, "-p", str(home), "-c", str(home / "nginx.conf")], folder / "nginx.log")
    target = Target("nginx", listen, NGINX_KEY, {"openai": "bench"}, process)
    target.start_seconds = _wait(process, listen, NGINX_KEY, "bench", folder / "nginx.log")
    return target


def start_gateway(folder: Path, port: int, anthropic_port: int) -> Target:
    """With a key, its budget and its limit, on a data folder that has been started once before."""
    config, home = folder / "config.yaml", folder / "home"
    config.write_text(_GATEWAY.format(port=port, anthropic_port=anthropic_port))
    where = ["--config", str(config), "--home", str(home)]
    limits = ["--budget", "1000000/30d", "--rpm", "100000000"]
    made = subprocess.run(
        [sys.executable, "-m", "proxy", "keys", "create", "bench", "--json", *where, *limits],
        cwd=ROOT,
        env=_env(),
        capture_output=True,
        timeout=180,
    )
    if made.returncode:
        raise RuntimeError(f"no key could be made: {made.stderr.decode()[-2000:]}")
    key: str = msgspec.json.decode(made.stdout)["key"]
    listen, log = free_port(), folder / "gateway.log"
    process = pinned(SERVER_CORE, [sys.executable, "-m", "proxy", "serve", *where, "--port", str(listen)], log, _env())
    models = {"openai": "bench", "anthropic": "bench-translated"}
    target = Target("gateway", listen, key, models, process)
    try:
        target.start_seconds = _wait(process, listen, key, "bench", log)
    except BaseException:
        stop(process)
        raise
    return target


def _env() -> dict[str, str]:
    """The environment without what would change the gateway: provider keys, its own settings, coverage."""
    kept = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
    for name in list(kept):
        if name.startswith(("STRATA_", "COVERAGE_", "COV_", "DATABASE_URL")):
            del kept[name]
    kept["PYTHONPATH"] = str(ROOT)
    return kept


def _wait(process: subprocess.Popen[bytes], port: int, key: str, model: str, log: Path) -> float:
    """Seconds until the first good answer. Raises RuntimeError with the end of the log."""
    began = time.monotonic()
    head, _, body = request(model, "/v1/chat/completions", key, False).partition(b"\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    last = "no answer"
    while time.monotonic() < began + 60 and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        try:
            connection.request("POST", "/v1/chat/completions", body, headers)
            answer = connection.getresponse()
            last = f"{answer.status} {answer.read()[:500]!r}"
            if answer.status == 200:
                return time.monotonic() - began
        except (OSError, http.client.HTTPException) as error:
            last = repr(error)
        finally:
            connection.close()
        time.sleep(0.01)
    stop(process)
    raise RuntimeError(f"it did not start: {last}\n{log.read_text(errors='replace')[-2000:]}")
