"""Run a Serve config file on this machine for a while: `serve run`, waited for, ended cleanly."""

import contextlib
import http.client
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from serve_app.config.serve_file import load_serve_file
from serve_app.domain.errors import ConfigError, EngineError
from serve_app.serving.ports import require_alone


def _program(name: str) -> str:
    """A console script of this environment."""
    return str(Path(sys.executable).with_name(name))


SERVE_ENV = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_BINARY_PATH": _program("quantile-haproxy"),
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "3600",
    "RAY_SERVE_PORT_QUARANTINE_S": "150",
    "RAY_AUTH_MODE": "token",
}
"""Serve's HAProxy ingress (without it everything works, slower), and the same authentication for
`serve run` and for the commands that talk to it."""

_STATUS_EVERY_S = 15.0
_STOP_TIMEOUT_S = 60.0
_REST_TIMEOUT_S = 5.0


class LocalServe:
    """`serve run CONFIG` as a context manager: inside it, every variant with a share is ready.

    Leaving it ends Serve, the engines and Ray, however it is left. `log` takes all their output.
    With the `address` of a Ray that runs already, that Ray stays.
    """

    def __init__(
        self,
        config: Path,
        *,
        log: Path,
        ready_timeout_s: float = 300.0,
        environ: Mapping[str, str] | None = None,
        address: str = "local",
    ) -> None:
        http_options = load_serve_file(config).get("http_options") or {}
        if not isinstance(http_options, dict):
            raise ConfigError(f"{config}: http_options must be a mapping, have {http_options!r}")
        self.base_url = f"http://127.0.0.1:{http_options.get('port', 8000)}"
        self._config = config
        self._log = log
        self._ready_timeout_s = ready_timeout_s
        self._address = address
        self._environ = {**SERVE_ENV, **os.environ, **(environ or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Start and wait. Raises EngineError with the reason when it does not become ready, and
        ConfigError where another instance has its ports."""
        if _status_of(f"{self.base_url}/-/healthz") is not None:
            raise EngineError(
                f"something answers on {self.base_url} already: end it (`serve shutdown`, or the "
                "`serve run` that owns it), or set another http_options.port"
            )
        require_alone(self._environ)
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            # A session of its own: Ctrl-C reaches us, and we end it in good order.
            self._process = subprocess.Popen(
                [_program("serve"), "run", "--address", self._address, str(self._config)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environ,
                start_new_session=True,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End everything that was started."""
        self.stop()

    @property
    def pid(self) -> int:
        """The process of `serve run`; all others are its descendants."""
        assert self._process is not None
        return self._process.pid

    @property
    def dashboard_url(self) -> str:
        """Where this instance takes `serve deploy` and `serve status`."""
        found = re.search(r"dashboard at \S*?(http://[\d.]+:\d+)", self._log.read_text("utf-8"))
        if not found:
            raise EngineError(f"Ray has not said where its dashboard is; see {self._log}")
        return found.group(1)

    def deploy(self, config: Path) -> None:
        """`serve deploy CONFIG` into the running instance; returns when it is accepted."""
        self._serve("deploy", str(config))

    def stop(self) -> None:
        """End Serve and all that belongs to it; safe to call twice."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            below = psutil.Process(process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            below = []
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        end_group(process.pid, _REST_TIMEOUT_S)
        # Ray's workers are in groups of their own. Until they are gone they have their ports.
        _, left = psutil.wait_procs(below, _REST_TIMEOUT_S)
        for each in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(left, _REST_TIMEOUT_S)

    def _wait_until_ready(self) -> None:
        start = last_status = time.monotonic()
        while _status_of(f"{self.base_url}/readyz") != 200:
            now = time.monotonic()
            assert self._process is not None
            if self._process.poll() is not None:
                raise EngineError(f"`serve run` ended by itself:\n{self._log_tail()}")
            if now - start > self._ready_timeout_s:
                raise EngineError(
                    f"not ready after {self._ready_timeout_s:.0f} s; see {self._log}:\n"
                    f"{self._log_tail()}"
                )
            if now - last_status > _STATUS_EVERY_S:
                self._raise_if_failed()
                last_status = time.monotonic()
            time.sleep(0.3)

    def _raise_if_failed(self) -> None:
        try:
            status = self._serve("status")
        except EngineError:
            return  # the dashboard is not up yet: nothing is known
        if "DEPLOY_FAILED" in status:
            raise EngineError(f"an application failed to deploy; see {self._log}:\n{status}")

    def _serve(self, *words: str) -> str:
        environ = {**self._environ, "RAY_DASHBOARD_ADDRESS": self.dashboard_url}
        done = subprocess.run(
            [_program("serve"), *words], env=environ, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise EngineError(f"`serve {' '.join(words)}` failed:\n{done.stderr or done.stdout}")
        return done.stdout

    def _log_tail(self, n_lines: int = 25) -> str:
        return "\n".join(self._log.read_text("utf-8", "replace").splitlines()[-n_lines:])


def end_group(group: int, grace_s: float) -> None:
    """Kill what is left of a process group after `grace_s` seconds. Its leader has ended.

    Agents of a Ray node that ends while they start stay, and do not hear SIGTERM.
    """
    until = time.monotonic() + grace_s
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < until:
            os.killpg(group, 0)
            time.sleep(0.1)
        os.killpg(group, signal.SIGKILL)


def _status_of(url: str) -> int | None:
    """HTTP status, or None if nothing answers."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310 - our own loopback URL
            status: int = answer.status
            return status
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, http.client.HTTPException):
        return None
