"""JSON over HTTP, with a few tries: what both ways to the split have in common."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from serve_app.splits.live_split import SplitUnreachableError

T = TypeVar("T")
TRIES = 6
FIRST_WAIT_S = 0.5
TIMEOUT_S = 30.0
Sleep = Callable[[float], Awaitable[None]]


class Refused(Exception):  # noqa: N818 not an error by itself: whoever asks knows what it means
    """An answer of 400 to 499."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(status, text)
        self.status = status
        self.text = text


class JsonClient:
    """Asks one server. Connection failures and 5xx are tried again, with longer waits."""

    def __init__(
        self,
        root: str,
        headers: Mapping[str, str],
        *,
        ssl: Any = True,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._root = root.rstrip("/")
        self._headers = dict(headers)
        self._ssl = ssl
        self._sleep = sleep
        self._session: aiohttp.ClientSession | None = None

    async def ask(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json"
    ) -> Any:
        """The answer's JSON, None where it is empty. Raises Refused, SplitUnreachableError."""
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
            self._session = aiohttp.ClientSession(headers=self._headers, timeout=timeout)
        url, wait_s, trouble = f"{self._root}{path}", FIRST_WAIT_S, ""
        for left in reversed(range(TRIES)):
            try:
                async with self._session.request(
                    method,
                    url,
                    json=body,
                    ssl=self._ssl,
                    headers={"Content-Type": content_type} if body is not None else None,
                ) as answer:
                    text = await answer.text()
                    if answer.status < 300:
                        return await answer.json(content_type=None) if text.strip() else None
                    if answer.status < 500:
                        raise Refused(answer.status, text[:500])
                    trouble = f"{answer.status}: {text[:300]}"
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                trouble = repr(error)
            if left:
                await self._sleep(wait_s)
                wait_s *= 2
        raise SplitUnreachableError(
            f"{method} {url} failed {TRIES} times, the last time with {trouble}. The split stays "
            "as it is; run the command again to go on"
        )

    async def close(self) -> None:
        """End connections."""
        if self._session is not None:
            await self._session.close()


def ray_token(environ: Mapping[str, str] = os.environ) -> str | None:
    """Ray's authentication token, where Ray looks for it; None where there is none."""
    if token := environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    path = environ.get("RAY_AUTH_TOKEN_PATH") or str(Path.home() / ".ray" / "auth_token")
    try:
        return Path(path).read_text().strip() or None
    except OSError:
        return None
