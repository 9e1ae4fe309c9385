"""Several fake variants behind one port, as Serve's ingress shows them: `/variants/<name>/...`.

Real fronts over fake engines, in a process of its own. What no variant takes is answered as the
ingress does, without `x-variant`.
"""

import argparse
import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serve_app.domain.checkpoint import VariantCard
from serve_app.engines.fake import create_app
from serve_app.engines.fake_engine import FakeEngine
from serve_app.engines.fake_script import FakeScript
from serve_app.serving.http import send_bytes
from serve_app.serving.variant_front import VariantFront
from tests.fakes.router_process import TOKEN, bound_socket

PREFIX = "/variants/"


MAX_HEAD_BYTES, MAX_HEADERS = 16_384 - 1_024, 101
"""HAProxy's, as Serve runs it: `tune.bufsize` less `tune.maxrewrite`, and `tune.http.maxhdr`."""


def is_too_large(headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether HAProxy would refuse a request with these headers."""
    n_bytes = sum(len(name) + len(value) + 4 for name, value in headers)
    return n_bytes > MAX_HEAD_BYTES or len(headers) > MAX_HEADERS


class VariantHost:
    """The ASGI application: `scripts` are the fake engines' scripts by variant."""

    def __init__(self, aliases: list[str], scripts: dict[str, dict[str, Any]]) -> None:
        self._fronts = {
            name: VariantFront(_engine(aliases, name, script), _card(name), TOKEN)
            for name, script in scripts.items()
        }

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        name = scope["path"].removeprefix(PREFIX).partition("/")[0]
        front = self._fronts.get(name)
        if front is None:
            await send_bytes(send, 404, b"Path not found", b"text/plain")
            return
        if is_too_large(scope["headers"]):
            await send_bytes(send, 400, b"<html>400 Bad request</html>", b"text/html")
            return
        prefix = PREFIX + name
        await front({**scope, "path": scope["path"].removeprefix(prefix)}, receive, send)


def _engine(aliases: list[str], name: str, script: dict[str, Any]) -> FakeEngine:
    names = [each for alias in aliases for each in (f"{alias}@{name}", alias)]
    return FakeEngine(create_app(names, FakeScript.from_dict(script)))


def _card(name: str) -> VariantCard:
    return VariantCard(
        name=name,
        method="awq",
        scheme="awq W4A16 g128",
        bits=4,
        weight_bytes=1000,
        context_length=2048,
        engine="fake",
    )


@contextmanager
def variant_host(
    aliases: list[str], scripts: dict[str, dict[str, Any]], log: Path
) -> Iterator[int]:
    """The port of a host that is up; it ends with the block."""
    command = [sys.executable, "-m", __name__, json.dumps(aliases), json.dumps(scripts)]
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, cwd=Path(__file__).parents[2]
        )
    assert process.stdout is not None
    try:
        port = process.stdout.readline()
        assert port, f"the variants did not start:\n{log.read_text()}"
        yield int(port)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def run(app: VariantHost) -> None:
    """Serve until killed."""
    import uvicorn

    sock = bound_socket()
    print(sock.getsockname()[1], flush=True)
    config = uvicorn.Config(app, lifespan="off", access_log=False, log_level="critical")
    await uvicorn.Server(config).serve(sockets=[sock])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("aliases", type=json.loads)
    parser.add_argument("scripts", type=json.loads)
    given = parser.parse_args()
    asyncio.run(run(VariantHost(given.aliases, given.scripts)))


if __name__ == "__main__":
    main()
