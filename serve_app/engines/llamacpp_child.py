"""The replica's end of llama.cpp's process: start, questions, death, stop."""

import asyncio
import contextlib
import os
import shutil
import sys
import tempfile
from collections import deque
from pathlib import Path

import msgspec

from serve_app.domain.errors import EngineError, MalformedRequestError
from serve_app.engines.llamacpp_process import Answer, ChildSettings, Question

START_TIMEOUT_S = 600.0
STOP_GRACE_S = 5.0
_LINE_BYTES = 256 * 2**20
"""An answer about 100,000 tokens with 20 alternatives each has some 100 MB."""
_LOG_LINES = 15


class LlamaCppChild:
    """A running process. It ends when this object is stopped, or with this process."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self._process = process
        self._folder = folder
        self._turn = asyncio.Lock()
        self._log: deque[str] = deque(maxlen=_LOG_LINES)
        self._reader = asyncio.create_task(self._read_log(), name="llama.cpp log")

    @classmethod
    async def start(cls, settings: ChildSettings) -> "LlamaCppChild":
        """Start it and wait until it can take requests. Raises EngineError."""
        folder = Path(settings.socket).parent
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "serve_app.engines.llamacpp_process",
            msgspec.json.encode(settings).decode(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=_LINE_BYTES,
            start_new_session=True,  # a Ctrl-C is for the replica, which then ends it
        )
        child = cls(process, folder)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await child._read()
        except BaseException as error:
            await child.stop()
            if isinstance(error, TimeoutError | EngineError):
                raise EngineError(
                    f"llama.cpp did not start on {settings.file}: {child.last_words() or error!r}"
                ) from error
            raise
        return child

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.returncode is None

    def last_words(self) -> str:
        """The end of what it wrote to standard error."""
        return " | ".join(self._log)

    async def ask(self, question: Question) -> Answer:
        """One question at a time. Raises MalformedRequestError, EngineError."""
        # Whoever asked may leave; the answer still comes, and must be taken before the next one.
        answer = await asyncio.shield(asyncio.create_task(self._ask(question)))
        if answer.error is not None:
            kind = MalformedRequestError if answer.caller_is_wrong else EngineError
            raise kind(answer.error)
        return answer

    async def stop(self) -> None:
        """End it and remove its socket; safe to call twice."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            async with asyncio.timeout(STOP_GRACE_S):
                await self._process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        await self._reader
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _ask(self, question: Question) -> Answer:
        assert self._process.stdin is not None
        async with self._turn:
            try:
                self._process.stdin.write(msgspec.json.encode(question) + b"\n")
                await self._process.stdin.drain()
            except (BrokenPipeError, ConnectionResetError) as error:
                raise EngineError(f"llama.cpp's process is gone: {self.last_words()}") from error
            return await self._read()

    async def _read(self) -> Answer:
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise EngineError(f"llama.cpp's process ended: {self.last_words()}")
        return msgspec.json.decode(line, type=Answer)

    async def _read_log(self) -> None:
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            if text := line.decode(errors="replace").strip():
                self._log.append(text)


def new_socket() -> str:
    """A path for a Unix socket in a folder that only this user can enter."""
    folder = tempfile.mkdtemp(prefix="quantile-llamacpp-")  # its mode is 0700
    return os.path.join(folder, "server.sock")
