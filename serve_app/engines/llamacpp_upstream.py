"""HTTP to llama.cpp's server over its Unix socket."""

from typing import Any

import aiohttp
import msgspec

from serve_app.domain.errors import EngineError, MalformedRequestError
from serve_app.engines.engine import Send
from serve_app.engines.fake_asgi import send_event

_BASE = "http://llama.cpp"
_JSON = {"content-type": "application/json"}
_PASSED = (b"content-type", b"cache-control", b"retry-after")


class Upstream:
    """Asks one server. The session is made with the first request: it needs the loop.

    Each request has its own connection. llama.cpp hangs up those that idle for 5 s, which would
    fail a request sent at that moment, and gives each that is open a thread.
    """

    def __init__(self, socket: str) -> None:
        self._socket = socket
        self._session: aiohttp.ClientSession | None = None

    async def relay(self, send: Send, method: str, path: str, body: bytes | None) -> None:
        """Ask, and pass the answer on piece by piece. Cancelled, it hangs up, and llama.cpp stops.

        Raises EngineError when the server is gone before its answer began; one that breaks off
        later is raised too, so that the client sees a broken answer and not a short one.
        """
        try:
            async with self._opened().request(
                method, _BASE + path, data=body, headers=_JSON if body else None
            ) as answer:
                headers = [
                    (name.lower(), value)
                    for name, value in answer.raw_headers
                    if name.lower() in _PASSED
                ]
                if (length := answer.headers.get("content-length")) is not None:
                    headers.append((b"content-length", length.encode()))
                await send(
                    {"type": "http.response.start", "status": answer.status, "headers": headers}
                )
                async for piece in answer.content.iter_any():
                    await send_event(send, piece)
                await send({"type": "http.response.body", "body": b""})
        except aiohttp.ClientError as error:
            raise EngineError(f"llama.cpp's server broke off: {error!r}") from error

    async def ask(self, path: str, content: dict[str, Any]) -> dict[str, Any]:
        """A question with a whole JSON answer. Raises MalformedRequestError, EngineError."""
        body = msgspec.json.encode(content)
        try:
            async with self._opened().post(_BASE + path, data=body, headers=_JSON) as answer:
                found: dict[str, Any] = msgspec.json.decode(await answer.read())
        except (aiohttp.ClientError, msgspec.DecodeError) as error:
            raise EngineError(f"llama.cpp's server gave no answer: {error!r}") from error
        if "error" in found:
            message = str(found["error"].get("message"))
            raise MalformedRequestError(message) if answer.status < 500 else EngineError(message)
        return found

    async def close(self) -> None:
        """Close every connection; safe to call twice."""
        if self._session is not None:
            await self._session.close()

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(self._socket, limit=0, force_close=True),
                timeout=aiohttp.ClientTimeout(total=None),
                auto_decompress=False,
            )
        return self._session
