"""A real `prometheus` on a free port of the loopback that scrapes one gateway every second, and its HTTP API."""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tests.gateway import free_port

START_SECONDS = 30.0
ATTEMPTS = 3
STOP_SECONDS = 20.0
CONFIG = """\
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
  - job_name: strata
    static_configs: [{{targets: ["127.0.0.1:{port}"]}}]
"""


class PrometheusServer:
    """`start` and `stop` once each. `folder` takes its data."""

    def __init__(self, program: str, folder: Path, gateway_port: int) -> None:
        self.port = free_port()
        self._program = program
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "prometheus.yaml").write_text(CONFIG.format(port=gateway_port))

    def start(self) -> PrometheusServer:
        for _ in range(ATTEMPTS):
            if self._started():
                return self
            self.port = free_port()  # somebody else took it in between
        raise AssertionError(f"prometheus did not start: {(self._folder / 'prometheus.log').read_text()[-2000:]}")

    def _started(self) -> bool:
        command = [
            self._program,
            f"--config.file={self._folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--log.level=warn",
        ]
        with (self._folder / "prometheus.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError):
                if self._get("/-/ready")[0] == 200 and self._process.poll() is None:
                    return True
            time.sleep(0.05)
        self.stop()
        return False

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(STOP_SECONDS)

    def at(self, query: str) -> list[dict[str, Any]]:
        """The query's series now, each with `metric` and `value`."""
        return self._result("/api/v1/query", query=query)

    def over(self, query: str, seconds: int) -> list[dict[str, Any]]:
        """The query's series over the last so many seconds, each with `metric` and `values`."""
        now = time.time()
        return self._result("/api/v1/query_range", query=query, start=f"{now - seconds}", end=f"{now}", step="1")

    def label_values(self, label: str, match: str) -> list[str]:
        found: list[str] = self._api(f"/api/v1/label/{label}/values", **{"match[]": match})
        return found

    def _result(self, path: str, **parameters: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._api(path, **parameters)["result"]
        return found

    def _api(self, path: str, **parameters: str) -> Any:
        status, body = self._get(f"{path}?{urlencode(parameters)}")
        answer = json.loads(body)
        assert status == 200 and answer["status"] == "success", f"{parameters}: {answer}"
        return answer["data"]

    def _get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()
