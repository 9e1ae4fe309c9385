"""One probe: a streamed chat request to one variant, timed."""

import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from serve_app.domain.errors import ConfigError
from serve_app.rollout.observations import Answer

_MALFORMED = (ValueError, KeyError, TypeError, AttributeError)
_RETRIED_4XX = frozenset({408, 425, 429})
"""What says that the moment is wrong, not the request."""


class LimitedError(Exception):
    """The endpoint would not take the probe at this moment: it says nothing of the variant."""


@dataclass(frozen=True)
class Said:
    """An answer and its text; the text is None where the answer is not whole."""

    answer: Answer
    text: str | None


class ProbeClient:
    """Asks an OpenAI endpoint. `base_url` ends in `/v1`."""

    def __init__(self, base_url: str, api_key: str | None, timeout_s: float) -> None:
        self._url = f"{base_url}/chat/completions"
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._session: aiohttp.ClientSession | None = None

    async def ask(self, model: str, variant: str, prompt: Mapping[str, Any], n: int) -> Said:
        """The variant's greedy answer of at most `n` tokens. A failure is an answer too.

        Raises LimitedError for 429 and where nobody listens, ConfigError for a request that the
        endpoint will never take.
        """
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=self._timeout, headers=self._headers)
        body = {
            "model": f"{model}@{variant}",
            "messages": prompt["messages"],
            "max_tokens": n,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        began_s = time.monotonic()
        failed = Said(Answer(ok=False), None)
        try:
            async with self._session.post(self._url, json=body) as response:
                if response.status in _RETRIED_4XX:
                    raise LimitedError(f"{response.status}: {(await response.text())[:200]}")
                if 400 <= response.status < 500:
                    raise ConfigError(
                        f"{self._url} refuses the probes of {variant} ({response.status}): "
                        f"{(await response.text())[:300]}"
                    )
                if response.status != 200:
                    return failed
                return await _read(response, began_s)
        except aiohttp.ClientConnectorError as error:  # the endpoint's door, not a variant's
            raise LimitedError(f"cannot connect: {error}") from None
        except (aiohttp.ClientError, TimeoutError, *_MALFORMED):
            return failed

    async def close(self) -> None:
        """End connections."""
        if self._session is not None:
            await self._session.close()


async def _read(response: aiohttp.ClientResponse, began_s: float) -> Said:
    first_s = last_s = None
    n_tokens, texts, is_whole = None, [], False
    async for data in _events(response):
        now_s = time.monotonic()
        if data == b"[DONE]":
            is_whole = True
            continue
        chunk = json.loads(data)
        if "error" in chunk:
            return Said(Answer(ok=False), None)
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            text = delta.get("content") or delta.get("reasoning_content") or ""
            if text:
                first_s, last_s = first_s or now_s, now_s
                texts.append(text)
        usage = chunk.get("usage")
        n_tokens = usage["completion_tokens"] if usage else n_tokens
    if not is_whole or first_s is None or last_s is None:
        return Said(Answer(ok=False), None)
    tpot_s = (last_s - first_s) / (n_tokens - 1) if n_tokens and n_tokens > 1 else None
    return Said(Answer(ok=True, ttft_s=first_s - began_s, tpot_s=tpot_s), "".join(texts))


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """What stands after `data:` in each line; lines may be longer than aiohttp's own limit."""
    rest = b""
    async for piece in response.content.iter_any():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()
