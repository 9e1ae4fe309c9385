"""The target's JSON API, asked before the load begins and never while it runs."""

from typing import Self, TypeVar

import msgspec

from loadtests.campaign import Target
from loadtests.drive.client import Exchange, HttpTarget, auth_headers

ASK_WITHIN_S = 10.0

T = TypeVar("T")


class TargetApi:
    """`with TargetApi(target) as api`: one kept connection, closed at the end.

    Raises ConfigError where the API key is not set.
    """

    def __init__(self, target: Target) -> None:
        self.url = target.base_url
        self._http = HttpTarget(target.base_url, auth_headers(target.api_key_env))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._http.close()

    def get(self, path: str) -> Exchange:
        """`GET path`; errors are in the exchange."""
        return self._http.exchange(self._http.request("GET", path), ASK_WITHIN_S)

    def post(self, path: str, body: bytes, timeout_s: float = ASK_WITHIN_S) -> Exchange:
        """`POST path` with JSON; errors are in the exchange."""
        return self._http.exchange(self._http.request("POST", path, body), timeout_s)


def decoded(exchange: Exchange, kind: type[T]) -> T | None:
    """The answer's JSON; None where it is none of this kind, or no success."""
    if exchange.error is not None or exchange.status != 200:
        return None
    try:
        return msgspec.json.decode(exchange.body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


def why_not(exchange: Exchange) -> str:
    """A failed exchange in words."""
    return exchange.detail or f"HTTP {exchange.status}"
