"""The fake engine in a process of its own: it can die without its replica, as real ones do.

`engine: {kind: fake, fake: {own_process: true}}`. The replica relays to it over a Unix socket; the
process ends with its replica.
"""

import asyncio
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from serve_app.domain.errors import EngineError
from serve_app.engines.engine import ASGIApp, EngineLoad, Message, Receive, Scope, Send
from serve_app.engines.fake import create_app
from serve_app.engines.fake_asgi import lifespan, read_body, respond, until_disconnect
from serve_app.engines.fake_script import FakeScript
from serve_app.engines.fake_wire import error_body
from serve_app.engines.llamacpp_upstream import Upstream
from serve_app.engines.samples import Sample, app_samples

START_TIMEOUT_S = 60.0
STOP_GRACE_S = 2.0
_PR_SET_PDEATHSIG = 1


class ChildOrder(msgspec.Struct):
    """What the process is told."""

    names: tuple[str, ...]
    script: FakeScript
    address: str
    """Path of the Unix socket."""
    parent_pid: int


class FakeChildEngine:
    """The replica's end: OpenAI's protocol, relayed, and whether the process still runs."""

    version = "fake"

    def __init__(
        self, script: FakeScript, process: "subprocess.Popen[bytes]", address: str
    ) -> None:
        self.context_length = script.max_model_len
        self.facts = {"engine": self.version, "engine_pid": str(process.pid)}
        self.app: ASGIApp = self._serve
        self._process = process
        self._address = address
        self._upstream = Upstream(address)
        self._n_open = 0
        self._broke = False

    @property
    def alive(self) -> bool:
        """False once the process has ended, or did not answer."""
        return self._process.poll() is None and not self._broke

    def load(self) -> EngineLoad:
        """Requests that were relayed and are not over."""
        return EngineLoad(self._n_open, 0, None)

    async def samples(self) -> list[Sample]:
        """What its `/metrics` page says."""
        return await app_samples(self.app)

    async def check_health(self) -> None:
        """Raise EngineError if the process has ended."""
        if not self.alive:
            raise EngineError(f"the fake engine's process {self._process.pid} has ended")

    async def shutdown(self) -> None:
        """End the process; safe to call twice."""
        await self._upstream.close()
        await asyncio.to_thread(_end, self._process, self._address)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
            return
        started = False

        async def noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        body = await read_body(receive)
        if body is None:
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        self._n_open += 1
        try:
            relayed = self._upstream.relay(noted, scope["method"], path, body or None)
            await until_disconnect(relayed, receive)
        except EngineError as error:
            self._broke = True
            if started:
                raise
            await respond(send, 503, error_body(str(error), "Service Unavailable", 503, None))
        finally:
            self._n_open -= 1


async def start(names: tuple[str, ...], script: FakeScript) -> FakeChildEngine:
    """Start the process and wait until it takes requests. Raises EngineError."""
    folder = tempfile.mkdtemp(prefix="quantile-fake-")  # its mode is 0700
    address = os.path.join(folder, "engine.sock")
    order = ChildOrder(names, script, address, os.getpid())
    # Not asyncio's: a replica's loop runs beside Ray's threads, where forking, and hearing of a
    # child's end, are Ray's. From this thread, as the child ends with the thread that made it.
    process = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-m", __name__, msgspec.json.encode(order).decode()],
        stdout=subprocess.PIPE,
        start_new_session=True,  # a Ctrl-C is for the replica, which then ends it
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            if not await asyncio.to_thread(process.stdout.readline):
                raise EngineError("the fake engine's process ended before it took requests")
    except BaseException as error:
        await asyncio.to_thread(_end, process, address)
        if isinstance(error, TimeoutError):
            said = f"the fake engine did not start within {START_TIMEOUT_S:g} s"
            raise EngineError(said) from error
        raise
    return FakeChildEngine(script, process, address)


def _end(process: "subprocess.Popen[bytes]", address: str) -> None:
    process.terminate()
    try:
        process.wait(STOP_GRACE_S)
    except subprocess.TimeoutExpired:  # open streams hold uvicorn back
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
    shutil.rmtree(Path(address).parent, ignore_errors=True)


def main() -> None:
    """Serve on the socket until told to end, or until the replica is gone."""
    import uvicorn

    order = msgspec.json.decode(sys.argv[1], type=ChildOrder)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != order.parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)  # it died before the kernel was asked
    app = create_app(order.names, order.script)

    listening = socket.socket(socket.AF_UNIX)
    listening.bind(order.address)
    listening.listen(1024)
    sys.stdout.write("ready\n")  # what comes from now on waits for the server
    sys.stdout.flush()
    config = uvicorn.Config(app, lifespan="off", access_log=False, log_level="critical")
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
