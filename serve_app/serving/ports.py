"""Ports of one Serve instance. Two on one machine that share them answer each other's requests.

Serve's fallback proxies listen with SO_REUSEPORT: the kernel deals connections out among them. And
a port that a replica of one leaves is taken by one of the other, which HAProxy takes for its own.
"""

import socket
from collections.abc import Mapping

from serve_app.domain.errors import ConfigError

_METRICS = "RAY_SERVE_HAPROXY_METRICS_PORT"
_STATS = "RAY_SERVE_HAPROXY_STATS_PORT"
_FALLBACK = "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT"
_FIRST_REPLICA = "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT"
_LAST_REPLICA = "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT"

_KNOWN = {_METRICS: 9101, _STATS: 8404, _FALLBACK: 8500}
"""Ray 2.60's defaults."""
REPLICA_PORTS = range(30_000, 32_768)
"""Where replicas may listen: Ray's own range and, above it, what Linux gives to no connection."""
_BLOCKS = range(31_000, 32_700, 100)


def fixed_ports(environ: Mapping[str, str]) -> dict[str, int]:
    """Ports besides the endpoint's that no other instance may have, by what sets them."""
    if environ.get("RAY_SERVE_ENABLE_HA_PROXY") != "1":
        return {}
    return {name: int(environ.get(name) or known) for name, known in _KNOWN.items()}


def own_ports() -> dict[str, str]:
    """Environment variables that keep an instance's ports apart from those of any that runs now."""
    first = next((block for block in _BLOCKS if is_free(block)), None)
    if first is None:
        raise ConfigError(f"need a free port of {_BLOCKS}, have none: end other Serve instances")
    replicas = {_FIRST_REPLICA: str(first), _LAST_REPLICA: str(first + _BLOCKS.step - 1)}
    return {name: str(free_port()) for name in (_METRICS, _STATS, _FALLBACK)} | replicas


def require_free(port: int, way_out: str, host: str = "127.0.0.1") -> None:
    """Raise ConfigError where something listens on the port already."""
    if not is_free(port, host):
        raise ConfigError(
            f"port {port} cannot be listened on: end what uses it (`serve shutdown`, or the `serve "
            f"run` that owns it), or {way_out}"
        )


def require_alone(environ: Mapping[str, str]) -> None:
    """Raise ConfigError where another instance of Serve has a port that this one would use."""
    for name, port in fixed_ports(environ).items():
        require_free(port, f"set another one as {name}", "0.0.0.0")  # noqa: S104 - as Ray does


def is_free(port: int, host: str = "0.0.0.0") -> bool:  # noqa: S104 - as Ray does
    """Whether nothing listens there. The port is left as it was."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A TCP port that nothing listens on."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("0.0.0.0", 0))  # noqa: S104 - as Ray does
        port: int = probe.getsockname()[1]
    return port
