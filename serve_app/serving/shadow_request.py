"""What mirroring reads of a request, and the copy that the candidate is sent."""

from dataclasses import dataclass

import msgspec

from serve_app.engines.engine import Scope
from serve_app.routing.pin import PIN_SEPARATOR
from serve_app.serving.http import (
    SHADOW_HEADER,
    SHADOW_KEY,
    UNREADABLE_JSON,
    Headers,
    header,
)

MIRRORED_PATHS = frozenset({"/v1/chat/completions", "/v1/completions"})
"""What is stateless, and answered with text."""


class UnreadableRequestError(Exception):
    """The request is not one whose settings we understand."""


class Asked(msgspec.Struct, frozen=True):
    """The fields of a request that decide whether two answers to it can be compared."""

    model: str = ""
    temperature: float | None = None
    n: int | None = None
    best_of: int | None = None
    seed: int | None = None

    @property
    def is_greedy(self) -> bool:
        """Temperature 0, said aloud: without one, engines sample at 1. Several answers to one
        prompt (`n`) are sampled too.
        """
        return self.temperature == 0 and self.n in (None, 1) and self.best_of in (None, 1)


_ASKED = msgspec.json.Decoder(Asked)
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def read_request(body: bytes) -> Asked:
    """The settings of a request. Raises UnreadableRequestError."""
    try:
        return _ASKED.decode(body)
    except UNREADABLE_JSON as error:
        raise UnreadableRequestError(str(error)) from None


def without_pin(body: bytes, asked: Asked) -> bytes:
    """The body as the candidate takes it: it serves the alias, and not another variant's pin.

    A body that names no variant is passed on as it is. Raises UnreadableRequestError.
    """
    if PIN_SEPARATOR not in asked.model:
        return body
    try:
        fields = _FIELDS.decode(body)
    except UNREADABLE_JSON as error:
        raise UnreadableRequestError(str(error)) from None
    alias = asked.model.rpartition(PIN_SEPARATOR)[0]
    return msgspec.json.encode(fields | {"model": msgspec.Raw(msgspec.json.encode(alias))})


@dataclass(frozen=True, slots=True)
class Original:
    """A request that is mirrored, by reference: nothing of it is copied."""

    request_id: str
    primary: str
    """The variant that served it."""
    scope: Scope
    body: bytes

    @property
    def n_bytes(self) -> int:
        """What it keeps in memory."""
        headers: Headers = self.scope["headers"]
        return len(self.body) + sum(len(name) + len(value) for name, value in headers)

    def marked_scope(self) -> Scope:
        """The request's scope as the candidate is asked: no more than the relay reads, marked."""
        scope = self.scope
        return {
            "method": scope["method"],
            "path": scope["path"],
            "query_string": scope.get("query_string", b""),
            "headers": scope["headers"],
            SHADOW_KEY: True,
        }


def is_marked(scope: Scope) -> bool:
    """Whether the request is a mirrored one."""
    return header(scope["headers"], SHADOW_HEADER) is not None
