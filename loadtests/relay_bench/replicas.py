"""Replicas of the Serve instance on this machine, by their processes."""

import time

import psutil

from serve_app.domain.errors import InvalidRunError

_DIRECT_PORTS = range(30_000, 31_000)  # Serve's, for replicas that HAProxy asks


def replica(title: str) -> int:
    """The process of the only replica of `application:deployment`, by the title that Ray gives it.

    Raises InvalidRunError.
    """
    found = [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if " ".join(process.info["cmdline"] or ()).startswith(f"ray::ServeReplica:{title}")
    ]
    if len(found) != 1:
        raise InvalidRunError(
            f"need one replica of {title}, have {len(found)}: another Serve here?"
        )
    return found[0]


def direct_port(pid: int, timeout_s: float = 10.0) -> int:
    """The port on which a replica serves Serve's ingress directly. Raises InvalidRunError."""
    until_s = time.monotonic() + timeout_s
    while time.monotonic() < until_s:
        for connection in psutil.Process(pid).net_connections("tcp"):
            if connection.status == "LISTEN" and connection.laddr.port in _DIRECT_PORTS:
                port: int = connection.laddr.port
                return port
        time.sleep(0.2)
    raise InvalidRunError(f"replica {pid} has no direct ingress port: is HAProxy mode on?")
