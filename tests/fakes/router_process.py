"""One router replica under plain uvicorn, as Serve drives it, in a process of its own; no Ray.

Its second port tells, for each line that it is sent, how the process is: `Vitals` as JSON.
"""

import argparse
import asyncio
import gc
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

TOKEN = "0123456789abcdef"
START_S = 30.0


@dataclass(frozen=True)
class Vitals:
    """What a router process says of itself."""

    rss_bytes: int
    fds: int
    tasks: int
    label_sets: dict[str, int]
    """Distinct sets of labels by metric."""
    labels: dict[str, list[str]]
    """Every value that a label had."""
    events_total: int


@dataclass(frozen=True)
class RouterProcess:
    """A running router: `port` takes requests; `stderr` is the file that takes its log."""

    pid: int
    port: int
    admin_port: int
    log: Path

    @property
    def url(self) -> str:
        """Without a slash at its end."""
        return f"http://127.0.0.1:{self.port}"

    def vitals(self) -> Vitals:
        """Ask it. Its garbage is collected first; nothing is given back to the system by force."""
        with socket.create_connection(("127.0.0.1", self.admin_port), timeout=10) as admin:
            admin.sendall(b"\n")
            line = admin.makefile("rb").readline()
        return Vitals(**json.loads(line))


@contextmanager
def router_process(args: dict, user_config: dict, log: Path) -> Iterator[RouterProcess]:
    """Start a router and end it; both configurations as a Serve file has them."""
    command = [sys.executable, "-m", __name__, json.dumps(args), json.dumps(user_config)]
    environ = {"QUANTILE_INTERNAL_TOKEN": TOKEN, "PATH": "/usr/bin:/bin"}
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environ,
            cwd=Path(__file__).parents[2],
        )
    assert process.stdout is not None
    try:
        ports = process.stdout.readline()
        assert ports, f"the router did not start:\n{log.read_text()}"
        yield RouterProcess(process.pid, *json.loads(ports), log=log)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def bound_socket() -> socket.socket:
    """A listening socket on a free loopback port."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", 0))
    bound.listen(1024)
    return bound


async def run(args: dict, user_config: dict) -> None:
    """Serve until killed."""
    from tests.fakes.ray_serve import install

    recorder = install()
    import uvicorn

    from serve_app.config.schema import RouterArgs
    from serve_app.serving.variant_router import VariantRouter

    replica = VariantRouter(RouterArgs.model_validate(args))
    app = await replica.__serve_build_asgi_app__()
    await replica.reconfigure(user_config)
    await replica.check_health()

    async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        gc.collect()
        me = psutil.Process()
        vitals: dict[str, Any] = {
            "rss_bytes": me.memory_info().rss,
            "fds": me.num_fds(),
            "tasks": len(asyncio.all_tasks()),
            "label_sets": recorder.counts(),
            "labels": recorder.labels(),
            "events_total": recorder.events_total,
        }
        writer.write(json.dumps(vitals).encode() + b"\n")
        writer.close()

    admin = await asyncio.start_server(tell, "127.0.0.1", 0)
    sock = bound_socket()
    # As `ray.serve._private.http_util.start_asgi_http_server` makes it, but for the log.
    config = uvicorn.Config(app, lifespan="off", access_log=False, log_level="warning")
    print(json.dumps([sock.getsockname()[1], admin.sockets[0].getsockname()[1]]), flush=True)
    await uvicorn.Server(config).serve(sockets=[sock])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("args", type=json.loads)
    parser.add_argument("user_config", type=json.loads)
    given = parser.parse_args()
    import uvloop

    uvloop.run(run(given.args, given.user_config))


if __name__ == "__main__":
    main()
