"""A Prometheus of the test's own, from Debian's package, and what it answers."""

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
import yaml

OBSERVABILITY = Path(__file__).parents[2] / "cluster" / "observability"
DASHBOARDS = sorted((OBSERVABILITY / "grafana" / "dashboards").glob("*.json"))

VLLMS = {
    "ray_vllm_num_requests_running",
    "ray_vllm_generation_tokens_total",
    "ray_vllm_prompt_tokens_total",
    "ray_vllm_prefix_cache_hits_total",
    "ray_vllm_prefix_cache_queries_total",
    "ray_vllm_num_preemptions_total",
    "ray_vllm_inter_token_latency_seconds_bucket",
    "ray_vllm_request_queue_time_seconds_bucket",
}
"""What dashboards and alerts ask of vLLM's own, copied; tests/engine_cpu/test_engine_metrics.py
holds them against real engines."""


def need(*programs: str) -> None:
    """Skip the test where one of the programs is missing; in CI, fail it."""
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        reason = f"need {' and '.join(missing)} on PATH: .ci/install-prometheus"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """All but the rows."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def queries(dashboard: dict[str, Any]) -> list[tuple[str, str]]:
    """Title and PromQL of every target of every panel."""
    return [
        (panel["title"], each["expr"]) for panel in panels(dashboard) for each in panel["targets"]
    ]


def filled_in(expr: str, **variables: str) -> str:
    """A query as Grafana sends it, a variable that is not given as `All`."""
    for name, value in {"__rate_interval": "1m", **variables}.items():
        expr = expr.replace(f"${name}", value)
    for name in ("application", "variant", "model", "candidate", "baseline"):
        expr = expr.replace(f"${name}", ".*")
    return expr


class Prometheus:
    """The shipped configuration at one second's pace, on a port and in a folder of its own.

    Its targets are those of `file_sd` and `static`, by job; inside the `with` it is ready.
    """

    def __init__(
        self, folder: Path, *, file_sd: Path | None = None, static: dict[str, str] | None = None
    ) -> None:
        self._folder = folder
        config = yaml.safe_load((OBSERVABILITY / "prometheus.yaml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        rules = yaml.safe_load((OBSERVABILITY / "alerts.yaml").read_text())
        for group in rules["groups"]:
            group["interval"] = "1s"
        (folder / "alerts.yaml").write_text(yaml.safe_dump(rules))
        for job in config["scrape_configs"]:
            if "file_sd_configs" in job:
                assert file_sd is not None
                job["file_sd_configs"] = [{"files": [str(file_sd)], "refresh_interval": "1s"}]
            elif static is not None:
                found = static.get(job["job_name"])
                job["static_configs"] = [{"targets": [found]}] if found else []
        self._config = folder / "prometheus.yml"
        self._config.write_text(yaml.safe_dump(config))
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def __enter__(self) -> Self:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        with (self._folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={self._config}",
                    f"--storage.tsdb.path={self._folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.until(lambda: self._get("/-/ready") is not None, 30)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def ask(self, expr: str) -> list[dict[str, Any]]:
        """The series of an instant query now; a query that is refused fails the test."""
        body = self._get(f"/api/v1/query?{urllib.parse.urlencode({'query': expr})}")
        if body is None:
            pytest.fail(f"Prometheus refused {expr}")
        return json.loads(body)["data"]["result"]

    def targets(self) -> dict[str, list[str]]:
        """Health of the targets, by job."""
        found: dict[str, list[str]] = {}
        body = self._get("/api/v1/targets?state=active")
        for each in json.loads(body or b"{}").get("data", {}).get("activeTargets", []):
            found.setdefault(each["labels"]["job"], []).append(each["health"])
        return found

    def until(self, done: Any, within_s: float) -> None:
        """Wait until `done()` is true; fails the test with its log if it is not in time."""
        deadline_s = time.monotonic() + within_s
        while not done():
            if time.monotonic() > deadline_s:
                log = (self._folder / "prometheus.log").read_text(errors="replace")
                pytest.fail(f"not within {within_s:g} s; Prometheus says:\n{log[-2000:]}")
            time.sleep(0.2)

    def _get(self, path: str) -> bytes | None:
        try:
            with urllib.request.urlopen(f"{self.url}{path}", timeout=10) as answer:
                return answer.read()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return None
