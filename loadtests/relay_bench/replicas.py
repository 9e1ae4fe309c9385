"""The Serve instance of a benchmark: apart from any other here, its replicas known by process."""

import os
import time
from pathlib import Path

import psutil

from serve_app.domain.errors import InvalidRunError
from serve_app.serving.ports import REPLICA_PORTS


def replica(title: str, root_pid: int | None = None) -> int:
    """The process of the only replica of `application:deployment` below `root_pid` (else below us).

    Known by the title that Ray gives it. Raises InvalidRunError.
    """
    found = [
        process.pid
        for process in _descendants(root_pid)
        if _words(process).startswith(f"ray::ServeReplica:{title}")
    ]
    if len(found) != 1:
        raise InvalidRunError(f"need one replica of {title}, have {len(found)}")
    return found[0]


def ingress_pids() -> list[int]:
    """Serve's own HAProxy below us, reloaded workers that drain included."""
    return [
        process.pid
        for process in _descendants(None)
        if (words := _words(process).split()) and "-dS" in words
        if Path(words[0]).name == "haproxy"
    ]


def direct_port(pid: int, timeout_s: float = 10.0) -> int:
    """The port on which a replica serves Serve's ingress directly. Raises InvalidRunError."""
    until_s = time.monotonic() + timeout_s
    while time.monotonic() < until_s:
        for connection in psutil.Process(pid).net_connections("tcp"):
            if connection.status == "LISTEN" and connection.laddr.port in REPLICA_PORTS:
                port: int = connection.laddr.port
                return port
        time.sleep(0.2)
    raise InvalidRunError(f"replica {pid} has no direct ingress port: is HAProxy mode on?")


def _descendants(root_pid: int | None) -> list[psutil.Process]:
    return psutil.Process(root_pid or os.getpid()).children(recursive=True)


def _words(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
